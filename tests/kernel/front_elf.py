"""ELF files with notes, made field by field, and what their build-id is.

`Elf` writes files of both classes and byte orders, right ones and damaged ones; `expected` reads
the build-id of any bytes, by the gABI and the limits that daemon/native/front_elf.c states. It is
written apart from the C, with Python's numbers, which cannot overflow.
"""

import struct
from dataclasses import dataclass, field

BUILD_ID = 3
NOTE = 4
LIMIT = 1 << 63


def note(
    content: bytes, kind: int = BUILD_ID, name: bytes = b"GNU\0", unit: int = 4, order: str = "<"
) -> bytes:
    """One note, padded to `unit` as in a segment that is aligned so."""
    head = struct.pack(order + "III", len(name), len(content), kind) + name
    head = head.ljust(-len(head) % unit + len(head), b"\0") + content
    return head.ljust(-len(head) % unit + len(head), b"\0")


@dataclass
class Elf:
    """A file with a header, a program header for each of `segments`, and their bytes.

    `segments` are (type, content, alignment). `fields` overrides fields of the header ("phoff",
    "phentsize", "phnum") and of segment N ("offset0", "filesz0", "align0", …). `table` is where
    the program headers begin, `data` where the contents do.
    """

    bits: int = 64
    order: str = "<"
    segments: list[tuple[int, bytes, int]] = field(default_factory=list)
    fields: dict[str, int] = field(default_factory=dict)
    table: int = 0
    data: int = 0

    @property
    def header_size(self) -> int:
        return 64 if self.bits == 64 else 52

    @property
    def entry_size(self) -> int:
        return 56 if self.bits == 64 else 32

    def __bytes__(self) -> bytes:
        table = self.table or self.header_size
        at = self.data or table + self.entry_size * len(self.segments)
        made = bytearray()

        def put(offset: int, data: bytes) -> None:
            if len(made) < offset + len(data):
                made.extend(bytes(offset + len(data) - len(made)))
            made[offset : offset + len(data)] = data

        address = "Q" if self.bits == 64 else "I"
        ident = b"\x7fELF" + bytes([self.bits // 32, 1 if self.order == "<" else 2, 1])
        header = struct.pack(
            f"{self.order}16sHHI{address}{address}{address}IHHHHHH",
            *(ident, 2, 183, 1, 0, self.fields.get("phoff", table), 0, 0, self.header_size),
            self.fields.get("phentsize", self.entry_size),
            self.fields.get("phnum", len(self.segments)),
            *(0, 0, 0),
        )
        put(0, header)
        for number, (kind, content, align) in enumerate(self.segments):
            offset, size, align = (
                self.fields.get(f"{name}{number}", usual)
                for name, usual in (("offset", at), ("filesz", len(content)), ("align", align))
            )
            if self.bits == 64:
                values = (kind, 4, offset, 0, 0, size, size, align)
                entry = struct.pack(f"{self.order}IIQQQQQQ", *values)
            else:
                values = (kind, offset, 0, 0, size, size, 4, align)
                entry = struct.pack(f"{self.order}IIIIIIII", *values)
            put(table + number * self.entry_size, entry)
            put(at, content)
            at += len(content)
        return bytes(made)


def expected(data: bytes) -> bytes:
    """The build-id of a file, b"" where it has none within the front's limits."""
    if len(data) < 52 or data[:4] != b"\x7fELF" or data[4] not in (1, 2) or data[5] not in (1, 2):
        return b""
    order = "<" if data[5] == 1 else ">"
    wide = data[4] == 2
    size = 56 if wide else 32
    if len(data) < (64 if wide else 52):
        return b""
    (table,) = struct.unpack_from(order + ("Q" if wide else "I"), data, 32 if wide else 28)
    entry_size, count = struct.unpack_from(order + "HH", data, 54 if wide else 42)
    if entry_size != size or count * size > 65536 or table >= LIMIT:
        return b""
    for at in range(table, table + count * size, size):
        if at + size > len(data):
            return b""
        if wide:
            kind, _, offset, _, _, length, _, align = struct.unpack_from(
                order + "IIQQQQQQ", data, at
            )
        else:
            kind, offset, _, _, length, _, _, align = struct.unpack_from(order + "8I", data, at)
        if kind == NOTE and offset < LIMIT and length < LIMIT:
            found = _in_notes(data, offset, length, 8 if align == 8 else 4, order)
            if found:
                return found
    return b""


def _in_notes(data: bytes, at: int, left: int, unit: int, order: str) -> bytes:
    while left >= 12 and at + 12 <= len(data):
        name, content, kind = struct.unpack_from(order + "III", data, at)
        start = -(-(12 + name) // unit) * unit
        if start + content > left:
            return b""
        if kind == BUILD_ID and name == 4 and 0 < content <= 64:
            if at + start + content > len(data):
                return b""
            if data[at + 12 : at + 16] == b"GNU\0":
                return data[at + start : at + start + content]
        size = -(-(start + content) // unit) * unit
        at, left = at + size, left - size
        if left == 0:
            return _behind(data[at : at + 80], order)
    return b""


def _behind(data: bytes, order: str) -> bytes:
    """The build-id of the one note that `data` begins with."""
    if len(data) < 16 or data[12:16] != b"GNU\0":
        return b""
    name, content, kind = struct.unpack_from(order + "III", data)
    whole = name == 4 and kind == BUILD_ID and content <= len(data) - 16
    return data[16 : 16 + content] if whole else b""
