"""maid-profile: which programs ran, how often, how long; and the command sees no difference."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from daemons import Daemon
from stepping import copy, shell

from maid import native
from maid.acceleration import profile
from maid.acceleration.profile import Usage


def profiled(
    tmp_path: Path, *command: str, **options: Any
) -> tuple[subprocess.CompletedProcess[str], dict[str, Usage]]:
    """Run a command of this machine under maid-profile: what became of it, and its programs by
    the last part of their names."""
    log = tmp_path / "log"
    log.touch()
    done = subprocess.run(
        [native.path("maid-profile"), log, *command],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        **options,
    )
    return done, {os.path.basename(u.name): u for u in profile.parse(log.read_bytes())}


BUSY = "import time\nend = time.process_time() + {}\nwhile time.process_time() < end: pass\n"


def python(code: str) -> tuple[str, str, str]:
    return sys.executable, "-c", code


def test_programs_are_counted(tmp_path: Path) -> None:
    script = "for i in 1 2 3 4 5; do /bin/cat /dev/null; done; /bin/true & wait; exec /bin/ls /"
    done, programs = profiled(tmp_path, "/bin/sh", "-c", script)
    assert done.returncode == 0 and done.stdout
    shells = [usage for name, usage in programs.items() if name in ("dash", "bash", "busybox")]
    assert programs["cat"].starts == 5 and programs["true"].starts == 1
    assert programs["ls"].starts == 1
    assert [usage.starts for usage in shells] == [1]


def test_time_is_that_of_each_program_also_in_one_process(tmp_path: Path) -> None:
    """What was before an exec is not what comes after it."""
    code = BUSY.format(0.4) + "import os\nos.execv('/bin/sh', ['sh', '-c', 'exit 3'])"
    done, programs = profiled(tmp_path, *python(code))
    assert done.returncode == 3
    interpreter = programs[os.path.basename(os.path.realpath(sys.executable))]
    rest = sum(usage.cpu for usage in programs.values()) - interpreter.cpu
    assert 0.4 <= interpreter.cpu < 0.8
    assert rest < 0.1


def test_times_of_short_programs_are_not_cut(tmp_path: Path) -> None:
    """/proc has hundredths of a second; a program of a millisecond would be nothing."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    script = "i=0; while [ $i -lt 200 ]; do /bin/cat /dev/null; i=$((i+1)); done"
    _, programs = profiled(tmp_path, "/bin/sh", "-c", script)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    whole = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    found = sum(usage.cpu for usage in programs.values())
    assert programs["cat"].starts == 200
    assert programs["cat"].cpu > 0.02
    assert whole * 0.3 < found <= whole


def test_user_and_system_time_are_told_apart(tmp_path: Path) -> None:
    _, busy = profiled(
        tmp_path, *python("import hashlib\nfor _ in range(500): hashlib.sha256(b'x' * (1 << 20))")
    )
    (tmp_path / "log").unlink()
    _, copying = profiled(
        tmp_path, "/bin/dd", "if=/dev/zero", "of=/dev/null", "bs=1M", "count=20000"
    )
    usage = next(iter(busy.values()))
    assert usage.user > 2 * usage.system
    assert copying["dd"].system > 2 * copying["dd"].user


def test_the_largest_process_is_the_peak(tmp_path: Path) -> None:
    _, programs = profiled(tmp_path, *python("x = b'x' * (200 << 20)"))
    (usage,) = programs.values()
    assert 200 << 20 <= usage.peak < 300 << 20


def test_threads_are_their_processs(tmp_path: Path) -> None:
    code = "import threading, hashlib\n" + (
        "def work():\n hashlib.sha256(b'x' * (150 << 20))\n"
        "threads = [threading.Thread(target=work) for _ in range(3)]\n"
        "[t.start() for t in threads]; [t.join() for t in threads]"
    )
    _, programs = profiled(tmp_path, *python(code))
    (usage,) = programs.values()
    assert usage.starts == 1 and usage.unfinished == 0
    assert usage.cpu > 0.2


def test_a_thread_that_executes_is_its_process_from_then_on(tmp_path: Path) -> None:
    """The kernel gives it the number of the process, and ends all other threads (execve(2))."""
    code = (
        "import threading, os, time\n"
        "threading.Thread(target=time.sleep, args=(60,)).start()\n"
        "threading.Thread(target=os.execv, args=('/bin/sh', ['sh', '-c', '/bin/cat /dev/null']))"
        ".start()\ntime.sleep(60)"
    )
    done, programs = profiled(tmp_path, *python(code))
    assert done.returncode == 0
    assert programs["cat"].starts == 1
    assert sum(usage.unfinished for usage in programs.values()) == 0


def test_a_main_thread_that_ends_first_leaves_the_process(tmp_path: Path) -> None:
    code = (
        "import ctypes, hashlib, threading\n"
        "def work():\n for _ in range(300): hashlib.sha256(b'x' * (1 << 20))\n"
        "threading.Thread(target=work).start()\n"
        "ctypes.CDLL(None).pthread_exit(None)"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    _, programs = profiled(tmp_path, *python(code))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    whole = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    (usage,) = programs.values()
    assert 0.8 * whole < usage.cpu <= whole and usage.unfinished == 0


def test_an_executed_program_that_was_forked_without_a_copy(tmp_path: Path) -> None:
    """posix_spawn(3) uses vfork."""
    code = "import subprocess\nfor _ in range(20): subprocess.run(['/bin/cat', '/dev/null'])"
    _, programs = profiled(tmp_path, *python(code))
    assert programs["cat"].starts == 20


def test_thousands_of_processes(tmp_path: Path) -> None:
    script = "i=0; while [ $i -lt 3000 ]; do (:) ; i=$((i+1)); done; /bin/true"
    done, programs = profiled(tmp_path, "/bin/sh", "-c", script)
    assert done.returncode == 0
    assert programs["true"].starts == 1


@pytest.mark.parametrize("script, status", [("exit 9", 9), ("kill -9 $$", -9), ("kill -6 $$", -6)])
def test_it_ends_as_the_command_does(tmp_path: Path, script: str, status: int) -> None:
    done, _ = profiled(tmp_path, "/bin/sh", "-c", script)
    assert done.returncode == status


@pytest.mark.parametrize("command, status", [("/no/such", 127), ("/etc/passwd", 126)])
def test_a_command_that_cannot_be_executed(tmp_path: Path, command: str, status: int) -> None:
    done, programs = profiled(tmp_path, command)
    assert done.returncode == status and command in done.stderr
    assert programs == {}


def test_stopping_and_continuing_works_as_ever(tmp_path: Path) -> None:
    script = (
        "sh -c 'kill -STOP $$; echo continued' & p=$!;"
        "while ! grep -q 'State:.[Tt]' /proc/$p/status; do sleep 0.05; done; kill -CONT $p; wait $p"
    )
    done, _ = profiled(tmp_path, "/bin/sh", "-c", script)
    assert done.stdout == "continued\n"


def test_signals_reach_the_command(tmp_path: Path) -> None:
    script = "trap 'echo got; exit 4' USR1; kill -USR1 $$; sleep 5"
    done, _ = profiled(tmp_path, "/bin/sh", "-c", script)
    assert (done.returncode, done.stdout) == (4, "got\n")


def test_a_command_that_is_killed_has_been_looked_at(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.touch()
    process = subprocess.Popen([native.path("maid-profile"), log, *python(BUSY.format(30))])
    end = time.monotonic() + 20
    while not log.read_bytes().count(b"\0"):
        assert time.monotonic() < end
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    (usage,) = profile.parse(log.read_bytes())
    assert usage.unfinished == 1 and usage.cpu > 0.3


def test_what_is_left_running_is_told_as_unfinished(tmp_path: Path) -> None:
    done, programs = profiled(
        tmp_path, "/bin/sh", "-c", "/bin/sleep 30 >&- 2>&- & sleep 0.5; exit 0"
    )
    assert done.returncode == 0
    assert programs["sleep"].unfinished == 1


# In steps -----------------------------------------------------------------------------------------


def document(daemon: Daemon, tree: Path, *arguments: str, **options: Any) -> dict[str, Any]:
    ran = daemon.maid("accel", "profile", "--json", "--rootfs", tree, *arguments, **options)
    assert ran.stdout, ran.stderr
    answer = json.loads(ran.stdout)
    assert isinstance(answer, dict)
    return {**answer, "exit": ran.returncode, "stderr": ran.stderr}


@pytest.fixture(scope="module")
def arm64(trees: Path) -> Path:
    from daemons import rootfs

    return copy(rootfs("busybox-arm64"), trees / "profiled")


def test_emulated_programs_have_their_own_names(daemon: Daemon, arm64: Path) -> None:
    """And not the interpreter's, which the kernel really executes."""
    answer = document(
        daemon, arm64, "--", "/bin/sh", "-c", "echo out; /bin/md5sum /bin/busybox; exit 5"
    )
    assert answer["exit"] == 5 and answer["result"]["status"] == 5
    assert "out" in answer["stderr"]
    programs = {(p["name"], p["kind"]): p for p in answer["programs"]}
    assert ("/bin/sh", "emulated") in programs
    assert not any("qemu" in name for name, _ in programs)
    totals = answer["totals"]
    assert totals["emulated"]["starts"] >= 1 and totals["native"]["starts"] == 0
    used = answer["result"]["user"] + answer["result"]["system"]
    assert 0 < totals["emulated"]["user"] + totals["emulated"]["system"] <= used


def test_a_native_step_has_programs_of_its_own(daemon: Daemon, native: Path) -> None:
    answer = document(daemon, native, "--", "/bin/sh", "-c", "/bin/cat /dev/null")
    assert answer["totals"]["own"]["starts"] >= 1
    assert answer["totals"]["emulated"]["starts"] == 0


def test_people_get_a_table(daemon: Daemon, arm64: Path) -> None:
    ran = daemon.maid("accel", "profile", "--rootfs", arm64, "--", "/bin/sh", "-c", "echo out")
    assert ran.returncode == 0
    header, first, *_ = ran.stdout.splitlines()
    assert header.split() == ["CPU", "SHARE", "USER", "SYSTEM", "STARTS", "PEAK", "RAN", "PROGRAM"]
    assert first.split()[-2:] == ["emulated", "/bin/sh"]
    assert "out" not in ran.stdout and "out\n" in ran.stderr


def test_the_command_has_the_powers_it_has_without(daemon: Daemon, arm64: Path) -> None:
    """The tracer's own, with which it follows set-user-ID programs, are not handed on."""
    script = "grep Cap /proc/self/status; grep NoNew /proc/self/status"
    for user in (0, 1000):
        plain = shell(daemon, arm64, script, user=user, group=user).lines
        ran = daemon.maid(
            *("accel", "profile", "--rootfs", arm64, "--user", f"{user}:{user}"),
            *("--", "/bin/sh", "-c", script),
        )
        assert ran.stderr.splitlines() == plain


def test_set_user_id_programs_get_their_owner(daemon: Daemon, native: Path) -> None:
    """A traced process would not (ptrace(2)), unless its tracer may trace anybody."""
    source = '#include <unistd.h>\n#include <stdio.h>\nint main(void){printf("%d\\n",geteuid());}'
    program = native / "bin/suid"
    command = ["cc", "-static", "-x", "c", "-o", program, "-"]
    subprocess.run(command, input=source, text=True, check=True)
    program.chmod(0o4755)
    script = "/bin/suid; grep Uid /proc/self/status"
    try:
        plain = shell(daemon, native, script, user=1000, group=1000)
        ran = daemon.maid(
            *("accel", "profile", "--rootfs", native, "--user", "1000:1000"),
            *("--", "/bin/sh", "-c", script),
        )
    finally:
        program.unlink()
    assert plain.lines[0] == "0"
    assert ran.stderr.splitlines() == plain.lines


def test_a_time_limit_leaves_what_was_seen_until_then(daemon: Daemon, arm64: Path) -> None:
    answer = document(
        daemon, arm64, "--timeout", "2.5", "--", "/bin/sh", "-c", "while :; do :; done"
    )
    assert answer["exit"] == 137
    (program,) = answer["programs"]
    assert program["unfinished"] == 1 and program["user"] + program["system"] > 0.5
