"""buildah's storage of a platform, and the calls of buildah and skopeo that work on it.

Each platform has a storage of its own below maid's build directory:

    ROOT/storage/linux-arm64/graph      layers and images: what is cached stays
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
import resource
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from maid.errors import MaidError
from maid.images.surroundings import Surroundings

_SECONDS = 600.0
"""For calls that read or copy what is on this disk."""

_STORAGE = """[storage]
driver = "{driver}"
graphroot = "{graph}"
runroot = "{run}"
"""

# The machine's own file is not read: its networks, cgroup manager and limits are for containers
# outside of a user namespace. A limit above this process's own could not be set in there.
_CONTAINERS = """[containers]
default_ulimits = ["nofile={files}", "nproc={processes}"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "none"
[network]
network_config_dir = "{networks}"
"""

_INSPECT = """cd "$1" && shift
while [ "$1" != -- ]; do
    skopeo inspect --raw "$2" >"$1.manifest" &&
        skopeo inspect --config --raw "$2" >"$1.config" || : >"$1.config"
    shift 2
done
shift
exec "$@"
"""

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
    """An image of a storage: its id (64 hexadecimal digits), the digest of its manifest, and the
    names that it has."""

    id: str
    digest: str
    names: tuple[str, ...]


def read_images(text: str) -> list[Image]:
    """What `buildah images --json` printed."""
    return [
        Image(
            each["id"].removeprefix("sha256:"),
            each.get("digest") or "",
            tuple(each.get("names") or ()),
        )
        for each in json.loads(text or "null") or []
    ]


class Root:
    """maid's build directory."""

    def __init__(self, path: Path) -> None:
        self.path = Path(os.path.abspath(path))

    def create(self) -> Root:
        """Make it, for its owner alone. Raises MaidError."""
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
        for left in (self.path / "work").iterdir():
            with _held(left, wait=False) as is_held:
                if is_held:
                    _remove(left, surroundings)
        made = Path(tempfile.mkdtemp(dir=self.path / "work"))
        with _held(made, wait=True):
            try:
                yield made
            finally:
                _remove(made, surroundings)

    def driver(self, surroundings: Surroundings, work: Path) -> str:
        """The storage driver: overlay where it can be mounted in a room here, else vfs."""
        known = self.path / "driver"
        with contextlib.suppress(OSError):
            return known.read_text().strip()
        trial = Path(tempfile.mkdtemp(dir=work))
        command = ["sh", "-c", _OVERLAY_TRIAL, "sh", str(trial)]
        done = subprocess.run(
            surroundings.argv(command), stdin=subprocess.DEVNULL, capture_output=True, timeout=60
        )
        driver = "overlay" if done.returncode == 0 else "vfs"
        known.write_text(f"{driver}\n")
        return driver


@contextmanager
def _held(directory: Path, wait: bool) -> Iterator[bool]:
    """A directory locked for this process; yields whether it is."""
    try:
        file = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        yield False
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield True
    except BlockingIOError:
        yield False
    finally:
        os.close(file)


def _remove(directory: Path, surroundings: Surroundings) -> None:
    """Remove a directory in which files may belong to ids of the room."""
    shutil.rmtree(directory, ignore_errors=True)
    if directory.exists():
        command = surroundings.argv(["rm", "-rf", "--one-file-system", str(directory)])
        subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_SECONDS)


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


class Storage:
    """The storage of one platform while a build uses it; `work` is the build's own directory for
    this platform, `graph` where the images are."""

    def __init__(self, graph: Path, work: Path, driver: str, surroundings: Surroundings) -> None:
        self.graph = graph
        self.work = work
        self.driver = driver
        self.surroundings = surroundings
        for name in ("run", "tmp", "state", "dev"):
            (work / name).mkdir(parents=True)
        files, processes = (
            _limit(kind) for kind in (resource.RLIMIT_NOFILE, resource.RLIMIT_NPROC)
        )
        texts = {
            "storage.conf": _STORAGE.format(driver=driver, graph=graph, run=work / "run"),
            "containers.conf": _CONTAINERS.format(
                files=files, processes=processes, networks=work / "networks"
            ),
        }
        for name, text in texts.items():
            (work / name).write_text(text)
        self.environment = surroundings.environment(os.environ) | {
            "CONTAINERS_STORAGE_CONF": str(work / "storage.conf"),
            "CONTAINERS_CONF": str(work / "containers.conf"),
            "TMPDIR": str(work / "tmp"),
        }

    @property
    def buildah(self) -> list[str]:
        """buildah with this storage: an ordinary user's it would look for elsewhere, whatever
        storage.conf says."""
        return [
            "buildah",
            *("--root", str(self.graph)),
            *("--runroot", str(self.work / "run")),
            *("--storage-driver", self.driver),
        ]

    def start(self, command: list[str]) -> Process:
        """Start a command in the room."""
        return Process(self.surroundings.argv(command, self.work / "dev"), self.environment)

    def run(self, *command: str) -> str:
        """The standard output of a command in the room. Raises MaidError with what it said."""
        argv = self.surroundings.argv(list(command))
        done = subprocess.run(
            argv,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_SECONDS,
            start_new_session=True,
        )
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip()
            raise MaidError(
                f"{command[0]} failed in maid's build storage {self.graph}: "
                f"{said[-500:] or f'exit status {done.returncode}'}",
                full_disk(said, self.graph) or "maid build --root DIR uses another directory",
            )
        return done.stdout.decode(errors="replace")

    def images(self) -> list[Image]:
        """What is in it."""
        return read_images(self.run(*self.buildah, "images", "--no-trunc", "--json"))

    def documents(self, images: Sequence[str]) -> tuple[list[tuple[bytes, bytes]], list[Image]]:
        """The manifest and the configuration of each image as they are stored, empty for a list of
        images; and all images. One call for everything: each costs a room. Raises MaidError."""
        place = Path(tempfile.mkdtemp(dir=self.work))
        references = [word for each in images for word in (each, self.reference(each))]
        listing = [*self.buildah, "images", "--no-trunc", "--json"]
        text = self.run("sh", "-c", _INSPECT, "sh", str(place), *references, "--", *listing)
        documents = [
            ((place / f"{each}.manifest").read_bytes(), (place / f"{each}.config").read_bytes())
            for each in images
        ]
        return documents, read_images(text)

    def reference(self, image: str) -> str:
        """How skopeo calls the image of that id."""
        return f"containers-storage:[{self.driver}@{self.graph}+{self.work / 'run'}]@{image}"

    def clear_containers(self) -> None:
        """Remove the working containers that there are: nobody may be building."""
        record = self.graph / f"{self.driver}-containers" / "containers.json"
        with contextlib.suppress(OSError):
            if record.read_text().strip() not in ("", "[]", "null"):
                self.run(*self.buildah, "rm", "--all")


@contextmanager
def opened(
    root: Root, slug: str, epoch: str, work: Path, driver: str, surroundings: Surroundings
) -> Iterator[Storage]:
    """The storage of a platform. Who comes first, and who goes last, clears the working containers
    that builds which were ended have left.

    What was built for a fixed time (SOURCE_DATE_EPOCH) has a storage of its own, for one time:
    buildah takes a cached layer whatever time its files have.
    """
    directory = root.path / "storage" / (f"{slug}-epoch" if epoch else slug)
    os.makedirs(directory, mode=0o700, exist_ok=True)
    with ExitStack() as stack:
        lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        stack.callback(os.close, lock)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_first = True
        except BlockingIOError:
            is_first = False
            fcntl.flock(lock, fcntl.LOCK_SH)
        storage = Storage(directory / "graph", work, driver, surroundings)
        if is_first:
            if epoch and os.pread(lock, 64, 0).decode() != epoch:
                _remove(directory / "graph", surroundings)
                os.ftruncate(lock, 0)
                os.pwrite(lock, epoch.encode(), 0)
            storage.clear_containers()
            fcntl.flock(lock, fcntl.LOCK_SH)
        try:
            yield storage
        finally:
            with contextlib.suppress(BlockingIOError, MaidError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                storage.clear_containers()


def full_disk(said: str, directory: Path) -> str:
    """A hint when a program ran out of space, or ""."""
    if "no space left on device" not in said.lower():
        return ""
    try:
        free = shutil.disk_usage(directory).free >> 20
    except OSError:
        free = 0
    return f"free some space: {directory} is on a file system with {free} MiB left"


def _limit(kind: int) -> str:
    """A resource limit as containers.conf spells it."""
    soft, hard = (
        "-1" if each == resource.RLIM_INFINITY else str(each) for each in resource.getrlimit(kind)
    )
    return f"{soft}:{hard}"


def buildah_version(surroundings: Surroundings) -> tuple[int, int]:
    """Major and minor version of buildah. Raises MaidError."""
    done = subprocess.run(
        ["buildah", "version", "--json"], stdin=subprocess.DEVNULL, capture_output=True, timeout=60
    )
    try:
        found: dict[str, Any] = json.loads(done.stdout)
        major, minor, *_ = found["version"].split(".")
        return int(major), int(minor)
    except (ValueError, KeyError) as error:
        said = (done.stdout + done.stderr).decode(errors="replace").strip()
        raise MaidError(f"buildah does not say which version it is: {said[-200:]}") from error
