"""Emulated programs that die of a signal: told by the kernel, for those who want to know.

When libc-bin's trigger or a Go compiler crashes under QEMU, the build's log rarely says so. With
`[emulation] watch_crashes` the kernel's process connector (pyroute2's ProcEventSocket) tells of
every exec and exit, and a process whose executable is an interpreter in use and that ends by a
signal such as SIGSEGV becomes an event. It is off by default, because it wakes for every process on
the machine.

The watching is done in a process of its own, `python -m maid.emulation.crashes`, for the memory
that pyroute2 needs, and so that a machine that starts thousands of processes does not keep the
daemon from its work.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maid.emulation.emulators import Choice

CRASHES = frozenset(
    getattr(signal, f"SIG{name}") for name in ("SEGV", "ILL", "ABRT", "BUS", "FPE", "SYS", "TRAP")
)
"""Signals that a program does not end by on purpose, as a rule."""

Report = Callable[[str, str, str], None]
"""Called with the target's name, the signal's ("" when the watching has ended) and a sentence."""


class Crashes:
    """The daemon's side: starts the watching process and hands on what it says."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._socket: socket.socket | None = None
        self._process: asyncio.subprocess.Process | None = None

    async def start(self, choices: Iterable[Choice]) -> None:
        """Begin to watch the interpreters of `choices`."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        try:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "maid.emulation.crashes", str(theirs.fileno())),
                pass_fds=(theirs.fileno(),),
                stdin=asyncio.subprocess.DEVNULL,
            )
        finally:
            theirs.close()
        self._socket = ours
        asyncio.get_running_loop().add_reader(ours.fileno(), self._on_report)
        self.update(choices)

    def update(self, choices: Iterable[Choice]) -> None:
        """The interpreters have changed."""
        if self._socket is None:
            return
        files = {
            f"{offer.device}:{offer.inode}": offer.target.name
            for choice in choices
            for offer in choice.offers
        }
        with contextlib.suppress(OSError):
            self._socket.send(json.dumps(files).encode())

    async def close(self) -> None:
        """Watch no longer."""
        self._forget()
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()
            await self._process.wait()
            self._process = None

    def _forget(self) -> None:
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None

    def _on_report(self) -> None:
        assert self._socket is not None
        data = self._socket.recv(65536)
        if not data:
            self._forget()
            ended = "crashes are not watched any longer: the watching process has ended"
            self._report("", "", ended)
            return
        told = json.loads(data)
        self._report(told["target"], told["signal"], told["message"])


class Watcher:
    """The other side: which process runs under which interpreter, and how it ended."""

    def __init__(self) -> None:
        self.interpreters: dict[str, str] = {}
        self._emulated: dict[int, tuple[str, str]] = {}

    def on_event(self, event: dict[str, Any]) -> dict[str, str] | None:
        """Take in one event of the process connector; what there is to tell, or None."""
        match event.get("event"):
            case "PROC_EVENT_EXEC":
                self._on_exec(event["process_tgid"])
            case "PROC_EVENT_FORK":
                known = self._emulated.get(event["parent_tgid"])
                if known and event["child_pid"] == event["child_tgid"]:
                    self._emulated[event["child_tgid"]] = known
            case "PROC_EVENT_EXIT" if event["process_pid"] == event["process_tgid"]:
                known = self._emulated.pop(event["process_tgid"], None)
                number = event["exit_code"] & 0x7F
                if known and number in CRASHES:
                    target, program = known
                    name = signal.Signals(number).name
                    return {
                        "target": target,
                        "signal": name,
                        "message": f"{program} (process {event['process_tgid']}) died of {name}",
                    }
        return None

    def _on_exec(self, pid: int) -> None:
        self._emulated.pop(pid, None)
        with contextlib.suppress(OSError):
            # With flag F this is the interpreter, wherever the program lies (facts/kernel.md).
            file = os.stat(f"/proc/{pid}/exe")
            target = self.interpreters.get(f"{file.st_dev}:{file.st_ino}")
            if target is not None:
                self._emulated[pid] = (target, _program(pid))


def _program(pid: int) -> str:
    """The emulated program's path: the first argument that names none of the interpreter's."""
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        words = file.read(4096).decode(errors="replace").split("\0")
    # The baked arguments are put on the stack before QEMU starts; the kernel shows what it passed:
    # the interpreter, the program's path, and with P its argv[0].
    return words[1] if len(words) > 1 and words[1] else words[0]


def work(connection: socket.socket) -> None:
    """Watch until the other side closes the connection."""
    from pyroute2 import ProcEventSocket

    watcher = Watcher()
    threading.Thread(target=_listen, args=(connection, watcher), daemon=True).start()
    with ProcEventSocket() as events:
        events.bind()
        events.control(listen=True)
        while True:
            for event in events.get():
                if told := watcher.on_event(event):
                    connection.send(json.dumps(told).encode())


def _listen(connection: socket.socket, watcher: Watcher) -> None:
    """Take in what the daemon says, and end with it."""
    while data := connection.recv(1 << 20):
        watcher.interpreters = json.loads(data)
    os._exit(0)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    work(socket.socket(fileno=int(sys.argv[1])))
