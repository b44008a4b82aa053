"""The native store in a step, and what is counted of the programs that ran natively."""

from __future__ import annotations

import grp
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from daemons import MAID, as_user, environment, rootfs, until
from stepping import SHELL, Ran, copy, read_until, running, shell
from storing import Storing

ID = "00112233445566778899aabbccddeeff01234567"


@pytest.fixture(scope="module")
def daemon() -> Iterator[Storing]:
    with Storing('[emulation]\nplatforms = ["linux/arm64"]\n[socket]\ngroup = "users"\n') as made:
        made.name({ID: "cc1"})
        made.ready()
        (made.store / "marker").write_text("the store\n")
        yield made.start()


@pytest.fixture(scope="module")
def arm64(daemon: Storing) -> Path:
    return copy(rootfs("busybox-arm64"), daemon.directory / "arm64")


def record(kind: str, identifier: str = ID) -> str:
    """A record of the front's as printf's argument."""
    data = bytes.fromhex(identifier)
    raw = kind.encode() + bytes([len(data)]) + data.ljust(22, b"\0")
    return "".join(f"\\{byte:03o}" for byte in raw)


def writing(*records: str) -> str:
    """A script that adds records to the log, as the front does."""
    return "; ".join(f"printf '{one}' >> /dev/.maid-log" for one in records)


def in_store(daemon: Storing, tree: Path, script: str, **options: object) -> Ran:
    return shell(daemon, tree, script, **options)


def test_the_store_is_there_and_cannot_be_changed(daemon: Storing, arm64: Path) -> None:
    ran = in_store(
        daemon,
        arm64,
        "cat /dev/.maid/marker; grep ' /dev/.maid ' /proc/mounts; "
        "touch /dev/.maid/new; rm /dev/.maid/marker; mount -o remount,rw /dev/.maid; "
        "umount /dev/.maid; echo tried",
    )
    assert ran.lines[0] == "the store"
    options = ran.lines[1].split()[3].split(",")
    assert {"ro", "nosuid", "nodev"} <= set(options)
    assert ran.lines[-1] == "tried"
    assert (daemon.store / "marker").exists() and not (daemon.store / "new").exists()


def test_it_has_the_device_and_inode_of_the_directory(daemon: Storing, arm64: Path) -> None:
    """By these the front tells it from a directory of an image's."""
    own = os.stat(daemon.store)
    ran = in_store(daemon, arm64, "stat -c '%d %i' /dev/.maid")
    assert ran.lines == [f"{own.st_dev} {own.st_ino}"]


def test_nothing_of_it_is_left_in_the_root_file_system(daemon: Storing, arm64: Path) -> None:
    before = sorted(str(path) for path in arm64.rglob("*"))
    in_store(daemon, arm64, writing(record("n")))
    assert sorted(str(path) for path in arm64.rglob("*")) == before
    assert until(lambda: daemon.steps() == [])


def test_what_ran_natively_is_counted_by_tool(daemon: Storing, arm64: Path) -> None:
    ran = in_store(
        daemon, arm64, writing(*[record("n")] * 3, record("n", "ff" * 20), record("e"), record("e"))
    )
    assert ran.result["native"] == {"cc1": 3, "ff" * 20: 1}
    assert ran.result["emulated"] >= 2
    with daemon.client() as client:
        events = [r["event"] for r in client.stream("io.maid.Manager.Events", {}) if r["event"]]
    told = [event for event in events if event["kind"] == "accelerated"]
    assert f"{ran.id}: 4 programs ran natively (3 cc1, 1 {'ff' * 20})" in told[-1]["message"]
    assert told[-1]["subject"] == "linux/arm64"


def test_a_start_that_failed_is_one_of_qemus(daemon: Storing, arm64: Path) -> None:
    ran = in_store(daemon, arm64, writing(record("n"), record("f"), record("n")))
    plain = in_store(daemon, arm64, "true")
    assert ran.result["native"] == {"cc1": 1}
    assert ran.result["emulated"] == (plain.result["emulated"] or 0) + 1


@pytest.mark.parametrize(
    "script",
    [
        "head -c 5000 /dev/urandom > /dev/.maid-log",
        "yes > /dev/.maid-log 2>&1",
        "dd if=/dev/zero of=/dev/.maid-log bs=1 seek=1T count=0 2>&1",
        "printf 'n\\377' > /dev/.maid-log; head -c 100000 /dev/zero >> /dev/.maid-log",
        "rm -f /dev/.maid-log; mkdir /dev/.maid-log; ln -sf /etc/passwd /dev/.maid-log; true",
    ],
)
def test_a_step_that_scribbles_in_its_log_hurts_nothing(
    daemon: Storing, arm64: Path, script: str
) -> None:
    ran = in_store(daemon, arm64, f"{script}; exit 3")
    assert ran.status == 3
    assert len(ran.result["native"]) <= 1000
    assert daemon.answers()


def test_the_log_has_an_end(daemon: Storing, arm64: Path) -> None:
    ran = in_store(daemon, arm64, "cat /dev/zero > /dev/.maid-log; wc -c < /dev/.maid-log")
    assert int(ran.lines[0]) == 4 << 20


def test_other_users_in_the_step_write_to_it_too(daemon: Storing, arm64: Path) -> None:
    ran = in_store(daemon, arm64, writing(record("n")), user=1000, group=1000)
    assert ran.result["native"] == {"cc1": 1}


def test_steps_of_the_machines_own_platform_have_none(daemon: Storing) -> None:
    tree = copy(rootfs("busybox-amd64"), daemon.directory / "native")
    ran = in_store(daemon, tree, "ls -A /dev")
    assert ".maid" not in ran.lines and ".maid-log" not in ran.lines
    assert (ran.result["native"], ran.result["emulated"]) == ({}, None)


def test_no_accelerate_is_a_step_without(daemon: Storing, arm64: Path) -> None:
    ran = in_store(daemon, arm64, "ls -A /dev", accelerate=False)
    assert ".maid" not in ran.lines and ".maid-log" not in ran.lines
    assert ran.result["emulated"] is None


def test_what_must_be_accelerated_is_refused_before_anything_ran(
    daemon: Storing, arm64: Path
) -> None:
    daemon.ready("its versions cannot be had")
    try:
        ran = in_store(daemon, arm64, "touch /ran", require_acceleration=True)
        assert ran.refused is not None and "its versions cannot be had" in str(ran.refused)
        assert not (arm64 / "ran").exists()
        plain = in_store(daemon, arm64, "ls -A /dev")
        assert ".maid" in plain.lines  # the store may grow meanwhile
    finally:
        daemon.ready()
    assert in_store(daemon, arm64, "true", require_acceleration=True).status == 0


# Other callers, and a daemon that goes away -------------------------------------------------------

MEMBER = 47110


def member(call: Callable[[], Any]) -> Any:
    return as_user(MEMBER, [grp.getgrnam("users").gr_gid], call)


@pytest.fixture(scope="module")
def members(daemon: Storing) -> Path:
    daemon.directory.chmod(0o755)
    return copy(rootfs("busybox-arm64"), daemon.directory / "members", MEMBER)


def test_a_members_step_has_it_as_well(daemon: Storing, members: Path) -> None:
    own = os.stat(daemon.store)
    script = (
        "stat -c '%d %i' /dev/.maid; cat /dev/.maid/marker; grep ' /dev/.maid ' /proc/mounts; "
        f"touch /dev/.maid/x; mount -o remount,rw /dev/.maid; {writing(record('n'))}"
    )
    ran = member(lambda: shell(daemon, members, script))
    assert ran.lines[:2] == [f"{own.st_dev} {own.st_ino}", "the store"]
    assert {"ro", "nosuid", "nodev"} <= set(ran.lines[2].split()[3].split(","))
    assert ran.result["native"] == {"cc1": 1}
    assert not (daemon.store / "x").exists()


def test_a_member_proves_and_profiles_its_own_steps(daemon: Storing, members: Path) -> None:
    native = f"[ ! -e /dev/.maid-log ] || {writing(record('n'))}"
    script = f"{native}; echo x > /made; chmod 600 /made; rm -r /etc; mkdir /etc; echo said"
    before = sorted(str(path) for path in members.rglob("*"))
    places = daemon.directory / "places"
    places.mkdir()
    os.chown(places, MEMBER, MEMBER)

    def maid(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [MAID, "--socket", daemon.socket, "accel", *arguments, "--", SHELL, "-c", script],
            env={**environment(), "TMPDIR": str(places)},
            capture_output=True,
            text=True,
            check=False,
        )

    def work() -> tuple[int, str, int, str]:
        proof = maid("verify", "--rootfs", str(members))
        overlay = str(places / "overlay")
        profiled = maid("profile", "--rootfs", str(members), "--overlay", overlay)
        return proof.returncode, proof.stdout + proof.stderr, profiled.returncode, profiled.stdout

    status, text, profiled, table = member(work)
    assert status == 0, text
    assert "identical" in text and "ran natively: 1 cc1" in text
    assert profiled == 0 and "/bin/sh" in table
    assert sorted(str(path) for path in members.rglob("*")) == before
    assert [path.name for path in places.iterdir()] == ["overlay"]


def test_a_daemon_that_comes_after_counts_too(arm64: Path) -> None:
    with Storing('[emulation]\nplatforms = ["linux/arm64"]\n') as own:
        own.name({ID: "cc1"})
        own.ready()
        own.start()
        script = f"echo up; {writing(record('n'))}; sleep 1; exit 4"
        with running(own, arm64, script) as (_, identifier, output):
            read_until(output, b"up")
            own.kill()
        own.start()
        with own.client() as client:
            result = client.call("io.maid.Steps.Wait", {"id": identifier})["result"]
        assert (result["status"], result["native"]) == (4, {"cc1": 1})
