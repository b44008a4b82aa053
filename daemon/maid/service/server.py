"""The varlink server: accepts, identifies, counts and hangs up. Knows nothing of the methods.

asyncvarlink does not say who is calling, and does not see a client that goes away while its call is
running (facts/varlink.md): both are done here. What comes over a connection is bounded in
connection.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import select
import socket
import time
from collections.abc import Callable

from asyncvarlink import VarlinkInterfaceRegistry

from maid.config import Socket
from maid.service.access import Connections, Peer, Role, identify
from maid.service.connection import Protocol, Transport

log = logging.getLogger(__name__)

MakeRegistry = Callable[[Peer], VarlinkInterfaceRegistry]

ACCEPT_RETRY = 1.0
"""Seconds without new connections when there are no descriptors left (as asyncio's own servers)."""

REFUSALS_LOGGED = 60.0
"""Seconds in which the same refusal of the same user is logged once: a user must not fill the
journal."""


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
            # ValueError: connections may end after this was closed, when the daemon does.
            with contextlib.suppress(OSError, ValueError):
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


class Server:
    """Serves a listening socket; `registry` makes the interfaces for each peer.

    `limits` may be replaced: it holds for connections that are made from then on.
    """

    def __init__(self, listener: socket.socket, limits: Socket, registry: MakeRegistry) -> None:
        self.limits = limits
        self.connections = Connections()
        self._listener = listener
        self._registry = registry
        self._hangups = Hangups()
        self._open: set[Protocol] = set()
        self._refusals: dict[tuple[int, str], float] = {}
        self._retry: asyncio.TimerHandle | None = None
        listener.setblocking(False)
        self._listen()

    def _listen(self) -> None:
        self._retry = None
        asyncio.get_running_loop().add_reader(self._listener.fileno(), self._on_connection)

    def _on_connection(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError as error:
            log.warning("a connection could not be accepted: %s", error)
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                # It stays readable: without a pause the loop would do nothing else.
                loop = asyncio.get_running_loop()
                loop.remove_reader(self._listener.fileno())
                self._retry = loop.call_later(ACCEPT_RETRY, self._listen)
            return
        try:
            self._admit(connection)
        except OSError as error:
            log.warning("a connection could not be served: %s", error)
            connection.close()

    def _admit(self, connection: socket.socket) -> None:
        limits = self.limits
        peer = identify(connection, limits.group)
        if peer.role is Role.NONE:
            self._refuse(peer, f"not in the group {limits.group}")
            connection.close()
            return
        if not self.connections.admit(peer.uid, limits.max_connections_per_uid):
            self._refuse(peer, f"has {limits.max_connections_per_uid} connections already")
            connection.close()
            return
        descriptor = connection.fileno()

        def lost() -> None:
            self._hangups.forget(descriptor)
            self._open.discard(protocol)
            self.connections.leave(peer.uid)

        def refused(why: str) -> None:
            self._refuse(peer, why)

        protocol = Protocol(self._registry(peer), limits, lost, refused)
        self._open.add(protocol)
        try:
            self._hangups.watch(descriptor, protocol.hang_up)
            Transport(connection, protocol, limits.max_requests_per_connection)
        except OSError:
            lost()
            raise

    def _refuse(self, peer: Peer, why: str) -> None:
        now = time.monotonic()
        if now - self._refusals.get((peer.uid, why), -REFUSALS_LOGGED) < REFUSALS_LOGGED:
            return
        if len(self._refusals) >= 100:
            self._refusals.clear()
        self._refusals[peer.uid, why] = now
        log.warning("user %d (process %d) is refused: %s", peer.uid, peer.pid, why)

    def stop_accepting(self) -> None:
        """Leave new connections to wait for the next daemon, where systemd holds the socket."""
        asyncio.get_running_loop().remove_reader(self._listener.fileno())
        if self._retry is not None:
            self._retry.cancel()

    def close(self) -> None:
        """Accept nothing more and end every connection."""
        self.stop_accepting()
        self._listener.close()
        for protocol in list(self._open):
            protocol.abort()
        self._hangups.close()
