"""Run steps in tests as a client does: descriptors in, output and result out."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from daemons import Daemon, until

from maid.client import Client
from maid.errors import MaidError

SHELL = "/bin/sh"


@dataclass
class Ran:
    """A step that was run: what it wrote and how it ended; or why it was refused."""

    stdout: str = ""
    stderr: str = ""
    result: dict[str, Any] = field(default_factory=dict)
    id: str = ""
    refused: MaidError | None = None

    @property
    def status(self) -> int:
        """What `maid run` would exit with."""
        assert self.refused is None, self.refused
        return int(self.result["status"])

    @property
    def lines(self) -> list[str]:
        """The lines of output of a step that must have succeeded."""
        assert self.refused is None, self.refused
        assert self.result["status"] == 0, (self.result, self.stdout, self.stderr)
        return self.stdout.splitlines()


@dataclass
class Bind:
    """A file or directory to mount."""

    source: Path
    destination: str
    readonly: bool = False


def request(
    rootfs: Path | int,
    command: Sequence[str],
    streams: Sequence[int],
    binds: Sequence[Bind] = (),
    overlay: Path | None = None,
    **parameters: Any,
) -> tuple[dict[str, Any], list[int], list[int]]:
    """Parameters and descriptors of Steps.Run, and those of them to close afterwards."""
    opened = []

    def opening(path: Path) -> int:
        opened.append(os.open(path, os.O_PATH | os.O_CLOEXEC))
        return opened[-1]

    descriptors = [*streams, opening(rootfs) if isinstance(rootfs, Path) else rootfs]
    message: dict[str, Any] = dict(
        stdin=0, stdout=1, stderr=2, rootfs=3, command=list(command), binds=[], **parameters
    )
    if overlay is not None:
        for name in ("upper", "work"):
            (overlay / name).mkdir(parents=True, exist_ok=True)
        message["changes"] = len(descriptors)
        descriptors.append(opening(overlay))
    for bind in binds:
        message["binds"].append(
            {
                "source": len(descriptors),
                "destination": bind.destination,
                "readonly": bind.readonly,
            }
        )
        descriptors.append(opening(bind.source))
    return message, descriptors, opened


def run(
    daemon: Daemon,
    rootfs: Path | int,
    *command: str,
    client: Client | None = None,
    stdin: bytes = b"",
    **parameters: Any,
) -> Ran:
    """Run a step to its end."""
    streams = [os.memfd_create(name) for name in ("stdin", "stdout", "stderr")]
    os.pwrite(streams[0], stdin, 0)
    message, descriptors, opened = request(rootfs, command, streams, **parameters)
    ran = Ran()
    connection = client or daemon.client()
    try:
        for reply in connection.stream("io.maid.Steps.Run", message, descriptors):
            step = reply["step"]
            if step["started"]:
                ran.id = step["started"]["id"]
            if step["finished"]:
                ran.result = step["finished"]
    except MaidError as error:
        ran.refused = error
    finally:
        if client is None:
            connection.close()
        ran.stdout, ran.stderr = (
            os.pread(stream, 1 << 24, 0).decode(errors="replace") for stream in streams[1:]
        )
        for descriptor in (*streams, *opened):
            os.close(descriptor)
    return ran


def shell(daemon: Daemon, rootfs: Path | int, script: str, **parameters: Any) -> Ran:
    """Run a script of busybox's shell as a step."""
    return run(daemon, rootfs, SHELL, "-c", script, **parameters)


@contextlib.contextmanager
def running(
    daemon: Daemon, rootfs: Path | int, script: str, **parameters: Any
) -> Iterator[tuple[Client, str, int]]:
    """A step that goes on: its connection, its id and the reading end of its output.

    The connection is closed at the end, which ends the step.
    """
    output, writer = os.pipe()
    null = os.open(os.devnull, os.O_RDWR)
    message, descriptors, opened = request(
        rootfs, [SHELL, "-c", script], [null, writer, null], **parameters
    )
    client = daemon.client()
    try:
        replies = client.stream("io.maid.Steps.Run", message, descriptors)
        identifier = next(replies)["step"]["started"]["id"]
        os.close(writer)
        writer = -1
        yield client, identifier, output
    finally:
        client.close()
        for descriptor in (*opened, null, output, writer):
            with contextlib.suppress(OSError):
                os.close(descriptor)


def finished(client: Client) -> dict[str, Any]:
    """The result of the step that was started on this connection."""
    reply, continues = client._reply()
    assert not continues
    result = reply["step"]["finished"]
    assert isinstance(result, dict)
    return result


def read_until(descriptor: int, word: bytes, seconds: float = 20.0) -> bytes:
    """What a step writes, up to `word`."""
    data = b""
    os.set_blocking(descriptor, False)
    end = time.monotonic() + seconds
    while word not in data:
        assert time.monotonic() < end, data
        with contextlib.suppress(BlockingIOError):
            piece = os.read(descriptor, 4096)
            assert piece, data
            data += piece
        time.sleep(0.002)
    return data


class Marked:
    """Processes that can be told from all others, by an argument that nobody else has."""

    def __init__(self) -> None:
        self.seconds = f"{secrets.randbelow(10**8) + 10**8}"

    def alive(self) -> list[int]:
        """Those that live, as this process sees them."""
        found = []
        for name in os.listdir("/proc"):
            with contextlib.suppress(OSError):
                if name.isdigit() and self.seconds.encode() in Path(
                    f"/proc/{name}/cmdline"
                ).read_bytes().split(b"\0"):
                    found.append(int(name))
        return found

    def tree(self) -> str:
        """A script that starts a tree of processes that are hard to end: in sessions of their own,
        orphaned by a double fork, deaf to SIGTERM. It says "up" when all are there."""
        one = f"sleep {self.seconds}"
        return (
            f"trap '' TERM HUP INT; setsid {one} & (setsid {one} & {one} &) ; "
            f"(trap '' TERM; {SHELL} -c 'setsid {one} & {one}' &) ; "
            f"sleep 0.1; echo up; {one}"
        )


def gone_within(marked: Marked, seconds: float) -> bool:
    """Whether all of them are gone within so many seconds."""
    return until(lambda: not marked.alive(), seconds)


def copy(source: Path, target: Path, owner: int = 0) -> Path:
    """A copy of a root file system that a test may write to."""
    subprocess.run(["cp", "-a", f"{source}/.", target], check=True)
    if owner:
        subprocess.run(["chown", "-hR", f"{owner}:{owner}", target], check=True)
    return target


def groups_line(status: str) -> str:
    """The supplementary groups in the text of /proc/PID/status."""
    match = re.search(r"^Groups:\s*(.*)$", status, re.MULTILINE)
    assert match is not None, status
    return match[1].strip()
