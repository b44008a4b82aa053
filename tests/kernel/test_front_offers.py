"""Which targets get a copy of their interpreter with the front, and what remains without one."""

import asyncio
import struct
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from keeping import configuration, keeping

from maid.binfmt.entry import Entry
from maid.config import Accelerate, Config, Scope, load
from maid.emulation import bake, emulators
from maid.emulation.bake import StoreIdentity, store_identity
from maid.emulation.cpus import CpuChoice
from maid.emulation.emulators import Choice
from maid.emulation.interpreters import IdentityCache
from maid.emulation.targets import TARGETS, own
from maid.settings import Acceleration

PLAIN, MODEL = "s390x", "aarch64"  # without and with a CPU model of their own
WITHOUT_PLATFORM = "hppa"


@pytest.fixture
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A configuration with a state directory of its own, whose path is short: the kernel takes 127
    bytes for an interpreter."""
    place = tmp_path_factory.mktemp("own")
    file = place / "maid.toml"
    file.write_text(f'[paths]\nstate = "{place}/state"\nruntime = "{place}/runtime"\n')
    return load(file, Scope.PRIVATE, place / "io.maid")


@pytest.fixture
def store(config: Config) -> Path:
    directory = config.paths.state / "store"
    directory.mkdir(parents=True)
    return directory


def choose(config: Config, name: str, cpu: str | None = None) -> Choice:
    """What could be registered for the target, with what was found on this machine before."""
    if name == own():
        pytest.skip(f"{name} is this machine's own")
    cache = IdentityCache(configuration(config.paths.state.parent).paths.state)
    wanted = None if cpu is None else {name: cpu}
    choice = emulators.choose([TARGETS[name]], config, cache, wanted)[name]
    if not choice.offers:
        pytest.skip(choice.problem)
    return choice


def shape(choice: Choice) -> list[tuple[bool, str]]:
    """For each offer, whether it is a copy, and its CPU model."""
    return [(offer.baked, offer.cpu) for offer in choice.offers]


def test_without_a_store_only_a_cpu_model_is_worth_a_copy(config: Config) -> None:
    assert shape(choose(config, PLAIN)) == [(False, "")]
    assert shape(choose(config, MODEL)) == [(True, "neoverse-n1"), (False, "")]
    assert shape(choose(config, MODEL, "")) == [(False, "")]


def test_with_a_store_every_target_of_a_platform_has_a_copy(config: Config, store: Path) -> None:
    for choice, model in (
        (choose(config, PLAIN), ""),
        (choose(config, MODEL), "neoverse-n1"),
        (choose(config, MODEL, ""), ""),
    ):
        assert shape(choice) == [(True, model), (False, "")]
        assert not [note for note in choice.notes if "used" in note]
        copy, plain = choice.offers
        assert copy.flags == plain.flags == "POCF"
        assert copy.interpreter == plain.interpreter
    assert shape(choose(config, WITHOUT_PLATFORM)) == [(False, "")]


def test_switched_off_no_copy_looks_into_a_store_that_is_left(config: Config, store: Path) -> None:
    """maid-runtime and maid-hook ask nobody: they mount what there is."""
    off = msgspec.structs.replace(config, acceleration=Acceleration(accelerate=Accelerate.OFF))
    assert shape(choose(off, PLAIN)) == [(False, "")]
    known = struct.pack("<QQ", store.stat().st_dev, store.stat().st_ino)
    copies = [Path(choose(each, MODEL).offers[0].path).read_bytes() for each in (config, off)]
    assert [known in copy for copy in copies] == [True, False]


def test_a_model_that_qemu_does_not_know_leaves_the_native_programs(
    config: Config, store: Path
) -> None:
    choice = choose(config, MODEL, "neoverse-n0")
    assert shape(choice) == [(True, ""), (False, "")]
    assert "CPU model neoverse-n0 is not used" in choice.notes[-1]


@pytest.mark.parametrize(
    ("models", "used"),
    [
        (("neoverse-n0", "cortex-a57"), "cortex-a57"),
        (("cortex-a57", "neoverse-n0"), "cortex-a57"),
        (("neoverse-n0",), ""),
    ],
)
def test_a_qemu_without_the_first_model_gets_the_next(
    config: Config,
    models: tuple[str, ...],
    used: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    changed = replace(TARGETS["aarch64"], cpu=CpuChoice(models, "for this test"))
    monkeypatch.setitem(TARGETS, "aarch64", changed)
    choice = choose(config, "aarch64")
    assert shape(choice) == ([(True, used)] if used else []) + [(False, "")]
    assert bool([note for note in choice.notes if "is not used" in note]) == (not used)


def test_without_flag_p_a_store_is_of_no_use(
    config: Config, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before Linux 5.12 no QEMU could know the argv[0] that it gets."""
    monkeypatch.setattr(emulators, "_kernel", lambda: (5, 10))
    assert shape(choose(config, PLAIN)) == [(False, "")]
    choice = choose(config, MODEL)
    assert shape(choice) == [(True, "neoverse-n1"), (False, "")]
    assert [offer.flags for offer in choice.offers] == ["OCF", "OCF"]


def test_a_copy_that_cannot_be_made_leaves_the_interpreter(
    config: Config, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> bake.Baked:
        raise bake.BakeError("no room")

    monkeypatch.setattr(bake, "bake", fail)
    choice = choose(config, PLAIN)
    assert shape(choice) == [(False, "")]
    assert choice.notes[-1] == "native programs are not used: no room"
    choice = choose(config, MODEL)
    assert shape(choice) == [(False, "")]
    assert choice.notes[-3:] == (
        "CPU model neoverse-n1 is not used: no room",
        "CPU model max,pauth=off is not used: no room",
        "native programs are not used: no room",
    )


def test_another_store_makes_another_copy(config: Config, store: Path) -> None:
    first = choose(config, PLAIN).offers[0]
    assert choose(config, PLAIN).offers[0] == first
    store.rename(store.with_name("old"))
    assert shape(choose(config, PLAIN)) == [(False, "")]
    store.mkdir()
    assert choose(config, PLAIN).offers[0].path != first.path
    store.rmdir()
    store.with_name("old").rename(store)
    assert choose(config, PLAIN).offers[0] == first


def test_only_a_directory_is_a_store(config: Config, store: Path) -> None:
    state = config.paths.state
    status = store.stat()
    assert store_identity(state) == StoreIdentity(status.st_dev, status.st_ino)
    store.rename(state / "elsewhere")
    assert store_identity(state) is None
    store.symlink_to("elsewhere")
    assert store_identity(state) is None
    store.unlink()
    store.touch()
    assert store_identity(state) is None
    assert store_identity(state / "elsewhere") is None


def test_a_keeper_registers_the_copy(tmp_path: Path, config: Config, store: Path) -> None:
    choice = choose(config, PLAIN)

    async def scenario() -> Entry:
        async with keeping(tmp_path, {PLAIN: choice}) as kept:
            await kept.until_ready()
            return next(iter(kept.table().values()))

    entry = asyncio.run(scenario())
    assert entry.interpreter == choice.offers[0].path
    assert entry.flags == "POCF"
