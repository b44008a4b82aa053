"""Clients that are stopped, or read nothing, while steps end and much happens."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemons import MAID, environment, rootfs, until
from faults import Before, Faulted, all_is_well, well
from serving import message, read_message
from stepping import copy, read_until, run


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy(rootfs("busybox-arm64"), tmp_path_factory.mktemp("tree"))


@pytest.fixture(scope="module")
def served() -> Iterator[Faulted]:
    with Faulted() as daemon:
        yield daemon.start()


@pytest.fixture(scope="module")
def before(served: Faulted) -> Before:
    return well(served)


def test_a_client_that_is_stopped_while_its_step_ends_holds_nobody_up(
    served: Faulted, before: Before, tree: Path
) -> None:
    reader, writer = os.pipe()
    script = "echo up; while [ ! -e /go ]; do sleep 0.05; done; exit 7"
    client = subprocess.Popen(
        [MAID, "--socket", served.socket, "run", "--rootfs", tree, "--", "/bin/sh", "-c", script],
        stdin=subprocess.DEVNULL,
        stdout=writer,
        env=environment(),
    )
    os.close(writer)
    try:
        read_until(reader, b"up")
        client.send_signal(signal.SIGSTOP)
        (tree / "go").touch()
        assert until(lambda: served.status()["steps_running"] == 0, 20)
        assert until(lambda: not served.steps(), 20)
        assert run(served, tree, "/bin/true").status == 0
        client.send_signal(signal.SIGCONT)
        assert client.wait(20) == 7
    finally:
        client.kill()
        client.wait()
        os.close(reader)
        (tree / "go").unlink()
    all_is_well(served, before)


def test_followers_that_read_nothing_hold_nobody_up_and_cost_little(
    served: Faulted, before: Before, tree: Path
) -> None:
    memory = served.memory()
    follow = message("io.maid.Manager.Events", more=True, follow=True, since=0)
    with contextlib.ExitStack() as stack:
        followers = [stack.enter_context(served.connect()) for _ in range(20)]
        for follower in followers:
            follower.sendall(follow)
        for _ in range(5):
            served.call("io.maid.Manager.Release")
            served.call("io.maid.Manager.Reload")
            assert run(served, tree, "/nosuch").status == 127
        assert served.memory() < memory + (24 << 20)
        newest = served.status()["events"]
        # Who begins to read later has lost nothing that fits into a queue.
        numbers = [0]
        while numbers[-1] < newest:
            numbers.append(read_message(followers[0])["parameters"]["event"]["sequence"])
        assert numbers == list(range(newest + 1))
    all_is_well(served, before)
