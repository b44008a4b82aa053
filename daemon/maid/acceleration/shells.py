"""Shells, make and m4: what a build's scripts run on.

They do integer arithmetic and move text. bash and make have the machine's name compiled in
($MACHTYPE, $(MAKE_HOST), --version): respell.py puts the foreign one's there, and for make the
directory in which it looks for libraries.
"""

from __future__ import annotations

from maid.acceleration import records
from maid.acceleration.basics import USERS
from maid.acceleration.model import Need, Tool
from maid.acceleration.respell import respelled

SHIM = "libmaid-shim.so"

_HOST = ("x86_64-pc-linux-gnu", "{cpu}-unknown-linux-gnu")
"""config.guess's names of the machine."""

TOOLS = (
    Tool(
        "dash",
        "dash",
        "/usr/bin/dash",
        "its arithmetic is in 64-bit integers, and what printf converts is a double",
        rules=(records.UTF8_LOCALE, *USERS),
        needs=Need.SIGNALS,
    ),
    Tool(
        "make",
        "make",
        "/usr/bin/make",
        "it runs commands and compares times; what it knows of the machine is put right",
        rules=(records.UTF8_LOCALE, *USERS),
        needs=Need.ALL,
        patches=(respelled("/usr/bin/make", [_HOST, ("{native}", "{gnu}")]),),
        preload=SHIM,
    ),
    Tool(
        "m4",
        "m4",
        "/usr/bin/m4",
        "eval is defined as 32-bit arithmetic, all else is text",
        rules=(records.UTF8_LOCALE,),
        needs=Need.SIGNALS,
    ),
)
"""All of them."""
