"""The process of emulation/guard.py: how it is fast, how it ends, and what there is without it."""

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from compiled import NATIVE
from guarded import NAME, found, guard_of, is_alive, soon, write
from keeping import another, keeping

from maid import native
from maid.binfmt import namespace
from maid.emulation import guard as module
from maid.errors import MaidError

FREEZER = Path("/sys/fs/cgroup/freezer")


def test_a_guard_that_somebody_kills_is_done_without(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with keeping(tmp_path, found(tmp_path, "aarch64"), guarded=True) as kept:
            os.kill(guard_of(kept), signal.SIGKILL)
            await kept.until(lambda: not kept.keeper.guarded, "its end is noticed")
            write(kept, NAME, "-1")
            await kept.until(lambda: set(kept.table()) == {NAME}, "the keeper repairs")
            assert not kept.keeper.guarded  # not before a minute is over

    asyncio.run(scenario())


def test_after_a_pause_there_is_a_guard_again_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("maid.emulation.guarding.PAUSE", 1.0)

    async def scenario() -> None:
        async with keeping(tmp_path, found(tmp_path, "aarch64"), guarded=True) as kept:
            first = guard_of(kept)
            os.kill(first, signal.SIGKILL)
            await kept.until(lambda: not kept.keeper.guarded, "its end is noticed")
            await kept.until(lambda: kept.keeper.guarded, "another one begins")  # nothing happened
            assert guard_of(kept) != first

    asyncio.run(scenario())


def test_what_cannot_be_guarded_is_told_once_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here the helper is missing, until it is there."""
    monkeypatch.setattr("maid.emulation.guarding.PAUSE", 0.2)
    helpers = tmp_path / "helpers"
    shutil.copytree(Path(native.path("maid-guard")).parent, helpers)
    (helpers / "maid-guard").unlink()
    chosen = found(tmp_path, "aarch64")
    tries = []

    def missing(name: str) -> str:
        tries.append(name)
        return str(helpers / name)

    monkeypatch.setattr(native, "path", missing)

    async def scenario() -> None:
        async with keeping(tmp_path, chosen, guarded=True) as kept:
            await kept.until(lambda: tries.count("maid-guard") > 2, "it is tried again")
            assert not kept.keeper.guarded
            ((_, _, said),) = [event for event in kept.events if event[0] == "refused"]
            assert "is not guarded as it should be" in said, said
            monkeypatch.undo()
            await kept.until(lambda: kept.keeper.guarded, "it is guarded")

    asyncio.run(scenario())


def test_rule_1_without_its_guard_maid_claims_nothing_after_a_release(tmp_path: Path) -> None:
    """What the guard might have registered is in the ledger too: not when there is none."""

    async def scenario() -> None:
        async with keeping(tmp_path, found(tmp_path, "aarch64"), guarded=True) as kept:
            entry = kept.table()[NAME]
            os.kill(guard_of(kept), signal.SIGKILL)
            await kept.until(lambda: not kept.keeper.guarded, "its end is noticed")
            assert kept.keeper.release() == [NAME]
            assert (tmp_path / "ledger.json").read_text().strip() == "[]"
            kept.pinned.instance.add(entry)  # another tool's, of the same bytes
            assert not kept.keeper.ledger.owns(entry)
            await asyncio.sleep(0.3)
            assert kept.table() == {NAME: entry}
            kept.keeper.release()
            assert kept.table() == {NAME: entry}

    asyncio.run(scenario())


@contextlib.contextmanager
def frozen(pid: int) -> Iterator[None]:
    """The process cannot be killed: a frozen control group of version 1 keeps it as it is."""
    if not (FREEZER / "cgroup.procs").exists():
        pytest.skip("there is no freezer of control groups of version 1")
    group = FREEZER / f"maid-test-{pid}"
    group.mkdir()
    home = FREEZER / "cgroup.procs"
    try:
        (group / "cgroup.procs").write_text(str(pid))
        (group / "freezer.state").write_text("FROZEN")
        soon(lambda: (group / "freezer.state").read_text() == "FROZEN\n", "it is frozen")
        yield
    finally:
        (group / "freezer.state").write_text("THAWED")
        with contextlib.suppress(OSError):  # it has ended
            home.write_text(str(pid))
        soon(lambda: (group / "cgroup.procs").read_text() == "", "the group is empty")
        group.rmdir()


def test_while_the_guard_does_not_die_nothing_is_removed_and_the_daemon_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "DIES", 0.3)

    async def scenario() -> None:
        async with keeping(tmp_path, found(tmp_path, "aarch64", "s390x"), guarded=True) as kept:
            guard, names = guard_of(kept), set(kept.table())
            with frozen(guard):
                begun = time.monotonic()
                kept.keeper.update(kept.choices, ["aarch64"])
                with pytest.raises(MaidError, match="does not end"):
                    kept.keeper.release()
                kept.keeper.reconcile("and again")
                assert time.monotonic() - begun < 5.0, "it waits once, and not for ever"
                assert set(kept.table()) == names
                assert is_alive(guard) and not kept.keeper.guarded
                assert "refused" in kept.kinds("s390x")
            # Thawed, it dies; what was asked for is done then.
            await kept.until(lambda: kept.table() == {}, "they are removed")
            assert not is_alive(guard)

    asyncio.run(scenario())


def test_while_the_guard_does_not_die_the_daemon_can_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "DIES", 0.3)

    async def scenario() -> None:
        async with keeping(tmp_path, found(tmp_path, "aarch64"), guarded=True) as kept:
            with frozen(guard_of(kept)):
                kept.keeper.stop()
                assert set(kept.table()) == {NAME}
            again = another(kept, tmp_path, guarded=True)
            try:
                again.start(kept.choices, kept.choices)
                await kept.until(lambda: again.guarded, "the next one has a guard")
            finally:
                again.stop()

    asyncio.run(scenario())


def may_hurry() -> bool:
    """Whether a process may have a real-time priority here: tried, in one that ends at once."""
    script = "import os; os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))"
    done = subprocess.run([sys.executable, "-c", script], stderr=subprocess.DEVNULL)
    return done.returncode == 0


def locked(pid: int) -> int:
    """KiB that the process holds in memory."""
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    (line,) = [line for line in status if line.startswith("VmLck:")]
    return int(line.split()[1])


def test_a_thread_waits_on_each_cpu_with_a_real_time_priority_in_memory_that_stays(
    tmp_path: Path,
) -> None:
    async def scenario() -> None:
        async with keeping(tmp_path, found(tmp_path, "aarch64"), guarded=True) as kept:
            guard = guard_of(kept)

            def threads() -> list[int]:
                return [int(name) for name in os.listdir(f"/proc/{guard}/task")]

            cpus = os.sched_getaffinity(0)
            soon(lambda: len(threads()) == len(cpus), "there are as many threads as CPUs")
            places = [os.sched_getaffinity(thread) for thread in threads()]
            assert sorted(places, key=min) == [{cpu} for cpu in sorted(cpus)]
            if may_hurry():
                # A fork of it would not inherit it: the flag is shown with the policy.
                policy = os.SCHED_RR | os.SCHED_RESET_ON_FORK
                soon(
                    lambda: {os.sched_getscheduler(t) for t in threads()} == {policy},
                    "each has the policy",
                )
                assert {os.sched_getparam(t).sched_priority for t in threads()} == {1}
            elif os.geteuid() == 0:
                soon(
                    lambda: {os.getpriority(os.PRIO_PROCESS, t) for t in threads()} == {-20},
                    "each is as urgent as it may be",
                )
            if os.geteuid() == 0:
                soon(lambda: locked(guard) > 512, "what it needs is held in memory")

    asyncio.run(scenario())


DAEMON = """
import asyncio, os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from keeping import choices, configuration, keeping

async def main():
    place = Path(sys.argv[2])
    found = choices(configuration(place), ("aarch64",))
    async with keeping(place, found, guarded=True) as kept:
        print(kept.keeper._guarding.pid, flush=True)
        if sys.argv[3:]:  # as another guard begins whenever there is something else to guard
            kept.keeper.update(kept.choices, [])
            kept.keeper.update(kept.choices, kept.choices)
            while not kept.keeper._guarding._guard._greeted:
                await asyncio.sleep(0.01)
            return
        await asyncio.sleep(60)

asyncio.run(main())
"""


def logged(tmp_path: Path, *before: str, **environment: str) -> list[str]:
    """What is logged of what the guard lacks while a daemon has two guards, one after the other;
    `before` is a command that starts the daemon."""
    found(tmp_path, "aarch64")  # skips where there is no interpreter
    command = [sys.executable, "-c", DAEMON, str(Path(__file__).parent), str(tmp_path), "twice"]
    done = subprocess.run(
        [*before, *command],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    return [line for line in done.stderr.splitlines() if "repairs a little later" in line]


@pytest.mark.skipif(os.geteuid() != 0, reason="gives up capabilities")
def test_what_the_guard_cannot_have_is_said_once(tmp_path: Path) -> None:
    without = ["setpriv", "--bounding-set=-sys_nice,-ipc_lock"]
    limits = ["prlimit", "--memlock=0", "--rtprio=0"]
    (said,) = logged(tmp_path, *without, *limits)
    assert "a real-time priority (Operation not permitted)" in said, said
    assert "memory that stays (" in said, said
    assert "threads" not in said, said


@pytest.mark.skipif(os.geteuid() != 0 or not may_hurry(), reason="not all can be had here")
def test_where_all_can_be_had_nothing_is_said(tmp_path: Path) -> None:
    assert logged(tmp_path) == []


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="has one CPU")
def test_a_machine_with_more_cpus_than_there_may_be_threads_is_told_so(tmp_path: Path) -> None:
    """The bound is 256; with one of 1 this machine has more."""
    helpers = tmp_path / "helpers"
    shutil.copytree(Path(native.path("maid-guard")).parent, helpers)
    sources = [str(NATIVE / name) for name in ("guard.c", "guard_speed.c")]
    options = ["-std=gnu11", "-pthread", "-static", "-DMAX_THREADS=1"]
    subprocess.run(["cc", *options, "-o", str(helpers / "maid-guard"), *sources], check=True)
    (said,) = logged(tmp_path, MAID_LIBEXEC=str(helpers))
    cpus = len(os.sched_getaffinity(0))
    assert f"threads on {cpus - 1} of {cpus} CPUs (it has as many as it may)" in said, said


def test_the_guard_dies_with_the_daemon_and_the_entries_stay(tmp_path: Path) -> None:
    found(tmp_path, "aarch64")  # skips where there is no interpreter
    command = [sys.executable, "-c", DAEMON, str(Path(__file__).parent), str(tmp_path)]
    daemon = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        assert daemon.stdout is not None
        guard = int(daemon.stdout.readline())
        entry = tmp_path / "instance/binfmt" / NAME
        assert entry.exists() and is_alive(guard)
        daemon.kill()
        daemon.wait()
        soon(lambda: not is_alive(guard), "the guard has ended")
        assert entry.exists()
        entry.write_text("-1")
        time.sleep(0.3)
        assert set(os.listdir(entry.parent)) == {"register", "status"}
    finally:
        daemon.kill()
        daemon.wait()
        namespace.Pinned(str(tmp_path / "instance"), namespace.identity()).release()
