"""Read the few facts of an ELF file that maid decides by, and write the smallest ELF that can run.

Reading answers: for which machine is this, is it static, which loader does it want, which build is
it. It looks at the ELF header, the program headers, PT_INTERP and PT_NOTE, a few KiB in all
whatever the file's size, and trusts no field: each offset and length is held against the file and
against a bound. Writing makes a statically linked executable with one loaded segment, which is what
a probe is.

It knows the file format (System V gABI, chapters 4 and 5; Linux fs/binfmt_elf.c for what the kernel
takes) and nothing of platforms, targets or emulators. Sections, symbols and relocations are not
looked at.
"""

import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from maid.errors import MaidError

ET_EXEC = 2
ET_DYN = 3

# The sizes of the ELF header and of one program header, by class (gABI, figures 4-3 and 5-1).
HEADER_SIZE = {32: 52, 64: 64}
PROGRAM_HEADER_SIZE = {32: 32, 64: 56}

_PT_LOAD, _PT_DYNAMIC, _PT_INTERP, _PT_NOTE = 1, 2, 3, 4
_NT_GNU_BUILD_ID = 3
_NOTE_HEADER_SIZE = 12
_OWNER = b"GNU\0"
_PF_R_X = 0x4 | 0x1

# Linux refuses a program whose program headers take more than 64 KiB (load_elf_phdrs) or whose
# interpreter's name is longer than PATH_MAX (load_elf_binary); both in fs/binfmt_elf.c.
_PROGRAM_HEADERS_LIMIT = 65536
_INTERPRETER_LIMIT = 4096

# Bounds of our own: GNU ld's build-id takes 36 bytes, Go's and systemd's notes some hundred. More
# than this is not searched (core dumps have notes of many MiB), in one segment and in all of them
# together.
_NOTES_LIMIT = 65536
_BUILD_ID_LIMIT = 64

# The writer's layout, the same for both classes, so that machine code can name the data's address.
DATA_OFFSET = 0x80
CODE_OFFSET = 0xC0
BASE_ADDRESS = 0x400000
DATA_ADDRESS = BASE_ADDRESS + DATA_OFFSET
# The largest page that Linux uses on the machines of the catalogue: 64 KiB (arm64, ppc64, mips64,
# …).
_PAGE = 0x10000


class ElfError(MaidError):
    """The file is not an ELF file, or its headers contradict themselves or the file."""


@dataclass(frozen=True)
class Elf:
    """What `read` found.

    `bits` is 32 or 64; `little` the byte order; `osabi`, `abi_version`, `type`, `machine`, `flags`
    and `entry` are e_ident[7], e_ident[8], e_type, e_machine, e_flags and e_entry as numbers.
    `interpreter` is PT_INTERP's path (bytes outside UTF-8 as surrogates) or None, `build_id` the
    GNU build-id in lower-case hexadecimal or None, `dynamic` whether there is a PT_DYNAMIC segment.
    """

    bits: int
    little: bool
    osabi: int
    abi_version: int
    type: int
    machine: int
    flags: int
    entry: int
    interpreter: str | None
    build_id: str | None
    dynamic: bool

    @property
    def static(self) -> bool:
        """Whether it runs without a loader: a static or static-pie executable.

        A static-pie has PT_DYNAMIC for its own relocations but no PT_INTERP. A shared library has
        neither an interpreter, mostly, so this means something only for a file that is a program.
        """
        return self.interpreter is None and self.type in (ET_EXEC, ET_DYN)


def read(source: Path | int | bytes) -> Elf:
    """Read the ELF headers of a file, given as its path, an open descriptor or its bytes.

    A descriptor's offset is not moved.
    Raises ElfError when it is no ELF file or a malformed or truncated one, and OSError when the
    file cannot be opened or read. Anything but a regular file is an ElfError; a FIFO or a device is
    never waited for.
    """
    with _opened(source) as file:
        return _read(file)


@dataclass(frozen=True)
class _File:
    """Bounded reads of a descriptor or of bytes; `name` is for messages."""

    content: int | bytes
    size: int
    name: str

    def read(self, offset: int, length: int, what: str) -> bytes:
        if offset + length > self.size:
            raise ElfError(
                f"{self.name}: truncated ELF file: the {what} would end at byte {offset + length}, "
                f"the file has {self.size}"
            )
        if isinstance(self.content, bytes):
            return self.content[offset : offset + length]
        data = os.pread(self.content, length, offset)
        if len(data) < length:
            raise ElfError(f"{self.name}: the file became shorter while its {what} was read")
        return data


@contextmanager
def _opened(source: Path | int | bytes) -> Iterator[_File]:
    if isinstance(source, bytes):
        yield _File(source, len(source), "these bytes")
        return
    if isinstance(source, int):
        yield _regular(source, f"descriptor {source}")
        return
    # O_NONBLOCK: opening a FIFO must not wait for a writer. It changes nothing for regular files.
    descriptor = os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        yield _regular(descriptor, str(source))
    finally:
        os.close(descriptor)


def _regular(descriptor: int, name: str) -> _File:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise ElfError(f"{name}: not a regular file, so no ELF file")
    return _File(descriptor, status.st_size, name)


def _read(file: _File) -> Elf:
    ident = file.read(0, min(16, file.size), "identification")
    if ident[:4] != b"\x7fELF":
        raise ElfError(f"{file.name}: not an ELF file (it does not begin with 7f 45 4c 46)")
    if len(ident) < 16:
        raise ElfError(f"{file.name}: truncated ELF file: {len(ident)} bytes")
    bits = {1: 32, 2: 64}.get(ident[4])
    order = {1: "<", 2: ">"}.get(ident[5])
    if bits is None:
        raise ElfError(f"{file.name}: ELF class {ident[4]} is neither 32-bit (1) nor 64-bit (2)")
    if order is None:
        raise ElfError(
            f"{file.name}: ELF data encoding {ident[5]} is neither little (1) nor big (2)"
        )
    if ident[6] != 1:
        raise ElfError(f"{file.name}: ELF version {ident[6]} is not 1")

    header = file.read(0, HEADER_SIZE[bits], "ELF header")
    layout = order + ("HHIIIIIHHHHHH" if bits == 32 else "HHIQQQIHHHHHH")
    kind, machine, version, entry, ph_offset, _, flags, size, ph_size, ph_count, *_ = struct.unpack(
        layout, header[16:]
    )
    if version != 1:
        raise ElfError(f"{file.name}: ELF version {version} in the header is not 1")
    if size < HEADER_SIZE[bits]:
        raise ElfError(f"{file.name}: ELF header size {size} is below {HEADER_SIZE[bits]}")

    interpreter: str | None = None
    build_id: str | None = None
    dynamic = False
    notes_left = _NOTES_LIMIT
    for segment in _segments(file, bits, order, ph_offset, ph_size, ph_count):
        if segment.type == _PT_DYNAMIC:
            dynamic = True
        elif segment.type == _PT_INTERP:
            if interpreter is not None:
                raise ElfError(f"{file.name}: more than one PT_INTERP segment")
            interpreter = _interpreter(file, segment)
        elif segment.type == _PT_NOTE and build_id is None and notes_left:
            length = min(segment.size, notes_left)
            notes_left -= length
            notes = file.read(segment.offset, length, "PT_NOTE segment")
            whole = length == segment.size
            build_id, ended = _build_id(file.name, notes, order, segment, whole)
            if ended and build_id is None:
                build_id = _following_build_id(file, order, segment.offset + segment.size)
    return Elf(
        bits=bits,
        little=order == "<",
        osabi=ident[7],
        abi_version=ident[8],
        type=kind,
        machine=machine,
        flags=flags,
        entry=entry,
        interpreter=interpreter,
        build_id=build_id,
        dynamic=dynamic,
    )


@dataclass(frozen=True)
class _Segment:
    type: int
    offset: int
    size: int
    align: int


def _segments(
    file: _File, bits: int, order: str, offset: int, size: int, count: int
) -> Iterator[_Segment]:
    if count == 0:
        return
    expected = PROGRAM_HEADER_SIZE[bits]
    if size != expected:
        raise ElfError(f"{file.name}: program header size {size} is not {expected}")
    if count * size > _PROGRAM_HEADERS_LIMIT:
        raise ElfError(
            f"{file.name}: {count} program headers are more than Linux takes "
            f"({_PROGRAM_HEADERS_LIMIT // size})"
        )
    table = file.read(offset, count * size, "program header table")
    for fields in struct.iter_unpack(order + ("8I" if bits == 32 else "2I6Q"), table):
        if bits == 32:
            kind, start, _, _, length, _, _, align = fields
        else:
            kind, _, start, _, _, length, _, align = fields
        yield _Segment(kind, start, length, align)


def _interpreter(file: _File, segment: _Segment) -> str:
    if not 2 <= segment.size <= _INTERPRETER_LIMIT:
        raise ElfError(
            f"{file.name}: the interpreter's name takes {segment.size} bytes, not 2 to 4096"
        )
    data = file.read(segment.offset, segment.size, "PT_INTERP segment")
    if data[-1] != 0:
        raise ElfError(f"{file.name}: the interpreter's name does not end with a zero byte")
    name = data.partition(b"\0")[0]
    if not name:
        raise ElfError(f"{file.name}: the interpreter's name is empty")
    return os.fsdecode(name)


def _build_id(
    name: str, notes: bytes, order: str, segment: _Segment, whole: bool
) -> tuple[str | None, bool]:
    """Search one segment's notes. Returns the build-id, and whether the segment ends where a note
    does. `whole` is false where the bound cut the segment short."""
    # Notes are padded to 4 bytes, or to 8 in a segment aligned to 8 (.note.gnu.property, gABI of
    # 2018).
    align = 8 if segment.align == 8 else 4
    at = 0
    while len(notes) - at >= _NOTE_HEADER_SIZE:
        name_size, size, kind = struct.unpack_from(order + "3I", notes, at)
        data_at = at + -(-(_NOTE_HEADER_SIZE + name_size) // align) * align
        if data_at + size > len(notes):
            if whole:
                raise ElfError(f"{name}: a note runs over the end of its PT_NOTE segment")
            return None, False
        if kind == _NT_GNU_BUILD_ID and notes[at + 12 : at + 12 + name_size] == _OWNER:
            if not 1 <= size <= _BUILD_ID_LIMIT:
                raise ElfError(
                    f"{name}: the build-id takes {size} bytes, not 1 to {_BUILD_ID_LIMIT}"
                )
            return notes[data_at : data_at + size].hex(), False
        at = data_at + -(-size // align) * align
    return None, whole and at == len(notes) > 0


def _following_build_id(file: _File, order: str, at: int) -> str | None:
    """The build-id in the one note at `at`, directly behind a PT_NOTE segment's last one.

    Go's linker (cmd/link/internal/ld/elf.go) writes GNU's note behind its own, and a PT_NOTE for
    its own only. What is there need not be a note, so nothing there is an error.
    """
    start = _NOTE_HEADER_SIZE + len(_OWNER)
    length = min(start + _BUILD_ID_LIMIT, file.size - at)
    if length <= start:
        return None
    note = file.read(at, length, "note behind a PT_NOTE segment")
    name_size, size, kind = struct.unpack_from(order + "3I", note)
    if kind != _NT_GNU_BUILD_ID or name_size != len(_OWNER) or note[12:start] != _OWNER:
        return None
    return note[start : start + size].hex() if 1 <= size <= length - start else None


def minimal(
    *,
    machine: int,
    bits: int,
    little: bool,
    code: bytes,
    data: bytes = b"",
    flags: int = 0,
    osabi: int = 0,
    abi_version: int = 0,
) -> bytes:
    """Return a static executable: ELF header, one PT_LOAD (readable and executable), data and code.

    The whole file is loaded at BASE_ADDRESS; `data` (at most 64 bytes) is then at DATA_ADDRESS and
    execution starts with the first byte of `code`. The addresses are the same for both classes, so
    that machine code can contain them. `machine`, `flags`, `osabi` and `abi_version` go into the
    header as they are.

    Raises ElfError when a value does not fit its field.
    """
    if bits not in HEADER_SIZE:
        raise ElfError(f"an ELF file has 32 or 64 bits, not {bits}")
    if len(data) > CODE_OFFSET - DATA_OFFSET:
        raise ElfError(f"at most {CODE_OFFSET - DATA_OFFSET} bytes of data, not {len(data)}")
    if not code:
        raise ElfError("an executable needs code")
    order = "<" if little else ">"
    header_size, ph_size = HEADER_SIZE[bits], PROGRAM_HEADER_SIZE[bits]
    size = CODE_OFFSET + len(code)
    ident = [0x7F, *b"ELF", 1 if bits == 32 else 2, 1 if little else 2, 1, osabi, abi_version]
    try:
        header = struct.pack("9B7x", *ident) + struct.pack(
            order + ("HHIIIIIHHHHHH" if bits == 32 else "HHIQQQIHHHHHH"),
            *(ET_EXEC, machine, 1, BASE_ADDRESS + CODE_OFFSET, header_size, 0, flags),
            *(header_size, ph_size, 1, 0, 0, 0),
        )
    except struct.error as error:
        raise ElfError(f"a value does not fit its field of the ELF header: {error}") from error
    if bits == 32:
        segment = (_PT_LOAD, 0, BASE_ADDRESS, BASE_ADDRESS, size, size, _PF_R_X, _PAGE)
    else:
        segment = (_PT_LOAD, _PF_R_X, 0, BASE_ADDRESS, BASE_ADDRESS, size, size, _PAGE)
    header += struct.pack(order + ("8I" if bits == 32 else "2I6Q"), *segment)
    return header.ljust(DATA_OFFSET, b"\0") + data.ljust(CODE_OFFSET - DATA_OFFSET, b"\0") + code
