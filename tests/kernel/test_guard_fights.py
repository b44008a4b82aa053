"""emulation/guard.py and native/guard.c against somebody who keeps undoing: limits, few events,
little work, and all is right in the end."""

import asyncio
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from guarded import AARCH64, NAME, STANDIN, found, idle, shows, write
from keeping import Kept, keeping, plain

from maid import native
from maid.emulation import describe
from maid.emulation.guard import Guard, Slot
from maid.emulation.guarding import Guarding

FIGHT = """
import os, sys, time
table, seconds = sys.argv[1], float(sys.argv[2])
until, undone = time.monotonic() + seconds, 0
while time.monotonic() < until:
    for name in os.listdir(table):
        if name in ("register", "status"):
            continue
        try:
            file = os.open(f"{table}/{name}", os.O_WRONLY)
            os.write(file, b"-1")
            os.close(file)
            undone += 1
        except OSError:
            pass
print(undone)
"""


class Limited(Guarding):
    """With a guard of low limits."""

    burst, rate = 20, 10

    def _start(self, slots: Sequence[Slot]) -> Guard:
        limits = {"burst": self.burst, "rate": self.rate}
        return Guard(self._instance, slots, self._told, self._ended, **limits)


async def fight(kept: Kept, seconds: float) -> tuple[int, float]:
    """Have another process remove at once whatever appears in the table: how often that was, and
    how long it took."""
    command = [sys.executable, "-c", FIGHT, kept.pinned.binfmt, str(seconds)]
    begun = time.monotonic()
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    output, _ = await process.communicate()
    return int(output), time.monotonic() - begun


def test_whoever_removes_at_once_whatever_appears_meets_a_limit(tmp_path: Path) -> None:
    """Counted, not timed: so many repairs at once, and so many a second."""

    async def scenario() -> None:
        async with keeping(tmp_path, found(tmp_path, "aarch64"), guarded=True) as kept:
            keeper = kept.keeper
            keeper._guarding.end()
            keeper._guarding.__class__ = Limited
            keeper.reconcile("with other limits")
            assert keeper._guarding.active
            reconcile = keeper.reconcile
            idle(kept)
            undone, took = await fight(kept, 3.0)
            keeper._guarding.end()  # tells the rest
            repairs = keeper.counters.registrations - 1
            assert Limited.burst / 2 <= repairs <= Limited.burst + Limited.rate * took + 1
            assert abs(undone - repairs) <= 2
            keeper.reconcile = reconcile  # type: ignore[method-assign]
            keeper.reconcile("the fight is over")
            await kept.until(lambda: set(kept.table()) == {NAME}, "it is whole in the end")
            await kept.until_ready()

    asyncio.run(scenario())


def test_a_fight_floods_nobody_with_events(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with keeping(tmp_path, found(tmp_path, "aarch64"), guarded=True) as kept:
            undone, _ = await fight(kept, 3.0)
            assert undone > 100
            kinds = kept.kinds("aarch64")
            assert kinds.count("contended") == 1
            assert 1 <= kinds.count("healed") <= 5
            assert len(kinds) < 30, kinds
            await kept.until_ready()
            state = kept.keeper.kept["aarch64"]
            assert describe.judge(state, True)[1].startswith("somebody keeps removing")
            state.fight_until = 0.0  # a minute later
            assert "somebody" not in describe.judge(state, True)[1]

    asyncio.run(scenario())


def test_while_the_guard_repairs_the_daemon_looks_at_its_own_pace(tmp_path: Path) -> None:
    """What has cost much time (here: a second) is not done again for a while, whatever happens."""

    async def scenario() -> None:
        async with keeping(tmp_path, found(tmp_path), guarded=True) as kept:
            await kept.until_ready()
            looks: list[str] = []
            kept.keeper._later.cancel("pace")
            kept.keeper._pace.took(1.0)
            kept.keeper.reconcile = looks.append  # type: ignore[method-assign]
            for _ in range(20):
                write(kept, "status", "-1")
                await asyncio.sleep(0.01)
            assert looks == []
            assert all(shows(kept, f"qemu-{name}.next", "enabled") for name in kept.choices)
            kept.keeper._guarding.end()  # then nobody else repairs
            write(kept, "status", "-1")
            await kept.until(lambda: "the table changed" in looks, "it looks at once")

    asyncio.run(scenario())


def test_shadowing_and_ranks_are_right_after_resets_of_any_kind(tmp_path: Path) -> None:
    """The kernel tries the newest first: whatever order the repairs came in, ours comes before the
    broken one in the end."""
    theirs = replace(plain(AARCH64, native.path("maid-enter"), "F"), name="broken")

    async def scenario() -> None:
        async with keeping(tmp_path, found(tmp_path, "aarch64"), guarded=True) as kept:
            for undo in ("-1", "0"):
                kept.pinned.instance.add(theirs)
                serving = next(n for n in kept.table() if n.startswith("qemu-"))
                write(kept, serving, undo)
                await kept.until(
                    lambda: next(iter(kept.table())) in (NAME, STANDIN), "ours is the newest"
                )
                await kept.until_ready()
                assert kept.table()["broken"] == theirs
                kept.pinned.instance.remove(theirs)

    asyncio.run(scenario())
