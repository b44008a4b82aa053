"""buildah's storage of a platform, and the calls of buildah and skopeo that work on it.

Each platform has a storage of its own below maid's build directory:

    ROOT/storage/linux-arm64/graph      layers and images: what is cached stays
    ROOT/storage/linux-arm64-epoch-0/   the same for SOURCE_DATE_EPOCH=0
    ROOT/storage/linux-arm64/lock       held while a build uses it
    ROOT/work/XXXX/                     one `maid build`: gone when it ends, however it does
    ROOT/logs/TIME-PID/linux-arm64.log

So a cached layer cannot cross platforms, and builds do not wait for each other's locks. The user's
own storage is no part of it: it is written by whom the room does not know (overlay keeps its marks
in other attributes there), and what is removed from it would break the layers cached above it.
Images that exist only there are copied (local.py).
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from maid.errors import MaidError
from maid.images.staging import staging, whole
from maid.images.surroundings import Surroundings

_SHORT_SECONDS = 60.0
"""For calls that read and write next to nothing."""

_NO_PART_OF_A_REFERENCE = frozenset("+:@[],")
"""What separates the parts of `[DRIVER@GRAPH+RUN:OPTION,OPTION]@IMAGE`."""

_OVERLAY_TRIAL = (
    'cd "$1" && mkdir lower upper work merged && exec mount -t overlay'
    " -o lowerdir=lower,upperdir=upper,workdir=work,userxattr none merged"
)


def default_root() -> Path:
    """Where builds are kept when nobody says otherwise."""
    if os.environ.get("MAID_BUILD_ROOT"):
        return Path(os.environ["MAID_BUILD_ROOT"])
    if os.geteuid() == 0:
        return Path("/var/lib/maid/build")
    data = os.environ.get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share")
    return Path(data, "maid", "build")


def need_programs() -> None:
    """Raises MaidError naming the package of a program that is not installed."""
    for program in ("buildah", "skopeo"):
        if shutil.which(program) is None:
            raise MaidError(f"{program} is not installed", f"apt-get install {program}")


@dataclass(frozen=True)
class Image:
    """An image of a storage: its id (64 hexadecimal digits), the digest of its manifest, the names
    that it has, and when it was made, in seconds since 1970."""

    id: str
    digest: str
    names: tuple[str, ...]
    created: int = 0


def read_images(text: str) -> list[Image]:
    """What `buildah images --json` printed. Raises MaidError for anything else."""
    try:
        return [
            Image(
                each["id"].removeprefix("sha256:"),
                each.get("digest") or "",
                tuple(each.get("names") or ()),
                int(each.get("created") or 0),
            )
            for each in json.loads(text or "null") or []
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise MaidError(f"buildah does not say which images there are: {text[:200]!r}") from error


class Root:
    """maid's build directory."""

    def __init__(self, path: Path) -> None:
        self.path = Path(os.path.abspath(path))

    def create(self) -> Root:
        """Make it, for its owner alone. Raises MaidError."""
        odd = sorted(set(str(self.path)) & _NO_PART_OF_A_REFERENCE)
        if odd:
            raise MaidError(
                f"maid's build directory {self.path} has {' '.join(odd)} in its path, which the"
                " names of images in it cannot have (containers-transports(5))",
                "--root DIR or MAID_BUILD_ROOT names another one",
            )
        try:
            for name in ("storage", "work", "logs"):
                os.makedirs(self.path / name, mode=0o700, exist_ok=True)
            if not os.access(self.path / "work", os.W_OK):
                raise PermissionError(13, os.strerror(13))
        except OSError as error:
            raise MaidError(
                f"maid's build directory {self.path} cannot be used: {error.strerror}",
                "--root DIR or MAID_BUILD_ROOT names another one",
            ) from error
        return self

    @contextmanager
    def work(self, surroundings: Surroundings) -> Iterator[Path]:
        """A directory for one `maid build`, gone afterwards; those that were left by killed ones go
        as well."""
        work = self.path / "work"
        for left in work.iterdir():
            with _held(left) as is_held:
                if is_held:
                    remove_tree(left, surroundings)
        with staging(work, "build-") as made:
            try:
                yield made
            finally:
                remove_tree(made, surroundings)

    def driver(self, surroundings: Surroundings, work: Path) -> tuple[str, str]:
        """The storage driver: overlay where it can be mounted in a room here, else vfs; and why it
        is that, or "". Only what worked is remembered. Raises MaidError."""
        known = self.path / "driver"
        with contextlib.suppress(OSError, UnicodeDecodeError):
            if known.read_text().strip() == "overlay":
                return "overlay", ""
        trial = work / "trial"
        trial.mkdir(exist_ok=True)
        command = ["sh", "-c", _OVERLAY_TRIAL, "sh", str(trial)]
        done = _run(surroundings.argv(command))
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip() or f"status {done.returncode}"
            return "vfs", f"every layer is copied whole, overlay cannot be used here: {said[-200:]}"
        with whole(known) as grown:
            grown.write_text("overlay\n")
        return "overlay", ""


@contextmanager
def _held(directory: Path) -> Iterator[bool]:
    """A directory that nobody uses, locked; yields whether it is that."""
    try:
        file = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        yield False
        return
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
    finally:
        os.close(file)


def _run(argv: list[str]) -> subprocess.CompletedProcess[bytes]:
    """A short call. Raises MaidError where it cannot be started, or does not end."""
    try:
        return subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=_SHORT_SECONDS
        )
    except subprocess.TimeoutExpired as error:
        raise MaidError(f"{argv[0]} has not ended in {_SHORT_SECONDS:.0f} s") from error
    except OSError as error:
        raise MaidError(f"{argv[0]} cannot be started: {error.strerror}") from error


def remove_tree(directory: Path, surroundings: Surroundings) -> None:
    """Remove a directory in which files may belong to ids of the room."""
    shutil.rmtree(directory, ignore_errors=True)
    if directory.exists():
        command = surroundings.argv(["rm", "-rf", "--one-file-system", str(directory)])
        with contextlib.suppress(OSError):  # what stays is removed the next time
            subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True)


class Process:
    """A command that runs in a room. Its output comes through `output`, which ends when everything
    in the room has ended."""

    def __init__(self, argv: Sequence[str], environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            argv,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            # Of a terminal's signals, those for maid are for maid to act upon.
            start_new_session=True,
        )
        assert self._process.stdout is not None
        self.output: IO[bytes] = self._process.stdout

    def wait(self) -> int:
        """The exit status, 128+N for signal N."""
        status = self._process.wait()
        self.output.close()
        return status if status >= 0 else 128 - status

    def kill(self) -> None:
        """End it and all that is in its room (room.py): nothing there can hold on."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGKILL)


def full_disk(said: str, directory: Path) -> str:
    """A hint when a program ran out of space, or ""."""
    if "no space left on device" not in said.lower():
        return ""
    try:
        free = shutil.disk_usage(directory).free >> 20
    except OSError:
        free = 0
    return f"free some space: {directory} is on a file system with {free} MiB left"


def buildah_version(surroundings: Surroundings) -> tuple[int, int]:
    """Major and minor version of buildah. Raises MaidError."""
    done = _run(["buildah", "version", "--json"])
    try:
        found: dict[str, Any] = json.loads(done.stdout)
        major, minor, *_ = found["version"].split(".")
        return int(major), int(minor)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        said = (done.stdout + done.stderr).decode(errors="replace").strip()
        raise MaidError(f"buildah does not say which version it is: {said[-200:]}") from error
