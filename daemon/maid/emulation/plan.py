"""What to do about one target: desired against actual, as a pure function.

Given what maid could register, what it has registered, what others have registered and what the
last probe said of exactly this arrangement, `plan` says which steps lead to the desired state. It
touches nothing; the keeper carries out.

The rules are those of design.md: only entries of the ledger are changed (1), a foreign entry that
works is adopted and one that does not is shadowed (1), a replacement is registered before what it
replaces is removed.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from maid.binfmt.entry import Entry
from maid.config import Prefer
from maid.emulation.emulators import Offer
from maid.emulation.ledger import Record

NEXT = ".next"
"""Suffix of the entry that serves while the one of the proper name is being replaced."""


@dataclass(frozen=True)
class Register:
    """Register `offer` under `name`. `healing`: it stood there before and somebody removed it."""

    offer: Offer
    name: str
    healing: bool = False


@dataclass(frozen=True)
class Renew:
    """Replace our entry `record` by one of `offer` without a moment in which nothing serves.
    `for_rank`: it is the same, and only has to become the newest, which the kernel tries first."""

    record: Record
    offer: Offer
    reason: str
    for_rank: bool = False


@dataclass(frozen=True)
class SwitchOn:
    """Enable our entry, which somebody disabled."""

    record: Record


@dataclass(frozen=True)
class Remove:
    """Remove our entry."""

    record: Record
    reason: str


Action = Register | Renew | SwitchOn | Remove


class Verdict(Enum):
    """What the last probe said of the entries as they are now."""

    UNKNOWN = "unknown"
    WORKS = "works"
    FAILS = "fails"


@dataclass(frozen=True)
class Situation:
    """All that counts for one target.

    `wanted`: the configuration asks for it. `offers`: what could be registered, best first, without
    those that failed. `mine`: our records that the table holds unchanged, with what it shows.
    `lost`: names of records that the table holds no longer. `others`: enabled entries of somebody
    else's that catch the target's programs, the newer ones (registered after ours) in `newer`.
    `taken`: every name in the table; `avoided`: names under which somebody else's entry served
    until it went, and may be about to come back (systemd-binfmt empties the table and fills it
    again, and fails where a name is taken).
    """

    target: str
    wanted: bool
    offers: tuple[Offer, ...]
    mine: tuple[tuple[Record, Entry], ...]
    lost: tuple[str, ...]
    others: tuple[Entry, ...]
    newer: tuple[Entry, ...]
    taken: frozenset[str]
    avoided: frozenset[str]
    verdict: Verdict
    prefer: Prefer


def plan(now: Situation) -> list[Action]:
    """The actions for one target, in order; empty when everything is as it should be, or when a
    probe has to be awaited first."""
    if not now.wanted:
        return [Remove(record, "not wanted by the configuration") for record, _ in now.mine]
    if not now.mine:
        return _begin(now)
    proper = [(record, entry) for record, entry in now.mine if not record.name.endswith(NEXT)]
    if not proper:
        return _finish_renewal(now)
    actions: list[Action] = [
        Remove(record, "left over from a renewal that was interrupted")
        for record, _ in now.mine
        if record.name.endswith(NEXT)
    ]
    record, entry = proper[0]
    # Another entry of ours for one target can only come from a change of names; the first one
    # stays.
    actions += [Remove(extra, "superseded") for extra, _ in proper[1:]]
    best = now.offers[0] if now.offers else None
    if best and not best.is_behind(record):
        return [Renew(record, best, best.difference(record)), *actions]
    if not entry.enabled:
        return [SwitchOn(record), *actions]
    ours_first = now.prefer is Prefer.OWN or now.verdict is Verdict.FAILS
    if now.newer and ours_first and best:
        return [Renew(record, best, f"{now.newer[0].name} came before it", True), *actions]
    return actions


def _begin(now: Situation) -> list[Action]:
    if not now.offers:
        return []
    if now.others and now.prefer is Prefer.ADOPT and now.verdict is not Verdict.FAILS:
        # Works: adopted. Unknown: the probe comes first.
        return []
    for name in now.lost:
        if name not in now.taken and not name.endswith(NEXT):
            return [Register(now.offers[0], name, healing=True)]
    name = name_for(now.target, now.taken | now.avoided)
    return [Register(now.offers[0], name, healing=bool(now.lost))]


def _finish_renewal(now: Situation) -> list[Action]:
    """Only NAME.next is left: somebody removed NAME and the guard put this in its place, or the
    daemon died in the middle of a renewal."""
    record = now.mine[0][0]
    if not now.offers:
        return []
    if now.newer and now.prefer is Prefer.ADOPT and now.verdict is not Verdict.FAILS:
        if now.verdict is Verdict.UNKNOWN:
            return []  # the probe comes first
        return [Remove(record, f"{now.newer[0].name} serves")]
    name = record.name.removesuffix(NEXT)
    if name in now.taken:
        name = name_for(now.target, now.taken)
    return [Register(now.offers[0], name), Remove(record, "its renewal is finished")]


def name_for(target: str, taken: frozenset[str]) -> str:
    """The name to register the target under: the one that other tools look for, if it is free.

    Then maid-<target>, and should that be taken too (somebody else's, so it stays), a number more.
    """
    for name in (f"qemu-{target}", f"maid-{target}"):
        if name not in taken:
            return name
    number = 2
    while f"maid-{target}-{number}" in taken:
        number += 1
    return f"maid-{target}-{number}"


def undoes(action: Action, now: Situation) -> bool:
    """Whether an action undoes what somebody else has done: then it can become a fight."""
    match action:
        case SwitchOn():
            return True
        case Register():
            return bool(now.lost) and not now.mine
        case Renew():
            return action.for_rank
    return False
