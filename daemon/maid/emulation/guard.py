"""The guard of one table: a process that puts back at once what somebody takes out of it.

The keeper's own repair takes milliseconds: it waits for its turn in the daemon, reads the table and
decides. The guard (daemon/native/guard.c) decides nothing. It holds the lines ready, and on the
event of a removal registers a stand-in, NAME.next, some microseconds later; what is disabled it
enables. The keeper sees the same events and puts everything in order in its own time. NAME itself
stays free for a moment, because other tools remove an entry in order to register theirs under its
name, and fail where it is taken.

The guard does not outlive the daemon, and is killed before maid takes an entry of its own away:
there is no order to the guard that could arrive too late. Nothing is taken away while one that was
killed does not die: a process in the middle of a system call may take its time.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import select
import signal
import socket
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from maid import kernel, native
from maid.binfmt.instance import Instance
from maid.emulation.ledger import Record
from maid.errors import MaidError

log = logging.getLogger(__name__)

BURST = 256
"""Repairs of one entry that may follow each other at once."""

RATE = 50
"""Repairs of one entry a second that go on for ever. One costs some 30 µs (measured, scripts/bench
faults): 34 entries, each of them removed fifty times a second, take a twentieth of a CPU."""

DIES = 2.0
"""Seconds to wait for the end of a guard that was killed. It takes some 100 µs."""

LONGEST = 4096
"""Bytes of a message of the guard's, at most: the counts of 128 entries are 1028."""

ENABLED = b"enabled\n"
"""What the kernel shows first of an entry that is not disabled."""


@dataclass(frozen=True)
class Slot:
    """One entry to guard: `target`'s, called `name`; `record` is its stand-in's, and `text` what
    the kernel shows of it after ENABLED."""

    target: str
    name: str
    record: Record
    text: bytes

    def message(self) -> tuple[bytes, ...]:
        """The four strings that guard.c takes."""
        entry = self.record.entry()
        return self.name.encode(), entry.name.encode(), entry.register_line(), self.text


@dataclass(frozen=True)
class Repaired:
    """What the guard did for one target ("": the table as a whole) since the last time: how often
    it registered the stand-in of the entry `name`, and how often it enabled what was disabled."""

    target: str
    name: str
    registered: int
    enabled: int


class Guard:
    """A running maid-guard for `instance`; `slots` are in the order of their importance.

    `told` is called in the event loop with what was repaired; `ended` when the guard has ended:
    by itself (True), or at last after `stop` has failed. Raises MaidError or OSError when it cannot
    be started.
    """

    def __init__(
        self,
        instance: Instance,
        slots: Sequence[Slot],
        told: Callable[[list[Repaired]], None],
        ended: Callable[[bool], None],
        *,
        burst: int = BURST,
        rate: int = RATE,
    ) -> None:
        self.slots = tuple(slots)
        self._told = told
        self._ended = ended
        self._counts = (0,) * (2 * len(self.slots) + 1)
        program = native.path("maid-guard")
        strings = [str(burst).encode(), str(rate).encode()]
        strings += [part for slot in self.slots for part in slot.message()]
        with contextlib.ExitStack() as stack:
            self._socket, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            stack.callback(other.close)
            abandon = stack.enter_context(contextlib.ExitStack())
            abandon.callback(self._socket.close)
            watched = kernel.IN_MODIFY | kernel.IN_DELETE
            events = kernel.inotify(instance.path, watched)
            stack.callback(os.close, events)
            # A mount of its own: nobody is kept from unmounting the table.
            table = kernel.clone_tree(instance.path)
            stack.callback(os.close, table)
            kept = (other.fileno(), events, table)
            self.pid = os.posix_spawn(
                program,
                [program, *map(str, kept)],
                {},
                # A descriptor duplicated onto itself loses close-on-exec (glibc >= 2.29).
                file_actions=[(os.POSIX_SPAWN_DUP2, each, each) for each in kept],
            )
            # It has not been told anything yet, so nothing can keep it from dying.
            abandon.callback(os.waitpid, self.pid, 0)
            abandon.callback(os.kill, self.pid, signal.SIGKILL)
            self._handle = os.pidfd_open(self.pid)
            abandon.callback(os.close, self._handle)
            self._socket.send(b"".join(part + b"\0" for part in strings))
            abandon.pop_all()
        self.stopping = False
        self._greeted = False
        self._socket.setblocking(False)
        loop = asyncio.get_running_loop()
        loop.add_reader(self._socket.fileno(), self._on_message)
        loop.add_reader(self._handle, self._on_end)

    def stop(self) -> None:
        """End it, now: when this returns it does nothing any more. What it did is told.

        Raises MaidError when it does not die within DIES seconds, and at once when asked again.
        """
        if self.pid < 0:
            return
        wait = 0.0 if self.stopping else DIES
        self.stopping = True
        signal.pidfd_send_signal(self._handle, signal.SIGKILL)
        if not _is_over(self._handle, wait):
            raise MaidError(
                f"the guard (process {self.pid}) was killed and does not end",
                "until it does nothing is removed or renewed; its state in /proc/PID/status says"
                " what it waits for: a frozen control group, or a kernel that does not answer",
            )
        # Not waited for: where somebody traces it, it is told to them first.
        os.waitpid(self.pid, os.WNOHANG)
        self.pid = -1
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._handle)
        loop.remove_reader(self._socket.fileno())
        self._receive()
        self._socket.close()
        os.close(self._handle)

    def _on_message(self) -> None:
        if not self._receive():  # the rest is for _on_end
            asyncio.get_running_loop().remove_reader(self._socket.fileno())

    def _on_end(self) -> None:
        by_itself = not self.stopping
        self.stop()
        self._ended(by_itself)

    def _receive(self) -> bool:
        """Take what the guard has told; False when it will not tell anything any more."""
        counts = self._counts
        going_on = False
        try:
            while message := self._socket.recv(LONGEST):
                if not self._greeted:
                    self._greeted = True
                    _note_lack(message.rstrip(b"\0").decode())
                    continue
                counts = struct.unpack(f"={len(self._counts)}I", message)
        except BlockingIOError:
            going_on = True
        except ConnectionResetError:
            pass  # it ended before it had read what it should guard
        if repaired := list(self._since(counts)):
            self._counts = counts
            self._told(repaired)
        return going_on

    def _since(self, counts: tuple[int, ...]) -> list[Repaired]:
        new = [
            (now - before) & 0xFFFFFFFF for now, before in zip(counts, self._counts, strict=True)
        ]
        found = [
            Repaired(slot.target, slot.name, new[2 * number], new[2 * number + 1])
            for number, slot in enumerate(self.slots)
        ]
        found.append(Repaired("", "", 0, new[-1]))
        return [each for each in found if each.registered or each.enabled]


def _is_over(handle: int, seconds: float) -> bool:
    """Whether the process of that pidfd ends within so many seconds."""
    poll = select.poll()
    poll.register(handle, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


@functools.cache
def _note_lack(what: str) -> None:
    """Say once what the guards of this daemon have to do without; "": nothing."""
    if what:
        log.warning("the guard repairs a little later than it could: it lacks %s", what)
