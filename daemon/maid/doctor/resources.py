"""Checks of what steps and emulators use: limits, memory, cgroups, space, the processor."""

from __future__ import annotations

import re
from collections.abc import Iterator

from maid.config import Config, Scope
from maid.doctor.findings import Finding, listed, note, ok, problem, warning
from maid.doctor.place import CannotLook, Place
from maid.platforms import host

_GIB = 1024**3

# The soft limit that systemd and most shells give; [steps] and [socket] together let one user alone
# hold some 150 of the daemon's connections and steps, with several descriptors each.
_OPEN_FILES = 1024
# The daemon holds one inotify instance for each table and each directory of interpreters.
_INOTIFY_INSTANCES = 64


def _rlimits(place: Place) -> dict[str, int | None]:
    """Soft limits of /proc/self/limits by their names; None is unlimited."""
    found: dict[str, int | None] = {}
    for line in (place.read("/proc/self/limits") or "").splitlines():
        cells = re.match(r"(.+?)\s{2,}(\d+|unlimited)\s", line)
        if cells:
            found[cells[1]] = None if cells[2] == "unlimited" else int(cells[2])
    return found


def limits(config: Config, scope: Scope, place: Place) -> Iterator[Finding]:
    """Limits of this process and of the machine that steps and emulators run into."""
    found: list[Finding] = []
    rlimits = _rlimits(place)
    files = rlimits.get("Max open files")
    if files is not None and files < _OPEN_FILES:
        found.append(
            warning(
                "limits",
                f"{files} open files are allowed: too few for many steps at once",
                f"ulimit -n {_OPEN_FILES}; a unit: LimitNOFILE=",
            )
        )
    space = rlimits.get("Max address space")
    # A 32-bit guest has 4 GiB of addresses, which QEMU reserves as a whole.
    if space is not None and space < 8 * _GIB:
        found.append(
            warning(
                "limits",
                f"the address space is limited to {space // 1024**2} MiB: QEMU cannot reserve what"
                " a foreign program sees",
                "ulimit -v unlimited; a unit: LimitAS=infinity",
            )
        )
    processes = rlimits.get("Max processes")
    pids = place.number("/proc/sys/kernel/pid_max")
    few = [each for each in (processes, pids) if each is not None and each < 2048]
    if few:
        found.append(
            warning(
                "limits",
                f"{min(few)} processes are allowed: parallel builds will fail to fork",
                "ulimit -u 32768, or sysctl kernel.pid_max=4194304",
            )
        )
    for name in ("fs/inotify/max_user_instances", "user/max_inotify_instances"):
        instances = place.number(f"/proc/sys/{name}")
        if instances is not None and instances < _INOTIFY_INSTANCES:
            found.append(
                warning(
                    "limits",
                    f"{name.replace('/', '.')} is {instances}: maid may not be able to watch the"
                    " table, and then repairs it late",
                    f"sysctl {name.replace('/', '.')}=128",
                )
            )
    watches = place.number("/proc/sys/fs/inotify/max_user_watches")
    if watches is not None and watches < 1024:
        found.append(
            warning(
                "limits",
                f"fs.inotify.max_user_watches is {watches}: maid may be unable to watch the table",
                "sysctl fs.inotify.max_user_watches=8192",
            )
        )
    yield from found or [ok("limits", "open files, processes and inotify are enough")]


def memory(config: Config, scope: Scope, place: Place) -> Iterator[Finding]:
    """Memory: how much, and whether it can be reserved as emulators do it."""
    text = place.read("/proc/meminfo") or ""
    sizes = {name: int(size) for name, size in re.findall(r"^(\w+):\s+(\d+) kB$", text, re.M)}
    free = sizes.get("MemAvailable", 0) + sizes.get("SwapFree", 0)
    tight = False
    if sizes and free < 1024**2:
        tight = True
        yield warning(
            "memory",
            f"{free // 1024} MiB are free: a build of several platforms at once will be killed",
            "build one platform after another, or add swap; maid run --memory bounds one step",
        )
    if place.number("/proc/sys/vm/overcommit_memory") == 2:
        tight = True
        yield warning(
            "memory",
            "vm.overcommit_memory is 2: QEMU reserves a whole address space and may be refused it"
            " (unable to reserve … bytes of virtual address space)",
            "sysctl vm.overcommit_memory=0",
        )
    lowest = place.number("/proc/sys/vm/mmap_min_addr")
    if lowest is not None and lowest > 65536:
        tight = True
        yield warning(
            "memory",
            f"vm.mmap_min_addr is {lowest}: 32-bit programs cannot be put where they belong",
            "sysctl vm.mmap_min_addr=65536",
        )
    if not tight:
        yield ok("memory", f"{free // 1024} MiB are free")


def randomisation(config: Config, scope: Scope, place: Place) -> Iterator[Finding]:
    """Address randomisation as wide as QEMU at a fixed address cannot bear it."""
    try:
        bits = place.number("/proc/sys/vm/mmap_rnd_bits")
    except CannotLook:
        return  # root's alone, and a detail
    # 28 is x86-64's default and what GitHub's runners were set back to (actions/runner-images
    # #11694); Ubuntu raised it to 32.
    if place.machine == "x86_64" and bits is not None and bits > 28:
        yield note(
            "randomisation",
            f"vm.mmap_rnd_bits is {bits}: QEMU before 8.2, and programs with sanitizers, segfault"
            " now and then",
            "a newer QEMU; until then: sysctl vm.mmap_rnd_bits=28",
        )


def processor(config: Config, scope: Scope, place: Place) -> Iterator[Finding]:
    """The level of an amd64 CPU: a host's own programs are never emulated."""
    own = host(place.machine, place.read("/proc/cpuinfo") or "")
    if own.architecture != "amd64":
        return
    if own.variant in ("", "v1"):
        yield warning(
            "processor",
            "it has amd64's first level only: RHEL 9 and other new distributions need x86-64-v2",
            "a virtual machine: choose the CPU model host; maid never emulates a machine's own"
            " architecture",
        )
    else:
        yield ok("processor", f"amd64, level {own.variant}")


_CONTROLLERS = ("memory", "cpu")


def cgroups(config: Config, scope: Scope, place: Place) -> Iterator[Finding]:
    """Which cgroups there are, and whether maid run --memory and --cpus can work."""
    root = "/sys/fs/cgroup"
    own = {}
    for line in (place.read("/proc/self/cgroup") or "").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        own.update(dict.fromkeys(controllers.split(","), path.rstrip("/")))
    mounted = [mount for mount in place.mounts() if mount.kind in ("cgroup", "cgroup2")]
    unified = place.exists(f"{root}/cgroup.controllers")
    if not mounted and not unified:
        yield warning(
            "cgroups",
            f"none are mounted at {root}: OCI runtimes may not start, limits cannot be set",
            "mount -t cgroup2 cgroup2 /sys/fs/cgroup, as systemd does",
        )
        return
    if unified:
        directory = f"{root}{own.get('', '')}".removesuffix("/daemon")
        offered = (place.read(f"{directory}/cgroup.controllers") or "").split()
        lacking = [each for each in _CONTROLLERS if each not in offered]
        places, kind = [directory], "v2"
    else:
        lacking, places = [], []
        for each in _CONTROLLERS:
            mount = next((m for m in mounted if m.kind == "cgroup" and each in m.options), None)
            if mount is None:
                lacking.append(each)
            else:
                places.append(f"{mount.point}{own.get(each, '')}")
        both = any(mount.kind == "cgroup2" for mount in mounted)
        kind = "hybrid (v1 with a v2 tree beside it)" if both else "v1"
    if lacking:
        yield warning(
            "cgroups",
            f"{kind}, without {' and '.join(lacking)}: maid run --memory and --cpus are refused",
            "a unit: Delegate=yes; a container: --cgroupns=private; at boot: cgroup_enable=memory",
        )
        return
    barred = [each for each in places if not place.writable(each)]
    # The service is root, whoever asks here.
    if barred and (place.uid == 0 or scope is Scope.PRIVATE):
        yield note(
            "cgroups",
            f"{kind}; {listed(barred)} cannot be written: maid run --memory and --cpus are refused",
            "run the daemon as a service, or: systemd-run --user --scope -p Delegate=yes",
        )
    elif kind == "v2":
        yield ok("cgroups", "v2, limits for steps can be set")
    else:
        yield note(
            "cgroups",
            f"{kind}, limits for steps can be set",
            ""
            if kind == "v1"
            else "other tools may not like hybrid cgroups; one tree for all:"
            " boot with systemd.unified_cgroup_hierarchy=1",
        )


def space(config: Config, scope: Scope, place: Place) -> Iterator[Finding]:
    """Room in maid's directories, and mounts that forbid what they are for."""
    # A copy of an interpreter takes 3 to 6 MiB; 34 targets are the most that there can be.
    enough = {config.paths.state: 512 * 1024**2, config.paths.runtime: 64 * 1024**2}
    for path, wanted in enough.items():
        mount = place.mount_of(path)
        if mount is not None and mount.read_only:
            yield problem(
                "space", f"{path} is on a read-only file system ({mount.point})", "set [paths]"
            )
            continue
        if mount is not None and "noexec" in mount.options and path == config.paths.state:
            yield problem(
                "space",
                f"{path} is mounted noexec ({mount.point}): no interpreter can be registered there",
                "set [paths] state to a directory from which programs may be run",
            )
        free = place.free(path)
        if free is None:
            yield note("space", f"the space in {path} cannot be seen")
            continue
        size, inodes = free
        few = inodes is not None and inodes < 1000
        if size < wanted or few:
            left = f"{inodes} files" if few else f"{size // 1024**2} MiB"
            yield warning(
                "space",
                f"{left} are left in {path}",
                "make room: maid's copies of interpreters and bundles of steps lie there",
            )
        else:
            yield ok("space", f"{size // 1024**2} MiB are free in {path}")


# Where engines keep the root file systems of what they build.
_STORES = ("/var/lib/docker", "/var/lib/containers", "/var/lib/containerd", "/var/lib/buildkit")


def large_inodes(config: Config, scope: Scope, place: Place) -> Iterator[Finding]:
    """File systems whose directory offsets do not fit into 32 bits (QEMU issue 263)."""
    stores = [each for each in _STORES if place.exists(each)]
    found = [
        each for each in stores if (mount := place.mount_of(each)) and mount.kind.startswith("ext")
    ]
    if found:
        yield note(
            "32-bit programs",
            f"{listed(found)} is on ext4, whose directories have 64-bit offsets: emulated 32-bit"
            " programs (386, arm) that were built without large file support fail to list them"
            " (Value too large for defined data type; cargo does)",
            "build such a step on a tmpfs or on xfs, or for a 64-bit platform",
        )
