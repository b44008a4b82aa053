"""emulation/keeper.py: what somebody else undoes is whole again, and a fight has an end."""

import asyncio
import shutil
import threading
import time
from pathlib import Path

import pytest
from keeping import (
    Kept,
    choices,
    configuration,
    execute,
    keeping,
    offer_of,
    with_offers,
)

from maid import kernel
from maid.binfmt.instance import Instance
from maid.emulation.emulators import Choice
from maid.emulation.patience import Patience
from maid.emulation.targets import PROBE_STATUS


def found(tmp_path: Path, *names: str) -> dict[str, Choice]:
    return choices(configuration(tmp_path), names or ("aarch64", "s390x", "riscv64"))


def write(kept: Kept, file: str, text: str) -> None:
    """As another program does it: through the file system, without maid."""
    Path(kept.pinned.binfmt, file).write_text(text)


@pytest.fixture(params=["alone", "guarded"])
def guarded(request: pytest.FixtureRequest) -> bool:
    """Whether the keeper repairs with a guard or alone: the promises are the same."""
    return bool(request.param == "guarded")


async def whole_again(kept: Kept, tmp_path: Path) -> None:
    names = {f"qemu-{name}" for name in kept.choices}
    await kept.until(lambda: set(kept.table()) == names, "every entry is back")
    await kept.until_ready()
    for name in kept.choices:
        assert execute(kept.pinned, tmp_path / "probes" / name).returncode == PROBE_STATUS


def test_a_removed_entry_is_back_and_works(tmp_path: Path, guarded: bool) -> None:
    async def scenario() -> None:
        async with keeping(tmp_path, found(tmp_path), guarded=guarded) as kept:
            write(kept, "qemu-s390x", "-1")
            await whole_again(kept, tmp_path)
            await kept.until(lambda: kept.keeper.counters.heals > 0, "it is counted")
            assert kept.kinds("s390x").count("healed") == 1
            assert kept.kinds("aarch64").count("healed") == 0
            assert kept.keeper.counters.heals == 1

    asyncio.run(scenario())


def test_a_disabled_entry_is_enabled(tmp_path: Path, guarded: bool) -> None:
    async def scenario() -> None:
        async with keeping(tmp_path, found(tmp_path), guarded=guarded) as kept:
            write(kept, "qemu-aarch64", "0")
            await kept.until(lambda: kept.table()["qemu-aarch64"].enabled, "it is enabled")
            await whole_again(kept, tmp_path)
            assert kept.keeper.counters.registrations == 3  # enabled, not registered anew

    asyncio.run(scenario())


def test_that_it_executes_again_is_no_news_each_time(tmp_path: Path, guarded: bool) -> None:
    """Each repair is told, as long as they are few; "ready" only after "failed"."""

    async def scenario() -> None:
        async with keeping(tmp_path, found(tmp_path, "aarch64"), guarded=guarded) as kept:
            for _ in range(8):
                probes = kept.keeper.counters.probes_ok
                write(kept, "qemu-aarch64", "0")
                await kept.until(lambda: kept.table()["qemu-aarch64"].enabled, "it is enabled")
                kept.keeper.proving.probe_soon("aarch64")
                await kept.until(
                    lambda probes=probes: kept.keeper.counters.probes_ok > probes,  # type: ignore[misc]
                    "it is executed",
                )
                await kept.until_ready()
            assert kept.kinds("aarch64").count("ready") == 1
            kept.keeper.update(kept.choices, [])
            await kept.until(lambda: kept.table() == {}, "it is not wanted")
            kept.keeper.update(kept.choices, kept.choices)
            await kept.until_ready()
            assert kept.kinds("aarch64").count("ready") == 2  # that is news again

    asyncio.run(scenario())


def test_a_flushed_table_is_whole_again(tmp_path: Path, guarded: bool) -> None:
    async def scenario() -> None:
        async with keeping(tmp_path, found(tmp_path), guarded=guarded) as kept:
            write(kept, "status", "-1")
            await whole_again(kept, tmp_path)

    asyncio.run(scenario())


def test_a_table_that_was_switched_off_is_on_again(tmp_path: Path, guarded: bool) -> None:
    async def scenario() -> None:
        async with keeping(tmp_path, found(tmp_path), guarded=guarded) as kept:
            write(kept, "status", "0")
            await kept.until(kept.pinned.instance.enabled, "the table is on")
            await whole_again(kept, tmp_path)

    asyncio.run(scenario())


def test_an_unmounted_instance_is_mounted_again_with_its_entries(
    tmp_path: Path, guarded: bool
) -> None:
    async def scenario() -> None:
        async with keeping(tmp_path, found(tmp_path), guarded=guarded) as kept:
            kernel.detach(kept.pinned.binfmt)
            assert not kept.pinned.instance.mounted()
            await kept.until(kept.pinned.instance.mounted, "it is mounted")
            await whole_again(kept, tmp_path)
            # The keeper's own mount kept the table alive: nothing had to be registered anew.
            assert kept.keeper.counters.registrations == 3
            write(kept, "qemu-aarch64", "-1")  # and the new mount is watched too
            await whole_again(kept, tmp_path)

    asyncio.run(scenario())


def test_an_instance_that_is_gone_altogether_is_made_anew(tmp_path: Path, guarded: bool) -> None:
    async def scenario() -> None:
        async with keeping(tmp_path, found(tmp_path), guarded=guarded) as kept:
            kernel.detach(kept.pinned.user)
            kernel.detach(kept.pinned.binfmt)
            await kept.until(kept.pinned.alive, "namespace and table are pinned")
            await whole_again(kept, tmp_path)

    asyncio.run(scenario())


def test_a_hundred_removals_in_a_row_are_all_healed(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with keeping(tmp_path, found(tmp_path, "aarch64")) as kept:
            for _ in range(100):
                write(kept, "qemu-aarch64", "-1")
                await kept.until(lambda: "qemu-aarch64" in kept.table(), "it is back")
            await whole_again(kept, tmp_path)
            assert kept.keeper.counters.heals == 100

    asyncio.run(scenario())


def test_a_fight_is_backed_off_from_said_and_won_when_the_other_stops(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with keeping(tmp_path, found(tmp_path, "aarch64")) as kept:
            state = kept.keeper.kept["aarch64"]
            state.patience = Patience(burst=20, refill=0.01)
            stop = threading.Event()

            def fight() -> None:
                entry = Path(kept.pinned.binfmt, "qemu-aarch64")
                while not stop.is_set():
                    try:
                        entry.write_text("-1")
                    except OSError:
                        time.sleep(0.001)

            fighter = threading.Thread(target=fight)
            fighter.start()
            try:
                await kept.until(lambda: "contended" in kept.kinds("aarch64"), "it is said")
                assert "keeps removing" in state.reason
                before = kept.keeper.counters.heals
                await asyncio.sleep(0.5)
                assert kept.keeper.counters.heals - before <= 1  # it waits now
            finally:
                stop.set()
                fighter.join()
            await kept.until(lambda: "qemu-aarch64" in kept.table(), "it is repaired at last")
            await whole_again(kept, tmp_path)

    asyncio.run(scenario())


def test_patience_ends_every_fight_and_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """The values the keeper uses, against somebody who undoes each repair at once for an hour."""
    clock = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: clock)
    patience = Patience()
    waits: list[float] = []
    repairs, end = 0, clock + 3600
    while clock < end:
        wait = patience.ask()
        repairs += 1
        if wait:
            waits.append(wait)
        clock += wait + 0.01
    assert waits[:5] == [1.0, 2.0, 4.0, 4.0, 4.0]
    assert repairs < 256 + 3600 / 4 + 5
    clock += 200
    assert patience.ask() == 0.0


def test_a_fight_over_the_switch_of_one_entry_ends_too(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with keeping(tmp_path, found(tmp_path, "aarch64")) as kept:
            kept.keeper.kept["aarch64"].patience = Patience(burst=5)
            for _ in range(200):
                if kept.table()["qemu-aarch64"].enabled:
                    write(kept, "qemu-aarch64", "0")
                await asyncio.sleep(0.002)
            assert "contended" in kept.kinds("aarch64")
            assert kept.keeper.counters.heals <= 6
            await kept.until_ready()

    asyncio.run(scenario())


def test_a_registration_that_is_refused_is_told_once_and_tried_again(
    tmp_path: Path, guarded: bool
) -> None:
    async def scenario() -> None:
        (choice,) = found(tmp_path, "aarch64").values()
        copy = tmp_path / "qemu"
        shutil.copy(choice.offers[-1].path, copy)
        async with keeping(
            tmp_path, with_offers(choice, offer_of(choice, copy)), guarded=guarded
        ) as kept:
            copy.rename(tmp_path / "away")
            write(kept, "qemu-aarch64", "-1")
            await asyncio.sleep(0.5)
            assert kept.kinds("aarch64").count("refused") == 1
            state = kept.keeper.kept["aarch64"]
            assert "No such file" in state.reason
            assert kept.keeper.counters.refusals <= 2
            (tmp_path / "away").rename(copy)
            await kept.until_ready()
            assert state.refused == ""

    asyncio.run(scenario())


def test_a_lost_namespace_alone_is_made_anew(tmp_path: Path, guarded: bool) -> None:
    async def scenario() -> None:
        async with keeping(tmp_path, found(tmp_path), guarded=guarded) as kept:
            kernel.detach(kept.pinned.user)
            await kept.until(kept.pinned.alive, "the namespace is pinned again")
            await whole_again(kept, tmp_path)

    asyncio.run(scenario())


@pytest.mark.parametrize("broken", ["silent", "refused"])
def test_where_inotify_does_not_tell_the_table_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    """Older kernels were not measured: what inotify does there is found out at the start."""

    def watch(instance: Instance) -> int:
        if broken == "refused":
            raise OSError(24, "Too many open files")
        quiet = tmp_path / "quiet"
        quiet.mkdir(exist_ok=True)
        return kernel.inotify(str(quiet), kernel.IN_MODIFY)

    monkeypatch.setattr(Instance, "watch", watch)
    monkeypatch.setattr("maid.emulation.watch.POLL", 0.1)

    async def scenario() -> None:
        async with keeping(tmp_path, found(tmp_path)) as kept:
            write(kept, "qemu-s390x", "-1")
            await whole_again(kept, tmp_path)
            write(kept, "qemu-aarch64", "0")
            await kept.until(lambda: kept.table()["qemu-aarch64"].enabled, "it is enabled")

    asyncio.run(scenario())


def test_nothing_wakes_the_keeper_while_nothing_happens(tmp_path: Path, guarded: bool) -> None:
    async def scenario() -> None:
        async with keeping(tmp_path, found(tmp_path), guarded=guarded) as kept:
            await kept.until_ready()
            passes = 0
            reconcile = kept.keeper.reconcile

            def counted(why: str) -> None:
                nonlocal passes
                passes += 1
                reconcile(why)

            kept.keeper.reconcile = counted  # type: ignore[method-assign]
            await asyncio.sleep(0.3)
            quiet = passes
            await asyncio.sleep(1.0)
            assert passes == quiet

    asyncio.run(scenario())
