"""How the daemon starts, what stops it from starting, and how it ends."""

from __future__ import annotations

import os
import pwd
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from daemons import MAID, environment, mounts_below, until
from serving import FEW, Serving

NOBODY = pwd.getpwnam("nobody")


def refused(*arguments: str | Path, user: int = 0) -> subprocess.CompletedProcess[str]:
    """What `maid daemon` does with these arguments, which it should refuse at once."""
    done = subprocess.run(
        [MAID, "daemon", *arguments],
        capture_output=True,
        text=True,
        timeout=20,
        env=environment(),
        check=False,
        user=user,
    )
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture(scope="module")
def running() -> Iterator[Serving]:
    with Serving() as made:
        made.start()
        yield made


# What stops it from starting ----------------------------------------------------------------------


def test_a_socket_in_use_is_refused_and_stays(running: Serving, tmp_path: Path) -> None:
    config = tmp_path / "maid.toml"
    config.write_text(f'[paths]\nruntime = "{tmp_path}/run"\n')
    done = refused("--scope", "private", "--socket", running.socket, "--config", config)
    assert done.returncode == 1
    assert f"{running.socket} is in use" in done.stderr
    assert running.answers()


def test_a_second_daemon_on_the_same_directory_is_refused(running: Serving, tmp_path: Path) -> None:
    done = refused(
        *("--scope", "private", "--socket", tmp_path / "other"),
        *("--config", running.directory / "maid.toml"),
    )
    assert done.returncode == 1
    assert f"another maid daemon is using {running.runtime}" in done.stderr
    assert f"no [paths] runtime, or another one, in {running.directory}/maid.toml" in done.stderr
    assert not (tmp_path / "other").exists()


def test_a_file_that_is_no_socket_is_never_replaced(tmp_path: Path) -> None:
    file = tmp_path / "precious"
    file.write_text("precious")
    done = refused("--scope", "private", "--socket", file)
    assert done.returncode == 1
    assert "no socket" in done.stderr
    assert file.read_text() == "precious"


@pytest.mark.parametrize(
    ("path", "words"),
    [
        (Path("/tmp") / ("x" * 120), "too long"),
        (Path("/proc/maid/io.maid"), "cannot be made"),
        (Path("/dev/null/io.maid"), "cannot be made"),
    ],
    ids=["too long", "no directory can be made", "below a file"],
)
def test_a_socket_that_cannot_be_made_is_an_error_in_words(path: Path, words: str) -> None:
    done = refused("--scope", "private", "--socket", path)
    assert done.returncode == 1
    assert words in done.stderr
    assert "--socket names another place" in done.stderr


def test_the_host_scope_needs_root() -> None:
    done = refused(user=NOBODY.pw_uid)
    assert done.returncode == 1
    assert "needs root" in done.stderr
    assert "--scope private" in done.stderr


@pytest.mark.parametrize(
    "text", ["[", "[emulation]\nplatfroms = []\n", '[socket]\nmax_message_bytes = "1"\n']
)
def test_a_broken_configuration_is_a_usage_error(tmp_path: Path, text: str) -> None:
    config = tmp_path / "maid.toml"
    config.write_text(text)
    done = refused("--scope", "private", "--socket", tmp_path / "s", "--config", config)
    assert done.returncode == 2
    assert str(config) in done.stderr
    assert not (tmp_path / "s").exists()


def test_a_configuration_that_is_not_there_is_a_usage_error(tmp_path: Path) -> None:
    done = refused("--scope", "private", "--config", tmp_path / "no.toml")
    assert done.returncode == 2
    assert "no.toml" in done.stderr


# Starting again -----------------------------------------------------------------------------------


def test_after_kill_it_starts_again_at_once_on_the_same_socket() -> None:
    with Serving() as daemon:
        daemon.start()
        daemon.kill()
        assert daemon.socket.is_socket()  # stale
        began = time.monotonic()
        daemon.start()
        assert time.monotonic() - began < 5
        assert daemon.call("io.maid.Manager.Status")["parameters"]["status"]["ready"]


def test_when_it_ends_its_socket_is_gone_and_nothing_is_mounted() -> None:
    with Serving() as daemon:
        daemon.start()
        daemon.call("io.maid.Manager.Release")
        assert daemon.stop() == 0
        assert not daemon.socket.exists()
        assert mounts_below(daemon.runtime) == []


def starting(daemon: Serving, named: Path | None = None) -> subprocess.Popen[bytes]:
    """The daemon's process once its socket is there; `named` is what --socket says."""
    with open(daemon.log, "ab") as log:
        process = subprocess.Popen(
            [
                *(*daemon.prelude, MAID, "daemon", "--scope", "private"),
                *("--socket", named or daemon.socket),
                *("--config", daemon.directory / "maid.toml"),
            ],
            stdout=log,
            stderr=log,
            env=environment(),
        )
    assert until(daemon.socket.exists)
    return process


@pytest.mark.parametrize("delay", [0.0, 0.05, 0.1, 0.2])
def test_it_can_be_stopped_while_it_starts(delay: float) -> None:
    with Serving("") as daemon:
        process = starting(daemon)
        time.sleep(delay)
        process.terminate()
        # Before its event loop runs the signal does what it does to any process.
        assert process.wait(10) in (0, -signal.SIGTERM)
        log_text = daemon.text()
        assert "Traceback" not in log_text, log_text
        daemon.start()
        assert daemon.call("io.maid.Manager.Status")["parameters"]["status"]["ready"]


def test_a_reload_while_it_starts_does_not_end_it() -> None:
    with Serving("") as daemon:
        process = starting(daemon)
        try:
            time.sleep(0.15)
            process.send_signal(signal.SIGHUP)
            assert until(daemon.answers, 20)
            assert process.poll() is None
        finally:
            process.terminate()
            assert process.wait(10) == 0


# systemd ------------------------------------------------------------------------------------------


@pytest.fixture
def notifications(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "notify"))
        receiver.settimeout(10)
        yield receiver


def told(receiver: socket.socket, wanted: str) -> list[str]:
    """The lines that came up to and with the one wanted."""
    lines: list[str] = []
    while wanted not in lines:
        lines += receiver.recv(65536).decode().splitlines()
    return lines


def test_systemd_is_told_how_it_stands(notifications: socket.socket, tmp_path: Path) -> None:
    prelude = ["env", f"NOTIFY_SOCKET={tmp_path}/notify", "WATCHDOG_USEC=400000"]
    with Serving(prelude=prelude) as daemon:
        daemon.start()
        before = told(notifications, "READY=1")
        assert before[0].startswith("STATUS=")
        assert "WATCHDOG=1" in told(notifications, "WATCHDOG=1")
        began = time.monotonic()
        for _ in range(3):
            told(notifications, "WATCHDOG=1")
        assert 0.3 < time.monotonic() - began < 2  # half of 400 ms each
        text = " ".join(before)
        assert "platforms execute" in text
        daemon.stop()
        assert "STOPPING=1" in told(notifications, "STOPPING=1")


def test_a_watchdog_of_another_process_is_not_ours(
    notifications: socket.socket, tmp_path: Path
) -> None:
    prelude = ["env", f"NOTIFY_SOCKET={tmp_path}/notify", "WATCHDOG_USEC=100000", "WATCHDOG_PID=1"]
    with Serving(prelude=prelude) as daemon:
        daemon.start()
        told(notifications, "READY=1")
        notifications.settimeout(0.3)
        with pytest.raises(TimeoutError):
            told(notifications, "WATCHDOG=1")


@pytest.mark.skipif(
    not os.path.exists("/usr/bin/systemd-socket-activate"), reason="systemd-container has it"
)
def test_systemd_may_hold_the_socket(tmp_path: Path) -> None:
    path = tmp_path / "activated"
    with Serving(prelude=["systemd-socket-activate", "--listen", str(path)]) as daemon:
        named, daemon.socket = daemon.socket, path
        process = starting(daemon, named)
        try:
            status = daemon.call("io.maid.Manager.Status")["parameters"]["status"]
            assert status["socket"] == str(path)  # where it really is, whatever --socket says
            assert not named.exists()
            process.terminate()
            assert process.wait(10) == 0
            assert path.exists()  # it is systemd's
        finally:
            process.kill()
            process.wait()


@pytest.mark.skipif(
    not os.path.exists("/usr/bin/systemd-socket-activate"), reason="systemd-container has it"
)
@pytest.mark.parametrize(
    "runtime, words",
    [("run", "another maid daemon is using"), ("maid.toml/run", "maid cannot use its directory")],
)
def test_who_waits_at_systemds_socket_is_told_why_no_daemon_comes(
    running: Serving, tmp_path: Path, runtime: str, words: str
) -> None:
    """Whatever the reason is, and not the configuration alone."""
    config, path = tmp_path / "maid.toml", tmp_path / "activated"
    config.write_text(f'[paths]\nruntime = "{running.directory}/{runtime}"\n')
    daemon = subprocess.Popen(
        [
            *("systemd-socket-activate", "--listen", path),
            *(MAID, "daemon", "--scope", "private", "--config", config),
        ],
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    try:
        assert until(path.exists, 20)
        asked = subprocess.run(
            [MAID, "--socket", path, "status"],
            capture_output=True,
            text=True,
            timeout=60,
            env=environment(),
            check=False,
        )
        assert daemon.wait(20) == 1
    finally:
        daemon.kill()
        _, log = daemon.communicate()
    assert f"the daemon cannot start: {words}" in asked.stderr
    assert asked.returncode == 4
    assert words in log


def test_a_passed_socket_of_another_kind_is_refused(tmp_path: Path) -> None:
    config = tmp_path / "maid.toml"
    config.write_text(f'[paths]\nruntime = "{tmp_path}/run"\n')
    # A shell keeps its number when it becomes the daemon, and has /dev/null as descriptor 3.
    script = (
        f'export LISTEN_PID=$$ LISTEN_FDS=1; exec "{MAID}" daemon --scope private "$@" 3</dev/null'
    )
    done = subprocess.run(
        ["sh", "-c", script, "sh", "--config", config],
        capture_output=True,
        text=True,
        timeout=20,
        env=environment(),
        check=False,
    )
    assert done.returncode == 1
    assert "systemd passed" in done.stderr
    assert "Traceback" not in done.stderr


# Reading the configuration again ------------------------------------------------------------------


def configure(daemon: Serving, text: str) -> None:
    (daemon.directory / "maid.toml").write_text(f'{text}\n[paths]\nruntime = "{daemon.runtime}"\n')


def states(daemon: Serving) -> dict[str, Any]:
    status = daemon.call("io.maid.Manager.Status")["parameters"]["status"]
    return {each["platform"]: each["state"] for each in status["platforms"]}


def test_reload_takes_up_a_new_configuration_and_keeps_the_old_for_a_broken_one() -> None:
    with Serving() as daemon:
        daemon.start()
        assert states(daemon)["linux/s390x"] == "disabled"
        configure(daemon, "[emulation]\nplatforms = 1\n")
        reply = daemon.call("io.maid.Manager.Reload")
        assert reply["error"] == "io.maid.Manager.Failed"
        assert reply["parameters"]["status"] == 2
        assert states(daemon)["linux/arm64"] == "ready"

        configure(daemon, FEW.replace("riscv64", "s390x"))
        assert "error" not in daemon.call("io.maid.Manager.Reload")
        assert states(daemon)["linux/s390x"] == "ready"
        assert states(daemon)["linux/riscv64"] == "disabled"
        assert states(daemon)["linux/arm64"] == "ready"


def test_reload_changes_the_limits_of_new_connections() -> None:
    with Serving() as daemon:
        daemon.start()
        configure(daemon, f"{FEW}\n[socket]\nmax_message_bytes = 4096\n")
        daemon.call("io.maid.Manager.Reload")
        with pytest.raises((EOFError, ConnectionResetError, BrokenPipeError)):
            daemon.call("io.maid.Manager.Status", x="x" * 5000)


def test_sighup_reloads_and_a_broken_configuration_does_not_end_it() -> None:
    with Serving() as daemon:
        daemon.start()
        configure(daemon, "[")
        os.kill(daemon.pid, signal.SIGHUP)
        assert until(lambda: "the configuration stays as it was" in daemon.text())
        configure(daemon, FEW)
        for _ in range(3):  # at once: they wait for each other
            os.kill(daemon.pid, signal.SIGHUP)
        assert until(lambda: "the configuration was read again" in daemon.text())
        assert daemon.answers()
        assert "Traceback" not in daemon.text()


def test_a_daemon_that_cannot_start_leaves_no_directory(tmp_path: Path) -> None:
    """Its socket is a directory: nothing can be served there."""
    (tmp_path / "s").mkdir()
    config = tmp_path / "maid.toml"
    config.write_text(f'[paths]\nruntime = "{tmp_path}/run/one"\nstate = "{tmp_path}/state"\n')
    done = subprocess.run(
        [MAID, "--config", config, "daemon", "--scope", "private", "--socket", tmp_path / "s"],
        capture_output=True,
        timeout=60,
    )
    assert done.returncode == 1, done.stderr
    assert not (tmp_path / "run/one").exists()
