"""Root file systems that somebody tells of: how many, whose, and where they may lie."""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from maid.service import sightings
from maid.service.sightings import Sightings
from maid.steps import rootfs


class Looking:
    """An Acceleration that only notes what it is shown, until the gate opens."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.looks: list[tuple[int, bool, bool]] = []

    async def seen(self, root: int, *, wait: bool, trusted: bool) -> None:
        self.looks.append((os.fstat(root).st_ino, wait, trusted))
        await self.gate.wait()


def opened(path: Path) -> int:
    return os.open(path, os.O_PATH | os.O_DIRECTORY)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def run(scenario: Callable[[Sightings, Looking], Any]) -> None:
    async def main() -> None:
        looking = Looking()
        made = Sightings(looking)  # type: ignore[arg-type]
        before = descriptors()
        await scenario(made, looking)
        looking.gate.set()
        await made.close()
        assert descriptors() == before

    asyncio.run(main())


def test_a_root_file_system_is_looked_at_and_let_go(tmp_path: Path) -> None:
    async def scenario(made: Sightings, looking: Looking) -> None:
        assert made.add(opened(tmp_path), 1000, False)
        await asyncio.sleep(0)
        assert looking.looks == [(tmp_path.stat().st_ino, False, False)]

    run(scenario)


def test_the_archives_that_an_image_names_are_asked_for_no_hook(tmp_path: Path) -> None:
    """A hook is root, and tells of whatever image an engine starts."""

    async def scenario(made: Sightings, looking: Looking) -> None:
        assert made.add(opened(tmp_path), 0, True)
        await asyncio.sleep(0)
        assert [trusted for _, _, trusted in looking.looks] == [False]

    run(scenario)


def test_each_user_has_so_many_at_once(tmp_path: Path) -> None:
    async def scenario(made: Sightings, looking: Looking) -> None:
        answers = [made.add(opened(tmp_path), 1000, False) for _ in range(sightings.AT_ONCE + 1)]
        assert answers == [True] * sightings.AT_ONCE + [False]
        assert made.add(opened(tmp_path), 1001, False)

    run(scenario)


def test_each_user_has_so_many_a_minute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(made: Sightings, looking: Looking) -> None:
        now = 1000.0
        monkeypatch.setattr(sightings.time, "monotonic", lambda: now)
        looking.gate.set()
        accepted = 0
        for _ in range(sightings.EACH_MINUTE + 5):
            accepted += made.add(opened(tmp_path), 1000, False)
            for _ in range(3):
                await asyncio.sleep(0)
        assert accepted == sightings.EACH_MINUTE
        now += 61
        assert made.add(opened(tmp_path), 1000, False)
        monkeypatch.undo()

    run(scenario)


def test_only_root_may_tell_of_what_may_never_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rootfs, "LOCAL", frozenset())

    async def scenario(made: Sightings, looking: Looking) -> None:
        assert not made.add(opened(tmp_path), 1000, False)
        assert made.add(opened(tmp_path), 0, True)

    run(scenario)
