"""RUN lines that crash. As the first process of its namespace an emulated program cannot die of the
signal that QEMU then sends itself (pid_namespaces(7)), and a build would wait for it for ever: so
foreign ones are started by maid-init. What else a build says and makes is as it was."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path

import pytest
from building import Builds, pushing
from places import Place
from registry import Registry
from test_build_rooms import commands

LIMIT = 120
"""Seconds for a build of one short line, which takes about two."""

ARM64, AMD64 = "linux/arm64", "linux/amd64"

FIRST = "tr '\\0' ' ' </proc/1/cmdline"
"""Prints the command line of the first process."""

WITHOUT = """
from maid.images.surroundings import Surroundings
environment = Surroundings.environment
Surroundings.environment = lambda self, given: environment(self, given) | {"MAID_INIT": ""}
from maid.cli.app import main
main()
"""
"""maid as it would be if no command were started by maid-init."""


@pytest.fixture(scope="module")
def builds(place: Place, registry: Registry) -> Builds:
    """A build directory for this module."""
    return Builds(place, registry, place.directory / "crash")


def built(
    builds: Builds, text: str, *options: str | Path, runtime: str = "crun", platform: str = ARM64
) -> subprocess.CompletedProcess[str]:
    """A build with this OCI runtime ("" is none) that fails, in time."""
    done = builds.place.run(
        *(*commands(runtime), "build", "--root", builds.root, "--no-cache", *options),
        *(*pushing(builds.registry, "crash/failed", platform), builds.place.context(text)),
        check=False,
        timeout=LIMIT,
    )
    assert done.returncode == 1, done.stderr
    return done


@pytest.mark.parametrize("option", ["--accelerate", "--no-accelerate"])
@pytest.mark.parametrize("runtime", ["crun", "runc", ""])
def test_a_line_that_crashes_ends_its_build(
    builds: Builds, busybox: str, runtime: str, option: str
) -> None:
    text = f"FROM {busybox}\nRUN kill -SEGV $$; sleep 1000\n"
    said = built(builds, text, option, runtime=runtime).stderr
    if runtime:
        assert "qemu: uncaught target signal 11" in said and "exit status 139" in said
    else:
        # Here buildah starts the command: it says so in words, and may lose the last of its output.
        assert "exited on segmentation fault" in said


@pytest.mark.parametrize(("signal", "status"), [("ABRT", 134), ("TERM", 143), ("KILL", 137)])
def test_other_signals_end_it_as_well(
    builds: Builds, busybox: str, signal: str, status: int
) -> None:
    text = f"FROM {busybox}\nRUN kill -{signal} $$; sleep 1000\n"
    assert f"exit status {status}\n" in built(builds, text).stderr


def crashing() -> bytes:
    """A program for AArch64 that reads at address 0: mov x0, #0; ldr x1, [x0]."""
    code = bytes.fromhex("000080d2 010040f9")
    base, start, size = 0x400000, 64 + 56, 64 + 56 + len(code)
    header = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\2\1\1", 2, 183, 1, base + start, 64, 0, 0,
                         64, 56, 1, 0, 0, 0)  # fmt: skip
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, base, base, size, size, 0x1000)
    return header + segment + code


@pytest.mark.parametrize("line", ['["/crash"]', "exec /crash"])
def test_a_program_in_the_shell_s_place_that_crashes_ends_it(
    builds: Builds, busybox: str, line: str
) -> None:
    context = builds.place.context(f"FROM {busybox}\nCOPY crash /\nRUN {line}\n")
    (context / "crash").write_bytes(crashing())
    (context / "crash").chmod(0o755)
    options = pushing(builds.registry, "crash/program", ARM64)
    done = builds.run(context, *options, check=False, timeout=LIMIT)
    assert done.returncode == 1 and "exit status 139" in done.stderr


def test_a_foreign_stage_of_a_native_image_that_crashes_ends_it(
    builds: Builds, busybox: str
) -> None:
    text = (
        f"FROM --platform={ARM64} {busybox} AS other\nRUN kill -SEGV $$; sleep 1000\n"
        f"FROM {busybox}\nCOPY --from=other /etc/group /\n"
    )
    assert "exit status 139" in built(builds, text, platform=AMD64).stderr


NOT_STARTED = [
    ('["nosuch"]', "exec: nosuch: not found in PATH", 127),
    ('["/nosuch"]', "exec: /nosuch: No such file or directory", 127),
    ('["/etc"]', "exec: /etc: Permission denied", 126),
    ('["/etc/group"]', "exec: /etc/group: Permission denied", 126),
    ("nosuch", "/bin/sh: nosuch: not found", 127),
    ("exit 7", "", 7),
]


@pytest.mark.parametrize(("line", "words", "status"), NOT_STARTED)
def test_what_cannot_be_started_is_named(
    builds: Builds, busybox: str, line: str, words: str, status: int
) -> None:
    said = built(builds, f"FROM {busybox}\nRUN {line}\n").stderr
    assert f"[{ARM64}] {words}\n" in said if words else "exec: " not in said
    assert f"exit status {status}\n" in said


@pytest.mark.parametrize("runtime", ["crun", "runc"])
def test_only_foreign_lines_are_started_so_and_else_as_ever(
    builds: Builds, busybox: str, runtime: str
) -> None:
    """And a line's command has the user, directory and streams that it ever had."""
    line = f"{FIRST} >/tmp/first; (id -u; pwd; cat) </dev/stdin >/tmp/own; echo out; echo err >&2"
    context = builds.place.context(f"FROM {busybox}\nUSER 1000\nWORKDIR /etc\nRUN {line}\n")
    for option in ("--accelerate", "--no-accelerate"):
        done = builds.place.run(
            *(*commands(runtime), "build", "--root", builds.root, "--no-cache", option),
            *(*pushing(builds.registry, "crash/first", ARM64, AMD64), context),
        )
        for platform, digest in builds.images("crash/first").items():
            first = builds.read("crash/first", "tmp/first", digest)
            assert first.startswith(
                "/dev/.maid-init /bin/sh -c" if platform == ARM64 else "/bin/sh"
            )
            assert builds.read("crash/first", "tmp/own", digest) == "1000\n/etc\n"
            assert f"[{platform}] out\n" in done.stderr and f"[{platform}] err\n" in done.stderr


def test_images_are_the_same_with_and_without(builds: Builds, busybox: str) -> None:
    """To the digest, and with no file of it: also where a line makes /dev's entries and lists."""
    context = builds.place.context(
        f"FROM {busybox}\nRUN echo data >/file; mkdir /made; touch /dev/made\n"
        'RUN ["cp", "/file", "/copy"]\nUSER 1000\nRUN mkdir /tmp/own\n'
    )
    digests = {}
    for name, maid in (("with", commands("crun")), ("without", (sys.executable, "-c", WITHOUT))):
        builds.place.run(
            *(*maid, "build", "--root", builds.place.directory / name, "--no-cache"),
            *(*pushing(builds.registry, f"crash/{name}", ARM64), context),
            env={"SOURCE_DATE_EPOCH": "1000000000"},
        )
        digests[name] = builds.registry.digest(f"crash/{name}", "1")
        files = builds.files(f"crash/{name}")
        assert "made" in files and "copy" in files
        assert not [path for path in files if ".maid" in path]
    assert digests["with"] == digests["without"]


def test_the_control_really_is_without(builds: Builds, busybox: str) -> None:
    context = builds.place.context(f"FROM {busybox}\nRUN {FIRST} >/first\n")
    builds.place.run(
        *(sys.executable, "-c", WITHOUT, "build", "--root", builds.root, "--no-cache"),
        *(*pushing(builds.registry, "crash/control", ARM64), context),
    )
    assert ".maid-init" not in builds.read("crash/control", "first")
