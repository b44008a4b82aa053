"""Whether a program that moves data still does: a registry that says nothing more keeps its
connection open, and whoever waits for it waits for ever."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

SECONDS = 120.0
"""Without data or CPU time after which a program is taken to hang. Registries that take long to
answer, such as those that check a large layer, do within a minute."""

_LOOK_SECONDS = 2.0
_BYTES, _TICKS = 1024, 20
"""What counts as something: Go's runtime ticks now and then also where all wait."""


class Stall:
    """Watches a process and its children by what the kernel counts for them (proc(5))."""

    def __init__(self, pid: int, seconds: float = SECONDS) -> None:
        self._pid = pid
        self._seconds = seconds
        self._seen = _work(pid)
        self._since = self._next = time.monotonic()

    def has_come(self) -> bool:
        """Whether nothing has been done for so many seconds."""
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + min(_LOOK_SECONDS, self._seconds / 4)
        work = _work(self._pid)
        if work != self._seen:
            self._seen, self._since = work, now
        # Where the kernel does not tell, nothing hangs.
        return bool(work) and now - self._since >= self._seconds


def _work(pid: int) -> tuple[tuple[int, ...], ...]:
    """What was read and written by system calls, and CPU time, of each process."""
    found = []
    for each in _tree(pid):
        try:
            with open(f"/proc/{each}/io") as file:
                counts = [int(line.split()[1]) for line in file if line.startswith(("rch", "wch"))]
            with open(f"/proc/{each}/stat") as file:
                # Behind the name, which may have anything in it: fields 14 and 15.
                fields = file.read().rpartition(")")[2].split()
            ticks = int(fields[11]) + int(fields[12])
            found.append((each, sum(counts) // _BYTES, ticks // _TICKS))
        except (OSError, ValueError, IndexError):
            continue
    return tuple(found)


def _tree(pid: int) -> Iterator[int]:
    yield pid
    try:
        tasks = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return
    for task in tasks:
        try:
            with open(f"/proc/{pid}/task/{task}/children") as file:
                children = [int(word) for word in file.read().split()]
        except (OSError, ValueError):
            continue
        for child in children:
            yield from _tree(child)
