"""Make a set: relocate the native programs of what was selected, with all they need.

A tool is taken when every change to its native program succeeds; what is not taken is recorded with
the reason. The foreign program's build-id is read from the archive's own package, never from a root
file system that somebody only wants accelerated, so that no root file system can have its programs
replaced in others.

Nothing here is visible to anybody until store.py publishes the directory.
"""

from __future__ import annotations

import hashlib
import os
import stat
import string
from collections.abc import Iterable, Mapping
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path

from maid import elf, native
from maid.acceleration import records, relocate
from maid.acceleration.model import Extra, Place, Tool
from maid.acceleration.records import Rule
from maid.acceleration.relocate import Image, RelocationError
from maid.acceleration.selecting import Pair, Selection
from maid.acceleration.sets import Entry, Left
from maid.errors import MaidError

MODULE = ".so"
"""Ends the path of what is not executed but loaded by a program."""

_LIBRARY_DIRECTORIES = ("/usr/lib/{native}", "/lib/{native}", "/usr/lib")


class Maker:
    """Fills the directory of a set from two unpacked roots, for what was selected."""

    def __init__(self, place: Place, natives: Path, foreigns: Path, selection: Selection) -> None:
        self.place = place
        self.entries: list[Entry] = []
        self.left: list[Left] = []
        self._natives = natives
        self._foreigns = foreigns
        patches = [each for pair in selection.pairs for each in pair.tool.libraries]
        self._patches = tuple(dict.fromkeys(patches))
        self._libraries: set[str] = set()
        self._loaders: dict[str, str] = {}

    def add(self, pair: Pair) -> None:
        """Take a tool, or record why it stays emulated."""
        for tool in self._each(pair.tool):
            try:
                self.entries.append(self._entry(replace(pair, tool=tool)))
            except (RelocationError, elf.ElfError, records.RecordError, OSError) as error:
                reason = error.message if isinstance(error, MaidError) else str(error)
                self.left.append(Left(tool.name, pair.foreign.name, pair.foreign.version, reason))

    def _each(self, tool: Tool) -> Iterable[Tool]:
        """The tool, or one for each file that its path's pattern matches. The native file has the
        same path, but for the triplet in it."""
        if "*" not in tool.path:
            yield tool
            return
        for file in sorted(self._foreigns.glob(self.place.fill(tool.path).lstrip("/"))):
            path = f"/{file.relative_to(self._foreigns)}"
            if file.is_file() and not file.is_symlink():
                twin = path.replace(self.place.foreign.gnu, self.place.native.gnu)
                yield replace(tool, path=path, native_path=twin)

    def drop(self, problems: Mapping[str, str]) -> None:
        """Leave out the programs of the set that have a problem."""
        for each in self.entries:
            if each.program in problems:
                reason = problems[each.program]
                self.left.append(Left(each.tool, each.package, each.version, reason))
                (self.place.root / each.program).unlink(missing_ok=True)
        self.entries = [each for each in self.entries if each.program not in problems]

    def _entry(self, pair: Pair) -> Entry:
        tool, place = pair.tool, self.place
        path = place.fill(tool.path)
        foreign = find(self._foreigns, path)
        header = elf.read(foreign)
        if header.machine != place.foreign.elf:
            raise RelocationError(f"{path} is a program for ELF machine {header.machine}")
        if not header.build_id:
            raise RelocationError(f"{path} has no build-id")
        rules = (records.file_size(foreign.stat().st_size), *self._rules(tool))
        program = self._program(tool, foreign)
        mode = foreign.stat().st_mode
        if mode & (stat.S_ISUID | stat.S_ISGID):
            raise RelocationError(f"{path} is setuid or setgid")
        return Entry(
            tool=tool.name,
            build_id=header.build_id,
            path=path,
            package=pair.foreign.name,
            version=pair.foreign.version,
            native_package=pair.native.name,
            native_version=pair.native.version,
            program=program,
            record=records.encode(f"{place.mount}/{program}", rules),
        )

    def _rules(self, tool: Tool) -> Iterable[Rule]:
        for rule in tool.rules:
            # The root file system's locales, C.UTF-8 among them, are files in its own byte order.
            if (
                rule == records.UTF8_LOCALE
                and self.place.native.little != self.place.foreign.little
            ):
                rule = records.C_LOCALE
            yield Rule(rule.letter, self.place.fill(rule.text), self.place.fill(rule.more))
        for library in tool.decisive:
            library = self.place.fill(library)
            try:
                build_id = elf.read(find(self._foreigns, library)).build_id
            except FileNotFoundError:
                continue  # linked in, in this release
            if not build_id:
                raise RelocationError(f"{library} has no build-id")
            yield records.same_build(library, build_id)

    def _program(self, tool: Tool, foreign: Path) -> str:
        """Put the native program for `foreign` into the set; its path there."""
        place = self.place
        source = find(self._natives, place.fill(tool.twin_path))
        # Two tools may have one base name (sqv), and the kernel takes a process's name from it.
        directory = hashlib.sha256(os.fsencode(place.fill(tool.path))).hexdigest()[:8]
        name = f"bin/{directory}/{os.path.basename(place.fill(tool.path))}"
        data = source.read_bytes()
        if name.endswith(MODULE):
            data = relocate.library(data)
        else:
            data = relocate.program(data, place.native, self._loader(tool.preload))
        for patch in tool.patches:
            data = patch(data, place)
        if tool.proof:
            tool.proof(data, foreign.read_bytes(), place)
        self._need(Image(source.read_bytes()), source.name)
        for extra in tool.extras:
            self._extra(extra)
        self._write(name, data, 0o755)
        return name

    def _extra(self, extra: Extra) -> None:
        source = find(self._natives, self.place.fill(extra.path))
        data = source.read_bytes()
        for patch in extra.patches:
            data = patch(data, self.place)
        if extra.library:
            self._need(Image(data), source.name)
            data = relocate.library(data)
        self._write(self.place.fill(extra.to), data, 0o755 if extra.library else 0o644)

    def _loader(self, preload: str) -> str:
        """The loader for programs with this helper library ("" for none), made if it is not there;
        its path as programs see it."""
        listing = string.ascii_lowercase[len(self._loaders)] if preload else ""
        name = f"ld-{listing}.so" if preload else relocate.LOADER
        if preload in self._loaders:
            return self._loaders[preload]
        usual = relocate.LOADERS[self.place.native.debian].decode()
        data = find(self._natives, usual).read_bytes()
        library = f"{relocate.LIBRARIES}/{preload}"
        if preload:
            helper = Path(native.path(preload)).read_bytes()
            self._need(Image(helper), preload)
            self._write(library, helper, 0o755)
            self._write(listing, f"{self.place.mount}/{library}\n".encode(), 0o644)
        where = f"{self.place.mount}/{listing}" if preload else ""
        self._write(name, relocate.loader(data, self.place, where), 0o755)
        self._loaders[preload] = f"{self.place.mount}/{name}"
        return self._loaders[preload]

    def _need(self, image: Image, what: str) -> None:
        """Put the libraries that an ELF file names into the set, and those that they name."""
        loader = os.path.basename(relocate.LOADERS[self.place.native.debian].decode())
        for name in image.needed:
            if name in self._libraries or name == loader:
                continue
            self._libraries.add(name)
            try:
                self._library(name, self._find_library(name, image, what))
            except (RelocationError, OSError):
                # The next tool that needs it must find that out too.
                self._libraries.remove(name)
                raise

    def _find_library(self, name: str, image: Image, what: str) -> Path:
        for directory in (*image.search_paths, *map(self.place.fill, _LIBRARY_DIRECTORIES)):
            try:
                return find(self._natives, f"{directory}/{name}")
            except FileNotFoundError:
                continue
        raise RelocationError(f"{what} needs {name}, which no package brought")

    def _library(self, name: str, source: Path) -> None:
        data = source.read_bytes()
        self._need(Image(data), name)
        data = relocate.library(data)
        for pattern, patch in self._patches:
            if fnmatch(name, pattern):
                data = patch(data, self.place)
        self._write(f"{relocate.LIBRARIES}/{name}", data, 0o755)

    def _write(self, name: str, data: bytes, mode: int) -> None:
        path = self.place.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            if path.read_bytes() != data:
                raise RelocationError(f"two different files would be {name}")
            return
        path.write_bytes(data)
        path.chmod(mode)


def find(root: Path, path: str, depth: int = 8) -> Path:
    """The regular file at `path` of an unpacked root, links followed within it, with and without
    /usr (packages from before the merge have /bin/sed). Raises FileNotFoundError."""
    without = path.removeprefix("/usr")
    for candidate in dict.fromkeys((path, without, f"/usr{without}")):
        place = root / candidate.lstrip("/")
        if place.is_symlink() and depth:
            target = os.path.join(os.path.dirname(candidate), os.readlink(place))
            return find(root, os.path.normpath(target), depth - 1)
        if place.is_file():
            return place
    raise FileNotFoundError(f"{path} is not in the packages")
