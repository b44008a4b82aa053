"""emulation/patience.py: a fight costs little, and floods nobody."""

import asyncio
import time
from collections.abc import Callable

import pytest

from maid.emulation.patience import FEW, FIGHT, Later, Pace, Telling


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Moves the monotonic clock on by so many seconds, and nothing else does."""
    now = 1000.0

    def move(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr(time, "monotonic", lambda: now)
    return move


def test_after_a_quiet_time_one_looks_at_once(clock: Callable[[float], None]) -> None:
    pace = Pace()
    assert pace.wait() == 0.0
    pace.took(0.005)
    clock(10)
    assert pace.wait() == 0.0


def test_looking_takes_no_more_than_its_share(clock: Callable[[float], None]) -> None:
    pace, spent, begun = Pace(share=0.05), 0.0, time.monotonic()
    for _ in range(100):
        clock(pace.wait())
        clock(0.02)
        spent += 0.02
        pace.took(0.02)
    clock(pace.wait())
    assert spent / (time.monotonic() - begun) == pytest.approx(0.05)


class Told:
    """What a Telling says, and the calls that it wants to be made later."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str, str]] = []
        self.due: dict[str, Callable[[], None]] = {}
        self.telling = Telling(lambda *event: self.events.append(event), self)  # type: ignore[arg-type]

    def once(self, name: str, seconds: float, call: Callable[[], None]) -> None:
        self.due.setdefault(name, call)

    def minute_over(self) -> None:
        due, self.due = self.due, {}
        for call in due.values():
            call()

    def kinds(self, target: str) -> list[str]:
        return [kind for kind, name, _ in self.events if name == target]


def test_few_repairs_are_told_one_by_one() -> None:
    told = Told()
    for _ in range(FEW):
        told.telling.repaired("arm", 1, "it was gone")
    assert told.events == [("healed", "arm", "it was gone")] * FEW
    told.minute_over()
    assert len(told.events) == FEW and not told.due


def test_many_repairs_are_told_as_a_number_once_a_minute(clock: Callable[[float], None]) -> None:
    told = Told()
    for _ in range(1000):
        told.telling.repaired("arm", 1, "it was gone")
    told.telling.repaired("s390x", 7, "it was gone")
    assert told.kinds("arm") == ["healed"] * FEW + ["contended"]
    assert told.events[-1] == ("healed", "s390x", "it was gone (7 times)")
    told.minute_over()
    assert told.events[-1] == ("healed", "arm", f"{1000 - FEW} more repairs in the last minute")
    clock(60)
    for _ in range(1000):
        told.telling.repaired("arm", 1, "it was gone")
    assert told.kinds("arm").count("contended") == 2


def test_some_repairs_are_no_fight_yet() -> None:
    told = Told()
    for _ in range(FEW + FIGHT - 1):
        told.telling.repaired("arm", 1, "it was gone")
    assert "contended" not in told.kinds("arm")
    told.telling.repaired("arm", 1, "it was gone")
    assert "contended" in told.kinds("arm")


def test_of_the_whole_table_it_is_said_that_it_is_switched_off() -> None:
    told = Told()
    for _ in range(FEW + FIGHT):
        told.telling.repaired("", 1, "it was off")
    (said,) = [sentence for kind, _, sentence in told.events if kind == "contended"]
    assert "switching the table off" in said and "entry" not in said


def test_what_is_due_already_is_not_put_off() -> None:
    async def scenario() -> None:
        later, called = Later(), asyncio.Event()
        later.once("a", 0.01, called.set)
        later.once("a", 60.0, lambda: None)
        await asyncio.wait_for(called.wait(), 10)
        later.once("a", 0.0, called.set)
        later.close()
        called.clear()
        await asyncio.sleep(0.05)
        assert not called.is_set()

    asyncio.run(scenario())
