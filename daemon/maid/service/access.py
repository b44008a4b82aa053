"""Who is at the other end of a connection, and what that allows.

The kernel says who it is (SO_PEERCRED, SO_PEERGROUPS: the credentials at the time of connect(2)).
Root may do everything, and so may whoever the daemon itself runs as; members of the group may ask
and run steps; nobody else may do anything (design.md, Access).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import grp
import os
import socket
import struct
from collections import Counter
from dataclasses import dataclass
from enum import Enum

from maid.binfmt.namespace import for_user
from maid.steps.launch import Caller

SO_PEERGROUPS = 59
"""Linux 4.13; in Python's socket module only since 3.13."""


class Role(Enum):
    """What a peer may do."""

    ADMIN = "admin"
    MEMBER = "member"
    NONE = "none"


@dataclass(frozen=True)
class Peer:
    """The process that connected, as the kernel describes it; `groups` are its supplementary
    ones."""

    pid: int
    uid: int
    gid: int
    role: Role
    groups: tuple[int, ...] = ()

    def caller(self) -> Caller:
        """On whose behalf the peer's steps run: an admin's with an identity map, a member's with
        the member's own ids, so that a step can do to the machine's files what its caller could."""
        if self.role is Role.ADMIN:
            return Caller(self.uid, None)
        return Caller(self.uid, for_user(self.uid, self.gid), self.groups)

    def mount_namespace(self) -> int:
        """A descriptor of the peer's mount namespace where it is not the daemon's, else -1.

        It is only used to copy the mount of a descriptor that the peer has handed over; if the
        process is gone meanwhile, and another has its number, that copy fails and nothing else.
        """
        try:
            descriptor = os.open(f"/proc/{self.pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return -1
        if os.fstat(descriptor).st_ino == os.stat("/proc/self/ns/mnt").st_ino:
            os.close(descriptor)
            return -1
        return descriptor


def identify(connection: socket.socket, group: str) -> Peer:
    """Who is at the other end of `connection`; `group` is the name of the group of members."""
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, uid, gid = struct.unpack("3i", data)
    groups = _groups(connection)
    return Peer(pid, uid, gid, _role(uid, gid, groups, group), tuple(sorted(groups)))


def _role(uid: int, gid: int, groups: set[int], group: str) -> Role:
    if uid in (0, os.geteuid()):
        return Role.ADMIN
    try:
        members = grp.getgrnam(group).gr_gid
    except KeyError:
        return Role.NONE
    return Role.MEMBER if members in groups | {gid} else Role.NONE


def _groups(connection: socket.socket) -> set[int]:
    """The peer's supplementary groups; none where the kernel does not say."""
    # Python's own getsockopt takes 1024 bytes at most: 256 groups of up to 65,536.
    libc = ctypes.CDLL(None, use_errno=True)
    length = ctypes.c_uint32(256 * 4)
    while True:
        found = (ctypes.c_uint32 * (length.value // 4))()
        option = (socket.SOL_SOCKET, SO_PEERGROUPS, found, ctypes.byref(length))
        if libc.getsockopt(connection.fileno(), *option) == 0:
            return set(found[: length.value // 4])
        # The length is now the one that is needed.
        if ctypes.get_errno() != errno.ERANGE or length.value <= ctypes.sizeof(found):
            return set()


class Connections:
    """Counts the connections of each user."""

    def __init__(self) -> None:
        self._open: Counter[int] = Counter()

    def admit(self, uid: int, limit: int) -> bool:
        """Count a connection of `uid`; False, and not counted, when the user has `limit` of
        them."""
        if self._open[uid] >= limit:
            return False
        self._open[uid] += 1
        return True

    def leave(self, uid: int) -> None:
        """A connection of `uid` has ended."""
        self._open[uid] -= 1
        if self._open[uid] <= 0:
            del self._open[uid]

    def total(self) -> int:
        """All connections that are open."""
        return sum(self._open.values())


def give_to_group(path: str, group: str) -> str:
    """Let members of `group` connect to the socket at `path` (0660); "" or why that is not so."""
    os.chmod(path, 0o600)
    # An id that is not mapped here, in a user namespace, is EINVAL.
    with contextlib.suppress(KeyError, OSError):
        os.chown(path, -1, grp.getgrnam(group).gr_gid)
        os.chmod(path, 0o660)
        return ""
    return f"there is no group {group}, or it cannot be given the socket: only its owner may use it"
