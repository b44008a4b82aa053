"""Interpreters that are damaged while the daemon is down or a step runs, emulators that hang, and
a table that goes while it is used."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from daemons import rootfs, until
from faults import Before, Faulted, all_is_well, table_of, well
from keeping import qemu
from stepping import copy, finished, read_until, running, shell

CONFIG = """
[emulation]
platforms = ["linux/arm64", "linux/riscv64"]
ready = ["linux/riscv64"]
probe_timeout = 1.0
[emulation.target.aarch64]
interpreter = "{}"
"""


def replace(file: Path) -> None:
    """Another file, that is no emulator, in its place."""
    new = file.with_suffix(".new")
    new.write_bytes(b"no emulator")
    new.chmod(0o755)
    new.rename(file)


EXECUTING = (
    "echo up; n=0; while [ ! -e /go ]; do /bin/true || echo failed; n=$((n+1)); done;"
    " echo $n; exit 3"
)
"""A step that executes programs, and tells of each that fails, until it finds /go."""

DAMAGES: dict[str, Callable[[Path], object]] = {
    "deleted": Path.unlink,
    "replaced": replace,
    "truncated": lambda file: os.truncate(file, 4096),
    "not executable": lambda file: file.chmod(0o644),
}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy(rootfs("busybox-arm64"), tmp_path_factory.mktemp("tree"))


@pytest.fixture(scope="module")
def interpreter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("interpreters") / "qemu-aarch64-static"
    restore(made)
    return made


@pytest.fixture(scope="module")
def damaged(interpreter: Path) -> Iterator[Faulted]:
    with Faulted(CONFIG.format(interpreter)) as daemon:
        yield daemon.start()


@pytest.fixture(scope="module")
def before(damaged: Faulted) -> Before:
    return well(damaged)


def restore(interpreter: Path) -> None:
    """As its package has it: as a package manager replaces a file."""
    new = interpreter.with_suffix(".new")
    shutil.copy(qemu("aarch64"), new)
    new.rename(interpreter)


def mend(daemon: Faulted, interpreter: Path) -> None:
    """Restore it, and wait until maid has seen that, and its copy serves."""
    restore(interpreter)
    daemon.call("io.maid.Manager.Reload")
    assert until(lambda: daemon.ensure(["linux/arm64"])["linux/arm64"]["ok"], 20)
    assert until(lambda: "/baked/" in table_of(daemon.table)["qemu-aarch64"][1].interpreter, 20)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_while_the_daemon_is_down_is_said_and_mended(
    damaged: Faulted, before: Before, interpreter: Path, damage: str
) -> None:
    """What an entry holds open serves on as long as it stands; it is never lost without a word."""
    damaged.stop()
    DAMAGES[damage](interpreter)
    damaged.start()
    arm64 = next(p for p in damaged.status()["platforms"] if p["platform"] == "linux/arm64")
    result = damaged.ensure(["linux/arm64"], timeout=0)["linux/arm64"]
    if not result["ok"]:
        assert str(interpreter) in arm64["reason"], arm64
    assert damaged.ensure(["linux/riscv64"])["linux/riscv64"]["ok"]
    mend(damaged, interpreter)
    all_is_well(damaged, before)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_while_a_step_runs_costs_no_program(
    damaged: Faulted, before: Before, interpreter: Path, tree: Path, damage: str
) -> None:
    with running(damaged, tree, EXECUTING) as (client, _, output):
        read_until(output, b"up")
        DAMAGES[damage](interpreter)
        time.sleep(1)  # more than maid waits before it looks again
        damaged.status()
        (tree / "go").touch()
        assert finished(client)["status"] == 3
        said = read_until(output, b"\n")
        assert b"failed" not in said, damaged.text()
    (tree / "go").unlink()
    mend(damaged, interpreter)
    all_is_well(damaged, before)


# Emulators that hang ------------------------------------------------------------------------------

HANGING = r"""
#include <stdio.h>
#include <string.h>
#include <unistd.h>
int main(int argc, char **argv)
{
	if (argc > 1 && !strcmp(argv[1], "--version"))
		return puts("qemu-aarch64 version 9.2.0") < 0;
	if (argc > 1 && !strcmp(argv[1], "-cpu"))
		return puts("  neoverse-n1") < 0;
	for (;;)
		pause();
}
"""


def processes_of(program: str) -> list[int]:
    """Processes of an executable of that name."""
    found = []
    for name in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            if name.isdigit() and os.path.basename(os.readlink(f"/proc/{name}/exe")) == program:
                found.append(int(name))
    return found


def test_an_emulator_that_hangs_is_said_to_and_leaves_no_process(
    tmp_path: Path, tree: Path
) -> None:
    name = f"qemu-aarch64-{os.getpid()}"
    hanging = tmp_path / name
    (tmp_path / "hanging.c").write_text(HANGING)
    command = ["cc", "-static", "-O1", "-o", hanging, tmp_path / "hanging.c"]
    subprocess.run(command, check=True)
    with Faulted(CONFIG.format(hanging)) as daemon:
        began = time.monotonic()
        daemon.start()
        assert time.monotonic() - began < 15
        result = daemon.ensure(["linux/arm64"], timeout=0)["linux/arm64"]
        assert not result["ok"]
        assert "gave no answer within" in result["message"]
        refused = shell(daemon, tree, "true").refused
        assert refused is not None and "gave no answer within" in refused.message
        assert daemon.ensure(["linux/riscv64"])["linux/riscv64"]["ok"]
        # It is tried again every few seconds; each try has its end.
        assert until(lambda: not processes_of(name), 10)
        restore(hanging)
        assert until(lambda: daemon.ensure(["linux/arm64"])["linux/arm64"]["ok"], 20)
        assert not processes_of(name)
        before = well(daemon)
        assert "linux/arm64" in before.platforms
        all_is_well(daemon, before)


def stopped(daemon: Faulted, end: threading.Event, count: int) -> None:
    """Have the next `count` emulators that the daemon starts hang, until `end`."""
    caught: set[int] = set()
    while not end.is_set() and len(caught) < count:
        for pid in daemon.children() - caught:
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/{pid}/exe").endswith("qemu-aarch64-static"):
                    os.kill(pid, signal.SIGSTOP)
                    caught.add(pid)


@pytest.mark.parametrize("probes", [1, 4], ids=["for one probe", "for so long that it is doubted"])
def test_an_emulator_that_hung_for_a_while_serves_again(
    damaged: Faulted, before: Before, interpreter: Path, probes: int
) -> None:
    entry = table_of(damaged.table)["qemu-aarch64"][1].interpreter
    end = threading.Event()
    hanging = threading.Thread(target=stopped, args=(damaged, end, probes))
    hanging.start()
    try:
        answers = []
        while hanging.is_alive():
            answers.append(damaged.ensure(["linux/arm64"], timeout=0)["linux/arm64"]["ok"])
    finally:
        end.set()
        hanging.join()
    assert answers.count(False) >= 1
    all_is_well(damaged, before)
    if probes == 1:
        assert table_of(damaged.table)["qemu-aarch64"][1].interpreter == entry
    damaged.call("io.maid.Manager.Reload")
    all_is_well(damaged, before)
    assert table_of(damaged.table)["qemu-aarch64"][1].interpreter == entry


# The table goes while it is used ------------------------------------------------------------------


def test_a_table_that_is_unmounted_under_running_steps_costs_no_program(
    damaged: Faulted, before: Before, tree: Path
) -> None:
    with running(damaged, tree, EXECUTING) as (client, _, output):
        read_until(output, b"up")
        for pins in (["binfmt"], ["user"], ["binfmt", "user"]):
            for pin in pins:
                place = damaged.runtime / "instances/root" / pin
                subprocess.run(["umount", "--lazy", place], check=True)
            assert until((damaged.table / "qemu-aarch64").exists, 20)
            damaged.ensure(["linux/arm64"])
        (tree / "go").touch()
        assert finished(client)["status"] == 3
        assert b"failed" not in read_until(output, b"\n")
    (tree / "go").unlink()
    all_is_well(damaged, before)
