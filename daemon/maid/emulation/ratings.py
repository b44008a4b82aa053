"""Which versions of which emulators are known to be bad for which targets, and how bad.

A version that starts every probe may still break real programs: a segfault in ldconfig that stops
every apt-get, a system call that tar needs. Such problems are known by version, so they are kept in
a table, each with where it was reported. A row lowers the rating of an interpreter and its symptom
is shown; whether something works is still decided by executing it (maid.emulation.probes).

The bounds are what the reports say. Distributions patch QEMU without changing its version, so that
a row may be wrong about a package; that is why a row alone never makes an interpreter unusable.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

Version = tuple[int, ...]


class Level(IntEnum):
    """How good an interpreter is for a target; more is better."""

    UNUSABLE = 0
    BAD = 1
    """Ordinary programs fail."""
    SUSPECT = 2
    """Some programs fail."""
    GOOD = 3
    """Nothing is known against it, or only that it lacks something new."""


@dataclass(frozen=True)
class Rating:
    """`level`; `reason`, a sentence for people, and `source`, where it was reported, or both ""."""

    level: Level = Level.GOOD
    reason: str = ""
    source: str = ""


@dataclass(frozen=True)
class KnownBad:
    """One known problem of QEMU's user mode.

    It concerns `targets` (empty: all), versions from `since` up to but not including `until`, hosts
    of the architectures `hosts` (targets' names, empty: all), kernels from `kernel` on, and with
    `fixed_position` only programs that are not position-independent. `symptom` is what the user
    sees; `sources` are addresses of issues and bug reports.
    """

    targets: tuple[str, ...]
    since: Version
    until: Version
    level: Level
    symptom: str
    sources: tuple[str, ...]
    hosts: tuple[str, ...] = ()
    kernel: Version = ()
    fixed_position: bool = False


_QEMU = "https://gitlab.com/qemu-project/qemu/-/issues/"
_GITHUB = "https://github.com/"
_NEVER_FIXED: Version = (10**6,)

KNOWN_BAD: tuple[KnownBad, ...] = (
    KnownBad(
        targets=("aarch64",),
        since=(8, 1, 1),
        until=(10,),
        level=Level.BAD,
        symptom="ldconfig segfaults in Ubuntu 22.04 and Debian 11, so that apt-get fails at"
        " libc-bin",
        sources=(
            _QEMU + "1913",
            _QEMU + "2377",
            _GITHUB + "tonistiigi/binfmt/issues/240",
            _GITHUB + "tonistiigi/binfmt/issues/245",
            _GITHUB + "tonistiigi/binfmt/pull/244",
            _GITHUB + "docker/for-win/issues/15004",
            _GITHUB + "cloudnative-pg/postgres-containers/issues/302",
        ),
    ),
    KnownBad(
        targets=("aarch64",),
        since=(10, 1, 3),
        until=(10, 1, 4),
        level=Level.SUSPECT,
        symptom="ldconfig was seen to segfault in Ubuntu 22.04, so that apt-get fails at libc-bin",
        sources=(_GITHUB + "tonistiigi/binfmt/issues/298",),
    ),
    KnownBad(
        targets=("aarch64", "x86_64", "ppc64le"),
        since=(0,),
        until=(6,),
        level=Level.BAD,
        symptom="ldconfig segfaults, so that apt-get fails at libc-bin",
        sources=(
            _GITHUB + "docker/buildx/issues/314",
            _GITHUB + "moby/moby/issues/43039",
        ),
    ),
    KnownBad(
        targets=(),
        since=(6,),
        until=(8, 2),
        level=Level.SUSPECT,
        symptom="programs segfault now and then: this QEMU is built for a fixed address, which is"
        " in the way where the kernel randomises the heap more (6.9, distributions' from 6.1)",
        sources=(
            _QEMU + "1912",
            _GITHUB + "tonistiigi/binfmt/issues/215",
            _GITHUB + "docker/buildx/issues/3170",
            _GITHUB + "actions/runner-images/issues/11694",
            "https://bugs.debian.org/1087822",
        ),
        kernel=(6, 1),
        fixed_position=True,
    ),
    KnownBad(
        targets=("aarch64",),
        since=(9, 2),
        until=(10,),
        level=Level.BAD,
        symptom="openat2 fails with EINVAL, so that tar cannot unpack in Ubuntu 22.04 and later",
        sources=(
            _GITHUB + "myoung34/docker-github-actions-runner/pull/650",
            _QEMU + "3262",
        ),
    ),
    KnownBad(
        targets=("aarch64", "arm", "x86_64", "ppc64le", "riscv64", "s390x"),
        since=(0,),
        until=(9, 2),
        level=Level.GOOD,
        symptom="it lacks openat2, so that tar cannot unpack in Ubuntu 26.04 and its like"
        " (Function not implemented)",
        sources=(
            _GITHUB + "abiosoft/colima/issues/1613",
            _GITHUB + "armbian/build/issues/10713",
        ),
    ),
    KnownBad(
        targets=(),
        since=(0,),
        until=(5, 2),
        level=Level.SUSPECT,
        symptom="it lacks semtimedop, so that System V semaphores fail from glibc 2.31 on",
        sources=(_GITHUB + "docker/for-mac/issues/5879",),
    ),
    KnownBad(
        targets=("x86_64", "i386", "i486"),
        since=(0,),
        until=(7, 2, 1),
        level=Level.SUSPECT,
        symptom="it emulates an x86-64-v1 CPU, on which RHEL 9 does not start"
        " (CPU does not support x86-64-v2)",
        sources=(
            _GITHUB + "qemu/qemu/commit/d135f781405f7c78153aa65e0327b05a4aa72e50",
            _GITHUB + "containers/podman/issues/14314",
            _GITHUB + "containers/podman/issues/15456",
        ),
    ),
    KnownBad(
        targets=("x86_64",),
        since=(8,),
        until=(8, 2, 2),
        level=Level.BAD,
        symptom="QEMU itself segfaults when a program reads /proc/self/maps, as grep does",
        sources=(
            _QEMU + "2168",
            _GITHUB + "qemu/qemu/commit/6e29509abc79dcd0adb3c9ec848c2e95a158efc4",
        ),
    ),
    KnownBad(
        targets=("x86_64",),
        since=(9,),
        until=_NEVER_FIXED,
        level=Level.SUSPECT,
        symptom="Go programs built before Go 1.26 crash (fatal error: lfstack.push)",
        sources=(
            _QEMU + "2560",
            _GITHUB + "golang/go/issues/69255",
            _GITHUB + "tonistiigi/binfmt/issues/269",
        ),
        hosts=("aarch64",),
    ),
    KnownBad(
        targets=("x86_64",),
        since=(10,),
        until=(10, 1),
        level=Level.SUSPECT,
        symptom="rustc and uv segfault",
        sources=(
            _QEMU + "3130",
            _GITHUB + "astral-sh/uv/issues/16024",
            _GITHUB + "docker/for-mac/issues/7840",
        ),
        hosts=("aarch64",),
    ),
    KnownBad(
        targets=("arm", "i386", "i486"),
        since=(5, 2),
        until=(6,),
        level=Level.BAD,
        symptom="nothing starts: unable to reserve 0xffff0000 bytes of virtual address space",
        sources=(
            _GITHUB + "multiarch/alpine/issues/39",
            _GITHUB + "balena-io/qemu/issues/21",
            _GITHUB + "termux/termux-packages/issues/6172",
        ),
    ),
    KnownBad(
        targets=("arm",),
        since=(0,),
        until=(8, 1),
        level=Level.SUSPECT,
        symptom="programs that ask musl for their stack loop for ever (mremap answers EFAULT), as"
        " Node.js 19 and later do in Alpine",
        sources=(
            _QEMU + "1729",
            _GITHUB + "nodejs/docker-node/issues/1798",
            _GITHUB + "nodejs/docker-node/issues/1946",
        ),
    ),
    KnownBad(
        targets=("s390x",),
        since=(6,),
        until=(8, 1),
        level=Level.SUSPECT,
        symptom="npm hangs (it spins in recvfrom)",
        sources=(
            _GITHUB + "nodejs/docker-node/issues/1973",
            _GITHUB + "nodejs/node/issues/50339",
        ),
    ),
    KnownBad(
        targets=("riscv64",),
        since=(8, 1),
        until=(8, 2),
        level=Level.SUSPECT,
        symptom="some programs segfault in translated code, as Cockatrice's tests do",
        sources=(_QEMU + "1908",),
    ),
    KnownBad(
        targets=("riscv64",),
        since=(10,),
        until=(10, 2, 1),
        level=Level.SUSPECT,
        symptom="memset with vectors dies of an illegal instruction now and then, as cmake does in"
        " Ubuntu 26.04",
        sources=(_QEMU + "3224",),
    ),
    KnownBad(
        targets=("hppa", "sparc"),
        since=(8,),
        until=(8, 1),
        level=Level.SUSPECT,
        symptom="programs that map much memory fail to allocate it",
        sources=(_QEMU + "1741",),
    ),
    KnownBad(
        targets=("mips64el",),
        since=(6, 2),
        until=(7, 1),
        level=Level.SUSPECT,
        symptom="programs that use MSA on MIPS release 6 compute wrong results",
        sources=(_QEMU + "1531",),
    ),
    KnownBad(
        targets=("arm", "i386", "i486"),
        since=(9, 1),
        until=(9, 1, 1),
        level=Level.BAD,
        symptom="nothing starts: unable to find a guest_base for the address space",
        sources=(_QEMU + "2598",),
        hosts=("riscv64",),
    ),
)
"""What is known, of QEMU's user mode. Each row was read at its sources."""


def known(
    target: str, version: Version, host: str, kernel: Version, fixed_position: bool
) -> list[KnownBad]:
    """The rows that concern a QEMU of `version` for the target of that name, worst first.

    `host` is the target's name of the machine it runs on, `kernel` that machine's Linux version,
    `fixed_position` whether this QEMU is no position-independent program.
    """
    rows = [
        row
        for row in KNOWN_BAD
        if (not row.targets or target in row.targets)
        and row.since <= version < row.until
        and (not row.hosts or host in row.hosts)
        and kernel >= row.kernel
        and (fixed_position or not row.fixed_position)
    ]
    return sorted(rows, key=lambda row: row.level)
