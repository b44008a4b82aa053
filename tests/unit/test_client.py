"""The socket's client against a peer that says what it wants."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from maid import client
from maid.cli import follow
from maid.client import Client, ConnectionLost, ParameterRefused
from maid.errors import (
    AccessDenied,
    DaemonUnreachable,
    LimitReached,
    MaidError,
    PlatformUnavailable,
    StepRefused,
)


@contextmanager
def peer(path: Path, serve: Callable[[socket.socket], None]) -> Iterator[str]:
    """A listening socket that serves one connection in a thread."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def work() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(10)
                serve(connection)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        yield str(path)
        thread.join(10)
        assert not thread.is_alive()


def request(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """One request with its descriptors."""
    data, descriptors = bytearray(), []
    while not data.endswith(b"\0"):
        piece, found, _, _ = socket.recv_fds(connection, 65536, 10)
        assert piece
        data += piece
        descriptors += found
    return json.loads(data[:-1]), descriptors


def answering(*replies: bytes) -> Callable[[socket.socket], None]:
    def serve(connection: socket.socket) -> None:
        request(connection)
        for reply in replies:
            connection.sendall(reply)

    return serve


def test_a_call_is_one_message_and_its_answer_another(tmp_path: Path) -> None:
    seen = []

    def serve(connection: socket.socket) -> None:
        seen.append(request(connection)[0])
        connection.sendall(b'{"parameters":{"a":1}}\0')

    with peer(tmp_path / "s", serve) as path, Client(path) as client:
        assert client.call("io.maid.Manager.Status", {"x": "é\udcff"}) == {"a": 1}
    assert seen == [{"method": "io.maid.Manager.Status", "parameters": {"x": "é\udcff"}}]


def test_answers_may_come_in_pieces_and_several_at_once(tmp_path: Path) -> None:
    def serve(connection: socket.socket) -> None:
        assert request(connection)[0]["more"]
        for piece in (b'{"continues":tr', b'ue,"parameters":{"n":1}}', b"\0"):
            connection.sendall(piece)
        connection.sendall(b'{"continues":true,"parameters":{"n":2}}\0{"parameters":{"n":3}}\0')

    with peer(tmp_path / "s", serve) as path, Client(path) as client:
        assert [reply["n"] for reply in client.stream("x.y.Z")] == [1, 2, 3]


def test_descriptors_go_with_a_message_of_any_length(tmp_path: Path) -> None:
    seen: list[os.stat_result] = []

    def serve(connection: socket.socket) -> None:
        message, descriptors = request(connection)
        assert len(message["parameters"]["long"]) == 3_000_000
        for descriptor in descriptors:
            seen.append(os.fstat(descriptor))
            os.close(descriptor)
        connection.sendall(b"{}\0")

    with peer(tmp_path / "s", serve) as path, Client(path) as client:
        null = os.open(os.devnull, os.O_RDONLY)
        directory = os.open(tmp_path, os.O_RDONLY)
        assert client.call("x.y.Z", {"long": "x" * 3_000_000}, [null, directory]) == {}
        expected = [os.fstat(null).st_ino, os.fstat(directory).st_ino]
        os.close(null)
        os.close(directory)
    assert [found.st_ino for found in seen] == expected


@pytest.mark.parametrize(
    ("error", "parameters", "kind", "status", "words"),
    [
        ("org.varlink.service.PermissionDenied", {}, AccessDenied, 1, "does not allow"),
        (
            "org.varlink.service.InvalidParameter",
            {"parameter": "p"},
            ParameterRefused,
            2,
            "parameter p",
        ),
        ("org.varlink.service.MethodNotFound", {"method": "M"}, MaidError, 1, "another version"),
        ("org.varlink.service.InterfaceNotFound", {"interface": "i.f"}, MaidError, 1, "i.f"),
        ("io.maid.Emulation.PlatformNotAvailable", {"message": "m"}, PlatformUnavailable, 3, "m"),
        ("io.maid.Steps.Refused", {"message": "m", "hint": "h"}, StepRefused, 125, "m (h)"),
        ("io.maid.Steps.LimitExceeded", {"message": "m"}, LimitReached, 1, "m"),
        ("io.maid.Manager.Failed", {"message": "m", "hint": "", "status": 2}, MaidError, 2, "m"),
        ("io.maid.Future.Error", {"message": "m", "hint": "h"}, MaidError, 1, "m (h)"),
        ("io.other.Error", {"x": 1}, MaidError, 1, "io.other.Error"),
    ],
)
def test_errors_become_maids_own(
    tmp_path: Path,
    error: str,
    parameters: dict[str, object],
    kind: type[MaidError],
    status: int,
    words: str,
) -> None:
    reply = json.dumps({"error": error, "parameters": parameters}).encode() + b"\0"
    with (
        peer(tmp_path / "s", answering(reply)) as path,
        Client(path) as client,
        pytest.raises(MaidError) as caught,
    ):
        client.call("x.y.Z")
    assert type(caught.value) is kind
    assert caught.value.exit_status == status
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "reply", [b"HTTP/1.1 400\r\n\0", b"[]\0", b"\xff\0", b"[" * 100_000 + b"\0", b'"x"\0']
)
def test_what_is_no_varlink_is_no_daemon(tmp_path: Path, reply: bytes) -> None:
    with (
        peer(tmp_path / "s", answering(reply)) as path,
        Client(path) as client,
        pytest.raises(DaemonUnreachable, match="no maid daemon"),
    ):
        client.call("x.y.Z")


@pytest.mark.parametrize("reply", [b"", b'{"parameters":'])
def test_a_connection_that_ends_too_soon_is_lost(tmp_path: Path, reply: bytes) -> None:
    with (
        peer(tmp_path / "s", answering(reply)) as path,
        Client(path) as client,
        pytest.raises(ConnectionLost) as caught,
    ):
        client.call("x.y.Z")
    assert caught.value.exit_status == 4


def test_an_answer_without_end_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maid.client.MESSAGE_LIMIT", 1 << 20)

    def serve(connection: socket.socket) -> None:
        request(connection)
        try:
            while True:
                connection.sendall(b"x" * 65536)
        except OSError:
            pass  # the client went away, as it should

    with (
        peer(tmp_path / "s", serve) as path,
        Client(path) as client,
        pytest.raises(ConnectionLost),
    ):
        client.call("x.y.Z")


@pytest.mark.parametrize("size", [1, 5_000_000], ids=["small", "more than is taken in"])
def test_a_socket_at_which_nobody_comes_is_given_up(tmp_path: Path, size: int) -> None:
    """As systemd's is, while the daemon does not come."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        with (
            Client(str(tmp_path / "s"), patience=0.2) as client,
            pytest.raises(DaemonUnreachable, match=r"does not look at the request for 0\.2 s"),
        ):
            client.call("x.y.Z", {"long": "x" * size})


def test_an_answer_may_take_as_long_as_it_takes(tmp_path: Path) -> None:
    """Once the request is looked at, and however often the time is over."""

    def serve(connection: socket.socket) -> None:
        request(connection)
        connection.sendall(b'{"continues":true,"parameters":{"n":1}}\0')
        time.sleep(0.6)
        connection.sendall(b'{"parameters":{"n":2}}\0')

    with peer(tmp_path / "s", serve) as path, Client(path, patience=0.2) as client:
        assert [reply["n"] for reply in client.stream("x.y.Z")] == [1, 2]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, "No such file"),
        (lambda path: path.write_text(""), "Connection refused"),
        (lambda path: socket.socket(socket.AF_UNIX).bind(str(path)), "Connection refused"),
    ],
    ids=["nothing", "a file", "a dead socket"],
)
def test_no_daemon_says_how_to_start_one(
    tmp_path: Path, make: Callable[[Path], object], words: str
) -> None:
    path = tmp_path / "s"
    make(path)
    with pytest.raises(DaemonUnreachable) as caught:
        Client(str(path))
    assert f"no maid daemon answers at {path}: {words}" in caught.value.message
    assert caught.value.hint == f"start one there: maid daemon --scope private --socket {path}"
    assert caught.value.exit_status == 4


@pytest.mark.parametrize("systemd", [True, False])
def test_only_the_services_socket_has_systemd_start_something(
    monkeypatch: pytest.MonkeyPatch, systemd: bool
) -> None:
    monkeypatch.setattr(os.path, "exists", lambda path: path == "/run/systemd/system" and systemd)
    for path, said in ((client.DEFAULT_SOCKET, systemd), ("/x/io.maid", False)):
        _, hint = client._unreachable(path, ConnectionRefusedError(111, "Connection refused"))
        assert ("systemctl enable --now maid" in hint) == said, hint


def test_only_the_services_log_is_the_journal(tmp_path: Path) -> None:
    with (
        peer(tmp_path / "s", answering()) as path,
        Client(path) as connection,
        pytest.raises(ConnectionLost) as caught,
    ):
        connection.call("x.y.Z")
    assert caught.value.hint.endswith("refuses this user or request: its log")
    assert client._log(client.DEFAULT_SOCKET) == "journalctl -u maid"


def test_a_step_whose_daemon_stays_away_goes_on_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "RECONNECT", 0.1)

    def serve(connection: socket.socket) -> None:
        request(connection)
        (tmp_path / "s").unlink()
        connection.sendall(b'{"continues":true,"parameters":{"step":{"started":{"id":"1-2"}}}}\0')

    with (
        peer(tmp_path / "s", serve) as path,
        pytest.raises(MaidError) as caught,
    ):
        follow.Follower(path, {}, []).result()
    assert caught.value.message.startswith("the daemon went away while the step")
    assert caught.value.hint == "it goes on; the next daemon ends it, because nobody waits for it"


def test_a_private_daemon_that_is_there_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    (tmp_path / "maid").mkdir()
    (tmp_path / "maid/io.maid").touch()
    with pytest.raises(DaemonUnreachable) as caught:
        Client(str(tmp_path / "other"))
    assert caught.value.hint.endswith(f"--socket {tmp_path}/maid/io.maid")
