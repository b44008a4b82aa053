"""binfmt/entry.py against the kernel: in an instance of its own, which nothing is executed in.

Either the input makes an entry: what maid writes the kernel must take and show as it is, and what
maid refuses the kernel must refuse, or show as something else; where maid is stricter on purpose is
in `stricter`. Or it is a line: what the kernel shows of it must be read, and be the same when it is
registered again.
"""

from __future__ import annotations

import ctypes
import errno
import os
import tempfile
from pathlib import Path

from fuzz.inputs import Choices
from maid.binfmt import namespace
from maid.binfmt.entry import FLAGS, INTERPRETER_LIMIT, WINDOW, Entry, EntryError
from maid.binfmt.instance import Instance

CLONE_NEWNS, MS_REC, MS_PRIVATE = 0x20000, 1 << 14, 1 << 18
NOT_THERE = (errno.ENOENT, errno.EACCES, errno.ENOEXEC, errno.ENOTDIR, errno.ENAMETOOLONG)
NOT_THERE += (errno.ELOOP, errno.EISDIR)
"""With flag F the interpreter is opened: that says nothing about the line."""

NAMES = ["a", "maid-x", "register", "status", ".", "..", "", "a/b", "a b", "\x0b", "é", "\udcff"]
NAMES += ["a\nb", "a\0b", "x" * 255, "x" * 256, "é" * 127, "é" * 128, "-1", ":;,|#", "\u2028", "\r"]
INTERPRETERS = ["/bin/true", "/nonexistent", "", "/a b", "/a\nb", "/a\0b", "/a\rb", "/\x85x"]
INTERPRETERS += [
    "/" + "x" * 126,
    "/" + "x" * 127,
    "relative",
    "/a:b;c,d|e#",
    " /x",
    "/x ",
    "/\udcff",
]
INTERPRETERS += ["/x\n", "/\u2028", "/é", "/x\x1c", "enabled", "/x\\x41", "/\x0b"]
MAGICS = [b"", b"\x7fELF", b"\0", b"x" * 128, b"x" * 129, b"\\", b":", b"\n", b"\xff" * 20, b"%"]
MAGICS += [b"exe", b"a/b", b"..", b"\x80"]
LINE = rb":name:M::\x7fELF\x02:\xff\xff\xff\xff\xff:/bin/true:POC"


class Entries:
    """The target."""

    # fmt: off
    words = (
        b":M:", b":E:", b"\\x", b"\\x00", b":", b"P", b"C", b"F", b"O", b"D", b"\n", b"/",
        b"128", b"register", b"status", b"..", b"/bin/true", b"\0", b"\\xff\\xff", b"-1",
        b"\xc2\x85",
    )
    # fmt: on

    def __enter__(self) -> Entries:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(CLONE_NEWNS) or libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None):
            raise OSError(ctypes.get_errno(), "a mount namespace of its own: root is needed")
        # Below a mount that only this process has: both are gone with it.
        self.place = tempfile.mkdtemp(prefix="maid-fuzz-")
        if libc.mount(b"none", os.fsencode(self.place), b"tmpfs", 0, None):
            raise OSError(ctypes.get_errno(), "mounting a tmpfs")
        os.mkdir(f"{self.place}/table")
        self.pinned = namespace.create(f"{self.place}/table", namespace.identity())
        self.instance = Instance(self.pinned.binfmt)
        self.table = Path(self.pinned.binfmt)
        assert self.instance.mounted()
        return self

    def __exit__(self, *_: object) -> None:
        self.pinned.release()

    def seeds(self) -> list[bytes]:
        lines = [LINE, b":x:E::exe::/bin/true:", b";a:b;M;10;\\x41B;;/a:b;F", b":a:M:::::"]
        lines += [
            b":a:M:300:x::/i:",
            b":a:M::x::/i\nenabled:",
            b":\xff:M::x::/\xff:",
            b":a:M::x::/\r:",
        ]
        numbers = range(0, 256, 5)
        return [b"\1" + line for line in lines] + [b"\0" + bytes([n] * 12) for n in numbers]

    def one(self, data: bytes) -> object:
        choices = Choices(data)
        try:
            if choices.number(2):
                return self.line(choices.rest())
            return self.entry(made(choices))
        finally:
            self.clear()

    def clear(self) -> None:
        """Leave nothing registered."""
        for name in os.listdir(os.fsencode(self.table)):
            if name not in (b"register", b"status"):
                with open(os.fsencode(self.table) + b"/" + name, "wb", buffering=0) as file:
                    file.write(b"-1")

    def write(self, line: bytes) -> int:
        """The kernel's verdict: 0, or its error."""
        try:
            with open(self.table / "register", "wb", buffering=0) as register:
                register.write(line)
        except OSError as error:
            return error.errno or -1
        return 0

    def entry(self, entry: Entry) -> object:
        """What maid would register, or refuses to."""
        try:
            line = entry.register_line()
        except EntryError as error:
            raw = written(entry)
            verdict = self.write(raw) if raw else errno.EINVAL
            taken = verdict == 0 and self.shown(entry.name) == entry
            assert not taken or stricter(entry), f"maid refuses what the kernel takes: {error}"
            return "refused", verdict, stricter(entry)
        verdict = self.write(line)
        if "F" in entry.flags and verdict in NOT_THERE:
            return "not there", entry.flags
        assert verdict == 0, f"the kernel refuses {line!r}: {os.strerror(verdict)}"
        found = self.shown(entry.name)
        assert found == entry, f"{entry} is shown as {found}"
        return "taken", entry.kind, entry.flags, entry.offset > 0, bool(entry.mask)

    def shown(self, name: str) -> Entry | None:
        """The entry as maid reads it; None where there is none or it cannot be read."""
        try:
            return self.instance.read(name)
        except (EntryError, ValueError):  # ValueError: a name with a zero byte is no path
            return None

    def line(self, line: bytes) -> object:
        """Any line: what the kernel makes of it is read, and means the same once more."""
        verdict = self.write(line)
        if verdict:
            return "refused", verdict
        entries = self.instance.entries()
        assert len(entries) <= 1
        for entry in entries.values():
            before = (self.table / entry.name).read_bytes() if on_disk(entry.name) else b""
            self.clear()
            try:
                again = entry.register_line()
            except EntryError:
                return "stricter"
            try:
                before.decode()
            except UnicodeDecodeError:
                return "no UTF-8"  # shown with \\xHH: never maid's own, so never registered again
            if not before:
                return "another's name"
            verdict = self.write(again)
            if "F" in entry.flags and verdict in NOT_THERE:
                return "not there"
            assert verdict == 0, f"{line!r} was taken, {again!r} is not: {os.strerror(verdict)}"
            after = (self.table / entry.name).read_bytes()
            assert after == before, f"{line!r}: {before!r} became {after!r}"
            return "the same", entry.kind, entry.flags, entry.offset > 0, bool(entry.mask)
        return "unread"


def on_disk(name: str) -> bool:
    """Whether a name of Instance.entries is the file's own, not one with \\xHH for odd bytes."""
    return "\\x" not in name


def made(choices: Choices) -> Entry:
    """An entry as the input wants it."""
    magic = choices.choice(MAGICS) if choices.number(2) else choices.some(40)
    mask = (b"", b"", b"\xff" * len(magic), choices.some(40))[choices.number(4)]
    flags = "".join(f for f in FLAGS if choices.number(2))
    if choices.chance(4):
        flags = choices.choice(
            ["FP", "PP", "C", "Z", "D", "POCFD", "p", " ", "é", "FC", "OO", "\n"]
        )
    return Entry(
        choices.choice(NAMES) if choices.number(2) else f"n{choices.number(9)}",
        choices.choice(INTERPRETERS) if choices.number(2) else "/bin/true",
        magic,
        mask,
        flags,
        choices.choice([0, 0, 1, 100, 127, 128, 129, 255, 2**31, -1, 10**5000])
        if choices.number(2)
        else choices.number(160),
        choices.choice(["M", "M", "M", "E", "E", "m", ""]),
    )


def stricter(entry: Entry) -> bool:
    """Where maid refuses what this kernel takes: what the kernel's documents do not promise (older
    kernels' limits), and what could not be told from other lines when it is shown."""
    return (
        entry.offset + len(entry.magic) > WINDOW
        or len(entry.interpreter.encode(errors="surrogateescape")) > INTERPRETER_LIMIT
        or "\n" in entry.name + entry.interpreter
        or (
            not entry.name.isascii()
            and any("\ud800" <= letter <= "\udfff" for letter in entry.name)
        )
    )


def written(entry: Entry) -> bytes:
    """The line for an entry, without a look at it; b"" where no delimiter is free."""
    if entry.offset.bit_length() > 100:
        return b""
    escaped, mask = (
        "".join(f"\\x{b:02x}" for b in part).encode() for part in (entry.magic, entry.mask)
    )
    fields = [
        entry.name.encode(errors="surrogateescape"),
        entry.kind.encode(),
        str(entry.offset).encode() if entry.offset else b"",
        entry.magic if entry.kind == "E" else escaped,
        mask,
        entry.interpreter.encode(errors="surrogateescape"),
        entry.flags.encode(errors="surrogateescape"),
    ]
    for delimiter in b":;,|#~!@^_\x01\x02\x03":
        if not any(delimiter in field for field in fields):
            return bytes([delimiter]) + bytes([delimiter]).join(fields)
    return b""
