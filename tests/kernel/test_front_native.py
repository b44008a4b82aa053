"""The front executes the native program of the store, and steps aside wherever it must not.

With the installed QEMU, as binfmt_misc starts it, in private instances; the store is a directory
made by hand. Each test compares with what the same program says under QEMU alone.
"""

from pathlib import Path

import compiled
import pytest
from front_store import Stage, build_id

needs_other_machine = pytest.mark.skipif(
    compiled.HOST == "aarch64", reason="arm64 programs run natively here"
)
pytestmark = needs_other_machine


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled.front(compiled.HOST, tmp_path_factory.mktemp("front"))


@pytest.fixture
def stage(tmp_path: Path, front: Path, tmp_path_factory: pytest.TempPathFactory) -> Stage:
    state = tmp_path_factory.getbasetemp() / "state"
    return Stage(tmp_path / "rootfs", Path(compiled.runner("aarch64")[0]), front, state)


ARGUMENTS = ("one", "", "--three=3")


def test_the_native_program_gets_what_the_foreign_one_would(stage: Stage) -> None:
    native = stage.told(*ARGUMENTS, HOME="/", EMPTY="")
    foreign = stage.told(*ARGUMENTS, HOME="/", EMPTY="", interpreter=stage.qemu)
    assert (native.machine, foreign.machine) == (compiled.HOST, "aarch64")
    assert native.arguments == foreign.arguments == ("told", *ARGUMENTS)
    assert sorted(native.environment) == sorted(foreign.environment) == ["EMPTY=", "HOME=/"]
    assert native.files == foreign.files == (0, 1, 2)


def test_the_log_says_what_ran(stage: Stage) -> None:
    stage.log.touch()
    own = build_id(stage.foreign)
    assert stage.told().machine == compiled.HOST
    assert stage.logged() == [("n", own)]
    stage.record.unlink()
    assert stage.told().machine == "aarch64"
    assert stage.logged()[1:] == [("e", own)]
    stage.write(program="/dev/.maid/t/bin/gone")
    assert stage.told().machine == "aarch64"
    assert stage.logged()[2:] == [("n", own), ("f", own)]


@pytest.mark.parametrize("name", ["LD_PRELOAD", "MAID_ACCELERATE"])
def test_some_variables_mean_qemu(stage: Stage, name: str) -> None:
    assert stage.told(**{name: "0"}).machine == "aarch64"
    assert stage.told(**{name: ""}).machine == compiled.HOST
