"""However a step is ended, all of it ends, within a second, and nothing of it is left."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from daemons import MAID, Daemon, environment, mounts_below, until
from stepping import Marked, finished, gone_within, read_until, run, running, shell

from maid.errors import MaidError


@pytest.mark.parametrize("tree", ["native", "foreign"])
def test_cancel_ends_the_whole_tree(
    daemon: Daemon, request: pytest.FixtureRequest, tree: str
) -> None:
    marked = Marked()
    rootfs = request.getfixturevalue(tree)
    with running(daemon, rootfs, marked.tree()) as (client, identifier, output):
        read_until(output, b"up")
        assert len(marked.alive()) >= 5
        with daemon.client() as other:
            other.call("io.maid.Steps.Cancel", {"id": identifier})
        assert gone_within(marked, 1.0)
        result = finished(client)
    assert (result["outcome"], result["status"], result["signal"]) == ("cancelled", 137, 9)
    assert result["error"] == "cancelled"


def test_a_closed_connection_ends_the_whole_tree(daemon: Daemon, native: Path) -> None:
    marked = Marked()
    with running(daemon, native, marked.tree()) as (client, _, output):
        read_until(output, b"up")
        client.close()
        assert gone_within(marked, 1.0)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_client_that_is_killed_ends_the_whole_tree(
    daemon: Daemon, native: Path, number: signal.Signals
) -> None:
    marked = Marked()
    reader, writer = os.pipe()
    process = subprocess.Popen(
        [
            *(MAID, "--socket", daemon.socket, "run", "--rootfs", native),
            *("--", "/bin/sh", "-c", marked.tree()),
        ],
        stdin=subprocess.DEVNULL,
        stdout=writer,
        stderr=subprocess.DEVNULL,
        env=environment(),
    )
    os.close(writer)
    try:
        read_until(reader, b"up")
        process.send_signal(number)
        assert gone_within(marked, 1.0)
        process.wait(5)
    finally:
        os.close(reader)


def test_the_end_of_the_first_process_ends_what_it_left(daemon: Daemon, native: Path) -> None:
    marked = Marked()
    ran = shell(
        daemon, native, f"setsid sleep {marked.seconds} & (sleep {marked.seconds} &); exit 5"
    )
    assert ran.status == 5
    assert gone_within(marked, 1.0)


def test_a_supervisor_that_is_killed_ends_the_step_and_is_reported(
    daemon: Daemon, native: Path
) -> None:
    marked = Marked()
    with running(daemon, native, marked.tree()) as (client, identifier, output):
        read_until(output, b"up")
        with daemon.client() as other:
            steps = other.call("io.maid.Steps.List")["steps"]
        supervisor = next(step["pid"] for step in steps if step["id"] == identifier)
        os.kill(supervisor, signal.SIGKILL)
        assert gone_within(marked, 1.0)
        result = finished(client)
    assert (result["outcome"], result["status"]) == ("lost", 125)
    assert "supervisor was killed" in result["error"]
    assert until(lambda: identifier not in daemon.steps())


def test_a_supervisor_that_is_killed_while_it_starts_leaves_no_container(
    daemon: Daemon, native: Path
) -> None:
    """At any moment between its own start and the container's."""
    marked = Marked()
    for delay in range(12):
        with running(daemon, native, f"sleep {marked.seconds}") as (client, identifier, _):
            with daemon.client() as other:
                steps = other.call("io.maid.Steps.List")["steps"]
            pid = next(step["pid"] for step in steps if step["id"] == identifier)
            time.sleep(delay * 0.001)
            os.kill(pid, signal.SIGKILL)
            assert finished(client)["outcome"] == "lost"
        assert until(lambda step=identifier: step not in daemon.steps())
    assert gone_within(marked, 2.0)


def test_a_step_that_is_cancelled_while_it_starts_ends(daemon: Daemon, native: Path) -> None:
    marked = Marked()
    for delay in range(12):
        with running(daemon, native, f"sleep {marked.seconds}") as (client, identifier, _):
            time.sleep(delay * 0.001)
            with daemon.client() as other:
                other.call("io.maid.Steps.Cancel", {"id": identifier})
            assert finished(client)["outcome"] == "cancelled"
        assert gone_within(marked, 0.5)


def test_what_is_unknown_cannot_be_cancelled(daemon: Daemon) -> None:
    with daemon.client() as client, pytest.raises(MaidError) as unknown:
        client.call("io.maid.Steps.Cancel", {"id": "1-2"})
    assert "there is no step 1-2" in unknown.value.message


def test_nothing_is_left_of_two_hundred_steps(daemon: Daemon, native: Path) -> None:
    """No descriptor, mount, directory, process or cgroup; one kind after another."""
    for _ in range(5):
        run(daemon, native, "/bin/true", network="none")
    assert until(lambda: not daemon.steps())
    descriptors, mounts = daemon.descriptors(), mounts_below(daemon.directory)
    children = Path(f"/proc/{daemon.pid}/task/{daemon.pid}/children").read_text().split()
    with daemon.client() as client:
        for number in range(200):
            kind = number % 10
            if kind == 0:
                ran = run(daemon, native, "/bin/true", network="none", client=client)
                assert ran.status == 0
            elif kind == 1:
                assert run(daemon, native, "/nosuch", client=client).status == 127
            elif kind == 2:
                assert run(daemon, native, "/bin/true", user=-1, client=client).refused
            elif kind == 3 and number < 50:
                ran = run(daemon, native, "/bin/true", memory=64 << 20, client=client)
                assert ran.refused or ran.status == 0
            else:
                assert run(daemon, native, "/bin/true", client=client).status == 0
    assert until(lambda: not daemon.steps())
    assert until(lambda: daemon.descriptors() <= descriptors), descriptors
    assert mounts_below(daemon.directory) == mounts
    after = Path(f"/proc/{daemon.pid}/task/{daemon.pid}/children").read_text().split()
    assert set(after) <= set(children)
    assert "Traceback" not in daemon.text()
