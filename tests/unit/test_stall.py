"""A program that hangs is told from one that works, whether it reads, computes or has others do."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from maid.images.stall import Stall

PATIENCE = 1.0


@pytest.mark.parametrize(
    ("program", "hangs"),
    [
        ("import time; time.sleep(30)", True),
        ("import time\nwhile True: open('/dev/zero','rb').read(9999); time.sleep(.05)", False),
        ("while True: pass", False),
        (
            "import subprocess, sys\nsubprocess.run([sys.executable, '-c', 'while True: pass'])",
            False,
        ),
    ],
    ids=["waits", "reads", "computes", "has another compute"],
)
def test_what_hangs_is_known(program: str, hangs: bool) -> None:
    process = subprocess.Popen([sys.executable, "-c", program], process_group=0)
    try:
        time.sleep(0.5)  # starting is work
        stall = Stall(process.pid, PATIENCE)
        end = time.monotonic() + 2.5
        found = False
        while not found and time.monotonic() < end:
            time.sleep(0.05)
            found = stall.has_come()
        assert found is hangs
    finally:
        subprocess.run(["kill", "-KILL", "--", f"-{process.pid}"], check=True)
        process.wait()


def test_what_has_ended_does_not_hang() -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    stall = Stall(process.pid, 0.0)
    time.sleep(0.05)
    assert not stall.has_come()
