"""Where the front goes in an interpreter, and which bytes of the copy that changes.

The front (daemon/native/front.c) becomes one more loaded segment, after the last one in memory and
at the end of the file; it takes the place of a PT_NOTE in the program header table, and the entry
point becomes its start. Its params block says where the interpreter's own entry point is, which
arguments to insert, and how the native store is recognised.

This is the ELF format (System V gABI, chapters 4 and 5; Linux fs/binfmt_elf.c for what the kernel
makes of it) and the layout of the params block, nothing else: no file is opened or written here.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from maid.errors import MaidError

# `struct params` in front.c: magic, version, e_machine, entry, count, bytes of text, whether there
# is a store, the device and inode of its root; then the text.
MAGIC = b"maid\x7ffront\x7fargs\0"
PARAMS = struct.Struct("<16sIIqIIQQQ")
PARAMS_VERSION = 2
MAX_ARGUMENTS = 8
# Far more than the front takes (front.lds allows 12288 bytes): what is larger is some other file.
FRONT_LIMIT = 65536

# gABI, figures 4-3 and 5-1. Only 64-bit little-endian: the machines that maid runs on.
_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_ENTRY_POINT = 24
_PROGRAM_HEADER = struct.Struct("<IIQQQQQQ")
_IDENT = b"\x7fELF\x02\x01"
_ET_EXEC, _ET_DYN = 2, 3
_PT_LOAD, _PT_INTERP, _PT_NOTE = 1, 3, 4
_PF_X, _PF_R = 1, 4
_NT_GNU_BUILD_ID = 3
# Linux takes at most 64 KiB of program headers (load_elf_phdrs).
_PROGRAM_HEADERS_LIMIT = 65536
_NOTE_LIMIT = 65536
# The smaller user address space of the two machines: 47 bits, x86-64 without la57. No QEMU is
# linked anywhere near it.
_ADDRESS_LIMIT = 1 << 47

Read = Callable[[int, int], bytes]
"""Reads (count, offset) of the interpreter; fewer bytes where it ends, as pread does."""


class _Machine(NamedTuple):
    name: str
    # The largest page Linux uses there: a segment must begin on one of its own.
    page: int


# By e_machine (uapi/linux/elf-em.h).
_MACHINES = {62: _Machine("x86-64", 0x1000), 183: _Machine("AArch64", 0x10000)}


class BakeError(MaidError):
    """No copy could be made: the plain interpreter has to serve."""


class _Segment(NamedTuple):
    """One program header, its fields in the order of the file."""

    type: int
    flags: int
    offset: int
    vaddr: int
    paddr: int
    filesz: int
    memsz: int
    align: int


@dataclass(frozen=True)
class StoreIdentity:
    """The root directory of the native store as stat shows it, wherever it is mounted."""

    device: int
    inode: int


@dataclass(frozen=True)
class Front:
    """The compiled front, where in it the params block begins, and how much text that holds."""

    code: bytes
    params: int
    machine: int
    room: int
    sha256: str


@dataclass(frozen=True)
class Place:
    """What of an interpreter's headers decides where the front goes, already checked."""

    entry: int
    table: int
    segments: tuple[_Segment, ...]
    # The index of the PT_NOTE that gives up its place.
    note: int


def parse(code: bytes) -> Front:
    """The front in `code`, the content of front.bin. Raises BakeError when it is something else."""
    at = code.find(MAGIC)
    if at < 0 or code.count(MAGIC) > 1 or at + PARAMS.size > len(code) or len(code) > FRONT_LIMIT:
        raise BakeError("it has no params block")
    _, version, machine, entry, count, room, *store = PARAMS.unpack_from(code, at)
    if version != PARAMS_VERSION:
        raise BakeError(f"its params block has version {version}, not {PARAMS_VERSION}")
    empty = not (entry or count or any(store))
    if machine not in _MACHINES or not empty or at + PARAMS.size + room > len(code):
        raise BakeError("its params block is damaged")
    return Front(code, at, machine, room, hashlib.sha256(code).hexdigest())


def text(arguments: tuple[str, ...], room: int) -> bytes:
    """The arguments as the params block holds them, each ended by a zero byte.

    Raises BakeError when there are more than MAX_ARGUMENTS or they take more than `room` bytes.
    """
    if len(arguments) > MAX_ARGUMENTS:
        raise BakeError(
            f"{len(arguments)} arguments are too many to bake in",
            f"an interpreter can be given at most {MAX_ARGUMENTS}",
        )
    if any("\0" in argument for argument in arguments):
        raise BakeError("an argument to bake in contains a zero byte")
    try:
        data = b"".join(argument.encode() + b"\0" for argument in arguments)
    except UnicodeEncodeError as error:
        raise BakeError(f"an argument to bake in is not text: {error}") from error
    if len(data) > room:
        raise BakeError(
            f"the arguments to bake in are too long: {len(data)} bytes",
            f"together they may take {room} bytes, with one more for each",
        )
    return data


def place(read: Read, size: int, front: Front) -> Place:
    """Where the front goes in an interpreter of `size` bytes.

    Raises BakeError, with what is wrong with the interpreter as the message, when it is not a
    static program for the front's machine, is damaged, is a copy already or has no PT_NOTE.
    """
    header = read(_HEADER.size, 0)
    if len(header) < _HEADER.size or not header.startswith(_IDENT[:4]):
        raise BakeError("it is not an ELF program")
    if not header.startswith(_IDENT):
        raise BakeError("it is not a 64-bit little-endian program")
    fields = _HEADER.unpack(header)
    kind, machine, entry, table, entry_size, count = (fields[i] for i in (1, 2, 4, 5, 9, 10))
    if machine != front.machine:
        name = _MACHINES[machine].name if machine in _MACHINES else f"ELF machine {machine}"
        wanted = _MACHINES[front.machine].name
        raise BakeError(f"it is a program for {name}, the front is for {wanted}")
    if kind not in (_ET_EXEC, _ET_DYN):
        raise BakeError("it is not an executable program")
    length = count * entry_size
    if (
        entry_size != _PROGRAM_HEADER.size
        or table < _HEADER.size
        or not 0 < length <= _PROGRAM_HEADERS_LIMIT
    ):
        raise BakeError("its program headers are damaged")
    headers = read(length, table) if table < size else b""
    if len(headers) < length:
        raise BakeError("it is truncated")
    segments = tuple(_Segment(*each) for each in _PROGRAM_HEADER.iter_unpack(headers))
    if any(segment.type == _PT_INTERP for segment in segments):
        raise BakeError("it is dynamically linked", "install the static one: qemu-user-static")
    loads = [segment for segment in segments if segment.type == _PT_LOAD]
    _check_loads(loads, size)
    home = next((load for load in loads if load.vaddr <= entry < load.vaddr + load.filesz), None)
    if home is None or not home.flags & _PF_X:
        raise BakeError("its entry point is not in its code")
    if home.filesz <= FRONT_LIMIT and MAGIC in read(home.filesz, home.offset):
        raise BakeError("it is such a copy already", "name the interpreter that it was made from")
    if _above(loads[-1], machine) + len(front.code) > _ADDRESS_LIMIT:
        raise BakeError("there is no room above it in the address space")
    return Place(entry, table, segments, _spare_note(read, size, segments))


def changes(
    place: Place, size: int, front: Front, text: bytes, store: StoreIdentity | None = None
) -> tuple[tuple[int, bytes], ...]:
    """What is written, as (offset, bytes), over a copy of the interpreter of `size` bytes.

    `text` holds the arguments; the front of the copy looks for native programs in `store`, and for
    none without it.
    The new segment lies on a page of its own in the file and in memory, so that both agree modulo
    the page, and above .bss, so the kernel's brk, which begins after the highest segment, comes to
    lie after it.
    """
    last = max(i for i, segment in enumerate(place.segments) if segment.type == _PT_LOAD)
    page = _MACHINES[front.machine].page
    offset = _aligned(size, page)
    vaddr = _above(place.segments[last], front.machine)
    block = PARAMS.pack(
        *(MAGIC, PARAMS_VERSION, front.machine, place.entry - vaddr),
        *(text.count(b"\0"), front.room),
        *((1, store.device, store.inode) if store else (0, 0, 0)),
    )
    filled = block + text
    code = front.code[: front.params] + filled + front.code[front.params + len(filled) :]
    added = _Segment(_PT_LOAD, _PF_R | _PF_X, offset, vaddr, vaddr, len(code), len(code), page)
    # PT_LOAD entries must ascend (gABI; the kernel computes the size of a static-pie program from
    # the first and the last), and a note may stand before them.
    table = list(place.segments)
    table.insert(last + 1, added)
    del table[place.note if place.note <= last else place.note + 1]
    return (
        (_ENTRY_POINT, struct.pack("<Q", vaddr)),
        (place.table, b"".join(_PROGRAM_HEADER.pack(*each) for each in table)),
        (offset, code),
    )


def _check_loads(loads: list[_Segment], size: int) -> None:
    """What the kernel takes for granted, and what makes the place after the last one free."""
    if not loads:
        raise BakeError("nothing of it is loaded")
    end = 0
    for load in loads:
        if load.vaddr < end or load.vaddr + load.memsz > _ADDRESS_LIMIT:
            raise BakeError("its segments overlap or are out of order")
        if load.filesz > load.memsz or load.offset + load.filesz > size:
            raise BakeError("it is truncated")
        end = load.vaddr + load.memsz


def _spare_note(read: Read, size: int, segments: tuple[_Segment, ...]) -> int:
    """The index of the PT_NOTE to give up.

    Nothing that runs needs one: the kernel reads properties through PT_GNU_PROPERTY, and a static
    program has no loader that would look for notes. Preferred is one without the build-id, by which
    debuggers and maid itself know a program.

    Without any PT_NOTE there is no place for the new segment: the table cannot grow, as code or
    data follows it; it cannot move out of the loaded part that AT_PHDR points into; and each other
    kind (PT_GNU_STACK, PT_TLS, PT_GNU_RELRO, …) has a meaning to the kernel or the C library.
    """
    notes = [index for index, segment in enumerate(segments) if segment.type == _PT_NOTE]
    if not notes:
        raise BakeError(
            "it has no PT_NOTE, whose place in the program headers the front takes",
            "link it with a build-id (--build-id, the default of distributions)",
        )
    return next((n for n in notes if not _has_build_id(read, size, segments[n])), notes[0])


def _has_build_id(read: Read, size: int, note: _Segment) -> bool:
    data = read(min(note.filesz, _NOTE_LIMIT), note.offset) if note.offset < size else b""
    at = 0
    while at + 16 <= len(data):
        name_size, content_size, kind = struct.unpack_from("<III", data, at)
        if kind == _NT_GNU_BUILD_ID and data[at + 12 : at + 16] == b"GNU\0":
            return True
        at += 12 + _aligned(name_size, 4) + _aligned(content_size, 4)
    return False


def _above(load: _Segment, machine: int) -> int:
    """The first page's address after a loaded segment."""
    return _aligned(load.vaddr + load.memsz, _MACHINES[machine].page)


def _aligned(value: int, unit: int) -> int:
    return (value + unit - 1) // unit * unit
