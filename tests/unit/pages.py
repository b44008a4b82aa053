"""The project's pages, and what can be found in them: links, headings, code, commands."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]

_FENCE = re.compile(r"^( *)```")
_LINK = re.compile(r"\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^)\s]+)\)")


@dataclass(frozen=True)
class Line:
    """One line of code."""

    page: Path
    number: int
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(REPOSITORY)}:{self.number}: {self.text.strip()}"


def split(page: Path) -> tuple[list[Line], list[Line]]:
    """The lines of a page: those of its prose, and those of its code blocks.

    A code block is fenced, or is indented by four spaces more than the prose and stands after an
    empty line (or another line of code), as in CommonMark.
    """
    prose, code = [], []
    fenced = False
    before_empty, in_code, margin = True, False, 0
    for number, text in enumerate(page.read_text().splitlines(), 1):
        line = Line(page, number, text)
        if _FENCE.match(text):
            fenced = not fenced
            continue
        indent = len(text) - len(text.lstrip())
        if fenced:
            code.append(line)
            continue
        if not text.strip():
            before_empty = True
            continue
        if re.match(r" *(-|\*|\d+\.) ", text):
            margin = indent + 2
        elif indent == 0:
            margin = 0
        in_code = indent >= margin + 4 and (before_empty or in_code)
        (code if in_code else prose).append(line)
        before_empty = False
    return prose, code


def spans(page: Path) -> Iterator[Line]:
    """The code within the prose of a page: what is between backticks, on one line or two."""
    prose = split(page)[0]
    for first, second in zip(prose, [*prose[1:], Line(page, 0, "")], strict=True):
        cut = len(first.text) + 1
        both = f"{first.text} {second.text.strip()}"
        for found in re.finditer(r"(?<!`)`([^`]+)`(?!`)", both):
            odd = first.text.count("`") % 2
            if found.start() < cut and (found.end() <= cut or odd):
                yield Line(page, first.number, found.group(1).replace("\\|", "|"))


def links(page: Path) -> Iterator[Line]:
    """The targets of the links in the prose of a page."""
    for line in split(page)[0]:
        for target in _LINK.findall(re.sub(r"`[^`]*`", "", line.text)):
            yield Line(page, line.number, target)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    found: set[str] = set()
    for line in split(page)[0]:
        heading = re.match(r"#{1,6} +(.*)", line.text)
        if not heading:
            continue
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading.group(1)).replace("`", "")
        slug = re.sub(r"[^\w\- ]", "", text.strip().lower()).replace(" ", "-")
        count = 0
        while (numbered := f"{slug}-{count}" if count else slug) in found:
            count += 1
        found.add(numbered)
    return found


def commands(text: str) -> Iterator[list[str]]:
    """The command lines of maid in a line of shell: their arguments, without `maid` itself.

    A description behind two blanks or a # is none of it, nor what stands in front: a prompt, sudo,
    a chroot, variables. Of [options] in brackets the brackets are left out, and so is what only
    says "and so on".
    """
    text = re.split(r" {2,}(?=\S)| # ", text.strip())[0]
    text = re.sub(r"[\[\]]", " ", text.replace("]…", "]")) if "--" in text else text
    for part in re.split(r" \| |&&|;|\$\(|(?<!\\)>", text):
        words = part.replace("…", "").strip().rstrip(")").removeprefix("$ ").removeprefix("# ")
        try:
            given = shlex.split(words)
        except ValueError:
            given = words.split()
        for place, word in enumerate(given):
            if word == "maid" or word.endswith("/bin/maid"):
                yield given[place + 1 :]
                break
            if not re.match(
                r"sudo$|if$|!$|until$|while$|time$|\w+=|ExecStart|run:$|-$|nsenter", word
            ):
                break
