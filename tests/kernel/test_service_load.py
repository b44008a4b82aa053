"""Too much of anything: descriptors, calls, connections, and peers that never read or go away."""

from __future__ import annotations

import contextlib
import os
import random
import re
import resource
import select
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemons import until
from serving import FEW, Serving, answers, closed, flood, message, read_message, unharmed, warm_up

LIMIT = 1 << 20
"""[socket] max_message_bytes, the default."""

MANAGER, EMULATION, STEPS = "io.maid.Manager", "io.maid.Emulation", "io.maid.Steps"


@pytest.fixture(scope="module")
def daemon() -> Iterator[Serving]:
    with Serving() as made:
        made.start()
        warm_up(made)
        yield made


@pytest.fixture(autouse=True)
def leave_as_it_was(daemon: Serving) -> Iterator[None]:
    with unharmed(daemon):
        yield


@pytest.mark.parametrize("data", [b"garbage\0", b"\xff\0", b"[]\0", message(f"{MANAGER}.Status")])
@pytest.mark.parametrize("count", [1, 128, 253])
def test_descriptors_that_nobody_wants_are_closed(daemon: Serving, data: bytes, count: int) -> None:
    before = daemon.descriptors()
    for _ in range(5):
        with daemon.connect() as connection:
            flood(connection, data, count)
            connection.settimeout(0.2)
            with contextlib.suppress(TimeoutError, ConnectionResetError):
                connection.recv(65536)
            assert until(lambda: daemon.descriptors() <= before + 2)


def test_descriptors_do_not_wait_in_a_message_that_is_never_complete(daemon: Serving) -> None:
    before = daemon.descriptors()
    with daemon.connect() as connection:
        flood(connection, b"{", 100)
        time.sleep(0.1)
        assert daemon.descriptors() >= before + 100  # they belong to a message that may be one
        flood(connection, b"{", 100)  # a second time they do not
        assert closed(connection)


def test_descriptors_of_a_long_message_are_not_lost(daemon: Serving, tmp_path: Path) -> None:
    """They come with its first byte, long before its last."""
    call = message(
        f"{STEPS}.Run",
        more=True,
        stdin=0,
        stdout=0,
        stderr=0,
        rootfs=1,
        command=["/bin/true"],
        platform="linux/arm64",
        environment={"LONG": "x" * 90_000},
    )
    null = os.open(os.devnull, os.O_RDWR)
    rootfs = os.open(tmp_path, os.O_RDONLY)
    with daemon.connect() as connection:
        sent = socket.send_fds(connection, [call], [null, rootfs])
        connection.sendall(call[sent:])
        os.close(null)
        os.close(rootfs)
        reply = read_message(connection)
        while reply.get("continues"):
            reply = read_message(connection)
    # An empty root file system has no /bin/true: that was found out in it.
    finished = reply["parameters"]["step"]["finished"]
    assert finished["status"] == 127, reply


def test_many_calls_at_once_are_answered_in_their_order(daemon: Serving) -> None:
    calls, expected = bytearray(), []
    choice = random.Random(7)
    for number in range(300):
        kind = choice.choice(["sync", "async", "error", "oneway"])
        if kind == "sync":
            calls += message(
                "org.varlink.service.GetInterfaceDescription", interface=f"x.y{number}"
            )
            expected.append(f"x.y{number}")
        elif kind == "error":
            calls += message(f"x.z{number}.Call")
            expected.append(f"x.z{number}")
        elif kind == "async":
            calls += message(f"{EMULATION}.Ensure", platforms=[f"linux/no{number}"])
            expected.append(f"linux/no{number}")
        else:
            calls += message(f"x.y{number}.Call", oneway=True)
    with daemon.connect() as connection:
        connection.sendall(calls)
        connection.shutdown(socket.SHUT_WR)
        for name in expected:
            found = read_message(connection)["parameters"]
            assert (found.get("interface") or found["results"][0]["platform"]) == name
        assert connection.recv(1) == b""


def test_who_asks_and_never_reads_is_not_read_from_any_longer(daemon: Serving) -> None:
    call = message("org.varlink.service.GetInterfaceDescription", interface=STEPS)
    with daemon.connect() as connection:
        connection.settimeout(1)
        sent = 0
        with contextlib.suppress(TimeoutError):
            while sent < 64 * LIMIT:
                sent += connection.send(call * 100)
        assert sent < 4 * LIMIT
        # Somebody else is served all the while, and it goes on where it stood.
        assert "parameters" in daemon.call(f"{MANAGER}.Status")
        connection.settimeout(10)
        for _ in range(100):
            assert read_message(connection)["parameters"]["description"]


def test_who_never_reads_does_not_outlive_its_misuse(daemon: Serving) -> None:
    """No connection stays open that is not counted any longer: what it did not read is dropped."""
    call = message("org.varlink.service.GetInterfaceDescription", interface=STEPS)

    def counted() -> int:
        text = daemon.call(f"{MANAGER}.Metrics")["parameters"]["text"]
        return int(float(re.findall(r"^maid_connections (\S+)$", text, re.MULTILINE)[0])) - 1

    with contextlib.ExitStack() as opened:
        connections = [opened.enter_context(daemon.connect()) for _ in range(50)]
        # Somewhere between these numbers the socket is full and a few answers wait.
        for number, connection in enumerate(connections, 20):
            connection.sendall(call * number)
        time.sleep(0.3)
        for connection in connections:
            connection.sendall(b"[]\0")
        poll = select.poll()
        for connection in connections:
            poll.register(connection, 0)  # POLLHUP is always told

        def still_open() -> int:
            return len(connections) - len(poll.poll(0))

        assert until(lambda: counted() == still_open() < len(connections))


def test_a_half_closed_connection_gets_its_answer(daemon: Serving) -> None:
    with daemon.connect() as connection:
        connection.sendall(message(f"{EMULATION}.Ensure", platforms=["linux/arm64"]))
        connection.shutdown(socket.SHUT_WR)
        assert read_message(connection)["parameters"]["results"][0]["ok"]
        assert connection.recv(1) == b""


def test_a_oneway_call_just_before_the_end_counts(daemon: Serving) -> None:
    connections = f"{MANAGER}.Metrics"
    with daemon.connect() as connection:
        connection.sendall(message(connections, oneway=True))
        connection.sendall(message(f"{MANAGER}.Status", oneway=True))
        assert connection.send(message(f"{MANAGER}.Status")) > 0
        assert "status" in read_message(connection)["parameters"]  # the one that is not oneway


def test_a_call_ends_when_its_caller_goes(daemon: Serving) -> None:
    """Also behind a request that was not read yet."""

    before = daemon.descriptors()
    for _ in range(20):
        with daemon.connect() as connection:
            connection.sendall(message(f"{EMULATION}.Watch", more=True))
            assert read_message(connection)["continues"]
            connection.sendall(message(f"{EMULATION}.Watch", more=True))
    assert until(lambda: daemon.descriptors() <= before)


def test_more_connections_than_one_user_may_have_are_refused(daemon: Serving) -> None:
    held: list[socket.socket] = []
    try:
        for _ in range(64):
            held.append(daemon.connect())
        held[-1].sendall(message(f"{MANAGER}.Status"))
        assert "status" in read_message(held[-1])["parameters"]
        with daemon.connect() as refused:
            assert closed(refused)
        held.pop().close()
        assert until(lambda: answers(daemon))
    finally:
        for connection in held:
            connection.close()


def test_thousands_of_connections_come_and_go(daemon: Serving) -> None:
    lines = len(daemon.text().splitlines())
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    held = []
    try:
        for _ in range(3000):
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connection.connect(str(daemon.socket))
            held.append(connection)
    finally:
        for connection in held:
            connection.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    time.sleep(0.2)
    assert len(daemon.text().splitlines()) <= lines + 5  # nobody fills the journal


def test_without_descriptors_it_waits_for_some_and_goes_on() -> None:
    """Neither a busy loop nor a full log while accept(2) says EMFILE."""
    config = f"{FEW}\n[socket]\nmax_connections_per_uid = 4096\n"
    with Serving(config, prelude=["prlimit", "--nofile=96:96"]) as daemon:
        daemon.start()
        held = [daemon.connect() for _ in range(120)]
        try:
            assert until(lambda: "could not be accepted" in daemon.text())
            before = processor_time(daemon.pid)
            time.sleep(1.5)
            assert processor_time(daemon.pid) - before < 0.3
            assert daemon.text().count("could not be accepted") < 5
        finally:
            for connection in held:
                connection.close()
        assert until(lambda: answers(daemon))
        assert "Traceback" not in daemon.text()


def processor_time(pid: int) -> float:
    """Seconds of processor time that a process has used (proc_pid_stat(5))."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
