"""Each user's places: so many at once, a queue, and no user in another's way."""

import asyncio

import pytest

from maid.config import Steps
from maid.errors import LimitReached
from maid.steps.places import Places

LIMITS = Steps(max_per_uid=2, max_queued_per_uid=2)


async def hold(places: Places, uid: int, log: list[str], name: str, gate: asyncio.Event) -> None:
    async with places.one(uid, LIMITS):
        log.append(name)
        await gate.wait()


async def turn() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_first_come_first_served() -> None:
    async def scenario() -> list[str]:
        places, log = Places(), []
        gates = [asyncio.Event() for _ in range(4)]
        tasks = [
            asyncio.ensure_future(hold(places, 1, log, str(n), gate))
            for n, gate in enumerate(gates)
        ]
        await turn()
        assert log == ["0", "1"]
        assert places.waiting() == 2
        with pytest.raises(LimitReached, match="2 steps running and 2 waiting"):
            async with places.one(1, LIMITS):
                pass
        async with places.one(2, LIMITS):
            log.append("other")
        for gate in gates:
            gate.set()
            await turn()
        await asyncio.gather(*tasks)
        assert places.waiting() == 0
        return log

    assert asyncio.run(scenario()) == ["0", "1", "other", "2", "3"]


@pytest.mark.parametrize("late", [False, True])
def test_who_leaves_the_queue_takes_no_place(late: bool) -> None:
    """Also in the very moment in which its turn has come."""

    async def scenario() -> None:
        places, log = Places(), []
        first, second = asyncio.Event(), asyncio.Event()
        holders = [
            asyncio.ensure_future(hold(places, 1, log, "a", first)),
            asyncio.ensure_future(hold(places, 1, log, "b", second)),
        ]
        await turn()
        leaver = asyncio.ensure_future(hold(places, 1, log, "leaver", asyncio.Event()))
        await turn()
        if late:
            places.take(1)
            places.free(1)  # passes the place on, and in the same turn of the loop
        leaver.cancel()
        await turn()
        assert leaver.cancelled()
        first.set()
        second.set()
        await asyncio.gather(*holders)
        for name in ("c", "d"):
            async with places.one(1, LIMITS):
                log.append(name)
        assert places.waiting() == 0
        assert log == ["a", "b", "c", "d"]

    asyncio.run(scenario())


def test_steps_that_run_already_count() -> None:
    async def scenario() -> None:
        places = Places()
        for _ in range(3):
            places.take(1)
        waiting = asyncio.ensure_future(hold(places, 1, [], "x", asyncio.Event()))
        await turn()
        assert places.waiting() == 1
        waiting.cancel()
        await turn()

    asyncio.run(scenario())
