"""Root file systems that somebody tells of (io.maid.Store.Seen): looked at in the background, and
not more of them than a user may have looked at.

A hook tells of every container it starts. What it tells is a hint: what cannot be looked at now is
passed over, and is told again with the next container.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections import defaultdict, deque

from maid.acceleration.manager import Acceleration
from maid.errors import MaidError
from maid.steps import rootfs

EACH_MINUTE = 30
"""Root file systems of one user that are looked at within a minute: a build starts a container for
each line, some ten at a time."""

AT_ONCE = 4
"""How many of one user are looked at at the same time: each takes milliseconds."""


class Sightings:
    """The root file systems that are being looked at."""

    def __init__(self, acceleration: Acceleration) -> None:
        self._acceleration = acceleration
        self._recent: dict[int, deque[float]] = defaultdict(deque)
        self._running: dict[int, set[asyncio.Task[None]]] = defaultdict(set)

    def add(self, root: int, uid: int, trusted: bool) -> bool:
        """Look at `root`, a directory's descriptor, which is closed then; whether that is done.

        `trusted`: told of by root, who may have any file system looked at. The archives that it
        names are asked for nobody's sake: an engine's hook, which is root, tells of any image.
        """
        now = time.monotonic()
        recent, running = self._recent[uid], self._running[uid]
        while recent and now - recent[0] > 60:
            recent.popleft()
        allowed = len(recent) < EACH_MINUTE and len(running) < AT_ONCE
        if not allowed or not (trusted or rootfs.is_local(root)):
            os.close(root)
            return False
        recent.append(now)
        task = asyncio.get_running_loop().create_task(self._look(root))
        running.add(task)

        def done(task: asyncio.Task[None]) -> None:
            running.discard(task)
            os.close(root)  # here: a task that is cancelled before it began runs no line of its own

        task.add_done_callback(done)
        return True

    async def _look(self, root: int) -> None:
        # It has told of what failed, as an event.
        with contextlib.suppress(MaidError, OSError):
            await self._acceleration.seen(root, wait=False, trusted=False)

    async def close(self) -> None:
        """Look at nothing any longer."""
        tasks = [task for running in self._running.values() for task in running]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
