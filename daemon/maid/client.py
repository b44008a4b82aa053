"""The socket's client: small, quick to import, passes file descriptors.

A varlink message is a JSON object and a NUL byte, each way; a descriptor is an index into those
that came with the message (facts/varlink.md). asyncvarlink would do as well, but importing it and
asyncio takes longer than a whole call. Uses nothing outside the standard library.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

from maid.errors import (
    AccessDenied,
    DaemonUnreachable,
    LimitReached,
    MaidError,
    PlatformUnavailable,
    StepRefused,
    StepUnknown,
    UsageError,
)

Parameters: TypeAlias = dict[str, Any]
"""A JSON object: the parameters of a call or of a reply, in the shapes of
docs/io.maid.*.varlink."""

DEFAULT_SOCKET = "/run/maid/io.maid"

MESSAGE_LIMIT = 64 << 20
"""Bytes of a reply that are taken in before the daemon is called broken."""


PATIENCE = 100.0
"""Seconds that a daemon may take to look at a request: it does so at once when it is up, and
systemd lets a start take 90 (DefaultTimeoutStartSec=)."""


class ConnectionLost(DaemonUnreachable):
    """The daemon closed the connection in the middle of a call."""


class ParameterRefused(UsageError):
    """The daemon does not take the value of the `parameter` of that name, or knows none."""

    def __init__(self, parameter: str) -> None:
        super().__init__(
            f"the daemon does not take this value of the parameter {parameter}", "see --help"
        )
        self.parameter = parameter


class Client:
    """One connection to the daemon at the socket `path`. Closing it ends what it started.

    A request that nobody looks at for `patience` seconds is given up; once it is looked at there is
    no limit: a step takes what it takes.
    """

    def __init__(self, path: str, patience: float = PATIENCE) -> None:
        """Connect. Raises DaemonUnreachable with the reason and what to do."""
        self.path = path
        self._patience = patience
        self._buffer = b""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            self._socket.connect(path)
        except OSError as error:
            self._socket.close()
            raise DaemonUnreachable(*_unreachable(path, error)) from error

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def call(
        self, method: str, parameters: Parameters | None = None, descriptors: Sequence[int] = ()
    ) -> Parameters:
        """Call `method` ("io.maid.Manager.Status") and return the reply's parameters.

        Raises the MaidError that the daemon's error stands for, DaemonUnreachable.
        """
        self._send({"method": method, "parameters": parameters or {}}, descriptors)
        return self._reply()[0]

    def stream(
        self, method: str, parameters: Parameters | None = None, descriptors: Sequence[int] = ()
    ) -> Iterator[Parameters]:
        """Call a method with several replies, and yield the parameters of each."""
        self._send({"method": method, "parameters": parameters or {}, "more": True}, descriptors)
        continues = True
        while continues:
            parameters, continues = self._reply()
            yield parameters

    def _send(self, message: Parameters, descriptors: Sequence[int]) -> None:
        data = json.dumps(message, separators=(",", ":")).encode(errors="surrogateescape") + b"\0"
        self._socket.settimeout(self._patience)
        try:
            # The descriptors travel with the first byte; what a full buffer leaves follows alone.
            sent = socket.send_fds(self._socket, [data], list(descriptors))
            if sent < len(data):
                self._socket.sendall(data[sent:])
        except TimeoutError as error:
            raise self._ignored() from error
        except (BrokenPipeError, ConnectionResetError):
            return  # whoever closed it may have answered first; if not, reading says so
        except OSError as error:
            raise ConnectionLost(
                f"the daemon at {self.path} ended the connection: {error.strerror}",
                f"{_log(self.path)} says why",
            ) from error

    def _reply(self) -> tuple[Parameters, bool]:
        while b"\0" not in self._buffer:
            try:
                data = self._socket.recv(65536)
            except TimeoutError as error:
                if self._unread():
                    raise self._ignored() from error
                self._socket.settimeout(None)
                continue
            except ConnectionResetError:
                data = b""  # closed as well, with something of ours unread
            except OSError as error:
                raise ConnectionLost(
                    f"the connection to the daemon was lost: {error.strerror}"
                ) from error
            if not data or len(self._buffer) > MESSAGE_LIMIT:
                raise ConnectionLost(
                    f"the daemon at {self.path} closed the connection",
                    f"it was stopped, or refuses this user or request: {_log(self.path)}",
                )
            self._buffer += data
        message, _, self._buffer = self._buffer.partition(b"\0")
        try:
            reply = json.loads(message)
            parameters: Parameters = reply.get("parameters") or {}
        except (ValueError, AttributeError, RecursionError) as error:
            raise DaemonUnreachable(
                f"what answers at {self.path} is no maid daemon", "--socket names another one"
            ) from error
        if reply.get("error"):
            raise _error(str(reply["error"]), parameters)
        return parameters, bool(reply.get("continues"))

    def _unread(self) -> int:
        """The bytes that were sent and not yet received (SIOCOUTQ, which Unix
        sockets have as well: net/unix/af_unix.c)."""
        import array
        import fcntl
        import termios

        count = array.array("i", [0])
        fcntl.ioctl(self._socket, termios.TIOCOUTQ, count)
        return count[0]

    def _ignored(self) -> DaemonUnreachable:
        return DaemonUnreachable(
            f"the daemon at {self.path} does not look at the request for {self._patience:g} s",
            "it hangs, or is still starting: systemctl status maid",
        )


_DESCRIPTORS = ("stdin", "stdout", "stderr", "rootfs", "changes", "binds", "profile")
"""Parameters of Run that are file descriptors: what the kernel could not hand over is missing."""

_ERRORS: dict[str, type[MaidError]] = {
    "io.maid.Emulation.PlatformNotAvailable": PlatformUnavailable,
    "io.maid.Steps.Refused": StepRefused,
    "io.maid.Steps.LimitExceeded": LimitReached,
    "io.maid.Steps.NoSuchStep": StepUnknown,
}


def _error(name: str, parameters: Parameters) -> MaidError:
    if name == "org.varlink.service.PermissionDenied":
        return AccessDenied(
            "the daemon does not allow that to this user", "root may, or members of group maid"
        )
    if name == "org.varlink.service.InvalidParameter":
        parameter = parameters.get("parameter")
        if parameter in _DESCRIPTORS:
            return StepRefused(
                f"the daemon did not get the open file for {parameter}",
                "it has as many files open as it may have: try again, or see LimitNOFILE= of"
                " maid.service",
            )
        return ParameterRefused(str(parameter))
    if name in ("org.varlink.service.MethodNotFound", "org.varlink.service.InterfaceNotFound"):
        return MaidError(
            f"the daemon does not know {parameters.get('method') or parameters.get('interface')}",
            "it is of another version: systemctl restart maid",
        )
    message, hint = parameters.get("message"), parameters.get("hint", "")
    if message is None:
        return MaidError(f"the daemon answered {name} {parameters or ''}".strip())
    made = _ERRORS.get(name, MaidError)(message, hint)
    if parameters.get("status") == DaemonUnreachable.exit_status:
        return DaemonUnreachable(message, hint)  # it could not start, and says why
    if "status" in parameters:
        made.exit_status = int(parameters["status"])
    return made


def _unreachable(path: str, error: OSError) -> tuple[str, str]:
    message = f"no maid daemon answers at {path}: {error.strerror or error}"
    if isinstance(error, PermissionError):
        return (
            message,
            "be root, or a member of group maid (usermod -aG maid USER, then log in again)",
        )
    for private in _private_sockets():
        if private != path and os.path.exists(private):
            return message, f"a private daemon seems to serve {private}: --socket {private}"
    if path != DEFAULT_SOCKET:
        return message, f"start one there: maid daemon --scope private --socket {path}"
    if os.path.exists("/run/systemd/system"):
        return message, "start it: systemctl enable --now maid"
    return message, "start it: maid daemon, or maid daemon --scope private to try it out"


def _log(path: str) -> str:
    """Where the daemon at `path` says what it does: only the service's is the journal for sure."""
    return "journalctl -u maid" if path == DEFAULT_SOCKET else "its log"


def _private_sockets() -> list[str]:
    """Where a daemon in private scope has its socket when nobody says otherwise (maid.config)."""
    if os.geteuid() == 0:
        return ["/run/maid/private/io.maid"]
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    return [f"{runtime}/maid/io.maid"] if runtime else []
