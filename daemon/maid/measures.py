"""How long things took, counted in buckets as Prometheus has them. Knows nothing of what is
measured."""

from __future__ import annotations

from bisect import bisect_left
from itertools import accumulate

LONG = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 1800.0, 3600.0)
"""Seconds: from a program's start to a long build."""

SHORT = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Seconds: a program that does nothing takes 10 ms under QEMU (facts/kernel.md), its limit is
10 s."""


class Histogram:
    """Observations in seconds: their number in each bucket, and their sum.

    `bounds` are the buckets' upper bounds, rising; what is above the last is counted as well.
    """

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.sum = 0.0
        self._counts = [0] * (len(bounds) + 1)

    def observe(self, seconds: float) -> None:
        """Count one observation."""
        self._counts[bisect_left(self.bounds, seconds)] += 1
        self.sum += seconds

    @property
    def count(self) -> int:
        """How many observations there were."""
        return sum(self._counts)

    def buckets(self) -> list[tuple[str, float]]:
        """Each upper bound as text, "+Inf" the last, and how many observations were no greater."""
        names = [*map(str, self.bounds), "+Inf"]
        return list(zip(names, accumulate(map(float, self._counts)), strict=True))
