"""emulation/crashes.py: an emulated program that dies of a signal is told, and only that."""

import asyncio
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest
from keeping import choices, configuration, keeping

from maid.emulation.crashes import Crashes, Watcher

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the process connector needs root")


def test_a_crash_under_an_interpreter_is_told_with_its_program(tmp_path: Path) -> None:
    told: list[tuple[str, str, str]] = []

    async def scenario() -> None:
        found = choices(configuration(tmp_path), ("aarch64",))
        async with keeping(tmp_path, found) as kept:
            crashes = Crashes(lambda *report: told.append(report))
            await crashes.start(found.values())
            try:
                root = tmp_path / "probes" / "aarch64"
                crash = root / "crash"
                # brk #1: the simplest program that dies. The probe's first instruction, replaced.
                program = bytearray((root / "probe").read_bytes())
                program[0xC0:0xC4] = (0xD4200020).to_bytes(4, "little")
                crash.write_bytes(program)
                crash.chmod(0o755)
                command = ["nsenter", f"--user={kept.pinned.user}", "chroot", str(root)]
                await asyncio.sleep(1.0)  # the watching process starts
                for _ in range(20):
                    subprocess.run([*command, "/probe"], capture_output=True)
                    assert subprocess.run([*command, "/crash"]).returncode < 0
                    await asyncio.sleep(0.1)
                    if told:
                        break
            finally:
                await crashes.close()

    asyncio.run(scenario())
    assert told, "nothing was told"
    for target, number, message in told:
        assert (target, number) == ("aarch64", "SIGTRAP")
        assert re.fullmatch(r"/crash \(process \d+\) died of SIGTRAP", message)


def event(kind: str, **fields: int) -> dict[str, object]:
    return {"event": f"PROC_EVENT_{kind}", **fields}


def test_a_forked_child_is_what_its_parent_is() -> None:
    watcher = Watcher()
    watcher._emulated[10] = ("arm", "/bin/sh")
    assert not watcher.on_event(event("FORK", parent_tgid=10, child_pid=11, child_tgid=11))
    ended = event("EXIT", process_pid=11, process_tgid=11, exit_code=int(signal.SIGSEGV) | 0x80)
    told = watcher.on_event(ended)
    assert told == {
        "target": "arm",
        "signal": "SIGSEGV",
        "message": "/bin/sh (process 11) died of SIGSEGV",
    }
    assert watcher.on_event(ended) is None


@pytest.mark.parametrize("code", [0, 1 << 8, int(signal.SIGTERM), int(signal.SIGKILL)])
def test_an_exit_or_a_kill_is_no_crash(code: int) -> None:
    watcher = Watcher()
    watcher._emulated[10] = ("arm", "/bin/sh")
    assert not watcher.on_event(event("EXIT", process_pid=10, process_tgid=10, exit_code=code))


def test_a_threads_end_is_not_the_programs() -> None:
    watcher = Watcher()
    watcher._emulated[10] = ("arm", "/bin/sh")
    thread = event("EXIT", process_pid=12, process_tgid=10, exit_code=int(signal.SIGSEGV))
    assert not watcher.on_event(thread)
    assert 10 in watcher._emulated
