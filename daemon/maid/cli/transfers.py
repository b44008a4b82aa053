"""How fetching is shown: a bar in bytes on a terminal, a line for each image elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from maid.cli import render
from maid.images.index import Descriptor
from maid.images.transfer import Watcher

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class Silence:
    """Shows nothing."""

    def begin(self, descriptor: Descriptor, size: int) -> None:
        """See Watcher."""

    def at(self, done: int) -> None:
        """See Watcher."""

    def end(self) -> None:
        """See Watcher."""


class Lines(Silence):
    """A line on standard error for each image."""

    def __init__(self, names: Mapping[str, str]) -> None:
        self._names = names

    def begin(self, descriptor: Descriptor, size: int) -> None:
        """See Watcher."""
        name = self._names.get(descriptor.digest, "")
        words = f"{name} {descriptor.digest}".strip() + (f": {amount(size)}" if size else "")
        print(render.plain(words), file=sys.stderr)


class Bars(Silence):
    """A bar on standard error for each image."""

    def __init__(self, names: Mapping[str, str], progress: Progress) -> None:
        self._names = names
        self._progress = progress
        self._task: TaskID | None = None
        self._size = 0

    def begin(self, descriptor: Descriptor, size: int) -> None:
        """See Watcher. The bar moves to and fro until there is something to measure."""
        name = render.plain(self._names.get(descriptor.digest, descriptor.digest[:19]))
        self._task, self._size = self._progress.add_task(name, total=None, amount=""), size

    def at(self, done: int) -> None:
        """See Watcher."""
        if self._task is not None and self._size:
            text = f"{amount(done)} of {amount(self._size)}"
            self._progress.update(self._task, total=self._size, completed=done, amount=text)

    def end(self) -> None:
        """See Watcher."""
        if self._task is not None:
            text = amount(self._size) if self._size else ""
            self._progress.update(self._task, total=1, completed=1, amount=text)


@contextmanager
def watching(names: Mapping[str, str], quiet: bool) -> Iterator[Watcher]:
    """What is told how a copy goes on; `names` are what images are called, by digest."""
    if quiet:
        yield Silence()
    elif not render.is_terminal(sys.stderr):
        yield Lines(names)
    else:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[amount]}"),
        )
        with Progress(*columns, console=Console(stderr=True)) as progress:
            yield Bars(names, progress)


def amount(size: int) -> str:
    """A number of bytes for people: "980 B", "4.2 MB"; decimal, as registries and docker count."""
    if size < 1000:
        return f"{size} B"
    units = ["kB", "MB", "GB", "TB"]
    number = size / 1000
    while number >= 999.5 and len(units) > 1:
        number /= 1000
        units.pop(0)
    return f"{number:.1f} {units[0]}" if number < 99.95 else f"{number:.0f} {units[0]}"
