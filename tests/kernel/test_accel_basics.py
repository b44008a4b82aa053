"""Each everyday tool writes the same natively as under QEMU, and steps aside where it might not.

Every case is run in both ways, in one step each; output, errors and exit statuses are compared, and
what was left in the file system.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from accelerated import Both, both, daemon, differences
from daemons import Daemon, rootfs

from maid.acceleration.basics import TOOLS

_LINES = Path(__file__).with_name("accel_basics.cases").read_text().splitlines()
SETUP = "\n".join(line for line in _LINES if "\t" not in line and not line.startswith("#"))
CASES = [(tool, case) for tool, tab, case in (line.partition("\t") for line in _LINES) if tab]
"""The tool that it is there for, and the command, by case."""

NAMES = list(dict.fromkeys(name for name, _ in CASES))


EMULATED = {
    "sort -g": ("sort", "sort -g numbers|md5sum"),
    "grep -P": ("grep", "grep -P 'x(?=y)' text"),
    "grep -oP": ("grep", "grep -oP '\\d+' text|md5sum"),
    "odd units": ("du", "du -B 1000 text"),
    "odd units for ls": ("ls", "BLOCKSIZE=1000 ls -s text"),
    "another character set": ("sed", "LC_ALL=de_DE.ISO-8859-1 sed s/b/c/ text|md5sum"),
    "a preloaded library": ("cut", "LD_PRELOAD=/nosuch.so cut -c1-3 text"),
    "a library path": ("cut", "LD_LIBRARY_PATH=/usr/lib cut -c1-3 text"),
    "switched off": ("cut", "MAID_ACCELERATE=0 cut -c1-3 text"),
    "QEMU asked for": ("cut", "QEMU_UNAME=5.0 cut -c1-3 text"),
}
"""What must step aside: the tool and the command."""


@pytest.fixture(scope="module")
def accelerated() -> Iterator[Daemon]:
    with daemon() as made:
        yield made.start()


@pytest.fixture(scope="module")
def tree() -> Path:
    return rootfs("debian-13-build-arm64")


def script(cases: list[str]) -> list[str]:
    body = "".join(
        f"echo '=== {i}'; ( {case} ) 2>&1; echo \"--- $?\"\n" for i, case in enumerate(cases)
    )
    return ["/bin/sh", "-c", SETUP + body]


@pytest.fixture(scope="module")
def ran(
    accelerated: Daemon, tree: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Both, Path]:
    place = tmp_path_factory.mktemp("basics")
    cases = [case for _, case in CASES]
    return both(accelerated, tree, script(cases), place), place


def outputs(text: str) -> list[str]:
    return re.split(r"(?m)^=== \d+\n", text)[1:]


def test_every_tool_has_a_case() -> None:
    assert {tool.name for tool in TOOLS} == set(NAMES)


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


@pytest.mark.parametrize("case", EMULATED)
def test_it_steps_aside(accelerated: Daemon, tree: Path, tmp_path: Path, case: str) -> None:
    tool, command = EMULATED[case]
    done = both(accelerated, tree, script([f"{command}"]), tmp_path)
    setup = both(accelerated, tree, script([":"]), tmp_path / "setup")
    assert done.plain.stdout == done.native.stdout
    assert done.tools.get(tool, 0) == setup.tools.get(tool, 0)
    assert done.emulated > setup.emulated
