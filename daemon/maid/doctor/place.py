"""The machine that is examined, as the checks see it: files, and a few facts about the process.

Everything is read through a `Place`, so that a check can be shown a made-up machine. Nothing here
writes, mounts or starts anything. What may not be read raises `CannotLook`, which `examine` turns
into a finding; what is not there is None or empty.
"""

from __future__ import annotations

import mmap
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

BINFMT = "/proc/sys/fs/binfmt_misc"
"""Where the machine's own instance belongs."""

_READ_LIMIT = 4 * 1024 * 1024
# For a sysctl the kernel allocates as much as is asked for, and refuses more than 4 MiB.
_PIECE = 65536
_MISSING = (FileNotFoundError, NotADirectoryError)


class CannotLook(Exception):
    """A file is there and may not be read: `path`, and the kernel's word for it in `reason`."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path} cannot be read: {reason}")
        self.path = path
        self.reason = reason


@dataclass(frozen=True)
class Mount:
    """One line of /proc/self/mountinfo (proc_pid_mountinfo(5)).

    `device` is major:minor of the file system: the same for two mounts of one binfmt_misc instance.
    `options` are those of the mount and of the file system together.
    """

    device: str
    point: str
    kind: str
    options: frozenset[str]

    @property
    def read_only(self) -> bool:
        """Whether nothing can be written here."""
        return "ro" in self.options


@dataclass(frozen=True)
class Place:
    """A machine and the process that looks at it.

    Every path that a check names is looked up below `root`. The other fields are what files do not
    tell; by default they are those of this process.
    """

    root: Path = Path("/")
    release: str = field(default_factory=lambda: os.uname().release)
    machine: str = field(default_factory=lambda: os.uname().machine)
    uid: int = field(default_factory=os.geteuid)
    groups: frozenset[int] = field(
        default_factory=lambda: frozenset((*os.getgroups(), os.getegid()))
    )
    environ: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))

    def at(self, path: str | Path) -> Path:
        """Where the machine's absolute `path` is for this process."""
        return self.root / str(path).lstrip("/")

    def exists(self, path: str | Path) -> bool:
        """Whether there is anything at `path`, a dangling link included."""
        return os.path.lexists(self.at(path))

    def read(self, path: str | Path) -> str | None:
        """The text of a file, None when it is not there. Raises CannotLook."""
        data = self.read_bytes(path)
        return None if data is None else data.decode(errors="replace")

    def read_bytes(self, path: str | Path) -> bytes | None:
        """The first 4 MiB of a file, None when it is not there. Raises CannotLook."""
        try:
            # O_NONBLOCK: a FIFO in the way must not be waited for.
            descriptor = os.open(self.at(path), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            with os.fdopen(descriptor, "rb", buffering=0) as file:
                data = b""
                while len(data) < _READ_LIMIT and (more := file.read(_PIECE)):
                    data += more
                return data
        except _MISSING:
            return None
        except OSError as error:
            raise CannotLook(str(path), error.strerror or str(error)) from error

    def contains(self, path: str | Path, data: bytes) -> bool:
        """Whether a file has these bytes somewhere; not when it cannot be read."""
        try:
            with (
                open(self.at(path), "rb") as file,
                mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text,
            ):
                return text.find(data) >= 0
        except (OSError, ValueError):  # ValueError: an empty file cannot be mapped
            return False

    def number(self, path: str) -> int | None:
        """A file that holds one number, as sysctls do; None when it is not there or is no number.

        Raises CannotLook.
        """
        try:
            return int(self.read(path) or "")
        except ValueError:
            return None

    def names(self, path: str | Path) -> list[str]:
        """What is in a directory, sorted; empty when it is not there. Raises CannotLook."""
        try:
            return sorted(os.listdir(self.at(path)))
        except _MISSING:
            return []
        except OSError as error:
            raise CannotLook(str(path), error.strerror or str(error)) from error

    def link(self, path: str) -> str:
        """Where a symbolic link points, or ""."""
        try:
            return os.readlink(self.at(path))
        except OSError:
            return ""

    def status(self, path: str | Path) -> os.stat_result | None:
        """stat(2) of `path`, links followed; None when it is not there, or out of reach."""
        try:
            return os.stat(self.at(path))
        except OSError:
            return None

    def writable(self, path: str | Path) -> bool:
        """Whether this process may write there."""
        return os.access(self.at(path), os.W_OK)

    def program(self, name: str) -> str:
        """The absolute path of a program in PATH or the usual directories, or ""."""
        path = self.environ.get("PATH", "").split(":")
        for directory in (*path, "/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin"):
            file = self.at(f"{directory}/{name}")
            if directory.startswith("/") and os.path.isfile(file) and os.access(file, os.X_OK):
                return f"{directory}/{name}"
        return ""

    def free(self, path: str | Path) -> tuple[int, int | None] | None:
        """Free bytes and free inodes where `path` is, or will be; None where that cannot be said.

        Inodes are None on file systems that do not count them.
        """
        try:
            found = os.statvfs(self.at(self.nearest(path)))
        except OSError:
            return None
        return found.f_bavail * found.f_frsize, found.f_favail if found.f_files else None

    def nearest(self, path: str | Path) -> str:
        """`path`, or the nearest directory above it that is there."""
        here = Path(path)
        while not os.path.exists(self.at(here)) and here != here.parent:
            here = here.parent
        return str(here)

    def setuid(self, path: str) -> bool:
        """Whether a program gets more rights by being started: set-user-id or file capabilities."""
        found = self.status(path)
        if found is not None and found.st_mode & stat.S_ISUID:
            return True
        try:
            return bool(os.getxattr(self.at(path), "security.capability"))
        except OSError:
            return False

    def mounts(self) -> list[Mount]:
        """The mounts of this process's namespace, in the order in which they were made."""
        found = []
        for line in (self.read("/proc/self/mountinfo") or "").splitlines():
            left, _, right = line.partition(" - ")
            before, after = left.split(), right.split()
            if len(before) < 6 or len(after) < 2:
                continue
            options = ",".join((before[5], after[2] if len(after) > 2 else "")).split(",")
            point = re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), before[4])
            found.append(Mount(before[2], point, after[0], frozenset(options)))
        return found

    def mount_of(self, path: str | Path) -> Mount | None:
        """The mount that `path` lies on: the last made of those with the longest mount point."""
        best: Mount | None = None
        for mount in self.mounts():
            inside = mount.point == "/" or f"{path}/".startswith(f"{mount.point}/")
            if inside and (best is None or len(mount.point) >= len(best.point)):
                best = mount
        return best

    def process_status(self, key: str) -> str:
        """The value of a line of /proc/self/status, or ""."""
        for line in (self.read("/proc/self/status") or "").splitlines():
            name, _, value = line.partition(":")
            if name == key:
                return value.strip()
        return ""

    def capable(self, number: int) -> bool:
        """Whether the process has the effective capability of that number (capability.h)."""
        return bool(int(self.process_status("CapEff") or "0", 16) >> number & 1)

    def version(self) -> tuple[int, ...]:
        """The kernel's version: 6.1.0-13-amd64 is (6, 1, 0); () when it says nothing like that."""
        numbers = re.match(r"\d+(\.\d+)*", self.release)
        return tuple(map(int, numbers[0].split("."))) if numbers else ()

    def user(self) -> str:
        """The name of the user in /etc/passwd, or "". Raises CannotLook."""
        for line in (self.read("/etc/passwd") or "").splitlines():
            fields = line.split(":")
            if len(fields) > 2 and fields[2] == str(self.uid):
                return fields[0]
        return ""
