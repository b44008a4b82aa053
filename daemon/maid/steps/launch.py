"""From a checked step to a running supervisor: its bundle on disk, and the process beside it.

Knows what maid-step (native/step.c) is told and handed over. Who may run what, and what becomes of
it, is the runner's.
"""

from __future__ import annotations

import os
import posixpath
import signal
import zlib
from dataclasses import dataclass

import msgspec

from maid import native
from maid.binfmt import namespace
from maid.binfmt.namespace import IdRange, Pinned
from maid.emulation.machine import ROOT
from maid.errors import StepRefused
from maid.steps import record, rootfs
from maid.steps.bundle import RESOLVER, bundle, points
from maid.steps.record import Meta
from maid.steps.runtime import Runtime
from maid.steps.step import DEFAULT_PATH, Step


@dataclass
class Descriptors:
    """What the caller handed over; the runner closes none of them. `changes` is a directory with
    upper/ and work/ for an overlay, or -1; `mount_namespace` is the caller's, where it is not the
    daemon's, or -1. `store` is not the caller's: the native store's directory, or -1."""

    stdin: int
    stdout: int
    stderr: int
    rootfs: int
    changes: int = -1
    binds: tuple[int, ...] = ()
    mount_namespace: int = -1
    store: int = -1


@dataclass(frozen=True)
class Caller:
    """On whose behalf a step runs. `mapping` is None for root: an identity map; `groups` are the
    supplementary groups of anybody else."""

    uid: int
    mapping: namespace.Mapping | None
    groups: tuple[int, ...] = ()

    @property
    def key(self) -> str:
        """The key of the caller's instance: another one for other ids (/etc/subuid changes)."""
        if self.mapping is None:
            return ROOT
        return f"uid-{self.uid}-{zlib.crc32(repr(self.mapping).encode()):08x}"


def check_ids(step: Step, mapping: namespace.Mapping | None) -> None:
    """Refuse ids that the step's user namespace does not have."""
    if mapping is None:
        return
    for number, outside, what, file in (
        (step.user, mapping.uid_outside(step.user), "user", "/etc/subuid"),
        (step.group, mapping.gid_outside(step.group), "group", "/etc/subgid"),
    ):
        if outside is None:
            raise StepRefused(
                f"there is no {what} {number} in this step: the caller's range of ids does not"
                " reach so far",
                f"run the command as {what} 0, or give the caller a range in {file}",
            )


def write_bundle(
    step: Step,
    directory: str,
    instance: Pinned | None,
    own_network: bool,
    resolver: bool,
    store: bool,
) -> list[str]:
    """Make the step's directory and write its config.json there; the places that its mounts need in
    the root file system. Raises OSError.

    `instance` is the pinned one to join, None for the daemon's own namespace; `resolver`: the root
    file system has a /etc/resolv.conf to mount the machine's on; `store`: there is a native one.
    """
    os.makedirs(os.path.dirname(directory), mode=0o711, exist_ok=True)
    # A mapped root must be able to reach rootfs/ in it, but need not list it.
    os.mkdir(directory, 0o711)
    document = bundle(
        step,
        directory,
        user_namespace=instance.user if instance else None,
        mapping=instance.mapping if instance else None,
        own_network=own_network,
        # A place for it would have to be made, which is no way to leave a rootfs alone.
        resolver=os.path.exists(rootfs.RESOLVER) and (resolver or not step.readonly),
        terminal_group=instance is None or instance.mapping.gid_outside(5) is not None,
        store=store,
        killed_before=int(record.read_text("/proc/self/oom_score_adj") or "0"),
    )
    record.write(f"{directory}/config.json", msgspec.json.encode(document))
    return points(document)


def spawn(
    step: Step,
    caller: Caller,
    given: Descriptors,
    meta: Meta,
    directory: str,
    network: int,
    runtime: Runtime,
    timeout: float,
    instance: Pinned | None,
    places: list[str],
) -> int:
    """Start the supervisor of a step whose bundle is written; its process id. Raises OSError.

    `network` is a descriptor of a network namespace, or -1 for the machine's; `timeout` is in
    seconds, 0 for none; `places` are those that the mounts need in the root file system.
    """
    program = native.path("maid-step")
    kept = [given.rootfs, *given.binds]
    options: list[tuple[str, object]] = [
        ("directory", directory),
        ("rootfs", given.rootfs),
        ("init", native.path("maid-init")),
    ]
    if step.profile:
        options.append(("profile", native.path("maid-profile")))
    for name, descriptor in (
        ("changes", given.changes),
        ("network", network),
        ("caller", given.mount_namespace),
        ("store", given.store),
    ):
        if descriptor >= 0:
            options.append((name, descriptor))
            kept.append(descriptor)
    if caller.mapping is None:
        options.append(("reopen", 1))
    else:
        if caller.mapping.keeps_groups:
            options.append(("groups", ",".join(map(str, caller.groups))))
        if instance is not None:
            options.append(("user", instance.user))
        if given.changes >= 0:
            options += _owner(caller.mapping)
    for bind, descriptor in zip(step.binds, given.binds, strict=True):
        options.append(("bind-readonly" if bind.readonly else "bind", descriptor))
        if (place := posixpath.normpath(bind.destination)) in places:
            options.append(("at", place))
            places.remove(place)
    options += [("point-file" if p == RESOLVER else "point", p) for p in places]
    if network < 0:
        options.append(("sys", 1))
    if timeout:
        options.append(("timeout", max(1, int(timeout * 1000))))
    options += [("cgroup", cgroup) for cgroup in meta.cgroups]
    if runtime.hide:
        options.append(("hide", runtime.hide))
    return os.posix_spawn(
        program,
        [
            program,
            *(str(word) for option in options for word in option),
            "--",
            *runtime.run_command(meta.id, directory),
        ],
        {"PATH": DEFAULT_PATH},
        file_actions=[
            (os.POSIX_SPAWN_DUP2, given.stdin, 0),
            (os.POSIX_SPAWN_DUP2, given.stdout, 1),
            (os.POSIX_SPAWN_DUP2, given.stderr, 2),
            # A descriptor duplicated onto itself loses close-on-exec (glibc >= 2.29).
            *((os.POSIX_SPAWN_DUP2, descriptor, descriptor) for descriptor in set(kept)),
        ],
        # It takes the signal when it is ready to end what it has begun: not to die of one that
        # comes before its first instruction.
        setsigmask=[signal.SIGTERM],
    )


def _owner(mapping: namespace.Mapping) -> list[tuple[str, object]]:
    """The options with which an overlay is made with its owner's power over files."""

    def lines(rows: tuple[IdRange, ...]) -> str:
        return "".join(f"{row.outside} {row.outside} {row.count}\n" for row in rows)

    return [
        ("owner", mapping.uids[0].outside),
        ("group", mapping.gids[0].outside),
        ("user-ids", lines(mapping.uids)),
        ("group-ids", lines(mapping.gids)),
    ]
