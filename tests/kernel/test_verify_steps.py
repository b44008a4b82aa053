"""`maid accel verify`: a step run with and without the store, and what it says of both.

The steps look whether the store is there: that is how a test plants a difference without a native
tool that is wrong. What real tools do is compared in test_accel_*.py.
"""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from daemons import MAID, Daemon, environment, rootfs, until
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
    words = "accelerated 4 bytes; plain 6 bytes, different from byte 3 on"
    assert f"/made: content: {words}" in ran.stdout


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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_nothing_is_left_when_it_is_interrupted(
    daemon: Storing, tree: Path, tmp_path: Path, number: int
) -> None:
    process = subprocess.Popen(
        [
            *(MAID, "--socket", daemon.socket, "accel", "verify", "--rootfs", tree),
            *("--", "/bin/sh", "-c", "mkdir /a; while :; do touch /a/$((i=i+1)); done"),
        ],
        env={**environment(), "TMPDIR": str(tmp_path)},
        stderr=subprocess.PIPE,
    )
    assert until(lambda: bool(list(tmp_path.glob("*/accelerated/upper/a"))), 20)
    process.send_signal(number)
    process.communicate(timeout=20)
    assert process.returncode not in (0, 1)
    assert list(tmp_path.iterdir()) == []
    assert until(lambda: daemon.steps() == [])


@pytest.mark.parametrize("arguments", [["--rootfs", "/"], ["--", "true"]])
def test_half_a_request_is_refused(daemon: Storing, arguments: list[str]) -> None:
    ran = daemon.maid("accel", "verify", *arguments)
    assert ran.returncode == 2 and "missing" in ran.stderr


# With real native tools --------------------------------------------------------------------------

REAL = "debian-13-arm64"
SCRIPT = (
    "cd /srv; seq 1 20000 > a; sort -r a > b; gzip -9n < b > b.gz; sha256sum a b b.gz > sums; "
    "cp -a /etc etc; find etc -type f | sort > list; ln a c; "
    "tar --sort=name --mtime=@0 -cf t.tar etc"
)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Daemon, Path]]:
    """A daemon with native tools for the tree, and its store. Nothing is fetched: the tools are
    those of another tree, of this machine's architecture."""
    state = tmp_path_factory.mktemp("state")
    with Daemon('[emulation]\nplatforms = ["linux/arm64"]\n', state=str(state)) as made:
        made.start()
        roots = ("--rootfs", rootfs(REAL), "--native-root", rootfs("debian-13-engines"))
        added = made.maid("accel", "add", *roots)
        assert added.returncode == 0, added.stderr
        yield made, state / "store"


def proof(daemon: Daemon) -> tuple[int, str]:
    ran = daemon.maid(
        *("accel", "verify", "--require", "--rootfs", rootfs(REAL), "--", "sh", "-c", SCRIPT)
    )
    return ran.returncode, ran.stdout + ran.stderr


def test_native_tools_are_proven(real: tuple[Daemon, Path]) -> None:
    status, text = proof(real[0])
    assert status == 0, text
    assert "identical" in text and "1 gzip" in text and "1 sha256sum" in text


@pytest.mark.parametrize(
    "tool, instead, path",
    [("gzip", "cat", "/srv/b.gz: content"), ("cp", "true", "/srv/etc: type")],
)
def test_a_native_tool_that_is_wrong_is_found(
    real: tuple[Daemon, Path], tool: str, instead: str, path: str
) -> None:
    daemon, store = real
    with daemon.client() as client:
        sets = client.call("io.maid.Store.Status")["store"]["sets"]
    builds = {each["tool"]: each["build_id"] for each in sets[0]["tools"]}
    record = store / "id" / builds[tool]
    before = record.read_bytes()
    program = (store / "id" / builds[instead]).read_bytes().split(b"=")[-1]
    try:
        record.write_bytes(b"maid-native 1\0=" + program)
        status, text = proof(daemon)
    finally:
        record.write_bytes(before)
    assert status == 1 and path in text, text


def test_a_real_profile_tells_native_programs_from_emulated_ones(
    real: tuple[Daemon, Path], tmp_path: Path
) -> None:
    ran = real[0].maid(
        *("accel", "profile", "--json", "--rootfs", rootfs(REAL), "--overlay", tmp_path / "o"),
        *(
            "--",
            "sh",
            "-c",
            f"{SCRIPT}; i=0; while [ $i -lt 50 ]; do cat a | wc -l; i=$((i+1)); done",
        ),
    )
    found = json.loads(ran.stdout)
    programs = {(p["name"], p["kind"]): p for p in found["programs"]}
    assert programs["/usr/bin/gzip", "native"]["starts"] == 1
    assert programs["/usr/bin/cat", "native"]["starts"] == 50
    assert ("/usr/bin/seq", "emulated") in programs
    # What the front counted and what the tracer saw are the same.
    assert found["totals"]["native"]["starts"] == sum(found["result"]["native"].values())
    assert found["totals"]["emulated"]["starts"] == found["result"]["emulated"]
