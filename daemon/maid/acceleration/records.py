"""A record: what stands in for one build of a program, and when it must not.

One file `id/<build-id>` of the native store, read by the front (daemon/native/front.c) before each
emulated program: strings, each ended by a zero byte. First the version, then the rules, last the
program to execute. Each rule begins with a letter; the front leaves a record alone that has a
letter it does not know, so a store can be newer than the interpreters that are registered.

This is the format in both directions and nothing else: which tool gets which rules is model.py's
and its tables' to say.
"""

from __future__ import annotations

from dataclasses import dataclass

from maid.errors import MaidError

VERSION = "maid-native 1"
LIMIT = 4096
"""The most bytes of a record; the front reads no more."""

MOUNT = "/dev/.maid"
"""Where the store is mounted in a container (facts/acceleration.md: every one has a tmpfs on
/dev)."""

_PAIRS = frozenset("pb")


class RecordError(MaidError):
    """A record is damaged, or would not be one the front takes."""


@dataclass(frozen=True)
class Rule:
    """One condition or change. `letter` as listed below, `text` what it is about, `more` the second
    string of the letters that have two, "" for the others."""

    letter: str
    text: str = ""
    more: str = ""


def argument(prefix: str) -> Rule:
    """Step aside if an argument begins with `prefix` ("-fplugin=")."""
    return Rule("a", prefix)


def argument_is(text: str) -> Rule:
    """Step aside if an argument is `text`."""
    return Rule("A", text)


def argument_with(text: str) -> Rule:
    """Step aside if an argument contains `text`."""
    return Rule("c", text)


def option_letters(letters: str) -> Rule:
    """Step aside if an argument that begins with "-", "+" or a digit contains one of `letters`."""
    return Rule("o", letters)


def environment(name: str) -> Rule:
    """Step aside if the variable `name` is set and not empty; "NAME*" is a prefix."""
    return Rule("e", name)


def setting(name: str, value: str) -> Rule:
    """Step aside unless the variable `name` is set, and to `value` wherever it is: a program may
    have two of one name in its environment."""
    return Rule("E", f"{name}={value}")


UTF8_LOCALE = Rule("l", "8")
"""Step aside unless the locale is C, POSIX or has the codeset UTF-8."""

C_LOCALE = Rule("l", "c")
"""Step aside unless the locale is C or POSIX."""


def exists(path: str) -> Rule:
    """Step aside if `path` exists in the root file system."""
    return Rule("x", path)


def missing(path: str) -> Rule:
    """Step aside unless `path` exists in the root file system."""
    return Rule("X", path)


NEEDS_ARGUMENT = Rule("m")
"""Step aside unless there is an argument."""


def plugin(suffix: str, native: str) -> Rule:
    """What ends in `suffix` after -plugin or --plugin becomes `native`."""
    return Rule("p", suffix, native)


def insert(text: str) -> Rule:
    """Insert `text` after argv[0]; one at most."""
    return Rule("i", text)


def some(prefix: str) -> Rule:
    """Step aside unless an argument begins with the prefix of one of these rules."""
    return Rule("+", prefix)


def first(text: str) -> Rule:
    """Step aside unless argv[1] is the text of one of these rules."""
    return Rule("1", text)


def same_build(path: str, build_id: str) -> Rule:
    """Step aside unless the ELF file `path` of the root file system has this build-id: for a
    library that decides what a program writes (liblzma for xz) and may be of another version."""
    return Rule("b", path, build_id)


def same_program(path: str) -> Rule:
    """Step aside unless the program is executed by a path with the same last component as `path`
    and is the same file: for programs that know themselves by /proc/self/exe."""
    return Rule("s", path)


def same_file(path: str) -> Rule:
    """Step aside unless the program is the file `path`, whatever it was called: for programs that
    know themselves by /proc/self/exe and have several names (clang++)."""
    return Rule("S", path)


def file_size(size: int) -> Rule:
    """Step aside unless the program's file has so many bytes: an edited one keeps its build-id
    (patchelf, a payload at its end)."""
    return Rule("z", str(size))


def encode(program: str, rules: tuple[Rule, ...]) -> bytes:
    """The record that executes `program`, an absolute path below MOUNT.

    Raises RecordError when it would be too long or a string cannot stand in it.
    """
    strings = [VERSION]
    for rule in rules:
        strings.append(rule.letter + rule.text)
        if rule.letter in _PAIRS:
            strings.append(rule.more)
    strings.append(f"={program}")
    if not program.startswith(f"{MOUNT}/") or any("\0" in text for text in strings):
        raise RecordError(f"{program!r} cannot be the program of a record")
    data = b"".join(text.encode() + b"\0" for text in strings)
    if len(data) > LIMIT:
        raise RecordError(f"the record of {program} has {len(data)} bytes, more than {LIMIT}")
    return data


def decode(data: bytes) -> tuple[str, tuple[Rule, ...]]:
    """The program and the rules of a record. Raises RecordError when it is none."""
    try:
        strings = data.decode().split("\0")
    except UnicodeDecodeError as error:
        raise RecordError(f"not a record: {error}") from error
    if len(data) > LIMIT or strings[0] != VERSION or strings[-1] or not strings[-2][:1] == "=":
        raise RecordError("not a whole record")
    rules = []
    rest = iter(strings[1:-2])
    for text in rest:
        if not text:
            raise RecordError("a rule without a letter")
        more = next(rest, None) if text[0] in _PAIRS else ""
        if more is None:
            raise RecordError(f"the rule {text!r} lacks its second string")
        rules.append(Rule(text[0], text[1:], more))
    return strings[-2][1:], tuple(rules)
