"""Give a native program the texts of the foreign one, longer ones too.

relocate.py overwrites texts in place, which a longer one does not allow: "aarch64-linux-gnu" has a
character more than "x86_64-linux-gnu". Here the new text goes into a segment of its own, after all
others, and what points to the old one is made to point there: pointers in initialized data (their
relocations) and x86-64's rip-relative `lea`. Where the code also says how long the text is, that
changes too: in a `mov $LENGTH, %reg` just before the `lea` (C's sizeof "…" - 1 as an argument), or
in a `movq $LENGTH` to the place below the one where the address is put (C++'s string_view).

This is found by searching bytes, not by disassembling, so a result is only to be trusted where the
program has been compared with the foreign one afterwards (tests/kernel/test_accel_perl.py).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Mapping

from maid.acceleration.model import Patch, Place
from maid.acceleration.relocate import Image, RelocationError

SHIM_MAGIC = b"maid\x7fshim\x7f1\0\0\0\0\0"
"""Begins the added segment: daemon/native/shim.c finds its settings after it."""

_PAGE = 0x1000
_PT_LOAD, _PT_NOTE, _PF_R = 1, 4, 4
_R_X86_64_RELATIVE = 8
_PHOFF, _PHENTSIZE = 32, 56
_PROGRAM_HEADER = struct.Struct("<IIQQQQQQ")
_RELA = struct.Struct("<QQq")

# lea disp32(%rip), %reg: REX.W or REX.WR, 8d, mod 00 r/m 101 (Intel SDM 2, LEA).
_LEA = re.compile(rb"[\x48\x4c]\x8d[\x05\x0d\x15\x1d\x25\x2d\x35\x3d](?=(.{4}))", re.S)
_LEA_SIZE = 7
# mov $imm32, %r32 with and without REX.B.
_MOV = rb"[\xb8-\xbf]"
_AFTER = 96
"""Bytes after a `lea` in which a string_view of its text is completed: 59 in apt 3.0 and 3.1."""
_BEFORE = 20
"""Bytes before a `lea` in which its text's length is looked for: the other arguments of the same
call. gcc 12 to 14 put it 5 to 13 bytes before in perl 5.36 to 5.40."""


def answers(path: str, **settings: str) -> Patch:
    """A patch: tell the shim whom the program stands in for: the foreign program's `path`, the
    machine's name for uname, and further settings (shim.c lists them)."""
    return respelled(path, (), **settings)


def respelled(path: str, texts: Iterable[tuple[str, str]], **settings: str) -> Patch:
    """A patch: `answers`, and every string that holds the first text of a pair gets the second in
    its place; fields of both are filled in. Between two "\\0" the first is a whole string."""
    pairs = tuple(texts)

    def patch(data: bytes, place: Place) -> bytes:
        replaced = [(place.fill(a).encode(), place.fill(b).encode()) for a, b in pairs]
        lines = {"exe": path, "machine": place.foreign.uname, **settings}
        return respell(data, replaced, {key: place.fill(text) for key, text in lines.items()})

    return patch


def respell(
    data: bytes, texts: Iterable[tuple[bytes, bytes]], settings: Mapping[str, str]
) -> bytes:
    """`data` with the strings changed and the shim's settings added.

    Raises RelocationError when a string that would have to grow is pointed to by nothing that is
    found, or the file has no place for a segment.
    """
    image = Image(data)
    block = bytearray(SHIM_MAGIC)
    for key, value in settings.items():
        block += f"{key}={value}".encode() + b"\0"
    block += b"\0"
    start = _next_page(max(s.vaddr + s.memsz for s in image.segments if s.type == _PT_LOAD))
    changed = bytearray(data)
    for old, new in texts:
        whole, old, new = old.startswith(b"\0"), old.strip(b"\0"), new.strip(b"\0")
        for at, string in _strings(image, old):
            if whole and string != old:
                continue
            longer = string.replace(old, new)
            target = start + len(block)
            if not _redirect(image, changed, at, string, len(longer), target):
                # Not a string of its own: a constant that the code copies. It is the caller's to
                # know that it does not matter; it must not name the native machine.
                _blank(changed, at, string, old)
                continue
            block += longer + b"\0"
    return _with_segment(image, changed, start, bytes(block))


def _strings(image: Image, part: bytes) -> Iterable[tuple[int, bytes]]:
    """Offset and bytes of each zero-ended loaded string that holds `part`."""
    for match in re.finditer(rb"[\t\n -~]*%s[\t\n -~]*(?=\0)" % re.escape(part), image.data):
        try:
            image.address(match.start())
        except RelocationError:
            continue  # a name in the debug sections
        yield match.start(), match.group()


def _redirect(
    image: Image, changed: bytearray, at: int, string: bytes, length: int, target: int
) -> int:
    """Make what points to the string at offset `at` point to the address `target`; how many did."""
    address = image.address(at)
    count = 0
    for segment in image.segments:
        if segment.type != _PT_LOAD or not segment.flags & 1:
            continue
        code = image.data[segment.offset : segment.offset + segment.filesz]
        for match in _LEA.finditer(code):
            next_instruction = segment.vaddr + match.start() + _LEA_SIZE
            if next_instruction + struct.unpack("<i", match.group(1))[0] != address:
                continue
            place = segment.offset + match.start()
            struct.pack_into("<i", changed, place + 3, target - next_instruction)
            _resize(changed, place, len(string), length)
            count += 1
    for entry, where, info, addend in image.relocations():
        if info & 0xFFFFFFFF == _R_X86_64_RELATIVE and addend == address:
            _RELA.pack_into(changed, entry, where, info, target)
            count += 1
    return count


def _resize(changed: bytearray, lea: int, old: int, new: int) -> None:
    """Change the length that goes with the text of the `lea` at offset `lea`, if one does."""
    if at := _view_length(bytes(changed[lea : lea + _LEA_SIZE + _AFTER]), old):
        struct.pack_into("<I", changed, lea + at, new)
        return
    window = bytes(changed[lea - _BEFORE : lea])
    found = list(re.finditer(_MOV + re.escape(struct.pack("<I", old)), window))
    if len(found) > 1:
        raise RelocationError(f"at {lea:#x} the length {old} is loaded twice")
    if found:
        struct.pack_into("<I", changed, lea - _BEFORE + found[0].start() + 1, new)


def _view_length(code: bytes, length: int) -> int:
    """Where in `code`, which a `lea` begins, the length stands of a string_view of its text that is
    made on the stack: the length, then the address (libstdc++). 0 where none is made."""
    rex, register = code[0], code[2] & 0x38  # of the lea, and so of the move of its result
    # mov %reg, disp8(%rsp) and movq $imm32, disp8(%rsp): REX.W, 89 or c7, mod 01 r/m 100, SIB 24
    # (Intel SDM 2, MOV).
    store = re.escape(bytes((rex, 0x89, 0x44 | register, 0x24))) + b"(.)"
    for stored in re.finditer(store, code, re.S):
        below = bytes(((stored.group(1)[0] - 8) & 0xFF,))
        sized = b"\x48\xc7\x44\x24" + below + struct.pack("<I", length)
        if (at := code.find(sized)) >= 0:
            return at + 5
    return 0


def _blank(changed: bytearray, at: int, string: bytes, old: bytes) -> None:
    for match in re.finditer(re.escape(old), string):
        changed[at + match.start() : at + match.end()] = b"-" * len(old)


def _with_segment(image: Image, changed: bytearray, start: int, block: bytes) -> bytes:
    """The file with `block` loaded read-only at address `start`, in the place of a PT_NOTE that
    comes after all PT_LOAD (Linux and glibc want those in order)."""
    (table,) = struct.unpack_from("<Q", changed, _PHOFF)
    kinds = [segment.type for segment in image.segments]
    last = len(kinds) - 1 - kinds[::-1].index(_PT_LOAD)
    notes = [i for i, kind in enumerate(kinds) if kind == _PT_NOTE and i > last]
    if not notes:
        raise RelocationError("it has no note whose place a segment could take")
    changed += b"\0" * (-len(changed) % _PAGE)
    header = (_PT_LOAD, _PF_R, len(changed), start, start, len(block), len(block), _PAGE)
    _PROGRAM_HEADER.pack_into(changed, table + notes[-1] * _PHENTSIZE, *header)
    return bytes(changed + block)


def _next_page(address: int) -> int:
    return -(-address // _PAGE) * _PAGE


def constants(values: Mapping[str, Mapping[str, int]]) -> Patch:
    """A patch: give the constants of a perl module the foreign machine's values, by Debian's name
    of it. They stand in tables of {name, its length, value} (ExtUtils::Constant::ProxySubs)."""

    def patch(data: bytes, place: Place) -> bytes:
        image, changed = Image(data), bytearray(data)
        pointers = {addend: where for _, where, _, addend in image.relocations()}
        for name, value in values.get(place.foreign.debian, {}).items():
            # CHAR_MAX may be the end of SCHAR_MAX: the linker merges strings.
            for match in re.finditer(rb"%s(?=\0)" % name.encode(), data):
                try:
                    where = pointers.get(image.address(match.start()))
                    at = image.offset(where) if where is not None else 0
                except RelocationError:
                    continue
                if at and struct.unpack_from("<i", data, at + 8)[0] == len(name):
                    struct.pack_into("<q", changed, at + 16, value)
        return bytes(changed)

    return patch
