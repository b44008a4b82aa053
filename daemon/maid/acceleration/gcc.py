"""Make the programs of a GCC cross compiler answer as the foreign machine's own GCC does.

Debian's cross compilers are built from the source of the native ones, for another host: the same
passes, the same machine description. What differs is compiled-in: directories (gcc-cross for gcc,
/usr/<triplet>/include), the cross compiler's system root, and the names under which it looks for
the assembler and linker. These are texts, tables and constants, which are changed here; each change
insists on finding exactly what it expects. Afterwards `same_directories` compares the directories
with those of the foreign program. What cannot be changed so is left to the rules (compilers.py).

For x86-64 and programs at fixed addresses, as GCC's own are built (without --enable-host-pie).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from maid.acceleration.model import Place
from maid.acceleration.relocate import Image, RelocationError, overwrite

_FIXED, _PT_LOAD, _PF_X, _PF_W = 2, 1, 1, 2  # ET_EXEC and program headers (System V gABI)
_POINTER = struct.Struct("<Q")
_ENTRY = struct.Struct("<QQ8s")
_MOV_EDI, _MOV_ESI = b"\xbf", b"\xbe"  # mov $imm32, %edi and %esi (Intel SDM 2, MOV)
_CALL_WINDOW = 32
"""Bytes around the first argument of a call in which its second one is loaded."""


@dataclass(frozen=True)
class Directory:
    """An entry of GCC's cpp_include_defaults (gcc/cppdefault.h): the directory, the component that
    an environment variable may move it with, and the flags C++, C++-aware, under the system root,
    multilib, as they stand in memory."""

    name: bytes
    component: bytes
    flags: bytes


def respelled(data: bytes, place: Place) -> bytes:
    """A patch: the directories of the native compiler for those of the cross compiler, wherever
    they stand as texts; nothing else may name the cross compiler's but one constant.

    That one is the driver's, for /usr/lib/gcc-cross/<triplet>/specs: the rules make the driver step
    aside where that file or its native counterpart exists.
    """
    for directory in (b"/usr/libexec/gcc-cross/", b"/usr/lib/gcc-cross/", b"gcc-cross"):
        pattern = rb"(?<=\0)%s[^\0]*(?=\0)" % re.escape(directory)
        for text in set(re.findall(pattern, data)):
            data = overwrite(data, text, text.replace(b"gcc-cross", b"gcc"))
    if data.replace(b"/usr/lib/gcc-cro", b"", 1).count(b"gcc-cross"):
        raise RelocationError("it names the cross compiler's directories in an unexpected place")
    return data


def include_directories(data: bytes, place: Place) -> bytes:
    """A patch for cc1 and its like: the table of include directories as the native compiler has it.

    The cross compiler's has fewer entries, so some are left out (_left_out). Of what it finds in
    the C++ headers' directories GCC names the shortest path (-fcanonical-system-headers), which is
    the native one's spelling.
    """
    image = _fixed(data)
    start, old = _table(image)
    slots = {directory.name: _pointers(image, start, i)[0] for i, directory in enumerate(old)}
    components = {d.component: _pointers(image, start, i)[1] for i, d in enumerate(old)}
    new = _native_directories(old, place)
    if len(new) > len(old):
        raise RelocationError(f"it has {len(old)} include directories, {len(new)} are needed")
    changed = bytearray(data)
    for i, (directory, slot) in enumerate(new):
        at = image.offset(slots[slot])
        if len(directory.name) > len(slot):
            raise RelocationError(f"{directory.name!r} does not fit in the place of {slot!r}")
        changed[at : at + len(slot)] = directory.name.ljust(len(slot), b"\0")
        _ENTRY.pack_into(
            changed,
            image.offset(start) + i * _ENTRY.size,
            slots[slot],
            components[directory.component],
            directory.flags,
        )
    end = image.offset(start) + len(new) * _ENTRY.size
    changed[end : end + _ENTRY.size] = bytes(_ENTRY.size)
    return respelled(bytes(changed), place)


def _native_directories(old: list[Directory], place: Place) -> list[tuple[Directory, bytes]]:
    """The native compiler's table, and for each entry the text of the cross compiler's whose place
    it takes. (gcc/cppdefault.cc with Debian's configuration: no fixed headers, multiarch.)"""
    version = old[0].name.rpartition(b"/")[2]
    gnu = place.foreign.gnu.encode()
    cross = b"/usr/lib/gcc-cross/%s/%s" % (gnu, version)
    tool = cross + b"/../../../../" + gnu + b"/include"
    plus = cross.replace(b"gcc-cross", b"gcc") + b"/../../../../include"
    standard, multiarch = plus + b"/c++/" + version, plus + b"/" + gnu + b"/c++/" + version
    local, system = b"/usr/local/include", b"/usr/include"

    def entry(name: bytes, slot: bytes, component: bytes, *flags: int) -> tuple[Directory, bytes]:
        return Directory(name, component, bytes(flags).ljust(8, b"\0")), slot

    plain = [
        entry(standard, tool + b"/c++/" + version, b"G++", 1, 1, 0, 0),
        entry(multiarch, tool + b"/c++/" + version + b"/" + gnu, b"G++", 1, 1, 0, 1),
        entry(standard + b"/backward", tool + b"/c++/" + version + b"/backward", b"G++", 1, 1),
        entry(plus + b"/c++/v1", tool + b"/c++/v1", b"G++", 2, 1),
    ]
    for name, component, flags in (
        (cross + b"/include", b"GCC", (0, 0, 0, 0)),
        (local, b"", (0, 1, 1, 2)),
        (local, b"", (0, 1, 1, 0)),
        (tool, b"BINUTILS", (0, 1, 0, 0)),
        (system, b"", (0, 0, 1, 2)),
        (system, b"", (0, 0, 1, 0)),
    ):
        plain.append(entry(name.replace(b"gcc-cross", b"gcc"), name, component, *flags))
    known = {directory.name for directory in old}
    for _, slot in plain:
        if slot not in known:
            raise RelocationError(f"{slot.decode()} is not among its include directories")
    return plain


def _left_out(directory: Directory) -> bool:
    """Which of the native compiler's directories there is no room for: include-fixed (Debian's
    packages have none; the rules make the compiler step aside where there is one), and the C++
    headers' directory for the multiarch name, which Debian's GCC makes the same as another entry
    ("ignoring duplicate directory")."""
    name, flags = directory.name, directory.flags
    return name.endswith(b"/include-fixed") or (
        directory.component == b"G++" and flags[:4] == bytes((1, 1, 0, 2))
    )


def same_directories(native: bytes, foreign: bytes, place: Place) -> None:
    """Whether the changed compiler looks for headers where the foreign one does: the same table but
    for include-fixed. Raises RelocationError with the first difference."""
    ours = _table(_fixed(native))[1]
    theirs = [d for d in _table(_fixed(foreign))[1] if not _left_out(d)]
    if ours != theirs:
        odd = next((d for d in theirs if d not in ours), None) or next(iter(ours), None)
        raise RelocationError(f"its include directories are not the foreign ones: {odd}")


def driver(data: bytes, place: Place) -> bytes:
    """A patch for the drivers (gcc, g++, cpp, gfortran): no cross compiler, no system root.

    gcc/gcc.cc: `cross_compile` is a pointer to "1" or "0", which specs may change by that name, so
    it stands in memory; `target_system_root` is a pointer, NULL without --with-sysroot, and follows
    it closely.
    """
    image = _fixed(data)
    cross = _variable(image, b"cross_compile")
    root = cross + 2 * _POINTER.size
    if _text_at(image, _pointer(image, cross)) != b"1":
        raise RelocationError("it is not a driver of a cross compiler")
    if _text_at(image, _pointer(image, root)) != b"/":
        raise RelocationError("its system root is not where it is expected")
    changed = bytearray(data)
    _POINTER.pack_into(changed, image.offset(cross), _address(image, b"0"))
    _POINTER.pack_into(changed, image.offset(root), 0)
    return respelled(bytes(changed), place)


def same_specs(native: bytes, foreign: bytes, place: Place) -> None:
    """Whether the changed driver has the foreign one's directories and is as little of a cross
    compiler as that one. Raises RelocationError."""
    for image in (_fixed(native), _fixed(foreign)):
        if _text_at(image, _pointer(image, _variable(image, b"cross_compile"))) != b"0":
            raise RelocationError("it is a cross compiler")
    for directory in (b"/usr/libexec/gcc/", b"/usr/lib/gcc/", b"/usr/bin/"):
        text = b"\0" + directory + b"\0"
        if (text in native) != (text in foreign):
            raise RelocationError(f"{directory.decode()} is not a directory of both")


def unprefixed(data: bytes, place: Place) -> bytes:
    """A patch for collect2 and gcc-ar: look for ld, not for <triplet>-ld.

    Both make the name with concat (<triplet>, "-", "ld", NULL), four and more times (collect2.cc,
    gcc-ar.cc under CROSS_DIRECTORY_STRUCTURE). The first argument becomes "", the second is made to
    point behind its hyphen.
    """
    image = _fixed(data)
    triplet = _address(image, place.foreign.gnu.encode())
    changed = bytearray(data)
    calls = 0
    for at in _immediates(image, _MOV_EDI, triplet):
        second = _second_argument(image, at)
        if second is None:
            continue  # a directory: concat (<prefix>, <triplet>, …) in gcc-ar
        (address,) = struct.unpack_from("<I", data, second)
        length = len(_text_at(image, address))
        struct.pack_into("<I", changed, at + 1, address + length)
        struct.pack_into("<I", changed, second, address + 1)
        calls += 1
    if not calls:
        raise RelocationError("it puts the machine's name before no other name")
    return bytes(changed)


def _second_argument(image: Image, first: int) -> int | None:
    """Where, nearest to the load of the first argument at `first`, the address of a text that
    begins with a hyphen is loaded as the second one: the offset of that address."""
    found = [
        (abs(at - first), at + 1)
        for at in range(first - _CALL_WINDOW, first + _CALL_WINDOW)
        if image.data[at : at + 1] == _MOV_ESI and _begins_with_hyphen(image, at + 1)
    ]
    return min(found)[1] if found else None


def knows_no_path(native: bytes, foreign: bytes, place: Place) -> None:
    """Whether neither program asks for its own path, which is another one natively (Debian's ld
    does since binutils 2.47, for its messages). Raises RelocationError."""
    if b"/proc/self/exe" in native or b"/proc/self/exe" in foreign:
        raise RelocationError("it knows itself by /proc/self/exe")


def _begins_with_hyphen(image: Image, at: int) -> bool:
    (address,) = struct.unpack_from("<I", image.data, at)
    try:
        return image.text(image.offset(address)).startswith(b"-")
    except RelocationError:
        return False


def _immediates(image: Image, opcode: bytes, value: int) -> Iterator[int]:
    """Offsets of the instructions that load a 32-bit constant."""
    wanted = opcode + struct.pack("<I", value)
    for segment in image.segments:
        if segment.type == _PT_LOAD and segment.flags & _PF_X:
            end = segment.offset + segment.filesz
            at = image.data.find(wanted, segment.offset, end)
            while at >= 0:
                yield at
                at = image.data.find(wanted, at + 1, end)


def _fixed(data: bytes) -> Image:
    image = Image(data)
    if image.type != _FIXED:
        raise RelocationError("it is position-independent, which GCC's own programs are not")
    return image


def _table(image: Image) -> tuple[int, list[Directory]]:
    """Address and entries of cpp_include_defaults: the first entry is the C++ headers'."""
    match = re.search(rb"(?<=\0)/usr/lib/gcc(?:-cross)?/[^\0]*/include/c\+\+/\d+(?=\0)", image.data)
    if match is None:
        raise RelocationError("it has no directory of C++ headers")
    starts = _pointers_to(image, image.address(match.start()))
    if not starts:
        raise RelocationError("it has no table of include directories")
    entries: list[Directory] = []
    while _pointer(image, starts[0] + len(entries) * _ENTRY.size):
        at = starts[0] + len(entries) * _ENTRY.size
        name, component = _pointers(image, starts[0], len(entries))
        flags = image.data[image.offset(at) + 16 : image.offset(at) + 24]
        entries.append(
            Directory(
                _text_at(image, name), _text_at(image, component) if component else b"", flags
            )
        )
    return starts[0], entries


def _pointers(image: Image, start: int, index: int) -> tuple[int, int]:
    """Name and component of an entry of the table, as addresses."""
    at = start + index * _ENTRY.size
    return _pointer(image, at), _pointer(image, at + _POINTER.size)


def _pointers_to(image: Image, address: int) -> list[int]:
    """Addresses of the pointers to `address` in initialized data, in order."""
    found = []
    wanted = _POINTER.pack(address)
    at = image.data.find(wanted)
    while at >= 0:
        if at % _POINTER.size == 0:
            found.append(image.address(at))
        at = image.data.find(wanted, at + 1)
    return found


def _variable(image: Image, name: bytes) -> int:
    """The address of the string variable that the driver's table of specs lists under `name`:
    {name, its length's place, the variable} (gcc/gcc.cc, static_specs)."""
    for entry in _pointers_to(image, _address(image, name)):
        variable = _pointer(image, entry + 2 * _POINTER.size)
        for segment in image.segments:
            if (
                segment.type == _PT_LOAD
                and segment.flags & _PF_W
                and segment.vaddr <= variable < segment.vaddr + segment.filesz
            ):
                return variable
    raise RelocationError(f"it has no spec {name.decode()}")


def _address(image: Image, text: bytes) -> int:
    """Where the string `text` stands, by itself or as the end of another. The first one."""
    at = image.data.find(text + b"\0")
    while at >= 0:
        try:
            if text == b"0" or image.data[at - 1] == 0:
                return image.address(at)
        except RelocationError:
            pass
        at = image.data.find(text + b"\0", at + 1)
    raise RelocationError(f"it does not hold the text {text.decode()!r}")


def _pointer(image: Image, address: int) -> int:
    value: int = _POINTER.unpack_from(image.data, image.offset(address))[0]
    return value


def _text_at(image: Image, address: int) -> bytes:
    return image.text(image.offset(address))
