"""Which programs of a step ran natively: what maid-step counted in the log that the front writes.

What a step's programs wrote into that log themselves is counted like the rest: the numbers are for
people, and nothing is decided by them.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

FILE = "programs.txt"
"""In the step's directory, written by maid-step before the result (native/programs.c)."""

BUILD_ID = 22
"""Bytes of a build-id in the front's log; longer ones are cut."""


@dataclass(frozen=True)
class Programs:
    """Program starts of a step: `native` by build-id, `emulated` by QEMU. `complete` is False where
    the log was full, and the numbers are too low."""

    native: dict[bytes, int]
    emulated: int
    complete: bool


def parse(text: str) -> Programs:
    """What stands in programs.txt. A line that makes no sense is passed over."""
    native: Counter[bytes] = Counter()
    emulated, complete = 0, True
    for line in text.splitlines():
        kind, _, rest = line.partition(" ")
        if kind == "full":
            complete = False
            continue
        try:
            identifier, number = rest.split(" ")
            build = b"" if identifier == "-" else bytes.fromhex(identifier)
            count = int(number)
        except ValueError:
            continue
        if kind == "n":
            native[build] += count
        elif kind == "f":  # the record of the start that failed came before; QEMU ran it then
            native[build] -= count
            emulated += count
        elif kind == "e":
            emulated += count
    return Programs({build: n for build, n in native.items() if n > 0}, emulated, complete)


def by_tool(programs: Programs, names: dict[bytes, str]) -> dict[str, int]:
    """Native starts by the tool's name, the most frequent first. `names` are the tools' by
    build-id; one that is not there is called by its build-id."""
    counts: Counter[str] = Counter()
    for build, number in programs.native.items():
        counts[names.get(build) or build.hex() or "?"] += number
    return dict(counts.most_common())


def sentence(native: dict[str, int], programs: Programs) -> str:
    """The counts in words: "58 programs ran natively (30 cc1, 28 as), 12 under QEMU"."""
    total = sum(native.values())
    shown = [f"{number} {name}" for name, number in list(native.items())[:SHOWN]]
    if len(native) > SHOWN:
        shown.append(f"{len(native) - SHOWN} more tools")
    names = f" ({', '.join(shown)})" if shown else ""
    full = "" if programs.complete else ", and more than could be counted"
    return f"{_count(total)} natively{names}, {programs.emulated} under QEMU{full}"


SHOWN = 8
"""Tools that are named in a sentence."""


def _count(number: int) -> str:
    return f"{number} program ran" if number == 1 else f"{number} programs ran"
