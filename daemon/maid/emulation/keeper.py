"""The keeper of one instance: desired state against actual, now and whenever something changes.

It registers, adopts, shadows, renews and heals (plan.py decides), proves by probes, and keeps for
each target what can be said about it. Everything that touches the table happens in `reconcile`,
which never waits; probes run beside it, and their verdicts lead to another `reconcile`. It is woken
by inotify on the table and by changes of the mount table, never by a clock.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial

from maid.binfmt.entry import Entry
from maid.binfmt.instance import Instance
from maid.config import Prefer
from maid.emulation.emulators import Choice, Offer
from maid.emulation.kept import Counters, Kept
from maid.emulation.ledger import Ledger, Record
from maid.emulation.patience import Later, Patience
from maid.emulation.plan import (
    NEXT,
    Action,
    Register,
    Remove,
    Renew,
    Situation,
    SwitchOn,
    Verdict,
    plan,
)
from maid.emulation.probes import PASSING, Caught, Cause, Prober, ProbeResult
from maid.emulation.watch import Watch
from maid.errors import MaidError

log = logging.getLogger(__name__)

Emit = Callable[[str, str, str], None]
"""Called with an event's kind, the target's name ("" for the whole table) and a sentence."""


class Keeper:
    """Keeps one instance as it should be.

    `wanted` are the names of the targets to serve; `open_user` opens a descriptor of the instance's
    user namespace, or is None where that is the daemon's own; `remount` mounts the table again.
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
    ) -> None:
        self.instance = instance
        self.ledger = ledger
        self.counters = Counters()
        self.kept: dict[str, Kept] = {}
        self._wanted: frozenset[str] = frozenset()
        self._prober = prober
        self._prefer = prefer
        self._emit = emit
        self._remount = remount
        self._open_user = open_user
        self._watch: Watch | None = None
        self._later = Later()
        self._patience = Patience()
        self._held_until = 0.0
        self._changed = asyncio.Event()

    # Life ---------------------------------------------------------------------------------------

    def start(self, choices: Mapping[str, Choice], wanted: Iterable[str]) -> None:
        """Take up what is there, register what is missing, and watch from now on."""
        if not self.instance.mounted():
            self._remount()
        self.ledger.keep_only(self.instance.entries())
        self._watch = Watch(self.instance, self.reconcile)
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
        self.reconcile("configuration")

    def stop(self) -> None:
        """Watch no longer. The entries stay as they are (rule 6)."""
        self._later.close()
        for kept in self.kept.values():
            if kept.probing:
                kept.probing.cancel()
        if self._watch is not None:
            self._watch.close()
            self._watch = None

    def release(self) -> list[str]:
        """Remove everything that the ledger holds, and keep nothing any longer; the names removed.
        What the kernel does not let go stays in the ledger, and is told."""
        self._wanted = frozenset()
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

    # Deciding and doing -------------------------------------------------------------------------

    def reconcile(self, why: str) -> None:
        """Bring the table to the desired state as far as that is possible now. Never waits."""
        if self._watch is None or not self._table_is_there(self._watch):
            return
        table = self.instance.entries()
        for kept in self.kept.values():
            try:
                self._reconcile_one(kept, table)
            except (MaidError, OSError) as error:
                self._refused(kept, error)
        table = self.instance.entries()
        for kept in self.kept.values():
            self._observe(kept, table)
        self._notify()

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
                watch.renew()
            elif not watch.active:
                watch.renew()
            if not self.instance.enabled():
                if self._table_held():
                    return False
                self.instance.enable()
                self.counters.heals += 1
                self._emit("healed", "", "the table was switched off as a whole and is on again")
        except (MaidError, OSError) as error:
            log.error("%s: %s", self.instance.path, error)
            self._emit("refused", "", f"{self.instance.path} cannot be used: {error}")
            return False
        return True

    def _table_held(self) -> bool:
        """Whether switching the table on has to wait, because somebody keeps switching it off."""
        now = time.monotonic()
        if now < self._held_until:
            return True
        wait = self._patience.ask()
        if wait:
            self._held_until = now + wait
            self._emit("contended", "", f"somebody keeps switching the table off; {wait:.0f} s")
            again = partial(self.reconcile, "waited")
            self._later.call("", wait + 0.01, again)
        return bool(wait)

    def _situation(self, kept: Kept, table: Mapping[str, Entry]) -> Situation:
        name = kept.target.name
        mine, lost = [], []
        for record in self.ledger.of(name):
            shown = table.get(record.name)
            if shown is not None and record.entry().same_registration(shown):
                mine.append((record, shown))
            else:
                lost.append(record.name)
        tried = self._fingerprint(kept, table)
        others = tuple(entry for entry in tried if not self.ledger.owns(entry))
        ours = [number for number, entry in enumerate(tried) if self.ledger.owns(entry)]
        if not kept.current or kept.fingerprint != tried or kept.doubtful:
            verdict = Verdict.UNKNOWN
        else:
            verdict = Verdict.WORKS if kept.ready else Verdict.FAILS
        return Situation(
            target=name,
            wanted=name in self._wanted,
            offers=kept.offers(),
            mine=tuple(mine),
            lost=tuple(lost),
            others=others,
            newer=tried[: ours[0]] if ours else (),
            taken=frozenset(self.instance.names()),
            avoided=kept.adopted,
            verdict=verdict,
            prefer=self._prefer,
        )

    def _fingerprint(self, kept: Kept, table: Mapping[str, Entry]) -> tuple[Entry, ...]:
        """The enabled entries that catch the target's programs, in the order in which the kernel
        tries them: the newest first, which is how it lists them (measured on 6.18)."""
        header = kept.target.probe
        if header is None:
            names = {record.name for record in self.ledger.of(kept.target.name)}
            return tuple(entry for name, entry in table.items() if name in names)
        return tuple(entry for entry in table.values() if entry.catches(header))

    def _reconcile_one(self, kept: Kept, table: Mapping[str, Entry]) -> None:
        if time.monotonic() < kept.retry_at:
            return
        now = self._situation(kept, table)
        actions = plan(now)
        if any(_undoes(action, now) for action in actions) and self._held(kept):
            return
        for action in actions:
            self._carry_out(kept, now, action)
        for name in now.lost:  # what took its place, if anything, stands under its own name
            record = self.ledger.get(name)
            if record is not None and name not in self.instance.names():
                self.ledger.drop(name)
        if actions:
            kept.fingerprint = None
        kept.refused, kept.retry_at, kept.delay = "", 0.0, 0.0

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
        self._emit("contended", name, kept.reason)
        self._later.call(name, wait + 0.01, partial(self._pardon, kept))
        return True

    def _pardon(self, kept: Kept) -> None:
        """The wait is over: the next repair is made, however little patience there is."""
        kept.held_until, kept.pardoned = 0.0, True
        self.reconcile("waited")
        kept.pardoned = False

    def _carry_out(self, kept: Kept, now: Situation, action: Action) -> None:
        name = kept.target.name
        match action:
            case Register(offer, entry_name, healing):
                self._register(offer, entry_name)
                if healing:
                    self.counters.heals += 1
                    self._emit("healed", name, f"{entry_name} was gone and is registered again")
                elif now.others:
                    self._emit(
                        "shadowed",
                        name,
                        f"{entry_name} serves instead of {', '.join(e.name for e in now.others)}",
                    )
                else:
                    self._emit("registered", name, f"{entry_name}: {offer.path} ({offer.flags})")
            case Renew(record, offer, reason):
                self._renew(record, offer, now)
                self.counters.renewals += 1
                self._emit("renewed", name, f"{record.name}: {reason}")
            case SwitchOn(record):
                if self.instance.switch_on(record.entry()):
                    self.counters.heals += 1
                    self._emit("healed", name, f"{record.name} was disabled and is enabled again")
            case Remove(record, reason):
                if self.instance.remove(record.entry()):
                    self.counters.removals += 1
                    self._emit("removed", name, f"{record.name}: {reason}")
                self.ledger.drop(record.name)

    def _register(self, offer: Offer, name: str) -> None:
        before = self.ledger.get(name)
        self.ledger.put(offer.record(name))
        try:
            self.instance.add(offer.entry(name))
        except (MaidError, OSError):
            if before is None:
                self.ledger.drop(name)
            else:
                self.ledger.put(before)  # still lost, and still to be repaired
            raise
        self.counters.registrations += 1

    def _renew(self, record: Record, offer: Offer, now: Situation) -> None:
        """NAME.next first, then the old one goes, NAME comes anew and NAME.next goes: at every
        moment one of ours is there."""
        between = f"{record.name}{NEXT}"
        if between in now.taken and self.ledger.get(between):
            self.instance.remove(offer.record(between).entry())
        self._register(offer, between)
        self.instance.remove(record.entry())
        self.ledger.drop(record.name)
        self._register(offer, record.name)
        self.instance.remove(offer.entry(between))
        self.ledger.drop(between)

    # Seeing and proving -------------------------------------------------------------------------

    def _observe(self, kept: Kept, table: Mapping[str, Entry]) -> None:
        """Note what serves now, and have it probed where that is not known yet."""
        fingerprint = self._fingerprint(kept, table)
        kept.serving = fingerprint[0] if fingerprint else None
        kept.owner = None
        if kept.serving is not None:
            kept.owner = "maid" if self.ledger.owns(kept.serving) else "other"
        kept.offer = self._offer_behind(kept)
        if kept.owner == "other":
            others = (entry.name for entry in fingerprint if not self.ledger.owns(entry))
            kept.adopted = frozenset(others)
        if fingerprint == kept.fingerprint and kept.result is not None:
            return
        kept.result, kept.fingerprint = None, None
        if fingerprint:
            kept.reason = ""
            self.probe_soon(kept.target.name)
        elif time.monotonic() >= kept.held_until:
            kept.reason = kept.refused or kept.choice.problem

    def _offer_behind(self, kept: Kept) -> Offer | None:
        """The offer that our serving entry is a registration of."""
        if kept.serving is None or kept.owner != "maid":
            return None
        record = self.ledger.get(kept.serving.name)
        return next((o for o in kept.choice.offers if record and o.is_behind(record)), None)

    def probe_soon(self, name: str) -> None:
        """Probe a target beside everything else; a change meanwhile leads to another probe."""
        kept = self.kept[name]
        if kept.probing is None or kept.probing.done():
            kept.probing = asyncio.get_running_loop().create_task(self._probe_until_settled(kept))

    async def _probe_until_settled(self, kept: Kept) -> None:
        while self._watch is not None:
            table = self.instance.entries()
            before = self._fingerprint(kept, table)
            if not before:
                self._observe(kept, table)
                return
            result = await self._probe(kept)
            if self._fingerprint(kept, self.instance.entries()) != before:
                continue
            previous = kept.result
            kept.result, kept.fingerprint = result, before
            if result.ok:
                self.counters.probes_ok += 1
                kept.doubts, kept.reason = 0, self._remark(kept)
            else:
                self.counters.probes_failed += 1
                kept.doubts += 1
                kept.reason = result.error
                self._on_failure(kept, result)
            if previous is None or previous.ok != result.ok:
                self._emit("ready" if result.ok else "failed", kept.target.name, result.error)
            # The task must not count as running when this leads to another probe.
            kept.probing = None
            self.reconcile("a probe ended")
            return

    def _on_failure(self, kept: Kept, result: ProbeResult) -> None:
        """What a failed probe leads to: another one, if it says nothing yet; else another offer."""
        name = kept.target.name
        self._emit("probe failed", name, result.error)
        if result.cause in PASSING:  # nothing in the table would ever wake us
            seconds = min(60.0, 2.0**kept.doubts)
            self._later.call(f"probe {name}", seconds, partial(self.probe_soon, name))
        if kept.doubtful or kept.offer is None or len(kept.offers()) < 2:
            return
        # Our own entry serves and fails: the next best offer takes its place.
        kept.failed[kept.offer.path] = result.error
        self._emit("fell back", name, self._remark(kept))

    async def _probe(self, kept: Kept) -> ProbeResult:
        caught = Caught(kept.serving, kept.offer.interpreter.static if kept.offer else None)
        user = -1
        try:
            if self._open_user is not None:
                user = self._open_user()
            return await self._prober.probe(kept.target, user, caught)
        except (MaidError, OSError) as error:
            return ProbeResult("exec", False, 0.0, str(error), Cause.NOT_RUN)
        finally:
            if user >= 0:
                os.close(user)

    def _remark(self, kept: Kept) -> str:
        if kept.failed:
            path, error = next(iter(kept.failed.items()))
            return f"{path} failed its probe ({error}); the plain interpreter serves"
        return "; ".join(kept.choice.notes) if kept.owner == "maid" else ""

    def proven(self, name: str) -> bool:
        """Whether the last probe of the target worked and the entry that served it is there
        still."""
        kept = self.kept[name]
        if not kept.ready or kept.serving is None or not self.instance.enabled():
            return False
        return self.instance.read(kept.serving.name) == kept.serving

    async def settle(self) -> None:
        """Wait until no probe is under way."""
        while tasks := [
            k.probing for k in self.kept.values() if k.probing and not k.probing.done()
        ]:
            await asyncio.wait(tasks)
            await asyncio.sleep(0)

    async def probe_now(self, names: Iterable[str]) -> None:
        """Execute the probes of these targets anew and wait for the verdicts.

        What was known of them holds until then. The probes go on when the waiting is cancelled:
        others may wait for them too.
        """
        wanted = [self.kept[name] for name in names]
        for kept in wanted:
            self.probe_soon(kept.target.name)
        while tasks := [k.probing for k in wanted if k.probing and not k.probing.done()]:
            await asyncio.wait(tasks)
            await asyncio.sleep(0)

    async def changed(self) -> None:
        """Wait for the next change of anything that is kept."""
        await self._changed.wait()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


def _undoes(action: Action, now: Situation) -> bool:
    """Whether an action undoes what somebody else has done: then it can become a fight."""
    match action:
        case SwitchOn():
            return True
        case Register():
            return bool(now.lost)
        case Renew():
            return action.for_rank
    return False
