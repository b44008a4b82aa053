"""Make a set: the native programs of one state of a release, relocated, with all they need.

The packages of both architectures are unpacked side by side. A tool is taken when the foreign
program and the native one are of one source version and every change succeeds; what is not taken is
recorded with the reason. The foreign program's build-id is read from the archive's own package,
never from a root file system, so that no root file system can have its programs replaced in others.

Nothing here is visible to anybody until store.py publishes the directory.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import stat
import string
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import msgspec

from maid import elf, native
from maid.acceleration import records, relocate, tools
from maid.acceleration.archive import Archive, ArchiveError, Package
from maid.acceleration.model import Extra, Patch, Place, Tool
from maid.acceleration.records import Rule
from maid.acceleration.relocate import Image, RelocationError
from maid.errors import MaidError

FORMAT = 1
"""Part of a set's name: raise it when the same packages give another set."""

MANIFEST = "manifest.json"

MODULE = ".so"
"""Ends the path of what is not executed but loaded by a program."""

_LIBRARY_DIRECTORIES = ("/usr/lib/{native}", "/lib/{native}", "/usr/lib")
# Packages that only hold libraries, by Debian's names (Policy 8.1): what may be followed when the
# libraries of a tool are looked for, without the compilers, headers and data it also depends on.
_NO_LIBRARIES = ("-dev", "-cross", "-data", "-doc", "-common", "-perl", "-bin", "-dbg")


class Entry(msgspec.Struct, frozen=True):
    """One build of a foreign program and what stands in: `build_id` in hexadecimal, `program` the
    path in the set, `record` the bytes of its record."""

    tool: str
    build_id: str
    path: str
    package: str
    version: str
    native_package: str
    native_version: str
    program: str
    record: bytes


class Left(msgspec.Struct, frozen=True):
    """A tool that stays emulated: which package's version of it, and why."""

    tool: str
    package: str
    version: str
    reason: str


class Manifest(msgspec.Struct, frozen=True):
    """What a set is and where it came from. `sizes` and `digests` (SHA-256) are of each file by its
    path in the set; `tables` is tools.digest() of then; `packages` are all the packages it was made
    from, as name:architecture=version; `made` is in seconds since 1970."""

    format: int
    name: str
    distribution: str
    codename: str
    native: str
    foreign: str
    tables: str
    made: float
    mirror: str
    packages: list[str]
    entries: list[Entry]
    left: list[Left]
    sizes: dict[str, int]
    digests: dict[str, str]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(self.sizes.values())


@dataclass(frozen=True)
class Pair:
    """A tool with the packages it is taken from."""

    tool: Tool
    foreign: Package
    native: Package


@dataclass
class Selection:
    """What a set is to be made of: pairs, and what is left out."""

    pairs: list[Pair] = field(default_factory=list)
    left: list[Left] = field(default_factory=list)

    def name(self, distribution: str, codename: str, native: str, foreign: str) -> str:
        """The set's name: a few characters that stand for everything that decides its content."""
        content = [FORMAT, tools.digest(), distribution, codename, native, foreign]
        rows = sorted((p.tool.name, p.foreign.spelled, p.native.spelled) for p in self.pairs)
        digest = hashlib.sha256(repr((content, rows)).encode()).digest()
        return "".join(
            "abcdefghijklmnopqrstuvwxyz234567"[byte & 31] for byte in digest[: relocate.NAME_LENGTH]
        )


def select(
    wanted_tools: Iterable[Tool],
    archive: Archive,
    installed: Mapping[str, str],
) -> Selection:
    """Pair the tools' packages: of the version that is `installed` (by package), or the newest of
    what is not. Tools whose package the release does not have are passed over."""
    selection = Selection()
    for tool in wanted_tools:
        if not tool.serves(archive.native, archive.foreign):
            continue
        name = tool.package.replace("{gnu}", archive.foreign.gnu)
        twin = tool.twin_package.replace("{gnu}", archive.foreign.gnu)
        wanted = installed.get(name, "")
        offered = archive.versions(name, archive.foreign.debian)
        if not offered:
            continue
        found = next((p for p in offered if p.version == wanted), None) if wanted else offered[0]
        if found is None:
            reason = f"the archive has {offered[0].version}, not {wanted}, so there is no twin"
            selection.left.append(Left(tool.name, name, wanted, reason))
            continue
        lacking = [each for each in tool.features if not _cpu_has(each)]
        if lacking:
            reason = f"this machine's CPU has no {lacking[0]}, and the results would differ"
            selection.left.append(Left(tool.name, name, found.version, reason))
            continue
        natives = archive.versions(twin, archive.native.debian)
        match = next((p for p in natives if p.source_version == found.source_version), None)
        if match is None:
            has = f"only of {natives[0].version}" if natives else "not there"
            reason = f"{found.version} needs a native {twin} of the same source; it is {has}"
            selection.left.append(Left(tool.name, name, found.version, reason))
            continue
        selection.pairs.append(Pair(tool, found, match))
    return selection


@cache
def _cpu_flags() -> frozenset[str]:
    """What the kernel says that this machine's CPU has: x86's flags, {} for other machines."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, values = line.partition(":")
        if name.strip() == "flags":
            return frozenset(values.split())
    return frozenset()


def _cpu_has(feature: str) -> bool:
    """Whether this machine's CPU has the feature, by x86's name for it. AArch64 has fused
    multiplication always."""
    return feature in _cpu_flags() or (feature == "fma" and platform.machine() == "aarch64")


def libraries(
    archive: Archive, roots: Iterable[Package], installed: Mapping[str, str]
) -> list[Package]:
    """The native packages with libraries that the packages `roots` depend on, all the way down."""
    found: dict[str, Package] = {}
    todo = [name for package in roots for name in package.depends]
    while todo:
        name = todo.pop()
        if name in found or not _holds_libraries(name):
            continue
        offered = archive.versions(name, archive.native.debian)
        if not offered:
            continue
        wanted = installed.get(name, "")
        found[name] = next((p for p in offered if p.version == wanted), offered[0])
        todo += found[name].depends
    return list(found.values())


def _holds_libraries(name: str) -> bool:
    return name.startswith(("lib", "zlib")) and not any(
        name.endswith(end) or f"{end}-" in name for end in _NO_LIBRARIES
    )


def unpack(package: Path, into: Path) -> None:
    """Unpack a .deb's files; nothing of it is executed. Raises ArchiveError."""
    into.mkdir(parents=True, exist_ok=True)
    try:
        done = subprocess.run(
            ["dpkg-deb", "--extract", package, into],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=300,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ArchiveError(f"{package.name} cannot be unpacked: {error}") from error
    if done.returncode:
        raise ArchiveError(
            f"{package.name} cannot be unpacked: {done.stderr.strip()[-300:]}",
            "is there room on the disk?",
        )


class Maker:
    """Fills one set's directory from two unpacked roots. `tell` is told of each step in a few
    words."""

    def __init__(
        self,
        place: Place,
        natives: Path,
        foreigns: Path,
        patches: Sequence[tuple[str, Patch]] = (),
    ) -> None:
        self.place = place
        self.entries: list[Entry] = []
        self.left: list[Left] = []
        self._natives = natives
        self._patches = tuple(dict.fromkeys(patches))
        self._foreigns = foreigns
        self._libraries: dict[str, bool] = {}
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
        rules = tuple(self._rules(tool, path))
        program = self._program(tool)
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

    def _rules(self, tool: Tool, path: str) -> Iterable[Rule]:
        for rule in tool.rules:
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

    def _program(self, tool: Tool) -> str:
        """Put the native program into the set; its path there."""
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
        for name in image.needed:
            if name in self._libraries or name == os.path.basename(
                relocate.LOADERS[self.place.native.debian].decode()
            ):
                continue
            self._libraries[name] = True
            for directory in (*image.search_paths, *map(self.place.fill, _LIBRARY_DIRECTORIES)):
                try:
                    source = find(self._natives, f"{directory}/{name}")
                except FileNotFoundError:
                    continue
                data = source.read_bytes()
                self._need(Image(data), name)
                data = relocate.library(data)
                for pattern, patch in self._patches:
                    if fnmatch(name, pattern):
                        data = patch(data, self.place)
                self._write(f"{relocate.LIBRARIES}/{name}", data, 0o755)
                break
            else:
                del self._libraries[name]
                raise RelocationError(f"{what} needs {name}, which no package brought")

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


def measure(root: Path) -> tuple[dict[str, int], dict[str, str]]:
    """Size and SHA-256 of every file below `root`, by path."""
    sizes, digests = {}, {}
    for path in sorted(root.rglob("*")):
        if path.is_file() and not path.is_symlink():
            name = str(path.relative_to(root))
            data = path.read_bytes()
            sizes[name] = len(data)
            digests[name] = hashlib.sha256(data).hexdigest()
    return sizes, digests


Tell = Callable[[str], None]


def make(
    selection: Selection,
    archive: Archive,
    installed: Mapping[str, str],
    store: Path,
    work: Path,
    tell: Tell,
) -> tuple[Maker, list[Package]]:
    """Fetch, unpack and relocate what was selected, into a new directory of `store`.

    `work` is for what is only needed meanwhile. Returns the maker, whose place's root is the
    directory, and the packages it was made from. Raises ArchiveError.
    """
    name = selection.name(
        archive.distribution.name, archive.codename, archive.native.debian, archive.foreign.debian
    )
    natives = {pair.native for pair in selection.pairs} | set(_extra_packages(selection, archive))
    foreigns = {pair.foreign for pair in selection.pairs} | set(
        _decisive(selection, archive, installed)
    )
    natives |= set(libraries(archive, natives, installed))
    tell(f"fetching {len(natives | foreigns)} packages")
    files = archive.download(natives | foreigns, work / "packages")
    tell("unpacking them")
    for packages, root in ((natives, work / "native"), (foreigns, work / "foreign")):
        for package in sorted(packages, key=lambda p: p.spelled):
            unpack(files[package], root)
    root = store / f".new-{name}-{os.getpid()}"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(mode=0o755)
    maker = Maker(
        Place(name, root, archive.native, archive.foreign),
        work / "native",
        work / "foreign",
        [each for pair in selection.pairs for each in pair.tool.libraries],
    )
    tell(f"relocating {len(selection.pairs)} tools")
    for pair in selection.pairs:
        maker.add(pair)
    return maker, sorted(natives | foreigns, key=lambda p: p.spelled)


def _extra_packages(selection: Selection, archive: Archive) -> Iterable[Package]:
    """The native packages of extras, of the same source version as the tool's native one."""
    for pair in selection.pairs:
        for extra in pair.tool.extras:
            name = extra.package.replace("{gnu}", archive.foreign.gnu)
            for package in archive.versions(name, archive.native.debian):
                if package.source_version == pair.native.source_version:
                    yield package
                    break


def _decisive(
    selection: Selection, archive: Archive, installed: Mapping[str, str]
) -> Iterable[Package]:
    """The foreign packages with decisive libraries: of those the tools' packages depend on."""
    for pair in selection.pairs:
        if not pair.tool.decisive:
            continue
        for name in pair.foreign.depends:
            if not _holds_libraries(name) or name == "libc6":
                continue
            offered = archive.versions(name, archive.foreign.debian)
            wanted = installed.get(name, "")
            if offered:
                yield next((p for p in offered if p.version == wanted), offered[0])
