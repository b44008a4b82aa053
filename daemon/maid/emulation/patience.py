"""How long to put up with somebody who keeps undoing a repair. A clock and a counter, nothing
else."""

from __future__ import annotations

import time
from collections import deque


class Patience:
    """How often one target's entry is repaired when somebody keeps removing it.

    A token bucket: `burst` repairs at once, `refill` a second. Then the waiting times are 1, 2, 4 …
    60 seconds, until a repair has lasted as long as the next waiting time. An accident, however
    large, is repaired at once; a program that removes the entry whenever it appears meets an end.
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
        self._tokens = min(self._burst, self._tokens + (now - self._seen) * self._refill)
        if self._delay and now - self._seen >= 2 * self._delay:
            self._delay = 0.0
        self._seen = now
        self.recent.append(now)
        if self._tokens >= 1:
            self._tokens -= 1
            self._delay = 0.0
            return 0.0
        self._delay = min(60.0, max(1.0, self._delay * 2))
        return self._delay

    def in_last_minute(self) -> int:
        """How many repairs were asked for in the last 60 seconds (1024 at most)."""
        since = time.monotonic() - 60
        return sum(1 for moment in self.recent if moment >= since)
