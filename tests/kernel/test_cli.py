"""The command line against a running daemon: what it prints where, and its exit status."""

from __future__ import annotations

import json
import os
import pty
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemons import MAID, environment, until
from serving import Serving

HEAVY = (
    "asyncio",
    "asyncvarlink",
    "maid.config",
    "maid.emulation",
    "maid.service",
    "maid.steps",
    "msgspec",
    "pydantic",
    "pyroute2",
    "rich",
)
"""What a command that only asks the daemon must not import (design.md, Dependencies)."""

START_UP = 0.120
"""Seconds that `maid status` may take on a quiet machine (issue 2)."""


@pytest.fixture(scope="module")
def served() -> Iterator[Serving]:
    with Serving() as made:
        yield made.start()


def maid(*arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [MAID, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={**environment(), **variables},
        check=False,
    )


def on_a_terminal(*arguments: str | Path, columns: int = 100, **variables: str) -> str:
    """What a command writes to a terminal."""
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [MAID, *arguments],
        stdin=follower,
        stdout=follower,
        stderr=follower,
        env={**environment(), "TERM": "xterm", "COLUMNS": str(columns), **variables},
    )
    os.close(follower)
    written = b""
    while True:
        try:
            piece = os.read(leader, 65536)
        except OSError:  # EIO: nobody has the other side open any longer
            break
        written += piece
    os.close(leader)
    process.wait(10)
    return written.decode().replace("\r\n", "\n")


# What it prints -----------------------------------------------------------------------------------


def test_the_status_is_a_table(served: Serving) -> None:
    done = served.maid("status")
    assert done.returncode == 0
    assert "\033" not in done.stdout and done.stdout.isascii()
    assert any(
        line.startswith("linux/arm64 ") and " ready " in line for line in done.stdout.splitlines()
    )
    assert done.stderr == ""


def test_on_a_terminal_it_has_colours_and_fits(served: Serving) -> None:
    text = on_a_terminal("--socket", served.socket, "status", columns=50)
    assert "\033[32m● ready\033[0m" in text
    assert "FLAGS" not in text
    plain = on_a_terminal("--socket", served.socket, "status", NO_COLOR="1")
    assert "\033" not in plain and plain.isascii()
    assert "FLAGS" in plain


def test_json_on_a_terminal_is_indented_and_has_no_colours(served: Serving) -> None:
    text = on_a_terminal("--socket", served.socket, "status", "--json")
    assert "\033" not in text
    assert text.startswith('{\n  "version"')
    assert json.loads(text)["ready"]


def test_a_terminal_without_utf8_is_no_reason_to_fail(served: Serving) -> None:
    done = on_a_terminal("--socket", served.socket, "status", PYTHONIOENCODING="ascii")
    assert "\033[32mready\033[0m" in done


def test_who_stops_reading_sees_no_traceback(served: Serving) -> None:
    script = f'"{MAID}" --socket "{served.socket}" events | true'
    done = subprocess.run(
        ["sh", "-c", script], capture_output=True, text=True, env=environment(), check=False
    )
    assert done.stderr == ""


def test_ensure_says_what_runs_and_what_does_not(served: Serving) -> None:
    done = served.maid("ensure", "linux/arm64", "linux/nosuch")
    assert done.returncode == 3
    assert done.stdout.startswith("ready  linux/arm64 (")
    assert "linux/nosuch" in done.stderr and "linux/riscv64" in done.stderr
    assert "linux/nosuch" not in done.stdout


def test_events_can_be_followed_until_interrupted(served: Serving) -> None:
    process = subprocess.Popen(
        [MAID, "--socket", served.socket, "events", "--follow", "--json"],
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["sequence"] == 1
    served.maid("reload")
    while json.loads(process.stdout.readline())["kind"] != "reloaded":
        pass
    process.send_signal(signal.SIGINT)
    process.stdout.close()
    assert process.wait(10) == 130


# Exit status --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["ensure", "linux/arm64"], 0),
        (["ensure", "linux/arm64", "linux/riscv64"], 0),
        (["ensure", "--configured"], 0),
        (["ensure", "linux/nosuch"], 3),
        (["ensure", "linux/s390x"], 3),  # not among the platforms that are served
        (["ensure", "no platform"], 2),
        (["ensure", "linux/arm64", "--timeout", "nan"], 2),
        (["check", "linux/arm64"], 0),
        (["check", "linux/nosuch"], 3),
        (["metrics"], 0),
        (["events"], 0),
    ],
    ids=str,
)
def test_the_exit_status_says_how_it_went(
    served: Serving, arguments: list[str], status: int
) -> None:
    done = served.maid(*arguments)
    assert done.returncode == status, done.stderr
    assert bool(done.stderr) == bool(status)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["no-such-command"],
        ["status", "--no-such-option"],
        ["ensure"],
        ["run", "--", "true"],
        ["run", "--rootfs", "/"],
        ["daemon", "--scope", "other"],
        ["ensure", "linux/arm64", "--timeout", "soon"],
    ],
    ids=" ".join,
)
def test_what_makes_no_sense_is_a_usage_error(arguments: list[str]) -> None:
    done = maid(*arguments)
    assert done.returncode == 2
    assert "Usage: maid" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("command", ["status", "events", "metrics", "reload", "release"])
def test_no_daemon_is_status_4_with_the_way_out(tmp_path: Path, command: str) -> None:
    done = maid("--socket", tmp_path / "none", command)
    assert done.returncode == 4
    assert f"no maid daemon answers at {tmp_path}/none" in done.stderr
    assert "start it: " in done.stderr or "--socket" in done.stderr
    assert done.stdout == ""


def test_a_daemon_that_is_not_ready_is_status_1() -> None:
    with Serving() as served:
        served.start()
        assert served.maid("release").returncode == 0
        done = served.maid("status")
        assert done.returncode == 1
        assert "not ready" in done.stdout


def test_what_answers_may_be_somebody_else(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "other"))
        listener.listen()
        process = subprocess.Popen(
            [MAID, "--socket", tmp_path / "other", "status"],
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
        )
        connection, _ = listener.accept()
        with connection:
            connection.recv(1000)
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n\0")
            _, errors = process.communicate(timeout=10)
    assert process.returncode == 4
    assert "is no maid daemon" in errors


# Options ------------------------------------------------------------------------------------------


def test_the_socket_may_be_named_before_the_command_after_it_or_in_the_environment(
    served: Serving, tmp_path: Path
) -> None:
    none = tmp_path / "none"
    assert maid("--socket", served.socket, "status").returncode == 0
    assert maid("status", "--socket", served.socket).returncode == 0
    assert maid("status", MAID_SOCKET=str(served.socket)).returncode == 0
    assert maid("--socket", served.socket, "status", MAID_SOCKET=str(none)).returncode == 0
    assert maid("--socket", none, "status", "--socket", served.socket).returncode == 0


def test_a_socket_of_the_step_is_the_steps(served: Serving, native: Path) -> None:
    """What stands after the command of `maid run` belongs to it."""
    done = maid(
        *("run", "--socket", served.socket, "--rootfs", native, "--"),
        *("/bin/echo", "--socket", "x", "--json"),
    )
    assert (done.returncode, done.stdout) == (0, "--socket x --json\n"), done.stderr


def test_every_command_has_help() -> None:
    done = maid("--help")
    assert done.returncode == 0
    commands = [
        line.split()[0] for line in done.stdout.partition("Commands:\n")[2].splitlines() if line
    ]
    assert {"status", "ensure", "check", "run", "events", "metrics", "doctor", "release"} <= set(
        commands
    )
    assert "..." not in done.stdout.partition("Commands:\n")[2]  # nothing is cut off
    documented = (Path(__file__).parents[2] / "docs/cli.md").read_text()
    for command in commands:
        assert f"`maid {command}" in documented
        help_text = maid(command, "--help")
        assert help_text.returncode == 0
        below = help_text.stdout.partition("Commands:\n")[2]
        for name in [line.split()[0] for line in below.splitlines() if line]:
            assert f"`maid {command} {name}" in documented
            help_text = maid(command, name, "--help")
            assert help_text.returncode == 0
        assert "--socket PATH" in help_text.stdout


# Completion ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shell", "words"),
    [("bash", "complete"), ("zsh", "#compdef maid"), ("fish", "complete --command maid")],
)
def test_a_completion_script_can_be_had_for_every_shell(shell: str, words: str) -> None:
    done = maid(_MAID_COMPLETE=f"source_{shell}")
    assert done.returncode == 0
    assert words in done.stdout and "_MAID_COMPLETE" in done.stdout


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("maid st", {"status"}),
        ("maid re", {"reload", "release"}),
        ("maid ensure linux/arm6", {"linux/arm64"}),
        ("maid ensure linux/arm/", {"linux/arm/v5", "linux/arm/v6", "linux/arm/v7"}),
        ("maid run --platform linux/s", {"linux/s390x"}),
        ("maid run --network h", {"host"}),
        ("maid daemon --scope p", {"private"}),
    ],
)
def test_bash_completes(line: str, offered: set[str]) -> None:
    done = maid(
        _MAID_COMPLETE="complete_bash", COMP_WORDS=line, COMP_CWORD=str(len(line.split()) - 1)
    )
    assert set(done.stdout.split()) == offered


def test_bash_itself_completes(tmp_path: Path) -> None:
    """The whole way: the script is sourced, and the function fills COMPREPLY."""
    script = """
        source <(_MAID_COMPLETE=source_bash maid)
        function=$(complete -p maid | sed 's/.*-F \\([^ ]*\\).*/\\1/')
        COMP_WORDS=(maid ensure linux/risc) COMP_CWORD=2
        $function maid && echo "${COMPREPLY[@]}"
    """
    done = subprocess.run(
        ["bash", "--norc", "-c", script],
        capture_output=True,
        text=True,
        timeout=20,
        env={**environment(), "PATH": f"{MAID.parent}:{os.environ['PATH']}"},
        check=False,
    )
    assert done.stdout.strip() == "linux/riscv64", done.stderr


# Start-up -----------------------------------------------------------------------------------------


def test_what_only_asks_imports_little(served: Serving) -> None:
    code = f"""
import sys
from maid.cli.app import main
sys.argv = ["maid", "--socket", {str(served.socket)!r}, "status"]
try:
    main()
except SystemExit as end:
    assert end.code == 0, end
print(*sorted(sys.modules), file=sys.stderr)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=20,
        env=environment(),
        check=True,
    )
    loaded = done.stderr.split()
    assert "typer" in loaded
    for name in HEAVY:
        assert not [m for m in loaded if m == name or m.startswith(f"{name}.")], name


def test_status_starts_quickly(served: Serving) -> None:
    """The best of several: other work on the machine must not fail it, a heavy import must."""

    def once() -> float:
        began = time.monotonic()
        assert served.maid("status").returncode == 0
        return time.monotonic() - began

    once()
    assert until(lambda: once() < START_UP, 20)
