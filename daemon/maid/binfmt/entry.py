"""One binfmt_misc registration, both directions: what the kernel shows and what it takes.

Knows the text formats of Linux's Documentation/admin-guide/binfmt-misc.rst and nothing of who
registers what, or where.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from maid.errors import MaidError

LINE_LIMIT = 1920
"""Longest register line in bytes (MAX_REGISTER_LENGTH in fs/binfmt_misc.c)."""

INTERPRETER_LIMIT = 127
"""Longest interpreter path in bytes (BINPRM_BUF_SIZE / 2 - 1 in the kernel's check)."""

WINDOW = 128
"""Magic and offset must lie within the first 128 bytes of a file (BINPRM_BUF_SIZE / 2)."""

FLAGS = "POCF"
"""The flags that every kernel since 4.8 knows, in the order in which it shows them."""

DELIMITERS = b":;,|#~!^@" + bytes(range(1, 9))
"""What may stand between the fields, the usual one first: the kernel takes any byte."""

RESERVED = frozenset({"register", "status", ".", "..", ""})

NAME_LIMIT = 255
"""Longest name in bytes: it becomes a file's (NAME_MAX)."""


class EntryError(MaidError):
    """A registration that the kernel would refuse, or text that is no entry."""


@dataclass(frozen=True)
class Entry:
    """A registration in a binfmt_misc table.

    `kind` is "M" (magic) or "E" (extension); `magic` and `mask` are raw bytes (an empty mask means
    every bit counts); for "E", `magic` holds the extension without its dot. `flags` is in the
    kernel's order. `enabled` is what the kernel shows; it is not part of what is registered.
    """

    name: str
    interpreter: str
    magic: bytes
    mask: bytes = b""
    flags: str = ""
    offset: int = 0
    kind: str = "M"
    enabled: bool = True

    def same_registration(self, other: Entry) -> bool:
        """Whether both say the same to the kernel, enabled or not."""
        return replace(self, enabled=True) == replace(other, enabled=True)

    def catches(self, header: bytes) -> bool:
        """Whether the kernel would hand a file that starts with `header` to this entry."""
        if not self.enabled or self.kind != "M":
            return False
        window = header[self.offset : self.offset + len(self.magic)]
        if len(window) < len(self.magic):
            return False
        mask = self.mask or b"\xff" * len(self.magic)
        return all((a ^ b) & m == 0 for a, b, m in zip(window, self.magic, mask, strict=True))

    def register_line(self) -> bytes:
        """The line for the `register` file.

        Magic and mask are written as \\xHH throughout, so that no byte of theirs can be taken for
        the delimiter. Raises EntryError for what the kernel would answer with EINVAL, so that the
        reason has words.
        """
        self._check()
        escaped = b"".join(b"\\x%02x" % byte for byte in self.magic)
        if self.kind == "E":
            escaped = self.magic
        mask = b"".join(b"\\x%02x" % byte for byte in self.mask)
        fields = (
            self.name.encode(),
            self.kind.encode(),
            str(self.offset).encode() if self.offset else b"",
            escaped,
            mask,
            self.interpreter.encode(),
            self.flags.encode(),
        )
        delimiter = next(
            (bytes([d]) for d in DELIMITERS if not any(d in field for field in fields)), None
        )
        if delimiter is None:
            raise EntryError(f"entry {self.name}: no delimiter is free in its name and interpreter")
        line = delimiter + delimiter.join(fields)
        if len(line) > LINE_LIMIT:
            raise EntryError(f"entry {self.name}: {len(line)} bytes, the kernel takes {LINE_LIMIT}")
        return line

    def _check(self) -> None:
        """Raise EntryError for what the kernel would refuse, or show as something else."""
        self._check_text(self.name, f"{self.name!r} cannot be the name of an entry")
        if self.name in RESERVED or "/" in self.name or len(self.name.encode()) > NAME_LIMIT:
            raise EntryError(f"{self.name!r} cannot be the name of an entry")
        if self.kind not in ("M", "E"):
            raise EntryError(f"entry {self.name}: unknown kind {self.kind!r}")
        if not self.magic or self.offset < 0 or self.offset + len(self.magic) > WINDOW:
            raise EntryError(f"entry {self.name}: magic must lie in the first {WINDOW} bytes")
        if self.mask and len(self.mask) != len(self.magic):
            raise EntryError(f"entry {self.name}: mask and magic differ in length")
        if self.kind == "E":
            self._check_extension()
        self._check_text(
            self.interpreter,
            f"entry {self.name}: line break, zero byte or no UTF-8 in the interpreter's path",
        )
        if not self.interpreter or len(self.interpreter.encode()) > INTERPRETER_LIMIT:
            raise EntryError(
                f"entry {self.name}: an interpreter's path has 1 to {INTERPRETER_LIMIT} bytes"
            )
        unknown = set(self.flags) - set(FLAGS)
        if unknown:
            raise EntryError(f"entry {self.name}: unknown flags {''.join(sorted(unknown))}")
        if self.flags != ordered_flags(self.flags):
            raise EntryError(
                f"entry {self.name}: the kernel shows the flags {self.flags} as"
                f" {ordered_flags(self.flags)}"
            )

    def _check_extension(self) -> None:
        """An extension is shown as it is, and has neither offset nor mask."""
        words = f"entry {self.name}: {self.magic!r} cannot be an extension"
        try:
            self._check_text(self.magic.decode(), words)
        except UnicodeDecodeError:
            raise EntryError(words) from None
        if b"/" in self.magic or self.mask or self.offset:
            raise EntryError(words)

    @staticmethod
    def _check_text(text: str, words: str) -> None:
        """Raise EntryError(words) for a text that the kernel cuts, or shows so that it cannot be
        told from others: with line breaks, zero bytes, or halves of surrogate pairs, which stand
        for bytes that are no UTF-8."""
        if "\n" in text or "\0" in text or any("\ud800" <= letter <= "\udfff" for letter in text):
            raise EntryError(words)


def ordered_flags(flags: str) -> str:
    """`flags` without repetitions and in the kernel's order; C implies O, as in the kernel."""
    wanted = set(flags) | ({"O"} if "C" in flags else set())
    return "".join(flag for flag in FLAGS if flag in wanted)


def parse(name: str, text: str) -> Entry:
    """Read what the kernel shows in an entry's file.

    Flags that this kernel has and we do not know are kept, so that an entry of another's is never
    taken for something else. Raises EntryError when the text is no entry.
    """
    unreadable = f"the kernel's text for entry {name} cannot be read: {text!r}"
    # Nothing but "\n" ends a line: str.splitlines knows ten more, all of which a path may have.
    state, *lines = text.removesuffix("\n").split("\n")
    fields: dict[str, str] = {}
    for line in lines:
        key, _, value = line.partition(" ")
        if key in fields:
            raise EntryError(unreadable)
        fields[key] = value
    # These come first, each once, and after an extension comes nothing; so no line break in it or
    # in an interpreter's path can be taken for more of the entry.
    if state not in ("enabled", "disabled") or list(fields)[:2] != ["interpreter", "flags:"]:
        raise EntryError(unreadable)
    if "extension" in fields and len(fields) > 3:
        raise EntryError(unreadable)
    enabled, flags = state == "enabled", fields["flags:"]
    try:
        if "extension" in fields:
            extension = fields["extension"].removeprefix(".")
            return Entry(
                name, fields["interpreter"], extension.encode(), b"", flags, 0, "E", enabled
            )
        return Entry(
            name,
            fields["interpreter"],
            bytes.fromhex(fields["magic"]),
            bytes.fromhex(fields.get("mask", "")),
            flags,
            int(fields.get("offset", "0")),
            "M",
            enabled,
        )
    except (KeyError, ValueError) as error:
        raise EntryError(unreadable) from error
