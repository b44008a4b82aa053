"""How many steps have ended, how, and how long they took: what the metrics show of them.

Labels are bounded whatever a caller asks for: a platform counts as the catalogue names it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from enum import StrEnum

from maid.emulation.targets import TARGETS, for_platform
from maid.errors import MaidError
from maid.measures import LONG, Histogram
from maid.platforms import parse
from maid.steps.step import Result

OTHER = "other"
"""What a platform that the catalogue does not have is counted as."""

_NAMES = frozenset(str(each) for target in TARGETS.values() for each in target.platforms)


class Mode(StrEnum):
    """How a step ran: on this machine's own CPU, under QEMU with some programs native, or under
    QEMU alone."""

    native = "native"
    accelerated = "accelerated"
    emulated = "emulated"


class Tally:
    """The steps of one daemon. `ended` counts them by platform, outcome and mode; `durations` has
    their wall times by platform and mode."""

    def __init__(self) -> None:
        self.ended: Counter[tuple[str, str, str]] = Counter()
        self.durations: defaultdict[tuple[str, str], Histogram] = defaultdict(
            lambda: Histogram(LONG)
        )

    def count(self, platform: str, result: Result) -> None:
        """Count a step that has ended. Times count only of those whose command has run."""
        name, mode = _name(platform), mode_of(result)
        self.ended[name, result.outcome.value, mode] += 1
        if result.began:
            self.durations[name, mode].observe(result.wall)


def mode_of(result: Result) -> Mode:
    """How the step ran."""
    if result.via == "native":
        return Mode.native
    return Mode.accelerated if result.native else Mode.emulated


def _name(platform: str) -> str:
    """The platform as the catalogue has it: linux/amd64 for linux/amd64/v3."""
    if platform in _NAMES:
        return platform
    try:
        target = for_platform(parse(platform))
    except MaidError:
        target = None
    return str(target.platforms[-1]) if target else OTHER
