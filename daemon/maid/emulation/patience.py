"""How long to put up with somebody who keeps undoing a repair, what to say of it, and when to do
what is due later. Clocks and counters, nothing else."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable

FEW = 5
"""Repairs of one target in a minute of which each is told."""

FIGHT = 30
"""Repairs of one target in a minute from which on somebody is said to undo them on purpose."""

MINUTE = 60.0
"""Seconds after which the repairs that were not told one by one are told in one sentence."""


class Patience:
    """How often the keeper repairs one target's entry when somebody keeps removing it.

    A token bucket: `burst` repairs at once, and one more for each `1/refill` seconds. When it is
    empty the waits are 1, 2 and 4 seconds, until nothing had to be repaired for twice the last one.
    An accident, however large, is repaired at once; somebody who removes the entry whenever it
    appears costs a repair of some 5 ms every four seconds. (What the guard repairs does not count
    here: it has limits of its own.)
    """

    def __init__(self, burst: int = 256, refill: float = 1.0, longest: float = 4.0) -> None:
        self._burst = burst
        self._refill = refill
        self._longest = longest
        self._tokens = float(burst)
        self._seen = time.monotonic()
        self._delay = 0.0
        self.recent: deque[float] = deque(maxlen=1024)

    def ask(self) -> float:
        """Seconds to wait before the next repair; 0.0: now, and it is counted."""
        now = time.monotonic()
        quiet = now - self._seen
        self._seen = now
        self.recent.append(now)
        self._tokens = min(self._burst, self._tokens + quiet * self._refill)
        if self._delay and quiet >= 2 * self._delay:
            self._delay = 0.0
        if not self._delay and self._tokens >= 1:
            self._tokens -= 1
            return 0.0
        self._delay = min(self._longest, max(1.0, self._delay * 2))
        return self._delay

    def in_last_minute(self) -> int:
        """How many repairs were asked for in the last 60 seconds (1024 at most)."""
        since = time.monotonic() - 60
        return sum(1 for moment in self.recent if moment >= since)


class Pace:
    """When to look at a table again that somebody else keeps from falling: at once after a quiet
    time, but never so often that looking takes more than `share` of a CPU."""

    def __init__(self, share: float = 0.05) -> None:
        self._share = share
        self._due = 0.0

    def wait(self) -> float:
        """Seconds until the next look; 0.0: now."""
        return max(0.0, self._due - time.monotonic())

    def took(self, seconds: float) -> None:
        """A look is over that took so many seconds."""
        self._due = time.monotonic() + seconds * (1 / self._share - 1)


class Later:
    """Calls that are due after a while, one for each name: a later one replaces an earlier one."""

    def __init__(self) -> None:
        self._handles: dict[str, asyncio.TimerHandle] = {}

    def call(self, name: str, seconds: float, call: Callable[[], None]) -> None:
        """Have `call` called in so many seconds."""
        self.cancel(name)

        def due() -> None:
            self._handles.pop(name, None)
            call()

        self._handles[name] = asyncio.get_running_loop().call_later(seconds, due)

    def once(self, name: str, seconds: float, call: Callable[[], None]) -> None:
        """As `call`, but an earlier one of that name stays."""
        if name not in self._handles:
            self.call(name, seconds, call)

    def cancel(self, name: str) -> None:
        """Forget the call of that name, if there is one."""
        if handle := self._handles.pop(name, None):
            handle.cancel()

    def close(self) -> None:
        """Forget them all."""
        for name in list(self._handles):
            self.cancel(name)


class Telling:
    """Tells of repairs so that a fight floods nobody: each one while they are few, then how many
    there were, once a minute.

    `emit` is called with a kind, the target's name and a sentence, as the keeper's.
    """

    def __init__(self, emit: Callable[[str, str, str], None], later: Later) -> None:
        self._emit = emit
        self._later = later
        self._told: dict[str, int] = {}
        self._untold: dict[str, int] = {}
        self._contended: dict[str, float] = {}

    def repaired(self, name: str, count: int, sentence: str) -> None:
        """Something of the target `name` was repaired so many times."""
        self._later.once(f"told {name}", MINUTE, lambda: self._minute_over(name))
        told = self._told.get(name, 0)
        if told < FEW:
            self._told[name] = told + 1
            times = f" ({count} times)" if count > 1 else ""
            self._emit("healed", name, sentence + times)
            count = 0
        self._untold[name] = self._untold.get(name, 0) + count
        if self._untold[name] >= FIGHT:
            deed = "removing or disabling the entry" if name else "switching the table off"
            self.contended(name, f"somebody keeps {deed}; it is repaired each time")

    def contended(self, name: str, sentence: str) -> None:
        """Somebody keeps undoing repairs: told once in a minute for each target."""
        now = time.monotonic()
        if now >= self._contended.get(name, 0.0):
            self._contended[name] = now + MINUTE
            self._emit("contended", name, sentence)

    def _minute_over(self, name: str) -> None:
        self._told.pop(name, None)
        if count := self._untold.pop(name, 0):
            self._emit("healed", name, f"{count} more repairs in the last minute")
