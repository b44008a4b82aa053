"""buildah's storage of one platform: its settings, the calls that work on it, and its repair.

What is in there is cached work and nothing else: a build's results leave it (export.py).
"""

from __future__ import annotations

import fcntl
import os
import re
import resource
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from maid.errors import MaidError
from maid.images.buildah import (
    Image,
    Process,
    Root,
    full_disk,
    read_images,
    remove_tree,
)
from maid.images.surroundings import Surroundings

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

# What containers/storage says of an image whose record is there alone.
_BROKEN = re.compile(r'image with ID "([0-9a-f]{64})"')


class Storage:
    """The storage of one platform while a build uses it; `work` is the build's own directory for
    this platform, `graph` where the images are, and `was_ended` says that a build was killed in the
    middle of its work here."""

    def __init__(self, graph: Path, work: Path, driver: str, surroundings: Surroundings) -> None:
        self.graph = graph
        self.work = work
        self.driver = driver
        self.surroundings = surroundings
        self._lock = threading.Lock()
        self._running: subprocess.Popen[bytes] | None = None
        self.was_ended = False
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
        with self._lock:
            if self.was_ended:
                raise MaidError(f"{command[0]} was not started any more")
            process = self._running = subprocess.Popen(
                self.surroundings.argv(list(command)),
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        try:
            output, errors = process.communicate()  # `end` ends it
        finally:
            process.kill()
            process.wait()
        if process.returncode:
            said = errors.decode(errors="replace").strip()
            raise MaidError(
                f"{command[0]} failed in maid's build storage {self.graph}: "
                f"{said[-500:] or f'exit status {process.returncode}'}",
                full_disk(said, self.graph) or "maid build --root DIR uses another directory",
            )
        return output.decode(errors="replace")

    def end(self) -> None:
        """End what `run` is doing, from another thread, and have it do nothing more."""
        with self._lock:
            self.was_ended = True
            if self._running:
                self._running.kill()

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

    def mend(self) -> None:
        """Repair what a build that was killed has left: nobody may be building.

        Its working containers go. An image that it was just storing has a record and no manifest,
        and nothing lists images beside one. What cannot be repaired goes as a whole: it is cached.
        """
        with self._lock:
            self.was_ended = False
        broken: set[str] = set()
        try:
            self._clear_containers()
            while True:
                try:
                    self.images()
                    return
                except MaidError as error:
                    (image,) = set(_BROKEN.findall(error.message)[:1]) - broken
                    broken.add(image)
                    self.run(*self.buildah, "rmi", "--force", image)
        except (MaidError, ValueError):
            remove_tree(self.graph, self.surroundings)

    def _clear_containers(self) -> None:
        record = self.graph / f"{self.driver}-containers" / "containers.json"
        try:
            text = record.read_text().strip()
        except FileNotFoundError:
            return
        if text not in ("", "[]", "null"):
            self.run(*self.buildah, "rm", "--all")


EPOCHS = 2
"""Storages for a fixed time that are kept for each platform, besides those in use."""


@contextmanager
def opened(
    root: Root, slug: str, epoch: str, work: Path, driver: str, surroundings: Surroundings
) -> Iterator[Storage]:
    """The storage of a platform, mended first where a build that was killed has left it broken.

    What was built for a fixed time (SOURCE_DATE_EPOCH) has a storage of its own, one for each time:
    buildah takes a cached layer whatever time its files have. Raises MaidError, OSError.
    """
    directory = root.path / "storage" / (f"{slug}-epoch-{epoch}" if epoch else slug)
    # Who is killed leaves this file: what is not there any more was closed.
    mark = directory / f"using-{os.getpid()}"
    with ExitStack() as stack:
        with _guarded(root, fcntl.LOCK_SH):
            os.makedirs(directory, mode=0o700, exist_ok=True)
            lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            stack.callback(os.close, lock)
            is_alone = _is_alone(lock)
            storage = Storage(directory / "graph", work, driver, surroundings)
            if is_alone:
                marks = list(directory.glob("using-*"))
                if marks:
                    storage.mend()
                for each in marks:
                    each.unlink(missing_ok=True)
                fcntl.flock(lock, fcntl.LOCK_SH)
            os.utime(directory / "lock")
        if epoch:
            forget_epochs(root, slug, surroundings)
        mark.touch()
        try:
            yield storage
        finally:
            if not storage.was_ended or _mended(storage, lock):
                mark.unlink(missing_ok=True)


def forget_epochs(root: Root, slug: str, surroundings: Surroundings) -> None:
    """Remove the storages of a platform for fixed times, but for those that are in use and the last
    EPOCHS that were. While another build opens one, that is left to the next."""
    with suppress(BlockingIOError), _guarded(root, fcntl.LOCK_EX | fcntl.LOCK_NB):
        files = list((root.path / "storage").glob(f"{slug}-epoch-*/lock"))
        files.sort(key=lambda each: each.stat().st_mtime, reverse=True)
        for file in files[EPOCHS:]:
            lock = os.open(file, os.O_RDWR | os.O_CLOEXEC)
            try:
                with suppress(BlockingIOError):
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    remove_tree(file.parent, surroundings)
            finally:
                os.close(lock)


@contextmanager
def _guarded(root: Root, kind: int) -> Iterator[None]:
    """The lock that is held in common by who opens a storage, whose own lock is given up for a
    moment where it is converted (flock(2)), and alone by who removes some."""
    file = os.open(root.path / "storage", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(file, kind)
        yield
    finally:
        os.close(file)


def _mended(storage: Storage, lock: int) -> bool:
    """Mend a storage if nobody else uses it; the mark has the next one do it otherwise."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    storage.mend()
    return True


def _is_alone(lock: int) -> bool:
    """Whether nobody else uses the storage: then it is locked for this process alone."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        fcntl.flock(lock, fcntl.LOCK_SH)
        return False


def _limit(kind: int) -> str:
    """A resource limit as containers.conf spells it."""
    soft, hard = (
        "-1" if each == resource.RLIM_INFINITY else str(each) for each in resource.getrlimit(kind)
    )
    return f"{soft}:{hard}"
