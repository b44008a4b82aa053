"""What serves a step: the instance it runs in and the interpreter, and what is refused before."""

from __future__ import annotations

import posixpath
from dataclasses import dataclass

from maid import kernel
from maid.emulation.machine import Machine, Table
from maid.errors import PlatformUnavailable, StepRefused
from maid.platforms import Platform
from maid.steps import rootfs
from maid.steps.launch import Caller, Descriptors
from maid.steps.rootfs import Look
from maid.steps.step import Step


@dataclass(frozen=True)
class Served:
    """The instance (None: the daemon's own namespace), `via` native or emulated, the interpreter in
    that case, and whether that is maid's copy with the front."""

    table: Table | None
    via: str
    interpreter: str | None
    front: bool


def platform_of(seen: Look) -> Platform:
    """The platform of a root file system for which none was named. Raises StepRefused."""
    if seen.target is None or not seen.target.platforms:
        raise StepRefused(
            "no program in the root file system tells its platform", "name it: --platform"
        )
    # Of arm's three the newest: the programs do not say which they need.
    return seen.target.platforms[-1]


def check_rootfs(machine: Machine, step: Step, given: Descriptors, seen: Look) -> None:
    """Refuse a root file system of another platform, and one that is not to be written to and lacks
    the working directory: the OCI runtime would make it there."""
    target = machine.find(step.platform)
    if given.changes >= 0:
        rootfs.require_directory(given.changes, "what the overlay writes to")
        if kernel.filesystem_type(given.changes) == kernel.OVERLAYFS_MAGIC:
            raise StepRefused(
                "the overlay directory lies on an overlay file system itself, on which the"
                " kernel makes no other",
                "give one elsewhere: a volume, or a tmpfs",
            )
    if step.readonly and not seen.cwd and not _mounted(step, step.cwd):
        raise StepRefused(
            f"there is no directory {step.cwd} in the root file system",
            "make it there, or name another one: --cwd; without --readonly the step makes it",
        )
    found = seen.target
    if found is not None and found.emulator != target.emulator:
        platforms = " or ".join(str(p) for p in found.platforms) or found.name
        raise StepRefused(
            f"the root file system is for {platforms}, not for {step.platform}",
            f"run it with --platform {found.platforms[0] if found.platforms else '…'}, or give"
            f" a root file system of {step.platform}",
        )


def _mounted(step: Step, path: str) -> bool:
    """Whether something is mounted at a path of the step or above it: what is there is not the root
    file system's."""
    places = ("/proc", "/dev", "/sys", *step.tmpfs, *(bind.destination for bind in step.binds))
    return any(
        posixpath.commonpath((path, place)) == posixpath.commonpath((place,)) for place in places
    )


async def serve(machine: Machine, step: Step, caller: Caller) -> Served:
    """Find the instance for the step.

    Foreign platforms are ensured first: a probe whose verdict is about the entries as they are.
    Raises StepRefused, PlatformUnavailable.
    """
    target = machine.find(step.platform)
    cpu = {target.name: step.cpu} if step.cpu else None
    if machine.is_native(target.name):
        if cpu:
            raise StepRefused(
                f"{step.platform} is native here: there is no CPU model to choose",
                "leave --cpu out",
            )
        return Served(await machine.table_for(caller.mapping, caller.key), "native", None, False)
    if not machine.config.emulation.serves(target.name, step.platform):
        raise PlatformUnavailable(
            f"{step.platform} is excluded by the configuration", "[emulation] in maid.toml"
        )
    table = await machine.table_for(caller.mapping, caller.key, cpu)
    keeper = table.keeper
    kept = keeper.kept.get(target.name)
    if kept is None or not keeper.proven(target.name):
        await machine.ensure(step.platform, table)
        kept = keeper.kept[target.name]
    if kept.serving is None:
        raise PlatformUnavailable(f"nothing serves {step.platform}", "maid doctor")
    front = kept.offer is not None and kept.offer.baked
    return Served(table, "emulated", kept.serving.interpreter, front)
