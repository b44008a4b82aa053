"""Make a native program run from the store: its loader, the loader's directories, built-in paths.

Everything is overwritten in place, never longer than what was there: nothing in the file moves, so
no table, hash or debug information has to be rewritten (patchelf, which rewrites them, broke cc1 of
two gcc versions: facts/acceleration.md). Where a longer text is needed, `repoint` changes the
relocation of a pointer instead of the text.

Knows ELF (System V gABI) and what glibc's loader has compiled in; which files there are to change
is store-making's (sets.py) and the tables'.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from maid.acceleration.model import Machine, Patch, Place
from maid.acceleration.records import MOUNT
from maid.errors import MaidError

LOADERS = {
    "amd64": b"/lib64/ld-linux-x86-64.so.2",
    "arm64": b"/lib/ld-linux-aarch64.so.1",
}
"""PT_INTERP of the hosts that maid runs on (psABI supplements of x86-64 and AArch64)."""

NAME_LENGTH = 5
"""Characters of a set's name: "/etc/ld.so.preload", the shortest text of glibc's loader that has to
name something in a set, must have room for "/dev/.maid/<name>/p"."""

# A path in the store that is never there.
_NOTHING = f"{MOUNT}/none".encode()

LOADER = "ld.so"
LIBRARIES = "lib"

_PT_LOAD, _PT_DYNAMIC, _PT_INTERP = 1, 2, 3
_DT_NEEDED, _DT_STRTAB, _DT_STRSZ, _DT_RPATH, _DT_RUNPATH = 1, 5, 10, 15, 29
_DT_RELA, _DT_RELASZ = 7, 8
# DT_LOOS, which nobody has given a meaning: glibc passes it over.
_DT_IGNORED = 0x6000000D
_RELATIVE = {62: 8, 183: 1027}  # R_X86_64_RELATIVE, R_AARCH64_RELATIVE
_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_PROGRAM_HEADER = struct.Struct("<IIQQQQQQ")
_DYNAMIC = struct.Struct("<qQ")
_RELA = struct.Struct("<QQq")


class RelocationError(MaidError):
    """A native file is not what the change expects, so it cannot stand in."""


@dataclass(frozen=True)
class Segment:
    """One program header."""

    type: int
    flags: int
    offset: int
    vaddr: int
    filesz: int
    memsz: int


class Image:
    """A native ELF file as its headers describe it: 64-bit little-endian, dynamic or static.

    Raises RelocationError when `data` is something else or contradicts itself.
    """

    def __init__(self, data: bytes) -> None:
        if len(data) < _HEADER.size or not data.startswith(b"\x7fELF\x02\x01"):
            raise RelocationError("it is not a 64-bit little-endian ELF file")
        fields = _HEADER.unpack_from(data)
        self.data = data
        self.type, self.machine = fields[1], fields[2]
        table, size, count = fields[5], fields[9], fields[10]
        if size != _PROGRAM_HEADER.size or table + size * count > len(data):
            raise RelocationError("its program headers are damaged")
        self.segments = [
            Segment(each[0], each[1], each[2], each[3], each[5], each[6])
            for each in _PROGRAM_HEADER.iter_unpack(data[table : table + size * count])
        ]
        self.dynamic = self._dynamic()

    def segment(self, kind: int) -> Segment | None:
        """The first program header of that kind (PT_…)."""
        return next((each for each in self.segments if each.type == kind), None)

    def offset(self, address: int) -> int:
        """Where in the file the byte at `address` is. Raises RelocationError when nowhere."""
        for each in self.segments:
            if each.type == _PT_LOAD and each.vaddr <= address < each.vaddr + each.filesz:
                return each.offset + address - each.vaddr
        raise RelocationError(f"nothing of the file is loaded at {address:#x}")

    def address(self, offset: int) -> int:
        """The address of the byte at `offset`. Raises RelocationError when it is not loaded."""
        for each in self.segments:
            if each.type == _PT_LOAD and each.offset <= offset < each.offset + each.filesz:
                return each.vaddr + offset - each.offset
        raise RelocationError(f"offset {offset:#x} of the file is not loaded")

    def text(self, offset: int) -> bytes:
        """The string that begins at `offset`."""
        end = self.data.find(b"\0", offset)
        if end < 0:
            raise RelocationError("a string has no end")
        return self.data[offset:end]

    @property
    def interpreter(self) -> bytes:
        """PT_INTERP, b"" for what has none."""
        segment = self.segment(_PT_INTERP)
        return self.text(segment.offset) if segment else b""

    @property
    def needed(self) -> list[str]:
        """The libraries it names, in order."""
        return [self._string(value).decode() for tag, value in self.dynamic if tag == _DT_NEEDED]

    @property
    def search_paths(self) -> list[str]:
        """Its own RPATH and RUNPATH."""
        tags = (_DT_RPATH, _DT_RUNPATH)
        return [self._string(value).decode() for tag, value in self.dynamic if tag in tags]

    def relocations(self) -> Iterator[tuple[int, int, int, int]]:
        """DT_RELA's entries: offset in the file of the entry, address, info, addend."""
        values = dict(self.dynamic)
        if _DT_RELA not in values:
            return
        start, size = self.offset(values[_DT_RELA]), values.get(_DT_RELASZ, 0)
        for at in range(start, min(start + size, len(self.data) - _RELA.size + 1), _RELA.size):
            address, info, addend = _RELA.unpack_from(self.data, at)
            yield at, address, info, addend

    def _string(self, index: int) -> bytes:
        values = dict(self.dynamic)
        if _DT_STRTAB not in values:
            raise RelocationError("it has no dynamic string table")
        return self.text(self.offset(values[_DT_STRTAB]) + index)

    def _dynamic(self) -> list[tuple[int, int]]:
        segment = self.segment(_PT_DYNAMIC)
        if segment is None:
            return []
        data = self.data[segment.offset : segment.offset + segment.filesz]
        entries: list[tuple[int, int]] = []
        for tag, value in _DYNAMIC.iter_unpack(data[: len(data) // 16 * 16]):
            if tag == 0:
                break
            entries.append((tag, value))
        return entries


def library(data: bytes) -> bytes:
    """A library, or a program, without library directories of its own (RPATH and RUNPATH): what it
    needs is in the set."""
    image = Image(data)
    segment = image.segment(_PT_DYNAMIC)
    changed = bytearray(data)
    for index, (tag, _) in enumerate(image.dynamic):
        if segment is not None and tag in (_DT_RPATH, _DT_RUNPATH):
            struct.pack_into("<q", changed, segment.offset + index * _DYNAMIC.size, _DT_IGNORED)
    return bytes(changed)


def program(data: bytes, native: Machine, loader: str) -> bytes:
    """A program that is started by `loader` (a path) instead of the system's.

    A static program stays as it is. Raises RelocationError when its loader is another one.
    """
    image = Image(data)
    if image.machine != native.elf:
        raise RelocationError(f"it is a program for ELF machine {image.machine}")
    if not image.interpreter:
        if image.segment(_PT_DYNAMIC) is not None and image.needed:
            raise RelocationError("it has libraries but no loader")
        return data
    usual = LOADERS[native.debian]
    if image.interpreter != usual:
        raise RelocationError(f"its loader is {image.interpreter.decode(errors='replace')}")
    segment = image.segment(_PT_INTERP)
    assert segment is not None
    return library(_over(data, segment.offset, usual + b"\0", loader.encode() + b"\0"))


def loader(data: bytes, place: Place, preload: str = "") -> bytes:
    """glibc's loader, with the set's directory for the system's.

    `preload` is the path of a file that names libraries to load first, in the place of
    /etc/ld.so.preload; "" for none. Raises RelocationError when the loader is not as expected.
    """
    directory = f"{place.mount}/{LIBRARIES}/".encode()
    for system in (f"/usr/lib/{place.native.gnu}/", f"/lib/{place.native.gnu}/"):
        if system.encode() not in data:
            raise RelocationError(f"the loader does not name {system}")
    # The shorter one ends the longer one: one pattern finds each once.
    pattern = rb"(?:/usr)?/lib/%s/" % re.escape(place.native.gnu.encode())

    def replaced(match: re.Match[bytes]) -> bytes:
        room = len(match.group())
        if len(directory) > room:
            raise RelocationError(f"{directory.decode()} does not fit in {room} bytes")
        return directory + b"/" * (room - len(directory))

    data = re.sub(pattern, replaced, data)
    data = overwrite(data, b"/etc/ld.so.cache", _NOTHING)
    return overwrite(data, b"/etc/ld.so.preload", preload.encode() or _NOTHING)


def overwrite(data: bytes, old: bytes, new: bytes) -> bytes:
    """Replace the string `old`, which stands alone between zero bytes, everywhere by `new`.

    Raises RelocationError when `new` is longer or `old` is not there.
    """
    if len(new) > len(old):
        raise RelocationError(f"{new.decode()} does not fit in the place of {old.decode()}")
    pattern = rb"(?<=\0)%s(?=\0)" % re.escape(old)
    changed, count = re.subn(pattern, lambda _: new.ljust(len(old), b"\0"), data)
    if not count:
        raise RelocationError(f"it does not hold the text {old.decode(errors='replace')!r}")
    return changed


def text(old: str, new: str) -> Patch:
    """A patch: `overwrite` with the fields of both filled in."""

    def patch(data: bytes, place: Place) -> bytes:
        return overwrite(data, place.fill(old).encode(), place.fill(new).encode())

    return patch


def repoint(data: bytes, old: bytes, new: bytes) -> bytes:
    """Make each pointer to the string `old` in initialized data point to the string `new`.

    Both must stand in the file already. Raises RelocationError when one does not, or when nothing
    points to `old`.
    """
    image = Image(data)
    source, target = _address_of(image, old), _address_of(image, new)
    relative = _RELATIVE.get(image.machine)
    changed = bytearray(data)
    count = 0
    for at, address, info, addend in image.relocations():
        if info & 0xFFFFFFFF == relative and addend == source:
            _RELA.pack_into(changed, at, address, info, target)
            count += 1
    if not count:
        raise RelocationError(f"nothing points to {old.decode(errors='replace')!r}")
    return bytes(changed)


def _address_of(image: Image, string: bytes) -> int:
    at = image.data.find(b"\0" + string + b"\0")
    if at < 0:
        raise RelocationError(f"it does not hold the text {string.decode(errors='replace')!r}")
    return image.address(at + 1)


def _over(data: bytes, at: int, old: bytes, new: bytes) -> bytes:
    if len(new) > len(old) or data[at : at + len(old)] != old:
        raise RelocationError(f"there is no room for {new.decode(errors='replace')}")
    return data[:at] + new.ljust(len(old), b"\0") + data[at + len(old) :]
