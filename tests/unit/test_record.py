"""What a step leaves on disk: its result, in whatever state, and how it is removed."""

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from maid import native
from maid.steps import record
from maid.steps.record import Meta
from maid.steps.step import Outcome

META = Meta(
    id="1-2",
    uid=0,
    platform="linux/arm64",
    command=("/bin/x",),
    started=0.0,
    via="emulated",
    interpreter="/q",
    table="root",
)


def result_of(directory: Path, text: str, log: str = "") -> record.Result:
    (directory / "result").write_text(text)
    (directory / "log").write_text(log)
    return record.result(str(directory), META, record.KILLED)


def test_a_result_is_read_in_seconds_and_bytes(tmp_path: Path) -> None:
    result = result_of(tmp_path, "exited 3 1500000 250000 125000 2048\n")
    assert (result.outcome, result.status, result.signal) == (Outcome.exited, 3, None)
    assert (result.wall, result.user, result.system) == (1.5, 0.25, 0.125)
    assert result.peak_memory == 2 << 20
    assert (result.via, result.interpreter, result.error) == ("emulated", "/q", None)


@pytest.mark.parametrize(
    "state, status, signal, words",
    [
        ("signaled 11", 139, 11, None),
        ("timeout 9", 137, 9, "time limit after 2.0 s"),
        ("cancelled 9", 137, 9, "cancelled"),
    ],
)
def test_signals(tmp_path: Path, state: str, status: int, signal: int, words: str | None) -> None:
    result = result_of(tmp_path, f"{state} 2000000 0 0 0\n")
    assert (result.status, result.signal) == (status, signal)
    assert (result.error is None) if words is None else words in str(result.error)


def test_what_maid_could_not_do_is_told(tmp_path: Path) -> None:
    result = result_of(tmp_path, "failed 125 5 0 0 0 mounting the overlay: Invalid argument\n")
    assert (result.status, result.outcome) == (125, Outcome.failed)
    assert "mounting the overlay: Invalid argument" in str(result.error)


@pytest.mark.parametrize("text", ["", "exited", "exited x 0 0 0 0", "what 0 0 0 0 0", "\0" * 99])
def test_a_result_that_is_not_whole_is_a_lost_step(tmp_path: Path, text: str) -> None:
    result = result_of(tmp_path, text)
    assert (result.outcome, result.status) == (Outcome.lost, 125)


def test_no_result_at_all_is_a_lost_step(tmp_path: Path) -> None:
    assert record.result(str(tmp_path / "nosuch"), META, record.KILLED).outcome is Outcome.lost


@pytest.mark.parametrize(
    "said, status",
    [
        # crun 1.8.1 and runc 1.1.5, as they were seen to say it.
        ("executable file `/x` not found in $PATH: No such file or directory", 127),
        ('exec: "/x": stat /x: no such file or directory: unknown', 127),
        ('exec: "x": executable file not found in $PATH', 127),
        ("open executable: Operation not permitted", 126),
        ('exec: "/x": permission denied', 126),
        ("exec /x: exec format error", 126),
        ("mount `/a` to `/b`: Permission denied", 125),
        ("", 125),
    ],
)
def test_a_refusal_has_dockers_status(said: str, status: int) -> None:
    found, words = record.refusal(said, "/x", 1)
    assert found == status
    assert words


def test_a_directory_is_removed_by_its_known_names_alone(tmp_path: Path) -> None:
    """A root file system that is visible in it stays, whatever happens."""
    step = tmp_path / "step"
    for name in ("rootfs", "lower", "changes", "sys", "bind/0", "state/x"):
        (step / name).mkdir(parents=True)
    for name in (*record.FILES, "bind/1"):
        (step / name).touch()
    (step / "rootfs/precious").touch()
    assert not record.remove(str(step))
    assert os.listdir(step) == ["rootfs"]
    (step / "rootfs/precious").unlink()
    assert record.remove(str(step))
    assert not step.exists()
    assert record.remove(str(step))


def test_only_the_supervisor_of_that_step_is_taken_for_it() -> None:
    assert not record.is_supervisor(os.getpid(), "/run/maid/steps/1-2")
    assert not record.is_supervisor(2**22 + 1, "/run/maid/steps/1-2")


@pytest.fixture
def first_process() -> Iterator[subprocess.Popen[bytes]]:
    """A process that is the first of a pid namespace, as a container's is; its number is the only
    one among the children of this."""
    process = subprocess.Popen(
        ["unshare", "--user", "--map-root-user", "--pid", "--fork", "sleep", "60"]
    )
    yield process
    process.kill()
    process.wait()


def number_of(process: subprocess.Popen[bytes]) -> str:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while not (found := children.read_text().split()):
        assert process.poll() is None
    return found[0]


def since_boot() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def test_a_process_that_is_older_than_the_step_or_younger_is_not_killed(
    tmp_path: Path, first_process: subprocess.Popen[bytes]
) -> None:
    """It has the number of a container's first process that is long gone."""
    (tmp_path / "step.json").touch()
    (tmp_path / "pid").write_text(number_of(first_process))
    for begun in (since_boot() - 100, since_boot() + 100):
        record.kill_container(str(tmp_path), begun)
        with pytest.raises(subprocess.TimeoutExpired):
            first_process.wait(0.2)


@pytest.mark.parametrize("jump", [0, 86400, -86400], ids=["not set", "a day on", "a day back"])
def test_a_container_is_known_whatever_the_clock_was_set_to_since(
    tmp_path: Path, first_process: subprocess.Popen[bytes], jump: int
) -> None:
    (tmp_path / "step.json").touch()
    (tmp_path / "pid").write_text(number_of(first_process))
    for file in tmp_path.iterdir():
        os.utime(file, (time.time() - jump,) * 2)
    record.kill_container(str(tmp_path), since_boot())
    first_process.wait(5)


def test_a_record_without_the_time_since_the_machines_start_gets_it_from_the_clock(
    tmp_path: Path,
) -> None:
    """Versions before had the clock's alone; and what a record has is left as it is."""
    for written, begun in ((0.0, since_boot() - 100), (7.5, 7.5)):
        meta = msgspec.structs.replace(META, started=time.time() - 100, begun=written)
        text = msgspec.json.encode(meta)
        if not written:
            text = text.replace(b',"begun":0.0', b"")
            assert b"begun" not in text
        (tmp_path / "step.json").write_bytes(text)
        assert record.read(str(tmp_path)).begun == pytest.approx(begun, abs=5)


def test_a_step_that_ended_without_a_word_is_lost_and_says_why(tmp_path: Path) -> None:
    for status, words in ((9, "was killed"), (126 << 8, f"is {tmp_path} full?")):
        why = record.why_lost(status, str(tmp_path))
        assert words in str(record.result(str(tmp_path), META, why).error)


def test_a_supervisor_of_another_version_is_said_to_be_one(tmp_path: Path) -> None:
    ended = subprocess.run(
        [native.path("maid-step"), "directory", tmp_path, "rootfs", "0", "nosuch", "1", "--", "x"],
        stderr=subprocess.DEVNULL,
        check=False,
    )
    why = record.why_lost(ended.returncode << 8, str(tmp_path))
    assert "helper programs are of another version: run scripts/install" in why
