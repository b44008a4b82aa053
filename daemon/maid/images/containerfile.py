"""What a Containerfile names: the images that its stages begin with or copy from.

buildah reads the file and does what it says. This is read beforehand, so that images which exist
only on this machine can be handed to it: instructions, their flags and build arguments, as far as
names of images need them (docs.docker.com, "Dockerfile reference"). A line that is not understood
is passed over: buildah says what is wrong with it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

_DIRECTIVE = re.compile(r"#\s*(\w+)\s*=\s*(\S+)\s*$")
# BuildKit's (frontend/dockerfile/parser, reHeredoc), for a whole word of the shell's: "<<<" and
# "$((1<<20))" begin nothing.
_HEREDOC = re.compile(r"\d*<<(-?)([^<]+)")
_WORD = re.compile(r"""(?:[^\s"'\\]|\\.|"(?:[^"\\]|\\.)*"|'[^']*')+""")
_QUOTING = re.compile(r"""["'\\]""")
_FROM = re.compile(r"^(\s*FROM)\b", re.IGNORECASE)
_FLAG = re.compile(r"--(\w[\w-]*)(?:=(\S*))?$")
_VARIABLE = re.compile(r"\\(.)|\$(?:(\w+)|\{(\w+)(?:(:?[-+])([^}]*))?\})")
_FROM_OPTION = re.compile(r"(?:^|,)from=([^,]+)")


@dataclass(frozen=True)
class Instruction:
    """One instruction: its name in upper case, its flags in order, the words after them, and the
    line that it begins in, counted from 0."""

    name: str
    flags: tuple[tuple[str, str], ...]
    words: tuple[str, ...]
    line: int

    def flag(self, name: str) -> str:
        """The value of a flag, the last one given, or ""."""
        return next((value for key, value in reversed(self.flags) if key == name), "")


@dataclass(frozen=True)
class Needed:
    """An image by the name that the file gives it; `platform` is what `FROM --platform` asks for,
    "" where the image is for the platform that is built."""

    name: str
    platform: str = ""


def instructions(text: str) -> Iterator[Instruction]:
    """The instructions of a file: continued lines joined, comments and here-documents left out."""
    escape, lines = "\\", iter(enumerate(text.split("\n")))
    in_directives = True
    pending, first = "", -1
    for number, line in lines:
        stripped = line.strip()
        if in_directives and not pending:
            directive = _DIRECTIVE.fullmatch(stripped)
            if directive and directive[1].lower() == "escape":
                escape = directive[2]
            in_directives = bool(directive)
        if stripped.startswith("#") or not stripped:
            continue
        if not pending:
            first = number
        if stripped.endswith(escape):
            pending += stripped[: -len(escape)] + " "
            continue
        whole, pending = pending + stripped, ""
        found = _instruction(whole, first)
        if found.name in ("RUN", "COPY", "ADD"):
            for dash, word in heredocs(whole):
                for _, inner in lines:
                    inner = inner.removesuffix("\r")
                    if (inner.strip("\t") if dash else inner) == word:
                        break
        yield found
    if pending.strip():
        yield _instruction(pending, first)


def heredocs(line: str) -> list[tuple[str, str]]:
    """What begins a here-document in a line: "-" or "" for each, and the word that ends it."""
    words = map(_HEREDOC.fullmatch, _WORD.findall(line))
    return [(each[1], _QUOTING.sub("", each[2])) for each in words if each]


def _instruction(line: str, number: int) -> Instruction:
    name, *words = line.split()
    flags = []
    while words and (flag := _FLAG.fullmatch(words[0])):
        flags.append((flag[1], flag[2] or ""))
        words.pop(0)
    return Instruction(name.upper(), tuple(flags), tuple(words), number)


def images(text: str, arguments: Mapping[str, str]) -> list[Needed]:
    """The images that a file names, each once, in order; stages of its own and `scratch` are none.

    `arguments` are build arguments, those of the platforms among them. Names that depend on
    arguments without a value are left out.
    """
    values, stages, found = dict(arguments), set[str](), dict[Needed, None]()
    is_before_stages = True
    number = 0

    def add(name: str, platform: str = "") -> None:
        expanded, wanted = expand(name, values), expand(platform, values)
        known = expanded.lower() in stages or expanded.isdigit()
        if expanded and not known and expanded != "scratch":
            found[Needed(expanded, wanted)] = None

    for each in instructions(text):
        if each.name == "ARG" and is_before_stages:
            for word in each.words:
                name, assigned, default = word.partition("=")
                if assigned and name not in values:
                    values[name] = expand(default.strip("\"'"), values)
        elif each.name == "FROM" and each.words:
            is_before_stages = False
            add(each.words[0], each.flag("platform"))
            stages.add(str(number))
            number += 1
            if len(each.words) == 3 and each.words[1].upper() == "AS":
                stages.add(each.words[2].lower())
        elif each.name in ("COPY", "ADD"):
            add(each.flag("from"))
        elif each.name == "RUN":
            for flag, value in each.flags:
                if flag == "mount" and (source := _FROM_OPTION.search(value)):
                    add(source[1])
    return list(found)


def with_platforms(text: str, platform: str) -> str:
    """The file with `--platform` in every FROM where one has it: `platform` for those without.

    buildah before 1.30 takes the platform of one stage for all that follow it (imagebuildah,
    stage_executor.go, prepare: all share one SystemContext).
    """
    stages = [each for each in instructions(text) if each.name == "FROM"]
    if not any(each.flag("platform") for each in stages):
        return text
    lines = text.split("\n")
    for each in stages:
        if not each.flag("platform"):
            lines[each.line] = _FROM.sub(rf"\1 --platform={platform}", lines[each.line], count=1)
    return "\n".join(lines)


def expand(text: str, values: Mapping[str, str]) -> str:
    """`text` with $NAME, ${NAME}, ${NAME:-word} and ${NAME:+word} replaced, as Docker does."""

    def replace(match: re.Match[str]) -> str:
        escaped, plain, braced, operator, word = match.groups()
        if escaped:
            return escaped
        value = values.get(plain or braced)
        is_set = value is not None if operator in ("-", "+") else bool(value)
        if operator and operator.endswith("-"):
            return (value or "") if is_set else expand(word, values)
        if operator and operator.endswith("+"):
            return expand(word, values) if is_set else ""
        return value or ""

    return _VARIABLE.sub(replace, text)
