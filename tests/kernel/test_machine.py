"""emulation/machine.py: all instances together: made, refreshed, released, taken up."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from keeping import configuration

from maid.binfmt.namespace import IdRange, Mapping
from maid.config import Config, Scope
from maid.emulation.machine import Machine
from maid.emulation.probes import Cause, ProbeResult
from maid.emulation.status import State
from maid.emulation.targets import TARGETS, own
from maid.errors import PlatformUnavailable
from maid.platforms import parse

MEMBER = Mapping((IdRange(0, 4321, 1),), (IdRange(0, 4321, 1),))


def few(tmp_path: Path) -> Config:
    """A configuration that serves two platforms: the tests are about instances, not about QEMU."""
    config = configuration(tmp_path)
    platforms = ("linux/arm64", "linux/s390x")
    emulation = msgspec.structs.replace(config.emulation, platforms=platforms)
    return msgspec.structs.replace(config, emulation=emulation)


@contextlib.asynccontextmanager
async def running(config: Config, *, leave: bool = False) -> AsyncIterator[Machine]:
    """A machine in private scope; with `leave` it stops as a daemon does that will come back."""
    machine = Machine(config, Scope.PRIVATE, lambda *_: None)
    await machine.start()
    try:
        yield machine
    finally:
        if not leave:
            machine.release()
        machine.stop()


def mounted_below(directory: Path) -> list[str]:
    text = Path("/proc/self/mountinfo").read_text()
    return [line.split()[4] for line in text.splitlines() if f" {directory}/" in line]


def test_rule_2_the_machines_own_architecture_is_never_wanted(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(configuration(tmp_path)) as machine:
            assert own() not in machine.wanted()
            table = machine.served.instance.entries()
            assert table
            assert not any(entry.catches(TARGETS[own()].probe or b"") for entry in table.values())

    asyncio.run(scenario())


def test_an_instance_for_a_member_is_made_once_and_proven(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(few(tmp_path)) as machine:
            made = await asyncio.gather(*(machine.table_for(MEMBER, "uid-4321") for _ in range(5)))
            assert len({id(table) for table in made}) == 1
            assert made[0].keeper.proven("aarch64")
            assert made[0].pinned is not None and made[0].pinned.mapping == MEMBER

    asyncio.run(scenario())


def test_other_models_get_other_instances(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(few(tmp_path)) as machine:
            first = await machine.table_for(None, cpu={"aarch64": "cortex-a57"})
            second = await machine.table_for(None, cpu={"aarch64": "max,pauth-impdef=on"})
            assert first is not second
            offer = second.keeper.kept["aarch64"].offer
            assert offer is not None and offer.cpu == "max,pauth-impdef=on"
            with pytest.raises(PlatformUnavailable, match="cannot be emulated as no-such"):
                await machine.table_for(None, cpu={"aarch64": "no-such"})

    asyncio.run(scenario())


def test_release_is_held_to_until_a_reload(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(few(tmp_path)) as machine:
            assert set(machine.release()) == {"qemu-aarch64", "qemu-s390x"}
            await machine.refresh()  # as an upgrade of some package does
            machine._begin_refresh()
            assert machine._refreshing is None
            with pytest.raises(PlatformUnavailable):
                await machine.ensure(parse("linux/arm64"))
            native = next(s for s in machine.statuses() if s.target == own())
            assert (await machine.ensure(parse(native.platform or ""))).state is State.native
            await machine.refresh(machine.config)
            assert (await machine.ensure(parse("linux/arm64"))).state is State.ready

    asyncio.run(scenario())


def test_release_leaves_what_running_steps_use(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(few(tmp_path)) as machine:
            used = await machine.table_for(MEMBER, "uid-4321")
            idle = await machine.table_for(None, cpu={"aarch64": "cortex-a57"})
            machine.release(keep={"uid-4321"})
            assert set(used.instance.entries()) == {"qemu-aarch64", "qemu-s390x"}
            assert used.pinned is not None and used.pinned.alive()
            assert idle.pinned is not None and not idle.pinned.alive()
            machine.release()
            assert not used.pinned.alive()

    asyncio.run(scenario())


def test_rule_8_instances_of_an_earlier_daemon_are_cleaned_up(tmp_path: Path) -> None:
    runtime = tmp_path / "runtime"

    async def scenario() -> None:
        async with running(few(tmp_path), leave=True) as machine:
            await machine.table_for(MEMBER, "uid-4321")
            await machine.table_for(None, cpu={"aarch64": "cortex-a57"})
        assert len(mounted_below(runtime)) == 6  # rule 6: they stay
        async with running(few(tmp_path)) as machine:
            assert machine.served.keeper.counters.registrations == 0
            machine.clean(keep={"uid-4321"})
            assert (runtime / "instances" / "uid-4321").exists()
            assert len(mounted_below(runtime)) == 4
        assert mounted_below(runtime) == []

    asyncio.run(scenario())


def test_a_native_platform_stays_native_when_its_probe_fails_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(few(tmp_path)) as machine:
            if not machine.is_native("i386"):
                pytest.skip("this machine runs no 386 programs")
            late = ProbeResult("exec", False, 10000.0, "no answer", Cause.TIMEOUT)
            machine.natives["i386"] = late
            assert machine.is_native("i386")
            await machine.refresh(machine.config)
            assert not any(name.endswith("i386") for name in machine.served.instance.names())
            status = next(s for s in machine.statuses() if s.target == "i386")
            assert (status.state, status.reason) == (State.failed, "no answer")

    asyncio.run(scenario())


def test_what_is_excluded_is_not_ensured(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(few(tmp_path)) as machine:
            with pytest.raises(PlatformUnavailable, match="excluded by the configuration"):
                await machine.ensure(parse("linux/riscv64"))
            with pytest.raises(PlatformUnavailable, match="there are: linux/386"):
                await machine.ensure(parse("linux/nosuch"))

    asyncio.run(scenario())
