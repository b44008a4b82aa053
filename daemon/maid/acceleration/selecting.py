"""Which packages a set is made from: the versions of both architectures that are of one source.

Pure decisions over what a source of packages offers; nothing is fetched here.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Protocol

from maid.acceleration import relocate, tools
from maid.acceleration.archive import Package
from maid.acceleration.model import Machine, Tool
from maid.acceleration.sets import FORMAT, Left

# Packages that only hold libraries, by Debian's names (Policy 8.1): what may be followed when the
# libraries of a tool are looked for, without the compilers, headers and data it also depends on.
_NO_LIBRARIES = ("-dev", "-cross", "-data", "-doc", "-common", "-perl", "-bin", "-dbg")

_OF_LIBC = "/libm.so.6"


class Source(Protocol):
    """Where packages come from: a distribution's archive, or root file systems."""

    @property
    def native(self) -> Machine: ...

    @property
    def foreign(self) -> Machine: ...

    def versions(self, name: str, architecture: str) -> Sequence[Package]:
        """All versions of a package, the newest first."""


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
    source: Source,
    installed: Mapping[str, str],
) -> Selection:
    """Pair the tools' packages: of the version that is `installed` (by package), or the newest of
    what is not. Tools whose package the release does not have are passed over."""
    selection = Selection()
    for tool in wanted_tools:
        if not tool.serves(source.native, source.foreign):
            continue
        name = tool.package.replace("{gnu}", source.foreign.gnu)
        twin = tool.twin_package.replace("{gnu}", source.foreign.gnu)
        wanted = installed.get(name, "")
        offered = source.versions(name, source.foreign.debian)
        if not offered:
            continue
        if not wanted and (tool.on_demand or not _is_default(tool, source)):
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
        natives = source.versions(twin, source.native.debian)
        match = next((p for p in natives if p.source_version == found.source_version), None)
        if match is None:
            has = f"only of {natives[0].version}" if natives else "not there"
            reason = f"{found.version} needs a native {twin} of the same source; it is {has}"
            selection.left.append(Left(tool.name, name, found.version, reason))
            continue
        if tool.compared:
            reason = _not_compared(tool, found, match, source, installed)
            if reason:
                selection.left.append(Left(tool.name, name, found.version, reason))
                continue
        selection.pairs.append(Pair(tool, found, match))
    return selection


def _not_compared(
    tool: Tool, foreign: Package, native: Package, source: Source, installed: Mapping[str, str]
) -> str:
    """Why the packages are not the ones that were compared, or ""."""
    if foreign.source_version != tool.compared:
        return f"{foreign.version} was not compared with the native one, {tool.compared} was"
    both = [(foreign.name, foreign.version, native.version)]
    for name in foreign.depends:
        ours, theirs = (
            _chosen(source, name, machine.debian, installed)
            for machine in (source.native, source.foreign)
        )
        if _holds_libraries(name) and ours and theirs:
            both.append((name, theirs.version, ours.version))
    for name, theirs_is, ours_is in both:
        if theirs_is != ours_is:
            return f"{name} {theirs_is} needs the native one of the same version; it is {ours_is}"
    return ""


def _chosen(
    source: Source, name: str, architecture: str, installed: Mapping[str, str]
) -> Package | None:
    """The version of a package that is installed, or the newest where it cannot be had."""
    offered = source.versions(name, architecture)
    wanted = installed.get(name, "")
    return next((p for p in offered if p.version == wanted), offered[0] if offered else None)


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


def _is_default(tool: Tool, source: Source) -> bool:
    """Whether the release uses the tool without being asked for this version of it."""
    package, choice = tool.default
    offered = source.versions(package, source.foreign.debian)[:1] if package else []
    return not package or any(choice in each.depends for each in offered)


def libraries(
    source: Source, roots: Iterable[Package], installed: Mapping[str, str]
) -> list[Package]:
    """The native packages with libraries that the packages `roots` depend on, all the way down."""
    found: dict[str, Package] = {}
    todo = [name for package in roots for name in package.depends]
    while todo:
        name = todo.pop()
        if name in found or not _holds_libraries(name):
            continue
        package = _chosen(source, name, source.native.debian, installed)
        if package is None:
            continue
        found[name] = package
        todo += package.depends
    return list(found.values())


def _holds_libraries(name: str) -> bool:
    return name.startswith(("lib", "zlib")) and not any(
        name.endswith(end) or f"{end}-" in name for end in _NO_LIBRARIES
    )


def natives(selection: Selection, source: Source, installed: Mapping[str, str]) -> set[Package]:
    """The native packages that a set is made from: the tools', their extras' and libraries'."""
    found = {pair.native for pair in selection.pairs} | set(_extras(selection, source))
    return found | set(libraries(source, found, installed))


def foreigns(selection: Selection, source: Source, installed: Mapping[str, str]) -> set[Package]:
    """The foreign packages that build-ids are read from: the tools' and their decisive
    libraries'."""
    return {pair.foreign for pair in selection.pairs} | set(_decisive(selection, source, installed))


def _extras(selection: Selection, source: Source) -> Iterable[Package]:
    """The native packages of extras, of the same source version as the tool's native one."""
    for pair in selection.pairs:
        for extra in pair.tool.extras:
            name = extra.package.replace("{gnu}", source.foreign.gnu)
            for package in source.versions(name, source.native.debian):
                if package.source_version == pair.native.source_version:
                    yield package
                    break


def _decisive(
    selection: Selection, source: Source, installed: Mapping[str, str]
) -> Iterable[Package]:
    """The foreign packages with decisive libraries: of those the tools' packages depend on."""
    for pair in selection.pairs:
        if not pair.tool.decisive:
            continue
        with_libc = any(path.endswith(_OF_LIBC) for path in pair.tool.decisive)
        for name in pair.foreign.depends:
            if not _holds_libraries(name) or (name == "libc6" and not with_libc):
                continue
            package = _chosen(source, name, source.foreign.debian, installed)
            if package:
                yield package
