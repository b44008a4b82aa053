"""The keeper of one instance: desired state against actual, now and whenever something changes.

It registers, adopts, shadows, renews and heals (plan.py decides), has everything proven
(proving.py), and keeps for each target what can be said about it. Everything that touches the table
happens in `reconcile`, which never waits; probes run beside it, and their verdicts lead to another
`reconcile`. It is woken by inotify on the table and by changes of the mount table, never by a
clock. Where a guard (guard.py) is faster, it tidies up after it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial

from maid.binfmt.entry import Entry
from maid.binfmt.instance import Instance
from maid.config import Prefer
from maid.emulation.culprit import Cause, Culprits
from maid.emulation.emulators import Choice
from maid.emulation.guard import Repaired
from maid.emulation.guarding import Guarding
from maid.emulation.hands import Hands
from maid.emulation.kept import Counters, Kept
from maid.emulation.ledger import Ledger
from maid.emulation.patience import MINUTE, Later, Pace, Patience, Telling
from maid.emulation.plan import NEXT, Situation, plan, undoes
from maid.emulation.probes import Prober
from maid.emulation.proving import Emit, Proving
from maid.emulation.watch import Watch
from maid.errors import MaidError

log = logging.getLogger(__name__)

SETTLE = 0.2
"""Seconds for which an entry's name stays free while its stand-in serves, for another tool that is
about to register one of its own under it: a shell script needs some milliseconds for each."""

AGAIN = 5.0
"""Seconds after which a table that could not be mounted or watched is tried again."""


class Keeper:
    """Keeps one instance as it should be.

    `wanted` are the names of the targets to serve; `open_user` opens a descriptor of the instance's
    user namespace, or is None where that is the daemon's own; `remount` mounts the table again.
    `guarded`: others can reach the table, so a guard repairs it at once.
    """

    def __init__(
        self,
        instance: Instance,
        ledger: Ledger,
        prober: Prober,
        *,
        prefer: Prefer,
        emit: Emit,
        remount: Callable[[], None],
        open_user: Callable[[], int] | None = None,
        guarded: bool = False,
    ) -> None:
        self.instance = instance
        self.ledger = ledger
        self.counters = Counters()
        self._wanted: frozenset[str] = frozenset()
        self._prober = prober
        self._prefer = prefer
        self._emit = emit
        self._remount = remount
        self._watch: Watch | None = None
        self._later = Later()
        self._patience = Patience()
        self._pace = Pace()
        self._telling = Telling(self._tell, self._later)
        self._held_until = 0.0
        self._problem = ""
        self._changed = asyncio.Event()
        self._guarded = guarded
        self._guarding = Guarding(
            instance,
            ledger,
            self._later,
            emit=emit,
            told=self._put_back,
            again=lambda why: self.reconcile(why),
        )
        self._culprits = Culprits(instance.path, lambda: self._guarding.pids)
        self._hands = Hands(
            instance, ledger, self._guarding, self.counters, emit=emit, healed=self._healed
        )
        self.proving = Proving(
            instance,
            ledger,
            prober,
            self.counters,
            self._later,
            emit=emit,
            decide=lambda why: self.reconcile(why),
            open_user=open_user,
        )
        self.kept: dict[str, Kept] = self.proving.kept

    # Life ---------------------------------------------------------------------------------------

    def start(self, choices: Mapping[str, Choice], wanted: Iterable[str]) -> None:
        """Take up what is there, register what is missing, and watch from now on."""
        if not self.instance.mounted():
            self._remount()
        self.ledger.keep_only(self.instance.entries())
        self._watch = Watch(self.instance, self._on_change)
        self._culprits.renew()
        self.update(choices, wanted)

    def update(
        self, choices: Mapping[str, Choice], wanted: Iterable[str], *, anew: bool = False
    ) -> None:
        """New choices (interpreters or configuration changed): carry them out. `anew`: also give
        those another chance that failed before."""
        self._wanted = frozenset(wanted)
        for name, choice in choices.items():
            kept = self.kept.get(name)
            if kept is None:
                self.kept[name] = Kept(choice)
                continue
            known = {offer.sha256 for offer in kept.choice.offers}
            if anew or known != {offer.sha256 for offer in choice.offers}:
                kept.failed.clear()  # other programs deserve another probe
            kept.choice = choice
            kept.retry_at = 0.0
        self._forget_told()
        self.reconcile("configuration")

    def stop(self) -> None:
        """Watch no longer. The entries stay as they are (rule 6), each under its own name: nobody
        would give it back to one whose stand-in serves."""
        self.proving.close()
        self._guarded = False
        try:
            self._guarding.disarm()
        except (MaidError, OSError) as error:
            log.warning("%s: %s", self.instance.path, error)
        if any(record.name.endswith(NEXT) for record in self.ledger):
            self.reconcile("the daemon stops")
        self._later.close()
        if self._watch is not None:
            self._watch.close()
            self._watch = None
            self._culprits.close()

    def release(self) -> list[str]:
        """Remove everything that the ledger holds, and keep nothing any longer; the names removed.
        What the kernel does not let go stays in the ledger, and is told. Raises MaidError, and
        removes nothing yet, while the guard does not die."""
        self._wanted = frozenset()
        self._forget_told()
        try:
            self._guarding.disarm()
        except MaidError:
            self.reconcile("release")  # which tells it, and tries again
            raise
        removed = []
        for record in self.ledger:
            try:
                if self.instance.remove(record.entry()):
                    removed.append(record.name)
                    self.counters.removals += 1
                self.ledger.drop(record.name)
            except (MaidError, OSError) as error:
                self._emit("refused", record.target, f"{record.name} stays: {error}")
        self._emit("released", "", f"{len(removed)} entries were removed")
        self.reconcile("release")
        return removed

    def _forget_told(self) -> None:
        """Of what is not served any more it is news again when it executes."""
        for name, kept in self.kept.items():
            if name not in self._wanted:
                kept.told_ready = None

    # Deciding and doing -------------------------------------------------------------------------

    def _on_change(self, why: str) -> None:
        """The table or the mounts changed. Where the guard repairs what cannot wait, a fight costs
        the daemon a bounded share of a CPU."""
        wait = self._pace.wait() if self._guarding.active else 0.0
        if wait:
            self._later.once("pace", wait, partial(self.reconcile, why))
        else:
            self.reconcile(why)

    def reconcile(self, why: str) -> None:
        """Bring the table to the desired state as far as that is possible now. Never waits."""
        begun = time.thread_time()
        if self._watch is None or not self._table_is_there(self._watch):
            return
        table, names = self.instance.entries(), frozenset(self.instance.names())
        self.ledger.take_up(table)
        acted = False
        for kept in self.kept.values():
            try:
                acted |= self._reconcile_one(kept, table, names)
            except (MaidError, OSError) as error:
                acted = True
                self._refused(kept, error)
        if acted:
            table = self.instance.entries()
        for kept in self.kept.values():
            self.proving.observe(kept, table)
        if self._guarded:
            self._guarding.arm(self.kept.values(), self._wanted)
        self._notify()
        self._pace.took(time.thread_time() - begun)

    def _refused(self, kept: Kept, error: MaidError | OSError) -> None:
        """What the kernel or the disk refuses is tried again after a while, not at once: a write to
        `register` wakes us, also one that fails."""
        self.counters.refusals += 1
        kept.delay = min(60.0, max(1.0, kept.delay * 2))
        kept.retry_at = time.monotonic() + kept.delay
        name = kept.target.name
        again = partial(self.reconcile, "a refusal is tried again")
        self._later.call(f"retry {name}", kept.delay + 0.01, again)
        if str(error) != kept.refused:
            kept.refused = str(error)
            self._emit("refused", name, kept.refused)

    def _table_is_there(self, watch: Watch) -> bool:
        try:
            if not self.instance.mounted():
                self._remount()
                self.counters.remounts += 1
                self._emit(
                    "remounted", "", f"binfmt_misc was mounted again at {self.instance.path}"
                )
                self._watch_anew(watch)
            elif not watch.active:
                self._watch_anew(watch)
            if not self.instance.enabled():
                if self._table_held():
                    return False
                self.instance.enable()
                self._healed("", "status", Cause.switched_off)
        except (MaidError, OSError) as error:
            self._unusable(error)
            return False
        self._problem = ""
        return True

    def _unusable(self, error: MaidError | OSError) -> None:
        """Nothing can be done to the table now: told once, and tried again."""
        again = partial(self.reconcile, "the table is tried again")
        self._later.call("table", AGAIN, again)
        if str(error) != self._problem:
            self._problem = str(error)
            log.error("%s: %s", self.instance.path, error)
            self._emit("refused", "", f"{self.instance.path} cannot be used: {error}")

    def _watch_anew(self, watch: Watch) -> None:
        self._guarding.disarm()
        watch.renew()
        self._culprits.renew()

    def _table_held(self) -> bool:
        """Whether switching the table on has to wait, because somebody keeps switching it off."""
        now = time.monotonic()
        if now < self._held_until:
            return True
        wait = self._patience.ask()
        if wait:
            self._held_until = now + wait
            sentence = f"somebody keeps switching the table off; the next repair is in {wait:.0f} s"
            self._telling.contended("", sentence)
            again = partial(self.reconcile, "waited")
            self._later.call("", wait + 0.01, again)
        return bool(wait)

    def _reconcile_one(self, kept: Kept, table: Mapping[str, Entry], names: frozenset[str]) -> bool:
        """Whether anything was tried that changes the table."""
        if time.monotonic() < kept.retry_at:
            return False
        now = self.proving.situation(kept, table, names, self._wanted, self._prefer)
        actions = plan(now)
        standing_in = bool(now.mine) and all(r.name.endswith(NEXT) for r, _ in now.mine)
        if self._waits(kept, now, standing_in):
            return False
        if any(undoes(action, now) for action in actions) and self._held(kept):
            return False
        for action in actions:
            self._hands.carry_out(now, action)
        for name in now.lost:  # what took its place, if anything, stands under its own name
            record = self.ledger.get(name)
            if record is not None and name not in self.instance.names():
                self.ledger.drop(name)
        same = standing_in and now.offers and now.offers[0].is_behind(now.mine[0][0])
        if actions and not same:
            kept.fingerprint = None  # otherwise it is the same file that was proven
        kept.refused, kept.retry_at, kept.delay = "", 0.0, 0.0
        return bool(actions)

    def _waits(self, kept: Kept, now: Situation, standing_in: bool) -> bool:
        """Whether the stand-in goes on serving for now, so that its entry's name stays free."""
        if not (standing_in and now.wanted and self._guarding.active) or now.others:
            kept.standing_in = 0.0
            return False
        kept.standing_in = kept.standing_in or time.monotonic()
        left = kept.standing_in + SETTLE - time.monotonic()
        if left > 0:
            self._later.once("settle", left + 0.01, partial(self.reconcile, "it is quiet"))
        return left > 0

    def _held(self, kept: Kept) -> bool:
        """Whether a repair has to wait, because somebody keeps undoing it."""
        if kept.pardoned:
            kept.pardoned = False
            return False
        now = time.monotonic()
        if now < kept.held_until:
            return True
        wait = kept.patience.ask()
        if not wait:
            return False
        kept.held_until = now + wait
        name, count = kept.target.name, kept.patience.in_last_minute()
        kept.reason = (
            f"somebody keeps removing or disabling the entry ({count} times in the last minute);"
            f" the next repair is in {wait:.0f} s"
        )
        self._telling.contended(name, kept.reason)
        self._later.call(name, wait + 0.01, partial(self._pardon, kept))
        return True

    def _pardon(self, kept: Kept) -> None:
        """The wait is over: the next repair is made, however little patience there is."""
        kept.held_until, kept.pardoned = 0.0, True
        self.reconcile("waited")
        kept.pardoned = False

    def _healed(self, name: str, entry: str, cause: Cause, count: int = 1) -> None:
        """What somebody did to `entry` was repaired so many times."""
        cause, said = self._culprits.explain(entry, cause)
        self.counters.healed(cause, count)
        self._telling.repaired(name, count, said)

    def _tell(self, kind: str, name: str, sentence: str) -> None:
        """An event of the telling's, in a fight with who it is."""
        if kind == "contended":
            if who := self._culprits.latest():
                sentence += f" (the last time {who})"
            for kept in [self.kept[name]] if name in self.kept else self.kept.values():
                kept.fight, kept.fight_until = sentence, time.monotonic() + MINUTE
        self._emit(kind, name, sentence)

    def _put_back(self, repaired: list[Repaired]) -> None:
        """The guard has told what it did."""
        for each in repaired:
            self.counters.registrations += each.registered
            if each.registered:
                self._healed(each.target, each.name, Cause.removed, each.registered)
            if each.enabled:
                cause = Cause.disabled if each.target else Cause.switched_off
                self._healed(each.target, each.name or "status", cause, each.enabled)
            if each.registered:
                self.proving.put_back(self.kept[each.target])

    @property
    def guarded(self) -> bool:
        """Whether a guard puts back at once what somebody undoes."""
        return self._guarding.active

    # What others ask ----------------------------------------------------------------------------

    def proven(self, name: str) -> bool:
        """Whether the last probe of the target worked and what served it is there still."""
        return self.proving.proven(self.kept[name])

    async def settle(self) -> None:
        """Wait until no probe is under way."""
        await self.proving.settle(self.kept)

    async def probe_now(self, names: Iterable[str]) -> None:
        """Execute the probes of these targets anew and wait for the verdicts.

        What was known of them holds until then. The probes go on when the waiting is cancelled:
        others may wait for them too.
        """
        wanted = list(names)
        for name in wanted:
            self.proving.probe_soon(name)
        await self.proving.settle(wanted)

    async def changed(self) -> None:
        """Wait for the next change of anything that is kept."""
        await self._changed.wait()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
