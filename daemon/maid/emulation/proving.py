"""What serves each target of one instance now, and whether it works: probes and their verdicts.

A probe runs beside everything else, for the arrangement of entries that there is when it begins; a
change meanwhile leads to another one. What the verdict leads to is the keeper's.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from functools import partial

from maid.binfmt.entry import Entry
from maid.binfmt.instance import Instance
from maid.config import Prefer
from maid.emulation.emulators import Offer
from maid.emulation.kept import Counters, Kept
from maid.emulation.ledger import Ledger
from maid.emulation.patience import Later
from maid.emulation.plan import NEXT, Situation, Verdict
from maid.emulation.probes import PASSING, Caught, Cause, Prober, ProbeResult
from maid.errors import MaidError

Emit = Callable[[str, str, str], None]
"""Called with an event's kind, the target's name ("" for the whole table) and a sentence."""

CONFIRM = 10.0
"""Seconds between two probes of a target that are only made because its entry was put back."""

GAPS = 5
"""Probes in a row that may find no entry although there is one, because somebody removes it just
then, before that counts."""


class Proving:
    """The probes of one instance. `decide` is called when a verdict may lead to something."""

    def __init__(
        self,
        instance: Instance,
        ledger: Ledger,
        prober: Prober,
        counters: Counters,
        later: Later,
        *,
        emit: Emit,
        decide: Callable[[str], None],
        open_user: Callable[[], int] | None,
    ) -> None:
        self.kept: dict[str, Kept] = {}
        self._instance = instance
        self._ledger = ledger
        self._prober = prober
        self._counters = counters
        self._later = later
        self._emit = emit
        self._decide = decide
        self._open_user = open_user
        self._closed = False

    def close(self) -> None:
        """Probe nothing any more."""
        self._closed = True
        for kept in self.kept.values():
            if kept.probing:
                kept.probing.cancel()

    # Seeing -------------------------------------------------------------------------------------

    def fingerprint(self, kept: Kept, table: Mapping[str, Entry]) -> tuple[Entry, ...]:
        """The enabled entries that catch the target's programs, in the order in which the kernel
        tries them: the newest first, which is how it lists them (measured on 6.18)."""
        header = kept.target.probe
        if header is None:
            names = {record.name for record in self._ledger.of(kept.target.name)}
            return tuple(entry for name, entry in table.items() if name in names)
        return tuple(entry for entry in table.values() if entry.catches(header))

    def same(self, one: tuple[Entry, ...] | None, other: tuple[Entry, ...] | None) -> bool:
        """Whether two fingerprints mean the same programs in the same order: a stand-in is as good
        as the entry that it stands in for."""
        if one is None or other is None:
            return False
        return one == other or self._proper(one) == self._proper(other)

    def _proper(self, entries: tuple[Entry, ...]) -> list[Entry]:
        """The entries with ours under their proper names, each once."""
        found: list[Entry] = []
        for entry in entries:
            if self._ledger.owns(entry):
                entry = replace(entry, name=entry.name.removesuffix(NEXT))
            if entry not in found:
                found.append(entry)
        return found

    def observe(self, kept: Kept, table: Mapping[str, Entry]) -> None:
        """Note what serves now, and have it probed where that is not known yet."""
        fingerprint = self.fingerprint(kept, table)
        kept.serving = fingerprint[0] if fingerprint else None
        kept.owner = None
        if kept.serving is not None:
            kept.owner = "maid" if self._ledger.owns(kept.serving) else "other"
        kept.offer = self._offer_behind(kept)
        if kept.owner == "other":
            others = (entry.name for entry in fingerprint if not self._ledger.owns(entry))
            kept.adopted = frozenset(others)
        if kept.result is not None and self.same(fingerprint, kept.fingerprint):
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
        record = self._ledger.get(kept.serving.name)
        return next((o for o in kept.choice.offers if record and o.is_behind(record)), None)

    def situation(
        self,
        kept: Kept,
        table: Mapping[str, Entry],
        names: frozenset[str],
        wanted: Collection[str],
        prefer: Prefer,
    ) -> Situation:
        """What there is to know of a target for the plan; `names` are all that are taken."""
        name = kept.target.name
        mine, lost = [], []
        for record in self._ledger.of(name):
            shown = table.get(record.name)
            if shown is not None and record.entry().same_registration(shown):
                mine.append((record, shown))
            else:
                lost.append(record.name)
        tried = self.fingerprint(kept, table)
        others = tuple(entry for entry in tried if not self._ledger.owns(entry))
        ours = [number for number, entry in enumerate(tried) if self._ledger.owns(entry)]
        if not kept.current or not self.same(kept.fingerprint, tried) or kept.doubtful:
            verdict = Verdict.UNKNOWN
        else:
            verdict = Verdict.WORKS if kept.ready else Verdict.FAILS
        return Situation(
            target=name,
            wanted=name in wanted,
            offers=kept.offers(),
            mine=tuple(mine),
            lost=tuple(lost),
            others=others,
            newer=tried[: ours[0]] if ours else (),
            taken=names,
            avoided=kept.adopted,
            verdict=verdict,
            prefer=prefer,
        )

    # Proving ------------------------------------------------------------------------------------

    def probe_soon(self, name: str) -> None:
        """Probe a target beside everything else; a change meanwhile leads to another probe."""
        kept = self.kept[name]
        if not self._closed and (kept.probing is None or kept.probing.done()):
            kept.probing = asyncio.get_running_loop().create_task(self._until_settled(kept))

    def put_back(self, kept: Kept) -> None:
        """The guard has put the target's entry back. What was proven of it holds if the file behind
        it is the one that was executed then, and is confirmed by a probe, in a fight every
        CONFIRM seconds."""
        if kept.offer is not None and not _is_there(kept.offer):
            kept.result, kept.fingerprint = None, None
        wait = kept.confirmed + CONFIRM - time.monotonic()
        if wait > 0:
            confirm = partial(self._confirm, kept)
            self._later.once(f"confirm {kept.target.name}", wait + 0.01, confirm)
        else:
            self._confirm(kept)

    def _confirm(self, kept: Kept) -> None:
        kept.confirmed = time.monotonic()
        self.probe_soon(kept.target.name)

    async def _until_settled(self, kept: Kept) -> None:
        gaps = 0
        while not self._closed:
            table = self._instance.entries()
            before = self.fingerprint(kept, table)
            if not before:
                self.observe(kept, table)
                return
            result = await self._probe(kept)
            if not self.same(self.fingerprint(kept, self._instance.entries()), before):
                continue
            if result.cause is Cause.NO_ENTRY and gaps < GAPS:
                gaps += 1
                await asyncio.sleep(0.02 * gaps)
                continue
            # The task must not count as running when this leads to another probe.
            kept.probing = None
            self._judge(kept, result, before)
            return

    def _judge(self, kept: Kept, result: ProbeResult, fingerprint: tuple[Entry, ...]) -> None:
        previous, told = kept.result, kept.told_ready
        kept.result, kept.fingerprint = result, fingerprint
        self._counters.probed(kept.target.name, result)
        if result.ok:
            kept.doubts, kept.reason = 0, self._remark(kept)
        else:
            kept.doubts += 1
            kept.reason = result.error
            self._on_failure(kept, result)
        if told is not result.ok:  # else it is no news, however often it was unproven meanwhile
            kept.told_ready = result.ok
            self._emit("ready" if result.ok else "failed", kept.target.name, result.error)
        if previous is not None and previous.ok and result.ok:
            return  # as it was known
        self._decide("a probe ended")

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

    def proven(self, kept: Kept) -> bool:
        """Whether the last probe of the target worked and the entry that served it is there still,
        or its stand-in."""
        serving = kept.serving
        if not kept.ready or serving is None or not self._instance.enabled():
            return False
        names = [serving.name]
        if self._ledger.owns(serving):
            proper = serving.name.removesuffix(NEXT)
            names = [proper, f"{proper}{NEXT}"]
        return any(self._instance.read(name) == replace(serving, name=name) for name in names)

    async def settle(self, names: Iterable[str]) -> None:
        """Wait until no probe of these targets is under way."""
        wanted = [self.kept[name] for name in names]
        while tasks := [k.probing for k in wanted if k.probing and not k.probing.done()]:
            await asyncio.wait(tasks)
            await asyncio.sleep(0)


def _is_there(offer: Offer) -> bool:
    """Whether the offer's file is where it was, and the same."""
    try:
        status = os.stat(offer.path)
    except OSError:
        return False
    return (status.st_dev, status.st_ino) == (offer.device, offer.inode)
