"""The fuzz targets in C (tests/fuzz): how they are compiled, and what they begin with.

With clang there is libFuzzer, which is led by what is compared as well as by what is reached; with
any compiler the driver of our own (tests/fuzz/driver.c). Both with address and undefined-behaviour
sanitizers.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import struct
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import compiled
import front_elf
import front_store
import test_front_elf

SOURCES = Path(__file__).resolve().parents[3] / "tests" / "fuzz"
OCI = ("json.c", "oci.c")
TARGETS: dict[str, Sequence[str]] = {
    "json": (),
    "runtime": OCI,
    "hook": OCI,
    "arguments": OCI,
    "programs": (),
    "front-elf": (),
    "front-rules": (),
}
"""The targets, and which of maid's sources each is linked with besides those that it includes."""

FLAGS = ["-std=gnu11", "-D_GNU_SOURCE=", "-g", "-O1", "-Wall", "-Wextra", "-Werror"]
FLAGS += ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]

ENVIRONMENT = {"ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1"}
"""maid's programs in C serve one container and end: what they leave open goes with them."""


def cache() -> Path:
    """Where compiled targets, corpora and findings are kept."""
    given = os.environ.get("MAID_CACHE")
    directory = (Path(given) if given else Path.home() / ".cache" / "maid") / "fuzz"
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def build(name: str, clang: bool = False, native: Path = compiled.NATIVE) -> Path:
    """The target's program; `native` is the directory with maid's sources."""
    source = SOURCES / f"fuzz_{name.replace('-', '_')}.c"
    parts = [native / part for part in TARGETS[name]]
    if clang:
        command = ["clang", *FLAGS, "-fsanitize=fuzzer"]
        drivers = []
    else:
        command = ["cc", *FLAGS, "-fsanitize-coverage=trace-pc"]
        drivers = [driver()]
    read = sorted({*SOURCES.glob("*"), *native.glob("*.[ch]")})
    content = [each.read_bytes() for each in read]
    program = cache() / f"{name}-{digest(command, content)}"
    if not program.exists():
        compile_to(program, [*command, f"-I{native}", str(source), *map(str, [*parts, *drivers])])
    return program


def driver() -> Path:
    """The driver as an object: it is not to see itself."""
    source = SOURCES / "driver.c"
    made = cache() / f"driver-{digest(FLAGS, [source.read_bytes()])}.o"
    if not made.exists():
        compile_to(made, ["cc", *FLAGS, "-c", str(source)])
    return made


def digest(command: Sequence[str], content: Sequence[bytes]) -> str:
    """What tells a compiled file from one that was made of something else."""
    compiler = "clang" if command[0] == "clang" else "cc"
    version = subprocess.run([compiler, "--version"], capture_output=True).stdout
    return hashlib.sha256(repr((command, content, version)).encode()).hexdigest()[:20]


def compile_to(path: Path, command: list[str]) -> None:
    """Compile; the file appears whole."""
    with tempfile.TemporaryDirectory(dir=path.parent) as directory:
        new = Path(directory) / path.name
        compiled.run([*command, "-o", str(new)])
        new.replace(path)


CONFIG = json.dumps(
    {
        "ociVersion": "1.0.2",
        "process": {
            "args": ["sh", "-c", "make"],
            "env": ["PATH=/usr/bin:/bin", "MAID_ACCELERATE=1", "A=\u00e9"],
            "cwd": "/",
        },
        "root": {"path": "root", "readonly": False},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid"]},
        ],
        "linux": {"namespaces": [{"type": "mount"}]},
    }
).encode()
FOREIGN = bytes(front_elf.Elf(64, ">", [(1, b"code", 4)]))[:64]


def seeds(name: str) -> list[bytes]:
    """Inputs to begin with."""
    bundles = [CONFIG + b"\0" + sh for sh in (FOREIGN, b"#!/bin/sh\n", b"#! /bin/x -e\n", b"")]
    match name:
        case "json":
            return [
                CONFIG,
                b'{"root":{"a":["\\ud83d\\ude00\\u0041",1e-3,null]},"a":[[[]]]}',
                b"[1,2.5e3]",
            ]
        case "runtime":
            members = reversed(json.loads(CONFIG).items())  # the mounts before the process
            return [*bundles, json.dumps(dict(members)).encode() + b"\0" + FOREIGN]
        case "hook":
            state = json.dumps({"ociVersion": "1.0.2", "bundle": "/nonexistent", "pid": 1}).encode()
            return [state + b"\1" + bundle for bundle in bundles] + [b"{}\1" + bundles[0]]
        case "arguments":
            lines = [
                b"--root /run create --bundle /b --pid-file=/p id",
                b"run -b=/b --config c id",
                b"directory /x rootfs 3 owner 1000 group 100 user-ids 1 group-ids 1 bind 4"
                b" bind-readonly 5 cgroup /c timeout 1000 groups 1,2 -- crun run",
            ]
            return [line.replace(b" ", b"\0") + b"\0" for line in lines]
        case "programs":
            records = [
                struct.pack("BB22s", ord(k), n, b"\xab" * n) for k in "nfe" for n in (0, 20, 22)
            ]
            return [b"".join(records * 2), records[0] * 9]
        case "front-elf":
            numbers = random.Random(2)
            whole = bytes(front_elf.Elf(64, "<", [(4, front_elf.note(bytes(20)), 4), (1, b"x", 4)]))
            return [whole, *(test_front_elf.damaged(numbers) for _ in range(40))]
        case "front-rules":
            rules = [
                "a-x",
                "Aexact",
                "cpart",
                "oab",
                "eVAR",
                "EA=1",
                "l8",
                "x/nonexistent",
                "m",
                "+-",
                "1-c",
            ]
            rules += [
                "ilinker",
                "p/plugin.so\0/dev/.maid/t/plugin.so",
                "b/bin/true\0" + "ab" * 20,
                "z100",
            ]
            ending = b"\xffqemu\0/told\0told\0-plugin\0/x/plugin.so\0arg\0\xffLANG=C.UTF-8\0A=1\0"
            records = [front_store.record(rule) for rule in rules]
            return [
                each + ending
                for each in (*records, front_store.record(*rules), front_store.record())
            ]
    raise ValueError(name)
