"""All tools that may stand in, put together from the tables."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

from maid import native
from maid.acceleration import basics, compilers, golang, llvm, packaging, perl, shells
from maid.acceleration.model import Tool

TOOLS: tuple[Tool, ...] = (
    *basics.TOOLS,
    *perl.TOOLS,
    *shells.TOOLS,
    *packaging.TOOLS,
    *compilers.TOOLS,
    *golang.TOOLS,
    *llvm.TOOLS,
)
"""Each by a name of its own."""


def chosen(patterns: Sequence[str]) -> tuple[Tool, ...]:
    """The tools that `patterns` leave: names with * and ?, or such with "-" before them for those
    that may not stand in; the last one that matches a tool decides."""

    def allowed(name: str) -> bool:
        verdict = False
        for pattern in patterns:
            if fnmatchcase(name, pattern.removeprefix("-")):
                verdict = not pattern.startswith("-")
        return verdict

    return tuple(tool for tool in TOOLS if allowed(tool.name))


# The package's modules that have no part in what a set consists of.
_OTHERS = frozenset(
    (
        "archive",
        "coverage",
        "describe",
        "distributions",
        "facts",
        "fill",
        "manager",
        "profile",
        "roots",
        "store",
        "verify",
        "worker",
    )
)


@cache
def digest() -> str:
    """Changes when the tables do, the code that makes sets, or a library of maid's that goes into
    them: sets of another one are not counted on any more."""
    content = hashlib.sha256()
    for name in sorted({tool.preload for tool in TOOLS} - {""}):
        content.update(Path(native.path(name)).read_bytes())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        if path.stem not in _OTHERS:
            content.update(path.read_bytes())
    return content.hexdigest()[:16]
