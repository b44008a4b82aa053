"""Network namespaces for steps that get none: one each, with loopback up, owned by the step's user
namespace.

pyroute2 does the work in a process of its own, `python -m maid.steps.network`: importing it costs
0.2 s and 30 MB that the daemon need not carry, and a namespace must be made by a process that has
entered the step's user namespace, from which there is no way back. The worker keeps one namespace
ready for the next step, starts with the first step that needs it, and ends when nobody asked for a
minute.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import os
import select
import signal
import socket
import sys
from dataclasses import dataclass

from maid.errors import StepRefused

IDLE = 60.0
"""Seconds without a request after which the worker ends."""

ANSWER = 10.0
"""Seconds to wait for a namespace; it takes some 15 ms, the worker's start 0.5 s."""

CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000


class Networks:
    """The daemon's side: asks the worker, and starts it when it is not there."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._lock = asyncio.Lock()

    async def new(self, user_namespace: int) -> int:
        """A descriptor of a new network namespace owned by `user_namespace` (a descriptor; -1: the
        daemon's own). The caller closes it. Raises StepRefused."""
        async with self._lock:
            for attempt in (1, 2):
                try:
                    return await self._ask(user_namespace)
                except (OSError, RuntimeError, TimeoutError) as error:
                    # The worker ends when idle: the first failure only means that it is gone.
                    await self.close()
                    if attempt == 2:
                        raise StepRefused(
                            f"no network namespace could be made for the step: {error}",
                            "--network host works without one",
                        ) from error
        raise AssertionError("unreachable")

    async def _ask(self, user_namespace: int) -> int:
        if self._socket is None:
            await self._start()
        connection = self._socket
        assert connection is not None
        rights = [] if user_namespace < 0 else [user_namespace]
        socket.send_fds(connection, [b"u" if rights else b"-"], rights)
        loop = asyncio.get_running_loop()
        arrived: asyncio.Future[None] = loop.create_future()
        loop.add_reader(connection.fileno(), _set, arrived)
        try:
            await asyncio.wait_for(arrived, ANSWER)
        finally:
            loop.remove_reader(connection.fileno())
        answer, descriptors, _, _ = socket.recv_fds(connection, 512, 1)
        if not descriptors:
            raise OSError(answer.decode(errors="replace") or "the worker has ended")
        os.set_inheritable(descriptors[0], False)
        return descriptors[0]

    async def _start(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "maid.steps.network", str(theirs.fileno())),
                pass_fds=(theirs.fileno(),),
                stdin=asyncio.subprocess.DEVNULL,
            )
        finally:
            theirs.close()
        self._socket = ours

    async def close(self) -> None:
        """End the worker."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()
            await self._process.wait()
            self._process = None


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


@dataclass
class _Spare:
    """A namespace made ahead for one user namespace, known by its inode."""

    owner: int
    descriptor: int


def _make(user_namespace: int) -> int:
    """Make one in a child, because entering a user namespace cannot be undone. Raises OSError."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    child = os.fork()
    if child == 0:
        try:
            ours.close()
            _become_owner(user_namespace)
            descriptor = os.open("/proc/self/ns/net", os.O_RDONLY)
            socket.send_fds(theirs, [b"n"], [descriptor])
        except BaseException as error:
            theirs.send(str(error).encode()[:500] or b"?")
        os._exit(0)
    theirs.close()
    answer, descriptors, _, _ = socket.recv_fds(ours, 512, 1)
    ours.close()
    os.waitpid(child, 0)
    if not descriptors:
        raise OSError(answer.decode(errors="replace") or "the child died")
    return descriptors[0]


def _become_owner(user_namespace: int) -> None:
    import ctypes

    from pyroute2 import IPRoute

    libc = ctypes.CDLL(None, use_errno=True)
    if user_namespace >= 0 and libc.setns(user_namespace, CLONE_NEWUSER) < 0:
        raise OSError(ctypes.get_errno(), "entering the step's user namespace")
    if libc.unshare(CLONE_NEWNET) < 0:
        raise OSError(ctypes.get_errno(), "making a network namespace")
    with IPRoute() as route:
        route.link("set", index=1, state="up")


def work(connection: socket.socket) -> None:
    """The worker's loop: one request a message, a user namespace's descriptor or none with it."""
    spare: _Spare | None = None
    while select.select([connection], [], [], IDLE)[0]:
        data, ancillary, _, _ = connection.recvmsg(16, socket.CMSG_SPACE(4))
        if not data:
            return
        user = array.array("i", ancillary[0][2][:4])[0] if ancillary else -1
        try:
            owner = os.fstat(user).st_ino if user >= 0 else 0
            if spare is not None and spare.owner == owner:
                descriptor, spare = spare.descriptor, None
            else:
                descriptor = _make(user)
            socket.send_fds(connection, [b"n"], [descriptor])
            os.close(descriptor)
            if spare is None:
                spare = _Spare(owner, _make(user))
        except OSError as error:
            connection.send(str(error).encode()[:500])
        finally:
            if user >= 0:
                os.close(user)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Imported now, while the daemon waits for the first answer, and inherited by every child.
    import pyroute2  # noqa: F401

    work(socket.socket(fileno=int(sys.argv[1])))
