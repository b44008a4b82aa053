"""Make a copy of a static QEMU that knows better: the copy with the front.

QEMU takes its CPU model from the command line or the environment, and neither is maid's to set when
binfmt_misc starts it. So maid registers a copy into which the front (daemon/native/front.c) is
baked: a small piece of code that the kernel starts first, in the same process. It executes the
native program that stands in for the foreign one, where the native store has one, or else puts the
arguments after argv[0] and goes on with QEMU.

Copies lie in `<state>/baked/<key>/`, beside a record of what they were made from. The key is a
digest of everything that decides their content, so a copy is never changed, only made or removed;
an entry that pins one (flag F) keeps it working when it is removed.

Where the front goes is front.py's. Nothing here knows which arguments are good ones (`model_known`
asks QEMU), nor registers or executes a copy: the keeper probes it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from maid.emulation import front as fronts
from maid.emulation.front import BakeError, StoreIdentity
from maid.files import locked, sync_directory

__all__ = [
    "BakeError",
    "Baked",
    "StoreIdentity",
    "bake",
    "intact",
    "model_known",
    "prune",
    "store_identity",
]

# Part of the key: raise it when the same inputs give another copy.
FORMAT = 2

_KEY = re.compile(r"[0-9a-f]{32}")
_TEMPORARY = ".new-"
# Making a copy takes some 100 ms; who holds the lock for longer than this hangs.
_LOCK_SECONDS = 30.0
# `qemu -cpu help` takes some 20 ms.
_HELP_SECONDS = 10.0
# QEMU also takes these models without the suffix: "la464-loongarch-cpu", "ev4-alpha-cpu".
_TYPE_SUFFIX = re.compile(r"-[a-z0-9_]+-cpu$")


@dataclass(frozen=True)
class Baked:
    """A copy of an interpreter with the front: what to register, and what it was made from."""

    path: Path
    key: str
    original_sha256: str
    arguments: tuple[str, ...]
    store: StoreIdentity | None = None


class _Identity(msgspec.Struct, frozen=True):
    """A file as stat shows it. The same values mean the same content: ctime cannot be set."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int


class _Record(msgspec.Struct, frozen=True):
    """What stands beside a copy, as JSON: its origin, and what it must look like."""

    format: int
    original: str
    original_sha256: str
    original_identity: _Identity
    front_sha256: str
    arguments: tuple[str, ...]
    store: StoreIdentity | None
    sha256: str
    size: int
    mtime_ns: int


def store_identity(state: Path) -> StoreIdentity | None:
    """The native store below the state directory, `<state>/store`; None where there is none."""
    try:
        found = (state / "store").lstat()
    except OSError:
        return None
    return StoreIdentity(found.st_dev, found.st_ino) if stat.S_ISDIR(found.st_mode) else None


def bake(
    interpreter: Path,
    arguments: tuple[str, ...],
    state: Path,
    front: Path,
    store: StoreIdentity | None = None,
) -> Baked:
    """The copy of `interpreter` that starts with `arguments`, made if it is not there yet.

    `interpreter` is a static QEMU for this machine (64-bit x86-64 or AArch64, ET_EXEC or
    static-pie); `arguments` are at most eight strings that it shall find after argv[0], such as
    ("-cpu", "neoverse-n1"); `state` is the directory below which `baked/` lies; `front` is the
    compiled front.bin (maid.native). Where `store` is mounted at /dev/.maid the copy executes the
    native programs in it; without `store` it never does. A copy that is there and looks as it was
    recorded is used again (`intact` says what is compared). Several processes may bake at once.

    Raises BakeError when the interpreter or the front is of the wrong kind or damaged, when the
    arguments do not fit, and when the state directory cannot be written.
    """
    try:
        code = _read_front(front)
        text = fronts.text(arguments, code.room)
        with _opened(interpreter) as source:
            return _bake(interpreter, source, arguments, text, state / "baked", code, store)
    except OSError as error:
        raise BakeError(
            f"cannot make a copy of {interpreter} with the front in {state}: {error}",
            "the interpreter must be readable, the directory writable and the disk not full",
        ) from error


def intact(baked: Baked, full: bool = False) -> bool:
    """Whether the copy is still as it was recorded.

    Compared are its kind, owner, mode, size and time of change, and with `full` its SHA-256, which
    reads the whole file (some 13 MB).
    """
    record = _read_record(baked.path)
    if record is None:
        return False
    try:
        found = baked.path.lstat()
        return (
            stat.S_ISREG(found.st_mode)
            and stat.S_IMODE(found.st_mode) == 0o755
            and found.st_uid == os.geteuid()
            and (found.st_size, found.st_mtime_ns) == (record.size, record.mtime_ns)
            and (not full or _file_digest(baked.path) == record.sha256)
        )
    except OSError:
        return False


def prune(state: Path, keep: set[str]) -> tuple[str, ...]:
    """Remove the copies below `state` whose key is not in `keep`; returns their keys, sorted.

    Entries that pin a removed copy go on working. Half-made copies of processes that died are
    removed too; what bake did not make is left alone. Raises BakeError when something that has to
    go cannot be removed.
    """
    root = state / "baked"
    removed = []
    try:
        if not root.is_dir():
            return ()
        with _locked(root):
            _remove_temporary(root)
            for entry in sorted(root.iterdir()):
                if _KEY.fullmatch(entry.name) and entry.name not in keep:
                    shutil.rmtree(entry)
                    removed.append(entry.name)
    except OSError as error:
        raise BakeError(f"cannot remove old interpreter copies from {root}: {error}") from error
    return tuple(removed)


def model_known(interpreter: Path, cpu: str) -> bool:
    """Whether `interpreter`, a QEMU, lists the CPU model `cpu` ("neoverse-n1", "max,sve=off").

    Only the model's name is looked up, not the features after a comma. Asks `-cpu help` with a
    limit of 10 seconds. Raises BakeError when the interpreter cannot be asked.
    """
    try:
        done = subprocess.run(
            [interpreter, "-cpu", "help"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={},
            timeout=_HELP_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BakeError(f"{interpreter} does not list its CPU models: {error}") from error
    # QEMU 7.2 lists them and exits with 1, later ones with 0: only a crash tells anything.
    if done.returncode < 0:
        raise BakeError(
            f"{interpreter} does not list its CPU models: killed by signal {-done.returncode}"
        )
    return cpu.partition(",")[0] in _models(done.stdout.decode(errors="replace"))


def _models(text: str) -> set[str]:
    """The names in the output of `-cpu help`.

    A line of the list has the name first ("  neoverse-n1"), or after the family's ("PowerPC 601
    PVR 00010001", "x86 qemu64 (alias …)", "MIPS '24Kc'"), as QEMU 7.2 to 10.0 print it; headings
    end with a colon, and x86 and s390x go on with a list of features.
    """
    names: set[str] = set()
    for line in text.splitlines():
        if line.startswith("Recognized"):
            break
        if not line.endswith(":"):
            names.update(word.strip("'") for word in line.split()[:2])
    return names | {_TYPE_SUFFIX.sub("", name) for name in names}


def _read_front(path: Path) -> fronts.Front:
    with _opened(path) as file:
        code = os.read(file, fronts.FRONT_LIMIT + 1)
    try:
        return fronts.parse(code)
    except BakeError as error:
        raise BakeError(
            f"{path} is not the front that this maid works with: {error.message}",
            "build it again: make -C daemon/native LIBEXEC=DIR",
        ) from None


def _bake(
    interpreter: Path,
    source: int,
    arguments: tuple[str, ...],
    text: bytes,
    root: Path,
    front: fronts.Front,
    store: StoreIdentity | None,
) -> Baked:
    identity = _identity(source)
    digest = _known_digest(root, interpreter.name, identity) or _digest(source)
    key = _key(interpreter.name, digest, front, arguments, store)
    baked = Baked(root / key / interpreter.name, key, digest, arguments, store)
    if intact(baked):
        return baked
    try:
        place = fronts.place(lambda n, at: os.pread(source, n, at), identity.size, front)
    except BakeError as error:
        raise BakeError(
            f"the front cannot be put into {interpreter}: {error.message}", error.hint
        ) from None
    changes = fronts.changes(place, identity.size, front, text, store)
    _make_root(root)
    with _locked(root):
        if intact(baked):
            return baked
        _remove_temporary(root)
        try:
            temporary = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=root))
            copy = temporary / interpreter.name
            _write_copy(copy, source, identity.size, changes)
            if _identity(source) != identity:
                raise _changing(interpreter)
            made = copy.stat()
            record = _Record(
                format=FORMAT,
                original=str(interpreter),
                original_sha256=digest,
                original_identity=identity,
                front_sha256=front.sha256,
                arguments=arguments,
                store=store,
                sha256=_file_digest(copy),
                size=made.st_size,
                mtime_ns=made.st_mtime_ns,
            )
            _write_record(copy, record)
            temporary.chmod(0o755)
            sync_directory(temporary)
            directory = baked.path.parent
            if directory.exists():
                # Damaged, or it would have been returned above.
                directory.rename(root / f"{_TEMPORARY}damaged")
            temporary.rename(directory)
            sync_directory(root)
        finally:
            _remove_temporary(root)
    return baked


def _key(
    name: str,
    original: str,
    front: fronts.Front,
    arguments: tuple[str, ...],
    store: StoreIdentity | None,
) -> str:
    """128 bits are plenty, and the kernel takes no interpreter path above 127 characters."""
    identity = (store.device, store.inode) if store else None
    content = json.dumps([FORMAT, name, original, front.sha256, arguments, identity])
    return hashlib.sha256(content.encode()).hexdigest()[:32]


def _changing(interpreter: Path) -> BakeError:
    return BakeError(
        f"{interpreter} changed while it was being copied",
        "it is probably being upgraded: try again when that is done",
    )


def _write_copy(path: Path, source: int, size: int, changes: tuple[tuple[int, bytes], ...]) -> None:
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o755)
    try:
        _copy(source, file, size, path)
        for offset, data in changes:
            _pwrite(file, data, offset)
        os.fchmod(file, 0o755)
        os.fsync(file)
    finally:
        os.close(file)


def _copy(source: int, target: int, size: int, path: Path) -> None:
    """Copy within the kernel: blocks are shared where the file system can, else streamed."""
    at = 0
    shared = True
    while at < size:
        try:
            if shared:
                done = os.copy_file_range(source, target, size - at, at, at)
            else:
                os.lseek(target, at, os.SEEK_SET)
                done = os.sendfile(target, source, at, size - at)
        except OSError as error:
            # Not between these two file systems, or not here at all: copy_file_range(2).
            if shared and error.errno in (
                errno.EXDEV,
                errno.EINVAL,
                errno.ENOSYS,
                errno.EOPNOTSUPP,
                errno.EPERM,
            ):
                shared = False
                continue
            raise
        if done == 0:
            raise _changing(path)
        at += done


def _known_digest(root: Path, name: str, identity: _Identity) -> str:
    """The SHA-256 of the interpreter, if a copy's record tells it, or "".

    Hashing all of QEMU's interpreters takes most of a second; the daemon is to be ready by then.
    """
    try:
        keys = [entry.name for entry in os.scandir(root) if _KEY.fullmatch(entry.name)]
    except FileNotFoundError:
        return ""
    for key in keys:
        record = _read_record(root / key / name)
        if record is not None and record.original_identity == identity:
            return record.original_sha256
    return ""


def _record_path(copy: Path) -> Path:
    return copy.with_name(f"{copy.name}.json")


def _read_record(copy: Path) -> _Record | None:
    try:
        record = msgspec.json.decode(_record_path(copy).read_bytes(), type=_Record)
    except (OSError, msgspec.DecodeError):
        return None
    return record if record.format == FORMAT else None


def _write_record(copy: Path, record: _Record) -> None:
    path = _record_path(copy)
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        _pwrite(file, msgspec.json.encode(record), 0)
        os.fchmod(file, 0o644)
        os.fsync(file)
    finally:
        os.close(file)


def _identity(file: int) -> _Identity:
    found = os.fstat(file)
    return _Identity(
        found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
    )


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    """A regular file, open for reading. A FIFO or a device would block or never end."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise BakeError(f"{path} is not a regular file")
        yield file
    finally:
        os.close(file)


def _digest(file: int) -> str:
    digest = hashlib.sha256()
    at = 0
    while block := os.pread(file, 1 << 18, at):
        digest.update(block)
        at += len(block)
    return digest.hexdigest()


def _file_digest(path: Path) -> str:
    with _opened(path) as file:
        return _digest(file)


def _pwrite(file: int, data: bytes, at: int) -> None:
    while data:
        done = os.pwrite(file, data, at)
        data, at = data[done:], at + done


def _make_root(root: Path) -> None:
    """The directory of the copies. Everybody runs what is in it, so only we may write it."""
    root.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    try:
        root.mkdir()
        root.chmod(0o755)
    except FileExistsError:
        found = root.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
            raise BakeError(
                f"{root} is not a directory that only this user can write",
                "remove it; maid makes it again",
            ) from None


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    """One process at a time makes or removes copies."""
    with ExitStack() as held:
        try:
            held.enter_context(locked(root / ".lock", _LOCK_SECONDS))
        except TimeoutError:
            raise BakeError(
                f"another process has held {root}/.lock for {_LOCK_SECONDS:.0f} s",
                "find it with fuser and end it if it hangs",
            ) from None
        yield


def _remove_temporary(root: Path) -> None:
    """Remove half-made and damaged copies. Only under the lock: nobody else is making one."""
    for entry in root.glob(f"{_TEMPORARY}*"):
        shutil.rmtree(entry, ignore_errors=True)
