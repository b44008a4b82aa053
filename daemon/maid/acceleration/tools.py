"""All tools that may stand in, put together from the tables."""

from __future__ import annotations

from maid.acceleration import basics
from maid.acceleration.model import Tool

TOOLS: tuple[Tool, ...] = (*basics.TOOLS,)
"""Each by a name of its own."""
