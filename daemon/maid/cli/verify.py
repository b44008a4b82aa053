"""`maid accel verify --rootfs DIR -- CMD…`: the same step with and without acceleration, compared.

Each run has an overlay directory of its own over the same, untouched root file system. Where the
two differ, the plain step is run once more: what two plain runs do not have in common either, such
as a time of day in a file, varies by itself and proves nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from maid.acceleration import verify
from maid.acceleration.verify import Difference, Tree
from maid.cli import render
from maid.cli.common import show_json
from maid.cli.run import Request, submit
from maid.errors import MaidError, StepRefused, UsageError
from maid.kernel import OVERLAYFS_MAGIC, filesystem_type

SHOWN = 40
"""Differences that people are shown; --json has them all."""

DIFFERENT = 1
"""Exit status when acceleration changed something, or when it had to happen and did not."""


@dataclass
class Run:
    """One run: its directory with upper/, work/, stdout and stderr, and the result."""

    directory: Path
    result: dict[str, Any]

    def tree(self, rootfs: Path) -> Tree:
        """The root file system after it."""
        return Tree(str(self.directory / "upper"), str(rootfs))


def show(
    socket: str,
    request: Request,
    *,
    ignored: Sequence[str],
    keep: Path | None,
    strict: bool,
    as_json: bool,
) -> int:
    """Run, compare and print; the exit status of `maid accel verify`. Raises MaidError when a step
    cannot be run."""
    with _directory(keep) as directory:
        runner = _Runner(socket, request, directory, quiet=as_json)
        accelerated = runner.run("accelerated", accelerate=True)
        plain = runner.run("plain", accelerate=False)
        runner.say("comparing")
        differences = _compare(accelerated, plain, request.rootfs, ignored)
        varying: list[Difference] = []
        if differences:
            again = runner.run("plain-again", accelerate=False)
            runner.say("comparing")
            between = _compare(plain, again, request.rootfs, ignored)
            differences, varying = verify.apart(differences, between)
        runner.say("")
    idle = not accelerated.result["native"]
    if as_json:
        show_json(_document(accelerated, plain, differences, varying, keep))
    else:
        _print(accelerated, plain, differences, varying, keep)
    if idle and request.require_acceleration:
        return DIFFERENT
    return DIFFERENT if differences or (strict and varying) else 0


class _Runner:
    """Runs the step in directories of its own, and says on a terminal what is going on."""

    def __init__(self, socket: str, request: Request, directory: Path, quiet: bool) -> None:
        self._socket = socket
        self._request = request
        self._directory = directory
        self._told = not quiet and render.is_terminal(sys.stderr)

    def say(self, what: str) -> None:
        """Show the one line of progress anew."""
        if self._told:
            print(f"\r\033[K{what}", end="… " if what else "", file=sys.stderr, flush=True)

    def run(self, name: str, accelerate: bool) -> Run:
        """Run the step from the state of the root file system as it was given."""
        self.say(f"running: {name.replace('-', ' ')}")
        directory = self._directory / name
        try:
            directory.mkdir()
        except FileExistsError:
            raise UsageError(f"{directory} is there already", "--keep an empty directory") from None
        request = dataclasses.replace(
            self._request,
            overlay=directory,
            accelerate=accelerate,
            require_acceleration=accelerate and self._request.require_acceleration,
        )
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        streams = [
            os.open(os.devnull, os.O_RDWR),
            os.open(directory / "stdout", flags, 0o600),
            os.open(directory / "stderr", flags, 0o600),
        ]
        try:
            result = submit(self._socket, request, (streams[0], streams[1], streams[2]))
        finally:
            for stream in streams:
                os.close(stream)
        if result["outcome"] not in ("exited", "signaled"):
            self.say("")
            failure = StepRefused(f"the step could not be verified: {result['error']}")
            failure.exit_status = result["status"]
            raise failure
        return Run(directory, result)


def _compare(first: Run, second: Run, rootfs: Path, ignored: Sequence[str]) -> list[Difference]:
    try:
        found = verify.compare(first.tree(rootfs), second.tree(rootfs))
        for stream in ("stdout", "stderr"):
            paths = [str(run.directory / stream) for run in (first, second)]
            if where := verify.where_files_differ(*paths):
                sizes = [os.stat(path).st_size for path in paths]
                found.append(Difference("", stream, f"{sizes[0]} bytes", f"{sizes[1]} {where}"))
    except OSError as error:
        raise MaidError(
            f"what the step made cannot be read: {error.strerror}: {error.filename}",
            "its files may belong to users that only root can read: run it as root",
        ) from error
    statuses = [str(run.result["status"]) for run in (first, second)]
    if statuses[0] != statuses[1]:
        found.append(Difference("", "status", *statuses))
    return verify.without(found, ignored)


@contextmanager
def _directory(keep: Path | None) -> Iterator[Path]:
    """Where the runs' trees go: `keep`, or a temporary directory that can carry an overlay."""
    if keep is not None:
        try:
            keep.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"{keep} cannot be made: {error.strerror}", "--keep DIR") from error
        yield keep.absolute()
        return
    made = Path(tempfile.mkdtemp(prefix="maid-verify-", dir=_place()))
    before = signal.signal(signal.SIGTERM, _terminated)
    try:
        yield made
    finally:
        signal.signal(signal.SIGTERM, before)
        _remove(made)


def _terminated(number: int, _: object) -> NoReturn:
    """Clean up as at any other end."""
    raise SystemExit(128 + number)


def _remove(made: Path) -> None:
    """Remove the runs' trees. A step that was interrupted needs a moment to end."""
    for _ in range(20):
        _open_up(made)
        shutil.rmtree(made, ignore_errors=True)
        if not made.exists():
            return
        time.sleep(0.1)
    print(f"maid: {made} could not be removed: are files in it not yours?", file=sys.stderr)


def _open_up(directory: Path) -> None:
    """Let its owner remove a tree: the kernel makes the overlay's work directory with mode 0."""
    waiting = [str(directory)]
    while waiting:
        path = waiting.pop()
        with contextlib.suppress(OSError):
            os.chmod(path, 0o700)
            with os.scandir(path) as entries:
                waiting += [e.path for e in entries if e.is_dir(follow_symlinks=False)]


def _place() -> str:
    """A directory for temporary files on which the kernel makes an overlay."""
    for directory in (tempfile.gettempdir(), "/var/tmp", os.path.expanduser("~"), "/dev/shm"):
        if os.access(directory, os.W_OK) and filesystem_type(directory) != OVERLAYFS_MAGIC:
            return directory
    raise MaidError(
        "every place for temporary files lies on an overlay file system, on which the kernel makes"
        " no other",
        "--keep DIR on a volume or a tmpfs",
    )


# What is shown ----------------------------------------------------------------------------------


def _document(
    accelerated: Run,
    plain: Run,
    differences: list[Difference],
    varying: list[Difference],
    keep: Path | None,
) -> dict[str, Any]:
    def listed(found: list[Difference]) -> list[dict[str, str]]:
        return [
            {
                "path": difference.path,
                "attribute": difference.attribute,
                "accelerated": difference.first,
                "plain": difference.second,
            }
            for difference in found
        ]

    return {
        "identical": not differences,
        "accelerated": accelerated.result,
        "plain": plain.result,
        "differences": listed(differences),
        "varying": listed(varying),
        "kept": str(keep.absolute()) if keep else None,
    }


def _print(
    accelerated: Run,
    plain: Run,
    differences: list[Difference],
    varying: list[Difference],
    keep: Path | None,
) -> None:
    stream = sys.stdout
    for title, found in (
        ("differs", differences),
        ("varies by itself, between two plain runs too", varying),
    ):
        if found:
            print(f"{title}:")
        for difference in found[:SHOWN]:
            where = difference.path or "the command"
            print(
                f"  {where}: {difference.attribute}: accelerated {difference.first};"
                f" plain {difference.second}"
            )
        if len(found) > SHOWN:
            print(f"  and {len(found) - SHOWN} more: --json shows all")
    native, emulated = accelerated.result["native"], accelerated.result["emulated"]
    if native:
        names = ", ".join(f"{count} {name}" for name, count in native.items())
        print(f"ran natively: {names}; under QEMU: {emulated} program starts")
    else:
        print(
            f"{render.paint('!', 'warning', stream)} nothing ran natively, so this proves nothing:"
            " maid accel list says which tools there are"
        )
    cpu = [run.result["user"] + run.result["system"] for run in (accelerated, plain)]
    times = f"{cpu[0]:.1f} s of CPU time accelerated, {cpu[1]:.1f} s plain"
    if cpu[0] > 0:
        times += f" ({cpu[1] / cpu[0]:.1f} times as much)"
    status = accelerated.result["status"]
    ended = "" if status == 0 else f"; the command ended with {status} each time"
    verdict = (
        f"{len(differences)} differences"
        if differences
        else f"identical but for what varies by itself{ended}"
        if varying
        else f"identical{ended}"
    )
    print(times)
    print(
        f"{render.mark('failed' if differences else 'ok', stream)}  {verdict} (times of files are"
        " not compared)"
    )
    if keep is not None:
        print(f"both trees are kept in {keep}")
