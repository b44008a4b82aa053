"""kill -9 of the daemon at random moments: the next one finds everything, and no step is lost.

`scripts/bench faults` does the same some hundred times over.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from daemons import MAID, environment, rootfs
from faults import Before, Faulted, all_is_well, ledger_problems, table_of, well
from keeping import qemu
from stepping import copy

ROUNDS = 3
"""Of each kind of moment."""

CONFIG = """
[emulation]
platforms = ["linux/arm64", "linux/riscv64"]
ready = ["linux/arm64"]
[emulation.target.aarch64]
interpreter = "{interpreter}"
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with an interpreter of its own, which may be replaced, a state of its own, and a
    root file system."""
    made = tmp_path_factory.mktemp("killed")
    shutil.copy(qemu("aarch64"), made / "qemu-aarch64-static")
    (made / "state").mkdir()
    (made / "tree").mkdir()
    copy(rootfs("busybox-arm64"), made / "tree")
    return made


@pytest.fixture(scope="module")
def killed(place: Path) -> Iterator[Faulted]:
    config = CONFIG.format(interpreter=place / "qemu-aarch64-static")
    with Faulted(config, state=str(place / "state")) as daemon:
        daemon.start()
        yield daemon


@pytest.fixture(scope="module")
def before(killed: Faulted) -> Before:
    return well(killed)


@pytest.fixture(scope="module")
def moments() -> random.Random:
    seed = random.randrange(10**6)
    print(f"moments of seed {seed}")
    return random.Random(seed)


def step(daemon: Faulted, tree: Path, script: str) -> subprocess.Popen[bytes]:
    """A running `maid run`."""
    return subprocess.Popen(
        [
            *(MAID, "--socket", daemon.socket, "run", "--rootfs", tree, "--readonly"),
            *("--", "/bin/sh", "-c", script),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    )


def check(steps: list[subprocess.Popen[bytes]]) -> int:
    """Hold that each has done its work, or says that there was no daemon to ask; how many were
    done."""
    done = 0
    for each in steps:
        output, errors = each.communicate(timeout=60)
        if each.returncode == 125:
            assert output == b"" and b"no maid daemon answers" in errors, (output, errors)
            continue
        assert (each.returncode, output) == (7, b"begun\ndone\n"), (output, errors)
        done += 1
    return done


def upgrade(interpreter: Path, number: int) -> None:
    """Another program in its place, as a package manager puts it there: QEMU with a word behind."""
    new = interpreter.with_suffix(".new")
    shutil.copy(qemu("aarch64"), new)
    with open(new, "ab") as file:
        file.write(b"%d" % number)
    new.rename(interpreter)


def test_while_steps_run(
    killed: Faulted, before: Before, place: Path, moments: random.Random
) -> None:
    done = 0
    for _ in range(ROUNDS):
        script = f"echo begun; sleep 0.{moments.randrange(1, 6)}; echo done; exit 7"
        steps = [step(killed, place / "tree", script) for _ in range(3)]
        time.sleep(0.15 + 0.5 * moments.random())
        killed.kill()
        killed.start()
        done += check(steps)
        all_is_well(killed, before, remembered=True)
    assert done > 0


def test_while_it_starts_a_step(
    killed: Faulted, before: Before, place: Path, moments: random.Random
) -> None:
    """Between the request and the first word of the step: it is run to its end."""
    for _ in range(ROUNDS):
        steps = [step(killed, place / "tree", "echo begun; echo done; exit 7") for _ in range(2)]
        caught(lambda: bool(killed.steps()))
        time.sleep(0.02 * moments.random())
        killed.kill()
        killed.start()
        check(steps)
        all_is_well(killed, before, remembered=True)


def test_while_it_registers(moments: random.Random) -> None:
    """All that it can serve, in a table that is empty: what it has registered when it dies is its
    own."""
    with Faulted("") as daemon:
        daemon.start()
        before = well(daemon)
        for _ in range(ROUNDS):
            daemon.call("io.maid.Manager.Release")
            daemon.kill()
            assert not table_of(daemon.table)
            process = begin(daemon)
            caught(lambda: len(os.listdir(daemon.table)) > 2)
            time.sleep(0.004 * moments.random())
            process.kill()
            process.wait()
            assert in_no_ledger(daemon) == []
            daemon.start()
            all_is_well(daemon, before)


def test_while_it_renews(
    killed: Faulted, before: Before, place: Path, moments: random.Random
) -> None:
    """The interpreter is upgraded, and its entry replaced: NAME.next is there for a moment."""
    for number in range(ROUNDS):
        upgrade(place / "qemu-aarch64-static", 100 + number)
        caught(lambda: (killed.table / "qemu-aarch64.next").exists())
        time.sleep(0.0005 * moments.random())
        killed.kill()
        assert in_no_ledger(killed) == []
        killed.start()
        all_is_well(killed, before, remembered=True)
        assert not (killed.table / "qemu-aarch64.next").exists()


def test_while_it_makes_copies(
    killed: Faulted, before: Before, place: Path, moments: random.Random
) -> None:
    """A copy that is not whole is never registered, and does not stay."""
    baked = place / "state/baked"

    def half() -> list[str]:
        with contextlib.suppress(FileNotFoundError):
            return [name for name in os.listdir(baked) if name.startswith(".new-")]
        return []

    for _ in range(ROUNDS):
        killed.call("io.maid.Manager.Release")
        killed.kill()
        shutil.rmtree(baked)
        process = begin(killed)
        caught(lambda: bool(half()))
        time.sleep(0.03 * moments.random())
        process.kill()
        process.wait()
        killed.start()
        all_is_well(killed, before, remembered=True)
        assert not half()


def caught(holds: Callable[[], bool], seconds: float = 30.0) -> None:
    """Wait for a moment that is soon over, without a pause."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end


def in_no_ledger(daemon: Faulted) -> list[str]:
    """Entries that are nobody's. (A record of nothing is harmless, and forgotten at the start.)"""
    return [each for each in ledger_problems(daemon) if "in no ledger" in each]


def begin(daemon: Faulted) -> subprocess.Popen[bytes]:
    """Its process, without waiting for anything."""
    with open(daemon.log, "ab") as log:
        return subprocess.Popen(
            [
                *(MAID, "daemon", "--scope", "private", "--socket", daemon.socket),
                *("--config", daemon.directory / "maid.toml"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment(),
        )
