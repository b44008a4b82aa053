"""What a step is given in its environment is told to nobody: neither in a log, whatever its level,
nor in an event, a metric, an answer to anybody, an error's words or another process's command line.

Steps that work and steps that fail in each way there is, since it is failures that are told of.
"""

from __future__ import annotations

import json
import os
import secrets
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from daemons import Daemon, as_user
from serving import FEW
from stepping import Ran, copy, read_until, run, running, shell

MEMBER = 47114
USERS = 100
CONFIG = f'{FEW}\n[socket]\ngroup = "users"\n[log]\nlevel = "debug"\n'


@pytest.fixture(scope="module")
def told(native: Path) -> Iterator[Daemon]:
    """A daemon that says everything it ever says."""
    with tempfile.TemporaryDirectory() as state, Daemon(CONFIG, state=f"{state}/state") as made:
        yield made.start()


@pytest.fixture(scope="module")
def tree(told: Daemon, native: Path) -> Path:
    """A root file system of the member's."""
    return copy(native, told.directory / "tree", MEMBER)


@pytest.fixture
def secret() -> str:
    """A word that is nowhere else."""
    return f"hush-{secrets.token_hex(12)}"


def asked(daemon: Daemon, method: str, **parameters: Any) -> str:
    """Everything that a method answers, as it is sent."""
    with daemon.client() as client:
        return "".join(json.dumps(each) for each in client.stream(method, parameters))


def everything_told(daemon: Daemon) -> str:
    """All that the daemon has said and says."""
    parts = [
        daemon.text(),
        asked(daemon, "io.maid.Manager.Events"),
        asked(daemon, "io.maid.Manager.Metrics"),
        asked(daemon, "io.maid.Manager.Status"),
        asked(daemon, "io.maid.Manager.Diagnose"),
        asked(daemon, "io.maid.Steps.List"),
        asked(daemon, "io.maid.Store.Status"),
    ]
    for command in (["status"], ["events"], ["metrics"], ["doctor"]):
        done = daemon.maid(*command)
        parts += [done.stdout, done.stderr]
    return "\n".join(parts)


def command_lines(pid: int) -> dict[str, bytes]:
    """The command lines of a process and all below it, as anybody can read them."""
    found, left = {}, [str(pid)]
    while left:
        process = left.pop()
        try:
            found[process] = Path(f"/proc/{process}/cmdline").read_bytes()
            for task in os.listdir(f"/proc/{process}/task"):
                left += Path(f"/proc/{process}/task/{task}/children").read_text().split()
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def member(call: Callable[[], Ran]) -> Ran:
    """What a step of the member's came to."""
    ran: Any = as_user(MEMBER, [USERS], call)
    assert isinstance(ran, Ran)
    return ran


ENDS: dict[str, Callable[[Daemon, Path, dict[str, str]], Ran]] = {
    "works": lambda d, t, e: shell(d, t, "true", environment=e),
    "fails": lambda d, t, e: shell(d, t, "exit 7", environment=e),
    "is no program": lambda d, t, e: run(d, t, "/bin/no-such", environment=e),
    "is not in PATH": lambda d, t, e: run(d, t, "no-such", environment=e),
    "may not be executed": lambda d, t, e: run(d, t, "/etc", environment=e),
    "dies of a signal": lambda d, t, e: shell(d, t, "kill -SEGV $$", environment=e),
    "takes too long": lambda d, t, e: shell(d, t, "sleep 60", environment=e, timeout=0.5),
    "has no directory": lambda d, t, e: shell(d, t, "true", environment=e, cwd="/etc/passwd/x"),
    "has a wrong name": lambda d, t, e: shell(d, t, "true", environment={**e, "A=B": e["TOKEN"]}),
    "is for another platform": lambda d, t, e: shell(
        d, t, "true", environment=e, platform="linux/none"
    ),
    "has too much of it": lambda d, t, e: shell(
        d, t, "true", environment={**e, "BIG": e["TOKEN"] + "x" * 200_000}
    ),
}
"""How a step can end that has a secret in its environment."""


@pytest.mark.parametrize("way", ENDS)
def test_the_environment_of_a_step_is_told_to_nobody(
    told: Daemon, tree: Path, secret: str, way: str
) -> None:
    given = {"TOKEN": secret, "PATH": "/bin"}
    ran = member(lambda: ENDS[way](told, tree, given))
    assert (way == "works") == (ran.refused is None and ran.status == 0)
    assert secret not in f"{ran.refused} {ran.result} {ran.stderr}"
    assert secret not in everything_told(told)


def test_no_command_line_has_it_while_a_step_runs(told: Daemon, tree: Path, secret: str) -> None:
    """Supervisor, runtime and first process: what another user sees of them in /proc."""
    given = {"TOKEN": secret, "PATH": "/bin"}
    script = 'test "$TOKEN" && echo up && sleep 60'
    with running(told, tree, script, environment=given) as (_, identifier, output):
        read_until(output, b"up")
        step = json.loads(asked(told, "io.maid.Steps.List"))["steps"]
        supervisor = next(each["pid"] for each in step if each["id"] == identifier)
        lines = command_lines(told.pid) | command_lines(supervisor)
        assert any(line.startswith(b"sleep") for line in lines.values()), lines
        assert not [line for line in lines.values() if secret.encode() in line]
        # Nor what else anybody can read of the daemon's directories.
        assert not readable_with(told.directory, secret)
        assert secret not in everything_told(told)


def readable_with(directory: Path, secret: str) -> list[str]:
    """The files below that a stranger can read and that have the word in them."""

    def look() -> list[str]:
        found = []
        for place, _, names in os.walk(directory):
            for name in names:
                try:
                    with open(os.open(f"{place}/{name}", os.O_RDONLY | os.O_NONBLOCK), "rb") as f:
                        if secret.encode() in f.read(1 << 20):
                            found.append(f"{place}/{name}")
                except OSError:
                    continue
        return found

    found = as_user(47115, [], look)
    assert isinstance(found, list)
    return found


def test_a_command_line_that_fails_does_not_repeat_its_environment(
    told: Daemon, tree: Path, secret: str
) -> None:
    """`maid run --env`, in all that it prints."""
    for command in (["/bin/no-such"], ["/bin/sh", "-c", "exit 3"]):
        done = told.maid("run", "--rootfs", tree, "--env", f"TOKEN={secret}", "--", *command)
        assert done.returncode in (3, 127), done
        assert secret not in done.stdout + done.stderr
    done = told.maid("run", "--rootfs", tree, "--env", f"={secret}", "--", "/bin/true")
    assert done.returncode and secret not in done.stdout
    assert secret not in everything_told(told)
