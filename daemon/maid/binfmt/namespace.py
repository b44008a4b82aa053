"""Private binfmt_misc instances: user namespaces of their own, pinned to the file system.

An instance lives in DIRECTORY/{user,binfmt}: the namespace file bind-mounted, and the table
mounted from inside the namespace and moved out. No process holds it, so it outlives the daemon,
and an OCI runtime joins it by path (Linux >= 6.7; facts/kernel.md, "Pinning works"). Knows nothing
of what is registered there.
"""

from __future__ import annotations

import array
import contextlib
import os
import pwd
import socket
from collections.abc import Iterable
from dataclasses import dataclass

from maid import kernel, native
from maid.binfmt.instance import Instance
from maid.errors import MaidError

HELPER_TIMEOUT = 10.0
"""Seconds that the helper may take; it needs about one millisecond."""


class NamespaceError(MaidError):
    """A private instance could not be made or taken up."""


@dataclass(frozen=True)
class IdRange:
    """One line of a uid_map: `count` ids from `inside` are those from `outside`."""

    inside: int
    outside: int
    count: int


@dataclass(frozen=True)
class Mapping:
    """The id maps of a user namespace, as the process that makes it sees the ids outside."""

    uids: tuple[IdRange, ...]
    gids: tuple[IdRange, ...]

    @property
    def keeps_groups(self) -> bool:
        """Whether nobody in the namespace may give up supplementary groups.

        So it is where one group alone is mapped, because the kernel demands it of users who make
        such a namespace themselves: a file may deny something to a group (user_namespaces(7)).
        Whoever has a range of groups may give up theirs with newgidmap(1) anyway.
        """
        return sum(row.count for row in self.gids) == 1

    def uid_outside(self, inside: int) -> int | None:
        """The id outside of user `inside`, or None when it is not mapped."""
        for row in self.uids:
            if row.inside <= inside < row.inside + row.count:
                return row.outside + inside - row.inside
        return None

    def gid_outside(self, inside: int) -> int | None:
        """The id outside of group `inside`, or None when it is not mapped."""
        for row in self.gids:
            if row.inside <= inside < row.inside + row.count:
                return row.outside + inside - row.inside
        return None


def identity() -> Mapping:
    """Every id that this process's own namespace has, as itself."""

    def rows(kind: str) -> tuple[IdRange, ...]:
        with open(f"/proc/self/{kind}_map") as file:
            lines = [[int(word) for word in line.split()] for line in file]
        return tuple(IdRange(inside, inside, count) for inside, _, count in lines)

    return Mapping(rows("uid"), rows("gid"))


def for_user(uid: int, gid: int) -> Mapping:
    """Root inside is `uid`:`gid` outside; above it come the ids of /etc/subuid and /etc/subgid.

    The first range that the files give the user is taken, from id 1 on, as podman and newuidmap do.
    """
    return Mapping(
        (IdRange(0, uid, 1), *_subordinate("/etc/subuid", uid)),
        (IdRange(0, gid, 1), *_subordinate("/etc/subgid", uid)),
    )


def _subordinate(file: str, uid: int) -> tuple[IdRange, ...]:
    names = {str(uid)}
    with contextlib.suppress(KeyError):
        names.add(pwd.getpwuid(uid).pw_name)
    with contextlib.suppress(OSError, ValueError), open(file) as lines:
        for line in lines:
            name, first, count = line.strip().split(":")
            if name in names and int(count) > 0:
                return (IdRange(1, int(first), int(count)),)
    return ()


class _PinnedInstance(Instance):
    """The table of a pinned instance: not there either when its namespace is not pinned any more,
    because then no step could join it."""

    def __init__(self, path: str, user: str) -> None:
        super().__init__(path)
        self._user = user

    def mounted(self) -> bool:
        """Whether the table is mounted and the namespace pinned now."""
        return super().mounted() and kernel.filesystem_type(self._user) == kernel.NSFS_MAGIC


class Pinned:
    """A pinned instance: `user` and `binfmt` are the paths in `directory`; `mapping` its id maps.

    Once its namespace has been opened it is held: should its pin be taken away, what runs in it
    must not lose its table, and what comes after must find the same.
    """

    def __init__(self, directory: str, mapping: Mapping) -> None:
        self.directory = directory
        self.mapping = mapping
        self.user = f"{directory}/user"
        self.binfmt = f"{directory}/binfmt"
        self.instance: Instance = _PinnedInstance(self.binfmt, self.user)
        self._held = -1

    def alive(self) -> bool:
        """Whether both pins are in place now."""
        return self.instance.mounted()

    def open_user(self) -> int:
        """A close-on-exec descriptor of the user namespace. Raises NamespaceError when it is
        gone."""
        if kernel.filesystem_type(self.user) != kernel.NSFS_MAGIC:
            raise NamespaceError(
                f"the user namespace at {self.user} is gone", "maid makes a new one"
            )
        if self._held < 0:
            self._held = os.open(self.user, os.O_RDONLY | os.O_CLOEXEC)
        return os.open(self.user, os.O_RDONLY | os.O_CLOEXEC)

    def _pin_again(self) -> None:
        """Pin the namespace that is held, where its pin is gone."""
        if self._held < 0 or kernel.filesystem_type(self.user) == kernel.NSFS_MAGIC:
            return
        os.makedirs(self.directory, mode=0o755, exist_ok=True)
        with open(self.user, "a"):
            pass
        kernel.bind(f"/proc/self/fd/{self._held}", self.user)

    def _let_go(self) -> None:
        if self._held >= 0:
            os.close(self._held)
            self._held = -1

    def mount_again(self) -> None:
        """Mount the table again where its pin was unmounted, and pin the namespace again where that
        is gone. Raises NamespaceError and OSError; it is not held any longer then."""
        try:
            self._pin_again()
            user = self.open_user()
        except (OSError, NamespaceError):
            self._let_go()
            raise
        if kernel.filesystem_type(self.binfmt) == kernel.BINFMTFS_MAGIC:
            os.close(user)
            return
        try:
            with _Helper(["mount", str(user)], (user,)) as helper:
                (mount,) = helper.receive(1)
        finally:
            os.close(user)
        try:
            os.makedirs(self.binfmt, exist_ok=True)
            kernel.move_mount(mount, self.binfmt)
        finally:
            os.close(mount)

    def release(self) -> None:
        """Unpin both and remove the directory. What runs in the namespace keeps it until it
        ends."""
        self._let_go()
        for path in (self.binfmt, self.user):
            # A pin can have been mounted more than once by an interrupted start.
            while kernel.filesystem_type(path) in (kernel.NSFS_MAGIC, kernel.BINFMTFS_MAGIC):
                kernel.detach(path)
        with contextlib.suppress(OSError):
            os.unlink(self.user)
        for path in (self.binfmt, self.directory):
            with contextlib.suppress(OSError):
                os.rmdir(path)


def take_up(directory: str, mapping: Mapping) -> Pinned | None:
    """The instance pinned at `directory`, or None when there is no whole one."""
    pinned = Pinned(directory, mapping)
    return pinned if pinned.alive() else None


def create(directory: str, mapping: Mapping) -> Pinned:
    """Make a user namespace with an empty table of its own and pin it at `directory`.

    Raises NamespaceError: Linux before 6.7 has no instance for each namespace, and some systems
    forbid user namespaces.
    """
    pinned = Pinned(directory, mapping)
    pinned.release()
    os.makedirs(pinned.binfmt, mode=0o755, exist_ok=True)
    with open(pinned.user, "w"):
        pass
    try:
        with _Helper(["pin"]) as helper:
            helper.expect_byte()
            _write_maps(helper.pid, mapping)
            helper.answer()
            mount, user = helper.receive(2)
        try:
            kernel.move_mount(mount, pinned.binfmt)
            kernel.bind(f"/proc/self/fd/{user}", pinned.user)
        finally:
            os.close(mount)
            os.close(user)
    except OSError as error:
        pinned.release()
        raise NamespaceError(
            f"a private binfmt_misc cannot be made: {error.strerror or error}",
            "Linux 6.7 or later with user namespaces is needed: maid doctor",
        ) from error
    except NamespaceError:
        pinned.release()
        raise
    return pinned


def write_map(pid: int, kind: str, rows: Iterable[IdRange]) -> None:
    """Write `kind` ("uid" or "gid") of process `pid`'s new user namespace."""
    text = "".join(f"{row.inside} {row.outside} {row.count}\n" for row in rows)
    with open(f"/proc/{pid}/{kind}_map", "w") as file:
        file.write(text)


def _write_maps(pid: int, mapping: Mapping) -> None:
    try:
        write_map(pid, "uid", mapping.uids)
        if mapping.keeps_groups:
            _deny_setgroups(pid)
        try:
            write_map(pid, "gid", mapping.gids)
        except PermissionError:
            # Without CAP_SETGID outside, a gid map may be written once setgroups is given up.
            _deny_setgroups(pid)
            write_map(pid, "gid", mapping.gids)
    except OSError as error:
        raise NamespaceError(
            f"the id maps of a new user namespace cannot be written: {error.strerror}",
            "see /etc/subuid and /etc/subgid, and user_namespaces(7)",
        ) from error


def _deny_setgroups(pid: int) -> None:
    with open(f"/proc/{pid}/setgroups", "w") as file:
        file.write("deny")


class _Helper:
    """A running maid-enter and the socket to it."""

    def __init__(self, arguments: list[str], inherit: tuple[int, ...] = ()) -> None:
        self._socket, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(HELPER_TIMEOUT)
        program = native.path("maid-enter")
        errors_read, errors_write = os.pipe()
        self._errors = os.fdopen(errors_read, "rb")
        actions = [
            (os.POSIX_SPAWN_DUP2, errors_write, 2),
            # A descriptor duplicated onto itself loses close-on-exec (glibc >= 2.29).
            *((os.POSIX_SPAWN_DUP2, fd, fd) for fd in (other.fileno(), *inherit)),
        ]
        try:
            self.pid = os.posix_spawn(
                program, [program, *arguments, str(other.fileno())], {}, file_actions=actions
            )
        finally:
            os.close(errors_write)
            other.close()

    def __enter__(self) -> _Helper:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        self._errors.close()
        os.waitpid(self.pid, 0)

    def expect_byte(self) -> None:
        if not self._socket.recv(1):
            raise self._failure()

    def answer(self) -> None:
        self._socket.send(b"x")

    def receive(self, count: int) -> tuple[int, ...]:
        data, ancillary, _, _ = self._socket.recvmsg(
            1, socket.CMSG_SPACE(4 * count), socket.MSG_CMSG_CLOEXEC
        )
        if not data or not ancillary:
            raise self._failure()
        return tuple(array.array("i", ancillary[0][2][: 4 * count]))

    def _failure(self) -> NamespaceError:
        said = self._errors.read(4096).decode(errors="replace").strip()
        return NamespaceError(
            f"a private binfmt_misc cannot be made: {said or 'the helper ended without a word'}",
            "Linux 6.7 or later with user namespaces is needed: maid doctor",
        )
