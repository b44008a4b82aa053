"""perl: debhelper, debconf, autoconf, automake and much of dpkg are written in it.

The native interpreter reads the root file system's own modules (Config.pm among them, so %Config is
the foreign machine's) and differs from the foreign one in four ways, which are put right:

- The directories in @INC and the machine's name (`perl -v`) are compiled in: respell.py.
- uname(2) and /proc/self/exe ($^X) would tell: the shim answers as the foreign program's would.
- Compiled modules (auto/**/*.so) are the foreign machine's: the shim's dlopen takes their twins,
  which the store keeps like programs, by build-id. If a directory of modules holds one that has no
  twin, the shim hands the process back to QEMU before perl's main(); if such a module is loaded
  from elsewhere, and nothing has been written yet and no process started, then too.
- exp, log, sin, pow and the like come from glibc's libm, which gives the same bits on AArch64 and
  on x86-64 with FMA (measured: 10^6 arguments of each of perl's functions), but other ones without
  FMA: `features`.

perl's own arithmetic has no operation that a compiler could fuse (no fmadd in the arm64 program),
its number formats are integers and IEEE doubles, and what it prints of them comes from glibc.
"""

from __future__ import annotations

import re

from maid.acceleration import records
from maid.acceleration.model import Need, Place, Tool
from maid.acceleration.relocate import RelocationError
from maid.acceleration.respell import constants, respelled
from maid.acceleration.shells import SHIM

# Little-endian with 64 bits, the numbers of signals and errors of most machines, and a long double
# of 128 bits: nothing else has been compared.
_FOREIGN = ("arm64", "riscv64")

_CORE = (
    ("perl-base", "/usr/lib/{gnu}/perl-base/auto/**/*.so"),
    ("libperl5.36", "/usr/lib/{gnu}/perl/5.36.*/auto/**/*.so"),
    ("libperl5.38t64", "/usr/lib/{gnu}/perl/5.38.*/auto/**/*.so"),
    ("libperl5.40", "/usr/lib/{gnu}/perl/5.40.*/auto/**/*.so"),
)
"""perl's own compiled modules, in each release's packages."""

_OTHERS = (
    ("libalgorithm-diff-xs-perl", "Algorithm"),
    ("libapt-pkg-perl", "AptPkg"),
    ("libfile-fcntllock-perl", "File"),
    ("liblocale-gettext-perl", "Locale"),
    ("libtext-charwidth-perl", "Text"),
    ("libtext-iconv-perl", "Text"),
    ("libxml-libxml-perl", "XML"),
    ("libxml-parser-perl", "XML"),
)
"""Those that a build's tools bring along, with the directory below perl5/<version>/auto."""

_RULES = (
    records.UTF8_LOCALE,
    records.same_program("/usr/bin/perl"),
    # Directories of modules that the caller names: compiled ones may be among them.
    records.environment("PERL5LIB"),
    records.environment("PERLLIB"),
    records.environment("PERL5OPT"),
    records.environment("PERL5DB"),
    # The tests of a module that is being built: a compiled one without a twin, and the first line
    # of output may come before it is loaded.
    records.argument_with("blib"),
    records.environment("PERL_DL_NONLAZY"),
    # Modules installed by hand; their directory's name is in perl once more, in a form that is not
    # changed.
    records.exists("/usr/local/lib/{gnu}/perl"),
)

_FLOATS = {
    "CHAR_MAX": 255,
    "CHAR_MIN": 0,
    "FP_ILOGB0": -2147483647,
    "FP_ILOGBNAN": 2147483647,
    "LDBL_DIG": 33,
    "LDBL_MANT_DIG": 113,
}
_CONSTANTS = {
    "arm64": {
        **_FLOATS,
        "O_DIRECT": 0o200000,
        "O_DIRECTORY": 0o40000,
        "O_NOFOLLOW": 0o100000,
        "O_TMPFILE": 0o20040000,
        "FE_UPWARD": 0x400000,
        "FE_DOWNWARD": 0x800000,
        "FE_TOWARDZERO": 0xC00000,
    },
    "riscv64": {**_FLOATS, "FE_TOWARDZERO": 1, "FE_DOWNWARD": 2, "FE_UPWARD": 3},
}
"""What POSIX and Fcntl show that is not the same on x86-64 (glibc's <fcntl.h>, <limits.h>,
<fenv.h>, <math.h>, <float.h>); flags of open and directions of rounding are translated back by the
shim."""

# What @INC begins with and perl's own modules' directories are named after: 5.40.
_VERSION = re.compile(rb"\0/usr/lib/[^/\0]+/perl5/(5\.[0-9]+)\0")


def _patch(data: bytes, place: Place) -> bytes:
    version = _VERSION.search(data)
    if version is None:
        raise RelocationError("it does not say where its modules are")
    number = version.group(1).decode()
    modules = ":".join(f"/usr/lib/{{gnu}}/{each}/{number}/auto" for each in ("perl5", "perl"))
    settings = {"modules": modules, "rounding": place.foreign.debian}
    if place.foreign.debian == "arm64":
        settings["flags"] = "exchanged"
    respell = respelled("/usr/bin/perl", [("{native}", "{gnu}")], **settings)
    return respell(data, place)


TOOLS = (
    Tool(
        "perl",
        "perl-base",
        "/usr/bin/perl",
        "scripts run on the same interpreter with the root file system's own modules and answers",
        rules=_RULES,
        needs=Need.ALL,
        foreign=_FOREIGN,
        features=("fma",),
        preload=SHIM,
        patches=(_patch,),
    ),
    *(
        Tool(
            f"modules of {package}",
            package,
            path,
            "a part of perl, loaded in the place of the foreign one",
            needs=Need.ALL,
            patches=(constants(_CONSTANTS),),
            foreign=_FOREIGN,
        )
        for package, path in (
            *_CORE,
            *(
                (package, f"/usr/lib/{{gnu}}/perl5/*/auto/{directory}/**/*.so")
                for package, directory in _OTHERS
            ),
        )
    ),
)
"""The interpreter and its compiled modules."""
