"""The listening socket: one of our own, or systemd's. Knows nothing of who connects."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import stat
import time
from collections.abc import Iterator

from maid.errors import MaidError

TURN_AWAY = 2.0
"""Seconds that telling those who wait may take."""


@contextlib.contextmanager
def own(path: str) -> Iterator[socket.socket]:
    """A listening socket at `path`, which nobody but its owner can connect to yet; the path goes
    with it.

    One that a dead daemon left behind is replaced; another file never. Raises MaidError.
    """
    listener = _bound(path)
    with listener:
        inode = os.stat(path).st_ino
        try:
            yield listener
        finally:
            with contextlib.suppress(OSError):
                if os.stat(path).st_ino == inode:
                    os.unlink(path)


@contextlib.contextmanager
def passed() -> Iterator[socket.socket]:
    """The listening socket that systemd has passed (sd_listen_fds(3)); its path stays.

    Raises MaidError when it passed something else.
    """
    from systemd.daemon import listen_fds

    descriptors = listen_fds()
    if len(descriptors) != 1:
        raise MaidError(
            f"systemd passed {len(descriptors)} sockets, where one is expected",
            "maid.socket has a single ListenStream=",
        )
    os.set_inheritable(descriptors[0], False)
    try:
        listener = socket.socket(fileno=descriptors[0])
    except OSError as error:
        raise MaidError(
            f"what systemd passed is no socket: {error.strerror}", "maid.socket has ListenStream="
        ) from error
    with listener:
        if (
            listener.family != socket.AF_UNIX
            or listener.type != socket.SOCK_STREAM
            or not listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        ):
            raise MaidError(
                "systemd passed a socket that is no listening Unix stream socket",
                "maid.socket has ListenStream= with a path, and Accept=no",
            )
        yield listener


def turn_away(bound: socket.socket, error: MaidError) -> None:
    """Tell those who wait at systemd's socket why no daemon comes. Without an answer they would
    wait on, and systemd start it again for them, and again."""
    parameters = {"message": error.message, "hint": error.hint, "status": error.exit_status}
    reply = {"error": "io.maid.Manager.Failed", "parameters": parameters}
    until = time.monotonic() + TURN_AWAY
    with contextlib.suppress(OSError):
        bound.setblocking(False)
        while time.monotonic() < until:
            connection, _ = bound.accept()
            with connection, contextlib.suppress(OSError):
                connection.settimeout(TURN_AWAY / 10)
                connection.recv(65536)  # whatever it asks
                connection.sendall(json.dumps(reply).encode() + b"\0")


def was_passed() -> bool:
    """Whether systemd has passed a socket to this process."""
    return os.environ.get("LISTEN_PID") == str(os.getpid())


def _bound(path: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        os.makedirs(os.path.dirname(os.path.abspath(path)), mode=0o755, exist_ok=True)
        # Between bind and chmod nobody else may connect.
        before = os.umask(0o177)
        try:
            _bind(listener, path)
        finally:
            os.umask(before)
        listener.listen(128)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise _in_use(path) from error
        # Python's own check of the length has no errno.
        raise MaidError(
            f"the socket {path} cannot be made: {error.strerror or error}",
            "--socket names another place",
        ) from error
    except MaidError:
        listener.close()
        raise
    return listener


def _bind(listener: socket.socket, path: str) -> None:
    try:
        listener.bind(path)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        # bind(2) says that of any file, connect(2) refuses any: only a socket may be replaced.
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise MaidError(
                f"the socket {path} cannot be made: there is a file that is no socket",
                "--socket names another place",
            ) from error
        if _served(path):
            raise
        os.unlink(path)
        listener.bind(path)


def _served(path: str) -> bool:
    """Whether somebody listens at the socket `path`."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return False
        except OSError:
            return True
        return True


def _in_use(path: str) -> MaidError:
    return MaidError(
        f"the socket {path} is in use: a daemon answers there already",
        "maid status shows it; --socket names another one",
    )
