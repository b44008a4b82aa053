"""An upgrade from a version of before steps had an id of the caller's choice and the time since the
machine's start in their record (f5b9bb4): its steps are taken up, and its daemon is still asked."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemons import Daemon
from stepping import Marked, gone_within, read_until, running

FEW = '[emulation]\nplatforms = ["linux/s390x"]\n'

RECORD = (
    '{"id":"1a20f103295-49b5ee26","uid":0,"platform":"linux/s390x","command":["/bin/sh","-c",'
    '"echo up; sleep 30"],"started":1795549049.49361,"via":"emulated","interpreter":'
    '"/var/lib/maid/private/baked/7a2f192b12e9197f4d4111f17164dae0/qemu-s390x-static",'
    '"table":"root","cgroups":[],"peak_file":""}'
)
"""A step.json as f5b9bb4 wrote it, when it ran that step."""


@pytest.fixture
def own() -> Iterator[Daemon]:
    with Daemon(FEW) as made:
        yield made.start()


def write_as_before(directory: Path) -> None:
    """Make a step's record what that version would have written."""
    file = directory / "step.json"
    now = json.loads(file.read_text())
    before = {key: now[key] for key in json.loads(RECORD)}
    assert now.keys() > before.keys()
    file.write_text(json.dumps(before, separators=(",", ":")))


def test_a_step_of_an_earlier_version_whose_supervisor_is_killed_leaves_nothing(
    own: Daemon, native: Path
) -> None:
    marked = Marked()
    with running(own, native, f"echo up; sleep {marked.seconds}") as (client, identifier, output):
        read_until(output, b"up")
        directory = own.runtime / "steps" / identifier
        own.kill()
        client.close()
        write_as_before(directory)
        time.sleep(1.5)  # the container's process is not of the moment in which it is taken up
        own.start()
        os.kill(int((directory / "supervisor").read_text()), signal.SIGKILL)
        with own.client() as other:
            result = other.call("io.maid.Steps.Wait", {"id": identifier})["result"]
        assert gone_within(marked, 10)
    assert result["outcome"] == "lost"
    assert 1 < result["wall"] < 600  # not since the machine was started


# A daemon that knows no `id` ---------------------------------------------------------------------


class Before:
    """In front of a daemon, a socket at which a Run with an `id` is refused, as that version does;
    everything else goes on to the daemon, descriptors and all. Counts both."""

    def __init__(self, daemon: Daemon, directory: Path) -> None:
        self.path = directory / "before"
        self.refused = self.passed_on = 0
        self._behind = str(daemon.socket)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.path))
        self._listener.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with (
            connection,
            socket.socket(socket.AF_UNIX) as behind,
            contextlib.suppress(OSError),  # the daemon is restarted
        ):
            behind.connect(self._behind)
            threading.Thread(target=self._back, args=(behind, connection), daemon=True).start()
            while True:
                data, descriptors = b"", []
                while not data.endswith(b"\0"):
                    piece, found, _, _ = socket.recv_fds(connection, 65536, 128)
                    if not piece:
                        return
                    data += piece
                    descriptors += found
                message = json.loads(data[:-1])
                if message["method"].endswith(".Run") and "id" in message["parameters"]:
                    self.refused += 1
                    error = "org.varlink.service.InvalidParameter"
                    answer = {"error": error, "parameters": {"parameter": "id"}}
                    connection.sendall(json.dumps(answer).encode() + b"\0")
                else:
                    self.passed_on += 1
                    socket.send_fds(behind, [data], descriptors)
                for descriptor in descriptors:
                    os.close(descriptor)

    def _back(self, behind: socket.socket, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := behind.recv(65536):
                connection.sendall(data)
            connection.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def before(own: Daemon, tmp_path: Path) -> Iterator[Before]:
    made = Before(own, tmp_path)
    yield made
    made.close()


def test_a_step_is_run_by_a_daemon_that_takes_no_id(
    own: Daemon, before: Before, native: Path, tmp_path: Path
) -> None:
    """scripts/install puts the new program there first, and restarts the daemon some time later."""
    named, own.socket = own.socket, before.path
    try:
        done = own.maid(
            *("run", "--json", "--rootfs", native, "--bind", f"{tmp_path}:/b"),
            *("--", "/bin/sh", "-c", "echo x >>/b/lines; exit 3"),
        )
    finally:
        own.socket = named
    assert done.returncode == 3, done.stderr
    assert (before.refused, before.passed_on) == (1, 1)
    assert (tmp_path / "lines").read_text() == "x\n"
    document = json.loads(done.stdout)
    with own.client() as client:
        result = client.call("io.maid.Steps.Wait", {"id": document["id"]})["result"]
    assert result["status"] == 3
