"""A step as an OCI runtime configuration (runtime-spec 1.0, config.json). A pure function of
values.

What a `RUN` line may expect is what Docker and BuildKit give it: the usual devices, the same
capabilities, /proc with its dangerous parts hidden. Nothing here limits more than the process that
starts the runtime is limited (the test machines lack CAP_SYS_RESOURCE: facts/engines.md).
"""

from __future__ import annotations

import posixpath
from typing import TypeAlias

from maid.binfmt.namespace import IdRange, Mapping
from maid.steps.step import Step

Json: TypeAlias = "dict[str, Json] | list[Json] | str | int | float | bool | None"

CAPABILITIES = [
    f"CAP_{name}"
    for name in [
        "AUDIT_WRITE",
        "CHOWN",
        "DAC_OVERRIDE",
        "FOWNER",
        "FSETID",
        "KILL",
        "MKNOD",
        "NET_BIND_SERVICE",
        "NET_RAW",
        "SETFCAP",
        "SETGID",
        "SETPCAP",
        "SETUID",
        "SYS_CHROOT",
    ]
]
"""Docker's default set (moby, oci/caps/defaults.go)."""

MASKED = [
    f"/proc/{name}"
    for name in (
        [
            "acpi",
            "asound",
            "kcore",
            "keys",
            "latency_stats",
            "timer_list",
            "timer_stats",
            "sched_debug",
            "scsi",
        ]
    )
] + ["/sys/firmware"]
READONLY = [f"/proc/{name}" for name in ("bus", "fs", "irq", "sys", "sysrq-trigger")]
"""Docker's default masked and read-only paths (moby, oci/defaults.go). Under an identity map they
are what stands between a step and the machine's sysctls, which belong to root by id."""

INIT = "/dev/.maid-init"
"""Where maid-init lies in a step: /dev is a tmpfs, so nothing is left in the root file system."""

STORE = "/dev/.maid"
"""Where the native store lies in a step; the front looks for it there."""

PROGRAM_LOG = "/dev/.maid-log"
"""The file in which the front notes what ran natively (native/programs.c)."""

PROFILE = "/dev/.maid-profile"
PROFILE_LOG = "/dev/.maid-profile-log"
"""Where maid-profile lies in a step that is profiled, and the file it writes to."""

RESOLVER = "/etc/resolv.conf"

OOM_SCORE = 100
"""How much sooner than the daemon a step's processes are killed where there is no memory: as if
each used a tenth of it more. Else the daemon, which is larger than many a program, would go
first."""

HOSTNAME = "maid"
"""A fixed name, so that a build which records its host's name gives the same bytes everywhere."""


def bundle(
    step: Step,
    directory: str,
    *,
    user_namespace: str | None,
    mapping: Mapping | None,
    own_network: bool,
    resolver: bool,
    terminal_group: bool,
    store: bool = False,
    killed_before: int = 0,
) -> dict[str, Json]:
    """The config.json of `step` in `directory`, where maid-step attaches what it names.

    `user_namespace` is the path of the namespace to join and `mapping` its id maps, both None where
    the step runs in the daemon's own; `own_network`: the runtime is started in a network namespace
    that belongs to the step; `resolver`: give the step the machine's /etc/resolv.conf;
    `terminal_group`: group 5 exists inside (it owns terminals on Debian and most others, and devpts
    takes it only if it is mapped); `store`: the native store is there, and a log of programs;
    `killed_before` is the daemon's own oom_score_adj (proc_pid_oom_score_adj(5)).
    """
    namespaces: list[Json] = [{"type": kind} for kind in ("pid", "mount", "ipc", "uts")]
    linux: dict[str, Json] = {
        "namespaces": namespaces,
        "maskedPaths": [*MASKED],
        "readonlyPaths": [*READONLY],
    }
    if user_namespace is not None and mapping is not None:
        namespaces.append({"type": "user", "path": user_namespace})
        linux["uidMappings"] = _rows(mapping.uids)
        linux["gidMappings"] = _rows(mapping.gids)
    command = [INIT, *step.command]
    if step.profile:
        command = [INIT, PROFILE, PROFILE_LOG, *step.command]
    return {
        "ociVersion": "1.0.2",
        "hostname": HOSTNAME,
        "root": {"path": "rootfs", "readonly": step.readonly},
        "process": {
            "terminal": False,
            "user": {"uid": step.user, "gid": step.group, "umask": 0o022},
            "args": [*command],
            "env": [f"{key}={value}" for key, value in step.full_environment().items()],
            "cwd": step.cwd,
            "capabilities": _powers(step),
            "noNewPrivileges": False,
            "oomScoreAdj": min(1000, killed_before + OOM_SCORE),
        },
        "mounts": _mounts(step, directory, own_network, resolver, terminal_group, store),
        "linux": linux,
    }


def points(document: dict[str, Json]) -> list[str]:
    """Where the mounts of a `bundle` need places in its root file system: all but those that lie in
    an earlier mount."""
    found: list[str] = []
    mounts = document["mounts"]
    assert isinstance(mounts, list)
    for mount in mounts:
        assert isinstance(mount, dict)
        path = posixpath.normpath(str(mount["destination"]))
        if not any(path == above or path.startswith(f"{above.rstrip('/')}/") for above in found):
            found.append(path)
    return found


def _powers(step: Step) -> dict[str, Json]:
    """The capabilities of a step's first process.

    A profiled one has besides what maid-profile needs to trace set-user-ID programs, and to take
    that away again from the command: ambient, so that they are handed on whoever the step runs as.
    """
    held: dict[str, list[str]] = {"bounding": [*CAPABILITIES]}
    if step.user == 0:
        held |= {kind: [*CAPABILITIES] for kind in ("effective", "permitted")}
    if step.profile:
        for kind in ("bounding", "effective", "permitted", "inheritable", "ambient"):
            held[kind] = sorted({*held.get(kind, []), "CAP_SYS_PTRACE", "CAP_SETPCAP"})
    return {kind: [*names] for kind, names in held.items()}


def _rows(ranges: tuple[IdRange, ...]) -> list[Json]:
    return [{"containerID": row.inside, "hostID": row.outside, "size": row.count} for row in ranges]


def _mounts(
    step: Step,
    directory: str,
    own_network: bool,
    resolver: bool,
    terminal_group: bool,
    store: bool,
) -> list[Json]:
    def mount(destination: str, kind: str, source: str, options: str) -> dict[str, Json]:
        return {
            "destination": destination,
            "type": kind,
            "source": source,
            "options": [*options.split(",")],
        }

    # The command must not be the first process of its pid namespace: it could not die of a signal.
    init = mount(INIT, "none", f"{directory}/init", "bind,ro,nosuid,nodev")
    terminals = "nosuid,noexec,newinstance,ptmxmode=0666,mode=0620"
    mounts = [
        mount("/proc", "proc", "proc", "nosuid,noexec,nodev"),
        mount("/dev", "tmpfs", "tmpfs", "nosuid,strictatime,mode=755,size=65536k"),
        init,
        mount("/dev/pts", "devpts", "devpts", terminals + (",gid=5" if terminal_group else "")),
        mount("/dev/shm", "tmpfs", "shm", "nosuid,noexec,nodev,mode=1777,size=67108864"),
    ]
    if step.profile:
        options = "bind,ro,nosuid,nodev"
        mounts.append(mount(PROFILE, "none", f"{directory}/profile", options))
    if store:
        mounts += [
            mount(STORE, "none", f"{directory}/store", "bind,ro,nosuid,nodev"),
            mount(PROGRAM_LOG, "none", f"{directory}/programs/log", "bind,nosuid,nodev,noexec"),
        ]
    if own_network:
        mounts.append(mount("/sys", "sysfs", "sysfs", "nosuid,noexec,nodev,ro"))
    else:
        # sysfs shows the network namespace it is mounted in, and may be mounted only by its owner:
        # the machine's own, of which maid-step attaches a copy.
        mounts.append(mount("/sys", "none", f"{directory}/sys", "rbind,nosuid,noexec,nodev,ro"))
    if resolver and not own_network:
        source = RESOLVER
        mounts.append(mount(source, "none", source, "bind,ro,nosuid,noexec,nodev"))
    mounts += [
        mount(
            path, "tmpfs", "tmpfs", "nosuid,nodev,mode=1777" if path == "/tmp" else "nosuid,nodev"
        )
        for path in step.tmpfs
    ]
    # Those that are read-only are so already, with all that is mounted in them.
    mounts += [
        mount(bind.destination, "none", f"{directory}/bind/{number}", "rbind")
        for number, bind in enumerate(step.binds)
    ]
    return [*mounts]
