"""The varlink server: accepts, identifies, bounds and hangs up. Knows nothing of the methods.

asyncvarlink does the protocol. What it leaves open is done here (facts/varlink.md): who is calling,
a message without an end, deep or broken JSON, and a client that goes away while its call is
running.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import select
import socket
from collections.abc import Callable
from typing import Any

from asyncvarlink import VarlinkInterfaceRegistry, VarlinkTransport
from asyncvarlink.message import VarlinkMethodCall
from asyncvarlink.serverprotocol import VarlinkInterfaceServerProtocol
from asyncvarlink.types import FileDescriptorArray

from maid.config import Socket
from maid.service.access import Connections, Peer, Role, identify

log = logging.getLogger(__name__)

MakeRegistry = Callable[[Peer], VarlinkInterfaceRegistry]


class Hangups:
    """Tells when the other end of a connection is closed, while nothing is read from it.

    asyncvarlink stops reading during a call, so it would see a closed connection only afterwards.
    An epoll of its own, with no events but the implied EPOLLHUP, sees it at once, also behind
    unread data.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._calls: dict[int, Callable[[], None]] = {}
        asyncio.get_running_loop().add_reader(self._epoll.fileno(), self._on_hangup)

    def watch(self, descriptor: int, call: Callable[[], None]) -> None:
        """Call `call` once when the connection `descriptor` is closed by its peer."""
        self._calls[descriptor] = call
        self._epoll.register(descriptor, 0)

    def forget(self, descriptor: int) -> None:
        """The connection is closed from here: before its descriptor is."""
        if self._calls.pop(descriptor, None) is not None:
            with contextlib.suppress(OSError):
                self._epoll.unregister(descriptor)

    def _on_hangup(self) -> None:
        for descriptor, _ in self._epoll.poll(0):
            call = self._calls.get(descriptor)
            self.forget(descriptor)
            if call is not None:
                call()

    def close(self) -> None:
        """Watch nothing any longer."""
        asyncio.get_running_loop().remove_reader(self._epoll.fileno())
        self._epoll.close()


class Protocol(VarlinkInterfaceServerProtocol):
    """One connection, bounded by `limits`; `lost` is called when it is over."""

    def __init__(
        self, registry: VarlinkInterfaceRegistry, limits: Socket, lost: Callable[[], None]
    ) -> None:
        super().__init__(registry)
        self._limits = limits
        self._lost = lost
        self._calls: set[asyncio.Future[None]] = set()

    def message_received(self, data: bytes, fds: FileDescriptorArray | None) -> None:
        """Take in a piece of a message; anything that is no varlink ends the connection."""
        try:
            if len(self._recv_buffer) + len(data) > self._limits.max_message_bytes:
                raise ValueError(f"a message of more than {self._limits.max_message_bytes} bytes")
            super().message_received(data, fds)
            if len(self._consumer_queue) > self._limits.max_requests_per_connection:
                raise ValueError("too many requests at once")
        except (ValueError, RecursionError) as error:
            self._end(f"{error}")

    def error_received(self, err: Exception, data: bytes, fds: FileDescriptorArray | None) -> None:
        """What is not JSON, or no object, ends the connection (varlink.org, "Method Calls")."""
        self._end(f"{err}")

    def _end(self, why: str) -> None:
        log.info("a connection is closed: %s", why)
        self._recv_buffer = b""
        self._consumer_queue.clear()
        self.cancel_calls()
        self.close()

    def call_received(
        self, call: VarlinkMethodCall, fds: FileDescriptorArray | None
    ) -> asyncio.Future[None] | None:
        """Start a call; it is cancelled when the peer hangs up."""
        running = super().call_received(call, fds)
        if running is None:
            return None
        # A cancelled task must end like one that has answered: its caller is not there any more.
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def on_end(future: asyncio.Future[None]) -> None:
            self._calls.discard(future)
            if ended.done():
                return
            if future.cancelled():
                ended.set_result(None)
            elif (error := future.exception()) is not None:
                ended.set_exception(error)
            else:
                ended.set_result(None)

        self._calls.add(running)
        running.add_done_callback(on_end)
        return ended

    def cancel_calls(self) -> None:
        """Cancel what this connection has started."""
        for running in list(self._calls):
            running.cancel()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is over, from either side."""
        self.cancel_calls()
        super().connection_lost(exc)
        self._lost()


class Server:
    """Serves a listening socket; `registry` makes the interfaces for each peer."""

    def __init__(self, listener: socket.socket, limits: Socket, registry: MakeRegistry) -> None:
        self._listener = listener
        self._limits = limits
        self._registry = registry
        self._hangups = Hangups()
        self._open: set[Protocol] = set()
        self.connections = Connections(limits.max_connections_per_uid)
        listener.setblocking(False)
        asyncio.get_running_loop().add_reader(listener.fileno(), self._on_connection)

    def _on_connection(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                log.warning("a connection could not be accepted: %s", error)
                return
            try:
                self._admit(connection)
            except OSError as error:
                log.warning("a connection could not be served: %s", error)
                connection.close()

    def _admit(self, connection: socket.socket) -> None:
        peer = identify(connection, self._limits.group)
        if peer.role is Role.NONE or not self.connections.admit(peer.uid):
            log.warning(
                "user %d is refused: %s",
                peer.uid,
                "not in the group" if peer.role is Role.NONE else "too many connections",
            )
            connection.close()
            return
        descriptor = connection.fileno()

        def lost() -> None:
            self._hangups.forget(descriptor)
            self._open.discard(protocol)
            self.connections.leave(peer.uid)

        protocol = Protocol(self._registry(peer), self._limits, lost)
        transport = VarlinkTransport(asyncio.get_running_loop(), connection, connection, protocol)
        self._open.add(protocol)

        def hung_up() -> None:
            protocol.cancel_calls()
            transport.close()

        self._hangups.watch(descriptor, hung_up)

    def close(self) -> None:
        """Accept nothing more and end every connection."""
        asyncio.get_running_loop().remove_reader(self._listener.fileno())
        self._listener.close()
        for protocol in list(self._open):
            protocol.cancel_calls()
            protocol.close()
        self._hangups.close()


def listen(path: str) -> socket.socket:
    """A listening socket at `path`, which nobody but its owner can connect to yet.

    One that a dead daemon left behind is replaced. Raises OSError (EADDRINUSE when one is served).
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
        before = os.umask(0o177)
        try:
            try:
                listener.bind(path)
            except OSError:
                if _served(path):
                    raise
                os.unlink(path)
                listener.bind(path)
        finally:
            os.umask(before)
        listener.listen(128)
    except OSError:
        listener.close()
        raise
    return listener


def _served(path: str) -> bool:
    """Whether somebody answers at the socket `path`, or it is no socket at all."""
    probe: Any = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return False
        except OSError:
            return True
        return True
