"""For which architecture programs are, and whether a root file system's are for its platform.

An image says what it is for, and what is in it may be something else: an amd64 program in an arm64
image runs wherever it was tried by mistake, and nowhere else.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterable
from pathlib import Path

from maid import kernel
from maid.platforms import Platform, only

HEAD = 20
"""Bytes of an ELF file up to and with e_machine (gABI, figure 4-3)."""

_LITTLE, _BIG = 1, 2

# Class (32 or 64 bits: 1, 2), byte order and e_machine of each architecture: Go's names, and the
# numbers of include/uapi/linux/elf-em.h.
_MACHINES: dict[tuple[int, int, int], str] = {
    (1, _LITTLE, 3): "386",
    (2, _LITTLE, 62): "amd64",
    (1, _LITTLE, 40): "arm",
    (1, _BIG, 40): "armbe",
    (2, _LITTLE, 183): "arm64",
    (2, _BIG, 183): "arm64be",
    (2, _LITTLE, 258): "loong64",
    (1, _BIG, 8): "mips",
    (1, _LITTLE, 8): "mipsle",
    (2, _BIG, 8): "mips64",
    (2, _LITTLE, 8): "mips64le",
    (1, _BIG, 20): "ppc",
    (2, _BIG, 21): "ppc64",
    (2, _LITTLE, 21): "ppc64le",
    (1, _LITTLE, 243): "riscv",
    (2, _LITTLE, 243): "riscv64",
    (1, _BIG, 22): "s390",
    (2, _BIG, 22): "s390x",
    (1, _BIG, 2): "sparc",
    (2, _BIG, 43): "sparc64",
}

PROGRAMS = ("/bin/sh", "/usr/bin/env", "/bin/busybox", "/usr/bin/dpkg", "/sbin/apk", "/bin/bash")
"""Programs that tell a distribution's architecture."""


def architecture_of(head: bytes) -> str:
    """The architecture that an ELF file is for by its first 20 bytes; "" for what is no ELF file
    and for machines that no platform has."""
    if len(head) < HEAD or head[:4] != b"\x7fELF":
        return ""
    (machine,) = struct.unpack("<H" if head[5] == _LITTLE else ">H", head[18:HEAD])
    return _MACHINES.get((head[4], head[5], machine), "")


def acceptable(platform: Platform) -> frozenset[str]:
    """The architectures of programs that the platform executes."""
    platform = platform.normalized()
    return frozenset(
        {platform.architecture, *(each.architecture for each in only(platform).wanted)}
    )


def stranger(root: Path, platform: Platform, programs: Iterable[str] = ()) -> tuple[str, str]:
    """A program in the tree `root` that the platform does not execute, and its architecture.

    The first of PROGRAMS and `programs` whose architecture can be told decides; ("", "") where none
    is there or it fits. Symbolic links stay within the tree.
    """
    directory = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for path in (*PROGRAMS, *programs):
            if architecture := architecture_of(_head(directory, path)):
                return ("", "") if architecture in acceptable(platform) else (path, architecture)
        return "", ""
    finally:
        os.close(directory)


def _head(directory: int, path: str) -> bytes:
    try:
        found = kernel.open_in_root(directory, path, os.O_PATH)
    except (OSError, ValueError):
        return b""
    try:
        # Opening a FIFO or a device would have effects; this knows what it is before.
        if not stat.S_ISREG(os.fstat(found).st_mode):
            return b""
        with open(f"/proc/self/fd/{found}", "rb") as file:
            return file.read(HEAD)
    except OSError:
        return b""
    finally:
        os.close(found)
