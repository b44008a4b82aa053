"""A daemon for tests of the service, and what they send and expect byte by byte."""

from __future__ import annotations

import array
import contextlib
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from daemons import Daemon, until

FEW = """
[emulation]
platforms = ["linux/arm64", "linux/riscv64"]
ready = ["linux/arm64"]
"""


class Serving(Daemon):
    """A daemon that is spoken to byte by byte; few platforms, so that it starts at once."""

    def __init__(self, config: str = FEW, **options: Any) -> None:
        super().__init__(config, **options)

    def connect(self) -> socket.socket:
        """A connection, with a time limit of ten seconds for everything on it."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(10)
        connection.connect(str(self.socket))
        return connection

    def call(self, method: str, **parameters: object) -> dict[str, Any]:
        """The whole reply to one call on a connection of its own."""
        with self.connect() as connection:
            connection.sendall(message(method, **parameters))
            return read_message(connection)

    def memory(self) -> int:
        """Its resident memory in bytes."""
        fields = Path(f"/proc/{self.pid}/statm").read_text().split()
        return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


def message(
    method: str, /, *, more: bool = False, oneway: bool = False, **parameters: Any
) -> bytes:
    """One call as it goes over the wire."""
    call: dict[str, Any] = {"method": method, "parameters": parameters}
    if more:
        call["more"] = True
    if oneway:
        call["oneway"] = True
    return json.dumps(call).encode() + b"\0"


def read_message(connection: socket.socket) -> dict[str, Any]:
    """The next reply, a byte at a time. Raises EOFError when the connection is closed before."""
    data = bytearray()
    while not data.endswith(b"\0"):
        piece = connection.recv(1) if not data else connection.recv(65536, socket.MSG_PEEK)
        if not piece:
            raise EOFError
        if data:
            piece = connection.recv(piece.find(b"\0") + 1 or len(piece))
        data += piece
    reply = json.loads(data[:-1])
    assert isinstance(reply, dict)
    return reply


def warm_up(daemon: Serving) -> None:
    """Have it import and cache what it does on first use."""
    for _ in range(20):
        daemon.call("io.maid.Manager.Status")
        daemon.call("io.maid.Manager.Metrics")


@contextlib.contextmanager
def unharmed(daemon: Serving) -> Iterator[None]:
    """Hold that the daemon is afterwards as it was: it answers, has no more descriptors, no more
    memory than an allocator keeps, and no exception in its log."""
    descriptors, before = daemon.descriptors(), daemon.memory()
    yield
    assert until(lambda: answers(daemon))
    assert until(lambda: daemon.descriptors() <= descriptors)
    assert daemon.memory() < before + (24 << 20)
    log = daemon.text()
    for word in ("Traceback", "unhandled", "never retrieved", "was destroyed but"):
        assert word not in log, log[-3000:]


def answers(daemon: Serving) -> bool:
    """Whether it serves a new connection of ours."""
    with contextlib.suppress(ConnectionError, EOFError):
        return "status" in daemon.call("io.maid.Manager.Status")["parameters"]
    return False


def closed(connection: socket.socket) -> bool:
    """Whether the daemon closes the connection (rather than wait for more)."""
    try:
        while connection.recv(65536):
            pass
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False
    return True


def flood(connection: socket.socket, data: bytes, count: int) -> None:
    """Send `data` with `count` descriptors of /dev/null."""
    null = os.open(os.devnull, os.O_RDONLY)
    try:
        connection.sendmsg(
            [data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [null] * count))]
        )
    finally:
        os.close(null)
