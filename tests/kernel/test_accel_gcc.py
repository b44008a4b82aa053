"""GCC and binutils do natively, byte for byte, what they do under QEMU, and step aside where they
might not.

The programs are the distribution's own, in a root file system of it. Every case is run in both
ways; output, messages, exit statuses and files are compared. What the driver would start is seen by
programs of the same names that write down how they were started.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from accelerated import STATE, Both, both, daemon, differences
from daemons import Daemon, rootfs
from stepping import run as step

from maid.acceleration import gcc
from maid.acceleration.compilers import TOOLS
from maid.acceleration.model import MACHINES, Place
from maid.acceleration.relocate import RelocationError

TREE = "debian-13-build-arm64"
VERSION = "14"
HERE = Path(__file__)
OPTIONS = [
    line
    for line in HERE.with_name("accel_gcc.options").read_text().splitlines()
    if not line.startswith("#")
]

_LINES = HERE.with_name("accel_gcc.cases").read_text().splitlines()
_SETUP = [line for line in _LINES if "\t" not in line and not line.startswith("#")]
SETUP, SHELL = "\n".join(_SETUP), _SETUP[0]
CASES = [(tool, case) for tool, tab, case in (line.partition("\t") for line in _LINES) if tab]
NAMES = list(dict.fromkeys(name for name, _ in CASES))

# Starts of the driver's programs, in the order of the log, instead of what they do: the arguments
# and the driver's part of the environment. What has to be there afterwards is made.
RECORDER = """#!/bin/sh
printf '<%s>' "${0##*/}" "$@" >>/w/log
echo " $COLLECT_GCC|$COLLECT_GCC_OPTIONS|$COMPILER_PATH|$LIBRARY_PATH|$COLLECT_LTO_WRAPPER" >>/w/log
while [ $# -gt 0 ]; do case $1 in -o) : >"$2";; esac; shift; done
"""

EMULATED = {
    "how it was configured": ("gcc-14", "gcc -v"),
    "what it would start": ("gcc-14", "gcc -### a.c 2>&1 | sed s,/tmp/cc......,X,g"),
    "its specs": ("gcc-14", "gcc -dumpspecs"),
    "the machine it runs on": ("gcc-14", "gcc -mcpu=native -c a.c"),
    "a response file": ("gcc-14", "echo -O2 -c >args; gcc @args a.c"),
    "specs of the user's": ("gcc-14", "echo '*cc1: + -DX' >x; gcc -specs=x -E a.c | tail -1"),
    "options for the accelerator": ("gcc-14", "gcc a.c -g -lm -o p"),
    "OpenMP": ("gcc-14", "gcc -fopenmp b.c -c"),
    "linking with the C++ driver": ("g++-14", "g++ -g c.cc -o p"),
    "another place": ("gcc-14", "GCC_EXEC_PREFIX=/usr/lib/gcc/ gcc -c a.c"),
    "a plug-in": ("cc1-14", "gcc -fplugin=./none.so -c a.c"),
    "an unknown architecture": ("cc1-14", "gcc -march=armv8 -c a.c"),
    "another character set": ("cc1-14", "gcc -finput-charset=latin1 -c a.c"),
    "paths as found": ("cc1plus-14", "g++ -fno-canonical-system-headers -E c.cc | md5sum"),
    "help": ("cc1-14", "gcc --help=target -Q | md5sum"),
    "what is linked with": ("ld.bfd", "LD_RUN_PATH=$PWD/dep ld mm.o libaa.so -e main -o y"),
    "another emulation": ("ld.bfd", "ld -m aarch64linux32 --verbose"),
    "a linker plug-in that is not GCC's": ("ld.bfd", "ld -plugin /nosuch.so a.o -o y"),
}
"""What must step aside: the tool and the command."""


@pytest.fixture(scope="module")
def accelerated() -> Iterator[Daemon]:
    with daemon() as made:
        yield made.start()


@pytest.fixture(scope="module")
def tree() -> Path:
    return rootfs(TREE)


def script(cases: list[str], setup: str = SETUP) -> list[str]:
    """A step that runs each case in a fresh copy of the prepared directory."""
    body = "".join(
        f"mkdir /w/{i}; cp -a /w/src/. /w/{i}; cd /w/{i}; echo '=== {i}'\n"
        f'( {case} ) </dev/null 2>&1; echo "--- $?"\n'
        for i, case in enumerate(cases)
    )
    return ["/bin/sh", "-c", f"{setup}\n{body}"]


def outputs(text: str) -> list[str]:
    """What each case wrote, temporary names made alike."""
    text = re.sub(r"/tmp/cc\w{6}", "/tmp/cc", text)
    return re.split(r"(?m)^=== \d+\n", text)[1:]


@pytest.fixture(scope="module")
def ran(
    accelerated: Daemon, tree: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Both, Path]:
    place = tmp_path_factory.mktemp("gcc")
    return both(accelerated, tree, script([case for _, case in CASES]), place), place


def test_every_tool_of_this_release_has_a_case() -> None:
    names = {tool.name for tool in TOOLS if tool.default[1] in ("", f"gcc-{VERSION}")}
    assert names == set(NAMES)


@pytest.mark.parametrize("tool", NAMES)
def test_it_answers_as_under_qemu(ran: tuple[Both, Path], tool: str) -> None:
    done, _ = ran
    plain, native = outputs(done.plain.stdout), outputs(done.native.stdout)
    assert len(plain) == len(native) == len(CASES)
    for (name, case), one, other in zip(CASES, plain, native, strict=True):
        assert name != tool or one == other, case


@pytest.mark.parametrize("tool", NAMES)
def test_it_did_run_natively(ran: tuple[Both, Path], tool: str) -> None:
    assert ran[0].tools.get(tool, 0) > 0


def test_it_left_the_same_files(ran: tuple[Both, Path], tree: Path) -> None:
    _, place = ran
    assert differences(place, tree) == []


def test_the_driver_starts_the_same_programs(
    accelerated: Daemon, tree: Path, tmp_path: Path
) -> None:
    programs = "cc1 cc1plus as collect2"
    setup = "\n".join(
        [
            SETUP,
            "mkdir /w/bin",
            f"cat >/w/bin/cc1 <<'END'\n{RECORDER}END",
            f"cd /w/bin; chmod +x cc1; for p in {programs}; do [ $p = cc1 ] || ln cc1 $p; done",
            "cd /w/src",
        ]
    )
    runs = [f"gcc {options} a.c" for options in OPTIONS]
    runs += [f"g++ -c {options} c.cc" for options in OPTIONS[::4]]
    body = "".join(
        f"echo '=== {i}' >>/w/log; ( COMPILER_PATH=/w/bin {run} ) >>/w/log 2>&1 </dev/null;"
        " echo $? >>/w/log\n"
        for i, run in enumerate(runs)
    )
    command = ["/bin/sh", "-c", f"{setup}\n{body}cat /w/log"]
    done = both(accelerated, tree, command, tmp_path)
    plain, native = outputs(done.plain.stdout), outputs(done.native.stdout)
    assert len(plain) == len(native) == len(runs)
    for run, one, other in zip(runs, plain, native, strict=True):
        assert one == other, run
    assert done.tools["gcc-14"] >= len(OPTIONS)
    assert done.tools["g++-14"] >= len(OPTIONS[::4])


@pytest.fixture(scope="module")
def prepared(
    accelerated: Daemon, tree: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, int]:
    """What the lines before the first case have made, and how many programs are emulated in a step
    with a case that does nothing."""
    place = tmp_path_factory.mktemp("prepared")
    made = step(accelerated, tree, "/bin/sh", "-c", SETUP, overlay=place)
    assert made.lines == []
    nothing = both(accelerated, tree, script([":"], SHELL), copied(place, place / "nothing"))
    assert not nothing.tools.keys() & {tool for tool, _ in EMULATED.values()}
    return place, nothing.emulated


def copied(prepared: Path, place: Path) -> Path:
    """`place`, with what was prepared for either way."""
    for kind in ("plain", "native"):
        (place / kind).mkdir(parents=True)
        subprocess.run(["cp", "-a", prepared / "upper", place / kind / "upper"], check=True)
    return place


@pytest.mark.parametrize("case", EMULATED)
def test_it_steps_aside(
    accelerated: Daemon, tree: Path, prepared: tuple[Path, int], tmp_path: Path, case: str
) -> None:
    tool, command = EMULATED[case]
    made, emulated = prepared
    done = both(accelerated, tree, script([command], SHELL), copied(made, tmp_path))
    assert outputs(done.plain.stdout) == outputs(done.native.stdout)
    assert not done.tools.get(tool, 0)
    assert done.emulated > emulated


def test_another_directory_of_headers_is_noticed(ran: tuple[Both, Path], tree: Path) -> None:
    """The proof that is asked for when a set is made finds what it is for."""
    place = Place("aaaaa", STATE, MACHINES["amd64"], MACHINES["arm64"])
    foreign = (tree / f"usr/libexec/gcc/aarch64-linux-gnu/{VERSION}/cc1").read_bytes()
    manifest = next(
        each
        for each in (json.loads(p.read_text()) for p in STATE.glob("store/*/manifest.json"))
        if any(entry["tool"] == "cc1-14" for entry in each["entries"])
    )
    entry = next(entry for entry in manifest["entries"] if entry["tool"] == "cc1-14")
    native = (STATE / "store" / manifest["name"] / entry["program"]).read_bytes()
    gcc.same_directories(native, foreign, place)
    for old, new in ((b"/usr/local/include\0", b"/usr/local/includf\0"), (b"\0G++\0", b"\0H++\0")):
        with pytest.raises(RelocationError):
            gcc.same_directories(native.replace(old, new), foreign, place)
    with pytest.raises(RelocationError):
        gcc.include_directories(native, place)  # once is enough
    with pytest.raises(RelocationError):
        gcc.driver(native, place)
