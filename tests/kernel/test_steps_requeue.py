"""Steps that wait for a place when the daemon goes away: each is run once, and never twice."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemons import MAID, Daemon, environment, rootfs, until
from stepping import copy

from maid import native
from maid.client import Client
from maid.errors import MaidError, StepUnknown
from maid.steps import record

ROUNDS = 30
"""kill -9 at random moments."""

CONFIG = """
[emulation]
platforms = ["linux/s390x"]
[steps]
max_per_uid = 2
max_queued_per_uid = 64
"""


@pytest.fixture(scope="module")
def own() -> Iterator[Daemon]:
    """A daemon that tests may kill, at which every user may have two steps at once."""
    with Daemon(CONFIG) as made:
        yield made.start()


@pytest.fixture(scope="module")
def tree(own: Daemon) -> Path:
    """A root file system of the machine's own architecture."""
    from maid.platforms import host

    return copy(rootfs(f"busybox-{host().architecture}"), own.directory / "tree")


@pytest.fixture
def shared(own: Daemon, tmp_path: Path) -> Iterator[Path]:
    """A directory that steps get at /shared: each writes a line to `lines` there. The daemon runs,
    and no step is left of an earlier test."""
    if own.process is None:
        own.start()
    yield tmp_path
    (tmp_path / "go").touch()


def submit(
    daemon: Daemon, tree: Path, shared: Path, name: str, script: str = "", *options: str
) -> subprocess.Popen[bytes]:
    """A `maid run --json` of a step that writes its name, and then runs `script`."""
    # One write of one line, at the end of the file: nothing is lost among many that write.
    whole = f": {shared.name}; echo {name} >> /shared/lines; {script}"
    return subprocess.Popen(
        [
            *(MAID, "--socket", daemon.socket, "run", "--json", "--rootfs", tree, "--readonly"),
            *("--bind", f"{shared}:/shared", *options, "--", "/bin/sh", "-c", whole),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    )


def lines(shared: Path) -> list[str]:
    """What the steps have written, in order of name."""
    file = shared / "lines"
    return sorted(file.read_text().split()) if file.exists() else []


def wait_for_queue(daemon: Daemon, running: int, waiting: int) -> None:
    """Until so many run and wait."""

    def counts() -> tuple[int, int]:
        status = daemon._call("io.maid.Manager.Status")["status"]
        return status["steps_running"], status["steps_waiting"]

    assert until(lambda: counts() == (running, waiting), 30), counts()


def wait_until_asked(daemon: Daemon, steps: list[subprocess.Popen[bytes]], begun: bool) -> None:
    """Until one of them at least has been asked for; with `begun` until one begins."""

    def is_asked() -> bool:
        if any(step.poll() is not None for step in steps):
            return True
        if begun:
            return bool(daemon.steps())
        status = daemon._call("io.maid.Manager.Status")["status"]
        return bool(status["steps_running"] + status["steps_waiting"])

    assert until(is_asked, 30)


def begun(daemon: Daemon, shared: Path) -> str:
    """The id of the one step that has begun, by the directory that it writes to."""
    found = [
        name
        for name in daemon.steps()
        if os.fsencode(shared.name) in (daemon.runtime / "steps" / name / "step.json").read_bytes()
    ]
    (identifier,) = found
    return identifier


WAIT = "while [ ! -e /shared/go ]; do sleep 0.05; done; exit 3"


@pytest.mark.parametrize("end", ["kill", "stop"])
def test_steps_that_wait_are_run_once_each_by_the_next_daemon(
    own: Daemon, tree: Path, shared: Path, end: str
) -> None:
    names = [f"s{number}" for number in range(8)]
    steps = [submit(own, tree, shared, name, WAIT) for name in names]
    wait_for_queue(own, 2, 6)
    for _ in range(2):  # two daemons in a row
        getattr(own, end)()
        own.start()
        wait_for_queue(own, 2, 6)
    (shared / "go").touch()
    for step in steps:
        output, errors = step.communicate(timeout=60)
        assert step.returncode == 3, (output, errors)
        assert json.loads(output)["outcome"] == "exited"
    assert lines(shared) == names


def test_kills_at_random_moments_run_no_step_twice(own: Daemon, tree: Path, shared: Path) -> None:
    """Each step's line is there at most once, and exactly once where its client says so. The rest
    were asked for when there was no daemon."""
    seed = random.randrange(10**6)
    print(f"moments of seed {seed}")
    moments = random.Random(seed)
    names, unasked = [], []
    for number in range(ROUNDS):
        steps = {
            f"r{number}s{each}": submit(own, tree, shared, f"r{number}s{each}", "exit 3")
            for each in range(4)
        }
        wait_until_asked(own, list(steps.values()), begun=bool(number % 2))
        time.sleep((0.03 if number % 2 else 0.3) * moments.random())
        own.kill()
        own.start()
        for name, step in steps.items():
            output, errors = step.communicate(timeout=60)
            result = json.loads(output)
            if step.returncode == 125:
                assert "no maid daemon answers" in result["error"], (result, errors)
                unasked.append(name)
            else:
                assert step.returncode == 3, (name, result, errors)
                names.append(name)
    assert lines(shared) == sorted(names)
    assert len(names) >= ROUNDS
    print(f"{len(names)} run once each, {len(unasked)} asked for while there was no daemon")
    # A result that came just before the kill is kept for a minute, for whoever might still ask.
    assert all((own.runtime / "steps" / name / "result").exists() for name in own.steps())


def test_a_step_is_not_handed_in_again_where_a_supervisor_has_begun(
    own: Daemon, tree: Path, shared: Path
) -> None:
    """Killed between the beginning and the answer, and the supervisor with it: 125, and not run."""
    step = submit(own, tree, shared, "one", "sleep 1000")
    assert until(lambda: lines(shared) == ["one"], 30)
    identifier = begun(own, shared)
    own.kill()
    supervisor = int((own.runtime / "steps" / identifier / "supervisor").read_text())
    os.kill(supervisor, signal.SIGKILL)
    own.start()
    output, _ = step.communicate(timeout=60)
    assert step.returncode == 125
    assert "supervisor was killed" in json.loads(output)["error"]
    assert lines(shared) == ["one"]


def test_the_time_limit_is_that_of_the_step_alone(own: Daemon, tree: Path, shared: Path) -> None:
    first = [submit(own, tree, shared, f"a{n}", WAIT) for n in range(2)]
    wait_for_queue(own, 2, 0)
    second = submit(own, tree, shared, "b", "sleep 1000", "--timeout", "1")
    wait_for_queue(own, 2, 1)
    own.kill()
    time.sleep(1.2)
    own.start()
    wait_for_queue(own, 2, 1)
    (shared / "go").touch()
    output, _ = second.communicate(timeout=60)
    result = json.loads(output)
    assert (result["outcome"], result["status"]) == ("timeout", 137)
    assert result["wall"] > 0.9
    assert [each.wait(60) for each in first] == [3, 3]
    assert lines(shared) == ["a0", "a1", "b"]


def test_standard_input_is_left_to_the_step(own: Daemon, tree: Path, shared: Path) -> None:
    first = [submit(own, tree, shared, f"a{n}", WAIT) for n in range(2)]
    wait_for_queue(own, 2, 0)
    second = submit(own, tree, shared, "b", "cat; exit 5")
    assert second.stdin is not None
    second.stdin.write(b"before\n")
    second.stdin.flush()
    wait_for_queue(own, 2, 1)
    own.kill()
    second.stdin.write(b"meanwhile\n")
    second.stdin.flush()
    own.start()
    wait_for_queue(own, 2, 1)
    (shared / "go").touch()
    _, errors = second.communicate(b"after\n", timeout=60)
    assert (second.returncode, errors) == (5, b"before\nmeanwhile\nafter\n")
    assert [each.wait(60) for each in first] == [3, 3]


def test_an_interrupt_ends_the_wait_for_the_daemon(own: Daemon, tree: Path, shared: Path) -> None:
    first = [submit(own, tree, shared, f"a{n}", WAIT) for n in range(2)]
    wait_for_queue(own, 2, 0)
    second = submit(own, tree, shared, "b")
    wait_for_queue(own, 2, 1)
    own.kill()
    second.send_signal(signal.SIGINT)
    _, errors = second.communicate(timeout=20)
    assert second.returncode in (130, -signal.SIGINT), errors
    assert b"Traceback" not in errors
    (shared / "go").touch()
    own.start()
    assert [each.wait(60) for each in first] == [3, 3]
    assert lines(shared) == ["a0", "a1"]


def test_a_daemon_that_ends_the_connection_itself_is_asked_no_third_time(
    own: Daemon, tree: Path, shared: Path
) -> None:
    """A request that is larger than a message may be: the daemon is there, and does not want it."""
    before = own.text().count("is refused")
    step = subprocess.run(
        [
            *(MAID, "--socket", own.socket, "run", "--rootfs", tree, "--bind", f"{shared}:/shared"),
            *(f"--env=V{n}={'x' * 100_000}" for n in range(15)),
            *("--", "/bin/sh", "-c", "echo x >> /shared/lines"),
        ],
        capture_output=True,
        timeout=60,
        env=environment(),
        check=False,
    )
    assert step.returncode == 125
    assert b"closed the connection" in step.stderr or b"ended the connection" in step.stderr
    assert before <= own.text().count("is refused") <= before + 2
    assert lines(shared) == []
    assert own.answers()


# What the next daemon says of a step that an earlier one has left -------------------------------


def left(daemon: Daemon, tree: Path, shared: Path, script: str) -> str:
    """The id of a step that has begun, whose daemon and client are killed."""
    step = submit(daemon, tree, shared, "left", script)
    assert until(lambda: lines(shared) == ["left"], 30)
    daemon.kill()
    step.kill()
    step.communicate()
    return begun(daemon, shared)


def told(daemon: Daemon, identifier: str) -> str:
    """The words of the error that waiting for it comes to."""
    with Client(str(daemon.socket)) as client, pytest.raises(MaidError) as caught:
        client.call("io.maid.Steps.Wait", {"id": identifier})
    return f"{type(caught.value).__name__}: {caught.value.message}"


def test_a_step_that_began_is_never_said_not_to_have(own: Daemon, tree: Path, shared: Path) -> None:
    """Also when its record cannot be read, or its result was taken two daemons ago."""
    identifier = left(own, tree, shared, "exit 7")
    directory = own.runtime / "steps" / identifier
    assert until(lambda: (directory / "result").exists())
    (directory / "step.json").write_text('{"of": "another version"}')
    for _ in range(2):
        own.start()
        assert "may have begun" in told(own, identifier)
        assert identifier not in own.steps()
        own.kill()
    own.start()


@pytest.mark.parametrize("written", ["", "{", "step.json"])
def test_a_step_whose_supervisor_was_not_started_is_not_known(
    own: Daemon, tree: Path, shared: Path, written: str
) -> None:
    """At each moment before: the directory, half of its record, all of it."""
    identifier = left(own, tree, shared, "exit 7")
    made = own.runtime / "steps" / f"19c00000000-{len(written):016x}"
    made.mkdir()
    if written == "step.json":
        record_of = (own.runtime / "steps" / identifier / "step.json").read_bytes()
        (made / "step.json").write_bytes(record_of.replace(identifier.encode(), made.name.encode()))
    elif written:
        (made / "step.json").write_text(written)
    own.start()
    assert told(own, made.name).startswith(StepUnknown.__name__)
    with own.client() as client:  # the other one is taken up
        result = client.call("io.maid.Steps.Wait", {"id": identifier})["result"]
    assert result["status"] == 7
    assert until(lambda: not {identifier, made.name} & set(own.steps()))


def test_a_supervisor_and_a_daemon_never_both_have_a_step(own: Daemon, tmp_path: Path) -> None:
    """Begun by the one or withheld by the other: they meet at the same moment, many times."""
    program = native.path("maid-step")
    begun = withheld = 0
    for number in range(200):
        directory = tmp_path / f"1-{number:08x}"
        directory.mkdir()
        (directory / "step.json").write_text("{}")
        root = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
        process = subprocess.Popen(
            # Its "runtime" is a program that leaves a trace, and no container: the step fails.
            [
                *(program, "directory", directory, "rootfs", str(root)),
                *("--", "/bin/touch", tmp_path / f"ran-{number}"),
            ],
            pass_fds=[root],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(0.002 * random.random())
        is_withheld = record.withhold(str(directory))
        process.wait(20)
        os.close(root)
        has_run = (tmp_path / f"ran-{number}").exists()
        assert has_run != is_withheld
        if is_withheld:
            withheld += 1
            assert not list(tmp_path.glob(f"{directory.name}*"))
        else:
            begun += 1
    print(f"{begun} begun, {withheld} withheld")
    assert begun and withheld


def test_what_was_set_aside_by_a_daemon_that_was_killed_is_removed(tmp_path: Path) -> None:
    for name, renamed in (("1-a", False), ("1-b.withheld", True)):
        directory = tmp_path / name
        directory.mkdir()
        (directory / "supervisor").symlink_to("withheld")
        assert record.withhold(str(directory)), renamed
    assert not list(tmp_path.iterdir())


def test_many_ids_are_cut_down_to_the_last(tmp_path: Path) -> None:
    file = str(tmp_path / "begun")
    for number in range(20_001):
        record.remember(file, f"1-{number}")
    assert len(record.remembered(file)) == 10_000
    assert record.remembered(file) >= {"1-20000", "1-10001"}
    assert "1-10000" not in record.remembered(file)
