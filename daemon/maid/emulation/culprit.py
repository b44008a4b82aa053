"""Who changed a table, as far as the kernel tells.

fanotify names the process that wrote to an entry's file or to `status`; what it is called and which
service or container it belongs to is looked up at once, since most such processes live for
milliseconds. Where it ended before, or where the kernel does not tell, systemd's own note of when
it started the units that reset tables is looked at. It costs nothing while nobody writes, and holds
up no repair: it is asked for words when one is told.

Only names, numbers and units are kept, never arguments: they may hold secrets.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import time
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass
from enum import StrEnum

from maid import fanotify

log = logging.getLogger(__name__)

RECENT = 5.0
"""Seconds for which a write explains what is found."""

LOOKS, PAUSE = 20, 0.1
"""Looks in a second from which on PAUSE seconds lie between two of them: somebody who writes
without end costs little."""

KEPT = 128
"""Files of which the last writer is remembered: a table's, and some more."""

DESCRIBED = 20
"""Processes that are looked up in one look; further ones are told by number."""

UNITS = ("systemd-binfmt.service", "binfmt-support.service")
"""What fills a table when it is started, and empties it before, or its own part of it."""

_STARTED = "/run/systemd/units/invocation:"
_CONTAINER = re.compile(r"(?<![0-9a-f])([0-9a-f]{12})[0-9a-f]{52}(?![0-9a-f])")
_UNIT = re.compile(r"[^/]+\.(?:service|scope|slice)(?=/|$)")


class Cause(StrEnum):
    """What was done to the table."""

    removed = "removed"
    flushed = "flushed"
    disabled = "disabled"
    replaced = "replaced"
    switched_off = "switched off"


_SAID = {
    Cause.removed: "{} was gone and is registered again",
    Cause.flushed: "{} was gone with all others and is registered again",
    Cause.disabled: "{} was disabled and is enabled again",
    Cause.replaced: "{} was replaced by another entry of that name; one of maid's serves again",
    Cause.switched_off: "the table was switched off as a whole and is on again",
}


@dataclass(frozen=True)
class _Writer:
    words: str
    named: bool
    when: float


class Culprits:
    """The writers to the table in `directory`. `spared` tells the processes that are maid's own."""

    def __init__(self, directory: str, spared: Callable[[], Collection[int]]) -> None:
        self._directory = directory
        self._spared = spared
        self._writers: dict[str, _Writer] = {}
        self._descriptor = -1
        self._pause: asyncio.TimerHandle | None = None
        self._looks: deque[float] = deque(maxlen=LOOKS)

    @property
    def active(self) -> bool:
        """Whether the kernel tells who writes."""
        return self._descriptor >= 0

    def renew(self) -> None:
        """Watch the table that is mounted now."""
        self.close()
        try:
            self._descriptor = fanotify.watch(self._directory)
        except OSError as error:
            log.info("who changes %s is not told: %s", self._directory, error)
            return
        self._listen()

    def close(self) -> None:
        """Watch no longer."""
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        if self._descriptor >= 0:
            asyncio.get_running_loop().remove_reader(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = -1

    def explain(self, name: str, cause: Cause) -> tuple[Cause, str]:
        """What was done to the file `name` of the table, where `cause` is what can be seen of it;
        and a sentence that says so, that it is repaired, and who it was where that is known."""
        if self._descriptor >= 0:
            self._look()
        own, all_of_them = self._recent(name), self._recent("status")
        writer = own
        if cause is Cause.switched_off:
            writer = all_of_them
        elif cause in (Cause.removed, Cause.flushed):
            if all_of_them and (own is None or all_of_them.when > own.when):
                writer, cause = all_of_them, Cause.flushed
            elif own is not None:
                cause = Cause.removed
        elif cause is Cause.replaced:
            writer = own or all_of_them or self._recent("register")
        words = [writer.words] if writer else []
        if writer is None or not writer.named:
            words += _units_started()
        said = _SAID[cause].format(name)
        return cause, f"{said} ({', '.join(words)})" if words else said

    def latest(self) -> str:
        """Who wrote to the table last, if that was just now; else ""."""
        recent = [w for w in self._writers.values() if time.monotonic() - w.when <= RECENT]
        return max(recent, key=lambda writer: writer.when).words if recent else ""

    def _recent(self, name: str) -> _Writer | None:
        writer = self._writers.get(name)
        return writer if writer and time.monotonic() - writer.when <= RECENT else None

    def _listen(self) -> None:
        self._pause = None
        asyncio.get_running_loop().add_reader(self._descriptor, self._on_writes)

    def _on_writes(self) -> None:
        self._look()
        now = time.monotonic()
        self._looks.append(now)
        if len(self._looks) == LOOKS and now - self._looks[0] <= 1.0:
            loop = asyncio.get_running_loop()
            loop.remove_reader(self._descriptor)
            self._pause = loop.call_later(PAUSE, self._listen)

    def _look(self) -> None:
        """Take in what the kernel has told."""
        found = fanotify.writes(self._descriptor)
        spared = {os.getpid(), *self._spared()}
        now, known = time.monotonic(), dict[int, _Writer]()
        for write in found:
            # 0: the kernel does not name it to us, and it may be the guard.
            if not write.pid or write.pid in spared:
                continue
            if write.pid not in known:
                known[write.pid] = _describe(write.pid, now, len(known) < DESCRIBED)
            writer = known[write.pid]
            before = self._writers.pop(write.name, None)
            # One that has ended since it was looked up is still the one it was.
            if before and not writer.named and before.words.endswith(f"process {write.pid}"):
                writer = _Writer(before.words, before.named, now)
            self._writers[write.name] = writer
        while len(self._writers) > KEPT:
            del self._writers[next(iter(self._writers))]


def _describe(pid: int, now: float, look: bool) -> _Writer:
    """The process in words: "by sh of cron in cron.service, process 12"."""
    name = _read(pid, "comm") if look else ""
    if not name:
        return _Writer(f"by process {pid}, which has ended", False, now)
    words = f"by {name}"
    # After the last ")": the name, which may hold anything, stands before.
    fields = _read(pid, "stat").rpartition(")")[2].split()
    if len(fields) > 1 and (parent := _read(int(fields[1]), "comm")) not in ("", name):
        words += f" of {parent}"
    if place := place_of(_read(pid, "cgroup", lines=True)):
        words += f" in {place}"
    return _Writer(f"{words}, process {pid}", True, now)


def place_of(cgroups: str) -> str:
    """The container or the unit that a process belongs to, from its /proc/PID/cgroup; "" for
    neither."""
    if found := _CONTAINER.search(cgroups):
        return f"container {found[1]}"
    # The unified hierarchy comes last, and of nested units the innermost counts.
    for line in reversed(cgroups.split("\n")):
        if units := _UNIT.findall(line):
            return str(units[-1])
    return ""


def _read(pid: int, name: str, lines: bool = False) -> str:
    """A file of /proc/PID, without what would break a line of the log: of `lines` only their ends
    stay, which the kernel makes. A process chooses its name freely, line breaks among it."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/{name}", "rb") as file:
        text = file.read(4096).decode(errors="replace").removesuffix("\n")
        return "".join(c if c.isprintable() or (lines and c == "\n") else "?" for c in text)
    return ""


def _units_started() -> list[str]:
    """Which of UNITS systemd started just now: it makes a link for each when it does."""
    said = []
    for unit in UNITS:
        with contextlib.suppress(OSError):
            age = time.time() - os.lstat(f"{_STARTED}{unit}").st_mtime
            if 0 <= age <= RECENT:
                said.append(f"{unit} was started {age:.1f} s before")
    return said
