"""Compile the tests' own C programs, for this machine and for others, and keep what was made.

For this machine by the C compiler that also builds maid's helpers, for the others by zig's (a
development dependency), which brings its C library. zig is slow the first time, so results are
kept in $MAID_CACHE or ~/.cache/maid, by a digest of the source, the command and the compiler.
"""

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest

NATIVE = Path(__file__).parents[2] / "daemon" / "native"
SOURCES = Path(__file__).parent / "front"
HOST = platform.machine()


def cache_directory() -> Path:
    """Where what takes long to make or fetch is kept from one run to the next."""
    given = os.environ.get("MAID_CACHE")
    directory = Path(given) if given else Path.home() / ".cache" / "maid"
    directory = directory / "tests"
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def zig(*arguments: str) -> list[str]:
    """The command of zig's compiler."""
    return [sys.executable, "-m", "ziglang", *arguments]


def compiler(machine: str) -> list[str]:
    """The command of a C compiler for `machine`, as `uname -m` calls it."""
    if machine == HOST:
        return ["cc"]
    abi = "musleabihf" if machine == "arm" else "musl"
    return zig("cc", "-target", f"{machine}-linux-{abi}")


@cache
def _version(machine: str) -> str:
    command = ["cc", "--version"] if machine == HOST else zig("version")
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def linked(machine: str, static_pie: bool) -> tuple[str, ...]:
    """The flags for a static program at a fixed address (ET_EXEC), or at any (static-pie)."""
    if machine == HOST:
        flags = ("-static-pie", "-fPIE") if static_pie else ("-static", "-no-pie")
    else:
        flags = ("-static", "-pie", "-fPIE") if static_pie else ("-static",)
    # The note that distributions' interpreters have, and that the front takes the place of.
    return (*flags, "-Wl,--build-id=sha1")


def program(source: str, machine: str, *flags: str, parts: Sequence[Path] = ()) -> Path:
    """The compiled program of front/`source`, which includes the files `parts`."""
    options = ["-O1", "-Wall", "-Wextra", "-Werror", *flags]
    command = [*compiler(machine), *options]
    path = SOURCES / source
    content = [each.read_bytes() for each in (path, *parts)]
    key = hashlib.sha256(repr((content, options, _version(machine), machine)).encode()).hexdigest()[
        :32
    ]
    made = cache_directory() / f"{path.stem}-{machine}-{key}"
    if not made.exists():
        with tempfile.TemporaryDirectory(dir=made.parent) as directory:
            new = Path(directory) / path.stem
            run([*command, "-o", str(new), str(path)])
            new.replace(made)
    return made


def front_sources() -> list[Path]:
    """The front's sources, as parts of other programs."""
    return sorted(NATIVE.glob("front*.[ch]"))


def harness(machine: str, *flags: str) -> Path:
    """The parts of the front in an ordinary program (front/harness.c), as they are now."""
    return program("harness.c", machine, *flags, parts=front_sources())


def front(machine: str, directory: Path) -> Path:
    """front.bin for `machine`, built anew in `directory` from the source as it is now."""
    command = ["make", "-s", "-C", str(NATIVE), "front", f"BUILD={directory}"]
    if machine != HOST:
        command += [
            f"CC={' '.join(compiler(machine))}",
            f"FRONT_LD={' '.join(zig('ld.lld'))}",
            f"FRONT_OBJCOPY={' '.join(zig('objcopy'))}",
        ]
    run(command)
    return directory / "front.bin"


def runner(machine: str) -> list[str]:
    """What to put before a program of `machine` to run it; skips the test if that is absent."""
    if machine == HOST:
        return []
    found = shutil.which(f"qemu-{machine}-static") or shutil.which(f"qemu-{machine}")
    if found is None:
        pytest.skip(f"no QEMU for {machine} is installed")
    return [found]


def run(command: list[str], **options: object) -> None:
    """Run a command that must succeed, within ten minutes (zig builds its C library once)."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
