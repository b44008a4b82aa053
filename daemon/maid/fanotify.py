"""Being told by the kernel who has written to the files of a directory (fanotify(7)).

Unlike inotify this names the process. Events carry the file's name and hold neither the file nor
its mount, so whoever unmounts is not kept from it (FAN_REPORT_DFID_NAME, Linux 5.9; for file
systems that no handle can be decoded of, binfmt_misc among them, 6.6). Without CAP_SYS_ADMIN of the
machine's own user namespace other processes are not named.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass

# linux/fanotify.h
_CLOEXEC, _NONBLOCK, _REPORT_DFID_NAME = 0x1, 0x2, 0xC00
_MARK_ADD, _MODIFY, _ON_CHILD = 0x1, 0x2, 0x0800_0000
_DFID_NAME = 2

_METADATA = struct.Struct("=IBBHQii")  # length, version, reserved, its own length, mask, fd, pid
_INFO = struct.Struct("=BBH")  # type, padding, length
_HANDLE = struct.Struct("=8sIi")  # file system, bytes of the handle, its type

_AT_FDCWD = -100
_BUFFER = 65536

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fanotify_mark.argtypes = (
    *(ctypes.c_int, ctypes.c_uint, ctypes.c_uint64),
    *(ctypes.c_int, ctypes.c_char_p),
)


@dataclass(frozen=True)
class Write:
    """Somebody wrote to the file `name`: process `pid`, 0 where it is in no pid namespace of ours,
    or where we may not know."""

    name: str
    pid: int


def watch(directory: str) -> int:
    """A non-blocking descriptor that tells who writes to files of `directory`, through whichever
    mount. Raises OSError where the kernel does not do that, or not for us."""
    descriptor = _libc.fanotify_init(_CLOEXEC | _NONBLOCK | _REPORT_DFID_NAME, os.O_CLOEXEC)
    if descriptor < 0:
        raise _error("fanotify_init")
    path = os.fsencode(directory)
    if _libc.fanotify_mark(descriptor, _MARK_ADD, _MODIFY | _ON_CHILD, _AT_FDCWD, path) < 0:
        error = _error(f"fanotify_mark {directory}")
        os.close(descriptor)
        raise error
    return int(descriptor)


def writes(descriptor: int) -> list[Write]:
    """What is waiting in a descriptor of `watch`, up to some thousand events; nothing when there is
    nothing."""
    try:
        return list(_parse(os.read(descriptor, _BUFFER)))
    except BlockingIOError:
        return []


def _parse(data: bytes) -> Iterator[Write]:
    while len(data) >= _METADATA.size:
        length, _, _, own, _, _, pid = _METADATA.unpack_from(data)
        if name := _name(data[own:length]):
            yield Write(name, pid)
        data = data[max(length, _METADATA.size) :]


def _name(records: bytes) -> str:
    """The file's name, "" where an event has none: the queue was full."""
    while len(records) >= _INFO.size:
        kind, _, length = _INFO.unpack_from(records)
        if kind == _DFID_NAME:
            _, handle, _ = _HANDLE.unpack_from(records, _INFO.size)
            begin = _INFO.size + _HANDLE.size + handle
            return os.fsdecode(records[begin:length].split(b"\0")[0])
        records = records[max(length, _INFO.size) :]
    return ""


def _error(what: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, f"{what}: {os.strerror(number)}")
