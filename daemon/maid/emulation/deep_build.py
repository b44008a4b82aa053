"""Compile the programs of `maid check --deep` with zig, once, and keep them.

What zig makes of the sources in deep/ is kept under the state directory, in a directory for each
key (a digest of sources, compiler and options) and in it one for each target. A target's directory
appears whole or not at all. Compiling takes some 40 s of CPU for each target, nearly all of it for
musl, of which zig compiles every file. Nothing here executes a foreign program.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from maid.emulation.targets import Target
from maid.errors import MaidError

SOURCES = Path(__file__).with_name("deep")
"""The directory with the C sources."""

BUILD_LIMIT = 900.0
"""Seconds for one run of the compiler. The slowest measured, musl on two busy cores: 135."""


@dataclass(frozen=True)
class _Zig:
    """How zig calls a target: its triple, musl's name of the architecture, further flags."""

    triple: str
    arch: str
    headers: str
    flags: tuple[str, ...] = ()


# QEMU 7.2's loongarch64 has no vector instructions, which zig's baseline would use; its hexagon
# knows no version above 67.
_ZIG = {
    "i386": _Zig("x86-linux-musl", "i386", "x86"),
    "x86_64": _Zig("x86_64-linux-musl", "x86_64", "x86_64"),
    "arm": _Zig("arm-linux-musleabihf", "arm", "arm"),
    "armeb": _Zig("armeb-linux-musleabihf", "arm", "arm"),
    "aarch64": _Zig("aarch64-linux-musl", "aarch64", "aarch64"),
    "aarch64_be": _Zig("aarch64_be-linux-musl", "aarch64", "aarch64"),
    "ppc": _Zig("powerpc-linux-musleabihf", "powerpc", "powerpc"),
    "ppc64": _Zig("powerpc64-linux-musl", "powerpc64", "powerpc64"),
    "ppc64le": _Zig("powerpc64le-linux-musl", "powerpc64", "powerpc64"),
    "mips": _Zig("mips-linux-musleabihf", "mips", "mips"),
    "mipsel": _Zig("mipsel-linux-musleabihf", "mips", "mips"),
    "mipsn32": _Zig("mips64-linux-muslabin32", "mipsn32", "mips64"),
    "mipsn32el": _Zig("mips64el-linux-muslabin32", "mipsn32", "mips64"),
    "mips64": _Zig("mips64-linux-muslabi64", "mips64", "mips64"),
    "mips64el": _Zig("mips64el-linux-muslabi64", "mips64", "mips64"),
    "s390x": _Zig("s390x-linux-musl", "s390x", "s390x"),
    "riscv32": _Zig("riscv32-linux-musl", "riscv32", "riscv32"),
    "riscv64": _Zig("riscv64-linux-musl", "riscv64", "riscv64"),
    "hexagon": _Zig("hexagon-linux-musl", "hexagon", "hexagon", ("-mcpu=hexagonv67",)),
    "loongarch64": _Zig(
        "loongarch64-linux-musl", "loongarch64", "loongarch64", ("-mcpu=generic_la64+d",)
    ),
}

_STATIC = ("-static", "-Os", "-s", "-std=gnu11")
# Everything that would make the compiler call a C library, or emit what only one could serve, is
# off.
_FREESTANDING = (
    *("-Os", "-s", "-std=gnu11", "-ffreestanding", "-nostdlib", "-nostdinc", "-fno-builtin"),
    *("-fno-stack-protector", "-fno-unwind-tables", "-fno-asynchronous-unwind-tables"),
    *("-fno-sanitize=all", "-Wno-deprecated-non-prototype", "-Wno-shift-op-parentheses"),
    *("-D_XOPEN_SOURCE=700", "-Wl,--hash-style=sysv", "-Wl,-z,now"),
)
_LOADER = ("-fPIC", "-shared", "-Wl,-Bsymbolic", "-Wl,-e,_dlstart", "-Wl,-soname,ld-maid.so")
_LIBRARY = ("-fPIC", "-shared", "-Wl,-soname,libdeep.so")
_DYNAMIC = ("-fPIE", "-pie", "-rdynamic", "-Wl,--dynamic-linker=/ld-maid.so")


@dataclass(frozen=True)
class Programs:
    """The compiled programs of one target: `directory` has checks, dynamic, ld-maid.so and
    libdeep.so."""

    target: Target
    directory: Path


def supported(target: Target) -> bool:
    """Whether there are programs for `target`: zig can compile for it and has a C library."""
    return target.name in _ZIG


def programs(target: Target, state: Path, zig_cache: Path | None = None) -> Programs:
    """Return the programs of `target`, compiled now or taken from `state`/deep.

    `zig_cache` is a directory for zig's own cache, some 40 MB for each target; by default it is
    temporary, because nothing in it is needed again. Blocks while another process compiles into the
    same state directory. Raises MaidError when the target has no compiler, ziglang is not
    installed, or the compiler fails.
    """
    if not supported(target):
        raise MaidError(
            f"there are no deep checks for {target.name}: zig has no compiler or C library for it",
            "its probe is checked all the same: leave out --deep",
        )
    zig = _find_zig()
    store = state / "deep"
    key = _key()
    directory = store / key / target.name
    if not directory.is_dir():
        store.mkdir(parents=True, exist_ok=True)
        with _locked(store):
            if not directory.is_dir():
                _remove_others(store, key)
                _build(zig, _ZIG[target.name], store, directory, zig_cache)
    return Programs(target, directory)


def _find_zig() -> Path:
    found = importlib.util.find_spec("ziglang")
    if found is None or not found.submodule_search_locations:
        raise MaidError(
            "the deep checks are compiled with zig, and the package ziglang is not installed",
            f"install it for this Python: {sys.executable} -m pip install ziglang",
        )
    return Path(found.submodule_search_locations[0])


def _key() -> str:
    """A digest of all that determines the programs: sources, compiler, how it is called."""
    digest = hashlib.sha256(importlib.metadata.version("ziglang").encode())
    for source in sorted(SOURCES.glob("*.c")):
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    digest.update(repr((_ZIG, _STATIC, _FREESTANDING, _LOADER, _LIBRARY, _DYNAMIC)).encode())
    return digest.hexdigest()[:20]


@contextlib.contextmanager
def _locked(store: Path) -> Iterator[None]:
    descriptor = os.open(store / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _remove_others(store: Path, key: str) -> None:
    """Remove what other sources or compilers made, and what a killed build left. Under the lock."""
    for entry in store.iterdir():
        if entry.is_dir() and entry.name != key:
            shutil.rmtree(entry, ignore_errors=True)


def _build(zig: Path, how: _Zig, store: Path, directory: Path, zig_cache: Path | None) -> None:
    musl, include = zig / "lib/libc/musl", zig / "lib/libc/include"
    n32 = "abin32" if how.arch == "mipsn32" else ""
    headers = (
        *(musl / "ldso", musl / "arch" / how.arch, musl / "arch/generic"),
        *(musl / "src/include", musl / "src/internal", musl / "include"),
        *(include / f"{how.headers}-linux-musl{n32}", include / "generic-musl"),
    )
    freestanding = (*_FREESTANDING, *(f"-I{path}" for path in headers))
    with tempfile.TemporaryDirectory(prefix=".build-", dir=store) as build:
        out = Path(build) / "out"
        out.mkdir(mode=0o755)

        def compile(output: str, source: str, *flags: str) -> None:
            command = [
                *(sys.executable, "-m", "ziglang", "cc"),
                *("-target", how.triple),
                *how.flags,
                *flags,
                *("-o", str(out / output)),
                str(SOURCES / source),
                *([str(out / "libdeep.so")] if source == "dynamic.c" else []),
            ]
            _run(command, Path(build), zig_cache or Path(build) / "zig", how.triple)

        compile("ld-maid.so", "loader.c", *freestanding, *_LOADER)
        compile("libdeep.so", "library.c", *freestanding, *_LIBRARY)
        compile("dynamic", "dynamic.c", *freestanding, *_DYNAMIC)
        compile("checks", "checks.c", *_STATIC)
        directory.parent.mkdir(exist_ok=True)
        out.rename(directory)


def _run(command: list[str], build: Path, cache: Path, triple: str) -> None:
    environment = {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": str(build),
        "TMPDIR": str(build),
        "ZIG_GLOBAL_CACHE_DIR": str(cache),
        "ZIG_LOCAL_CACHE_DIR": str(cache),
    }
    try:
        done = subprocess.run(
            command,
            cwd=build,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=BUILD_LIMIT,
        )
    except subprocess.TimeoutExpired as error:
        raise MaidError(
            f"zig compiled for {triple} for {BUILD_LIMIT:.0f} s without an end",
            "try again when the machine has less to do",
        ) from error
    if done.returncode != 0:
        words = done.stderr.decode(errors="replace").strip().splitlines()
        raise MaidError(
            f"zig could not compile the deep checks for {triple}: "
            + (
                next((line for line in words if "error" in line), "") or f"status {done.returncode}"
            ),
            "ziglang 0.17 is known to work; the directory must have 200 MB free",
        )
