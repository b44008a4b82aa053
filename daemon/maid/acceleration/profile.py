"""What maid-profile wrote of a step (native/profile.c), as a table of programs.

Numbers are sums over processes: a program is the path that was executed, and what a process did
after a fork and before it executed something else is its parent's program's.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """How a program ran: a `native` tool of the store in its place, `emulated`, or as one of the
    machine's own platform (`own`), for which there is nothing to accelerate."""

    NATIVE = "native"
    EMULATED = "emulated"
    OWN = "own"


_LIMIT = 1 << 63
"""What a number of maid-profile's is below: it counts with 64 bits."""

_KINDS = {"n": Kind.NATIVE, "e": Kind.EMULATED, "h": Kind.OWN}


@dataclass(frozen=True)
class Usage:
    """One program: `starts` counts executions, `user` and `system` are seconds of CPU time, `peak`
    bytes of memory of the largest process, `unfinished` how many of its processes had not ended
    when the command had."""

    name: str
    kind: Kind
    starts: int
    user: float
    system: float
    peak: int
    unfinished: int

    @property
    def cpu(self) -> float:
        """Seconds of CPU time in all."""
        return self.user + self.system


@dataclass(frozen=True)
class _Record:
    kind: str
    starts: int
    pid: int
    user: int
    system: int
    peak: int
    name: str


def parse(data: bytes) -> list[Usage]:
    """The programs, those with the most CPU time first. Records that make no sense are passed
    over: the step could write to the file as well."""
    ended: list[_Record] = []
    running: dict[int, _Record] = {}
    for record in _records(data):
        if record.kind.isupper():
            running[record.pid] = record
        else:
            running.pop(record.pid, None)
            ended.append(record)
    programs: dict[tuple[str, Kind], Usage] = {}
    for record, unfinished in (
        *((record, 0) for record in ended),
        *((record, 1) for record in running.values()),
    ):
        key = record.name, _KINDS[record.kind.lower()]
        before = programs.get(key) or Usage(*key, 0, 0.0, 0.0, 0, 0)
        programs[key] = Usage(
            *key,
            starts=before.starts + record.starts,
            user=before.user + record.user / 1e6,
            system=before.system + record.system / 1e6,
            peak=max(before.peak, record.peak * 1024),
            unfinished=before.unfinished + unfinished,
        )
    return sorted(programs.values(), key=lambda usage: (-usage.cpu, usage.name))


def _records(data: bytes) -> Iterable[_Record]:
    for text in data.split(b"\0"):
        words = text.decode(errors="surrogateescape").split(" ", 6)
        if len(words) != 7 or words[0].lower() not in _KINDS:
            continue
        try:
            starts, pid, user, system, peak = (int(word) for word in words[1:6])
        except ValueError:
            continue
        if all(0 <= each < _LIMIT for each in (starts, user, system, peak)):
            yield _Record(words[0], starts, pid, user, system, peak, words[6])


def total(programs: Iterable[Usage], kind: Kind | None = None) -> Usage:
    """All of one kind together, or of every kind; its name is ""."""
    chosen = [usage for usage in programs if kind is None or usage.kind is kind]
    return Usage(
        "",
        kind or Kind.EMULATED,
        starts=sum(usage.starts for usage in chosen),
        user=sum(usage.user for usage in chosen),
        system=sum(usage.system for usage in chosen),
        peak=max((usage.peak for usage in chosen), default=0),
        unfinished=sum(usage.unfinished for usage in chosen),
    )
