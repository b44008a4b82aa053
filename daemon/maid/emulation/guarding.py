"""Which entries of one table have a guard: those of maid's that serve, and no others.

A guard is told once what to put back (guard.py); when that changes, it is ended and another one
begins.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Sequence

import msgspec

from maid.binfmt.entry import EntryError, parse
from maid.binfmt.instance import Instance
from maid.emulation.guard import ENABLED, Guard, Repaired, Slot
from maid.emulation.kept import Kept
from maid.emulation.ledger import Ledger, Record
from maid.emulation.plan import NEXT
from maid.errors import MaidError

log = logging.getLogger(__name__)

PAUSE = 60.0
"""Seconds from the start of a guard that ended by itself, or could not be started, to the next."""

FIRST = ("aarch64", "x86_64", "arm", "riscv64", "i386", "ppc64le", "s390x")
"""Targets of the platforms that most images are published for: the guard repairs them first."""


class Guarding:
    """Keeps one table guarded. `told` is called with what the guard has put back, `lost` when it
    has ended by itself."""

    def __init__(
        self,
        instance: Instance,
        ledger: Ledger,
        told: Callable[[list[Repaired]], None],
        lost: Callable[[], None],
    ) -> None:
        self._instance = instance
        self._ledger = ledger
        self._told = told
        self._lost = lost
        self._guard: Guard | None = None
        self._begun = 0.0
        self._not_before = 0.0

    @property
    def active(self) -> bool:
        """Whether a guard runs."""
        return self._guard is not None

    @property
    def pid(self) -> int:
        """The guard's process, or -1."""
        return self._guard.pid if self._guard is not None else -1

    def arm(self, keeping: Iterable[Kept], wanted: Collection[str]) -> None:
        """Have the guard put back what is wanted, is ours and serves, and nothing else. Where that
        is not possible it is said, and tried again after a minute; the keeper repairs meanwhile."""
        slots = []
        for kept in keeping:
            self._note(kept, wanted)
            if kept.slot is not None:
                slots.append(kept.slot)
        rank = {name: number for number, name in enumerate(FIRST)}
        slots.sort(key=lambda slot: rank.get(slot.target, len(rank)))
        if self._guard is not None and self._guard.slots == tuple(slots):
            return
        self.disarm()
        now = time.monotonic()
        if now < self._not_before:
            return
        try:
            # Noted before it can be registered, as everything is.
            self._ledger.reserve(record for slot in slots for record in _records(slot))
            if slots:
                self._guard = self._start(slots)
                self._begun = now
        except (MaidError, OSError) as error:
            log.warning("%s is not guarded: %s", self._instance.path, error)
            self._not_before = now + PAUSE

    def _start(self, slots: Sequence[Slot]) -> Guard:
        return Guard(self._instance, slots, self._told, self._ended)

    def _note(self, kept: Kept, wanted: Collection[str]) -> None:
        """What there is to put back of a target. Where nothing serves just now, that is what served
        last: the guard is about to do it, or has no credit left."""
        name, serving = kept.target.name, kept.serving
        if name not in wanted or kept.owner == "other":
            kept.slot = None
        elif serving is not None and kept.offer is not None:
            proper = serving.name.removesuffix(NEXT)
            record = kept.offer.record(f"{proper}{NEXT}")
            if kept.slot is not None and (kept.slot.name, kept.slot.record) == (proper, record):
                return
            shown = self._instance.shown(serving.name)
            try:
                if parse(serving.name, shown.decode()) == serving and serving.enabled:
                    kept.slot = Slot(name, proper, record, shown.removeprefix(ENABLED))
            except (EntryError, UnicodeDecodeError):
                pass  # it has changed since: we shall be woken again

    def disarm(self) -> None:
        """Put back nothing any more; what was put back until now is ours."""
        if self._guard is not None:
            self.end()
            self._ledger.take_up(self._instance.entries())

    def end(self) -> None:
        """End the guard: when this returns it does nothing any more."""
        if self._guard is not None:
            guard, self._guard = self._guard, None
            guard.stop()

    def _ended(self) -> None:
        log.warning("the guard of %s has ended by itself", self._instance.path)
        self._guard = None
        self._not_before = self._begun + PAUSE
        self._lost()


def _records(slot: Slot) -> tuple[Record, Record]:
    """Those of the stand-in and of the entry: both are in the file while they come and go."""
    return slot.record, msgspec.structs.replace(slot.record, name=slot.name)
