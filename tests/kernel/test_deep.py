"""The deep checks are executed: they pass through a good entry, and notice what a bad one lacks.

A 64-bit and a 32-bit target by default; all that zig and QEMU know with MAID_TEST_DEEP=all.
Compiling takes some 45 s of CPU for each target and is done once: the programs are kept in
$MAID_CACHE, else ~/.cache/maid.
"""

import os
import shutil
from pathlib import Path

import pytest
from own_instance import Job, Outcome, line, require, run

from maid.emulation import deep
from maid.emulation.probes import Run
from maid.emulation.targets import TARGETS, Target, own

pytest.importorskip("ziglang", reason="ziglang (maid[deep]) is not installed")

CACHE = Path(os.environ.get("MAID_CACHE") or Path.home() / ".cache/maid")
ALL = [target.name for target in TARGETS.values() if deep.supported(target)]
SOME = ["aarch64", "arm"]
CHOSEN = ALL if os.environ.get("MAID_TEST_DEEP") == "all" else [n for n in ALL if n in SOME]
REQUIRED = {test.name for test in deep.tests() if test.required}
ERRNO = {os.strerror(number): number for number in range(1, 134)}


def programs(target: Target) -> deep.Programs:
    return deep.programs(target, CACHE / "state", zig_cache=CACHE / "zig")


def ran(outcome: Outcome) -> Run:
    """The outcome as maid's own prober would tell it."""
    status = outcome.status or 0
    number = ERRNO.get(outcome.error, 0)
    return Run(
        ms=0,
        errno=number,
        failed_call="execve" if number else "",
        status=max(status, 0),
        signal=max(-status, 0),
        timeout=outcome.error == "time limit",
        output=outcome.stdout,
        errors=outcome.stderr,
    )


def execute(
    target: Target, root: Path, registered: str | None, promised: str | None, removed: str = ""
) -> dict[str, str]:
    """Each check's explanation ("": it passed) under an entry with the flags `registered`.

    `promised` are the flags that the checks are told of; the file `removed` is taken away.
    """
    lines = []
    if registered is not None and target.name != own():
        interpreter = shutil.which(f"qemu-{target.emulator}-static")
        if interpreter is None:
            pytest.skip(f"no qemu-{target.emulator}-static in PATH")
        lines.append(line("deep", target.magic, target.mask, interpreter, registered))
    prepared = deep.prepare(root, programs(target), flags=promised)
    if removed:
        (root / removed).unlink()
    jobs = [
        Job(root, command.argv[0], [command.argv0, *command.argv[1:]], command.uid, command.seconds)
        for command in prepared.commands
    ]
    outcomes = run(lines, jobs)
    return {
        command.name: deep.explain(command, ran(outcome))
        for command, outcome in zip(prepared.commands, outcomes, strict=True)
    }


@pytest.fixture(autouse=True)
def possible() -> None:
    require()
    if os.geteuid() != 0:
        pytest.skip("not root: a set-user-ID program needs a second user id")


@pytest.mark.parametrize("name", CHOSEN)
def test_everything_required_works_through_a_good_entry(name: str, tmp_path: Path) -> None:
    target = TARGETS[name]
    flags = None if name == own() else "FPOC"
    explained = execute(target, tmp_path, flags, flags)
    assert set(explained) >= REQUIRED, "a check was left out"
    assert {check: why for check, why in explained.items() if why and check in REQUIRED} == {}


FOREIGN = "aarch64" if own() != "aarch64" else "arm"


@pytest.mark.parametrize(
    ("registered", "failing"),
    [
        ("F", {"argv0", "setuid", "unreadable"}),
        ("FP", {"setuid", "unreadable"}),
        ("FPO", {"setuid"}),
        ("FC", {"argv0"}),
        ("FPC", set()),
    ],
)
def test_each_flag_that_an_entry_lacks_is_noticed(
    registered: str, failing: set[str], tmp_path: Path
) -> None:
    explained = execute(TARGETS[FOREIGN], tmp_path, registered, "FPOC")
    assert {check for check, why in explained.items() if why} == failing


def test_without_an_entry_everything_fails_and_says_so(tmp_path: Path) -> None:
    explained = execute(TARGETS[FOREIGN], tmp_path, None, "FPOC")
    assert all("exec format error" in why for why in explained.values())
    assert set(explained) >= REQUIRED


def test_a_missing_library_is_noticed(tmp_path: Path) -> None:
    target = TARGETS["aarch64"]
    explained = execute(target, tmp_path, None if own() == "aarch64" else "F", "F", "libdeep.so")
    assert "'loader: cannot open /libdeep.so'" in explained.pop("dynamic")
    assert set(explained.values()) == {""}
