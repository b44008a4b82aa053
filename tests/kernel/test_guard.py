"""emulation/guard.py and native/guard.c: what others take out of the table is back at once, what
maid takes out itself stays away, and nothing is ever done to what is not maid's.

Where the guard alone is to be judged, the keeper is kept from acting: what is back then was put
back without anybody reading the table.
"""

import asyncio
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
from guarded import AARCH64, NAME, STANDIN, found, guard_of, idle, is_alive, shows, soon, write
from keeping import another, execute, keeping, plain, qemu

from maid import native
from maid.emulation.guard import Repaired
from maid.emulation.ledger import Ledger
from maid.emulation.targets import PROBE_STATUS


def test_a_removed_entry_is_served_again_without_the_daemon(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with keeping(tmp_path, found(tmp_path, "aarch64"), guarded=True) as kept:
            write(kept, NAME, "-1")
            # From here on nothing of Python's runs until it works.
            soon(lambda: shows(kept, STANDIN, "enabled"), "the stand-in is there")
            assert execute(kept.pinned, tmp_path / "probes/aarch64").returncode == PROBE_STATUS
            assert not shows(kept, NAME, "")  # free for whoever wants to register it

    asyncio.run(scenario())


def test_what_is_disabled_flushed_or_switched_off_works_again_without_the_daemon(
    tmp_path: Path,
) -> None:
    async def scenario() -> None:
        async with keeping(tmp_path, found(tmp_path), guarded=True) as kept:
            write(kept, NAME, "0")
            soon(lambda: shows(kept, NAME, "enabled"), "the entry is enabled")
            write(kept, "status", "0")
            soon(lambda: shows(kept, "status", "enabled"), "the table is on")
            write(kept, "status", "-1")
            standins = [f"qemu-{name}.next" for name in kept.choices]
            soon(lambda: all(shows(kept, each, "enabled") for each in standins), "all are back")
            write(kept, STANDIN, "-1")
            soon(lambda: shows(kept, STANDIN, "enabled"), "the stand-in is there again")
            write(kept, STANDIN, "0")
            soon(lambda: shows(kept, STANDIN, "enabled"), "the stand-in is enabled")

    asyncio.run(scenario())


def test_the_keeper_tidies_up_counts_and_tells_each_repair_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with keeping(tmp_path, found(tmp_path), guarded=True) as kept:
            names = {f"qemu-{name}" for name in kept.choices}
            write(kept, "status", "-1")
            await kept.until(lambda: kept.keeper.counters.heals == 3, "three repairs are counted")
            await kept.until(lambda: set(kept.table()) == names, "all have their names again")
            await kept.until_ready()
            for name in kept.choices:
                assert kept.kinds(name) == ["registered", "ready", "healed"]
            assert {r.name for r in kept.keeper.ledger} == names
            assert kept.keeper.counters.heals == 3

    asyncio.run(scenario())


def test_what_serves_again_is_ready_at_once_and_is_executed_again(tmp_path: Path) -> None:
    """The same file that was executed before: its verdict holds, and a probe confirms it."""

    async def scenario() -> None:
        async with keeping(tmp_path, found(tmp_path, "aarch64"), guarded=True) as kept:
            probes = kept.keeper.counters.probes_ok
            write(kept, NAME, "-1")
            soon(lambda: shows(kept, STANDIN, "enabled"), "the stand-in is there")
            await kept.until(lambda: kept.keeper.counters.heals == 1, "it is counted")
            assert kept.keeper.kept["aarch64"].ready
            await kept.until(lambda: kept.keeper.counters.probes_ok > probes, "it is executed")
            assert "failed" not in kept.kinds("aarch64")

    asyncio.run(scenario())


def test_rule_3_another_file_at_that_place_is_not_ready_before_it_is_executed(
    tmp_path: Path,
) -> None:
    async def scenario() -> None:
        async with keeping(tmp_path, found(tmp_path, "aarch64"), guarded=True) as kept:
            state = kept.keeper.kept["aarch64"]
            assert state.ready and state.offer is not None
            state.offer = replace(state.offer, inode=state.offer.inode + 1)
            kept.keeper._put_back([Repaired("aarch64", NAME, 1, 0)])
            assert not state.ready
            await kept.until_ready()

    asyncio.run(scenario())


@pytest.mark.parametrize("how", ["released", "excluded", "stopped"])
def test_rule_6_what_maid_removes_itself_is_not_put_back(tmp_path: Path, how: str) -> None:
    async def scenario() -> None:
        async with keeping(tmp_path, found(tmp_path), guarded=True) as kept:
            guard = guard_of(kept)
            match how:
                case "released":
                    assert len(kept.keeper.release()) == 3
                case "excluded":
                    kept.keeper.update(kept.choices, [])
                case "stopped":
                    kept.keeper.stop()
                    write(kept, "status", "-1")
            assert not is_alive(guard)
            assert kept.table() == {}
            await asyncio.sleep(0.5)  # longer than a stand-in waits
            assert kept.table() == {}
            if how != "stopped":
                assert list(Ledger(str(tmp_path / "ledger.json"))) == []

    asyncio.run(scenario())


def test_a_release_in_the_middle_of_a_fight_leaves_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with keeping(tmp_path, found(tmp_path), guarded=True) as kept:
            for _ in range(20):
                write(kept, "status", "-1")
                await asyncio.sleep(0.001)
            write(kept, "status", "-1")
            kept.keeper.release()  # the guard is at work just now
            assert kept.table() == {}
            await asyncio.sleep(0.5)
            assert kept.table() == {}

    asyncio.run(scenario())


def test_what_is_excluded_alone_goes_and_the_others_stay_guarded(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with keeping(tmp_path, found(tmp_path), guarded=True) as kept:
            kept.keeper.update(kept.choices, ["s390x"])
            idle(kept)
            write(kept, "status", "-1")
            soon(lambda: shows(kept, "qemu-s390x.next", "enabled"), "it is put back")
            assert set(kept.table()) == {"qemu-s390x.next"}

    asyncio.run(scenario())


def test_rule_1_a_name_that_another_tool_took_stays_its_own(tmp_path: Path) -> None:
    """Also where it is disabled: it is not ours to enable."""
    theirs = plain(AARCH64, qemu("aarch64"), "F")

    async def scenario() -> None:
        async with keeping(tmp_path, found(tmp_path, "aarch64"), guarded=True) as kept:
            guard = guard_of(kept)
            idle(kept)
            os.kill(guard, signal.SIGSTOP)  # so that they win the race for the name
            write(kept, NAME, "-1")
            kept.pinned.instance.add(theirs)
            write(kept, NAME, "0")
            os.kill(guard, signal.SIGCONT)
            write(kept, "status", "0")  # what it does about this comes after the rest
            soon(lambda: shows(kept, "status", "enabled"), "it has looked at the table")
            await asyncio.sleep(0.1)
            assert kept.table() == {NAME: replace(theirs, enabled=False)}

    asyncio.run(scenario())


def test_a_tool_that_removes_our_entry_to_register_its_own_finds_the_name_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """systemd-binfmt does so for each name, and fails as a whole where one is taken. Here it takes
    its time: the stand-in serves meanwhile, and theirs is adopted in the end."""
    monkeypatch.setattr("maid.emulation.keeper.SETTLE", 5.0)
    theirs = plain(AARCH64, qemu("aarch64"), "F")

    async def scenario() -> None:
        async with keeping(tmp_path, found(tmp_path, "aarch64"), guarded=True) as kept:
            write(kept, NAME, "-1")
            await kept.until(lambda: kept.keeper.counters.heals == 1, "it is counted")
            await asyncio.sleep(0.3)  # the keeper has had its turn
            assert set(kept.table()) == {STANDIN}
            kept.pinned.instance.add(theirs)
            await kept.until(lambda: kept.table() == {NAME: theirs}, "theirs alone is there")
            await kept.until_ready()
            assert kept.keeper.kept["aarch64"].owner == "other"
            idle(kept)
            write(kept, NAME, "-1")
            await asyncio.sleep(0.3)
            assert kept.table() == {}  # it was theirs, and is theirs to put back

    asyncio.run(scenario())


def test_a_broken_entry_that_takes_the_name_is_shadowed_and_stays(tmp_path: Path) -> None:
    theirs = plain(AARCH64, native.path("maid-enter"), "F")

    async def scenario() -> None:
        async with keeping(tmp_path, found(tmp_path, "aarch64"), guarded=True) as kept:
            write(kept, NAME, "-1")
            soon(lambda: shows(kept, STANDIN, "enabled"), "the stand-in is there")
            kept.pinned.instance.add(theirs)
            await kept.until(lambda: set(kept.table()) == {NAME, "maid-aarch64"}, "it is shadowed")
            await kept.until_ready()
            assert kept.table()[NAME] == theirs
            idle(kept)
            write(kept, "maid-aarch64", "-1")
            soon(lambda: shows(kept, "maid-aarch64.next", "enabled"), "ours is put back")
            # The newest is tried first: what shadows still does.
            assert next(iter(kept.table())) == "maid-aarch64.next"
            assert execute(kept.pinned, tmp_path / "probes/aarch64").returncode == PROBE_STATUS
            assert kept.table()[NAME] == theirs

    asyncio.run(scenario())


def test_what_somebody_elses_entry_serves_has_no_guard(tmp_path: Path) -> None:
    theirs = plain(AARCH64, qemu("aarch64"), "PF")

    async def scenario() -> None:
        async with keeping(
            tmp_path,
            found(tmp_path, "aarch64", "s390x"),
            guarded=True,
            before=lambda pinned: pinned.instance.add(theirs),
        ) as kept:
            idle(kept)
            write(kept, "status", "-1")
            soon(lambda: shows(kept, "qemu-s390x.next", "enabled"), "ours is put back")
            assert set(kept.table()) == {"qemu-s390x.next"}

    asyncio.run(scenario())


def test_a_daemon_that_stops_gives_each_entry_its_name_back(tmp_path: Path) -> None:
    """While the name is kept free for others, only the stand-in is there."""

    async def scenario() -> None:
        async with keeping(tmp_path, found(tmp_path, "aarch64"), guarded=True) as kept:
            write(kept, NAME, "-1")
            soon(lambda: shows(kept, STANDIN, "enabled"), "the stand-in is there")
            kept.keeper.stop()
            assert set(kept.table()) == {NAME}
            assert [record.name for record in Ledger(str(tmp_path / "ledger.json"))] == [NAME]
            assert kept.keeper.counters.heals == 1  # what the guard did last is counted too

    asyncio.run(scenario())


def test_a_stand_in_that_a_killed_daemon_left_is_the_next_ones(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with keeping(tmp_path, found(tmp_path, "aarch64"), guarded=True) as kept:
            idle(kept)
            write(kept, NAME, "-1")
            soon(lambda: shows(kept, STANDIN, "enabled"), "the stand-in is there")
            kept.keeper.stop()
            again = another(kept, tmp_path, guarded=True)
            try:
                again.start(kept.choices, kept.choices)
                await kept.until(lambda: set(kept.table()) == {NAME}, "it has its name again")
                await again.settle()
                assert again.release() == [NAME]
                assert kept.table() == {}
            finally:
                again.stop()

    asyncio.run(scenario())
