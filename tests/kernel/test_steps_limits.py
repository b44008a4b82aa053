"""The bounds of a step, and what it used: time, memory, CPUs, and how many at once."""

import threading
import time
from pathlib import Path

import pytest
from daemons import Daemon, until
from stepping import Marked, Ran, gone_within, read_until, run, running, shell

from maid.errors import LimitReached, StepRefused
from maid.steps import cgroups

limited = pytest.mark.skipif(
    bool(cgroups.unavailable()), reason=f"no limits here: {cgroups.unavailable()}"
)
GREEDY = "x=xxxxxxxxxxxxxxxx; while :; do x=$x$x; done"
"""Doubles what it holds until nobody gives it more."""


def test_a_time_limit_ends_the_whole_tree(daemon: Daemon, native: Path) -> None:
    marked = Marked()
    before = time.monotonic()
    ran = shell(daemon, native, marked.tree(), timeout=1.0)
    assert time.monotonic() - before < 2.5
    assert (ran.result["outcome"], ran.status, ran.result["signal"]) == ("timeout", 137, 9)
    assert "time limit" in ran.result["error"]
    assert gone_within(marked, 0.5)


def test_a_time_limit_of_seven_weeks_is_one(daemon: Daemon, native: Path) -> None:
    """In milliseconds it is just more than 32 bits hold."""
    assert shell(daemon, native, "sleep 0.3; echo done", timeout=4_294_967.35).lines == ["done"]


def test_a_time_limit_below_zero_is_refused(daemon: Daemon, native: Path) -> None:
    assert run(daemon, native, "/bin/true", timeout=-1.0).refused is not None


@limited
def test_more_than_the_memory_limit_ends_the_step_and_says_why(
    daemon: Daemon, native: Path
) -> None:
    ran = shell(daemon, native, GREEDY, memory=32 << 20)
    assert ran.status == 137
    assert ran.result["error"] == "killed because it needed more than its memory limit"
    assert (16 << 20) < ran.result["peak_memory"] <= (32 << 20)


@limited
def test_a_child_that_needed_too_much_memory_is_named_as_well(daemon: Daemon, native: Path) -> None:
    ran = shell(daemon, native, f"/bin/sh -c '{GREEDY}'; exit $?", memory=32 << 20)
    assert (ran.result["outcome"], ran.status) == ("exited", 137)
    assert "memory limit" in ran.result["error"]


@limited
def test_a_cpu_limit_makes_a_step_take_longer(daemon: Daemon, native: Path) -> None:
    loop = "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done"
    ran = shell(daemon, native, loop, cpus=0.25)
    used = ran.result["user"] + ran.result["system"]
    assert ran.status == 0
    assert ran.result["wall"] > 2 * used


@limited
def test_no_cgroup_is_left_behind(daemon: Daemon, native: Path) -> None:
    ran = shell(daemon, native, "sleep 100 & exit 3", memory=64 << 20, cpus=1.0)
    assert ran.status == 3
    assert until(lambda: not list(Path("/sys/fs/cgroup").glob(f"**/{ran.id}")))


@pytest.mark.parametrize("limit", [{"memory": 1000}, {"cpus": 0.001}, {"memory": -5}])
def test_limits_that_let_nothing_start_are_refused(
    daemon: Daemon, native: Path, limit: dict[str, float]
) -> None:
    assert run(daemon, native, "/bin/true", **limit).refused is not None


def test_where_cgroups_do_not_allow_it_the_message_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(cgroups, "ROOT", str(tmp_path))
    assert "no cgroup controller memory" in cgroups.unavailable()
    with pytest.raises(StepRefused) as refused:
        cgroups.plan("x", 1 << 30, 0)
    assert "leave --memory and --cpus out" in refused.value.hint


def test_time_used_is_that_of_the_whole_tree(daemon: Daemon, native: Path) -> None:
    loop = "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done"
    result = shell(daemon, native, f"({loop}) & {loop}; wait").result
    used = result["user"] + result["system"]
    # Two at once on however many CPUs: no more than two of them, and no less than was waited for.
    assert 0.1 < used <= 2 * result["wall"]
    idle = shell(daemon, native, "sleep 0.5").result
    assert idle["wall"] >= 0.5
    assert idle["user"] + idle["system"] < 0.2


def test_peak_memory_is_that_of_the_largest_program(daemon: Daemon, native: Path) -> None:
    # dd holds one block of that size.
    large = run(daemon, native, "/bin/dd", "if=/dev/zero", "of=/dev/null", "bs=50M", "count=1")
    assert (50 << 20) < large.result["peak_memory"] < (60 << 20)
    assert run(daemon, native, "/bin/true").result["peak_memory"] < (20 << 20)


def test_a_users_further_steps_wait_and_too_many_are_refused(daemon: Daemon, native: Path) -> None:
    """16 at once, 2 may wait (see the fixture)."""
    gate, out = native / "gate", []
    script = "while [ ! -e /gate ]; do sleep 0.05; done"
    threads = [
        threading.Thread(target=lambda: out.append(shell(daemon, native, script)))
        for _ in range(18)
    ]
    for thread in threads:
        thread.start()
    try:
        with daemon.client() as client:
            assert until(
                lambda: client.call("io.maid.Manager.Status")["status"]["steps_waiting"] == 2, 15
            )
            assert client.call("io.maid.Manager.Status")["status"]["steps_running"] == 16
        refused = run(daemon, native, "/bin/true").refused
        assert isinstance(refused, LimitReached)
        assert "max_queued_per_uid" in refused.hint
    finally:
        gate.touch()
        for thread in threads:
            thread.join()
        gate.unlink()
    assert [ran.status for ran in out] == [0] * 18


def test_who_waits_and_leaves_takes_no_place(daemon: Daemon, native: Path) -> None:
    from stepping import request

    with running(daemon, native, "echo up; sleep 30") as (_, _, output):
        read_until(output, b"up")
        for _ in range(20):
            client = daemon.client()
            message, descriptors, _ = request(native, ["/bin/true"], [0, 1, 2])
            client._send(
                {"method": "io.maid.Steps.Run", "parameters": message, "more": True}, descriptors
            )
            client.close()
    results: list[Ran] = [run(daemon, native, "/bin/true") for _ in range(3)]
    assert [ran.status for ran in results] == [0, 0, 0]
    with daemon.client() as client:
        assert until(lambda: client.call("io.maid.Steps.List")["steps"] == [])
