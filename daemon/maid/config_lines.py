"""On which line of a TOML file a key stands: tomllib does not say. Knows no key by name."""

from __future__ import annotations

import re
from pathlib import Path

_TABLE = re.compile(r"\s*\[\[?([^\]]+)\]")
_KEY = re.compile(r"\s*((?:[\w.\- ]|\"[^\"]*\"|'[^']*')+?)\s*=")


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
    first, 0 where there is none.

    Lines are taken as they look: within a string of several lines they may look like keys.
    """
    table: list[str] = []
    wanted = key.split(".")
    nearest = 0
    for number, line in enumerate(text.splitlines(), 1):
        if found := _TABLE.match(line):
            table = here = _parts(found[1])
        elif found := _KEY.match(line):
            here = table + _parts(found[1])
        else:
            continue
        if here == wanted:
            return number
        if here[: len(wanted)] == wanted or (found.re is _KEY and here == wanted[: len(here)]):
            nearest = nearest or number
    return nearest


def _parts(dotted: str) -> list[str]:
    return [part.strip(" \t\"'") for part in dotted.split(".")]
