"""Carries out what the plan says, for one instance: register, renew, switch on, remove.

The order within each is what keeps the promises: noted before it is registered, registered before
what it replaces is removed, and nothing removed that the guard would put back.
"""

from __future__ import annotations

from collections.abc import Callable

from maid.binfmt.instance import Instance
from maid.emulation.culprit import Cause
from maid.emulation.emulators import Offer
from maid.emulation.guarding import Guarding
from maid.emulation.kept import Counters
from maid.emulation.ledger import Ledger, Record
from maid.emulation.plan import NEXT, Action, Register, Remove, Renew, Situation, SwitchOn
from maid.emulation.proving import Emit
from maid.errors import MaidError


class Hands:
    """What changes the table of one instance. `healed` is called with a target's name, an entry's
    and what somebody had done to it, when that has been repaired."""

    def __init__(
        self,
        instance: Instance,
        ledger: Ledger,
        guarding: Guarding,
        counters: Counters,
        *,
        emit: Emit,
        healed: Callable[[str, str, Cause], None],
    ) -> None:
        self._instance = instance
        self._ledger = ledger
        self._counters = counters
        self._guarding = guarding
        self._emit = emit
        self._healed = healed

    def carry_out(self, now: Situation, action: Action) -> None:
        """Do it. Raises MaidError or OSError when the kernel or the disk refuses."""
        name = now.target
        match action:
            case Register(offer, entry_name, healing):
                self._register(offer, entry_name)
                if healing:
                    lost = next(iter(now.lost), entry_name)
                    replaced = lost in now.taken
                    self._healed(
                        name,
                        lost if replaced else entry_name,
                        Cause.replaced if replaced else Cause.removed,
                    )
                elif any(record.name == f"{entry_name}{NEXT}" for record, _ in now.mine):
                    pass  # it takes the place of its stand-in: that was told
                elif now.others:
                    self._emit(
                        "shadowed",
                        name,
                        f"{entry_name} serves instead of {', '.join(e.name for e in now.others)}",
                    )
                else:
                    self._emit("registered", name, f"{entry_name}: {offer.path} ({offer.flags})")
            case Renew(record, offer, reason):
                self._guarding.disarm()
                self._renew(record, offer, now)
                self._counters.renewals += 1
                self._emit("renewed", name, f"{record.name}: {reason}")
            case SwitchOn(record):
                if self._instance.switch_on(record.entry()):
                    self._healed(name, record.name, Cause.disabled)
            case Remove(record, reason):
                tidying = self._superfluous(record)
                if not tidying:
                    self._guarding.disarm()  # it would put it back
                if self._instance.remove(record.entry()) and not tidying:
                    self._counters.removals += 1
                    self._emit("removed", name, f"{record.name}: {reason}")
                self._ledger.drop(record.name)

    def _superfluous(self, record: Record) -> bool:
        """Whether it is a stand-in whose entry is there."""
        if not record.name.endswith(NEXT):
            return False
        proper = self._ledger.get(record.name.removesuffix(NEXT))
        return proper is not None and self._instance.read(proper.name) == proper.entry()

    def _register(self, offer: Offer, name: str) -> None:
        before = self._ledger.get(name)
        self._ledger.put(offer.record(name))
        try:
            self._instance.add(offer.entry(name))
        except (MaidError, OSError):
            if before is None:
                self._ledger.drop(name)
            else:
                self._ledger.put(before)  # still lost, and still to be repaired
            raise
        self._counters.registrations += 1

    def _renew(self, record: Record, offer: Offer, now: Situation) -> None:
        """NAME.next first, then the old one goes, NAME comes anew and NAME.next goes: at every
        moment one of ours is there."""
        between = f"{record.name}{NEXT}"
        if between in now.taken and self._ledger.get(between):
            self._instance.remove(offer.record(between).entry())
        self._register(offer, between)
        self._instance.remove(record.entry())
        self._ledger.drop(record.name)
        self._register(offer, record.name)
        self._instance.remove(offer.entry(between))
        self._ledger.drop(between)
