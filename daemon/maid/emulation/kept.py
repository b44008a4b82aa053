"""What the keeper of an instance knows of each target, and what it counts. Plain state."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field

from maid.binfmt.entry import Entry
from maid.emulation.emulators import Choice, Offer
from maid.emulation.guard import Slot
from maid.emulation.patience import Patience
from maid.emulation.probes import Cause, ProbeResult
from maid.emulation.targets import Target
from maid.measures import SHORT, Histogram

TIMEOUTS = 3
"""Probes in a row that must run out of time before that counts against an interpreter."""


@dataclass
class Kept:
    """What the keeper knows of one target. Only the keeper changes it.

    `choice`: what could be registered; `failed`: paths of offers whose probe failed; `result`: the
    last probe and `fingerprint` the arrangement of entries it was for, in the order in which the
    kernel tries them; `serving`: the entry that catches the target's programs, `owner` whose it is
    ("maid", "other", None); `reason`: why it is not as it should be, or what there is to know;
    `adopted` names the foreign entries that served while nothing of ours did; `told_ready` is what
    was told last of whether programs of the target execute (None: nothing).

    `patience` rations the repairs, and until `held_until` none is made (seconds of the monotonic
    clock); `pardoned`: the next one is due. `refused` is why the kernel or the disk refused the
    last action, tried again after `delay` seconds at `retry_at`. `doubts` counts probes in a row
    that gave no answer.

    `slot` is what the guard has to put back; `standing_in` since when only the stand-in is there
    (0.0: it is not), `confirmed` when a probe last held what serves after repairs against what was
    known before (both in seconds of the monotonic clock). `fight` is what was told last of somebody
    who keeps undoing repairs; until `fight_until` the status says so.
    """

    choice: Choice
    failed: dict[str, str] = field(default_factory=dict)
    result: ProbeResult | None = None
    fingerprint: tuple[Entry, ...] | None = None
    serving: Entry | None = None
    owner: str | None = None
    offer: Offer | None = None
    reason: str = ""
    told_ready: bool | None = None
    adopted: frozenset[str] = frozenset()
    patience: Patience = field(default_factory=Patience)
    held_until: float = 0.0
    pardoned: bool = False
    refused: str = ""
    retry_at: float = 0.0
    delay: float = 0.0
    doubts: int = 0
    probing: asyncio.Task[None] | None = None
    slot: Slot | None = None
    standing_in: float = 0.0
    confirmed: float = 0.0
    fight: str = ""
    fight_until: float = 0.0

    @property
    def target(self) -> Target:
        """The target."""
        return self.choice.target

    def offers(self) -> tuple[Offer, ...]:
        """The offers that have not failed their probe, best first."""
        return tuple(offer for offer in self.choice.offers if offer.path not in self.failed)

    @property
    def current(self) -> bool:
        """Whether `result` is about the entries as they are."""
        return self.result is not None and self.fingerprint is not None

    @property
    def contended(self) -> str:
        """Who keeps undoing repairs, in a sentence, while that is less than a minute ago; or ""."""
        return self.fight if time.monotonic() < self.fight_until else ""

    @property
    def doubtful(self) -> bool:
        """Whether the last probe failed in a way that says nothing yet of the interpreter: it was
        not started, or gave no answer in time, as on a machine that is very busy."""
        if self.result is None or self.result.ok:
            return False
        late = self.result.cause is Cause.TIMEOUT and self.doubts < TIMEOUTS
        return late or self.result.cause is Cause.NOT_RUN

    @property
    def ready(self) -> bool:
        """Whether the last probe of exactly this arrangement answered."""
        return self.current and self.result is not None and self.result.ok


@dataclass
class Counters:
    """How often things happened since the daemon started.

    `causes` counts the repairs by what was undone (culprit.Cause), `last_heal` is the last one's
    time in seconds since 1970; `probe_times` has how long probes took, by target.
    """

    registrations: int = 0
    renewals: int = 0
    heals: int = 0
    removals: int = 0
    refusals: int = 0
    remounts: int = 0
    probes_ok: int = 0
    probes_failed: int = 0
    causes: Counter[str] = field(default_factory=Counter)
    last_heal: float = 0.0
    probe_times: dict[str, Histogram] = field(default_factory=dict)

    def healed(self, cause: str, count: int) -> None:
        """Something was repaired so many times."""
        self.heals += count
        self.causes[cause] += count
        self.last_heal = time.time()

    def probed(self, target: str, result: ProbeResult) -> None:
        """A probe gave this result."""
        if result.ok:
            self.probes_ok += 1
        else:
            self.probes_failed += 1
        self.probe_times.setdefault(target, Histogram(SHORT)).observe(result.ms / 1000)
