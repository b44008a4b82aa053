"""The system calls that Python's os module lacks, by their kernel names. Decides nothing.

Each wrapper raises OSError with the kernel's errno and a word on what was tried. Numbers are those
of the common table that every architecture shares for calls added since Linux 5.0
(include/uapi/asm-generic/unistd.h).
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass

SYS_OPEN_TREE, SYS_MOVE_MOUNT = 428, 429
AT_FDCWD, AT_EMPTY_PATH = -100, 0x1000
OPEN_TREE_CLONE = 1
MOVE_MOUNT_F_EMPTY_PATH = 4
MS_BIND = 4096
MNT_DETACH = 2
BINFMTFS_MAGIC = 0x42494E4D
NSFS_MAGIC = 0x6E736673
OVERLAYFS_MAGIC = 0x794C7630

IN_MODIFY, IN_ATTRIB, IN_CLOSE_WRITE = 0x2, 0x4, 0x8
IN_MOVED_FROM, IN_MOVED_TO, IN_CREATE, IN_DELETE = 0x40, 0x80, 0x100, 0x200
IN_UNMOUNT, IN_Q_OVERFLOW, IN_IGNORED = 0x2000, 0x4000, 0x8000
IN_NONBLOCK, IN_CLOEXEC = os.O_NONBLOCK, os.O_CLOEXEC

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def move_mount(mount: int, target: str) -> None:
    """Attach the detached mount `mount` (a descriptor) at the path `target`."""
    result = _libc.syscall(
        SYS_MOVE_MOUNT, mount, b"", AT_FDCWD, os.fsencode(target), MOVE_MOUNT_F_EMPTY_PATH
    )
    _check(result, f"move_mount to {target}")


def clone_tree(path: str) -> int:
    """A detached clone of the mount at `path`, as a close-on-exec descriptor."""
    result = _libc.syscall(
        SYS_OPEN_TREE, AT_FDCWD, os.fsencode(path), OPEN_TREE_CLONE | os.O_CLOEXEC
    )
    return _check(result, f"open_tree {path}")


def bind(source: str, target: str) -> None:
    """Bind-mount `source` at `target` (mount(2), MS_BIND)."""
    result = _libc.mount(os.fsencode(source), os.fsencode(target), None, MS_BIND, None)
    _check(result, f"bind {target}")


def mount_binfmt(target: str) -> None:
    """Mount this user namespace's binfmt_misc at `target`."""
    result = _libc.mount(b"binfmt_misc", os.fsencode(target), b"binfmt_misc", 0, None)
    _check(result, f"mount binfmt_misc at {target}")


def detach(target: str) -> None:
    """Unmount `target` lazily (umount2(2), MNT_DETACH)."""
    _check(_libc.umount2(os.fsencode(target), MNT_DETACH), f"umount {target}")


def filesystem_type(path: str | int) -> int:
    """The f_type of the file system of a path or descriptor (statfs(2)); 0 when it is not there."""
    buffer = ctypes.create_string_buffer(256)
    if isinstance(path, int):
        failed = _libc.fstatfs(path, buffer)
    else:
        failed = _libc.statfs(os.fsencode(path), buffer)
    if failed:
        return 0
    return int(ctypes.c_long.from_buffer(buffer).value)


def inotify(path: str, mask: int) -> int:
    """A non-blocking inotify descriptor that watches `path` for `mask`."""
    descriptor = _check(_libc.inotify_init1(IN_NONBLOCK | IN_CLOEXEC), "inotify_init1")
    try:
        _check(_libc.inotify_add_watch(descriptor, os.fsencode(path), mask), f"watch {path}")
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


@dataclass(frozen=True)
class InotifyEvent:
    """One event: the watched directory's `mask` and the `name` of the file in it, or ""."""

    mask: int
    name: str


def inotify_events(descriptor: int) -> Iterator[InotifyEvent]:
    """What is waiting in an inotify descriptor; nothing when there is nothing."""
    try:
        data = os.read(descriptor, 65536)
    except BlockingIOError:
        return
    offset = 0
    while offset + 16 <= len(data):
        _, mask, _, length = struct.unpack_from("iIII", data, offset)
        name = data[offset + 16 : offset + 16 + length].rstrip(b"\0").decode(errors="replace")
        yield InotifyEvent(mask, name)
        offset += 16 + length


SYS_OPENAT2 = 437
RESOLVE_NO_XDEV, RESOLVE_NO_MAGICLINKS, RESOLVE_IN_ROOT = 0x01, 0x02, 0x10


def open_in_root(root: int, path: str, flags: int = os.O_RDONLY, *, one_mount: bool = False) -> int:
    """Open `path` with the directory `root` (a descriptor) as the root of everything it names.

    Symbolic links, absolute ones too, are followed within `root` and cannot lead out of it
    (openat2(2), RESOLVE_IN_ROOT, Linux 5.6). The descriptor is close-on-exec. With `one_mount` a
    path that leads to another mount is not followed, but an OSError of EXDEV.
    """
    resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS | (RESOLVE_NO_XDEV if one_mount else 0)
    how = struct.pack("QQQ", flags | os.O_CLOEXEC, 0, resolve)
    result = _libc.syscall(
        SYS_OPENAT2, root, os.fsencode(path.lstrip("/") or "."), how, ctypes.c_size_t(len(how))
    )
    return _check(result, f"open {path}")
