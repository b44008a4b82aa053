"""Steps and the daemon's life: killed, stopped, started again."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemons import MAID, Daemon, environment, mounts_below, until
from stepping import Marked, gone_within, read_until, run, running

from maid.client import ConnectionLost

UNCLAIMED = 15.0
"""Seconds after which a step that nobody waits for is ended (maid.steps.runner)."""


@pytest.fixture(scope="module")
def own() -> Iterator[Daemon]:
    """A daemon that tests may kill; few platforms, so that it starts quickly."""
    with Daemon('[emulation]\nplatforms = ["linux/s390x"]\n') as made:
        yield made.start()


def maid_run(daemon: Daemon, tree: Path, script: str) -> tuple[subprocess.Popen[bytes], int]:
    """A running `maid run --json`, and the reading end of its step's output."""
    reader, writer = os.pipe()
    process = subprocess.Popen(
        [
            *(MAID, "--socket", daemon.socket, "run", "--json", "--rootfs", tree),
            *("--", "/bin/sh", "-c", script),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=writer,
        env=environment(),
    )
    os.close(writer)
    return process, reader


def test_a_killed_daemon_leaves_the_step_running_and_the_next_one_takes_it_up(
    own: Daemon, native: Path
) -> None:
    gate = native / "go"
    script = "echo up; while [ ! -e /go ]; do sleep 0.05; done; echo late; exit 9"
    process, output = maid_run(own, native, script)
    read_until(output, b"up")
    own.kill()
    # The step does not need a daemon to go on, nor for its output to arrive.
    gate.touch()
    read_until(output, b"late")
    gate.unlink()
    own.start()
    document, _ = process.communicate(timeout=20)
    os.close(output)
    assert process.returncode == 9
    assert json.loads(document)["status"] == 9
    assert until(lambda: not own.steps())


def test_a_step_that_outlives_two_daemons_is_waited_for(own: Daemon, native: Path) -> None:
    gate = native / "go"
    process, output = maid_run(
        own, native, "echo up; while [ ! -e /go ]; do sleep 0.05; done; exit 4"
    )
    read_until(output, b"up")
    for end in (own.kill, own.stop):
        end()
        own.start()
        with own.client() as client:
            steps = client.call("io.maid.Steps.List")["steps"]
            assert [step["platform"].startswith("linux/") for step in steps] == [True]
    gate.touch()
    assert process.wait(20) == 4
    gate.unlink()
    os.close(output)


def test_stopping_the_daemon_keeps_steps(own: Daemon, native: Path) -> None:
    marked = Marked()
    process, output = maid_run(own, native, f"echo up; sleep {marked.seconds}")
    read_until(output, b"up")
    assert own.stop() == 0
    assert not until(lambda: not marked.alive(), 0.5)
    own.start()
    with own.client() as client:
        (step,) = client.call("io.maid.Steps.List")["steps"]
        client.call("io.maid.Steps.Cancel", {"id": step["id"]})
    assert process.wait(20) == 137
    os.close(output)
    assert gone_within(marked, 1.0)


def test_a_step_that_ends_between_two_daemons_has_a_result(own: Daemon, native: Path) -> None:
    with running(own, native, "echo up; sleep 0.3; exit 6") as (client, identifier, output):
        read_until(output, b"up")
        own.kill()
        client.close()
    assert until(lambda: (own.runtime / "steps" / identifier / "result").exists())
    own.start()
    with own.client() as client:
        result = client.call("io.maid.Steps.Wait", {"id": identifier})["result"]
    assert (result["outcome"], result["status"]) == ("exited", 6)
    assert until(lambda: not own.steps())


def test_a_supervisor_that_died_between_two_daemons_is_reported_and_its_container_killed(
    own: Daemon, native: Path
) -> None:
    marked = Marked()
    with running(own, native, f"echo up; sleep {marked.seconds}") as (client, identifier, output):
        read_until(output, b"up")
        own.kill()
        supervisor = own.runtime / "steps" / identifier / "supervisor"
        os.kill(int(supervisor.read_text()), signal.SIGKILL)
        client.close()
        own.start()
        assert gone_within(marked, 1.0)
        with own.client() as other:
            result = other.call("io.maid.Steps.Wait", {"id": identifier})["result"]
    assert result["outcome"] == "lost"


def test_a_step_that_nobody_asks_for_any_longer_is_ended(own: Daemon, native: Path) -> None:
    marked = Marked()
    with running(own, native, marked.tree()) as (client, _, output):
        read_until(output, b"up")
        own.kill()
        client.close()
    own.start()
    assert len(marked.alive()) >= 5
    assert not gone_within(marked, UNCLAIMED / 3)
    assert gone_within(marked, UNCLAIMED)
    assert "nobody waits for step" in own.text()


def test_remains_that_tell_nothing_are_removed(own: Daemon, native: Path) -> None:
    own.stop()
    for name, content in (("1-empty", None), ("2-broken", "{"), ("3-wrong", '{"id": 7}')):
        (own.runtime / "steps" / name).mkdir(parents=True)
        if content is not None:
            (own.runtime / "steps" / name / "step.json").write_text(content)
    own.start()
    assert not [name for name in own.steps() if name[:2] in ("1-", "2-", "3-")]
    assert run(own, native, "/bin/true").status == 0


def test_a_root_file_system_survives_whatever_is_removed(own: Daemon, native: Path) -> None:
    """Even if its mount were visible where the step's directory is removed."""
    own.stop()
    place = own.runtime / "steps/4-mounted/rootfs"
    place.mkdir(parents=True)
    subprocess.run(["mount", "--bind", native, place], check=True)
    try:
        own.start()
        assert (native / "bin/busybox").exists()
    finally:
        # Set aside under another name, with the mount.
        (point,) = (p for p in mounts_below(own.runtime) if "4-mounted" in p)
        subprocess.run(["umount", point], check=True)
    own.restart()
    assert not [name for name in own.steps() if "4-mounted" in name]


def test_release_keeps_the_instance_of_running_steps(own: Daemon, foreign: Path) -> None:
    with running(own, foreign, "echo up; sleep 0.3; /bin/uname -m") as (_, _, output):
        read_until(output, b"up")
        with own.client() as other:
            other.call("io.maid.Manager.Release")
    own.restart()
    assert run(own, foreign, "/bin/uname", "-m").lines == ["s390x"]


def test_a_released_daemon_leaves_nothing_for_a_result_that_nobody_asked_for(native: Path) -> None:
    """Only for a step that still runs."""
    with Daemon('[emulation]\nplatforms = ["linux/s390x"]\n') as made:
        made.start()
        gate = native / "go"
        script = "echo up; while [ ! -e /go ]; do sleep 0.05; done"
        with running(made, native, script) as (client, identifier, output):
            read_until(output, b"up")
            made.kill()
            client.close()
        made.start()._call("io.maid.Manager.Release")
        made.stop()
        assert made.steps() == [identifier]
        gate.touch()
        try:
            assert until(lambda: (made.runtime / "steps" / identifier / "result").exists())
        finally:
            gate.unlink()
        made.start()._call("io.maid.Manager.Release")
        assert made.steps() == [identifier]
        made.stop()
        assert not made.runtime.exists()
        assert not mounts_below(made.runtime)


def test_a_connection_that_the_daemon_ends_is_said_to_be(own: Daemon, native: Path) -> None:
    with running(own, native, "echo up; sleep 1") as (client, _, output):
        read_until(output, b"up")
        own.stop()
        with pytest.raises(ConnectionLost):
            client._reply()
    own.start()


def test_a_removed_daemon_leaves_no_mount_and_no_process() -> None:
    daemon = Daemon('[emulation]\nplatforms = ["linux/s390x"]\n').start()
    assert mounts_below(daemon.directory)
    daemon.kill()
    daemon.remove()
    assert not mounts_below(daemon.directory)
    assert not daemon.directory.exists()
