"""What a tool is: which program of a distribution may be replaced by which native one, and when.

The tables (basics.py, compilers.py, perl.py, …) are made of these values; tools.py puts them
together. A tool stands in the tables only if what it writes cannot depend on the machine it runs
on, and says why. Everything here is plain data: getting packages, changing files and filling the
store is done elsewhere.

Texts of a tool may hold fields, filled in for each pair of machines: `{gnu}` is the foreign
machine's GNU triplet, which is also its Debian multiarch name (aarch64-linux-gnu), `{native}` the
host's, `{mount}` the set's directory as programs see it (/dev/.maid/<set>), `{arch}` Debian's name
of the foreign architecture and `{cpu}` the first part of its triplet.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Flag, auto
from pathlib import Path

from maid.acceleration.records import MOUNT, Rule


@dataclass(frozen=True)
class Machine:
    """One architecture as Debian and the GNU tools name it. `bits` is 32 or 64, `little` the byte
    order, `signals` whether signals and errors have the numbers of most machines (MIPS, Alpha,
    SPARC and HP-PA have others: <asm/signal.h>, <asm/errno.h>), `elf` is ELF's e_machine, `uname`
    what uname(2) calls it."""

    debian: str
    gnu: str
    uname: str
    elf: int
    bits: int = 64
    little: bool = True
    signals: bool = True


MACHINES = {
    machine.debian: machine
    for machine in (
        Machine("amd64", "x86_64-linux-gnu", "x86_64", 62),
        Machine("arm64", "aarch64-linux-gnu", "aarch64", 183),
        Machine("riscv64", "riscv64-linux-gnu", "riscv64", 243),
        Machine("ppc64el", "powerpc64le-linux-gnu", "ppc64le", 21),
        Machine("s390x", "s390x-linux-gnu", "s390x", 22, little=False),
        Machine("loong64", "loongarch64-linux-gnu", "loongarch64", 258),
        Machine("armhf", "arm-linux-gnueabihf", "armv7l", 40, bits=32),
        Machine("armel", "arm-linux-gnueabi", "armv7l", 40, bits=32),
        Machine("i386", "i386-linux-gnu", "i686", 3, bits=32),
        Machine("mips64el", "mips64el-linux-gnuabi64", "mips64", 8, signals=False),
    )
}
"""The architectures of Debian and Ubuntu that have an OCI platform, by Debian's name."""


class Need(Flag):
    """What the two machines must have in common for a tool to write the same."""

    NOTHING = 0
    WIDTH = auto()
    """The size of pointers and of size_t."""
    ORDER = auto()
    """The byte order."""
    SIGNALS = auto()
    """The numbers of signals and errors."""
    ALL = WIDTH | ORDER | SIGNALS


def met(need: Need, native: Machine, foreign: Machine) -> bool:
    """Whether the two machines have in common what is needed."""
    return (
        (Need.WIDTH not in need or native.bits == foreign.bits)
        and (Need.ORDER not in need or native.little == foreign.little)
        and (Need.SIGNALS not in need or native.signals == foreign.signals)
    )


@dataclass(frozen=True)
class Place:
    """Where a set is and whom it serves. `name` is the set's (relocate.NAME_LENGTH characters),
    `root` the directory in which it is being made."""

    name: str
    root: Path
    native: Machine
    foreign: Machine

    @property
    def mount(self) -> str:
        """The set's directory as a program in a container sees it."""
        return f"{MOUNT}/{self.name}"

    def fill(self, text: str) -> str:
        """`text` with its fields filled in."""
        return (
            text.replace("{gnu}", self.foreign.gnu)
            .replace("{native}", self.native.gnu)
            .replace("{arch}", self.foreign.debian)
            .replace("{cpu}", self.foreign.gnu.partition("-")[0])
            .replace("{mount}", self.mount)
        )


Patch = Callable[[bytes, Place], bytes]
"""Changes the content of a native file: (content, place) -> content. Raises RelocationError."""


Proof = Callable[[bytes, bytes, Place], None]
"""Compares the changed native file with the foreign one: (native, foreign, place). Raises
RelocationError when they are not shown to do the same."""


@dataclass(frozen=True)
class Extra:
    """A further native file that a tool needs in the store: taken from `path` of the native package
    `package`, put to `to` in the set's directory. `library`: an ELF file whose own libraries are
    needed too."""

    package: str
    path: str
    to: str
    library: bool = False
    patches: tuple[Patch, ...] = ()


@dataclass(frozen=True)
class Tool:
    """One program that may be replaced.

    `path` is the program in the foreign package `package`; `native_path` and `native_package` are
    the program that stands in, the same unless said otherwise. Their versions must be of one source
    version (debian.py). `why` says in a sentence why what it writes cannot depend on the machine.
    `rules` say when it steps aside at run time, `needs` what the machines must share, `patches`
    change the native file after relocation, in this order. `decisive` are libraries of the root
    file system (paths) on whose version the output depends: their build must be the archive's own.
    `preload` names a library among maid's compiled helpers that is loaded before the tool's own.
    `extras` are further files. `foreign` limits it to these Debian architectures, () is all.
    `libraries` are patches for libraries of the set, by a pattern for their names (fnmatch); they
    count for the whole set. `features` are what the host's CPU must have, as in /proc/cpuinfo.
    `proof` compares the changed native file with the foreign one. `default`, a package and one it
    depends on in the releases that use the tool by default, keeps the tool out of a set where that
    is not so and its own package is not installed either: several versions of one compiler.
    `compared` is the one source version that was compared, where that cannot be told from the
    files: then both packages, and the libraries that they name, must be of the same version to the
    letter. `on_demand` keeps a tool of large packages out of a set for a root file system without
    its package.
    `path` may hold `*` and `**`: then the tool is every file of the package that matches, and
    `native_path` holds the same ones. A path that ends in .so is a module, which the shim loads.
    """

    name: str
    package: str
    path: str
    why: str
    native_package: str = ""
    native_path: str = ""
    rules: tuple[Rule, ...] = ()
    needs: Need = Need.NOTHING
    patches: tuple[Patch, ...] = ()
    decisive: tuple[str, ...] = ()
    preload: str = ""
    extras: tuple[Extra, ...] = field(default=())
    foreign: tuple[str, ...] = ()
    libraries: tuple[tuple[str, Patch], ...] = ()
    features: tuple[str, ...] = ()
    proof: Proof | None = None
    default: tuple[str, str] = ("", "")
    compared: str = ""
    on_demand: bool = False

    @property
    def twin_package(self) -> str:
        """The native package."""
        return self.native_package or self.package

    @property
    def twin_path(self) -> str:
        """The path in the native package."""
        return self.native_path or self.path

    def serves(self, native: Machine, foreign: Machine) -> bool:
        """Whether it can stand in for the foreign machine's program on the native one."""
        named = not self.foreign or foreign.debian in self.foreign
        return named and met(self.needs, native, foreign)
