"""How many steps each user may run at once, and who waits for a place. Knows nothing of steps."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import defaultdict, deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from maid.config import Steps
from maid.errors import LimitReached
from maid.measures import LONG, Histogram


@dataclass
class _User:
    running: int = 0
    queue: deque[asyncio.Future[None]] = field(default_factory=deque)


class Places:
    """One user's places never make another wait. First come, first served.

    `waited` is how long those waited who got a place.
    """

    def __init__(self) -> None:
        self.waited = Histogram(LONG)
        self._users: dict[int, _User] = defaultdict(_User)

    @contextlib.asynccontextmanager
    async def one(self, uid: int, limits: Steps) -> AsyncIterator[None]:
        """Hold one of the user's places, after waiting for it where all are taken.

        Raises LimitReached when too many wait already.
        """
        user = self._users[uid]
        if user.running >= limits.max_per_uid:
            if len(user.queue) >= limits.max_queued_per_uid:
                raise LimitReached(
                    f"user {uid} has {user.running} steps running and {len(user.queue)} waiting",
                    "[steps] max_per_uid and max_queued_per_uid in maid.toml are the limits",
                )
            asked = time.monotonic()
            await self._turn(uid, user)
            self.waited.observe(time.monotonic() - asked)
        else:
            user.running += 1
            self.waited.observe(0.0)
        try:
            yield
        finally:
            self.free(uid)

    async def _turn(self, uid: int, user: _User) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        user.queue.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.free(uid)  # the turn came and the caller left in the same moment
            else:
                user.queue.remove(turn)
            raise

    def take(self, uid: int) -> None:
        """Count a step that runs already, whatever the limit: `free` ends that."""
        self._users[uid].running += 1

    def free(self, uid: int) -> None:
        """Give up one of the user's places: it passes on to who has waited longest."""
        user = self._users[uid]
        while user.queue:
            turn = user.queue.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        user.running -= 1
        if not user.running:
            del self._users[uid]

    def waiting(self) -> int:
        """How many wait, of all users."""
        return sum(len(user.queue) for user in self._users.values())
