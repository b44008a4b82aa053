"""What a step is: its platform, its command's surroundings, its streams and its exit status."""

import json
import os
import select
import signal
import subprocess
import time
from pathlib import Path

import pytest
from daemons import MAID, Daemon, environment, rootfs
from stepping import Ran, copy, run, running, shell

from maid.errors import PlatformUnavailable, StepRefused


def test_a_native_step_runs_without_an_interpreter(daemon: Daemon, native: Path) -> None:
    ran = shell(daemon, native, "uname -m")
    assert ran.lines == [os.uname().machine]
    assert (ran.result["via"], ran.result["interpreter"]) == ("native", None)


def test_a_foreign_step_is_emulated_and_says_by_what(daemon: Daemon, foreign: Path) -> None:
    ran = shell(daemon, foreign, "uname -m", platform="linux/s390x")
    assert ran.lines == ["s390x"]
    assert ran.result["via"] == "emulated"
    assert "qemu-s390x" in ran.result["interpreter"]


@pytest.mark.parametrize("name, machine", [("arm64", "aarch64"), ("riscv64", "riscv64")])
def test_the_platform_is_that_of_the_root_file_system(
    daemon: Daemon, name: str, machine: str
) -> None:
    tree = rootfs(f"busybox-{name}")
    assert shell(daemon, tree, "uname -m", readonly=True).lines == [machine]


def test_a_root_file_system_of_another_platform_is_refused(daemon: Daemon, native: Path) -> None:
    ran = shell(daemon, native, "true", platform="linux/s390x")
    assert isinstance(ran.refused, StepRefused)
    assert "not for linux/s390x" in ran.refused.message
    assert "--platform linux/" in ran.refused.hint


def test_a_platform_that_nothing_serves_is_refused_with_those_there_are(
    daemon: Daemon, native: Path
) -> None:
    ran = shell(daemon, native, "true", platform="linux/sparc128")
    assert isinstance(ran.refused, PlatformUnavailable)
    assert "linux/arm64" in ran.refused.hint


def test_a_root_file_system_without_programs_needs_a_platform(
    daemon: Daemon, tmp_path: Path
) -> None:
    ran = shell(daemon, tmp_path, "true")
    assert isinstance(ran.refused, StepRefused)
    assert "name it" in ran.refused.hint


def test_a_file_is_no_root_file_system(daemon: Daemon, native: Path) -> None:
    ran = run(daemon, native / "bin/busybox", "/bin/true")
    assert isinstance(ran.refused, StepRefused)
    assert "no directory" in ran.refused.message


def test_a_fifo_in_the_place_of_a_program_stops_nobody(
    daemon: Daemon, native: Path, tmp_path: Path
) -> None:
    tree = copy(native, tmp_path / "tree")
    (tree / "bin/sh").unlink()
    os.mkfifo(tree / "bin/sh")
    before = time.monotonic()
    assert run(daemon, tree, "/bin/busybox", "true").status == 0
    assert time.monotonic() - before < 5


def test_a_device_in_the_place_of_a_program_is_not_opened(
    daemon: Daemon, native: Path, tmp_path: Path
) -> None:
    """Opening one has effects: a watchdog begins to count, a tape rewinds."""
    tree = copy(native, tmp_path / "tree")
    (tree / "bin/sh").unlink()
    subprocess.run(["mknod", tree / "bin/sh", "c", "1", "3"], check=True)
    with open(daemon.directory / "strace", "wb") as log:
        strace = subprocess.Popen(
            ["strace", "-f", "-e", "trace=openat,openat2", "-p", str(daemon.pid)], stderr=log
        )
        time.sleep(0.3)
        run(daemon, tree, "/bin/busybox", "true")
        strace.terminate()
        strace.wait()
    calls = (daemon.directory / "strace").read_text().splitlines()
    seen = [number for number, line in enumerate(calls) if '"bin/sh"' in line]
    assert seen
    for number in seen:
        assert "O_PATH" in calls[number]
        assert "/proc/self/fd" not in calls[number + 1], calls


def test_the_environment_is_what_was_given_and_a_path(daemon: Daemon, native: Path) -> None:
    ran = run(daemon, native, "/bin/env", environment={"A": "1 2", "UMLAUT": "ü=€"})
    assert sorted(ran.lines) == [
        "A=1 2",
        "HOME=/root",
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "UMLAUT=ü=€",
    ]


def test_nothing_of_the_emulator_is_in_the_environment(daemon: Daemon, foreign: Path) -> None:
    names = {line.partition("=")[0] for line in run(daemon, foreign, "/bin/env").lines}
    assert names == {"HOME", "PATH"}


def test_the_working_directory_is_the_one_asked_for(daemon: Daemon, native: Path) -> None:
    assert run(daemon, native, "/bin/pwd", cwd="/usr").lines == ["/usr"]
    assert run(daemon, native, "/bin/pwd").lines == ["/"]


def test_user_group_and_umask(daemon: Daemon, native: Path) -> None:
    ran = shell(
        daemon, native, "id -u; id -g; umask; grep Groups /proc/self/status", user=5, group=7
    )
    assert [line.strip() for line in ran.lines] == ["5", "7", "0022", "Groups:"]


def test_a_user_who_is_not_root_has_no_capabilities(daemon: Daemon, native: Path) -> None:
    script = "grep -E 'CapEff|CapPrm|CapAmb|CapInh' /proc/self/status"
    lines = shell(daemon, native, script, user=5).lines
    assert {line.split()[1] for line in lines} == {"0" * 16}


def test_names_of_user_and_group_are_those_of_the_root_file_system(
    daemon: Daemon, native: Path
) -> None:
    (native / "etc").mkdir(exist_ok=True)
    (native / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\nbuilder:x:77:78::/:/bin/sh\n")
    (native / "etc/group").write_text("root:x:0:\nteam:x:99:\n")
    for asked, ids in (
        ("builder", "77 78"),
        ("builder:team", "77 99"),
        ("77", "77 78"),
        ("0:team", "0 99"),
        ("3:4", "3 4"),
    ):
        done = daemon.maid(
            *("run", "--rootfs", native, "--user", asked),
            *("--", "/bin/sh", "-c", "echo $(id -u) $(id -g)"),
        )
        assert done.stdout.strip() == ids, (asked, done)
    done = daemon.maid("run", "--rootfs", native, "--user", "nosuch", "--", "/bin/true")
    assert done.returncode == 125
    assert "no user nosuch" in done.stderr


def test_a_passwd_that_is_a_link_out_of_the_root_file_system_is_not_followed(
    daemon: Daemon, native: Path, tmp_path: Path
) -> None:
    tree = copy(native, tmp_path / "tree")
    secret = tmp_path / "passwd"
    secret.write_text("intruder:x:66:66::/:/bin/sh\n")
    (tree / "etc/passwd").unlink(missing_ok=True)
    (tree / "etc/passwd").symlink_to(secret)
    done = daemon.maid("run", "--rootfs", tree, "--user", "intruder", "--", "/bin/id")
    assert done.returncode == 125, done


@pytest.mark.parametrize("tree", ["native", "foreign"])
@pytest.mark.parametrize(
    "script, status, signal",
    [("exit 0", 0, None), ("exit 42", 42, None), ("kill -9 $$", 137, 9), ("kill -15 $$", 143, 15)],
)
def test_the_exit_status_is_the_commands_own_or_128_and_its_signal(
    daemon: Daemon,
    request: pytest.FixtureRequest,
    tree: str,
    script: str,
    status: int,
    signal: int | None,
) -> None:
    # The first process of a pid namespace takes no signal from itself, so a child does.
    if signal:
        script = f"/bin/sh -c '{script}'; exit $?"
    ran = shell(daemon, request.getfixturevalue(tree), script)
    assert ran.status == status


def test_a_step_that_is_killed_by_a_signal_says_by_which(daemon: Daemon, native: Path) -> None:
    ran = shell(daemon, native, "ulimit -t 1; while :; do :; done")
    assert (ran.result["outcome"], ran.status) in (("signaled", 137), ("signaled", 152)), ran
    assert ran.result["signal"] == ran.status - 128


def refused_by_the_runtime(ran: Ran) -> tuple[int, str]:
    assert ran.result["outcome"] == "refused"
    return ran.status, ran.result["error"]


def test_127_is_a_command_that_is_not_there(daemon: Daemon, native: Path) -> None:
    for command in ("/nosuch", "nosuch"):
        status, error = refused_by_the_runtime(run(daemon, native, command))
        assert status == 127
        assert f"{command}: not found in the root file system" in error


def test_126_is_a_command_that_cannot_be_executed(daemon: Daemon, native: Path) -> None:
    (native / "plain").write_text("no program")
    for command in ("/plain", "/etc"):
        status, error = refused_by_the_runtime(run(daemon, native, command))
        assert status == 126, error
        assert f"{command}: cannot be executed" in error


def test_125_is_maid_that_failed(daemon: Daemon, native: Path) -> None:
    done = daemon.maid("run", "--rootfs", "/nosuch", "--", "/bin/true")
    assert done.returncode == 125
    assert "/nosuch cannot be opened" in done.stderr
    done = daemon.maid("run", "--rootfs", native / "bin/busybox", "--", "/bin/true")
    assert done.returncode == 125
    assert "is no directory" in done.stderr


def test_maid_run_exits_as_the_command_does(daemon: Daemon, native: Path) -> None:
    for script, status in (("exit 0", 0), ("exit 7", 7)):
        done = daemon.maid("run", "--rootfs", native, "--", "/bin/sh", "-c", script)
        assert done.returncode == status
    assert daemon.maid("run", "--rootfs", native, "--", "/nosuch").returncode == 127


def test_the_streams_are_the_callers_own_descriptors(daemon: Daemon, native: Path) -> None:
    script = "for i in 0 1 2; do stat -L -c %i /proc/self/fd/$i; done; cat; echo problem >&2"
    ran = shell(daemon, native, script, stdin=b"given\n")
    *inodes, given = ran.lines
    assert given == "given"
    assert len(set(inodes)) == 3
    assert ran.stderr == "problem\n"


def test_nothing_but_the_streams_is_open_in_a_step(daemon: Daemon, native: Path) -> None:
    """Nor anything of the daemon, nor of the runtime (CVE-2024-21626)."""
    # The fourth is the directory that ls itself reads.
    ran = run(daemon, native, "/bin/ls", "/proc/self/fd")
    assert ran.lines == ["0", "1", "2", "3"]


def test_the_reader_of_a_steps_output_sees_its_end_with_the_step(
    daemon: Daemon, native: Path
) -> None:
    reader, writer = os.pipe()
    process = subprocess.Popen(
        [MAID, "--socket", daemon.socket, "run", "--rootfs", native, "--", "/bin/echo", "hello"],
        stdout=writer,
        stdin=subprocess.DEVNULL,
        env=environment(),
    )
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        assert file.read() == b"hello\n"  # to its end: nobody else holds it
    assert process.wait(10) == 0


def test_a_step_that_closes_its_output_and_goes_on_has_closed_it(
    daemon: Daemon, native: Path
) -> None:
    script = "echo hello; exec >/dev/null 2>&1; sleep 60"
    with running(daemon, native, script) as (_, identifier, output):
        assert select.select([output], [], [], 10)[0]
        data = b""
        while piece := os.read(output, 100):
            data += piece
            assert select.select([output], [], [], 10)[0], "its end did not come"
        assert data == b"hello\n"
        assert identifier in running_steps(daemon)


def running_steps(daemon: Daemon) -> list[str]:
    with daemon.client() as client:
        return [step["id"] for step in client.call("io.maid.Steps.List")["steps"]]


def test_json_is_a_document_alone_on_standard_output(daemon: Daemon, native: Path) -> None:
    import json

    done = daemon.maid("run", "--json", "--rootfs", native, "--", "/bin/echo", "hello")
    document = json.loads(done.stdout)
    assert document["status"] == 0
    assert {"id", "outcome", "wall", "user", "system", "peak_memory", "via"} <= document.keys()
    assert done.stderr == "hello\n"


def test_a_closed_standard_input_is_an_empty_one(daemon: Daemon, native: Path) -> None:
    command = f"{MAID} --socket {daemon.socket} run --rootfs {native} -- /bin/wc -c <&-"
    done = subprocess.run(
        ["sh", "-c", command], capture_output=True, text=True, env=environment(), timeout=20
    )
    assert done.stdout.strip() == "0", done


def test_what_is_no_utf_8_is_refused_and_not_mangled(daemon: Daemon, native: Path) -> None:
    done = daemon.maid("run", "--rootfs", native, "--", "/bin/echo", "caf\udce9")
    assert done.returncode in (2, 125), done
    assert "Traceback" not in daemon.text()


def test_arguments_of_a_hundred_kilobytes_arrive(daemon: Daemon, native: Path) -> None:
    ran = run(
        daemon, native, "/bin/sh", "-c", "echo ${#1} ${#2}", "x", "a" * 100_000, "b" * 100_000
    )
    assert ran.lines == ["100000 100000"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT])
def test_a_command_that_sends_itself_a_signal_dies_of_it(
    daemon: Daemon, foreign: Path, number: int
) -> None:
    """As the first process of its pid namespace it could not, and QEMU would wait for ever."""
    done = daemon.maid("run", "--rootfs", foreign, "--json", "--", "sh", "-c", f"kill -{number} $$")
    result = json.loads(done.stdout)
    assert (result["outcome"], result["signal"]) == ("signaled", number)
    assert done.returncode == 128 + number
