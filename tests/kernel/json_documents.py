"""Hold what --json prints against docs/json.md: every key is described, with its type, and is
there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]

PYTHON = {
    "string": str,
    "boolean": bool,
    "integer": int,
    "number": (int, float),
    "list": list,
    "object": dict,
}


def documented(command: str) -> dict[str, str]:
    """The keys and types of one document in docs/json.md."""
    text = (REPOSITORY / "docs/json.md").read_text()
    _, _, section = text.partition(f"\n## maid {command} --json\n")
    section = section.partition("\n## ")[0]
    found = dict(re.findall(r"^\| `([^`]+)` \| ([a-z ]+) \|", section, re.MULTILINE))
    assert found, command
    return found


def keys(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every key in a document with its value, as docs/json.md writes them."""
    if isinstance(value, dict):
        for name, inner in value.items():
            below = f"{path}.{name}" if path else name
            yield below, inner
            yield from keys(inner, below)
    elif isinstance(value, list):
        for inner in value:
            yield from keys(inner, f"{path}[]")


def hold(command: str, document: Any) -> None:
    """Hold a document against its description."""
    types = documented(command)
    seen = set()
    for name, value in keys(document):
        if command == "ensure" and name.startswith("results[].status."):
            continue  # as in the status
        if "annotations." in name:
            continue  # their names are whoever's who made the image
        seen.add(name)
        assert name in types, f"{name} is not documented"
        kind, _, null = types[name].partition(" or ")
        if value is None:
            assert null == "null", name
        else:
            assert isinstance(value, PYTHON[kind]), (name, value)
            assert kind == "boolean" or not isinstance(value, bool), (name, value)
    assert seen == set(types), "documented, but not there"
