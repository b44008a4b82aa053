"""Where the cgroups of limited steps lie, and what is written to them, for each layout."""

import os
from pathlib import Path

import pytest

from maid.errors import StepRefused
from maid.steps import cgroups
from maid.steps.cgroups import Limits


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cgroup file system that takes everything."""
    monkeypatch.setattr(cgroups, "ROOT", str(tmp_path))
    return tmp_path


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A stand-in for /proc/self/cgroup."""
    real, file = open, tmp_path / "own"

    def opened(path: object, *rest: object, **more: object) -> object:
        return real(file if path == "/proc/self/cgroup" else path, *rest, **more)  # type: ignore

    monkeypatch.setattr("builtins.open", opened)
    return file


def v2(group: Path, processes: str = "") -> None:
    group.mkdir(parents=True, exist_ok=True)
    (group / "cgroup.subtree_control").write_text("")
    (group / "cgroup.procs").write_text(processes)


def test_without_a_limit_there_is_no_cgroup() -> None:
    assert cgroups.plan("x", 0, 0.0) is None


def test_v1_has_one_for_each_controller_below_the_daemons_own(root: Path, own: Path) -> None:
    own.write_text("4:memory:/service\n2:cpu,cpuacct:/service\n0::/\n")
    for tree in ("memory", "cpu,cpuacct"):
        (root / tree / "service").mkdir(parents=True)
    plan = cgroups.plan("step", 64 << 20, 1.5)
    assert plan is not None
    plan.make()
    memory = root / "memory/service/maid-steps/step"
    cpu = root / "cpu,cpuacct/service/maid-steps/step"
    assert plan.limits.directories == (str(memory), str(cpu))
    assert (memory / "memory.limit_in_bytes").read_text() == str(64 << 20)
    assert (cpu / "cpu.cfs_quota_us").read_text() == "150000"
    assert plan.limits.peak_file == f"{memory}/memory.max_usage_in_bytes"


def test_v1_needs_only_the_controllers_that_are_asked_for(root: Path, own: Path) -> None:
    """A Raspberry Pi has no memory controller unless it is told to."""
    own.write_text("2:cpu:/\n")
    (root / "cpu").mkdir()
    assert cgroups.plan("step", 0, 1.0) is not None
    with pytest.raises(StepRefused, match="no cgroup controller memory"):
        cgroups.plan("step", 64 << 20, 0.0)
    assert "controller memory" in cgroups.unavailable()


def test_v2_of_a_service_lies_beside_it(root: Path, own: Path) -> None:
    own.write_text("0::/system.slice/maid.service\n")
    (root / "cgroup.controllers").write_text("cpu memory")
    v2(root / "system.slice/maid.service", "1 2")
    v2(root / "system.slice/maid-steps.service", "77")
    plan = cgroups.plan("step", 64 << 20, 0.5)
    assert plan is not None
    plan.make()
    steps = root / "system.slice/maid-steps.service/steps"
    assert plan.limits.directories == (f"{steps}/step",)
    assert (steps / "step/memory.max").read_text() == str(64 << 20)
    assert (steps / "step/cpu.max").read_text() == "50000 100000"
    assert (steps / "cgroup.subtree_control").read_text() == "+memory +cpu"
    assert (root / "system.slice/maid-steps.service/owner/cgroup.procs").read_text() == "77"


def test_v2_a_daemon_that_is_alone_moves_to_a_leaf(root: Path, own: Path) -> None:
    own.write_text("0::/mine\n")
    (root / "cgroup.controllers").write_text("cpu memory")
    v2(root / "mine", str(os.getpid()))
    assert cgroups.unavailable() == ""
    assert (root / "mine/daemon/cgroup.procs").read_text() == str(os.getpid())


def test_v2_other_processes_are_never_moved(root: Path, own: Path) -> None:
    """A daemon started from a shell shares its group with that shell."""
    own.write_text("0::/user.slice/session\n")
    (root / "cgroup.controllers").write_text("cpu memory")
    v2(root / "user.slice/session", f"{os.getpid()}\n4711")
    assert "other processes live in the cgroup" in cgroups.unavailable()
    assert not (root / "user.slice/session/daemon").exists()


def test_a_limit_that_cannot_be_set_leaves_nothing(root: Path, own: Path) -> None:
    own.write_text("4:memory:/\n2:cpu:/\n")
    (root / "memory").mkdir()
    (root / "cpu").mkdir()
    plan = cgroups.plan("step", 64 << 20, 1.0)
    assert plan is not None
    os.mkdir(plan.limits.directories[1])  # its mkdir fails
    with pytest.raises(StepRefused, match="do not allow the limit"):
        plan.make()
    assert not (root / "memory/maid-steps/step").exists()


@pytest.mark.parametrize("name", ["memory.events", "memory.oom_control"])
def test_the_memory_killer_is_noticed(tmp_path: Path, name: str) -> None:
    limits = Limits((str(tmp_path),), "")
    assert not limits.was_killed_for_memory()
    (tmp_path / name).write_text("low 0\nunder_oom 0\noom_kill 0\n")
    assert not limits.was_killed_for_memory()
    (tmp_path / name).write_text("low 0\nunder_oom 0\noom_kill 2\n")
    assert limits.was_killed_for_memory()


def test_a_cgroup_that_is_in_use_is_said_to_be(tmp_path: Path) -> None:
    (tmp_path / "used/child").mkdir(parents=True)
    assert not Limits((f"{tmp_path}/used",), "").remove()
    assert Limits((f"{tmp_path}/used/child", f"{tmp_path}/nosuch"), "").remove()
    assert Limits((f"{tmp_path}/used",), "").remove()
