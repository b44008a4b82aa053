"""emulation/guard.py and native/guard.c: what others take out of the table is back at once, what
maid takes out itself stays away, and nothing is ever done to what is not maid's.

Where the guard alone is to be judged, the keeper is kept from acting: what is back then was put
back without anybody reading the table.
"""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from keeping import Kept, choices, configuration, execute, keeping, plain, qemu

from maid import native
from maid.config import Prefer
from maid.emulation.emulators import Choice
from maid.emulation.guard import Guard, Repaired, Slot
from maid.emulation.guarding import Guarding
from maid.emulation.ledger import Ledger
from maid.emulation.targets import PROBE_STATUS, TARGETS

AARCH64 = TARGETS["aarch64"]
NAME, STANDIN = "qemu-aarch64", "qemu-aarch64.next"


def found(tmp_path: Path, *names: str) -> dict[str, Choice]:
    return choices(configuration(tmp_path), names or ("aarch64", "s390x", "riscv64"))


def write(kept: Kept, file: str, text: str) -> None:
    """As another program does it: through the file system, without maid."""
    Path(kept.pinned.binfmt, file).write_text(text)


def shows(kept: Kept, file: str, word: str) -> bool:
    """Whether a file of the table begins with `word`; False when it is not there."""
    try:
        return Path(kept.pinned.binfmt, file).read_text().startswith(word)
    except FileNotFoundError:
        return False


def soon(true: Callable[[], bool], what: str, seconds: float = 10.0) -> None:
    """Wait without letting the keeper run."""
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, what
        time.sleep(0.002)


def idle(kept: Kept) -> None:
    """Have the keeper do nothing any more when the table changes; its guard goes on."""
    kept.keeper.reconcile = lambda why: None  # type: ignore[method-assign]
    kept.keeper._later.close()


def is_alive(pid: int) -> bool:
    """Whether the process runs, as anything but a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def guard_of(kept: Kept) -> int:
    """The process of the keeper's guard."""
    pid = kept.keeper._guarding.pid
    assert pid > 0 and Path(f"/proc/{pid}/comm").read_text() == "maid-guard\n"
    return pid


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


def test_a_guard_that_somebody_kills_is_done_without(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with keeping(tmp_path, found(tmp_path, "aarch64"), guarded=True) as kept:
            os.kill(guard_of(kept), signal.SIGKILL)
            await kept.until(lambda: not kept.keeper._guarding.active, "its end is noticed")
            write(kept, NAME, "-1")
            await kept.until(lambda: set(kept.table()) == {NAME}, "the keeper repairs")
            assert not kept.keeper._guarding.active  # not before a minute is over
            kept.keeper._guarding._not_before = 0.0
            kept.keeper.reconcile("a minute later")
            assert kept.keeper._guarding.active

    asyncio.run(scenario())


DAEMON = """
import asyncio, os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from keeping import choices, configuration, keeping

async def main():
    place = Path(sys.argv[2])
    found = choices(configuration(place), ("aarch64",))
    async with keeping(place, found, guarded=True) as kept:
        print(kept.keeper._guarding.pid, flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""


def test_the_guard_dies_with_the_daemon_and_the_entries_stay(tmp_path: Path) -> None:
    found(tmp_path, "aarch64")  # skips where there is no interpreter
    command = [sys.executable, "-c", DAEMON, str(Path(__file__).parent), str(tmp_path)]
    daemon = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        assert daemon.stdout is not None
        guard = int(daemon.stdout.readline())
        entry = tmp_path / "instance/binfmt" / NAME
        assert entry.exists() and is_alive(guard)
        daemon.kill()
        daemon.wait()
        soon(lambda: not is_alive(guard), "the guard has ended")
        assert entry.exists()
        entry.write_text("-1")
        time.sleep(0.3)
        assert set(os.listdir(entry.parent)) == {"register", "status"}
    finally:
        daemon.kill()
        daemon.wait()
        from maid.binfmt import namespace

        namespace.Pinned(str(tmp_path / "instance"), namespace.identity()).release()


def test_a_stand_in_that_a_killed_daemon_left_is_the_next_ones(tmp_path: Path) -> None:
    async def scenario() -> None:
        from maid.emulation.keeper import Keeper

        async with keeping(tmp_path, found(tmp_path, "aarch64"), guarded=True) as kept:
            idle(kept)
            write(kept, NAME, "-1")
            soon(lambda: shows(kept, STANDIN, "enabled"), "the stand-in is there")
            kept.keeper.stop()
            again = Keeper(
                kept.pinned.instance,
                Ledger(str(tmp_path / "ledger.json")),
                kept.keeper._prober,
                prefer=Prefer.ADOPT,
                emit=lambda *_: None,
                remount=lambda: None,
                open_user=kept.pinned.open_user,
                guarded=True,
            )
            try:
                again.start(kept.choices, kept.choices)
                await kept.until(lambda: set(kept.table()) == {NAME}, "it has its name again")
                await again.settle()
                assert again.release() == [NAME]
                assert kept.table() == {}
            finally:
                again.stop()

    asyncio.run(scenario())


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
