"""Clocks that are set, a day on or back, while everything runs.

The machine's own cannot be set here: the daemon sees another one (libfaketime), which changes under
it, and is started in a time namespace whose monotonic clock is weeks ahead.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemons import rootfs, until
from faults import Before, Faulted, all_is_well, table_of, well
from stepping import Marked, copy, finished, gone_within, read_until, run, running

DAY = 86400


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy(rootfs("busybox-arm64"), tmp_path_factory.mktemp("tree"))


class Clock:
    """The time of day as the daemon sees it: `set` to so many seconds from the real one."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.set(0)

    def set(self, seconds: int) -> None:
        new = self.file.with_suffix(".new")
        new.write_text(f"{seconds:+d}\n")
        new.rename(self.file)

    @property
    def prelude(self) -> list[str]:
        libraries = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
        if not libraries:
            pytest.skip("the package faketime is not installed")
        return [
            *("env", f"LD_PRELOAD={libraries[0]}", f"FAKETIME_TIMESTAMP_FILE={self.file}"),
            *("FAKETIME_NO_CACHE=1", "FAKETIME_DONT_FAKE_MONOTONIC=1", "NO_FAKE_STAT=1"),
        ]


@pytest.fixture(scope="module")
def clock(tmp_path_factory: pytest.TempPathFactory) -> Clock:
    return Clock(tmp_path_factory.mktemp("clock") / "offset")


@pytest.fixture(scope="module")
def timed(clock: Clock) -> Iterator[Faulted]:
    with Faulted(prelude=clock.prelude) as daemon:
        yield daemon.start()


@pytest.fixture
def before(timed: Faulted, clock: Clock) -> Iterator[Before]:
    clock.set(0)
    yield well(timed)
    clock.set(0)


def seen(daemon: Faulted) -> float:
    """What time the daemon thinks it is: that of an event that it makes now."""
    daemon.call("io.maid.Manager.Reload")
    return float(daemon.events()[-1]["time"])


def test_the_daemon_sees_the_clock_that_is_set(timed: Faulted, clock: Clock) -> None:
    for offset in (0, DAY, -DAY, 0):
        clock.set(offset)
        assert abs(seen(timed) - time.time() - offset) < 60


@pytest.mark.parametrize("jump", [DAY, -DAY], ids=["a day on", "a day back"])
def test_a_step_runs_for_as_long_as_it_may(
    timed: Faulted, before: Before, clock: Clock, tree: Path, jump: int
) -> None:
    """Neither its time limit nor the time it took is that of the clock; nor is a heal's."""
    marked = Marked()
    with (
        running(timed, tree, "echo up; sleep 1; exit 3") as (short, _, first),
        running(timed, tree, f"echo up; sleep {marked.seconds}", timeout=2.5) as (long, _, second),
    ):
        read_until(first, b"up")
        read_until(second, b"up")
        clock.set(jump)
        (timed.table / "qemu-aarch64").write_text("-1")
        assert until(lambda: "qemu-aarch64" in table_of(timed.table), 20)
        result = finished(short)
        assert (result["outcome"], result["status"]) == ("exited", 3)
        assert 1 <= result["wall"] < 30
        result = finished(long)
        assert result["outcome"] == "timeout"
        assert 2.4 <= result["wall"] < 30
    assert gone_within(marked, 5)
    all_is_well(timed, before)


@pytest.mark.parametrize("jump", [DAY, -DAY], ids=["a day on", "a day back"])
def test_a_result_is_remembered_and_a_follower_goes_on(
    timed: Faulted, before: Before, clock: Clock, tree: Path, jump: int
) -> None:
    with timed.client() as follower:
        followed = follower.stream("io.maid.Manager.Events", {"follow": True, "since": 0})
        numbers = [next(followed)["event"]["sequence"]]
        ran = run(timed, tree, "/bin/sh", "-c", "exit 5")
        clock.set(jump)
        with timed.client() as client:
            result = client.call("io.maid.Steps.Wait", {"id": ran.id})["result"]
        assert result["status"] == 5
        newest = timed.status()["events"]
        while numbers[-1] < newest:
            numbers.append(next(followed)["event"]["sequence"])
        assert numbers == list(range(1, newest + 1))
    all_is_well(timed, before)


def test_steps_outlive_a_daemon_that_is_killed_while_the_clock_is_set(
    timed: Faulted, before: Before, clock: Clock, tree: Path
) -> None:
    """The next one finds them, and still knows which processes are theirs."""
    script = "echo up; sleep 1; exit 6"
    with running(timed, tree, script) as (client, identifier, output):
        read_until(output, b"up")
        timed.kill()
        clock.set(-DAY)
        timed.start()
        with timed.client() as other:
            result = other.call("io.maid.Steps.Wait", {"id": identifier})["result"]
        assert (result["outcome"], result["status"]) == ("exited", 6)
        client.close()
    all_is_well(timed, before)


def test_a_monotonic_clock_that_is_weeks_ahead_changes_nothing(tree: Path) -> None:
    """As after a long uptime: in a time namespace with another offset."""
    prelude = ["unshare", "--time", "--monotonic", "5000000", "--boottime", "9000000"]
    with Faulted(prelude=prelude) as daemon:
        daemon.start()
        assert daemon.executing()
        assert run(daemon, tree, "/bin/sh", "-c", "exit 4").status == 4
        marked = Marked()
        script = f"sleep {marked.seconds}"
        ran = run(daemon, tree, "/bin/sh", "-c", script, timeout=0.5)
        assert ran.result["outcome"] == "timeout"
        assert 0.5 <= ran.result["wall"] < 30
        before = well(daemon)
        (daemon.table / "qemu-aarch64").write_text("-1")
        assert until(lambda: "qemu-aarch64" in table_of(daemon.table), 20)
        all_is_well(daemon, before)
