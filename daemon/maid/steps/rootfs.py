"""Which platform a root file system is of: by the programs in it, not by what anybody says.

Looks only through the directory's descriptor, with every symbolic link kept inside it, and opens
nothing but regular files: what is in there is the caller's, and opening a device node or a FIFO has
effects. A file system may also never answer (FUSE, NFS), so that what is not known to be a local
one is looked at in a thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import stat
import threading
from collections.abc import Iterable
from dataclasses import dataclass

from maid import kernel
from maid.emulation.targets import Target, for_header
from maid.errors import StepRefused
from maid.steps.exhausted import refused

SHELLS = ("/bin/sh", "/usr/bin/env", "/bin/busybox", "/usr/bin/dpkg", "/sbin/apk", "/bin/bash")
"""Programs that tell a distribution's architecture; the first one that is an ELF file decides."""

RESOLVER = "/etc/resolv.conf"

PATIENCE = 10.0
"""Seconds until a file system that does not answer is given up. A local one needs 50 µs."""


LOCAL = frozenset({0xEF53, 0x58465342, 0x9123683E, 0x01021994, 0xF2F52010, 0x2FC12FC1})
"""Types of file systems that always answer: ext4, XFS, btrfs, tmpfs, F2FS, ZFS (statfs(2))."""


@dataclass(frozen=True)
class Look:
    """What was seen: the target of its programs, None when nothing tells; whether it has a
    /etc/resolv.conf to mount the machine's on; whether the working directory is there, as far as
    that can be told."""

    target: Target | None
    resolver: bool
    cwd: bool = True


class _Elsewhere(Exception):
    """A path leads to another mount."""


def look(
    root: int, programs: Iterable[str] = (), cwd: str = "/", *, one_mount: bool = False
) -> Look:
    """Look into the root file system `root`, a directory's descriptor.

    `programs` are looked at when none of the usual ones is there (a scratch image has just one),
    `cwd` is the working directory that is wanted there. Raises StepRefused when `root` is no
    directory.
    """
    require_directory(root, "the root file system")
    target = None
    for path in (*SHELLS, *programs):
        header = _header(root, path, one_mount)
        if header[:4] == b"\x7fELF":
            target = for_header(header)
            break
    return Look(target, _is_file(root, RESOLVER, one_mount), _is_directory(root, cwd, one_mount))


async def look_apart(root: int, programs: Iterable[str] = (), cwd: str = "/") -> Look:
    """`look`, so that a file system that hangs holds up nobody but its owner: in a thread, unless
    everything to be looked at lies on one local file system.

    Raises StepRefused also when it does not answer within PATIENCE.
    """
    if is_local(root):
        with contextlib.suppress(_Elsewhere):
            return look(root, programs, cwd, one_mount=True)
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[Look] = loop.create_future()
    own = os.dup(root)  # the caller's may be closed, and its number used again, while we hang

    def settle(found: Look | BaseException) -> None:
        if answer.done():
            return
        if isinstance(found, Look):
            answer.set_result(found)
        else:
            answer.set_exception(found)

    def work() -> None:
        found: Look | BaseException
        try:
            found = look(own, programs, cwd)
        except (StepRefused, OSError) as error:
            found = error
        finally:
            os.close(own)
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(settle, found)

    try:
        threading.Thread(target=work, name="maid-look", daemon=True).start()
    except RuntimeError as error:
        os.close(own)
        raise refused(error, "the root file system cannot be looked at") from error
    try:
        return await asyncio.wait_for(answer, PATIENCE)
    except TimeoutError:
        raise StepRefused(
            f"the root file system did not answer within {PATIENCE:.0f} s",
            "is it on a network or FUSE mount whose server is gone?",
        ) from None
    except OSError as error:
        raise StepRefused(f"the root file system cannot be read: {error.strerror}") from error


def require_directory(descriptor: int, what: str) -> None:
    """Raise StepRefused when `descriptor` is none of a directory."""
    if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
        raise StepRefused(f"{what} is no directory", "hand over a descriptor of a directory")


def is_local(root: int) -> bool:
    """Whether the directory `root` (a descriptor) lies on a file system that always answers."""
    return kernel.filesystem_type(root) in LOCAL


def candidates(command: str, search_path: str) -> list[str]:
    """Where `command` may be, as execvp(3) looks for it."""
    if "/" in command:
        return [command]
    return [f"{directory}/{command}" for directory in search_path.split(":") if directory]


def _is_directory(root: int, path: str, one_mount: bool) -> bool:
    """Whether a directory of that path is there; what keeps from telling (a FUSE mount that is its
    owner's alone) is no reason to say that it is not."""
    try:
        found = kernel.open_in_root(root, path, os.O_PATH | os.O_DIRECTORY, one_mount=one_mount)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        if one_mount and error.errno == errno.EXDEV:
            raise _Elsewhere from error
        return True
    except ValueError:  # a NUL byte in the path
        return True
    os.close(found)
    return True


def _find(root: int, path: str, one_mount: bool) -> int:
    """An O_PATH descriptor of a path within `root`; -1 when there is none."""
    try:
        return kernel.open_in_root(root, path, os.O_PATH, one_mount=one_mount)
    except OSError as error:
        if one_mount and error.errno == errno.EXDEV:
            raise _Elsewhere from error
    except ValueError:  # a NUL byte in the path
        pass
    return -1


def _is_file(root: int, path: str, one_mount: bool) -> bool:
    found = _find(root, path, one_mount)
    if found < 0:
        return False
    try:
        return stat.S_ISREG(os.fstat(found).st_mode)
    finally:
        os.close(found)


def _header(root: int, path: str, one_mount: bool) -> bytes:
    found = _find(root, path, one_mount)
    if found < 0:
        return b""
    try:
        if not stat.S_ISREG(os.fstat(found).st_mode):
            return b""
        descriptor = os.open(f"/proc/self/fd/{found}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.pread(descriptor, 64, 0)
        finally:
            os.close(descriptor)
    except OSError:
        return b""
    finally:
        os.close(found)
