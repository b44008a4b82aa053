"""clang, lld and LLVM's tools: the native ones of the same build, for the foreign default target.

Debian builds LLVM with itself, from one source for all machines, and every LLVM makes code for all
targets. Where the host could show was looked for in the two builds (1:19.1.7-3 of Debian 13): their
symbols, what they call, and AArch64's fused multiply-adds, which x86-64's build has not. LLVM folds
in its own soft floating point and weighs in doubles, one IEEE operation at a time. What is left is
put right or left to QEMU:

- The default target (shim_llvm.c).
- The functions of libm that LLVM calls to fold theirs: acos, asin, atan, atan2, cos, cosh, exp,
  log, log10, log2, pow (for exp2 too), sin, sinh, tan and tanh gave the same bits and exceptions in
  glibc 2.41 of both for 7 * 10^6 arguments each, on an x86-64 with FMA and AVX2; fmod and sqrt are
  exact. (exp2 itself would differ, in exp2(-0.3) for one: glibc has no variant of it with FMA.)
- log of 128 bits: only hosts whose compiler has __float128 fold it (folds_no_quad).
- 31 fused operations: in profiles' counts, in -mllvm's samplings, in ld.lld's layout by a call
  graph (shim_llvm.c), for AMD's GPUs: the rules below; in graphs for people; in a cost of PowerPC's
  that is exact; in __builtin_expect_with_probability, whose weights are rounded up to integers: of
  all doubles between 0 and 1 that shows in six, such as 0.24999999976716938.
- How the host is asked: -mcpu=native, and LIBRARY_PATH, which only a compiler for its own machine
  reads.
"""

from __future__ import annotations

import re

from maid.acceleration import records
from maid.acceleration.model import Place, Tool
from maid.acceleration.records import Rule
from maid.acceleration.relocate import RelocationError
from maid.acceleration.respell import answers

_VERSION = "19"
_COMPARED = "1:19.1.7-3"
_WHY = "it is built from the same source by the same compiler, and makes code for every target"

# LLVM's ConstantFoldScalarCall1: `if (type is fp128 && intrinsic is log) …`, else on to what folds
# half, float and double. cmp $FP128TyID, %ecx; jne …; cmp $log, %r15d; jne …; mov %rsi, %rdi;
# call convertToQuad; call logf128
_QUAD = re.compile(
    rb"\x83\xf9\x05(?P<jump>\x0f\x85(?P<distance>.{4}))"
    rb"\x41\x81\xff.{4}\x0f\x85.{4}\x48\x89\xf7\xe8.{4}\xe8.{4}\xe8",
    re.S,
)


def folds_no_quad(data: bytes, place: Place) -> bytes:
    """A patch for libLLVM: fold no function of 128-bit floating point, as a build without a
    __float128 does: the jump over that becomes unconditional. Raises RelocationError."""
    found = list(_QUAD.finditer(data))
    if len(found) != 1:
        raise RelocationError(f"it folds 128-bit floating point in {len(found)} places")
    jump, distance = found[0].start("jump"), found[0].group("distance")
    # nop; jmp: as long as jne, and from the same place.
    return data[:jump] + b"\x90\xe9" + distance + data[jump + 6 :]


_LIBRARIES = ((f"libLLVM.so.{_VERSION}*", folds_no_quad),)

# What has fused operations: what is done with a profile, and for AMD's GPUs.
_PROFILES = ("-fprofile", "-fauto-profile", "-fcs-profile", "-fmemory-profile")
_FUSED = tuple(
    records.argument(prefix)
    for prefix in (
        *_PROFILES,
        "-mllvm",
        *(f"{option}{gpu}" for gpu in ("amdgcn", "r600") for option in ("", "--target=")),
    )
)

_CLANG_RULES = (
    records.UTF8_LOCALE,
    *_FUSED,
    records.argument_with("=native"),
    # Options that are not seen here.
    records.argument("@"),
    records.argument("--config"),
    records.environment("CCC_OVERRIDE_OPTIONS"),
    *(
        records.exists(f"/usr/lib/llvm-{_VERSION}/bin/{name}.cfg")
        for name in (
            "clang",
            "clang++",
            "clang-cpp",
            "{cpu}-unknown-linux-gnu",
            "{cpu}-unknown-linux-gnu-clang",
            "{cpu}-unknown-linux-gnu-clang++",
            "{cpu}-unknown-linux-gnu-clang-cpp",
        )
    ),
    # Foreign libraries.
    records.argument("-fplugin"),
    records.argument("-fpass-plugin"),
    records.argument_is("-load"),
    # Of a compiler for its own machine only.
    records.environment("LIBRARY_PATH"),
    # Two targets at once, one of them the host.
    records.argument("-fopenmp-targets"),
    records.argument("--offload"),
    records.argument("--cuda"),
    records.argument("--hip"),
    records.argument_is("cuda"),
    records.argument_is("hip"),
    records.argument_with(".cu"),
    records.argument_with(".hip"),
    # Says which CPU it runs on.
    records.argument("-version"),
)

_LLD_RULES = (
    records.UTF8_LOCALE,
    *_FUSED,
    records.argument("@"),
    records.argument("--mllvm"),
    # LLVM's own options, and profiles, of -flto.
    records.argument("-plugin-opt=-"),
    records.argument("--plugin-opt=-"),
    records.argument_with("profile"),
    records.argument_with("=native"),
    records.argument("--load-pass-plugin"),
    records.argument("-load-pass-plugin"),
)

_TOOL_RULES = (
    records.UTF8_LOCALE,
    records.argument("@"),
    # Says which CPU it runs on.
    records.argument("--version"),
    records.argument("-version"),
    records.argument_with("=native"),
)

_TOOLS = (
    "llvm-ar",
    "llvm-cxxfilt",
    "llvm-nm",
    "llvm-objcopy",
    "llvm-objdump",
    "llvm-readobj",
    "llvm-size",
    "llvm-strings",
)


def _llvm(name: str, package: str, rules: tuple[Rule, ...], *libraries: str) -> Tool:
    path = f"/usr/lib/llvm-{_VERSION}/bin/{name}"
    return Tool(
        f"{name}-{_VERSION}",
        f"{package}-{_VERSION}",
        path,
        _WHY,
        rules=(*rules, records.same_file(path)),
        patches=(answers(path, triple="{cpu}-unknown-linux-gnu"),),
        decisive=tuple(
            f"/usr/lib/{{gnu}}/{library}"
            for library in (*libraries, f"libLLVM.so.{_VERSION}.1", "libm.so.6")
        ),
        preload="libmaid-shim.so",
        foreign=("arm64",),
        libraries=_LIBRARIES,
        features=("fma", "avx2"),
        compared=_COMPARED,
        on_demand=True,
    )


TOOLS = (
    _llvm("clang", "clang", _CLANG_RULES, f"libclang-cpp.so.{_VERSION}.1"),
    _llvm("lld", "lld", _LLD_RULES),
    *(_llvm(name, "llvm", _TOOL_RULES) for name in _TOOLS),
)
"""All of them."""
