"""What moves images: several at once, and programs, none of which outlives what wants it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from maid.errors import MaidError
from maid.images import children, pool

# Several at once ---------------------------------------------------------------------------------


def test_what_waits_is_not_begun_when_one_fails_and_what_runs_is_told() -> None:
    begun: list[int] = []
    ended = threading.Event()

    def work(number: int, go_on: Callable[[], None]) -> int:
        begun.append(number)
        if number == 0:
            time.sleep(0.1)
            raise MaidError("the first")
        try:
            while True:
                go_on()
                time.sleep(0.01)
        except pool.Ended:
            ended.set()
            raise

    with pytest.raises(MaidError, match="the first"):
        pool.each(work, range(20), 2)
    assert ended.is_set()
    assert len(begun) <= 3
    assert pool.each(lambda item, _: item * 2, range(20), 3) == [n * 2 for n in range(20)]


INTERRUPTED = """
import os, time
from maid.images import pool
def work(number, go_on):
    os.write(1, b"begun\\n")
    while True:
        go_on()
        time.sleep(0.01)
pool.each(work, range(50), 2)
"""


def test_an_interrupt_ends_what_waits_and_what_runs() -> None:
    command = [sys.executable, "-c", INTERRUPTED]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"begun\n"
        process.send_signal(signal.SIGINT)
        try:
            output, errors = process.communicate(timeout=10)
        finally:
            process.kill()
    assert b"KeyboardInterrupt" in errors
    assert len(output.split()) <= 1


# Programs that end with us ------------------------------------------------------------------------


def test_a_program_ends_with_whoever_started_it() -> None:
    code = (
        "import subprocess, sys; from maid.images.children import bound\n"
        "print(subprocess.Popen(bound(['sleep', '100'])).pid, flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        child = Path(f"/proc/{int(process.stdout.readline())}")
        end = time.monotonic() + 5
        while (child / "comm").read_text() != "sleep\n":  # the very process is the program
            assert time.monotonic() < end
            time.sleep(0.01)
        process.kill()
    while child.exists() and "Z" not in (child / "stat").read_text().rpartition(")")[2]:
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_program_whose_starter_is_gone_already_is_not_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As where maid dies before the kernel is told: who started it is another one than the parent.
    monkeypatch.setattr(os, "getpid", lambda: 1)
    command = children.bound(["touch", str(tmp_path / "started")])
    assert subprocess.run(command, check=False).returncode != 0
    assert not (tmp_path / "started").exists()
    monkeypatch.undo()
    assert subprocess.run(children.bound(["touch", str(tmp_path / "started")]), check=False)
    assert (tmp_path / "started").exists()


def test_a_program_that_does_nothing_is_ended() -> None:
    start = time.monotonic()
    assert "it did nothing for 1 s" in (children.run(["sleep", "60"], patience=1.0) or "")
    assert time.monotonic() - start < 10
    assert children.run(["sh", "-c", "echo words >&2; exit 3"]) == "words\n"
    assert children.run(["true"]) is None
