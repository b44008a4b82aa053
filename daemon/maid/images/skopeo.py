"""skopeo: the program that reads and moves images, whatever the transport.

It brings authentication, TLS, signatures' policy, mirrors and the formats of every transport. Here
its arguments are put together and its failures are explained; which image is wanted is decided
elsewhere.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO, TypeVar

from maid.errors import MaidError, UsageError
from maid.images.children import bound, output
from maid.images.references import LAYOUT, REGISTRY, Reference
from maid.images.stall import SECONDS, Stall

RETRIES = 3
"""Times that skopeo tries a request again that may work later (429, 5xx, a broken connection), with
waits of 1, 2, 4 … seconds (containers/common, pkg/retry)."""

_READ_SECONDS = 180.0
_POLL_SECONDS = 0.1

# Its log on standard error, logrus' text format: what it died of.
_FATAL = re.compile(r'level=(?:fatal|error) msg=("(?:[^"\\]|\\.)*"|\S+)')


_PAUSES = (1.0, 2.0)
"""Seconds after which a whole call is tried again where skopeo does not do so itself, although the
fault may pass: it takes only some of the 5xx for such."""


class SkopeoError(MaidError):
    """skopeo failed."""


class PassingError(SkopeoError):
    """skopeo failed for a reason that may be gone in a moment: the registry's or the network's."""


class NotFound(SkopeoError):
    """There is no such image."""


@dataclass(frozen=True)
class Access:
    """How registries are reached: what a user gives with --authfile, --cert-dir and --tls-verify;
    "" and None leave skopeo's own defaults. Names and passwords of --creds are in a file of the
    first kind (credentials.py)."""

    authfile: str = ""
    cert_dir: str = ""
    tls_verify: bool | None = None

    def options(self, prefix: str = "") -> list[str]:
        """As options of skopeo; `prefix` is `src-`, `dest-` or ""."""
        options = []
        if self.authfile:
            options.append(f"--{prefix}authfile={self.authfile}")
        if self.cert_dir:
            options.append(f"--{prefix}cert-dir={self.cert_dir}")
        if self.tls_verify is not None:
            options.append(f"--{prefix}tls-verify={str(self.tls_verify).lower()}")
        return options


def parse_verify(text: str) -> bool | None:
    """The value of --tls-verify, which skopeo and buildah spell with an equals sign; "" is None.
    Raises UsageError."""
    if text.lower() not in ("", "true", "false", "1", "0"):
        raise UsageError(f"--tls-verify is true or false, not {text!r}")
    return None if not text else text.lower() in ("true", "1")


@dataclass(frozen=True)
class Place:
    """A source or destination of a copy, as skopeo's arguments: the reference and the options that
    belong to it, with `{side}` for src or dest."""

    argument: str
    options: tuple[str, ...] = ()

    def spelled(self, side: str) -> list[str]:
        """The options for that side."""
        return [option.format(side=side) for option in self.options]


@dataclass(frozen=True)
class Skopeo:
    """The program, with the access that every call of it is given, and the seconds without any
    progress after which a copy is given up."""

    access: Access = field(default_factory=Access)
    patience: float = SECONDS

    def raw(self, reference: Reference) -> bytes:
        """The index or manifest of an image as it is stored. Raises SkopeoError, NotFound."""
        options = ["inspect", "--raw", f"--retry-times={RETRIES}", *self.access.options()]
        return self._read([*options, reference.argument], reference)

    def config(self, place: Place, reference: Reference) -> bytes:
        """The configuration of a single image as it is stored. Raises SkopeoError."""
        options = ["inspect", "--config", "--raw", f"--retry-times={RETRIES}"]
        shared = [option.replace("{side}-", "") for option in place.options]
        return self._read([*options, *self.access.options(), *shared, place.argument], reference)

    def copy(
        self,
        source: Place,
        destination: Place,
        about: Reference,
        options: Sequence[str] = (),
        waiting: Callable[[], None] | None = None,
    ) -> None:
        """Copy an image. `about` is the reference that an error names; `waiting` is called ten
        times a second meanwhile. A second attempt passes over what the first has brought. Raises
        SkopeoError."""
        argv = ["copy", "--quiet", f"--retry-times={RETRIES}", *options]
        for side, place in (("src", source), ("dest", destination)):
            argv += place.spelled(side)
            if place.argument.startswith("docker:"):
                argv += self.access.options(f"{side}-")
        argv += [source.argument, destination.argument]
        _persistently(lambda: self._copy_once(argv, about, waiting))

    def _copy_once(
        self, argv: list[str], about: Reference, waiting: Callable[[], None] | None
    ) -> None:
        with self._started(argv) as (process, said):
            stall = Stall(process.pid, self.patience)
            while True:
                try:
                    process.wait(_POLL_SECONDS)
                    break
                except subprocess.TimeoutExpired:
                    if waiting:
                        waiting()
                if stall.has_come():
                    raise PassingError(
                        f"{about}: nothing has come for {self.patience:.0f} s", "try again later"
                    )
            if process.returncode:
                said.seek(0)
                raise explain(said.read().decode(errors="replace"), about)

    def _read(self, arguments: list[str], reference: Reference) -> bytes:
        return _persistently(lambda: self._read_once(arguments, reference))

    def _read_once(self, arguments: list[str], reference: Reference) -> bytes:
        try:
            done = subprocess.run(
                _argv(arguments),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_READ_SECONDS,
            )
        except subprocess.TimeoutExpired as error:
            raise SkopeoError(
                f"{reference} could not be read: no answer in {_READ_SECONDS:.0f} s",
                f"is {reference.host} reachable?" if reference.transport == REGISTRY else "",
            ) from error
        if done.returncode:
            raise explain(done.stderr.decode(errors="replace"), reference)
        return done.stdout

    @contextmanager
    def _started(self, arguments: list[str]) -> Iterator[tuple[subprocess.Popen[bytes], IO[bytes]]]:
        """A running skopeo, and its standard error in a file; ended with the block."""
        with output() as said:
            process = subprocess.Popen(
                _argv(arguments),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=said,
            )
            try:
                yield process, said
            finally:
                if process.poll() is None:
                    process.terminate()
                    process.wait()


_T = TypeVar("_T")


def _persistently(attempt: Callable[[], _T]) -> _T:
    """What the attempt gives, after _PAUSES where it failed for a reason that may pass."""
    for pause in _PAUSES:
        try:
            return attempt()
        except PassingError:
            time.sleep(pause)
    return attempt()


def _argv(arguments: list[str]) -> list[str]:
    program = shutil.which("skopeo")
    if program is None:
        raise MaidError("skopeo is not installed", "apt-get install skopeo")
    return bound([program, *arguments])


# What skopeo's words mean to a user: the first that fits. --------------------------------------

_REFUSED = r"unauthorized|authentication required|(?<!permission )denied|\b401\b|\b403\b"
_DENIED = re.compile(_REFUSED, re.IGNORECASE)

_HINTS: tuple[tuple[str, str], ...] = (
    (r"HTTP response to HTTPS client", "it speaks no TLS: --tls-verify=false"),
    (r"x509|certificate", "its certificate is not trusted: --cert-dir, or --tls-verify=false"),
    (_REFUSED, "skopeo login {host}"),
    (r"toomanyrequests|too many requests|\b429\b", "the registry limits requests: try again later"),
    (r"no space left on device", "free some space; nothing was written under its final name"),
    (r"connection refused|no such host|network is unreachable|i/o timeout", "is {host} reachable?"),
    (r"digest did not match|does not match|Digest did not match", "the registry's copy is damaged"),
    (r"\b50[0-9]\b|unexpected EOF|connection reset", "the registry has a fault: try again later"),
    (r"policy", "containers-policy.json(5) says what is accepted"),
)

# What only repeats the reference.
_PREAMBLE = re.compile(
    r'^(?:Error parsing image name "[^"]*": |initializing (?:source|destination) \S+: )+'
)

_PASSING = re.compile(
    r"\b50[0234]\b|unexpected EOF|connection reset|broken pipe|handshake timeout", re.IGNORECASE
)

_MISSING = re.compile(
    r"manifest unknown|name unknown|not found|repository name not known|does not exist"
    r"|no such file|no image found|status 404|404 \(Not Found\)|identifier is not an image",
    re.IGNORECASE,
)


def explain(stderr: str, reference: Reference) -> SkopeoError:
    """The error that skopeo's last words stand for."""
    fatal = _FATAL.findall(stderr)
    lines = stderr.strip().splitlines()
    words = fatal[-1] if fatal else lines[-1] if lines else "it was ended"
    if words.startswith('"'):
        words = words[1:-1].replace('\\"', '"').replace("\\n", " ").replace("\\\\", "\\")
    words = _PREAMBLE.sub("", words)
    # What the reference itself says is no part of the reason: a tag may be called 500.
    reason = words
    for part in (reference.argument, reference.name, reference.digest, f":{reference.tag}"):
        reason = reason.replace(part, " ") if len(part) > 1 else reason
    reason = re.sub(r"reading manifest \S+ in", " ", reason)
    host = reference.host if reference.transport == REGISTRY else "the registry"
    if _MISSING.search(reason) and not _DENIED.search(reason):
        return NotFound(f"{reference}: {words}", _where(reference))
    kind = PassingError if _PASSING.search(reason) else SkopeoError
    for pattern, hint in _HINTS:
        if re.search(pattern, reason, re.IGNORECASE):
            return kind(f"{reference}: {words}", hint.format(host=host))
    return kind(f"{reference}: {words}")


def _where(reference: Reference) -> str:
    if reference.transport == REGISTRY:
        return f"skopeo list-tags docker://{reference.name} shows what there is"
    if reference.transport == LAYOUT:
        return f"maid index inspect oci:{reference.name} shows what there is"
    return ""
