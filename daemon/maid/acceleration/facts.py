"""What a root file system says of itself: its distribution, its release, its packages' versions.

Read through the directory's descriptor, with every symbolic link kept inside and sizes bounded,
because the directory is a caller's. Nothing read here is trusted: it only decides which packages of
the distribution's own archive are looked for.
"""

from __future__ import annotations

import os
import re
import stat
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from maid import kernel
from maid.acceleration.distributions import DISTRIBUTIONS
from maid.errors import MaidError, UsageError

_OS_RELEASE = ("/etc/os-release", "/usr/lib/os-release")
_STATUS = "/var/lib/dpkg/status"
_SOURCES = ("/etc/apt/sources.list", "/etc/apt/sources.list.d")

# A full desktop's status has some 4 MB, for 3,000 packages.
_STATUS_LIMIT = 16 << 20
_PACKAGES_LIMIT = 30_000
_SMALL_LIMIT = 1 << 16
_MIRRORS_LIMIT = 64

# Of one word or line each: a pattern that tries again and again would hold up the whole daemon.
_NAME = re.compile(r"[a-z0-9][a-z0-9.+-]{0,127}")
_ADDRESS = re.compile(r"https?://[A-Za-z0-9.-]+(:\d+)?(/[A-Za-z0-9._~+-]*)*")
_VERSION = re.compile(r"[A-Za-z0-9.+:~-]{1,128}")


class UnknownRelease(UsageError):
    """What was named is no release."""


class UnknownRootfs(MaidError):
    """Nothing can be found out about a root file system: its programs stay emulated."""


@dataclass(frozen=True)
class Facts:
    """`distribution` and `codename` as in os-release (debian, trixie), `architecture` as Debian
    names it, `packages` the version of each installed package of that architecture."""

    distribution: str
    codename: str
    architecture: str
    packages: Mapping[str, str] = field(compare=False)

    @property
    def release(self) -> str:
        """As `maid accel add` takes it: debian:trixie."""
        return f"{self.distribution}:{self.codename}"


def parse_release(text: str) -> tuple[str, str]:
    """Distribution and codename of "debian:trixie". Raises UnknownRelease."""
    distribution, _, codename = text.partition(":")
    if not _NAME.fullmatch(distribution) or not _NAME.fullmatch(codename):
        raise UnknownRelease(
            f"{text!r} is no release", "name the distribution and the release: debian:trixie"
        )
    return distribution, codename


def read(root: int) -> Facts:
    """What the root file system `root`, a directory's descriptor, says. Raises UnknownRootfs."""
    release = _os_release(root)
    distribution, codename = release.get("ID", ""), release.get("VERSION_CODENAME", "")
    if _NAME.fullmatch(distribution) and distribution not in DISTRIBUTIONS:
        raise UnknownRootfs(
            f"{distribution} is not a distribution maid has native tools for",
            f"they are taken from the archives of {' and '.join(DISTRIBUTIONS)}",
        )
    if not _NAME.fullmatch(distribution) or not _NAME.fullmatch(codename):
        raise UnknownRootfs("its /etc/os-release names no release")
    status = _content(root, _STATUS, _STATUS_LIMIT)
    if status is None:
        raise UnknownRootfs(
            "it has no package database, so nothing tells the versions of its programs"
        )
    architecture, packages = parse_status(status.decode(errors="replace"))
    if not architecture:
        raise UnknownRootfs("its package database names no architecture")
    if len(packages) > _PACKAGES_LIMIT:
        raise UnknownRootfs(f"its package database has more than {_PACKAGES_LIMIT} packages")
    return Facts(distribution, codename, architecture, packages)


def stamp(root: int) -> tuple[int, int, int, int]:
    """Changes when the package database does: device, inode, size and time of change; zeros
    without one."""
    try:
        file = kernel.open_in_root(root, _STATUS, os.O_PATH, one_mount=True)
    except OSError:
        return (0, 0, 0, 0)
    try:
        found = os.fstat(file)
        return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
    finally:
        os.close(file)


def parse_status(text: str) -> tuple[str, dict[str, str]]:
    """The architecture and the versions in dpkg's status file.

    The architecture is dpkg's own, or the commonest one where there is no dpkg. Packages that are
    not unpacked, and those of other architectures, are left out.
    """
    rows: list[tuple[str, str, str]] = []
    for paragraph in text.split("\n\n"):
        fields = dict(
            line.split(": ", 1)
            for line in paragraph.split("\n")
            if line.startswith(("Package: ", "Version: ", "Architecture: ", "Status: "))
        )
        state = fields.get("Status", "install ok installed").split()
        name, version = fields.get("Package", ""), fields.get("Version", "")
        if (
            state[-1] not in ("not-installed", "config-files", "half-installed")
            and _NAME.fullmatch(name)
            and _VERSION.fullmatch(version)
        ):
            rows.append((name, version, fields.get("Architecture", "")))
    own = next((arch for name, _, arch in rows if name == "dpkg"), "")
    if not own:
        names = Counter(arch for _, _, arch in rows if arch != "all")
        own = max(names, key=names.__getitem__, default="")
    return own, {name: version for name, version, arch in rows if arch in (own, "all")}


def mirrors(root: int) -> list[str]:
    """The archives that its package sources name: http and https addresses without a password, in
    order, each once."""
    found: dict[str, None] = {}
    for text in _source_texts(root):
        # One line "deb [options] URI suite…" and deb822's "URIs: URI…" alike.
        for line in text.split("\n"):
            words = [] if line.lstrip().startswith("#") else line.split()
            found |= {word.rstrip("/"): None for word in words if _ADDRESS.fullmatch(word)}
    return list(found)[:_MIRRORS_LIMIT]


def _source_texts(root: int) -> list[str]:
    texts = []
    names = [_SOURCES[0]]
    try:
        directory = kernel.open_in_root(root, _SOURCES[1], os.O_RDONLY | os.O_DIRECTORY)
        try:
            listed = sorted(os.listdir(directory))[:64]
        finally:
            os.close(directory)
        names += [f"{_SOURCES[1]}/{n}" for n in listed if n.endswith((".list", ".sources"))]
    except OSError:
        pass
    for name in names:
        content = _content(root, name, _SMALL_LIMIT)
        if content is not None:
            texts.append(content.decode(errors="replace"))
    return texts


def _os_release(root: int) -> dict[str, str]:
    for path in _OS_RELEASE:
        content = _content(root, path, _SMALL_LIMIT)
        if content is not None:
            return dict(map(_assignment, content.decode(errors="replace").split("\n")))
    return {}


def _assignment(line: str) -> tuple[str, str]:
    """Name and value of a line as os-release(5) has it, without quotes."""
    name, _, value = line.partition("=")
    value = value.strip()
    if len(value) > 1 and value[0] in "\"'" and value[-1] == value[0]:
        value = value[1:-1]
    return name, value


def _content(root: int, path: str, limit: int) -> bytes | None:
    """The content of a regular file of at most `limit` bytes; None for anything else, which is not
    opened: that would have effects with a device or a FIFO."""
    try:
        # What is mounted in there may be a file system that never answers.
        found = kernel.open_in_root(root, path, os.O_PATH, one_mount=True)
    except OSError:
        return None
    try:
        if not stat.S_ISREG(os.fstat(found).st_mode):
            return None
        file = os.open(f"/proc/self/fd/{found}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    finally:
        os.close(found)
    try:
        chunks, size = [], 0
        while block := os.read(file, 1 << 20):
            size += len(block)
            if size > limit:
                return None
            chunks.append(block)
        return b"".join(chunks)
    except OSError:
        return None
    finally:
        os.close(file)
