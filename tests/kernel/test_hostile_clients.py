"""Clients that mean harm: much at once, forever, or drop by drop. What is merely too much, and what
peers do by mistake, is in test_service_load.py and test_service_protocol.py."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import pytest
from serving import Serving, answers, closed, message, read_message, unharmed, warm_up

SERVICE = "org.varlink.service.GetInterfaceDescription"


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


@pytest.mark.parametrize("piece", [b"x" * 65536, b'{"a":' * 13107, b"[" * 65536, b"\xff" * 65536])
def test_a_request_of_a_hundred_megabytes_is_cut_off(daemon: Serving, piece: bytes) -> None:
    """Within a few megabytes, whatever it begins with."""
    sent = 0
    with daemon.connect() as connection, contextlib.suppress(ConnectionError):
        while sent < 100 << 20:
            connection.sendall(piece)
            sent += len(piece)
    assert sent < 8 << 20


def test_ten_thousand_calls_at_once_are_all_answered(daemon: Serving) -> None:
    """On twenty connections, and somebody else is served meanwhile."""
    connections = [daemon.connect() for _ in range(20)]
    call = message(SERVICE, interface="x.y")
    waiting = {connection: call * 500 for connection in connections}
    answered = dict.fromkeys(connections, 0)
    try:
        for connection in connections:
            connection.setblocking(False)
        while any(count < 500 for count in answered.values()):
            for connection in connections:
                if waiting[connection]:
                    with contextlib.suppress(BlockingIOError):
                        sent = connection.send(waiting[connection])
                        waiting[connection] = waiting[connection][sent:]
                with contextlib.suppress(BlockingIOError):
                    answered[connection] += connection.recv(65536).count(b"\0")
            if sum(answered.values()) % 7 == 0:
                assert answers(daemon)
    finally:
        for connection in connections:
            connection.close()
    assert set(answered.values()) == {500}


def test_a_call_that_comes_byte_by_byte_is_answered(daemon: Serving) -> None:
    with daemon.connect() as connection:
        for byte in message(SERVICE, interface="x.y"):
            connection.send(bytes([byte]))
        assert read_message(connection)["error"].endswith("InterfaceNotFound")


def test_calls_that_are_never_finished_keep_nobody_else_waiting(daemon: Serving) -> None:
    """As many as one user may have; they end with their connections, and leave nothing."""
    half = message(SERVICE, interface="x.y")[:-5]
    begun: list[socket.socket] = []
    try:
        while True:
            connection = daemon.connect()
            begun.append(connection)
            connection.sendall(half)
            if len(begun) >= 20:
                break
        assert answers(daemon)
        assert not any(_is_closed(connection) for connection in begun)
    finally:
        for connection in begun:
            connection.close()


def _is_closed(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        return connection.recv(1) == b""
    except BlockingIOError:
        return False


@pytest.mark.parametrize(
    "text",
    ["\x00", "../../etc/passwd", "linux/arm64\n[injected]", "‮", "%n%s{0}", "a" * 500_000, "\ud800"],
    ids=repr,
)
def test_odd_names_are_answered_in_words(daemon: Serving, text: str) -> None:
    """Wherever a text goes: a platform, a step's identifier, a release, an interface's name."""
    for method, parameters in (
        ("io.maid.Emulation.Ensure", {"platforms": [text]}),
        ("io.maid.Steps.Cancel", {"id": text}),
        ("io.maid.Steps.Wait", {"id": text}),
        ("io.maid.Store.Add", {"release": text, "architectures": [text]}),
        (SERVICE, {"interface": text}),
        (text, {}),
    ):
        with daemon.connect() as connection:
            connection.sendall(message(method, **parameters))
            try:
                reply = read_message(connection)
            except EOFError:
                continue  # not a call at all: the connection was closed
        assert "error" in reply or not reply["parameters"]["results"][0]["ok"], reply


def test_a_client_that_is_cut_off_does_not_come_back_to_life(daemon: Serving) -> None:
    """After a message that is none the connection is closed: what follows is not executed."""
    with daemon.connect() as connection:
        connection.sendall(b"garbage\0" + message("io.maid.Manager.Release"))
        assert closed(connection)
    status = daemon.call("io.maid.Manager.Status")["parameters"]["status"]
    assert status["ready"]
