"""On which line of a TOML file a key stands: tomllib does not say. Knows no key by name.

For a text that tomllib has read: only of such a one are all strings and brackets whole.
"""

from __future__ import annotations

import re
from pathlib import Path

_NAME = r"""[\w-]+|"(?:\\.|[^"\\])*"|'[^']*'"""
_NAMES = rf"(?:{_NAME})(?:\s*\.\s*(?:{_NAME}))*"
_TABLE = re.compile(rf"\[\[?\s*({_NAMES})\s*\]")
_KEY = re.compile(rf"({_NAMES})\s*=")
_MARKED = re.compile(
    r'"""(?:\\.|[^\\])*?"{3,5}' r"|'''.*?'{3,5}" r'|"(?:\\.|[^"\\\n])*"' r"|'[^'\n]*'" r"|#[^\n]*",
    re.DOTALL,
)
"""Strings of both kinds, of several lines and of one, and comments: within one of them nothing
begins another."""


def at(source: Path, key: str) -> str:
    """The file's name for an error about its `key` ("emulation.ready"), with the line where it can
    be told: "/etc/maid/maid.toml: line 3"."""
    try:
        text = source.read_text()
    except (OSError, ValueError):
        return str(source)
    line = line_of(text, key)
    return f"{source}: line {line}" if line else str(source)


def line_of(text: str, key: str) -> int:
    """The number of the line that sets `key` or the table that it is in, {…} or its own: 1 for the
    first, 0 where there is none. What a value of several lines has in it is no key."""
    table: list[str] = []
    wanted = key.split(".")
    nearest = depth = 0
    # Only these end a line (TOML, "Spec"); str.splitlines() has more of them.
    for number, line in enumerate(map(str.strip, _MARKED.sub(_without, text).split("\n")), 1):
        if depth:
            depth += _opened(line)
            continue
        if found := _TABLE.match(line):
            table = here = _parts(found[1])
        elif found := _KEY.match(line):
            here = table + _parts(found[1])
            depth = _opened(line[found.end() :])
        else:
            continue
        if here == wanted:
            return number
        if here[: len(wanted)] == wanted or (found.re is _KEY and here == wanted[: len(here)]):
            nearest = nearest or number
    return nearest


def _without(found: re.Match[str]) -> str:
    """In place of a comment nothing, of a string of several lines its lines' ends, and of any other
    itself: it may be a key."""
    text = found[0]
    if text.startswith(('"""', "'''")):
        return '""' + "\n" * text.count("\n")
    return "" if text.startswith("#") else text


def _opened(value: str) -> int:
    """How many more brackets a line of a value opens than it closes, in no string."""
    bare = _MARKED.sub("", value)
    return sum(bare.count(each) for each in "[{") - sum(bare.count(each) for each in "]}")


def _parts(dotted: str) -> list[str]:
    names = (name.strip("\"'") for name in re.findall(_NAME, dotted))
    return [part for name in names for part in name.split(".")]
