"""Checks of what is around this system: a container, WSL, Rosetta, variables of the environment."""

from __future__ import annotations

from collections.abc import Iterator

from maid.config import Config, Scope
from maid.doctor.findings import Finding, listed, note, ok, problem, warning
from maid.doctor.place import BINFMT, Place
from maid.doctor.table import mounted, rows

_INTEROP = ":WSLInterop:M::MZ::/init:PF"
"""The line with which WSL 2 registers Windows programs (microsoft/WSL#8843)."""


def container_kind(place: Place) -> str:
    """Which container manager this system runs under, "" for none that can be seen.

    The names are those of systemd-detect-virt(1), which looks at the same places.
    """
    if place.environ.get("KUBERNETES_SERVICE_HOST") or place.exists(
        "/var/run/secrets/kubernetes.io"
    ):
        return "kubernetes"
    said = (place.read("/run/systemd/container") or place.environ.get("container", "")).strip()
    if said:
        return said
    if place.exists("/run/.containerenv"):
        return "podman"
    if place.exists("/.dockerenv"):
        return "docker"
    # OpenVZ has its beancounters, and on its host /proc/bc as well.
    if place.exists("/proc/vz") and not place.exists("/proc/bc"):
        return "openvz"
    return ""


_IN_A_CONTAINER = {
    "kubernetes": "run maid on the nodes, as a service or a privileged DaemonSet that stays",
    "openvz": "OpenVZ containers cannot have binfmt_misc: use a virtual machine",
    "lxc": "install maid on the machine itself; an LXC guest then uses its entries",
    "lxc-libvirt": "install maid on the machine itself; an LXC guest then uses its entries",
    "systemd-nspawn": "with --private-users the container has a table of its own; without, entries"
    " go into the machine's",
}


def container(config: Config, scope: Scope, place: Place) -> Iterator[Finding]:
    """A container around: its mounts hide the machine's table, and most may register nothing."""
    kind = container_kind(place)
    if not kind:
        yield ok("container", "this is not a container, as far as can be seen")
        return
    table = next(reversed(mounted(place, BINFMT)), None)
    hint = _IN_A_CONTAINER.get(
        kind, "run maid on the machine itself: its entries serve every container"
    )
    if scope is Scope.PRIVATE:
        yield note(
            "container",
            f"this is a {kind} container: the private scope needs unshare and mount to be allowed",
            "they are with --privileged, or: --security-opt seccomp=unconfined --security-opt"
            " apparmor=unconfined --cap-add SYS_ADMIN",
        )
    elif table is None:
        yield warning(
            "container",
            f"this is a {kind} container without the machine's table: the machine's entries may"
            " serve it all the same, but cannot be seen",
            f"{hint}; to manage them from here: --privileged -v {BINFMT}:{BINFMT}",
        )
    elif table.read_only:
        yield warning("container", f"this is a {kind} container with the table read-only", hint)
    else:
        yield note(
            "container",
            f"this is a {kind} container: what is registered here is the machine's, and stays when"
            " the container has gone",
            hint,
        )


def wsl(config: Config, scope: Scope, place: Place) -> Iterator[Finding]:
    """Windows Subsystem for Linux: 1 has no Linux kernel, 2 an entry that must stay."""
    release = place.release.lower()
    if "microsoft" not in release:
        return
    if "wsl2" not in release and place.version() < (4, 19):
        yield problem(
            "WSL",
            "this is WSL 1: there is no Linux kernel, so no binfmt_misc for Linux programs",
            "in Windows: wsl --set-version DISTRIBUTION 2",
        )
        return
    if scope is Scope.PRIVATE or not mounted(place, BINFMT):
        return
    interop = [name for name in place.names(BINFMT) if name.startswith("WSLInterop")]
    if interop:
        yield ok("WSL", f"{interop[0]} is there; maid leaves it alone")
    else:
        yield warning(
            "WSL",
            "the entry WSLInterop is gone: Windows programs do not start (Exec format error)."
            " systemd-binfmt removes it whenever it restarts, maid never does",
            f"echo '{_INTEROP}' >{BINFMT}/register; to keep it: the same line in"
            " /etc/binfmt.d/WSLInterop.conf",
        )
    if not place.exists("/etc/binfmt.d/WSLInterop.conf") and place.exists("/run/systemd/system"):
        yield note(
            "WSL",
            "a restart of systemd-binfmt removes WSLInterop",
            f"echo '{_INTEROP}' >/etc/binfmt.d/WSLInterop.conf",
        )


def rosetta(config: Config, scope: Scope, place: Place) -> Iterator[Finding]:
    """Apple's Rosetta, as Lima, Docker Desktop and others offer it to their virtual machines."""
    found, _ = rows(config, scope, place)
    serving = [row.entry.name for row in found if row.entry.interpreter.endswith("/rosetta")]
    files = [
        path
        for path in (
            "/mnt/lima-rosetta/rosetta",
            "/media/rosetta/rosetta",
            "/run/rosetta/rosetta",
        )
        if place.exists(path)
    ]
    if serving:
        yield note(
            "Rosetta",
            f"{listed(serving)} runs amd64 by Rosetta: faster than QEMU; maid adopts it",
            "what Rosetta cannot run (no AVX before macOS 15), QEMU may: [emulation] prefer ="
            ' "own"',
        )
    elif files:
        yield note("Rosetta", f"{files[0]} is there, and maid can use it for amd64")


# Read by every QEMU that starts below, whatever its target (linux-user/main.c).
_QEMU = ("QEMU_CPU", "QEMU_LD_PREFIX", "QEMU_STRACE", "QEMU_UNAME", "QEMU_RESERVED_VA")


def environment(config: Config, scope: Scope, place: Place) -> Iterator[Finding]:
    """Variables that change emulation or the choice of a platform without a word."""
    found = False
    qemu = [name for name in _QEMU if name in place.environ]
    if qemu:
        found = True
        yield warning(
            "environment",
            f"{listed(qemu)} is set: it reaches the emulators of every target, also where its value"
            " makes no sense",
            f"unset {' '.join(qemu)}; a CPU model belongs into [emulation.target.NAME] cpu",
        )
    if place.environ.get("DOCKER_BUILDKIT") == "0":
        found = True
        yield warning(
            "environment",
            "DOCKER_BUILDKIT is 0: docker's old builder takes a local base image of the wrong"
            " architecture without a word",
            "unset DOCKER_BUILDKIT",
        )
    default = place.environ.get("DOCKER_DEFAULT_PLATFORM")
    if default:
        found = True
        yield note(
            "environment",
            f"DOCKER_DEFAULT_PLATFORM is {default}: docker pulls and builds for it, even emulated",
            "unset it, and say --platform where it matters",
        )
    if not found:
        yield ok("environment", "no variable changes emulation")
