"""The catalogue: which CPUs QEMU's user mode emulates, and how the kernel recognises their
programs.

A target is one QEMU user-mode CPU with the ELF magic and mask of its programs. Magic, mask and
family are those of QEMU's scripts/qemu-binfmt-conf.sh, so that an entry of maid's catches exactly
what the distributions' entries catch. One target serves several platforms (arm: v5, v6 and v7);
several have no OCI platform at all.

The catalogue is plain data and a few look-ups. It knows nothing of what is installed or registered,
and executes nothing.

**Credentials (flags O and C).** With C the kernel takes user and capabilities from the foreign
program, so that setuid works (su, sudo, ping in a container); it implies O, which also makes
programs executable that may not be read. Without C a setuid program runs as its caller. The targets
that serve an OCI platform have both by default, because whole distributions are run in containers
of those platforms and break without setuid. The others have neither: nobody runs a distribution on
them through maid, and under C the trust in a setuid program becomes trust in the emulator that runs
it as root, which is not worth giving for nothing.
"""

import platform as _machine
import sys
from dataclasses import dataclass

from maid.emulation import cpus, programs
from maid.emulation.programs import PROBE_OUTPUT, PROBE_STATUS
from maid.errors import MaidError
from maid.platforms import Platform, parse

__all__ = [
    "PROBE_OUTPUT",
    "PROBE_STATUS",
    "TARGETS",
    "Target",
    "family_of_host",
    "for_header",
    "for_platform",
    "own",
]


@dataclass(frozen=True)
class Target:
    """One QEMU user-mode CPU.

    `name` is QEMU's name, `magic` and `mask` the kernel's (20 or 40 bytes from offset 0), `family`
    QEMU's: CPUs of one family may run on one another natively. `machine` is ELF's e_machine, `bits`
    32 or 64, `little` the byte order. `platforms` are the normalized OCI platforms it serves, empty
    where there is none. `credentials` is the default for flags O and C, `cpu` the choice
    of a model for QEMU's option -cpu. `probe` is an ELF program that writes
    `probe_output` and exits with PROBE_STATUS. `note` says what is odd about the target, or is "".
    """

    name: str
    magic: bytes
    mask: bytes
    family: str
    machine: int
    bits: int
    little: bool
    platforms: tuple[Platform, ...]
    credentials: bool
    cpu: cpus.CpuChoice
    probe: bytes | None
    note: str

    def matches(self, header: bytes) -> bool:
        """Whether the kernel would give this target's interpreter a file that begins with `header`.

        As fs/binfmt_misc.c does it: the bytes under the mask are equal. The kernel compares with a
        buffer of 256 bytes, filled with zeros after the end of a short file.
        """
        start = header[: len(self.magic)].ljust(len(self.magic), b"\0")
        wanted = zip(start, self.magic, self.mask, strict=True)
        return all((byte ^ magic) & mask == 0 for byte, magic, mask in wanted)

    @property
    def emulator(self) -> str:
        """The name of QEMU's program after `qemu-`: `name`, but i386 for i486."""
        return "i386" if self.name == "i486" else self.name

    @property
    def probe_output(self) -> bytes:
        """What the probe writes to its standard output."""
        return programs.output(self.name)

    @property
    def reachable(self) -> bool:
        """Whether a program of this target that QEMU accepts can match magic and mask."""
        return self.probe is not None and self.matches(self.probe)


def _target(name: str, family: str, platforms: list[str], magic: str, mask: str) -> Target:
    head = bytes.fromhex(magic)
    bits, little = 32 * head[4], head[5] == 1
    machine = int.from_bytes(head[18:20], "little" if little else "big")
    return Target(
        name=name,
        magic=head,
        mask=bytes.fromhex(mask),
        family=family,
        machine=machine,
        bits=bits,
        little=little,
        platforms=tuple(parse(text).normalized() for text in platforms),
        credentials=bool(platforms),
        cpu=cpus.CHOICES.get(name, cpus.NOT_MEASURED),
        probe=programs.probe(name, machine=machine, bits=bits, little=little),
        note=_NOTES.get(name, ""),
    )


# Measured with QEMU 7.2 and the variants of the probes in tests/kernel/test_probe_programs.py.
_NOTES = {
    "microblaze": (
        "QEMU's magic has e_type in little-endian order (02 00) though the target is big-endian, so"
        " it matches no program that QEMU runs: QEMU refuses that e_type"
    ),
    "microblazeel": (
        "QEMU's magic has the old machine number 0xbaab: programs with today's number 189 run under"
        " QEMU but do not match"
    ),
}

# Each row: name, family and platforms; magic; mask. The bytes: ELF, class, data, version, OSABI,
# ABI version, padding; e_type (2 or, by the mask's fe, 3), e_machine; mips and mipsn32 go on to
# e_flags, where 0x20 is n32. OSABI is compared only by loongarch64 (0 to 3), ABI version not at all
# by mips, as its real programs use 1 to 5.
_ROWS = """
i386 i386 linux/386
  7f454c4601010100000000000000000002000300
  fffffffffffefe00fffffffffffffffffeffffff
i486 i386
  7f454c4601010100000000000000000002000600
  fffffffffffefe00fffffffffffffffffeffffff
x86_64 i386 linux/amd64
  7f454c4602010100000000000000000002003e00
  fffffffffffefe00fffffffffffffffffeffffff
alpha alpha
  7f454c4602010100000000000000000002002690
  fffffffffffefe00fffffffffffffffffeffffff
arm arm linux/arm/v5 linux/arm/v6 linux/arm/v7
  7f454c4601010100000000000000000002002800
  ffffffffffffff00fffffffffffffffffeffffff
armeb armeb
  7f454c4601020100000000000000000000020028
  ffffffffffffff00fffffffffffffffffffeffff
aarch64 arm linux/arm64
  7f454c460201010000000000000000000200b700
  ffffffffffffff00fffffffffffffffffeffffff
aarch64_be armeb
  7f454c46020201000000000000000000000200b7
  ffffffffffffff00fffffffffffffffffffeffff
sparc sparc
  7f454c4601020100000000000000000000020002
  ffffffffffffff00fffffffffffffffffffeffff
sparc32plus sparc
  7f454c4601020100000000000000000000020012
  ffffffffffffff00fffffffffffffffffffeffff
sparc64 sparc
  7f454c460202010000000000000000000002002b
  ffffffffffffff00fffffffffffffffffffeffff
ppc ppc
  7f454c4601020100000000000000000000020014
  ffffffffffffff00fffffffffffffffffffeffff
ppc64 ppc linux/ppc64
  7f454c4602020100000000000000000000020015
  ffffffffffffff00fffffffffffffffffffeffff
ppc64le ppcle linux/ppc64le
  7f454c4602010100000000000000000002001500
  ffffffffffffff00fffffffffffffffffeffff00
m68k m68k
  7f454c4601020100000000000000000000020004
  fffffffffffffe00fffffffffffffffffffeffff
mips mips linux/mips
  7f454c46010201000000000000000000000200080000000100000000000000000000000000000000
  ffffffffffffff0000fffffffffffffffffeffffffffffff00000000000000000000000000000020
mipsel mips linux/mipsle
  7f454c46010101000000000000000000020008000100000000000000000000000000000000000000
  ffffffffffffff0000fffffffffffffffeffffffffffffff00000000000000000000000020000000
mipsn32 mips
  7f454c46010201000000000000000000000200080000000100000000000000000000000000000020
  ffffffffffffff0000fffffffffffffffffeffffffffffff00000000000000000000000000000020
mipsn32el mips
  7f454c46010101000000000000000000020008000100000000000000000000000000000020000000
  ffffffffffffff0000fffffffffffffffeffffffffffffff00000000000000000000000020000000
mips64 mips linux/mips64
  7f454c4602020100000000000000000000020008
  ffffffffffffff0000fffffffffffffffffeffff
mips64el mips linux/mips64le
  7f454c4602010100000000000000000002000800
  ffffffffffffff0000fffffffffffffffeffffff
sh4 sh4
  7f454c4601010100000000000000000002002a00
  ffffffffffffff00fffffffffffffffffeffffff
sh4eb sh4
  7f454c460102010000000000000000000002002a
  ffffffffffffff00fffffffffffffffffffeffff
s390x s390x linux/s390x
  7f454c4602020100000000000000000000020016
  ffffffffffffff00fffffffffffffffffffeffff
hppa hppa
  7f454c460102010000000000000000000002000f
  ffffffffffffff00fffffffffffffffffffeffff
riscv32 riscv32
  7f454c460101010000000000000000000200f300
  ffffffffffffff00fffffffffffffffffeffffff
riscv64 riscv64 linux/riscv64
  7f454c460201010000000000000000000200f300
  ffffffffffffff00fffffffffffffffffeffffff
xtensa xtensa
  7f454c4601010100000000000000000002005e00
  ffffffffffffff00fffffffffffffffffeffffff
xtensaeb xtensaeb
  7f454c460102010000000000000000000002005e
  ffffffffffffff00fffffffffffffffffffeffff
microblaze microblaze
  7f454c460102010000000000000000000200baab
  ffffffffffffff00fffffffffffffffffeffffff
microblazeel microblazeel
  7f454c460101010000000000000000000200abba
  ffffffffffffff00fffffffffffffffffeffffff
or1k or1k
  7f454c460102010000000000000000000002005c
  ffffffffffffff00fffffffffffffffffffeffff
hexagon hexagon
  7f454c460101010000000000000000000200a400
  ffffffffffffff00fffffffffffffffffeffffff
loongarch64 loongarch linux/loong64
  7f454c4602010100000000000000000002000201
  fffffffffffffffc00fffffffffffffffeffffff
"""


def _catalogue() -> dict[str, Target]:
    lines = [line.split() for line in _ROWS.split("\n") if line]
    targets: dict[str, Target] = {}
    for (name, family, *platforms), [magic], [mask] in zip(*[iter(lines)] * 3, strict=True):
        targets[name] = _target(name, family, platforms, magic, mask)
    return targets


TARGETS: dict[str, Target] = _catalogue()
"""Every target by its name, in the order of QEMU's script."""

# What uname says for a machine, where it is not the target's name (linux, arch/*/Makefile
# UTS_MACHINE and arch/arm/kernel/setup.c). mips and sh4 say the same for both byte orders and are
# in `own`.
_MACHINES = {
    "amd64": "x86_64",
    "i586": "i386",
    "i686": "i386",
    "arm64": "aarch64",
    "armv8l": "arm",
    "armv8b": "armeb",
    "parisc": "hppa",
    "parisc64": "hppa",
    "openrisc": "or1k",
}


def for_platform(platform: Platform) -> Target | None:
    """Return the target that runs programs of `platform`, or None.

    The variant does not count: one emulated CPU runs every level of its architecture that the
    emulator knows.
    """
    wanted = platform.normalized()
    for target in TARGETS.values():
        for served in target.platforms:
            if (served.os, served.architecture) == (wanted.os, wanted.architecture):
                return target
    return None


def for_header(header: bytes) -> Target | None:
    """Return the target whose programs begin like `header` (40 bytes are enough), or None.

    No two rows overlap, so there is at most one.
    """
    return next((target for target in TARGETS.values() if target.matches(header)), None)


def own(machine: str = "", little: bool = sys.byteorder == "little") -> str:
    """Return the name of the target that this machine itself is: it must never be registered.

    `machine` is what uname says, by default of this machine, and `little` its byte order. Raises
    MaidError for a machine that no target describes.
    """
    machine = machine or _machine.machine()
    name = _MACHINES.get(machine, machine)
    if name.startswith("armv"):
        name = "arm" if name.endswith("l") else "armeb"
    elif name in ("mips", "mips64"):
        name += "el" if little else ""
    elif name.startswith("sh4"):
        name = "sh4" if little else "sh4eb"
    elif name == "xtensa":
        name = "xtensa" if little else "xtensaeb"
    elif name == "microblaze":
        name = "microblazeel" if little else "microblaze"
    if name not in TARGETS:
        raise MaidError(
            f"this machine is a {machine!r}, which no target describes",
            "maid cannot tell which programs are the machine's own, so it registers nothing here",
        )
    return name


def family_of_host(machine: str = "", little: bool = sys.byteorder == "little") -> tuple[str, ...]:
    """Return the names of the targets that this machine may run natively, its own first.

    Those of the same family and byte order: i386 and i486 on x86_64, arm on aarch64, ppc on ppc64.
    *May*: an aarch64 CPU without AArch32, or a kernel without 32-bit programs, does not, which only
    a probe can tell. Arguments and errors are those of `own`.
    """
    name = own(machine, little)
    mine = TARGETS[name]
    others = [
        target.name
        for target in TARGETS.values()
        if (target.family, target.little) == (mine.family, mine.little) and target.name != name
    ]
    return (name, *others)
