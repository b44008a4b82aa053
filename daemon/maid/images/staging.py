"""Directories in which something grows until it is whole, and gets its final name in one step.

They lie beside what they become, for a rename stays on one file system. Whoever makes one holds its
lock as long as it lives: what a killed process left behind is told by that, and cleared away by the
next one.
"""

from __future__ import annotations

import errno
import fcntl
import glob
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from maid.errors import MaidError, UsageError
from maid.files import sync_directory


@contextmanager
def staging(parent: Path, prefix: str) -> Iterator[Path]:
    """A new directory in `parent`, for its maker alone (mode 0700) and gone afterwards; leftovers
    of the same prefix go first. Raises OSError where it cannot be made."""
    sweep(parent, prefix)
    path, holder = _made(parent, prefix)
    try:
        yield path
    finally:
        remove(path)
        os.close(holder)


@contextmanager
def temporary(roomy: bool = False) -> Iterator[Path]:
    """A directory for what is needed for a while, where temporary files go; gone afterwards, and
    what this user's killed processes left there goes as well.

    `roomy` is for gigabytes: /tmp is memory on many machines. Raises MaidError where it cannot be
    made.
    """
    usual = "/var/tmp" if roomy else tempfile.gettempdir()
    parent = Path(os.environ.get("TMPDIR") or usual)
    with ExitStack() as stack:
        with writing(parent):
            path = stack.enter_context(staging(parent, f"maid-image-{os.geteuid()}-"))
        yield path


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """What is written at `path`: where that fails, the MaidError says so."""
    try:
        yield
    except OSError as error:
        hint = "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        raise MaidError(f"{path} cannot be written: {error.strerror or error}", hint) from error


def _made(parent: Path, prefix: str) -> tuple[Path, int]:
    while True:
        path = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        try:
            holder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue  # another one's sweep was here before the lock was
        fcntl.flock(holder, fcntl.LOCK_EX)
        if path.exists():
            return path, holder
        os.close(holder)


def sweep(parent: Path, prefix: str) -> None:
    """Remove this user's directories of that prefix whose makers are gone."""
    for path in parent.glob(f"{glob.escape(prefix)}*"):
        try:
            file = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            continue  # no directory, or another user's
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(file).st_uid == os.geteuid():
                remove(path)
        except BlockingIOError:
            pass  # somebody's who lives
        finally:
            os.close(file)


def sweep_files(parent: Path, prefix: str) -> None:
    """Remove this user's files of that prefix whose makers are gone: they hold a lock, too."""
    for path in parent.glob(f"{glob.escape(prefix)}*"):
        try:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            file = os.open(path, flags)
        except OSError:
            continue
        try:
            status = os.fstat(file)
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid():
                path.unlink(missing_ok=True)
        except OSError:
            pass  # somebody's who lives
        finally:
            os.close(file)


def remove(path: Path) -> None:
    """Remove a tree as far as it can be, with directories in it that its own owner may not enter.

    Symbolic links are removed, not followed (shutil.rmtree)."""

    def again(function: Callable[..., Any], name: str, _error: Any) -> None:
        try:
            above = os.path.dirname(name)
            # What is above the tree is nobody's to change here.
            for each in (name,) if os.fspath(name) == os.fspath(path) else (above, name):
                if stat.S_ISDIR(os.lstat(each).st_mode):
                    os.chmod(each, 0o700)
            if function in (os.open, os.scandir, os.lstat):
                shutil.rmtree(name, ignore_errors=True)
            else:
                function(name)
        except (OSError, TypeError):
            pass

    shutil.rmtree(path, onerror=again)


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Where the file or directory `path` may grow, which has its name when the block ends well.

    A file that is there is replaced then, and a directory that is empty; what is above is made.
    Where it grows has a directory of its own, which it shares with nobody but who makes it: it is
    called `whole` there, whatever the name.
    Raises MaidError where that cannot be done.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with staging(path.parent, f"{path.name}.partial-") as stage:
            grown = stage / "whole"
            yield grown
            os.rename(grown, path)
            sync_directory(path.parent)


def require_free(directory: Path) -> None:
    """Raise UsageError where a directory cannot be made: something is there already."""
    try:
        with os.scandir(directory) as there:
            empty = next(there, None) is None
    except FileNotFoundError:
        return
    except NotADirectoryError as error:
        raise UsageError(f"{directory} is there, and no directory", _OTHER) from error
    except OSError as error:
        raise MaidError(f"{directory} cannot be read: {error.strerror}") from error
    if not empty:
        raise UsageError(f"{directory} is not empty", _OTHER)


def require_makeable(directory: Path) -> None:
    """Raise UsageError or MaidError where `whole` cannot make a directory later: found out before
    gigabytes are fetched for it."""
    require_free(directory)
    if directory.is_dir():
        if directory.samefile(os.curdir):
            raise UsageError(
                f"{directory} is the current directory, which would be another one then",
                "name a directory in it",
            )
        if str(directory.resolve()) in _mount_points():
            raise UsageError(
                f"{directory} is a mount point, which cannot be replaced", "name a directory in it"
            )
    above = directory.absolute().parent
    while not above.exists() and above != above.parent:
        above = above.parent
    with writing(above):  # some file systems tell only when it is tried
        os.rmdir(tempfile.mkdtemp(prefix=".maid-", dir=above))


def _mount_points() -> set[str]:
    with open("/proc/self/mountinfo", "rb") as file:
        names = [line.split()[4] for line in file]
    # proc_pid_mountinfo(5): a blank is written as \040, and so on.
    return {
        os.fsdecode(re.sub(rb"\\([0-7]{3})", lambda m: bytes([int(m[1], 8)]), name))
        for name in names
    }


_OTHER = "name a directory that is empty or not there"
