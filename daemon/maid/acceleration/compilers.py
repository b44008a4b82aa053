"""Compilers, the assembler, the linker and the other binutils.

They write code for the machine they are told, not for the one they run on. GCC's native program is
Debian's cross compiler of the same source version, made to look for everything where the foreign
one does (gcc.py); binutils are those for the foreign machine, of the same version.

The rules below are what was found by running hundreds of command lines both ways and comparing
output, messages, exit status and files (tests/kernel/test_accel_gcc.py): whatever answers otherwise
is left to the foreign program.
"""

from __future__ import annotations

from collections.abc import Iterator

from maid.acceleration import gcc, records, relocate
from maid.acceleration.model import Extra, Need, Patch, Proof, Tool
from maid.acceleration.records import Rule

_LOCALE = records.UTF8_LOCALE
_ALIKE = ("arm64", "riscv64")
"""Architectures whose programs were compared with the native ones."""

_VERSIONS = (12, 13, 14, 15, 16)
"""GCC's, from Debian 12 on. Since 13 the packages with the programs are named for the triplet, and
the compilers proper are below /usr/libexec."""

_PLUGINS = "{mount}/plugins"
_OWN_PLUGINS = "/usr/lib/bfd-plugins"

# libbfd loads the plug-ins of this directory, for objects of -flto.
_LIBRARIES = (("libbfd-*.so", relocate.text("/usr/bin/../lib/bfd-plugins", _PLUGINS)),)

_TARGET = "it is built from the same source for the same target machine, only for another host"
_OBJECTS = "what it makes follows from the files' bytes, by the same code for the same target"


def _plugin(version: int) -> str:
    """Where in a set the linker plug-in of a GCC is."""
    return f"plugins/liblto_plugin-{version}.so"


def _binutils(name: str, *rules: Rule) -> Tool:
    return Tool(
        name,
        "binutils-{gnu}",
        f"/usr/bin/{{gnu}}-{name}",
        _OBJECTS,
        rules=(_LOCALE, *rules),
        needs=Need.WIDTH | Need.ORDER,
        foreign=_ALIKE,
        libraries=_LIBRARIES,
        proof=gcc.knows_no_path,
    )


# Without plug-ins of the same GCC in the store there is nothing to read objects of -flto with; what
# the root file system has none for, the native program must not read either. Other plug-ins than
# GCC's (LLVMgold.so) are for the foreign program only.
_ARCHIVE_RULES = (
    records.missing(f"{_OWN_PLUGINS}/liblto_plugin.so"),
    records.missing(_PLUGINS),
    records.exists(f"{_OWN_PLUGINS}/LLVMgold.so"),
    *(
        records.plugin(f"/{version}/liblto_plugin.so", f"{{mount}}/{_plugin(version)}")
        for version in _VERSIONS
    ),
)

_LINKER_RULES = (
    # A response file may name a plug-in, which is a foreign library.
    records.argument("@"),
    # Of a native linker only: where to look for what libraries need (ld(1), -rpath-link).
    records.environment("LD_RUN_PATH"),
    records.environment("LD_LIBRARY_PATH"),
    # Other emulations than the usual one search other directories, and so do some native linkers:
    # that of riscv64 in this one, which nothing makes.
    records.exists("/usr/lib/{gnu}64"),
    records.argument("--sysroot"),
    records.argument_is("--verbose"),
    records.environment("LDEMULATION"),
    records.argument_with("elf32"),
    records.argument_with("linux32"),
    *(
        records.plugin(f"/{version}/liblto_plugin.so", f"{{mount}}/{_plugin(version)}")
        for version in _VERSIONS
    ),
)

_BINUTILS = (
    *(
        _binutils(name)
        for name in (
            "addr2line",
            "as",
            "c++filt",
            "elfedit",
            "objcopy",
            "objdump",
            "readelf",
            "size",
            "strings",
            "strip",
        )
    ),
    *(_binutils(name, *_ARCHIVE_RULES) for name in ("ar", "nm", "ranlib")),
    _binutils("ld.bfd", *_LINKER_RULES),
)

# An installation elsewhere than in /usr, which the programs are told of in this way.
_MOVED = tuple(
    records.environment(name)
    for name in ("GCC_EXEC_PREFIX", "GCC_ROOT", "G++_ROOT", "BINUTILS_ROOT")
)

_PROPER_RULES = (
    _LOCALE,
    *_MOVED,
    # Foreign libraries.
    records.argument("-fplugin"),
    # iconv's modules are foreign libraries too; UTF-8 needs none.
    records.argument("-finput-charset"),
    records.argument("-fexec-charset"),
    records.argument("-fwide-exec-charset"),
    # The native compiler's own has an accelerator (nvptx) configured, the cross compiler has none.
    records.argument_is("-fopenmp"),
    records.argument("-fopenacc"),
    records.argument("-foffload-abi"),
    # Lists directories that the cross compiler has not, and the time and memory it took.
    records.argument_is("-v"),
    records.argument_is("-version"),
    records.argument("--help"),
    records.argument("--version"),
    records.argument("--target-help"),
    records.argument("-fself-test"),
    # For what passes do, with addresses in memory.
    records.argument("-fdump-"),
    records.argument_is("-da"),
    records.argument("-dr"),
    # Headers by the path they were found by, which the native compiler shortens.
    records.argument("-fno-canonical-system-headers"),
    # Modules name the compiler they are of. (So do precompiled headers, which hold the compiler's
    # memory and never are the same twice; but a compiler that ignores another's makes other objects
    # of it, so they must be written natively to be read natively.)
    records.argument("-fmodule"),
)

# An unknown one has the known ones listed; only a native compiler knows "native".
_MACHINE_RULES = {"arm64": (records.argument("-march="),)}

_DRIVER_RULES = (
    _LOCALE,
    *_MOVED,
    # How it was configured.
    records.argument_is("-v"),
    records.argument_is("--verbose"),
    records.argument_is("-###"),
    records.argument_is("-dumpspecs"),
    # Options that are not seen here; specs may use what only a native compiler has.
    records.argument("@"),
    records.argument("-specs"),
    records.argument("--specs"),
    records.argument_with("=native"),
    # The programs that it starts see no OFFLOAD_TARGET_NAMES in their environment.
    records.argument("-wrapper"),
    records.argument("-no-canonical-prefixes"),
    records.argument_is("-fopenmp"),
    records.argument("-fopenacc"),
    records.argument("-foffload"),
    # With these libraries the native one passes options for the accelerator to the compiler, which
    # DW_AT_producer shows.
    *(
        records.argument_is(text)
        for text in ("-lm", "m", "-lgfortran", "gfortran", "--library=m", "--library=gfortran")
    ),
    # A language that the cross compiler is configured without.
    records.argument_with("rust"),
    records.argument_with(".rs"),
    records.exists("/usr/lib/gcc/{gnu}/specs"),
    records.exists("/usr/lib/gcc-cross/{gnu}/specs"),
)

# g++ adds -lm whenever it links.
_LINKS_LIBM = (
    *(
        records.some(prefix)
        for prefix in ("-c", "-S", "-E", "-fsyntax-only", "--version", "-dump", "-print-")
    ),
    records.argument("-coverage"),
    records.argument("-canonical"),
)


def _gcc(version: int) -> Iterator[Tool]:
    """The programs of one GCC."""
    old = version < 13
    suffix = "" if old else "-{gnu}"
    below = "lib" if old else "libexec"
    proper = f"/usr/{below}/gcc/{{gnu}}/{version}"
    fixed = records.exists(f"/usr/lib/gcc/{{gnu}}/{version}/include-fixed")
    # The compiler for the accelerator, which only the native compiler asks for (gcc-*-offload-*).
    accelerator = records.exists(f"{proper}/accel")

    def tool(
        name: str,
        package: str,
        path: str,
        rules: tuple[Rule, ...],
        *patches: Patch,
        proof: Proof | None = None,
        extras: tuple[Extra, ...] = (),
        foreign: tuple[str, ...] = _ALIKE,
    ) -> Tool:
        return Tool(
            f"{name}-{version}",
            f"{package}-{version}{suffix}",
            path,
            _TARGET,
            native_package=f"{package}-{version}-{{gnu}}",
            native_path=path.replace(f"/{below}/gcc/", f"/{below}/gcc-cross/"),
            rules=rules,
            needs=Need.WIDTH | Need.ORDER,
            patches=patches,
            proof=proof,
            extras=extras,
            foreign=foreign,
            default=("gcc", f"gcc-{version}"),
        )

    for architecture in _ALIKE:
        machine = _MACHINE_RULES.get(architecture, ())
        compiler = (*_PROPER_RULES, *machine, fixed)
        for name, package in (("cc1", "cpp"), ("cc1plus", "g++")):
            yield tool(
                name,
                package,
                f"{proper}/{name}",
                compiler,
                gcc.include_directories,
                proof=gcc.same_directories,
                foreign=(architecture,),
            )
        yield tool(
            "lto1",
            "gcc",
            f"{proper}/lto1",
            compiler,
            gcc.respelled,
            foreign=(architecture,),
        )
    yield tool(
        "lto-wrapper",
        "gcc",
        f"{proper}/lto-wrapper",
        (_LOCALE, accelerator),
        gcc.respelled,
    )
    yield tool(
        "collect2",
        "gcc",
        f"{proper}/collect2",
        (_LOCALE, *_MOVED, records.argument("@")),
        gcc.unprefixed,
        gcc.respelled,
        extras=(
            Extra(
                f"gcc-{version}-{{gnu}}",
                f"/usr/{below}/gcc-cross/{{gnu}}/{version}/liblto_plugin.so",
                _plugin(version),
                library=True,
            ),
        ),
    )
    for name in ("gcc-ar", "gcc-nm", "gcc-ranlib"):
        path = f"/usr/bin/{{gnu}}-{name}-{version}"
        rules = (_LOCALE, *_MOVED)
        yield tool(name, "gcc", path, rules, gcc.unprefixed, gcc.respelled)
    for name, package, more in (
        ("gcc", "gcc", ()),
        ("cpp", "cpp", ()),
        ("g++", "g++", _LINKS_LIBM),
    ):
        path = f"/usr/bin/{{gnu}}-{name}-{version}"
        rules = (*_DRIVER_RULES, accelerator, *more)
        yield tool(name, package, path, rules, gcc.driver, proof=gcc.same_specs)


TOOLS = (*_BINUTILS, *(tool for version in _VERSIONS for tool in _gcc(version)))
"""All of them. One name may stand twice, for different architectures."""
