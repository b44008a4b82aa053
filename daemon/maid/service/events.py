"""What happened: kept for those who ask, streamed to those who follow, written to the journal.

An event is a kind (kinds.py), a subject and a sentence. Under systemd each goes to the journal with
fields of its own (MESSAGE_ID, MAID_EVENT, MAID_SUBJECT, MAID_SEQUENCE), otherwise to the log on
standard error.

Event goes over the socket as it is, so annotations stay real objects here.
"""

import asyncio
import contextlib
import logging
import os
import time
from collections import Counter, deque
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from maid.service.kinds import KINDS

log = logging.getLogger("maid")

KEPT = 1000
"""Events that are remembered; older ones are in the journal."""

QUEUED = 1000
"""Events that may wait for a slow follower; then the oldest are dropped, and it is told how
many."""


@dataclass(frozen=True)
class Event:
    """`sequence` counts from 1 at the daemon's start; `time` is in seconds since 1970; `subject` is
    a target, a platform or a step's platform, "" for the whole machine."""

    sequence: int
    time: float
    kind: str
    subject: str
    message: str


class Events:
    """The events of one daemon."""

    def __init__(self, journal: bool) -> None:
        self.counts: Counter[str] = Counter()
        self._kept: deque[Event] = deque(maxlen=KEPT)
        self._followers: set[_Follower] = set()
        self._sequence = 0
        self._journal = journal

    def emit(self, kind: str, subject: str, message: str) -> None:
        """Note an event of one of KINDS, log it and hand it to the followers. Never waits, never
        fails."""
        self._sequence += 1
        event = Event(self._sequence, time.time(), kind, subject, message)
        self.counts[kind] += 1
        self._kept.append(event)
        for follower in self._followers:
            follower.put(event)
        known = KINDS.get(kind)
        grave = known is not None and known.grave
        text = ": ".join(part for part in (subject, kind, message) if part)
        if self._journal:
            _to_journal(event, text, grave)
        else:
            log.log(logging.WARNING if grave else logging.INFO, "%s", text)

    def kept(self, since: int = 0) -> list[Event]:
        """The remembered events after the one numbered `since`."""
        return [event for event in self._kept if event.sequence > since]

    async def follow(self, since: int | None) -> AsyncGenerator[Event, None]:
        """The events after `since` (None: from now on), without end."""
        follower = _Follower()
        if since is not None:
            for event in self.kept(since):
                follower.put(event)
        self._followers.add(follower)
        try:
            while True:
                yield await follower.get()
        finally:
            self._followers.discard(follower)


class _Follower:
    """One who follows, with a bounded queue."""

    def __init__(self) -> None:
        self._queue: deque[Event] = deque()
        self._dropped = 0
        self._arrived = asyncio.Event()

    def put(self, event: Event) -> None:
        if len(self._queue) >= QUEUED:
            self._queue.popleft()
            self._dropped += 1
        self._queue.append(event)
        self._arrived.set()

    async def get(self) -> Event:
        while not self._queue:
            self._arrived.clear()
            await self._arrived.wait()
        event = self._queue.popleft()
        if self._dropped:
            message = f"({self._dropped} events were dropped: too slow) {event.message}"
            event = Event(event.sequence, event.time, event.kind, event.subject, message)
            self._dropped = 0
        return event


def under_journal() -> bool:
    """Whether standard error is the journal (systemd.exec(5), JOURNAL_STREAM: device and inode)."""
    stream = os.environ.get("JOURNAL_STREAM", "")
    try:
        status = os.fstat(2)
    except OSError:
        return False
    return stream == f"{status.st_dev}:{status.st_ino}"


def _to_journal(event: Event, text: str, grave: bool) -> None:
    from systemd import journal

    fields = {
        "SYSLOG_IDENTIFIER": "maid",
        "PRIORITY": "4" if grave else "6",
        "MAID_EVENT": event.kind,
        "MAID_SUBJECT": event.subject,
        "MAID_SEQUENCE": str(event.sequence),
    }
    if known := KINDS.get(event.kind):
        fields["MESSAGE_ID"] = known.identifier
    # A file's name may be no UTF-8; the journal takes nothing else.
    with contextlib.suppress(OSError):
        journal.send(_printable(text), **{name: _printable(text) for name, text in fields.items()})


def _printable(text: str) -> str:
    return text.encode(errors="backslashreplace").decode()
