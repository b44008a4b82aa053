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

RESERVED = frozenset({"register", "status", ".", "..", ""})


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
            (d for d in (b":", b";", b",", b"|", b"#") if not any(d in field for field in fields)),
            None,
        )
        if delimiter is None:
            raise EntryError(f"entry {self.name}: no delimiter is free in its name and interpreter")
        line = delimiter + delimiter.join(fields)
        if len(line) > LINE_LIMIT:
            raise EntryError(f"entry {self.name}: {len(line)} bytes, the kernel takes {LINE_LIMIT}")
        return line

    def _check(self) -> None:
        if self.name in RESERVED or "/" in self.name or "\n" in self.name:
            raise EntryError(f"{self.name!r} cannot be the name of an entry")
        if self.kind not in ("M", "E"):
            raise EntryError(f"entry {self.name}: unknown kind {self.kind!r}")
        if not self.magic or self.offset < 0 or self.offset + len(self.magic) > WINDOW:
            raise EntryError(f"entry {self.name}: magic must lie in the first {WINDOW} bytes")
        if self.mask and len(self.mask) != len(self.magic):
            raise EntryError(f"entry {self.name}: mask and magic differ in length")
        if not self.interpreter or len(self.interpreter.encode()) > INTERPRETER_LIMIT:
            raise EntryError(
                f"entry {self.name}: an interpreter's path has 1 to {INTERPRETER_LIMIT} bytes"
            )
        if "\n" in self.interpreter:
            raise EntryError(f"entry {self.name}: line break in the interpreter's path")
        unknown = set(self.flags) - set(FLAGS)
        if unknown:
            raise EntryError(f"entry {self.name}: unknown flags {''.join(sorted(unknown))}")


def ordered_flags(flags: str) -> str:
    """`flags` without repetitions and in the kernel's order; C implies O, as in the kernel."""
    wanted = set(flags) | ({"O"} if "C" in flags else set())
    return "".join(flag for flag in FLAGS if flag in wanted)


def parse(name: str, text: str) -> Entry:
    """Read what the kernel shows in an entry's file.

    Flags that this kernel has and we do not know are kept, so that an entry of another's is never
    taken for something else. Raises EntryError when the text is no entry.
    """
    fields: dict[str, str] = {}
    enabled: bool | None = None
    for line in text.splitlines():
        if line in ("enabled", "disabled"):
            enabled = line == "enabled"
            continue
        key, _, value = line.partition(" ")
        fields[key.rstrip(":")] = value
    if enabled is None or "interpreter" not in fields:
        raise EntryError(f"the kernel's text for entry {name} cannot be read: {text!r}")
    flags = fields.get("flags", "")
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
        raise EntryError(f"the kernel's text for entry {name} cannot be read: {text!r}") from error
