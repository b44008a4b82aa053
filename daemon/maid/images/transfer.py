"""How a copy goes on: how many bytes an image has, how many are there, how many were fetched."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from maid.images.index import Descriptor, Manifest
from maid.images.layout import Layout
from maid.images.sources import Found


class Watcher(Protocol):
    """Who is told."""

    def begin(self, descriptor: Descriptor, size: int) -> None:
        """An image of so many bytes comes now; 0 where that is not known."""

    def at(self, done: int) -> None:
        """So many bytes of it are there; called ten times a second."""

    def end(self) -> None:
        """It is there."""


class Account:
    """What is received into a layout, in bytes: a publish.Progress.

    `size` is that of all images so far, each blob once, and `fetched` what of it was not there
    before.
    """

    def __init__(
        self, layout: Layout, find: Callable[[Descriptor], Found], watcher: Watcher
    ) -> None:
        self._layout = layout
        self._find = find
        self._watcher = watcher
        self._before = layout.blobs()
        self._counted: set[str] = set()
        self._current: str = ""
        self._needed: dict[str, int] = {}
        self.size = 0
        self.fetched = 0

    def __call__(self, descriptor: Descriptor, stage: Path | None) -> None:
        if descriptor.digest != self._current:
            self._begin(descriptor)
        if stage is not None:
            self._watcher.at(min(sum(self._needed.values()), self._arrived(stage)))
            return
        for digest, size in self._needed.items():
            if digest not in self._counted:
                self._counted.add(digest)
                self.size += size
                self.fetched += 0 if digest in self._before else size
        self._current = ""
        self._watcher.end()

    def _begin(self, descriptor: Descriptor) -> None:
        document = self._find(descriptor).document
        self._current = descriptor.digest
        self._needed = blobs_of(document) if isinstance(document, Manifest) else {}
        self._watcher.begin(descriptor, sum(self._needed.values()))

    def _arrived(self, stage: Path) -> int:
        growing = [each for each in stage.iterdir() if each.name != "index.json"]
        there = [self._layout.blob(digest) for digest in self._needed]
        return sum(map(_size, [*growing, *there]))


def blobs_of(manifest: Manifest) -> dict[str, int]:
    """The sizes in bytes of what a manifest names, its configuration first, by digest."""
    return {each.digest: each.size for each in (manifest.config, *manifest.layers)}


def _size(path: Path) -> int:
    try:
        return path.stat().st_size if path.is_file() else 0
    except OSError:
        return 0  # it has its final name by now
