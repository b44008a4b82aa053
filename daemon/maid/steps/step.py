"""What a step is: one command, in one root file system, for one platform; and how it ended.

Values and their checks only. A step becomes a `RUN` line's container in bundle.py and runs in
runner.py. Result goes over the socket as it is, so annotations stay real objects here.
"""

import math
import re
import secrets
import time
from dataclasses import dataclass, field
from enum import StrEnum

from maid.config import Accelerate, Network
from maid.errors import StepRefused
from maid.platforms import Platform

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""The PATH of a step that brings none: what Docker and BuildKit set for linux."""

ARGUMENTS_LIMIT = 512 * 1024
"""Bytes of arguments and environment together; the kernel's own limit is a quarter of the stack."""

BINDS_LIMIT = 120
"""Bind mounts of one step: a message may bring 128 descriptors (service/connection.py), the
streams, the rootfs and the overlay among them."""

TMPFS_LIMIT = 64
"""Empty file systems of one step: each is a mount, and nobody needs more."""

PATH_LIMIT = 4096
"""Bytes of a path: the kernel's PATH_MAX."""


@dataclass(frozen=True)
class Bind:
    """A bind mount: the source is a descriptor, kept apart; `destination` an absolute path
    inside."""

    destination: str
    readonly: bool = False


@dataclass(frozen=True)
class Step:
    """One step to run.

    `command` is argv; `environment` is all there is, with PATH and HOME added if they are missing;
    `user` and `group` are ids inside; `timeout` is in seconds, 0 for none; `memory` in bytes and
    `cpus` in CPUs, 0 for no limit; `tmpfs` are absolute paths; `cpu` is a CPU model for the
    emulator instead of maid's choice. `profile`: the command runs under maid-profile, and one of
    the bind mounts is the file for what it finds, at PROFILE_LOG. `overlay`: changes go to a
    directory that is handed over, not to the root file system.
    """

    platform: Platform
    command: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)
    cwd: str = "/"
    user: int = 0
    group: int = 0
    network: Network = Network.HOST
    timeout: float = 0.0
    memory: int = 0
    cpus: float = 0.0
    readonly: bool = False
    overlay: bool = False
    binds: tuple[Bind, ...] = ()
    tmpfs: tuple[str, ...] = ()
    cpu: str = ""
    accelerate: Accelerate = Accelerate.AUTO
    profile: bool = False

    def check(self) -> None:
        """Raise StepRefused for what can never run, in words."""
        if not self.command or not self.command[0]:
            raise StepRefused("the step has no command", "maid run … -- CMD [ARG…]")
        self._check_texts()
        for path in (self.cwd, *self.tmpfs, *(bind.destination for bind in self.binds)):
            if not path.startswith("/") or ".." in path.split("/"):
                raise StepRefused(f"{path!r} is not an absolute path within the root file system")
            if len(path.encode()) >= PATH_LIMIT:
                raise StepRefused(f"a path of {len(path)} characters is too long for the kernel")
        if len(self.binds) > BINDS_LIMIT:
            raise StepRefused(f"{len(self.binds)} bind mounts, more than {BINDS_LIMIT}")
        if len(self.tmpfs) > TMPFS_LIMIT:
            raise StepRefused(f"{len(self.tmpfs)} times tmpfs, more than {TMPFS_LIMIT}")
        for number, what in ((self.user, "user"), (self.group, "group")):
            if not 0 <= number < 2**32 - 1:
                raise StepRefused(f"{number} is no {what} id")
        # Written so that what is no number (NaN) is refused as well.
        if not 0 <= self.timeout <= 31_536_000:
            raise StepRefused("the time limit must be between 0 and a year, in seconds")
        if self.memory and not 4 << 20 <= self.memory < 1 << 62:
            raise StepRefused("a memory limit must be at least 4 MiB: below, nothing starts")
        if self.cpus and not (math.isfinite(self.cpus) and 0.01 <= self.cpus <= 65536):
            raise StepRefused("the CPU limit must be at least 0.01")
        if self.readonly and self.overlay:
            raise StepRefused(
                "a step cannot be read-only and write to an overlay", "leave one of them out"
            )

    def _check_texts(self) -> None:
        for name in self.environment:
            if not name or "=" in name:
                raise StepRefused(f"{name!r} cannot be the name of an environment variable")
        texts = [*self.command, *(f"{key}={value}" for key, value in self.environment.items())]
        paths = [self.cwd, *self.tmpfs, *(bind.destination for bind in self.binds)]
        try:
            size = sum(len(text.encode()) + 1 for text in texts)
            "".join(paths).encode()
        except UnicodeEncodeError as error:
            # An OCI bundle is JSON, which has no other bytes (RFC 8259, 8.1).
            raise StepRefused(
                f"{error.object[max(0, error.start - 20) : error.end + 20]!r} is not UTF-8",
                "hand such data over in a file: --bind",
            ) from error
        if any("\0" in text for text in (*texts, *paths)):
            raise StepRefused("a NUL byte in the command, the environment or a path")
        if size > ARGUMENTS_LIMIT:
            raise StepRefused(
                f"command and environment have {size} bytes, more than {ARGUMENTS_LIMIT}",
                "hand large data over in a file: --bind",
            )

    def full_environment(self) -> dict[str, str]:
        """The environment with PATH and HOME filled in."""
        home = "/root" if self.user == 0 else "/"
        return {"PATH": DEFAULT_PATH, "HOME": home, **self.environment}


class Outcome(StrEnum):
    """How a step ended. `refused`: the runtime could not start the command; `failed`: maid could
    not; `lost`: its supervisor was killed, and the step with it."""

    exited = "exited"
    signaled = "signaled"
    timeout = "timeout"
    cancelled = "cancelled"
    refused = "refused"
    failed = "failed"
    lost = "lost"


@dataclass(frozen=True)
class Result:
    """A step's end: `status` is what `maid run` exits with (the command's own, 128+N for signal N,
    125 maid failed, 126 not executable, 127 not found); `signal` is N or None; times in seconds;
    `peak_memory` in bytes (the largest process, or the whole step where it has a memory limit);
    `via` and `interpreter` say how it ran. `native` counts the programs that ran natively, by tool,
    and `emulated` those that QEMU ran; null where they were not counted (the step was not
    accelerated)."""

    outcome: Outcome
    status: int
    signal: int | None
    error: str | None
    wall: float
    user: float
    system: float
    peak_memory: int
    via: str
    interpreter: str | None
    native: dict[str, int] = field(default_factory=dict)
    emulated: int | None = None

    @property
    def began(self) -> bool:
        """Whether the command has run, for certain, and to an end whose time is known."""
        return self.outcome not in (Outcome.refused, Outcome.failed, Outcome.lost)


def new_id() -> str:
    """An id for a step, unique on this machine: it sorts by time."""
    return f"{time.time_ns() // 1_000_000:x}-{secrets.token_hex(4)}"


def is_id(text: str) -> bool:
    """Whether a text is of the form of an id."""
    return re.fullmatch("[0-9a-f]{1,16}-[0-9a-f]{8,32}", text) is not None
