"""The machine code of the probes: write a line to standard output, then exit with a status.

For every target of the catalogue the same two system calls, write(1, DATA_ADDRESS, PROBE_LENGTH)
and exit(PROBE_STATUS), as instructions with their assembler's mnemonics. A probe that only exited
could be answered by a shell or by an emulator that dies with the right status; one that also says
the target's name cannot be answered by the wrong emulator.

Sources. Calling conventions: syscall(2), "Architecture calling conventions", and QEMU's
linux-user/*/cpu_loop.c. Numbers: the kernel's arch/*/kernel/syscalls/syscall*.tbl, and
include/uapi/asm-generic/unistd.h for aarch64, hexagon, loongarch64, or1k and riscv. Encodings: GNU
as 2.40 and LLVM 14 and 21; microblaze and big-endian xtensa, for which no assembler was at hand,
from the instruction set manuals. All are executed by tests/kernel/test_probe_programs.py. It knows
nothing of magic, masks or platforms.
"""

import struct
from dataclasses import dataclass

from maid import elf

PROBE_STATUS = 42
# One length for all, so that both byte orders of an architecture share their instructions.
PROBE_LENGTH = 24
# `%` the target's name, padded with spaces. The longest, microblazeel, fits exactly.
PROBE_OUTPUT = b"maid probe %-12s\n"


@dataclass(frozen=True)
class _Code:
    """Instructions as numbers of `width` bytes (1 for byte sequences), and the ELF flags they need.

    `little` is the order in which the instructions are stored, None where that is the data's order.
    """

    instructions: tuple[int, ...]
    width: int = 4
    flags: int = 0
    little: bool | None = None

    def encode(self, little: bool) -> bytes:
        order = "<" if (little if self.little is None else self.little) else ">"
        unit = {1: "B", 2: "H", 4: "I"}[self.width]
        return struct.pack(f"{order}{len(self.instructions)}{unit}", *self.instructions)


def _hex(*lines: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex("".join(lines)))


_I386 = _Code(  # int 0x80; number in eax; ebx, ecx, edx. write 4, exit 1
    _hex(
        "b8 04000000",  # mov $4, %eax
        "bb 01000000",  # mov $1, %ebx
        "b9 80004000",  # mov $0x400080, %ecx
        "ba 18000000",  # mov $24, %edx
        "cd80",  # int $0x80
        "b8 01000000",  # mov $1, %eax
        "bb 2a000000",  # mov $42, %ebx
        "cd80",  # int $0x80
    ),
    width=1,
)
_X86_64 = _Code(  # syscall; number in rax; rdi, rsi, rdx. write 1, exit 60
    _hex(
        "b8 01000000",  # mov $1, %eax
        "bf 01000000",  # mov $1, %edi
        "be 80004000",  # mov $0x400080, %esi
        "ba 18000000",  # mov $24, %edx
        "0f05",  # syscall
        "b8 3c000000",  # mov $60, %eax
        "bf 2a000000",  # mov $42, %edi
        "0f05",  # syscall
    ),
    width=1,
)
_ALPHA = _Code(  # callsys; number in v0; a0 to a2. write 4, exit 1
    (
        0x201F0004,  # lda $0, 4($31)
        0x221F0001,  # lda $16, 1($31)
        0x263F0040,  # ldah $17, 0x40($31)
        0x22310080,  # lda $17, 0x80($17)
        0x225F0018,  # lda $18, 24($31)
        0x00000083,  # callsys
        0x201F0001,  # lda $0, 1($31)
        0x221F002A,  # lda $16, 42($31)
        0x00000083,  # callsys
    )
)
_ARM_INSTRUCTIONS = (  # svc 0 (EABI); number in r7; r0 to r2. write 4, exit 1
    0xE3A07004,  # mov r7, #4
    0xE3A00001,  # mov r0, #1
    0xE3A01501,  # mov r1, #0x400000
    0xE3811080,  # orr r1, r1, #0x80
    0xE3A02018,  # mov r2, #24
    0xEF000000,  # svc #0
    0xE3A07001,  # mov r7, #1
    0xE3A0002A,  # mov r0, #42
    0xEF000000,  # svc #0
)
_ARM = _Code(_ARM_INSTRUCTIONS, flags=0x05000000)  # EF_ARM_EABI_VER5
# EF_ARM_BE8: big-endian data, little-endian instructions, as ARMv6 and later have it.
_ARMEB = _Code(_ARM_INSTRUCTIONS, flags=0x05800000, little=True)
_AARCH64 = _Code(  # svc 0; number in x8; x0 to x2. write 64, exit 93
    (
        0xD2800808,  # mov x8, #64
        0xD2800020,  # mov x0, #1
        0xD2A00801,  # movz x1, #0x40, lsl #16
        0xF2801001,  # movk x1, #0x80
        0xD2800302,  # mov x2, #24
        0xD4000001,  # svc #0
        0xD2800BA8,  # mov x8, #93
        0xD2800540,  # mov x0, #42
        0xD4000001,  # svc #0
    ),
    little=True,  # aarch64_be too: A64 instructions are always little-endian
)


def _sparc(trap: int, flags: int = 0) -> _Code:
    """`ta trap`; number in g1; o0 to o2. write 4, exit 1."""
    return _Code(
        (
            0x82102004,  # mov 4, %g1
            0x90102001,  # mov 1, %o0
            0x13001000,  # sethi %hi(0x400080), %o1
            0x92126080,  # or %o1, %lo(0x400080), %o1
            0x94102018,  # mov 24, %o2
            0x91D02000 | trap,  # ta trap
            0x82102001,  # mov 1, %g1
            0x9010202A,  # mov 42, %o0
            0x91D02000 | trap,  # ta trap
        ),
        flags=flags,
    )


_PPC_INSTRUCTIONS = (  # sc; number in r0; r3 to r5. write 4, exit 1
    0x38000004,  # li 0, 4
    0x38600001,  # li 3, 1
    0x3C800040,  # lis 4, 0x40
    0x60840080,  # ori 4, 4, 0x80
    0x38A00018,  # li 5, 24
    0x44000002,  # sc
    0x38000001,  # li 0, 1
    0x3860002A,  # li 3, 42
    0x44000002,  # sc
)
_M68K = _Code(  # trap #0; number in d0; d1 to d3. write 4, exit 1
    (
        *(0x7004,),  # moveq #4, %d0
        *(0x7201,),  # moveq #1, %d1
        *(0x243C, 0x0040, 0x0080),  # movel #0x400080, %d2
        *(0x7618,),  # moveq #24, %d3
        *(0x4E40,),  # trap #0
        *(0x7001,),  # moveq #1, %d0
        *(0x722A,),  # moveq #42, %d1
        *(0x4E40,),  # trap #0
    ),
    width=2,
)


def _mips(write: int, exit: int, flags: int) -> _Code:
    """`syscall`; number in v0; a0 to a2. The numbers differ by ABI: o32 4000 +, n64 5000 +, n32
    6000 +."""
    return _Code(
        (
            0x24020000 | write,  # li $2, write
            0x24040001,  # li $4, 1
            0x3C050040,  # lui $5, 0x40
            0x34A50080,  # ori $5, $5, 0x80
            0x24060018,  # li $6, 24
            0x0000000C,  # syscall
            0x24020000 | exit,  # li $2, exit
            0x2404002A,  # li $4, 42
            0x0000000C,  # syscall
        ),
        flags=flags,
    )


# EF_MIPS_ARCH_32 | E_MIPS_ABI_O32; EF_MIPS_ARCH_64 | EF_MIPS_ABI2; EF_MIPS_ARCH_64
_MIPS_O32 = _mips(4004, 4001, 0x50001000)
_MIPS_N32 = _mips(6001, 6058, 0x60000020)
_MIPS_N64 = _mips(5001, 5058, 0x60000000)

_SH4 = _Code(  # trapa #0x10 + arguments; number in r3; r4 to r6. write 4, exit 1
    (
        0xE304,  # mov #4, r3
        0xE401,  # mov #1, r4
        0xE540,  # mov #0x40, r5
        0x4528,  # shll16 r5
        0x7540,  # add #0x40, r5
        0x7540,  # add #0x40, r5
        0xE618,  # mov #24, r6
        0xC313,  # trapa #0x13
        0xE301,  # mov #1, r3
        0xE42A,  # mov #42, r4
        0xC311,  # trapa #0x11
    ),
    width=2,
    flags=9,  # EF_SH4
)
_S390X = _Code(  # svc number; r2 to r4. write 4, exit 1
    _hex(
        "a729 0001",  # lghi %r2, 1
        "c031 00400080",  # lgfi %r3, 0x400080
        "a749 0018",  # lghi %r4, 24
        "0a04",  # svc 4
        "a729 002a",  # lghi %r2, 42
        "0a01",  # svc 1
    ),
    width=1,
)
# ble 0x100(%sr2, %r0); number in r20, set in the delay slot; r26 to r24. write 4, exit 1
_HPPA = _Code(
    (
        0x341A0002,  # ldi 1, %r26
        0x23200008,  # ldil L%0x400080, %r25
        0x37390100,  # ldo R%0x400080(%r25), %r25
        0x34180030,  # ldi 24, %r24
        0xE4008200,  # ble 0x100(%sr2, %r0)
        0x34140008,  # ldi 4, %r20
        0x341A0054,  # ldi 42, %r26
        0xE4008200,  # ble 0x100(%sr2, %r0)
        0x34140002,  # ldi 1, %r20
    ),
    flags=0x210,  # EFA_PARISC_1_1
)
_RISCV = _Code(  # ecall; number in a7; a0 to a2. write 64, exit 93
    (
        0x04000893,  # li a7, 64
        0x00100513,  # li a0, 1
        0x004005B7,  # lui a1, 0x400
        0x08058593,  # addi a1, a1, 0x80
        0x01800613,  # li a2, 24
        0x00000073,  # ecall
        0x05D00893,  # li a7, 93
        0x02A00513,  # li a0, 42
        0x00000073,  # ecall
    )
)
# syscall; number in a2; a6, a3, a4. write 13, exit 118. The big-endian encoding keeps the fields in
# the opposite order (Xtensa ISA manual, 7.3): the halves of each byte change places, except in an
# 8-bit immediate.
_XTENSA = _Code(
    _hex(
        "22a00d",  # movi a2, 13
        "62a001",  # movi a6, 1
        "32a400",  # movi a3, 0x400
        "403311",  # slli a3, a3, 12
        "32d301",  # addmi a3, a3, 0x100
        "32c380",  # addi a3, a3, -128
        "42a018",  # movi a4, 24
        "005000",  # syscall
        "22a076",  # movi a2, 118
        "62a02a",  # movi a6, 42
        "005000",  # syscall
    ),
    width=1,
    flags=0x300,  # E_XTENSA_MACH, EF_XTENSA_XT_INSN and _LIT, as GNU ld sets them
)
_XTENSAEB = _Code(
    _hex(
        "220a0d",  # movi a2, 13
        "260a01",  # movi a6, 1
        "234a00",  # movi a3, 0x400
        "043311",  # slli a3, a3, 12
        "233d01",  # addmi a3, a3, 0x100
        "233c80",  # addi a3, a3, -128
        "240a18",  # movi a4, 24
        "000500",  # syscall
        "220a76",  # movi a2, 118
        "260a2a",  # movi a6, 42
        "000500",  # syscall
    ),
    width=1,
    flags=0x300,
)
_MICROBLAZE = _Code(  # brki r14, 8; number in r12; r5 to r7. write 4, exit 1
    (
        0x31800004,  # addik r12, r0, 4
        0x30A00001,  # addik r5, r0, 1
        0xB0000040,  # imm 0x40
        0x30C00080,  # addik r6, r0, 0x80
        0x30E00018,  # addik r7, r0, 24
        0xB9CC0008,  # brki r14, 8
        0x31800001,  # addik r12, r0, 1
        0x30A0002A,  # addik r5, r0, 42
        0xB9CC0008,  # brki r14, 8
    )
)
_OR1K = _Code(  # l.sys 1; number in r11; r3 to r5. write 64, exit 93
    (
        0xA9600040,  # l.ori r11, r0, 64
        0xA8600001,  # l.ori r3, r0, 1
        0x18800040,  # l.movhi r4, 0x40
        0xA8840080,  # l.ori r4, r4, 0x80
        0xA8A00018,  # l.ori r5, r0, 24
        0x20000001,  # l.sys 1
        0xA960005D,  # l.ori r11, r0, 93
        0xA860002A,  # l.ori r3, r0, 42
        0x20000001,  # l.sys 1
    )
)
_HEXAGON = _Code(  # trap0(#1); number in r6; r0 to r2. write 64, exit 93
    (
        0x7800C806,  # r6 = #64
        0x7800C020,  # r0 = #1
        *(0x00044002, 0x7800C001),  # r1 = ##0x400080
        0x7800C302,  # r2 = #24
        0x5400C004,  # trap0(#1)
        0x7800CBA6,  # r6 = #93
        0x7800C540,  # r0 = #42
        0x5400C004,  # trap0(#1)
    ),
    flags=0x60,  # EF_HEXAGON_MACH_V60; QEMU takes all versions as its v67
)
_LOONGARCH64 = _Code(  # syscall 0; number in a7; a0 to a2. write 64, exit 93
    (
        0x0381000B,  # ori $a7, $zero, 64
        0x03800404,  # ori $a0, $zero, 1
        0x14008005,  # lu12i.w $a1, 0x400
        0x038200A5,  # ori $a1, $a1, 0x80
        0x03806006,  # ori $a2, $zero, 24
        0x002B0000,  # syscall 0
        0x0381740B,  # ori $a7, $zero, 93
        0x0380A804,  # ori $a0, $zero, 42
        0x002B0000,  # syscall 0
    ),
    flags=0x43,  # EF_LOONGARCH_OBJABI_V1 | EF_LOONGARCH_ABI_DOUBLE_FLOAT
)

_CODE = {
    "i386": _I386,
    "i486": _I386,
    "x86_64": _X86_64,
    "alpha": _ALPHA,
    "arm": _ARM,
    "armeb": _ARMEB,
    "aarch64": _AARCH64,
    "aarch64_be": _AARCH64,
    "sparc": _sparc(0x10),
    "sparc32plus": _sparc(0x10, flags=0x100),  # EF_SPARC_32PLUS
    "sparc64": _sparc(0x6D),
    "ppc": _Code(_PPC_INSTRUCTIONS),
    # ELFv2: the entry point is code. With ELFv1, the default for big-endian, it would be a
    # descriptor.
    "ppc64": _Code(_PPC_INSTRUCTIONS, flags=2),
    "ppc64le": _Code(_PPC_INSTRUCTIONS, flags=2),
    "m68k": _M68K,
    "mips": _MIPS_O32,
    "mipsel": _MIPS_O32,
    "mipsn32": _MIPS_N32,
    "mipsn32el": _MIPS_N32,
    "mips64": _MIPS_N64,
    "mips64el": _MIPS_N64,
    "sh4": _SH4,
    "sh4eb": _SH4,
    "s390x": _S390X,
    "hppa": _HPPA,
    "riscv32": _RISCV,
    "riscv64": _RISCV,
    "xtensa": _XTENSA,
    "xtensaeb": _XTENSAEB,
    "microblaze": _MICROBLAZE,
    "microblazeel": _MICROBLAZE,
    "or1k": _OR1K,
    "hexagon": _HEXAGON,
    "loongarch64": _LOONGARCH64,
}


def output(name: str) -> bytes:
    """Return what the probe of the target `name` writes: PROBE_LENGTH bytes."""
    return PROBE_OUTPUT % name.encode()


def probe(name: str, *, machine: int, bits: int, little: bool) -> bytes:
    """Return the probe of the target `name` as an ELF file.

    `machine`, `bits` and `little` are its e_machine, its class (32 or 64) and its byte order.
    Raises KeyError for a name that is not in the catalogue.
    """
    code = _CODE[name]
    return elf.minimal(
        machine=machine,
        bits=bits,
        little=little,
        flags=code.flags,
        code=code.encode(little),
        data=output(name),
    )
