"""Which CPU model each target is emulated with, and why.

A model decides two things: which programs run at all (an instruction that the model lacks ends a
program with SIGILL, and glibc refuses to start where its own level is missing), and which code
programs choose for themselves, which is not equally quick to emulate. So the order is: what current
distributions are compiled for must run; then speed; and QEMU's own default where nothing is gained,
because it needs no copy of the interpreter and follows QEMU.

Every choice names models in order of preference: an older QEMU gets the first that it knows, and
its default where it knows none. Plain data; emulators.py asks QEMU and bakes the model in.

The ratios are CPU seconds of QEMU's default model divided by the model's (above 1: faster), in the
order compile (gcc -O2 -g), Python loop, vector code and libc's string functions, SHA-256 in Python;
by `scripts/bench cpu` on x86-64 with QEMU 7.2 and 10.0, in Debian 12 and 13 (riscv64 and
loongarch64: of late 2026). One run of two to three rounds on a busy machine: differences below a
twentieth mean nothing.
"""

from dataclasses import dataclass

__all__ = ["CHOICES", "NOT_MEASURED", "CpuChoice"]


@dataclass(frozen=True)
class CpuChoice:
    """Models for QEMU's option -cpu, best first; none: QEMU's default. `reason` is for people."""

    models: tuple[str, ...]
    reason: str


NOT_MEASURED = CpuChoice((), "QEMU's default: no current distribution to measure with")

CHOICES: dict[str, CpuChoice] = {
    "aarch64": CpuChoice(
        ("neoverse-n1", "max,pauth=off"),
        "neoverse-n1 is ARMv8.2 with atomics, half floats and dot products: the level that Amazon"
        " Linux 2023 is compiled for, above ARMv8.0 of the others. It has no pointer"
        " authentication, which the default, max, computes with a cipher (7.2): 1.4, 12, 1.1, 2.8"
        " times as fast with QEMU 7.2; 1.05, 1.7, 0.94, 1.2 with 10.0. cortex-a57 is as fast and"
        " lacks ARMv8.2; a64fx has SVE, at half the speed in vector code;"
        " max,pauth-impdef=on runs everything and gains 1.3, 7, 1.0, 2.4 with 7.2 and nothing with"
        " 10.0. Programs compiled for ARMv8.3 or more, or that must have SVE, need cpu = max."
        " max,pauth=off (1.4, 12, 1.0, 2.4) is for QEMUs without neoverse-n1",
    ),
    "arm": CpuChoice(
        (),
        "the default, any or max, has all of ARMv7 with NEON, and v5, v6 and v7 run on it alike."
        " cortex-a7 and cortex-a15 are as fast (1.0, 1.0, 1.0, 1.0 with QEMU 7.2 and 10.0); nothing"
        " older than they, cortex-a8 and a9 runs Debian's armhf",
    ),
    "i386": CpuChoice(
        (),
        "every model from pentium2 on runs Debian for i386 (made for an i686). The default has"
        " all that programs may look for; qemu32, which has less, gains little (1.0, 1.0,"
        " 1.1, 1.1 with QEMU 7.2; 1.0, 1.05, 1.1, 0.9 with 10.0), Haswell nothing",
    ),
    "loongarch64": CpuChoice(
        (),
        "la464, the only other model, is the same (0.95, 0.95, 1.0, 1.0 with QEMU 10.0). QEMU 7.2"
        " has no LSX, without which Debian's programs do not start under any model",
    ),
    "mips64el": CpuChoice(
        (),
        "five models run Debian 12 (MIPS64R2): MIPS64R2-generic, 5KEf, Loongson-3A1000 and 3A4000,"
        " mips64dspr2. All are within a twentieth of the default (QEMU 7.2)",
    ),
    "ppc64le": CpuChoice(
        (),
        "the default is POWER9, the level of RHEL 9 and 10 and of Ubuntu since 22.04. power10 gains"
        " nothing (0.94, 0.98, 1.0, 1.0 with QEMU 7.2; 0.82, 0.83, 1.0, 0.86 with 10.0), and power8"
        " lacks what they are compiled for",
    ),
    "riscv64": CpuChoice(
        (),
        "the default of QEMU 10, max, has RVA23, which Ubuntu is compiled for since 25.10. rv64"
        " (without vectors) gains little: 1.03, 1.09, 1.13, 1.09 with QEMU 10.0; rva23s64 nothing."
        " QEMU 7.2 knows nothing above RV64GC, where all models are the same",
    ),
    "s390x": CpuChoice(
        (),
        "the default has all that QEMU can do, the vector facilities of z14 (RHEL 9) among"
        " it. max is the same. The models of real machines from z990 on do not start: QEMU lacks"
        " their cryptography; z900 and z800 do, and lack what distributions are compiled for",
    ),
    "x86_64": CpuChoice(
        (),
        "the default, max, has x86-64-v3 (RHEL 10) and is the fastest: with QEMU 7.2 and 10.0,"
        " vector code is 1.4 times as fast as with qemu64 (v1) and Nehalem (v2) and with Haswell"
        " (v3), the rest the same",
    ),
}
"""The choice for each target that was measured, by its name."""
