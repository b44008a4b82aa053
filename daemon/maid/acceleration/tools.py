"""All tools that may stand in, put together from the tables."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

from maid.acceleration import basics, packaging, perl, shells
from maid.acceleration.model import Tool

TOOLS: tuple[Tool, ...] = (
    *basics.TOOLS,
    *perl.TOOLS,
    *shells.TOOLS,
    *packaging.TOOLS,
)
"""Each by a name of its own."""


@cache
def digest() -> str:
    """Changes when the tables do, or the code that makes sets: sets of another one are not
    counted on any more."""
    content = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        content.update(path.read_bytes())
    return content.hexdigest()[:16]
