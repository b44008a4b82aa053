"""One connection: bounded, in order, and over when its peer is. Knows nothing of the methods.

asyncvarlink does the protocol. What it leaves open is done here (facts/varlink.md): a message
without an end, deep or broken JSON, descriptors that come with the first piece of a long message,
a peer that asks and asks and never reads, and one that goes away while its call is running.

Overrides what is private in asyncvarlink 0.3: tests/kernel/test_service_*.py hold each of these
promises against a running daemon.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from asyncvarlink import VarlinkInterfaceRegistry, VarlinkTransport
from asyncvarlink.message import VarlinkMethodCall
from asyncvarlink.serverprotocol import VarlinkInterfaceServerProtocol
from asyncvarlink.types import FileDescriptorArray

from maid.config import Socket

MAX_DESCRIPTORS = 128
"""Descriptors that one message may bring; a step needs five and one for each bind mount."""

MESSAGE_TIME = 30.0
"""Seconds that a message may take from its first byte to its last."""

MAX_UNSENT = 256 << 10
"""Bytes of answers that may wait for a peer that does not read before no more is read from it."""

MAX_NAME = 255
"""Characters of a method's or a parameter's name: errors repeat them."""


class Transport(VarlinkTransport):
    """Takes in one message for each turn of the loop, and none while too many answers wait.

    asyncvarlink's own reads until there is nothing left, so that whoever writes fast enough keeps
    the whole daemon; and it queues answers without a limit.
    """

    MAX_RECV_FDS = 253
    """SCM_MAX_FD (include/net/scm.h): more cannot come with one message."""

    RECV_BUFFER_SIZE = 65536

    def __init__(self, connection: socket.socket, protocol: Protocol, max_unsent: int) -> None:
        self._max_unsent = max_unsent
        self._unsent = 0
        self._unsent_bytes = 0
        super().__init__(asyncio.get_running_loop(), connection, connection, protocol)

    def _handle_read_socket_peek(self) -> None:
        if self._closing or self._paused or not isinstance(self._recvfd, socket.socket):
            return
        try:
            data = self._recvfd.recv(self.RECV_BUFFER_SIZE, socket.MSG_PEEK)
        except BlockingIOError:
            return
        except OSError as error:
            self._close_receiver(error)
            return
        # Descriptors belong to the message that they came with: never read into the next one.
        end = data.find(b"\0")
        self._sock_receive_fds(end + 1 if end >= 0 else max(1, len(data)))

    def send_message(self, data: bytes, fds: list[int] | None = None) -> asyncio.Future[None]:
        """As the base class; while too much waits to be sent, no more requests are read."""
        sent = super().send_message(data, fds)
        self._unsent += 1
        self._unsent_bytes += len(data)
        if self.congested:
            self.pause_reading()

        def done(_: asyncio.Future[None]) -> None:
            self._unsent -= 1
            self._unsent_bytes -= len(data)
            if not self.congested:
                self.resume_reading()

        sent.add_done_callback(done)
        # Whoever waits for it may be cancelled; what is queued is not, and asyncvarlink sets it.
        return asyncio.shield(sent)

    @property
    def congested(self) -> bool:
        """Whether the peer has to read before it may ask again."""
        return self._unsent >= self._max_unsent or self._unsent_bytes >= MAX_UNSENT

    def resume_reading(self) -> None:
        """Read on, unless answers are waiting or a call is running: calls are answered in their
        order, one after the other."""
        assert isinstance(self._protocol, Protocol)
        if not self.congested and not self._protocol.busy:
            super().resume_reading()


class Protocol(VarlinkInterfaceServerProtocol):
    """The calls of one connection, bounded by `limits`; `lost` is called when it is over and
    `refused` with the reason when it is ended for what came."""

    def __init__(
        self,
        registry: VarlinkInterfaceRegistry,
        limits: Socket,
        lost: Callable[[], None],
        refused: Callable[[str], None],
    ) -> None:
        super().__init__(registry)
        self._limits = limits
        self._lost = lost
        self._refused = refused
        self._calls: set[asyncio.Future[None]] = set()
        self._gone = False
        self._message = bytearray()
        self._brought: FileDescriptorArray | None = None
        self._deadline: asyncio.TimerHandle | None = None

    @property
    def busy(self) -> bool:
        """Whether a call is running."""
        return bool(self._calls)

    # What comes in ---------------------------------------------------------------------------

    def message_received(self, data: bytes, fds: FileDescriptorArray | None) -> None:
        """Take in a piece of a message; anything that is no varlink ends the connection."""
        if fds is not None:
            if self._brought is not None or len(fds) > MAX_DESCRIPTORS:
                self.end("more descriptors than a message may bring")
                return
            # They come with the first byte; the rest of a long message follows.
            fds.reference(self)
            self._brought = fds
        self._message += data
        if len(self._message) > self._limits.max_message_bytes:
            self.end(f"a message of more than {self._limits.max_message_bytes} bytes")
        elif data.endswith(b"\0"):
            self._complete()
        elif self._deadline is None:
            self._deadline = asyncio.get_running_loop().call_later(
                MESSAGE_TIME, self.end, f"a message that was not complete after {MESSAGE_TIME:g} s"
            )

    def _complete(self) -> None:
        message, brought = bytes(self._message), self._brought
        self._brought = None
        self._reset()
        try:
            super().message_received(message, brought)
        except (ValueError, RecursionError):
            # What json raises besides JSONDecodeError: no UTF-8, nested too deep, endless digits.
            if brought is not None:
                brought.destroy()
            self.end("what is no JSON")
        else:
            if brought is not None:
                brought.release(self)

    def _reset(self) -> None:
        """Forget a message that is not complete."""
        self._message = bytearray()
        if self._brought is not None:
            self._brought.release(self)
            self._brought = None
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def error_received(self, err: Exception, data: bytes, fds: FileDescriptorArray | None) -> None:
        """What is not JSON, or no object, ends the connection (varlink.org, "Method Calls")."""
        self.end("what is no JSON object")

    def call_received(
        self, call: VarlinkMethodCall, fds: FileDescriptorArray | None
    ) -> asyncio.Future[None] | None:
        """Start a call; it is cancelled when the peer hangs up."""
        if max(map(len, (call.method, *call.parameters))) > MAX_NAME:
            self.end(f"a name of more than {MAX_NAME} characters")
            return None
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
        if self._gone:
            running.cancel()
        return ended

    def _on_message_sent(self, fut: asyncio.Future[None]) -> None:
        """What is dropped because the peer went away without reading it is no error."""
        if not fut.cancelled():
            super()._on_message_sent(fut)

    # How it ends -----------------------------------------------------------------------------

    def hang_up(self) -> None:
        """The peer has closed the connection: cancel what it waits for, and start nothing more.

        What it has sent is still read, so that a `oneway` call just before the end counts.
        """
        self._gone = True
        for running in list(self._calls):
            running.cancel()

    def end(self, why: str) -> None:
        """End the connection at once because of what came over it."""
        if self._gone and self._transport is None:
            return
        self._refused(why)
        self.abort()

    def abort(self) -> None:
        """End the connection at once: what waits to be read or sent is dropped."""
        self.hang_up()
        self._reset()
        for _, notify in self._consumer_queue:
            if notify is not None and not notify.done():
                notify.set_result(None)
        self._consumer_queue.clear()
        if self._transport is not None:
            # Unlike close(): a peer that does not read would keep it open for ever.
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is over, from either side."""
        self.hang_up()
        self._reset()
        super().connection_lost(exc)
        self._lost()
