"""`maid accel verify`: a step run with and without the store, and what it says of both.

The steps look whether the store is there: that is how a test plants a difference without a native
tool that is wrong. What real tools do is compared in test_accel_*.py.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from daemons import rootfs, until
from stepping import copy
from storing import Storing
from test_steps_store import ID, record, writing

NATIVE = f"[ ! -e /dev/.maid-log ] || {writing(record('n'))}"
"""What the front would do when it starts a native tool."""


@pytest.fixture(scope="module")
def daemon() -> Iterator[Storing]:
    with Storing('[emulation]\nplatforms = ["linux/arm64"]\n') as made:
        made.name({ID: "cc1"})
        made.ready()
        yield made.start()


@pytest.fixture(scope="module")
def tree(daemon: Storing) -> Path:
    return copy(rootfs("busybox-arm64"), daemon.directory / "arm64")


def verify(
    daemon: Storing, tree: Path, script: str, *options: str | Path
) -> subprocess.CompletedProcess[str]:
    return daemon.maid("accel", "verify", "--rootfs", tree, *options, "--", "/bin/sh", "-c", script)


def document(daemon: Storing, tree: Path, script: str, *options: str | Path) -> dict[str, Any]:
    ran = verify(daemon, tree, script, "--json", *options)
    assert ran.stdout, ran.stderr
    answer = json.loads(ran.stdout)
    assert isinstance(answer, dict)
    return {**answer, "exit": ran.returncode}


def everything(tree: Path) -> list[str]:
    return sorted(str(path) for path in tree.rglob("*"))


def test_a_step_that_does_the_same_is_identical(daemon: Storing, tree: Path) -> None:
    before = everything(tree)
    ran = verify(daemon, tree, f"mkdir /made; echo x > /made/f; ln -s f /made/l; {NATIVE}; echo o")
    assert ran.returncode == 0, ran
    assert "identical" in ran.stdout
    assert "ran natively: 1 cc1" in ran.stdout
    assert ran.stderr == ""
    assert everything(tree) == before
    assert until(lambda: daemon.steps() == [])


DIFFERENT = {
    "content": ("echo $x > /made", "/made"),
    "mode": ("touch /made; chmod 0$x /made", "/made"),
    "owner": ("touch /made; chown $x /made", "/made"),
    "target": ("ln -s $x /made", "/made"),
    "type": ("[ $x = 700 ] || touch /made", "/made"),
    "links": ("touch /made /z; [ $x = 700 ] || { rm /made; ln /z /made; }", "/made"),
    "status": ("exit $(($x / 100))", ""),
    "stdout": ("echo $x", ""),
    "stderr": ("echo $x >&2", ""),
}


@pytest.mark.parametrize("attribute", DIFFERENT)
def test_what_acceleration_changes_is_found(daemon: Storing, tree: Path, attribute: str) -> None:
    script, path = DIFFERENT[attribute]
    answer = document(daemon, tree, f"{NATIVE}; x=700; [ -e /dev/.maid ] || x=600; {script}")
    assert answer["exit"] == 1
    assert not answer["identical"] and answer["varying"] == []
    assert (path, attribute) in [(d["path"], d["attribute"]) for d in answer["differences"]]


def test_a_difference_is_described(daemon: Storing, tree: Path) -> None:
    ran = verify(daemon, tree, "[ -e /dev/.maid ] && echo new > /made || echo newer > /made")
    assert ran.returncode == 1
    assert "/made: content: 4 bytes accelerated, 6 bytes, different from byte 3 on" in ran.stdout


VARYING = "cat /proc/sys/kernel/random/uuid > /made"


def test_what_varies_by_itself_is_shown_and_fails_only_when_asked(
    daemon: Storing, tree: Path
) -> None:
    answer = document(daemon, tree, f"{VARYING}; {NATIVE}")
    assert (answer["exit"], answer["identical"], answer["differences"]) == (0, True, [])
    assert [d["path"] for d in answer["varying"]] == ["/made"]
    shown = verify(daemon, tree, VARYING, "--strict")
    assert shown.returncode == 1
    assert "varies by itself" in shown.stdout and "/made: content" in shown.stdout


def test_a_real_difference_beside_it_still_counts(daemon: Storing, tree: Path) -> None:
    answer = document(daemon, tree, f"{VARYING}; [ -e /dev/.maid ] || touch /other")
    assert answer["exit"] == 1
    assert [d["path"] for d in answer["differences"]] == ["/other"]


def test_paths_can_be_ignored(daemon: Storing, tree: Path) -> None:
    script = "mkdir /log; [ -e /dev/.maid ] || touch /log/a"
    assert verify(daemon, tree, script).returncode == 1
    assert verify(daemon, tree, script, "--ignore", "/log/*").returncode == 0


def test_where_nothing_ran_natively_it_says_that_nothing_is_proven(
    daemon: Storing, tree: Path
) -> None:
    ran = verify(daemon, tree, "true")
    assert ran.returncode == 0 and "proves nothing" in ran.stdout
    assert verify(daemon, tree, "true", "--require").returncode == 1
    assert verify(daemon, tree, NATIVE, "--require").returncode == 0


def test_the_trees_are_kept_where_they_are_wanted(
    daemon: Storing, tree: Path, tmp_path: Path
) -> None:
    kept = tmp_path / "kept"
    script = "echo said; [ -e /dev/.maid ] && echo a > /made || echo b > /made"
    assert verify(daemon, tree, script, "--keep", kept).returncode == 1
    assert (kept / "accelerated/upper/made").read_text() == "a\n"
    assert (kept / "plain/upper/made").read_text() == "b\n"
    assert (kept / "plain/stdout").read_text() == "said\n"
    again = verify(daemon, tree, script, "--keep", kept)
    assert again.returncode == 2 and "is there already" in again.stderr


def test_each_run_starts_from_the_same_state(daemon: Storing, tree: Path, tmp_path: Path) -> None:
    """So what is mounted is read-only: the next run would find what this one wrote there."""
    (tmp_path / "shared").mkdir()
    bind = f"{tmp_path}/shared:/mnt"
    ran = verify(daemon, tree, "touch /mnt/x || echo cannot", "--bind", bind)
    assert ran.returncode == 0 and not list((tmp_path / "shared").iterdir())
    refused = verify(daemon, tree, "true", "--bind", f"{bind}:rw")
    assert refused.returncode == 2 and "read-only" in refused.stderr


@pytest.mark.parametrize("command, status", [("/no/such", 127), ("/etc", 126)])
def test_a_step_that_cannot_be_run_is_no_verdict(
    daemon: Storing, tree: Path, command: str, status: int
) -> None:
    ran = daemon.maid("accel", "verify", "--rootfs", tree, "--", command)
    assert ran.returncode == status
    assert "could not be verified" in ran.stderr and ran.stdout == ""


def test_a_timeout_is_no_verdict(daemon: Storing, tree: Path) -> None:
    ran = verify(daemon, tree, "sleep 30", "--timeout", "0.5")
    assert ran.returncode == 137 and "time limit" in ran.stderr


def test_nothing_is_left_in_the_place_for_temporary_files(
    daemon: Storing, tree: Path, tmp_path: Path
) -> None:
    from daemons import MAID, environment

    done = subprocess.run(
        [
            *(MAID, "--socket", daemon.socket, "accel", "verify", "--rootfs", tree),
            *("--", "/bin/sh", "-c", "mkdir -p /a/b; mknod /a/fifo p; touch /a/b/c"),
        ],
        env={**environment(), "TMPDIR": str(tmp_path)},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [["--rootfs", "/"], ["--", "true"]])
def test_half_a_request_is_refused(daemon: Storing, arguments: list[str]) -> None:
    ran = daemon.maid("accel", "verify", *arguments)
    assert ran.returncode == 2 and "missing" in ran.stderr
