"""How long to put up with somebody who keeps undoing a repair. A clock and a counter, nothing
else."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable


class Patience:
    """How often one target's entry is repaired when somebody keeps removing it.

    A token bucket: `burst` repairs at once, and one more for each `1/refill` seconds. When it is
    empty the waits are 1, 2, 4 … 60 seconds, until nothing had to be repaired for twice the last
    one. An accident, however large, is repaired at once; a program that removes the entry whenever
    it appears meets an end.
    """

    def __init__(self, burst: int = 256, refill: float = 1.0) -> None:
        self._burst = burst
        self._refill = refill
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
        self._delay = min(60.0, max(1.0, self._delay * 2))
        return self._delay

    def in_last_minute(self) -> int:
        """How many repairs were asked for in the last 60 seconds (1024 at most)."""
        since = time.monotonic() - 60
        return sum(1 for moment in self.recent if moment >= since)


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

    def cancel(self, name: str) -> None:
        """Forget the call of that name, if there is one."""
        if handle := self._handles.pop(name, None):
            handle.cancel()

    def close(self) -> None:
        """Forget them all."""
        for name in list(self._handles):
            self.cancel(name)
