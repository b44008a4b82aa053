"""No room left: in the runtime directory, in the state directory, in a step's own file system."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemons import rootfs, until
from faults import Before, Faulted, all_is_well, filled, ledger_of, small_disk, table_of, well
from keeping import qemu
from stepping import copy, finished, read_until, run, running, shell


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy(rootfs("busybox-arm64"), tmp_path_factory.mktemp("tree"))


@pytest.fixture
def crowded() -> Iterator[Faulted]:
    """A daemon whose runtime directory is a small file system."""
    daemon = Faulted()
    with daemon, small_disk(daemon.runtime, "4m"):
        yield daemon.start()
        daemon.call("io.maid.Manager.Release")
        daemon.stop()


@pytest.fixture
def before(crowded: Faulted) -> Before:
    return well(crowded)


def test_without_room_steps_are_refused_in_words_and_entries_are_repaired(
    crowded: Faulted, before: Before, tree: Path
) -> None:
    with filled(crowded.runtime):
        refused = run(crowded, tree, "/bin/true").refused
        assert refused is not None
        assert "linux/arm64" in refused.message and "No space left" in refused.message
        assert "make room" in refused.hint
        for name in ("qemu-aarch64", "qemu-riscv64"):
            (crowded.table / name).write_text("-1")
        assert until(lambda: len(table_of(crowded.table)) == 2, 20)
        assert all(each["ok"] for each in crowded.ensure(before.platforms).values())
    assert run(crowded, tree, "/bin/true").status == 0
    all_is_well(crowded, before)


def test_a_step_that_ends_without_room_has_its_result(
    crowded: Faulted, before: Before, tree: Path
) -> None:
    gate = tree / "go"
    script = "echo up; while [ ! -e /go ]; do sleep 0.05; done; exit 7"
    with running(crowded, tree, script) as (client, _, output):
        read_until(output, b"up")
        with filled(crowded.runtime):
            gate.touch()
            result = finished(client)
    gate.unlink()
    assert (result["outcome"], result["status"]) == ("exited", 7)
    all_is_well(crowded, before)


def test_a_ledger_is_never_written_by_halves(crowded: Faulted, before: Before) -> None:
    """Everything is released and registered again, with room for less than what stands in it."""
    for leave in (0, 4096):
        with filled(crowded.runtime, leave=leave):
            crowded.call("io.maid.Manager.Release")
            assert table_of(crowded.table) == {}
            json.loads((crowded.runtime / "ledger/root.json").read_text())
            crowded.call("io.maid.Manager.Reload")
            table = table_of(crowded.table)
            assert set(table) <= set(ledger_of(crowded.runtime / "ledger/root.json"))
        crowded.call("io.maid.Manager.Reload")
        all_is_well(crowded, before)


def test_a_daemon_starts_without_room_and_runs_steps_when_there_is_some(
    crowded: Faulted, before: Before, tree: Path
) -> None:
    with filled(crowded.runtime):
        crowded.kill()
        crowded.start()
        assert all(each["ok"] for each in crowded.ensure(before.platforms).values())
        assert run(crowded, tree, "/bin/true").refused is not None
        assert "No space left" in crowded.status()["runtime_problem"]
    # Nothing has told it: it looks again when there is something to run.
    assert run(crowded, tree, "/bin/true").status == 0
    all_is_well(crowded, before)


def test_a_daemon_that_has_no_room_at_all_says_so(tmp_path: Path) -> None:
    daemon = Faulted()
    with daemon, small_disk(daemon.runtime, "64k"), filled(daemon.runtime):
        with pytest.raises(AssertionError) as failed:
            daemon.start()
        assert "cannot start" in str(failed.value) or "not possible" in str(failed.value)
        assert "No space left" in str(failed.value)
        assert "Traceback" not in str(failed.value)
        daemon.process = None


def test_without_room_for_copies_the_plain_interpreter_serves(tmp_path: Path, tree: Path) -> None:
    """A copy is some 6 MB: there is room for what is known of the interpreters, not for that."""
    with (
        small_disk(tmp_path / "state", "6m") as state,
        Faulted(state=str(state)) as daemon,
    ):
        daemon.start()
        before = well(daemon)
        arm64 = next(p for p in daemon.status()["platforms"] if p["platform"] == "linux/arm64")
        assert arm64["interpreter"] == qemu("aarch64")
        assert "No space left" in arm64["reason"]
        assert os.listdir(state / "baked") in ([], [".lock"])
        assert run(daemon, tree, "/bin/true").status == 0
        all_is_well(daemon, before)
        with filled(state):
            daemon.restart()
            all_is_well(daemon, before)


def test_a_copy_that_there_is_no_room_for_takes_nothing_that_works_away(
    tmp_path: Path, tree: Path
) -> None:
    """The interpreter is upgraded while the disk is full: the copy of the old one serves on."""
    interpreter = tmp_path / "qemu-aarch64-static"
    shutil.copy(qemu("aarch64"), interpreter)
    config = (
        '[emulation]\nplatforms = ["linux/arm64"]\n[emulation.target.aarch64]\n'
        f'interpreter = "{interpreter}"\n'
    )
    with (
        small_disk(tmp_path / "state", "400m") as state,
        Faulted(config, state=str(state)) as daemon,
    ):
        daemon.start()
        before = well(daemon)
        with filled(state):
            new = interpreter.with_suffix(".new")
            shutil.copy(qemu("aarch64"), new)
            with open(new, "ab") as file:
                file.write(b"another")
            new.rename(interpreter)
            assert until(lambda: "not used: cannot make a copy" in daemon.text(), 20)
            all_is_well(daemon, before)
            assert run(daemon, tree, "/bin/true").status == 0
        daemon.call("io.maid.Manager.Reload")
        all_is_well(daemon, before)
        entry = table_of(daemon.table)["qemu-aarch64"][1]
        assert entry.interpreter.startswith(f"{state}/baked/"), daemon.text()


@pytest.mark.parametrize("where", ["rootfs", "overlay"])
def test_a_step_that_fills_its_disk_fails_and_nothing_else_does(
    tmp_path: Path, tree: Path, where: str
) -> None:
    with small_disk(tmp_path / "disk", "8m") as disk, Faulted() as daemon:
        daemon.start()
        before = well(daemon)
        script = "dd if=/dev/zero of=/big bs=64k; echo $?; echo x >/other || exit 9"
        if where == "rootfs":
            ran = shell(daemon, copy(tree, disk), script)
        else:
            ran = shell(daemon, tree, script, overlay=disk)
        assert (ran.result["outcome"], ran.status) == ("exited", 9)
        assert "No space left on device" in ran.stderr
        all_is_well(daemon, before)
        assert run(daemon, tree, "/bin/true").status == 0
