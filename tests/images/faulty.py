"""What stands before a registry and misbehaves by plan: for tests of what maid makes of it.

A `Faulty` passes everything on as it came, but for requests that one of its faults is for. It keeps
a list of the requests, which also shows what was fetched and pushed, and in which order.
"""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import http.server
import re
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO
from urllib.parse import urlsplit

PIECE = 64 << 10
HOP = ("connection", "transfer-encoding", "content-length", "keep-alive")
"""Header fields that are each connection's own."""


@dataclass
class Fault:
    """What happens to requests of one kind.

    `request` is a regular expression that "METHOD /path" begins with. `times`: how often it
    happens, after it did not happen `after` times; None is for ever. What happens:

    status    this answer instead of the registry's, with `headers` and `body`
    replace   the registry's own answer with another body, whatever its digest is
    append    the registry's own answer with more at its end than it has
    claim     the length that is claimed of the body, whatever it is
    cut       the connection ends after so many bytes of the body of the answer
    cut_sent  the connection ends after so many bytes of the request's body
    delay     so many seconds pass first
    pace      a body comes slowly: so many bytes each tenth of a second
    """

    request: str
    times: int | None = None
    after: int = 0
    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    replace: bytes | None = None
    append: bytes = b""
    claim: int | None = None
    cut: int | None = None
    cut_sent: int | None = None
    delay: float = 0.0
    pace: int = 0
    happened: int = 0

    def is_for(self, request: str) -> bool:
        """Whether it happens to this request, which is counted."""
        if not re.match(self.request, request) or self.times == 0:
            return False
        if self.after:
            self.after -= 1
            return False
        if self.times is not None:
            self.times -= 1
        self.happened += 1
        return True


def unauthorized(request: str) -> Fault:
    """401, as a registry says that asks for a password; for ever."""
    return _failing(request, 401, "UNAUTHORIZED", {"WWW-Authenticate": 'Basic realm="tests"'})


def missing(request: str, code: str = "MANIFEST_UNKNOWN") -> Fault:
    """404; for ever."""
    return _failing(request, 404, code, {})


def too_many(request: str, times: int | None, retry_after: int = 1) -> Fault:
    """429, so many times."""
    headers = {"Retry-After": str(retry_after)}
    return dataclasses.replace(_failing(request, 429, "TOOMANYREQUESTS", headers), times=times)


def broken(request: str, times: int | None, after: int = 0) -> Fault:
    """500, so many times, after it went well `after` times."""
    fault = _failing(request, 500, "UNKNOWN", {})
    return dataclasses.replace(fault, times=times, after=after)


def _failing(request: str, status: int, code: str, headers: Mapping[str, str]) -> Fault:
    body = f'{{"errors":[{{"code":"{code}","message":"made by a test"}}]}}\n'.encode()
    return Fault(request, status=status, body=body, headers=headers)


class Faulty:
    """A server before `upstream` (HOST:PORT). `address` is its own.

    `faults` may be changed at any time: the first that is for a request happens. `requests` are
    all that came: "METHOD /path" (without a query).
    """

    def __init__(self, upstream: str) -> None:
        self.upstream = upstream
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        self._lock = threading.Lock()
        owner = self

        class Handler(_Handler):
            faulty = owner

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self.address = f"127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Faulty:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @contextlib.contextmanager
    def having(self, *faults: Fault) -> Iterator[None]:
        """With these faults and no others, and an empty list of requests."""
        self.faults, self.requests = list(faults), []
        try:
            yield
        finally:
            self.faults = []

    def fault_for(self, request: str) -> Fault | None:
        """What happens to a request, which is noted."""
        with self._lock:
            self.requests.append(request)
            return next((each for each in self.faults if each.is_for(request)), None)

    def matching(self, pattern: str) -> list[str]:
        """The requests that begin with what a regular expression says."""
        return [each for each in self.requests if re.match(pattern, each)]


class _Ended(Exception):
    """The connection ends here, by plan."""


class _Handler(http.server.BaseHTTPRequestHandler):
    faulty: Faulty
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def handle_one_request(self) -> None:
        with contextlib.suppress(ConnectionError, http.client.HTTPException, TimeoutError):
            super().handle_one_request()
            return
        self.close_connection = True

    def _handle(self) -> None:
        request = f"{self.command} {urlsplit(self.path).path}"
        fault = self.faulty.fault_for(request)
        try:
            if fault is not None and fault.delay:
                time.sleep(fault.delay)
            if fault is not None and fault.status:
                for _ in self._sent(None):
                    pass
                self._answer(fault.status, fault.headers, fault.body)
            else:
                self._pass_on(fault)
        except _Ended:
            self.close_connection = True

    do_GET = do_HEAD = do_PUT = do_POST = do_PATCH = do_DELETE = _handle

    def _pass_on(self, fault: Fault | None) -> None:
        connection = http.client.HTTPConnection(self.faulty.upstream, timeout=60)
        with contextlib.closing(connection):
            connection.putrequest(
                self.command, self.path, skip_host=True, skip_accept_encoding=True
            )
            for name, value in self.headers.items():
                if name.lower() not in HOP and name.lower() != "expect":
                    connection.putheader(name, value)
            length = self.headers.get("Content-Length")
            chunked = length is None and self.headers.get("Transfer-Encoding") is not None
            if chunked:
                connection.putheader("Transfer-Encoding", "chunked")
            elif length is not None:
                connection.putheader("Content-Length", length)
            connection.endheaders()
            for piece in self._sent(fault.cut_sent if fault else None, fault.pace if fault else 0):
                connection.send(b"%x\r\n%s\r\n" % (len(piece), piece) if chunked else piece)
            if chunked:
                connection.send(b"0\r\n\r\n")
            answer = connection.getresponse()
            headers = {
                name: value for name, value in answer.getheaders() if name.lower() not in HOP
            }
            size = int(answer.getheader("Content-Length") or 0)
            self._relay(answer, headers, size, fault)

    def _relay(
        self, answer: http.client.HTTPResponse, headers: Mapping[str, str], size: int, fault: Any
    ) -> None:
        if fault is not None and fault.replace is not None:
            self._answer(answer.status, headers, fault.replace, fault)
        elif fault is not None and (fault.append or fault.claim is not None):
            self._answer(answer.status, headers, answer.read() + fault.append, fault)
        else:
            self._head(answer.status, headers, size)
            if self.command != "HEAD":
                self._send(answer, fault)

    def _answer(
        self, status: int, headers: Mapping[str, str], body: bytes, fault: Fault | None = None
    ) -> None:
        claimed = fault.claim if fault is not None and fault.claim is not None else len(body)
        self._head(status, headers, claimed)
        if self.command != "HEAD":
            self.wfile.write(body[: fault.cut] if fault is not None else body)
            if claimed != len(body) or (fault is not None and fault.cut is not None):
                raise _Ended

    def _head(self, status: int, headers: Mapping[str, str], size: int) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(size))
        self.end_headers()

    def _send(self, answer: BinaryIO, fault: Fault | None) -> None:
        sent, pace = 0, fault.pace if fault is not None else 0
        while piece := answer.read(pace or PIECE):
            if fault is not None and fault.cut is not None and sent + len(piece) > fault.cut:
                self.wfile.write(piece[: fault.cut - sent])
                raise _Ended
            self.wfile.write(piece)
            sent += len(piece)
            if pace:
                time.sleep(0.1)

    def _sent(self, cut: int | None, pace: int = 0) -> Iterator[bytes]:
        """The pieces of the request's body."""
        seen = 0
        for piece in self._pieces(pace or PIECE):
            seen += len(piece)
            if cut is not None and seen > cut:
                raise _Ended
            yield piece
            if pace:
                time.sleep(0.1)

    def _pieces(self, most: int) -> Iterator[bytes]:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            left = int(self.headers.get("Content-Length") or 0)
            while left and (piece := self.rfile.read(min(most, left))):
                left -= len(piece)
                yield piece
            return
        while length := int(self.rfile.readline().split(b";")[0] or b"0", 16):
            yield self.rfile.read(length)
            self.rfile.readline()
        while self.rfile.readline().strip():  # trailers
            pass
