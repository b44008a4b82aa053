"""Packages from two root file systems that root gives: for machines without a way to an archive.

Both are complete systems of one release, one of the host's architecture and one foreign. Their
package databases say which versions they have, and their files are taken as they are: whoever gives
them vouches for them, as for anything else that root installs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from maid.acceleration.archive import ArchiveError, Package, Tell, parse_package
from maid.acceleration.model import Machine

_STATUS = "var/lib/dpkg/status"
_INSTALLED = "\nStatus: install ok installed\n"


class Roots:
    """The directories `native_root` and `foreign_root` as a source of packages. Raises ArchiveError
    when one of them is not what it should be."""

    def __init__(
        self, native_root: Path, foreign_root: Path, native: Machine, foreign: Machine
    ) -> None:
        self.native = native
        self.foreign = foreign
        self._roots = {native.debian: native_root, foreign.debian: foreign_root}
        self._packages = {name: _installed(root) for name, root in self._roots.items()}
        for machine, root in ((native, native_root), (foreign, foreign_root)):
            found = self._packages[machine.debian].get("dpkg")
            if found is None or found.architecture != machine.debian:
                raise ArchiveError(
                    f"{root} is not a root file system of {machine.debian} with dpkg",
                    "give one of this machine's architecture and one of the foreign one",
                )

    def versions(self, name: str, architecture: str) -> list[Package]:
        """The version of a package that is installed."""
        found = self._packages[architecture].get(name)
        return [found] if found else []

    def unpacked(
        self, natives: Iterable[Package], foreigns: Iterable[Package], work: Path, tell: Tell
    ) -> tuple[Path, Path]:
        """The two directories: everything is unpacked already."""
        return self._roots[self.native.debian], self._roots[self.foreign.debian]


def _installed(root: Path) -> dict[str, Package]:
    try:
        text = (root / _STATUS).read_text(errors="replace")
    except OSError as error:
        raise ArchiveError(f"{root} has no package database: {error}") from error
    found = {}
    for paragraph in text.split("\n\n"):
        package = parse_package(paragraph)
        if package is not None and _INSTALLED in f"\n{paragraph}\n":
            # A status names a source's version only where it differs, as lists do.
            found[package.name] = replace(package, size=0)
    return found
