"""Nothing left of what the kernel gives: descriptors, processes, memory, inotify watches."""

from __future__ import annotations

import os
import re
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemons import rootfs, until
from faults import Faulted, all_is_well, cgroup, table_of, well, within
from stepping import Marked, copy, finished, gone_within, read_until, run, running, shell

BOMB = "bomb() { bomb | bomb & }; bomb"
NO_PROCESS = re.compile("Resource temporarily unavailable|no thread could be started")
PROCESSES = 120
"""That the daemon and its steps may have together."""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy(rootfs("busybox-arm64"), tmp_path_factory.mktemp("tree"))


@pytest.fixture(scope="module")
def pids() -> Iterator[Path]:
    with cgroup("pids", f"maid-test-{os.getpid()}", {"max": str(PROCESSES)}) as place:
        yield place


@pytest.fixture(scope="module")
def few(pids: Path) -> Iterator[Faulted]:
    """A daemon that may have few processes."""
    with Faulted(prelude=within(pids)) as daemon:
        yield daemon.start()


def test_without_descriptors_steps_are_refused_in_words_and_all_is_repaired_later(
    tree: Path,
) -> None:
    with Faulted() as daemon:
        daemon.start()
        before = well(daemon)
        run(daemon, tree, "/bin/true")
        limits = resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE)
        for spare in range(1, 14, 2):
            highest = max(map(int, os.listdir(f"/proc/{daemon.pid}/fd")))
            with daemon.client() as client:
                client.call("io.maid.Manager.Status")
                resource.prlimit(
                    daemon.pid, resource.RLIMIT_NOFILE, (highest + 1 + spare, limits[1])
                )
                ran = run(daemon, tree, "/bin/true", client=client)
                (daemon.table / "qemu-aarch64").write_text("-1")
                (daemon.table / "qemu-riscv64").write_text("0")
            resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, limits)
            assert ran.refused is not None or ran.status == 0
            if ran.refused is not None:
                assert "files open" in str(ran.refused), ran.refused
            all_is_well(daemon, before)
            assert run(daemon, tree, "/bin/true").status == 0


def test_without_processes_steps_are_refused_in_words_and_all_is_repaired(
    few: Faulted, pids: Path, tree: Path
) -> None:
    before = well(few)
    entry = table_of(few.table)["qemu-aarch64"]
    now = int((pids / "pids.current").read_text())
    try:
        for spare in range(4):
            (pids / "pids.max").write_text(str(now + spare))
            ran = run(few, tree, "/bin/true")
            assert ran.refused is not None or ran.status in (0, 125), ran
            if ran.refused is not None:
                assert NO_PROCESS.search(ran.refused.message), ran.refused
            (few.table / "qemu-aarch64").write_text("-1")
            assert until(lambda: "qemu-aarch64" in table_of(few.table), 20)
    finally:
        (pids / "pids.max").write_text(str(PROCESSES))
    all_is_well(few, before)
    assert run(few, tree, "/bin/true").status == 0
    # A probe for which there was no process says nothing of the copy with the front.
    assert table_of(few.table)["qemu-aarch64"] == entry


@pytest.mark.parametrize("end", ["cancelled", "timeout", "gone"])
def test_a_fork_bomb_ends_with_its_step(few: Faulted, pids: Path, tree: Path, end: str) -> None:
    before = well(few)
    limit = {"timeout": 3.0} if end == "timeout" else {}
    # Waits for ever without another process or thread, for which there will be no place.
    script = f"mkfifo /pipe; echo up; ({BOMB}) & read x <>/pipe"
    with running(few, tree, script, **limit) as (client, step, output):
        read_until(output, b"up")
        assert until(lambda: int((pids / "pids.current").read_text()) >= PROCESSES, 30)
        assert few.answers()
        if end == "cancelled":
            with few.client() as other:
                other.call("io.maid.Steps.Cancel", {"id": step})
        if end != "gone":
            assert finished(client)["outcome"] == end
    assert until(lambda: int((pids / "pids.current").read_text()) < PROCESSES // 2, 10)
    all_is_well(few, before)
    assert run(few, tree, "/bin/true").status == 0


def test_many_that_want_memory_cost_the_step_its_life_and_not_the_daemon(tree: Path) -> None:
    """Each is smaller than the daemon: the kernel's memory killer would take that first."""
    limits = {"limit_in_bytes": str(256 << 20)}
    name = f"maid-test-{os.getpid()}"
    with cgroup("memory", name, limits) as place, Faulted(prelude=within(place)) as daemon:
        daemon.start()
        before = well(daemon)
        one = "dd if=/dev/zero of=/dev/null bs=16M count=1000000"
        marked = Marked()
        script = f"i=0; while [ $i -lt 40 ]; do {one} & i=$((i+1)); done; sleep {marked.seconds}"
        with running(daemon, tree, f"echo up; {script}") as (_, _, output):
            read_until(output, b"up")
            events = place / "memory.oom_control"
            killed = "oom_kill 0" if events.exists() else ""
            assert until(lambda: killed not in events.read_text(), 30)
            assert daemon.answers()
        assert gone_within(marked, 10)
        all_is_well(daemon, before)
        assert run(daemon, tree, "/bin/true").status == 0


def test_a_step_is_killed_for_memory_before_the_daemon_is(tree: Path) -> None:
    with Faulted() as daemon:
        daemon.start()
        own = int(Path(f"/proc/{daemon.pid}/oom_score_adj").read_text())
        ran = shell(daemon, tree, "cat /proc/self/oom_score_adj /proc/1/oom_score_adj")
        assert [int(line) for line in ran.lines] == [own + 100, own + 100]


def test_without_inotify_the_table_is_read_and_repaired() -> None:
    """As in a user namespace that may have no instance of inotify."""
    script = 'echo 0 >/proc/sys/user/max_inotify_instances; exec "$0" "$@"'
    prelude = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script]
    with Faulted(prelude=prelude) as daemon:
        daemon.start()
        assert "cannot be watched" in daemon.text()
        before = well(daemon)
        # The table belongs to that namespace: its root may write there.
        (daemon.table / "qemu-aarch64").write_text("-1")
        assert until(lambda: "qemu-aarch64" in table_of(daemon.table), 20)
        all_is_well(daemon, before)
