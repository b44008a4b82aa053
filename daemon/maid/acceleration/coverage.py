"""What the sets there are have for a root file system, and what is missing.

A pure decision over package versions. A package counts as covered when a set has a tool of exactly
its version, or when it is known that there is none to be had.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from maid.acceleration.facts import Facts
from maid.acceleration.model import MACHINES, Machine, Tool
from maid.acceleration.sets import Left, Manifest


@dataclass(frozen=True)
class Seen:
    """What the store has for a root file system: `ready`, all that it can have; `reason` why not,
    or not yet, or ""; `sets` the names of the sets that serve it."""

    ready: bool
    reason: str
    sets: tuple[str, ...] = ()


def cover(
    found: Facts,
    tools: Iterable[Tool],
    manifests: Iterable[Manifest],
    left: Iterable[Left],
    native: Machine,
) -> tuple[Seen, set[tuple[str, str]]]:
    """What `manifests` have for the packages of a root file system; and where more could be
    fetched, the packages with tools and their versions.

    `left` are tools of which it is known that this release has no native one.
    """
    nothing: set[tuple[str, str]] = set()
    foreign = MACHINES.get(found.architecture)
    if foreign is None or foreign == native:
        return Seen(False, f"there are no native tools for {found.architecture} here"), nothing
    wanted = {
        (package, found.packages[package])
        for tool in tools
        if tool.serves(native, foreign)
        for package in (tool.package.replace("{gnu}", foreign.gnu),)
        if package in found.packages
    }
    if not wanted:
        return Seen(False, "it has none of the programs that native tools stand in for"), nothing
    known = list(left)
    rest = wanted - {(each.package, each.version) for each in known}
    serving: list[str] = []
    for manifest in manifests:
        if (manifest.distribution, manifest.native, manifest.foreign) != (
            found.distribution,
            native.debian,
            found.architecture,
        ):
            continue
        has = {(entry.package, entry.version) for entry in manifest.entries}
        if has & wanted:
            serving.append(manifest.name)
        rest -= has | {(each.package, each.version) for each in manifest.left}
    if rest:
        package, version = min(rest)
        more = f" and {len(rest) - 1} more" if len(rest) > 1 else ""
        reason = (
            f"the store has no tools for {package} {version}{more} of {found.release}"
            f" {found.architecture}"
        )
        return Seen(False, reason, tuple(serving)), wanted
    if not serving:
        reason = known[0].reason if known else "none is of the same version"
        return Seen(False, f"every tool stays emulated: {reason}"), nothing
    return Seen(True, "", tuple(serving)), nothing
