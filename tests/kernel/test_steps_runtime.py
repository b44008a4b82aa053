"""The runtimes that steps are run by, CPU models, and many steps at once."""

import base64
import shutil
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemons import Daemon, until
from stepping import Bind, Marked, Ran, gone_within, read_until, run, running, shell

from maid.errors import MaidError, PlatformUnavailable, StepRefused

ONE = '[emulation]\nplatforms = ["linux/s390x"]\n'


@pytest.fixture(scope="module", params=["crun", "runc"])
def by(request: pytest.FixtureRequest) -> Iterator[Daemon]:
    """A daemon that runs steps by this runtime."""
    if shutil.which(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    with Daemon(f'{ONE}[steps]\nruntime = "{request.param}"\n') as daemon:
        daemon.start()
        with daemon.client() as client:
            assert client.call("io.maid.Manager.Status")["status"]["runtime"] == request.param
        yield daemon


def test_native_and_foreign(by: Daemon, native: Path, foreign: Path) -> None:
    assert run(by, foreign, "/bin/uname", "-m").lines == ["s390x"]
    assert run(by, native, "/bin/echo", "x").lines == ["x"]


def test_statuses(by: Daemon, native: Path) -> None:
    (native / "plain").write_text("no program")
    assert run(by, native, "/nosuch").status == 127
    assert run(by, native, "/plain").status == 126
    assert shell(by, native, "exit 3").status == 3


def test_network_none_and_binds(by: Daemon, native: Path, tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    script = "tail -n +3 /proc/net/dev | cut -d: -f1; ls /b; touch /b/y; ls /sys/class/net"
    binds = [Bind(tmp_path, "/b", readonly=True)]
    ran = shell(by, native, script, network="none", binds=binds)
    assert ran.stdout.split() == ["lo", "x", "lo"]
    assert "Read-only" in ran.stderr


def test_overlay_and_read_only_root(by: Daemon, foreign: Path, tmp_path: Path) -> None:
    assert shell(by, foreign, "echo 1 > /new", overlay=tmp_path / "o").status == 0
    assert (tmp_path / "o/upper/new").exists()
    assert shell(by, foreign, "echo 1 > /new", readonly=True).status == 1
    assert not (foreign / "new").exists()


def test_the_machines_settings_and_cgroups_are_out_of_reach(by: Daemon, native: Path) -> None:
    script = "echo 1 > /proc/sys/vm/swappiness; ls /sys/fs/cgroup; cat /proc/keys"
    ran = shell(by, native, script)
    assert ran.stdout == ""
    assert "Read-only file system" in ran.stderr


def test_a_user_and_an_environment(by: Daemon, native: Path) -> None:
    ran = shell(by, native, "id -u; umask; echo $A", user=8, environment={"A": "B"})
    assert ran.lines == ["8", "0022", "B"]


def test_the_tree_ends(by: Daemon, native: Path) -> None:
    marked = Marked()
    with running(by, native, marked.tree()) as (client, identifier, output):
        read_until(output, b"up")
        client.close()
        assert gone_within(marked, 1.0)
    assert until(lambda: identifier not in by.steps())


def test_nothing_but_the_streams_is_open(by: Daemon, native: Path) -> None:
    assert run(by, native, "/bin/ls", "/proc/self/fd").lines == ["0", "1", "2", "3"]


def test_crun_does_not_execute_itself_twice(daemon: Daemon, native: Path) -> None:
    """It is started from a read-only clone, so it has no need to copy itself for safety."""
    with daemon.client() as client:
        if client.call("io.maid.Manager.Status")["status"]["runtime"] != "crun":
            pytest.skip("crun does not work here")
    log = daemon.directory / "trace"
    strace = subprocess.Popen(
        ["strace", "-f", "-qq", "-e", "trace=execve,execveat", "-o", log, "-p", str(daemon.pid)],
        stderr=subprocess.DEVNULL,
    )
    time.sleep(0.3)
    assert run(daemon, native, "/bin/true").status == 0
    strace.terminate()
    strace.wait()
    # The supervisor, the runtime, the first process, the command.
    assert log.read_text().count(" exec") == 4, log.read_text()


def test_mounts_in_a_bind_source_are_bound_too(native: Path, tmp_path: Path) -> None:
    """By runc here, because crun before 1.9 leaves them out in a user namespace."""
    inner = tmp_path / "inner"
    inner.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "inner", inner], check=True)
    try:
        (inner / "x").touch()
        with Daemon(f'{ONE}[steps]\nruntime = "runc"\n') as daemon:
            daemon.start()
            binds = [Bind(tmp_path, "/b"), Bind(tmp_path, "/ro", readonly=True)]
            ran = shell(daemon, native, "ls /b/inner; touch /ro/inner/y", binds=binds)
            assert ran.stdout == "x\n"
            assert "Read-only file system" in ran.stderr
    finally:
        subprocess.run(["umount", inner], check=True)


def test_without_a_runtime_that_works_everything_but_steps_does(
    native: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "crun"
    broken.write_text("#!/bin/sh\necho it is broken >&2; exit 1\n")
    broken.chmod(0o755)
    with Daemon(f'{ONE}[steps]\nruntime = "{broken}"\n') as daemon:
        daemon.start()
        ran = run(daemon, native, "/bin/true")
        assert isinstance(ran.refused, MaidError)
        assert "no OCI runtime works here" in ran.refused.message
        done = daemon.maid("run", "--rootfs", native, "--", "/bin/true")
        assert done.returncode == 125
        assert daemon.maid("ensure", "linux/s390x").returncode == 0
        assert daemon.steps() == []


# CPU models -------------------------------------------------------------------------------------


def capabilities(ran: Ran) -> int:
    """AT_HWCAP of a step that has written its auxiliary vector in base64 (getauxval(3))."""
    vector = struct.iter_unpack(">QQ", base64.b64decode("".join(ran.lines)))
    return next(value for kind, value in vector if kind == 16)


def test_a_cpu_model_for_one_step_is_that_steps_alone(daemon: Daemon, foreign: Path) -> None:
    command = ("/bin/base64", "/proc/self/auxv")
    usual = capabilities(run(daemon, foreign, *command))
    assert capabilities(run(daemon, foreign, *command, cpu="z900")) != usual
    assert capabilities(run(daemon, foreign, *command)) == usual


def test_a_cpu_model_that_there_is_not_is_refused(daemon: Daemon, foreign: Path) -> None:
    ran = run(daemon, foreign, "/bin/true", cpu="nosuch")
    assert isinstance(ran.refused, PlatformUnavailable)
    program = ran.refused.message.split()[6]
    assert ran.refused.message == (
        f"s390x cannot be emulated as nosuch: {program} does not know it"
        f" ({program} -cpu help lists what it knows)"
    )


def test_a_native_step_has_no_cpu_model(daemon: Daemon, native: Path) -> None:
    ran = run(daemon, native, "/bin/true", cpu="max")
    assert isinstance(ran.refused, StepRefused)


# At once ----------------------------------------------------------------------------------------


def test_eight_steps_at_once_do_not_mix(daemon: Daemon, native: Path, foreign: Path) -> None:
    out: dict[int, Ran] = {}

    def one(number: int) -> None:
        tree, network = (native, foreign)[number % 2], ("none", "host")[number // 2 % 2]
        script = f"echo {number}; echo {number} >&2; exit {number}"
        out[number] = shell(daemon, tree, script, network=network, tmpfs=["/tmp"])

    for _ in range(3):
        threads = [threading.Thread(target=one, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for number, ran in out.items():
            assert (ran.stdout, ran.stderr, ran.status) == (f"{number}\n", f"{number}\n", number)
