"""The native store: a directory that holds sets of native tools, and the records that find them.

Containers have it mounted read-only while it changes, so every change is a rename: a set appears
whole, a record appears whole, and a record goes before the set it points to. One process at a time
makes sets, and one writes (locks); readers need none. What it was last used for is kept outside,
beside it, where no container looks.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec

from maid.acceleration import records
from maid.acceleration.relocate import NAME_LENGTH
from maid.acceleration.sets import FORMAT, MANIFEST, Damage, Entry, Manifest, damages
from maid.errors import MaidError
from maid.files import locked, sync_directory

RECORDS = "id"
EMULATE = "emulate"
_NAME = re.compile(rf"[a-z0-9]{{{NAME_LENGTH}}}")
_TEMPORARY = ".new-"
_RETIRED = "retired-"
WORK = ".work-"
"""Begins the names, beside the notes, of what is only needed while a set is made."""
_LOCK_SECONDS = 60.0
GRACE = 1.0
"""Seconds between the end of a set's records and its files' end: a program that was started by one
of them loads its libraries then."""


class StoreError(MaidError):
    """The store cannot be written, or is not as it was made."""


class Store:
    """The store in the directory `root`; `notes` is one for what is known about it.

    Both are made when they are not there. Raises StoreError when `root` is not a directory that
    only this user can write, for it is executed from by everybody.
    """

    def __init__(self, root: Path, notes: Path) -> None:
        self.root = root
        self.notes = notes
        self._manifests: dict[str, tuple[tuple[int, int], Manifest]] = {}
        try:
            notes.mkdir(mode=0o755, parents=True, exist_ok=True)
            root.mkdir(mode=0o755, parents=True, exist_ok=True)
            (root / RECORDS).mkdir(mode=0o755, exist_ok=True)
            # By a path below it a native program starts the foreign one emulated (shim.c).
            if not (root / EMULATE).is_symlink():
                (root / EMULATE).symlink_to("/")
        except OSError as error:
            raise StoreError(f"the native store {root} cannot be made: {error}") from error
        for path in (root, root / RECORDS):
            found = path.lstat()
            if (
                not stat.S_ISDIR(found.st_mode)
                or found.st_uid != os.geteuid()
                or found.st_mode & 0o022
            ):
                raise StoreError(
                    f"{path} is not a directory that only this user can write",
                    "remove it; maid makes it again",
                )
            # Whatever the umask was: containers' users read it.
            path.chmod(0o755)

    def sets(self) -> list[Manifest]:
        """The sets there are, by name; those of another format are none. None either where somebody
        has removed the store."""
        found = []
        try:
            paths = sorted(self.root.iterdir())
        except OSError:
            return []
        for path in paths:
            manifest = self._manifest(path) if _NAME.fullmatch(path.name) else None
            if manifest is not None:
                found.append(manifest)
        return found

    def get(self, name: str) -> Manifest | None:
        """The set of that name."""
        return self._manifest(self.root / name) if _NAME.fullmatch(name) else None

    def entries(self) -> dict[str, tuple[Manifest, Entry]]:
        """What stands in for each build-id, as the records say."""
        found: dict[str, tuple[Manifest, Entry]] = {}
        for manifest in self.sets():
            for entry in manifest.entries:
                program = f"{records.MOUNT}/{manifest.name}/{entry.program}"
                if entry.build_id not in found and self._program(entry.build_id) == program:
                    found[entry.build_id] = (manifest, entry)
        return found

    def program_name(self, build_id: str) -> str:
        """What the program is called that a build-id's record names, "" without one."""
        return os.path.basename(self._program(build_id))

    def new(self, name: str) -> Path:
        """A new directory, on the store's file system, in which a set can be made. Raises
        StoreError."""
        directory = self.root / f"{_TEMPORARY}{name}-{os.getpid()}"
        try:
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir(mode=0o755)
        except OSError as error:
            raise StoreError(f"the native store {self.root} cannot be written: {error}") from error
        return directory

    def publish(self, directory: Path, manifest: Manifest) -> None:
        """Make the set in `directory`, on the store's file system, visible, and then its records.

        Its manifest comes last: a set that has one has all of its records, whenever this ends. A
        set that is there already stays, and the directory is removed. The newest set's records are
        the ones that count. Raises StoreError.
        """
        try:
            _settle(directory)
            with self._locked():
                target = self.root / manifest.name
                if self._manifest(target) is not None:
                    shutil.rmtree(directory)
                    self._write_records(manifest.entries, anew=True)
                else:
                    if target.exists():  # of another format, damaged, or half published
                        self._remove(manifest.name)
                    directory.rename(target)
                    sync_directory(self.root)
                    try:
                        self._write_records(manifest.entries, anew=True)
                        _write_manifest(target, manifest)
                    except BaseException:
                        self._take_back(manifest.name)
                        raise
        except OSError as error:
            shutil.rmtree(directory, ignore_errors=True)
            raise StoreError(
                f"the native store {self.root} cannot be written: {error}",
                "is the disk full? maid accel prune",
            ) from error
        self.used(manifest.name)

    def used(self, name: str) -> None:
        """Note that a set was used now."""
        try:
            (self.notes / f"used-{name}").touch()
        except OSError:
            return  # only the order in which sets are removed depends on it

    def last_used(self, name: str) -> float:
        """When a set was last used, in seconds since 1970, 0 if that is not known."""
        try:
            return (self.notes / f"used-{name}").stat().st_mtime
        except OSError:
            return 0.0

    def prune(
        self, size: int | None = None, unused: float | None = None, spared: float = 0.0
    ) -> list[Manifest]:
        """Remove sets not used for `unused` seconds, then the least used ones until the store has
        at most `size` bytes, but none that was used within `spared` seconds; and what was left
        behind half made. Returns the sets removed.

        A step that runs a tool of a removed set goes on; its next start is emulated. Only a tool
        that needs more of its set after it has started (perl's modules, a compiler's parts) may
        fail. Raises StoreError.
        """
        try:
            with self._locked():
                now = time.time()
                self._remove_temporary(3600.0)
                gone = [
                    path.name  # of another format, or half published
                    for path in self.root.iterdir()
                    if _NAME.fullmatch(path.name) and self._manifest(path) is None
                ]
                sets = sorted(self.sets(), key=lambda each: self.last_used(each.name))
                total = sum(each.size for each in sets)
                removed = []
                for each in sets:
                    age = now - self.last_used(each.name)
                    old = unused is not None and age > unused
                    if age >= spared and (old or (size is not None and total > size)):
                        total -= each.size
                        removed.append(each)
                self._remove(*gone, *(each.name for each in removed))
                # What others have too is found there from now on.
                self._complete()
                return removed
        except OSError as error:
            raise StoreError(f"the native store {self.root} cannot be pruned: {error}") from error

    def verify(self) -> list[Damage]:
        """Compare every file with the digest it was made with, and every record."""
        found: list[Damage] = []
        for manifest in self.sets():
            found += damages(self.root, manifest)
        # While a set is being published its records are there before its manifest is.
        with self._locked():
            known = self._records()
            for path in sorted((self.root / RECORDS).iterdir()):
                if path.name.startswith(_TEMPORARY):
                    continue
                try:
                    content = path.read_bytes()
                except OSError as error:
                    found.append(Damage(f"{RECORDS}/{path.name}", str(error)))
                    continue
                if (path.name, content) not in known:
                    found.append(Damage(f"{RECORDS}/{path.name}", "no set has this record"))
        return found

    def retire(self, names: Iterable[str]) -> None:
        """Let nothing more be started from these sets, and from the others again. What runs from
        them goes on, as their files stay until they are dropped. Raises StoreError."""
        wanted = set(names)
        there = {path.name.removeprefix(_RETIRED) for path in self.notes.glob(f"{_RETIRED}*")}
        if wanted == there:
            return
        try:
            with self._locked():
                for name in there - wanted:
                    (self.notes / f"{_RETIRED}{name}").unlink(missing_ok=True)
                for name in wanted:
                    (self.notes / f"{_RETIRED}{name}").touch()
                self._forget(*wanted)
                self._complete()
        except OSError as error:
            raise StoreError(f"the store {self.root} cannot be written: {error}") from error

    def drop(self, names: Iterable[str]) -> None:
        """Remove sets, and every record that does not belong to a set that stays. Raises
        StoreError."""
        try:
            with self._locked():
                # Somebody else may have been faster.
                self._remove(*(name for name in names if (self.root / name).exists()))
                known = self._records()
                for path in (self.root / RECORDS).iterdir():
                    if (path.name, path.read_bytes()) not in known:
                        path.unlink()
                self._complete()
        except OSError as error:
            raise StoreError(f"the store {self.root} cannot be mended: {error}") from error

    # ------------------------------------------------------------------------------------------

    def _records(self) -> set[tuple[str, bytes]]:
        """Every record that a set has, by its build-id."""
        return {(each.build_id, each.record) for found in self.sets() for each in found.entries}

    def _manifest(self, path: Path) -> Manifest | None:
        file = path / MANIFEST
        try:
            found = file.stat()
            key = (found.st_mtime_ns, found.st_ino)
            cached = self._manifests.get(path.name)
            if cached is not None and cached[0] == key:
                return cached[1]
            manifest = msgspec.json.decode(file.read_bytes(), type=Manifest)
        except (OSError, msgspec.DecodeError):
            return None
        if manifest.format != FORMAT or manifest.name != path.name:
            return None
        self._manifests[path.name] = (key, manifest)
        return manifest

    def _program(self, build_id: str) -> str:
        try:
            return records.decode((self.root / RECORDS / build_id).read_bytes())[0]
        except (OSError, records.RecordError):
            return ""

    def _write_records(self, entries: Iterable[Entry], anew: bool = False) -> None:
        """Write the records of these entries; those that work already only with `anew`."""
        directory = self.root / RECORDS
        for entry in entries:
            program = self._program(entry.build_id)
            there = self.root / program.removeprefix(f"{records.MOUNT}/")
            if not anew and program and there.is_file():
                continue
            temporary = directory / f"{_TEMPORARY}{entry.build_id}"
            _write(temporary, entry.record)
            temporary.rename(directory / entry.build_id)
        sync_directory(directory)

    def _complete(self) -> None:
        """Write the records that are missing, of all sets but the retired ones."""
        for manifest in self.sets():
            if not (self.notes / f"{_RETIRED}{manifest.name}").exists():
                self._write_records(manifest.entries)

    def _forget(self, *names: str) -> None:
        """Remove the records that name something in these sets."""
        directory = self.root / RECORDS
        begins = tuple(f"{records.MOUNT}/{name}/" for name in names)
        for path in directory.iterdir():
            if self._program(path.name).startswith(begins):
                path.unlink()
        sync_directory(directory)

    def _remove(self, *names: str) -> None:
        """The records first: what a record names is always there."""
        if not names:
            return
        self._forget(*names)
        time.sleep(GRACE)
        for name in names:
            gone = self.root / f"{_TEMPORARY}gone-{name}"
            shutil.rmtree(gone, ignore_errors=True)
            (self.root / name).rename(gone)
            shutil.rmtree(gone)
            for note in ("used-", _RETIRED):
                (self.notes / f"{note}{name}").unlink(missing_ok=True)
            self._manifests.pop(name, None)

    def _take_back(self, name: str) -> None:
        """Remove a set that could not be published, and give its builds to the others."""
        try:
            self._remove(name)
            self._complete()
        except OSError:
            return  # without its manifest it is none, and the next publishing or pruning goes on

    def _remove_temporary(self, age: float) -> None:
        """What a killed maker left, here and where it works, and did not touch for `age` s."""
        for path in (*self.root.glob(f"{_TEMPORARY}*"), *self.notes.glob(f"{WORK}*")):
            if time.time() - path.lstat().st_mtime > age:
                shutil.rmtree(path, ignore_errors=True)

    @contextmanager
    def making(self, wait: Callable[[], None]) -> Iterator[None]:
        """For whoever makes a set: one at a time, of all daemons with this store, for they share
        what was fetched. `wait` is called when there is another. What those before left behind
        when they were killed is removed."""
        file = os.open(self.notes / "making", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                wait()
                fcntl.flock(file, fcntl.LOCK_EX)
            with self._locked():
                self._remove_temporary(-1.0)
            yield
        finally:
            os.close(file)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with ExitStack() as held:
            try:
                held.enter_context(locked(self.notes / "lock", _LOCK_SECONDS))
            except TimeoutError:
                raise StoreError(
                    f"another process has written to the store for {_LOCK_SECONDS:.0f} s"
                ) from None
            yield


def _write(path: Path, data: bytes) -> None:
    path.unlink(missing_ok=True)
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        os.fchmod(file, 0o644)
        done = 0
        while done < len(data):
            done += os.write(file, data[done:])
        os.fsync(file)
    except BaseException:
        path.unlink()
        raise
    finally:
        os.close(file)


def _write_manifest(directory: Path, manifest: Manifest) -> None:
    temporary = directory / f"{_TEMPORARY}{MANIFEST}"
    _write(temporary, msgspec.json.format(msgspec.json.encode(manifest)))
    temporary.rename(directory / MANIFEST)
    sync_directory(directory)


def _settle(directory: Path) -> None:
    """Modes that everybody can read, and everything on the disk."""
    for path, _, names in os.walk(directory):
        os.chmod(path, 0o755)
        for name in names:
            file = os.open(os.path.join(path, name), os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(file)
            finally:
                os.close(file)
        sync_directory(Path(path))
