"""One binfmt_misc table: mount, list, add, remove and watch it.

Works on the directory in which the table is mounted, whichever user namespace it belongs to. What
is registered, and whether it may be removed, is decided elsewhere; here the only rules are that
`status` is never written with -1, and that an entry is removed only while it is exactly the one
that the caller believes it to be.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace

from maid import kernel
from maid.binfmt.entry import Entry, EntryError, parse
from maid.errors import MaidError

HOST_PATH = "/proc/sys/fs/binfmt_misc"
"""Where systemd and every distribution mount the machine's own instance."""

WATCHED = kernel.IN_MODIFY | kernel.IN_CLOSE_WRITE | kernel.IN_DELETE
"""What reports registration, enabling, removal and a flush (facts/kernel.md, measured on 6.18)."""


class RegistrationError(MaidError):
    """The kernel refused a registration, a removal or a switch; `errno` is its number."""

    def __init__(self, message: str, hint: str, number: int) -> None:
        super().__init__(message, hint)
        self.errno = number


class Instance:
    """The binfmt_misc table that is mounted at `path`."""

    def __init__(self, path: str) -> None:
        self.path = path

    def mounted(self) -> bool:
        """Whether a binfmt_misc file system is at the path now."""
        return kernel.filesystem_type(self.path) == kernel.BINFMTFS_MAGIC

    def enabled(self) -> bool:
        """Whether the table as a whole is switched on (its `status` file)."""
        try:
            with open(f"{self.path}/status") as file:
                return file.read().strip() == "enabled"
        except OSError:
            return False

    def enable(self) -> None:
        """Switch the whole table on. Raises RegistrationError."""
        self._write("status", b"1", "switching the table on")

    def names(self) -> list[str]:
        """The names of all entries, in the order of the directory; empty when not mounted."""
        if not self.mounted():
            return []
        return [name for name in os.listdir(self.path) if name not in ("register", "status")]

    def read(self, name: str) -> Entry | None:
        """The entry `name`, or None when there is none.

        Raises EntryError when the kernel shows what this program cannot read.
        """
        try:
            # Without newline "\r" would be read as "\n".
            with open(f"{self.path}/{name}", errors="backslashreplace", newline="\n") as file:
                return parse(name, file.read())
        except OSError:
            return None

    def shown(self, name: str) -> bytes:
        """What the kernel shows of the entry `name`, as it is; nothing when there is none."""
        try:
            with open(f"{self.path}/{name}", "rb") as file:
                return file.read()
        except OSError:
            return b""

    def entries(self) -> Mapping[str, Entry]:
        """All entries that can be read, by name, the newest first: the order in which they are
        tried. One that cannot be read is left out: it is not ours.

        Bytes of a name that are no UTF-8 stand there as \\xHH; such a name is not ours either.
        """
        found: dict[str, Entry] = {}
        for name in self.names():
            try:
                entry = self.read(name)
            except EntryError:
                continue
            if entry is not None:
                shown = os.fsencode(name).decode(errors="backslashreplace")
                found[shown] = entry if shown == name else replace(entry, name=shown)
        return found

    def add(self, entry: Entry) -> None:
        """Register `entry` and read it back (rule 4).

        Raises RegistrationError with the kernel's own error when it refuses, or when what is in
        the table afterwards is something else.
        """
        line = entry.register_line()
        self._write("register", line, f"registering {entry.name}", entry)
        found = self.read(entry.name)
        if found is None or not found.same_registration(entry):
            raise RegistrationError(
                f"{entry.name} was registered, but {self.path} shows {found or 'nothing'}",
                "another program may be changing the table: maid events --follow",
                0,
            )

    def remove(self, entry: Entry) -> bool:
        """Remove `entry`; False when the table holds none of that name, or another registration.

        Raises RegistrationError when the kernel refuses.
        """
        found = self.read(entry.name)
        if found is None or not found.same_registration(entry):
            return False
        self._write(entry.name, b"-1", f"removing {entry.name}")
        return True

    def switch_on(self, entry: Entry) -> bool:
        """Enable `entry` where somebody disabled it; False when it is not there as given."""
        found = self.read(entry.name)
        if found is None or not found.same_registration(entry):
            return False
        self._write(entry.name, b"1", f"enabling {entry.name}")
        return True

    def watch(self) -> int:
        """An inotify descriptor that becomes readable on every change; the caller closes it."""
        return kernel.inotify(self.path, WATCHED)

    def _write(self, file: str, data: bytes, what: str, entry: Entry | None = None) -> None:
        if file == "status" and data != b"1":
            raise AssertionError("status is only ever written with 1")
        try:
            descriptor = os.open(f"{self.path}/{file}", os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(descriptor, data)  # one write: the kernel takes a line whole or not at all
            finally:
                os.close(descriptor)
        except OSError as error:
            number = error.errno or 0
            raise RegistrationError(
                f"{what} in {self.path} failed: {error.strerror}", self._hint(number, entry), number
            ) from error

    def _hint(self, number: int, entry: Entry | None) -> str:
        """What to do about errno `number` of a write (the causes are facts/kernel.md's,
        measured)."""
        if number == errno.EEXIST:
            return f"an entry named {entry.name if entry else '?'} is there already"
        if number == errno.EINVAL and entry:
            return (
                f"this kernel does not know one of the flags {entry.flags}, or the magic is wrong"
            )
        if number in (errno.ENOENT, errno.EACCES) and entry and self.mounted():
            return f"with flag F the interpreter must be there and executable: {entry.interpreter}"
        if number == errno.ENOENT:
            return "the table is not mounted there: maid doctor"
        if number in (errno.EPERM, errno.EACCES, errno.EROFS):
            return "root is needed, and a /proc/sys that is writable: maid doctor"
        return "maid doctor"


def hidden_from_init(path: str, names: Iterable[str], root: str = "/proc/1/root") -> list[str]:
    """Those of the entries `names` that the first process does not see in the table at `path`.

    Its mount namespace is the machine's: what it does not see, a daemon in a namespace of its own
    has registered for nobody (rule 4 of design.md). Empty where it may not be looked into (not
    root).
    """
    try:
        os.stat(f"{root}/.")
    except PermissionError:
        return []
    return [name for name in names if not os.path.exists(f"{root}{path}/{name}")]
