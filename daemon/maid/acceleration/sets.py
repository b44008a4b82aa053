"""A set: the native programs of one state of a release, and what is known of them.

A set is a directory of the store with a manifest in it. Which tools go into one is selecting.py's,
making it is making.py's, and making it visible is store.py's.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

FORMAT = 1
"""Part of a set's name: raise it when the same packages give another set."""

MANIFEST = "manifest.json"


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


@dataclass(frozen=True)
class Damage:
    """A file of the store that is not as it was made."""

    path: str
    problem: str


def damages(store: Path, manifest: Manifest) -> Iterator[Damage]:
    """What of a set in the directory `store` is not as its manifest says."""
    root = store / manifest.name
    there = {str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir()}
    for name in sorted(there | manifest.digests.keys()):
        if name == MANIFEST:
            continue
        path, shown = root / name, f"{manifest.name}/{name}"
        if name not in there:
            yield Damage(shown, "it is missing")
        elif name not in manifest.digests:
            yield Damage(shown, "it does not belong there")
        elif path.is_symlink() or not path.is_file():
            yield Damage(shown, "it is not a regular file")
        elif path.lstat().st_mode & 0o7022 or path.lstat().st_uid != os.geteuid():
            yield Damage(shown, "its owner or mode was changed")
        elif hashlib.sha256(path.read_bytes()).hexdigest() != manifest.digests[name]:
            yield Damage(shown, "its content was changed")
