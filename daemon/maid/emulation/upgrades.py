"""Being told when interpreters on disk come, go or change: a package was installed or upgraded.

Watches the directories in which interpreters are looked for, by inotify. What to do then is the
machine's.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from maid import kernel

log = logging.getLogger(__name__)

QUIET = 0.5
"""Seconds without a change before anything is done: a package manager replaces many files one after
another."""

NAMES = ("qemu-", "buildkit-qemu-", "box64", "box32", "FEXInterpreter", "rosetta")
"""How the files begin that are of interest; a directory of programs has many more."""

EVENTS = (
    *(kernel.IN_ATTRIB, kernel.IN_MODIFY, kernel.IN_CLOSE_WRITE, kernel.IN_CREATE),
    *(kernel.IN_MOVED_FROM, kernel.IN_MOVED_TO, kernel.IN_DELETE),
)
"""Coming, going, being written, truncated, linked or made executable; being read and executed is
none."""


class Upgrades:
    """Calls `changed` once, when interpreters have changed and it is quiet again."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._watched: dict[int, str] = {}
        self._used: frozenset[str] = frozenset()
        self._waiting: asyncio.TimerHandle | None = None

    def watch(self, places: Iterable[Path], used: Iterable[Path]) -> None:
        """Watch these directories, and those of the interpreters that are in use, whatever their
        names; directories that are watched already stay so."""
        interpreters = list(used)
        self._used = frozenset(path.name for path in interpreters)
        loop = asyncio.get_running_loop()
        wanted = {_directory(path) for path in (*places, *interpreters)}
        for place in wanted - set(self._watched.values()):
            with contextlib.suppress(OSError):
                descriptor = kernel.inotify(place, sum(EVENTS))
                self._watched[descriptor] = place
                loop.add_reader(descriptor, self._on_files, descriptor)

    def close(self) -> None:
        """Watch nothing any longer."""
        loop = asyncio.get_running_loop()
        for descriptor in self._watched:
            loop.remove_reader(descriptor)
            os.close(descriptor)
        self._watched = {}
        if self._waiting:
            self._waiting.cancel()

    def _on_files(self, descriptor: int) -> None:
        names = {event.name for event in kernel.inotify_events(descriptor)}
        changed = [name for name in names if name in self._used or name.startswith(NAMES)]
        if not changed:
            return
        log.info("%s changed in %s", ", ".join(sorted(changed)), self._watched[descriptor])
        if self._waiting:
            self._waiting.cancel()
        self._waiting = asyncio.get_running_loop().call_later(QUIET, self._changed)


def _directory(path: Path) -> str:
    """The directory to watch for `path`; one that may not be looked into is watched in vain."""
    return str(path) if os.path.isdir(path) else os.path.dirname(path)
