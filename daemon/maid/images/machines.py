"""For which architecture programs are, and whether a root file system's are for its platform.

An image says what it is for, and what is in it may be something else: an amd64 program in an arm64
image runs wherever it was tried by mistake, and nowhere else.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path

from maid import elf, kernel
from maid.platforms import Platform

# e_machine, bits and byte order of each architecture's programs (System V gABI and its processor
# supplements; Linux, include/uapi/linux/elf-em.h).
_MACHINES = {
    "386": (3, 32, True),
    "amd64": (62, 64, True),
    "arm": (40, 32, True),
    "armbe": (40, 32, False),
    "arm64": (183, 64, True),
    "arm64be": (183, 64, False),
    "loong64": (258, 64, True),
    "mips": (8, 32, False),
    "mipsle": (8, 32, True),
    "mips64": (8, 64, False),
    "mips64le": (8, 64, True),
    "ppc": (20, 32, False),
    "ppc64": (21, 64, False),
    "ppc64le": (21, 64, True),
    "riscv": (243, 32, True),
    "riscv64": (243, 64, True),
    "s390": (22, 32, False),
    "s390x": (22, 64, False),
    "sparc": (2, 32, False),
    "sparc64": (43, 64, False),
}

PROGRAMS = ("/bin/sh", "/usr/bin/env", "/bin/busybox", "/usr/bin/dpkg", "/sbin/apk", "/bin/bash")
"""Programs that tell a distribution's architecture."""


def architecture_of(program: elf.Elf) -> str:
    """Go's name of the architecture that an ELF file is for, "" for one without a name."""
    found = (program.machine, program.bits, program.little)
    return next((name for name, machine in _MACHINES.items() if machine == found), "")


def fits(program: elf.Elf, platform: Platform) -> bool:
    """Whether an ELF file is of the platform's architecture; where that has no name here, True."""
    machine = _MACHINES.get(platform.normalized().architecture)
    return machine is None or machine == (program.machine, program.bits, program.little)


def stranger(root: Path, platform: Platform, programs: Iterable[str] = ()) -> tuple[str, str]:
    """A program in the tree `root` that shows that it is of another architecture, and which.

    The first of PROGRAMS and `programs` that is an ELF file decides; ("", "") where none is or it
    fits. Symbolic links stay within the tree.
    """
    directory = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for path in (*PROGRAMS, *programs):
            program = _read(directory, path)
            if program is None:
                continue
            if fits(program, platform):
                return "", ""
            return path, architecture_of(program) or f"ELF machine {program.machine}"
        return "", ""
    finally:
        os.close(directory)


def _read(directory: int, path: str) -> elf.Elf | None:
    try:
        found = kernel.open_in_root(directory, path, os.O_PATH)
    except (OSError, ValueError):
        return None
    try:
        if not stat.S_ISREG(os.fstat(found).st_mode):
            return None
        return elf.read(Path(f"/proc/self/fd/{found}"))
    except (OSError, elf.ElfError):
        return None
    finally:
        os.close(found)
