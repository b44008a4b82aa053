"""A daemon of one's own for tests of the service: private scope, own directories, few platforms."""

from __future__ import annotations

import array
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

MAID = Path(sys.executable).with_name("maid")
START = 30.0
"""Seconds that a daemon may take to answer on a busy machine."""

FEW = """
[emulation]
platforms = ["linux/arm64", "linux/riscv64"]
ready = ["linux/arm64"]
"""


def environment(**more: str) -> dict[str, str]:
    """The environment of what tests start: none of the caller's settings of maid."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MAID_", "_MAID"))}
    for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "LISTEN_PID", "LISTEN_FDS", "NO_COLOR"):
        clean.pop(name, None)
    return {**clean, **more}


class Serving:
    """A daemon process with its socket `socket` and its log. `directory` holds everything of it."""

    def __init__(
        self,
        directory: Path,
        config: str = FEW,
        *,
        arguments: Sequence[str] = (),
        variables: Mapping[str, str] | None = None,
        command: Sequence[str] = (),
    ) -> None:
        self.directory = directory
        self.socket = directory / "io.maid"
        self.config = directory / "maid.toml"
        self.log = directory / "log"
        self.config.write_text(f"{config}\n[paths]\nruntime = '{directory}/run'\n")
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [
                    *(command or (MAID, "daemon", "--socket", self.socket)),
                    *("--scope", "private", "--config", self.config),
                    *arguments,
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment(**(variables or {})),
            )

    @property
    def pid(self) -> int:
        """The process of the daemon."""
        return self.process.pid

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

    def wait(self) -> Serving:
        """Wait until it answers."""
        until = time.monotonic() + START
        while True:
            assert self.process.poll() is None, self.text()
            with contextlib.suppress(OSError):
                if "parameters" in self.call("io.maid.Manager.Status"):
                    return self
            assert time.monotonic() < until, self.text()
            time.sleep(0.02)

    def maid(self, *arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run the command line against it."""
        return maid("--socket", self.socket, *arguments, **options)

    def text(self) -> str:
        """What it has logged."""
        return self.log.read_text(errors="replace")

    def descriptors(self) -> int:
        """How many descriptors it has open."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def memory(self) -> int:
        """Its resident memory in bytes."""
        fields = Path(f"/proc/{self.pid}/statm").read_text().split()
        return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End it; its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(20)


@contextlib.contextmanager
def serving(directory: Path, config: str = FEW, **options: Any) -> Iterator[Serving]:
    """A daemon that answers; afterwards it has released its entries and ended."""
    daemon = Serving(directory, config, **options)
    try:
        yield daemon.wait()
        daemon.call("io.maid.Manager.Release")
    finally:
        daemon.stop()


def maid(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run `maid` with these arguments and return what it did."""
    options.setdefault("env", environment())
    return subprocess.run(
        [MAID, *arguments], capture_output=True, text=True, timeout=60, check=False, **options
    )


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
    assert soon(lambda: answers(daemon))
    assert soon(lambda: daemon.descriptors() <= descriptors)
    assert daemon.memory() < before + (24 << 20)
    log = daemon.text()
    for word in ("Traceback", "unhandled", "never retrieved", "was destroyed but"):
        assert word not in log, log[-3000:]


def answers(daemon: Serving) -> bool:
    """Whether it serves a new connection of ours."""
    with contextlib.suppress(ConnectionError, EOFError):
        return "status" in daemon.call("io.maid.Manager.Status")["parameters"]
    return False


def soon(holds: Callable[[], bool]) -> bool:
    """Whether it holds within five seconds."""
    until = time.monotonic() + 5
    while not holds():
        if time.monotonic() > until:
            return False
        time.sleep(0.01)
    return True


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
