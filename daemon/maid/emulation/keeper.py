"""The keeper of one instance: desired state against actual, now and whenever something changes.

It registers, adopts, shadows, renews and heals (plan.py decides), proves by probes, and keeps for
each target what can be said about it. Everything that touches the table happens in `reconcile`,
which never waits; probes run beside it, and their verdicts lead to another `reconcile`. It is woken
by inotify on the table and by changes of the mount table, never by a clock.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping

from maid.binfmt.entry import Entry
from maid.binfmt.instance import Instance, RegistrationError
from maid.config import Prefer
from maid.emulation.emulators import Choice, Offer
from maid.emulation.kept import Counters, Kept
from maid.emulation.ledger import Ledger, Record
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
from maid.emulation.probes import Caught, Prober, ProbeResult
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
        self._later: dict[str, asyncio.TimerHandle] = {}
        self._changed = asyncio.Event()

    # Life ---------------------------------------------------------------------------------------

    def start(self, choices: Mapping[str, Choice], wanted: Iterable[str]) -> None:
        """Take up what is there, register what is missing, and watch from now on."""
        if not self.instance.mounted():
            self._remount()
        self.ledger.keep_only(self.instance.entries())
        self._watch = Watch(self.instance, self.reconcile)
        self.update(choices, wanted)

    def update(self, choices: Mapping[str, Choice], wanted: Iterable[str]) -> None:
        """New choices (interpreters or configuration changed): carry them out."""
        self._wanted = frozenset(wanted)
        for name, choice in choices.items():
            kept = self.kept.get(name)
            if kept is None:
                self.kept[name] = Kept(choice)
                continue
            known = {offer.sha256 for offer in kept.choice.offers}
            if known != {offer.sha256 for offer in choice.offers}:
                kept.failed.clear()  # other programs deserve another probe
            kept.choice = choice
        self.reconcile("configuration")

    def stop(self) -> None:
        """Watch no longer. The entries stay as they are (rule 6)."""
        for handle in self._later.values():
            handle.cancel()
        for kept in self.kept.values():
            if kept.probing:
                kept.probing.cancel()
        if self._watch is not None:
            self._watch.close()
            self._watch = None

    def release(self) -> list[str]:
        """Remove everything that the ledger holds, and keep nothing any longer; the names
        removed."""
        self._wanted = frozenset()
        removed = []
        for record in self.ledger:
            with contextlib.suppress(RegistrationError):
                if self.instance.remove(record.entry()):
                    removed.append(record.name)
                    self.counters.removals += 1
            self.ledger.drop(record.name)
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
                self._reconcile_one(kept, table, why)
            except MaidError as error:
                self.counters.refusals += 1
                kept.reason = str(error)
                self._emit("refused", kept.target.name, str(error))
                log.error("%s: %s", kept.target.name, error)
        table = self.instance.entries()
        for kept in self.kept.values():
            self._observe(kept, table)
        self._notify()

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
                self.instance.enable()
                self.counters.heals += 1
                self._emit("healed", "", "the table was switched off as a whole and is on again")
        except (MaidError, OSError) as error:
            log.error("%s: %s", self.instance.path, error)
            self._emit("refused", "", f"{self.instance.path} cannot be used: {error}")
            return False
        return True

    def _situation(self, kept: Kept, table: Mapping[str, Entry]) -> Situation:
        name = kept.target.name
        mine, lost = [], []
        for record in self.ledger.of(name):
            shown = table.get(record.name)
            if shown is not None and record.entry().same_registration(shown):
                mine.append((record, shown))
            else:
                lost.append(record.name)
        others = self._others(kept, table)
        # What catches the same programs and was not there when ours was registered comes first.
        older = {name for record, _ in mine for name in record.older}
        kept.newer = frozenset(entry.name for entry in others if mine) - older
        if not kept.current or kept.fingerprint != self._fingerprint(kept, table):
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
            newer=tuple(entry for entry in others if entry.name in kept.newer),
            taken=frozenset(table),
            avoided=kept.adopted,
            verdict=verdict,
            prefer=self._prefer,
            reranked=kept.reranked == self._fingerprint(kept, table),
        )

    def _others(self, kept: Kept, table: Mapping[str, Entry]) -> tuple[Entry, ...]:
        header = kept.target.probe
        if header is None:
            return ()
        return tuple(
            entry
            for entry in table.values()
            if not self.ledger.owns(entry) and entry.catches(header)
        )

    def _fingerprint(self, kept: Kept, table: Mapping[str, Entry]) -> tuple[Entry, ...]:
        """The enabled entries that catch the target's programs, ours and others', in a fixed
        order."""
        header = kept.target.probe
        if header is None:
            names = {record.name for record in self.ledger.of(kept.target.name)}
            return tuple(entry for name, entry in sorted(table.items()) if name in names)
        return tuple(entry for _, entry in sorted(table.items()) if entry.catches(header))

    def _reconcile_one(self, kept: Kept, table: Mapping[str, Entry], why: str) -> None:
        now = self._situation(kept, table)
        actions = plan(now)
        if not actions:
            for name in now.lost:
                self.ledger.drop(name)
            return
        if (
            now.lost
            and any(isinstance(action, Register) for action in actions)
            and self._held(kept)
        ):
            return
        for action in actions:
            self._carry_out(kept, now, action, why)
        kept.fingerprint = None

    def _held(self, kept: Kept) -> bool:
        """Whether a repair has to wait, because somebody keeps undoing it."""
        now = time.monotonic()
        if now < kept.held_until:
            return True
        wait = kept.patience.ask()
        if not wait:
            return False
        kept.held_until = now + wait
        count = kept.patience.in_last_minute()
        kept.reason = (
            f"somebody keeps removing the entry ({count} times in the last minute);"
            f" the next repair is in {wait:.0f} s"
        )
        self._emit("contended", kept.target.name, kept.reason)
        log.warning("%s: %s", kept.target.name, kept.reason)
        name = kept.target.name
        if name in self._later:
            self._later.pop(name).cancel()
        self._later[name] = asyncio.get_running_loop().call_later(wait + 0.01, self._again, name)
        return True

    def _again(self, name: str) -> None:
        self._later.pop(name, None)
        kept = self.kept[name]
        kept.held_until = 0.0
        table = self.instance.entries()
        now = self._situation(kept, table)
        for action in plan(now):
            with contextlib.suppress(MaidError):
                self._carry_out(kept, now, action, "waited")
        kept.fingerprint = None
        self._observe(kept, self.instance.entries())
        self._notify()

    def _carry_out(self, kept: Kept, now: Situation, action: Action, why: str) -> None:
        name = kept.target.name
        match action:
            case Register(offer, entry_name, healing):
                for lost in now.lost:
                    self.ledger.drop(lost)
                self._register(kept, offer, entry_name, now)
                if healing:
                    kept.heals += 1
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
                kept.reranked = (
                    self._fingerprint(kept, self.instance.entries()) if now.newer else None
                )
                self._renew(kept, record, offer, now)
                self.counters.renewals += 1
                self._emit("renewed", name, f"{record.name}: {reason}")
            case SwitchOn(record):
                if self.instance.switch_on(record.entry()):
                    kept.heals += 1
                    self.counters.heals += 1
                    self._emit("healed", name, f"{record.name} was disabled and is enabled again")
            case Remove(record, reason):
                if self.instance.remove(record.entry()):
                    self.counters.removals += 1
                    self._emit("removed", name, f"{record.name}: {reason}")
                self.ledger.drop(record.name)

    def _register(self, kept: Kept, offer: Offer, name: str, now: Situation) -> None:
        self.ledger.put(offer.record(name, tuple(entry.name for entry in now.others)))
        try:
            self.instance.add(offer.entry(name))
        except RegistrationError:
            self.ledger.drop(name)
            raise
        self.counters.registrations += 1
        kept.newer = frozenset()

    def _renew(self, kept: Kept, record: Record, offer: Offer, now: Situation) -> None:
        """NAME.next first, then the old one goes, NAME comes anew and NAME.next goes: at every
        moment one of ours is there."""
        between = f"{record.name}{NEXT}"
        if between in now.taken and self.ledger.get(between):
            self.instance.remove(offer.record(between).entry())
        self._register(kept, offer, between, now)
        self.instance.remove(record.entry())
        self.ledger.drop(record.name)
        self._register(kept, offer, record.name, now)
        self.instance.remove(offer.entry(between))
        self.ledger.drop(between)

    # Seeing and proving -------------------------------------------------------------------------

    def _observe(self, kept: Kept, table: Mapping[str, Entry]) -> None:
        """Note what serves now, and have it probed where that is not known yet."""
        fingerprint = self._fingerprint(kept, table)
        others = [entry for entry in fingerprint if not self.ledger.owns(entry)]
        mine = [entry for entry in fingerprint if self.ledger.owns(entry)]
        newer = [entry for entry in others if entry.name in kept.newer]
        first = newer or mine or others
        kept.serving = first[-1] if first else None
        kept.owner = None if not first else "other" if first[-1] in others else "maid"
        kept.offer = self._offer_behind(kept)
        if kept.owner == "other":
            kept.adopted = frozenset(entry.name for entry in others)
        if fingerprint == kept.fingerprint and kept.result is not None:
            return
        kept.result, kept.fingerprint = None, None
        if not fingerprint:
            if not kept.held_until or time.monotonic() >= kept.held_until:
                kept.reason = kept.choice.problem
            return
        kept.reason = ""
        self.probe_soon(kept.target.name)

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
            before = self._fingerprint(kept, self.instance.entries())
            if not before:
                return
            result = await self._probe(kept)
            if self._fingerprint(kept, self.instance.entries()) != before:
                continue
            previous = kept.result
            kept.result, kept.fingerprint = result, before
            if result.ok:
                self.counters.probes_ok += 1
                kept.reason = self._remark(kept)
            else:
                self.counters.probes_failed += 1
                kept.reason = result.error
                self._emit("probe failed", kept.target.name, result.error)
                self._give_up_offer(kept, result)
            if previous is None or previous.ok != result.ok:
                self._emit("ready" if result.ok else "failed", kept.target.name, result.error)
            # The task must not count as running when this leads to another probe.
            kept.probing = None
            self.reconcile("a probe ended")
            return

    async def _probe(self, kept: Kept) -> ProbeResult:
        caught = Caught(kept.serving, kept.offer.interpreter.static if kept.offer else None)
        user = -1
        try:
            if self._open_user is not None:
                user = self._open_user()
            return await self._prober.probe(kept.target, user, caught)
        except (MaidError, OSError) as error:
            return ProbeResult("exec", False, 0.0, str(error))
        finally:
            if user >= 0:
                os.close(user)

    def _give_up_offer(self, kept: Kept, result: ProbeResult) -> None:
        """Our own entry serves and fails: the next best offer, if there is one, takes its place."""
        if kept.offer is None or len(kept.offers()) < 2:
            return
        kept.failed[kept.offer.path] = result.error
        self._emit(
            "fell back",
            kept.target.name,
            f"{kept.offer.path} failed its probe ({result.error}); the plain interpreter serves",
        )

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
        """Execute the probes of these targets anew and wait for the verdicts."""
        tasks = []
        for name in names:
            kept = self.kept[name]
            if kept.probing is None or kept.probing.done():
                kept.fingerprint = None
                self.probe_soon(name)
            tasks.append(kept.probing)
        await asyncio.gather(*(task for task in tasks if task), return_exceptions=True)
        await self.settle()

    async def changed(self) -> None:
        """Wait for the next change of anything that is kept."""
        await self._changed.wait()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
