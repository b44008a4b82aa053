"""The front decides the same on every machine it is written for, whatever the kernel tells it.

Its decision (front_native.c) in an ordinary program, front/harness.c, for this machine and for the
other one, which QEMU runs here: each with the process as the kernel would describe it, also as it
never would.
"""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import compiled
import pytest
from front_store import Stage, Told, build_id, record

MACHINES = pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can change its root")
ASIDE = "aside\n"


@dataclass
class Kernel:
    """What the kernel says about a process: AT_FLAGS, AT_SECURE and the ids. `execfd` is the path
    of the file it passes open, "-" for none."""

    flags: int = 1
    secure: int = 0
    uid: int = 1000
    euid: int = 1000
    gid: int = 100
    egid: int = 100
    execfd: str = "-"


@pytest.fixture
def stage(tmp_path: Path, machine: str) -> Stage:
    """A root file system with a store; here the harness is what has to find it."""
    made = Stage(tmp_path / "rootfs", tmp_path, tmp_path, tmp_path)
    made.log.touch()
    return made


def start(
    stage: Stage,
    machine: str,
    kernel: Kernel,
    *arguments: str,
    environment: dict[str, str] | None = None,
    wrapper: tuple[str, ...] = (),
) -> str:
    """What the native program says, or what the front says it left behind."""
    numbers = (kernel.flags, kernel.secure, kernel.uid, kernel.euid, kernel.gid, kernel.egid)
    done = subprocess.run(
        [
            *(*wrapper, *compiled.runner(machine), compiled.harness(machine, "-static"), "start"),
            *(stage.root, *map(str, numbers), kernel.execfd, *arguments),
        ],
        env=environment or {},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@MACHINES
@pytest.mark.parametrize("execfd", ["-", "/told"])
def test_the_native_program_is_executed(stage: Stage, machine: str, execfd: str) -> None:
    stage.write(
        "i--inserted", "pso", "/dev/.maid/t/plugin.so", "b/told", build_id(stage.foreign).hex()
    )
    arguments = ("/told", "name", "one", "-plugin", "x.so")
    told = Told.parse(start(stage, machine, Kernel(execfd=execfd), *arguments))
    assert told.machine == compiled.HOST
    assert told.arguments == ("name", "--inserted", "one", "-plugin", "/dev/.maid/t/plugin.so")
    assert told.files == (0, 1, 2)
    assert stage.logged() == [("n", build_id(stage.foreign))]


@MACHINES
@pytest.mark.parametrize("execfd", ["-", "/told"])
def test_a_failure_leaves_everything_as_it_was(stage: Stage, machine: str, execfd: str) -> None:
    stage.write("i--inserted", "pso", "/dev/.maid/t/plugin.so")
    stage.native.unlink()
    arguments = ("/told", "name", "one", "-plugin", "x.so")
    assert start(stage, machine, Kernel(execfd=execfd), *arguments) == ASIDE
    own = build_id(stage.foreign)
    assert stage.logged() == [("n", own), ("f", own)]
    stage.write("Aone")
    assert start(stage, machine, Kernel(execfd=execfd), *arguments) == ASIDE
    assert stage.logged()[2:] == [("e", own)]


@MACHINES
@pytest.mark.parametrize(
    "kernel",
    [
        Kernel(flags=0),
        Kernel(flags=2),
        Kernel(secure=1),
        Kernel(secure=2),
        Kernel(euid=0),
        Kernel(uid=0),
        Kernel(egid=0),
        Kernel(gid=0),
    ],
)
def test_other_privileges_and_other_arguments_mean_qemu(
    stage: Stage, machine: str, kernel: Kernel
) -> None:
    assert start(stage, machine, kernel, "/told", "name") == ASIDE
    assert stage.logged() == []
    assert start(stage, machine, Kernel(flags=3), "/told", "name") != ASIDE


@MACHINES
def test_a_start_without_a_name_means_qemu(stage: Stage, machine: str) -> None:
    assert start(stage, machine, Kernel(), "/told") == ASIDE
    assert start(stage, machine, Kernel()) == ASIDE
    assert stage.logged() == []


@MACHINES
def test_the_file_that_the_kernel_passes_counts_and_not_the_path(
    stage: Stage, machine: str
) -> None:
    assert start(stage, machine, Kernel(execfd="/launcher"), "/told", "name") == ASIDE
    assert start(stage, machine, Kernel(execfd="/told"), "/launcher", "name") != ASIDE
    assert start(stage, machine, Kernel(execfd="/told"), "/gone", "name") != ASIDE


@MACHINES
def test_a_path_that_leads_to_no_program_is_not_waited_for(stage: Stage, machine: str) -> None:
    os.mkfifo(stage.root / "fifo")
    (stage.root / "link").symlink_to("fifo")
    (stage.root / "empty").touch()
    (stage.root / "loop").symlink_to("loop")
    for path in ("/fifo", "/link", "/empty", "/loop", "/gone", "/dev", "", "/dev/.maid"):
        assert start(stage, machine, Kernel(), path, "name") == ASIDE
    assert stage.logged() == [("e", b"")] * 8


@MACHINES
def test_a_record_on_another_file_system_is_not_the_stores(
    stage: Stage, machine: str, tmp_path: Path
) -> None:
    """Somebody mounted something over the store's directory of records."""
    copy = tmp_path / "record"
    copy.write_bytes(record())
    script = f'mount -t tmpfs none {stage.store}/id && cp {copy} {stage.record} && exec "$@"'
    wrapper = ("unshare", "-m", "sh", "-c", script, "sh")
    assert start(stage, machine, Kernel(), "/told", "name", wrapper=wrapper) == ASIDE
    assert start(stage, machine, Kernel(), "/told", "name") != ASIDE


@MACHINES
@pytest.mark.parametrize("name", ["LD_PRELOAD", "QEMU_X", "MAID_ACCELERATE"])
def test_the_environment_can_mean_qemu(stage: Stage, machine: str, name: str) -> None:
    assert start(stage, machine, Kernel(), "/told", "name", environment={name: "0"}) == ASIDE
    assert stage.logged() == [("e", build_id(stage.foreign))]


@MACHINES
def test_the_log_is_bounded_by_the_processs_own_limit(stage: Stage, machine: str) -> None:
    limits = {"0": 0, "1000": 0, "2000000": 1, "unlimited": 2}
    for limit, logged in limits.items():
        # In blocks of 512 bytes, as POSIX has it.
        wrapper = ("sh", "-c", f'ulimit -f {limit} && exec "$@"', "sh")
        assert start(stage, machine, Kernel(), "/told", "name", wrapper=wrapper) != ASIDE
        assert len(stage.logged()) == logged
