"""Which entries of one table have a guard: those of maid's that serve, and no others.

A guard is told once what to put back (guard.py); when that changes, it is ended and another one
begins.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence

import msgspec

from maid.binfmt.entry import EntryError, parse
from maid.binfmt.instance import Instance
from maid.emulation.guard import ENABLED, Guard, Repaired, Slot
from maid.emulation.kept import Kept
from maid.emulation.ledger import Ledger, Record
from maid.emulation.patience import Later
from maid.emulation.plan import NEXT
from maid.emulation.proving import Emit
from maid.errors import MaidError

log = logging.getLogger(__name__)

PAUSE = 60.0
"""Seconds from the start of a guard that ended by itself, or could not be started, to the next."""

FIRST = ("aarch64", "x86_64", "arm", "riscv64", "i386", "ppc64le", "s390x")
"""Targets of the platforms that most images are published for: the guard repairs them first."""


class Guarding:
    """Keeps one table guarded. `told` is called with what the guard has put back, `again` when the
    table should be looked at and `arm` called: the guard has ended by itself, or another one may
    begin now. `pids` are the processes of the last guards: what they wrote may be told late."""

    def __init__(
        self,
        instance: Instance,
        ledger: Ledger,
        later: Later,
        *,
        emit: Emit,
        told: Callable[[list[Repaired]], None],
        again: Callable[[str], None],
    ) -> None:
        self.pids: deque[int] = deque(maxlen=16)
        self._instance = instance
        self._ledger = ledger
        self._later = later
        self._emit = emit
        self._told = told
        self._again = again
        self._guard: Guard | None = None
        self._begun = 0.0
        self._not_before = 0.0
        self._problem = ""

    @property
    def active(self) -> bool:
        """Whether a guard runs, and is to go on."""
        return self._guard is not None and not self._guard.stopping

    @property
    def pid(self) -> int:
        """The guard's process, or -1."""
        return self._guard.pid if self._guard is not None else -1

    def arm(self, keeping: Iterable[Kept], wanted: Collection[str]) -> None:
        """Have the guard put back what is wanted, is ours and serves, and nothing else. Where that
        is not possible it is told, and tried again after a minute; the keeper repairs meanwhile."""
        slots = []
        for kept in keeping:
            self._note(kept, wanted)
            if kept.slot is not None:
                slots.append(kept.slot)
        rank = {name: number for number, name in enumerate(FIRST)}
        slots.sort(key=lambda slot: rank.get(slot.target, len(rank)))
        if self._guard is not None and self._guard.slots == tuple(slots):
            return
        try:
            self.disarm()
            if not slots or time.monotonic() < self._not_before:
                return
            # Noted before it can be registered, as everything is.
            self._ledger.reserve(record for slot in slots for record in _records(slot))
            self._begun = time.monotonic()
            self._guard = self._start(slots)
            self.pids.append(self._guard.pid)
            self._problem = ""
        except (MaidError, OSError) as error:
            if self._guard is None:  # else its end will be told
                self._pause(time.monotonic())
            if str(error) != self._problem:
                self._problem = str(error)
                sentence = f"{self._instance.path} is not guarded as it should be: {error}"
                self._emit("refused", "", sentence)

    def _pause(self, since: float) -> None:
        """Have no other guard begin for PAUSE seconds from then on, but then."""
        self._not_before = since + PAUSE
        wait = max(0.0, self._not_before - time.monotonic())
        self._later.call("guard", wait + 0.01, lambda: self._again("a guard may begin again"))

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
        """Put back nothing any more; what was put back until now is ours, and nothing else is held
        in reserve. Raises MaidError when the guard does not die: then nothing of ours must be taken
        away, because it may put it back."""
        self.end()
        if self._ledger.reserved:
            self._ledger.take_up(self._instance.entries())
            self._ledger.unreserve()

    def end(self) -> None:
        """End the guard: when this returns it does nothing any more. Raises as `disarm`."""
        if self._guard is not None:
            self._guard.stop()
            self._guard = None

    def _ended(self, by_itself: bool) -> None:
        if by_itself:
            log.warning("the guard of %s has ended by itself", self._instance.path)
            self._pause(self._begun)
        self._guard = None
        self._again("the guard has ended")


def _records(slot: Slot) -> tuple[Record, Record]:
    """Those of the stand-in and of the entry: both are in the file while they come and go."""
    return slot.record, msgspec.structs.replace(slot.record, name=slot.name)
