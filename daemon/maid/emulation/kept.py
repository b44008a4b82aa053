"""What the keeper of an instance knows of each target, and what it counts. Plain state."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from maid.binfmt.entry import Entry
from maid.emulation.emulators import Choice, Offer
from maid.emulation.patience import Patience
from maid.emulation.probes import Cause, ProbeResult
from maid.emulation.targets import Target

TIMEOUTS = 3
"""Probes in a row that must run out of time before that counts against an interpreter."""


@dataclass
class Kept:
    """What the keeper knows of one target. Only the keeper changes it.

    `choice`: what could be registered; `failed`: paths of offers whose probe failed; `result`: the
    last probe and `fingerprint` the arrangement of entries it was for, in the order in which the
    kernel tries them; `serving`: the entry that catches the target's programs, `owner` whose it is
    ("maid", "other", None); `reason`: why it is not as it should be, or what there is to know;
    `adopted` names the foreign entries that served while nothing of ours did.

    `patience` rations the repairs, and until `held_until` none is made (seconds of the monotonic
    clock); `pardoned`: the next one is due. `refused` is why the kernel or the disk refused the
    last action, tried again after `delay` seconds at `retry_at`. `doubts` counts probes in a row
    that gave no answer.
    """

    choice: Choice
    failed: dict[str, str] = field(default_factory=dict)
    result: ProbeResult | None = None
    fingerprint: tuple[Entry, ...] | None = None
    serving: Entry | None = None
    owner: str | None = None
    offer: Offer | None = None
    reason: str = ""
    adopted: frozenset[str] = frozenset()
    patience: Patience = field(default_factory=Patience)
    held_until: float = 0.0
    pardoned: bool = False
    refused: str = ""
    retry_at: float = 0.0
    delay: float = 0.0
    doubts: int = 0
    probing: asyncio.Task[None] | None = None

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
    """How often things happened since the daemon started."""

    registrations: int = 0
    renewals: int = 0
    heals: int = 0
    removals: int = 0
    refusals: int = 0
    remounts: int = 0
    probes_ok: int = 0
    probes_failed: int = 0
