"""What elf.read promises: the facts of a good file, ElfError for any other, few bytes read."""

import os
import struct
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maid import elf
from maid.elf import ElfError

LAYOUTS = [(32, True), (32, False), (64, True), (64, False)]
PT_DYNAMIC, PT_INTERP, PT_NOTE = 2, 3, 4


@dataclass
class Segment:
    """A segment for `build`; `size` and `offset` override the truth."""

    type: int
    content: bytes
    align: int = 4
    size: int | None = None
    offset: int | None = None


def build(
    bits: int,
    little: bool,
    *segments: Segment,
    machine: int = 62,
    ident: bytes = b"\x7fELF",
    version: int = 1,
    ehsize: int | None = None,
    phentsize: int | None = None,
    phnum: int | None = None,
    phoff: int | None = None,
) -> bytes:
    """A file made field by field, independent of elf.minimal."""
    order = "<" if little else ">"
    size, ph_size = (52, 32) if bits == 32 else (64, 56)
    head = ident + bytes([1 if bits == 32 else 2, 1 if little else 2, 1, 3, 7]) + bytes(7)
    head += struct.pack(
        order + ("HHIIIIIHHHHHH" if bits == 32 else "HHIQQQIHHHHHH"),
        *(3, machine, version, 0x1234, size if phoff is None else phoff, 0, 0xABCD),
        size if ehsize is None else ehsize,
        ph_size if phentsize is None else phentsize,
        len(segments) if phnum is None else phnum,
        *(0, 0, 0),
    )
    at = size + ph_size * len(segments)
    table, contents = b"", b""
    for segment in segments:
        offset = at + len(contents) if segment.offset is None else segment.offset
        length = len(segment.content) if segment.size is None else segment.size
        if bits == 32:
            fields = (segment.type, offset, 0, 0, length, length, 4, segment.align)
            table += struct.pack(order + "8I", *fields)
        else:
            fields = (segment.type, 4, offset, 0, 0, length, length, segment.align)
            table += struct.pack(order + "2I6Q", *fields)
        contents += segment.content
    return head + table + contents


def note(little: bool, kind: int, name: bytes, content: bytes, align: int = 4) -> bytes:
    def padded(data: bytes) -> bytes:
        return data + bytes(-len(data) % align)

    header = struct.pack(("<" if little else ">") + "3I", len(name), len(content), kind)
    return padded(header + name) + padded(content)


BUILD_ID = bytes(range(20))


@pytest.mark.parametrize(("bits", "little"), LAYOUTS)
def test_all_facts_of_a_dynamic_program_are_read(bits: int, little: bool) -> None:
    data = build(
        bits,
        little,
        Segment(PT_INTERP, b"/lib/ld-musl.so.1\0"),
        Segment(PT_DYNAMIC, bytes(16)),
        Segment(
            PT_NOTE, note(little, 1, b"GNU\0", bytes(16)) + note(little, 3, b"GNU\0", BUILD_ID)
        ),
        machine=183,
    )
    assert elf.read(data) == elf.Elf(
        bits=bits,
        little=little,
        osabi=3,
        abi_version=7,
        type=3,
        machine=183,
        flags=0xABCD,
        entry=0x1234,
        interpreter="/lib/ld-musl.so.1",
        build_id=BUILD_ID.hex(),
        dynamic=True,
    )
    assert not elf.read(data).static


@pytest.mark.parametrize(("bits", "little"), LAYOUTS)
def test_a_note_segment_aligned_to_8_is_padded_to_8(bits: int, little: bool) -> None:
    notes = note(little, 5, b"GNU\0", bytes(13), 8) + note(little, 3, b"GNU\0", BUILD_ID, 8)
    assert (
        elf.read(build(bits, little, Segment(PT_NOTE, notes, align=8))).build_id == BUILD_ID.hex()
    )


def test_only_gnus_build_id_counts() -> None:
    notes = note(True, 3, b"Go\0\0", b"x" * 20) + note(True, 4, b"GNU\0", b"y" * 20)
    assert elf.read(build(64, True, Segment(PT_NOTE, notes))).build_id is None


@pytest.mark.parametrize(("bits", "little"), LAYOUTS)
def test_a_build_id_directly_behind_the_notes_counts_as_go_programs_have_it(
    bits: int, little: bool
) -> None:
    go = Segment(PT_NOTE, note(little, 4, b"Go\0\0", b"x" * 83))
    own = note(little, 3, b"GNU\0", BUILD_ID)
    other = note(little, 3, b"GNU\0", b"other")

    def found(*segments: Segment) -> str | None:
        return elf.read(build(bits, little, *segments)).build_id

    assert found(go, Segment(1, own + other)) == BUILD_ID.hex()
    assert found(go, Segment(1, bytes(4) + own)) is None
    assert found(go, Segment(1, go.content + own)) is None
    assert found(go, Segment(1, own[:-1])) is None
    assert found(go, Segment(1, note(little, 3, b"GNU\0", bytes(65)))) is None
    assert found(go, Segment(1, note(little, 3, b"GNU\0", b""))) is None
    assert found(go, Segment(PT_NOTE, own), Segment(1, other)) == BUILD_ID.hex()
    assert found(Segment(PT_NOTE, b""), Segment(1, own)) is None


@pytest.mark.parametrize(("bits", "little"), LAYOUTS)
def test_what_minimal_writes_reads_back(bits: int, little: bool) -> None:
    data = elf.minimal(
        machine=258,
        bits=bits,
        little=little,
        code=b"code",
        data=b"hello",
        flags=0x43,
        abi_version=5,
    )
    found = elf.read(data)
    assert (found.bits, found.little, found.machine, found.flags) == (bits, little, 258, 0x43)
    assert (found.type, found.abi_version, found.interpreter) == (elf.ET_EXEC, 5, None)
    assert found.static and not found.dynamic and found.build_id is None
    assert data[elf.DATA_OFFSET :].startswith(b"hello\0")
    assert data[found.entry - elf.BASE_ADDRESS :] == b"code"


@pytest.mark.parametrize(
    "wrong",
    [
        {"code": b""},
        {"data": bytes(65)},
        {"bits": 16},
        {"machine": 1 << 16},
        {"flags": -1},
        {"abi_version": 256},
    ],
)
def test_minimal_refuses_what_does_not_fit(wrong: dict[str, object]) -> None:
    right = {"machine": 62, "bits": 64, "little": True, "code": b"x"}
    with pytest.raises(ElfError):
        elf.minimal(**{**right, **wrong})  # type: ignore[arg-type]


def test_path_descriptor_and_bytes_give_the_same(tmp_path: Path) -> None:
    path = tmp_path / "program"
    path.write_bytes(build(64, True, Segment(PT_INTERP, b"/ld\0")))
    with path.open("rb") as file:
        file.seek(5)
        found = elf.read(file.fileno())
        assert file.tell() == 5, "the caller's offset must stay"
    assert found == elf.read(path) == elf.read(path.read_bytes())


def test_a_real_program_is_read() -> None:
    found = elf.read(Path(sys.executable).resolve())
    assert found.bits == sys.maxsize.bit_length() + 1
    assert found.little == (sys.byteorder == "little")
    assert found.entry > 0


def test_a_large_file_is_not_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(build(64, True, Segment(PT_INTERP, b"/ld\0")))
    os.truncate(path, 200 << 20)
    before = _bytes_read()
    assert elf.read(path).interpreter == "/ld"
    assert _bytes_read() - before < 16384


def _bytes_read() -> int:
    fields = Path("/proc/self/io").read_text().split()
    return int(fields[fields.index("rchar:") + 1])


MALFORMED = {
    "empty": b"",
    "a script": b"#!/bin/sh\n",
    "only the magic": b"\x7fELF",
    "15 bytes": build(64, True)[:15],
    "class 0": b"\x7fELF\x00\x01\x01" + bytes(60),
    "class 3": b"\x7fELF\x03\x01\x01" + bytes(60),
    "data encoding 0": b"\x7fELF\x02\x00\x01" + bytes(60),
    "ident version 0": b"\x7fELF\x02\x01\x00" + bytes(60),
    "header version 2": build(64, True, version=2),
    "header cut short": build(64, True)[:63],
    "header size too small": build(64, True, ehsize=40),
    "program header size of the other class": build(64, True, phnum=1, phentsize=32) + bytes(64),
    "program headers past the end": build(32, False, phnum=1),
    "program headers at a huge offset": build(64, True, phnum=1, phoff=(1 << 64) - 8),
    "65535 program headers": build(64, True, phnum=0xFFFF) + bytes(56 * 0xFFFF),
    "interpreter past the end": build(64, True, Segment(PT_INTERP, b"/ld\0", size=99)),
    "interpreter at a huge offset": build(64, True, Segment(PT_INTERP, b"/ld\0", offset=1 << 63)),
    "interpreter without its zero byte": build(64, True, Segment(PT_INTERP, b"/ld")),
    "interpreter empty": build(64, True, Segment(PT_INTERP, b"\0\0")),
    "interpreter of one byte": build(64, True, Segment(PT_INTERP, b"\0")),
    "interpreter longer than PATH_MAX": build(64, True, Segment(PT_INTERP, b"/" * 4096 + b"\0")),
    "two interpreters": build(64, True, Segment(PT_INTERP, b"/a\0"), Segment(PT_INTERP, b"/b\0")),
    "notes past the end": build(64, True, Segment(PT_NOTE, b"", size=64)),
    "note longer than its segment": build(
        64, True, Segment(PT_NOTE, struct.pack("<3I4s", 4, 20, 3, b"GNU\0"))
    ),
    "note with a huge name": build(
        64, True, Segment(PT_NOTE, struct.pack("<3I", 0xFFFFFFFF, 0, 3))
    ),
    "empty build-id": build(64, True, Segment(PT_NOTE, note(True, 3, b"GNU\0", b""))),
    "build-id of 65 bytes": build(64, True, Segment(PT_NOTE, note(True, 3, b"GNU\0", bytes(65)))),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_is_an_error_from_bytes_and_from_a_file(name: str, tmp_path: Path) -> None:
    with pytest.raises(ElfError):
        elf.read(MALFORMED[name])
    path = tmp_path / "file"
    path.write_bytes(MALFORMED[name])
    with pytest.raises(ElfError, match=str(path)):
        elf.read(path)


def test_every_truncation_of_a_file_is_an_error() -> None:
    data = build(
        64, True, Segment(PT_INTERP, b"/ld\0"), Segment(PT_NOTE, note(True, 3, b"GNU\0", BUILD_ID))
    )
    for length in range(len(data)):
        with pytest.raises(ElfError):
            elf.read(data[:length])


def test_notes_beyond_the_bound_are_not_searched() -> None:
    filler = note(True, 1, b"GNU\0", bytes(65536))
    data = build(64, True, Segment(PT_NOTE, filler + note(True, 3, b"GNU\0", BUILD_ID)))
    assert elf.read(data).build_id is None


def test_no_regular_file_is_an_error_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, tmp_path / "fifo", Path("/dev/zero")):
        with pytest.raises(ElfError, match="not a regular file"):
            elf.read(path)


def test_a_missing_file_is_an_oserror(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        elf.read(tmp_path / "missing")


WELL_FORMED = [
    build(
        bits,
        little,
        Segment(PT_INTERP, b"/lib/ld.so\0"),
        Segment(PT_NOTE, note(little, 3, b"GNU\0", BUILD_ID)),
    )
    for bits, little in LAYOUTS
]


@given(
    st.sampled_from(WELL_FORMED),
    st.lists(st.tuples(st.integers(4, 400), st.integers(0, 255)), min_size=1, max_size=8),
)
def test_changed_bytes_give_an_answer_or_an_elf_error(
    data: bytes, changes: list[tuple[int, int]]
) -> None:
    changed = bytearray(data)
    for position, value in changes:
        changed[position % len(changed)] = value
    _answers(bytes(changed))


@given(st.binary(max_size=400))
def test_any_bytes_give_an_answer_or_an_elf_error(data: bytes) -> None:
    _answers(b"\x7fELF" + data)
    _answers(data)


def _answers(data: bytes) -> None:
    try:
        found = elf.read(data)
    except ElfError as error:
        assert error.message
    else:
        assert found.bits in (32, 64)
        assert data.startswith(b"\x7fELF")
