"""A member's step that wants out: to root's files, to the machine's table, to other ids.

docs/security.md lists what is tried here. What a well-meaning step of a member's can and cannot do
is in test_steps_member.py.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from daemons import Daemon, as_user
from stepping import Bind, Ran, copy, shell

MEMBER = 47110
USERS = 100
"""The group of members (conftest.py)."""


def member(call: Callable[[], Ran]) -> Ran:
    ran: Any = as_user(MEMBER, [USERS], call)
    assert isinstance(ran, Ran)
    return ran


def asked(daemon: Daemon, method: str) -> dict[str, Any]:
    with daemon.client() as client:
        return client.call(method)


@pytest.fixture(scope="module")
def tree(native: Path, trees: Path) -> Path:
    """A root file system that is the member's."""
    return copy(native, trees / "hostile", MEMBER)


@pytest.fixture
def place(trees: Path) -> Path:
    """The member's own directory, with a file of root's in it that everybody may read."""
    directory = Path(tempfile.mkdtemp(dir=trees))
    (directory / "roots").write_text("roots\n")
    (directory / "roots").chmod(0o644)
    os.chown(directory, MEMBER, MEMBER)
    return directory


def unharmed(place: Path) -> bool:
    """Whether root's file is as it was, by whatever name."""
    found = (place / "roots").stat()
    return (
        (place / "roots").read_text() == "roots\n"
        and found.st_uid == 0
        and stat.S_IMODE(found.st_mode) == 0o644
    )


def test_a_file_of_roots_cannot_be_written_through_another_name(
    daemon: Daemon, tree: Path, place: Path
) -> None:
    """By hard links, symbolic links, and open descriptors that are opened again."""
    script = """
    cd /b
    ln roots hard && echo written >> hard && chmod 777 hard
    ln -s /proc/1/root/b/roots soft && echo written >> soft
    exec 3< roots; echo written >> /proc/self/fd/3; echo written >> /dev/fd/3
    ( cd /proc/self/fd && echo written >> ./3 )
    mv roots moved; mv moved roots; cp roots mine; cat mine
    """
    ran = member(lambda: shell(daemon, tree, script, binds=[Bind(place, "/b")]))
    assert ran.stdout == "roots\n"  # it could be read, and a copy of it is the member's
    assert unharmed(place)
    assert (place / "mine").stat().st_uid == MEMBER


def test_a_readonly_bind_cannot_be_made_writable_again(
    daemon: Daemon, tree: Path, place: Path
) -> None:
    script = """
    touch /b/new; mount -o remount,bind,rw /b; mount --bind /b /mnt; umount /b
    unshare -Um sh -c 'mount -o remount,bind,rw /b; touch /b/new; umount /b; touch /b/new'
    exec 3< /b; touch /proc/self/fd/3/new; echo tried
    """
    bind = [Bind(place, "/b", readonly=True)]
    assert member(lambda: shell(daemon, tree, script, binds=bind)).stdout == "tried\n"
    assert os.listdir(place) == ["roots"]


def test_nothing_of_the_daemons_is_open_in_a_step(daemon: Daemon, tree: Path) -> None:
    """No descriptor leads out of it: neither of its own processes' nor of the first one's."""
    script = """
    for link in /proc/[0-9]*/fd/*; do
        [ -e "$link" ] || continue
        at=$(readlink "$link"); echo "${at%%:*}"
    done | sort -u
    for end in root cwd; do ls /proc/1/$end/ | grep -c . ; done; ls / | grep -c .
    """
    *open_, root, cwd, own = member(lambda: shell(daemon, tree, script)).lines
    # The standard streams (memory files of this test's), the loop's pipe and directory.
    allowed = ("/memfd", "pipe", "/proc")
    assert [each for each in open_ if not each.startswith(allowed)] == []
    assert root == cwd == own


def test_the_machines_table_and_the_steps_own_are_out_of_reach(daemon: Daemon, tree: Path) -> None:
    """Neither can be seen, mounted or written to; a namespace of the step's own has an empty one,
    which serves nobody else."""
    before = sorted(os.listdir(asked(daemon, "io.maid.Manager.Status")["status"]["instance"]))
    script = """
    ls /proc/sys/fs/binfmt_misc 2>/dev/null
    mount -t binfmt_misc none /mnt && echo -1 > /mnt/status && echo mounted
    unshare -Um sh -c 'mount -t binfmt_misc none /mnt && ls /mnt && echo -1 > /mnt/status'
    echo 1 > /proc/sys/fs/binfmt_misc/status; echo tried
    """
    lines = member(lambda: shell(daemon, tree, script)).stdout.split()
    assert lines[-1] == "tried"
    assert set(lines[:-1]) <= {"register", "status"}
    assert (
        sorted(os.listdir(asked(daemon, "io.maid.Manager.Status")["status"]["instance"])) == before
    )


def test_a_step_keeps_to_the_ids_of_its_namespace(daemon: Daemon, tree: Path, place: Path) -> None:
    """Another uid cannot be taken on, nor a file be given away, nor the map be widened."""
    script = """
    setpriv --reuid=1 id -u; su -s /bin/sh daemon -c 'id -u'; touch /b/given
    chown 1 /b/given; chown 65534 /b/given; chown 0:1 /b/given
    echo 0 0 4294967295 > /proc/self/uid_map; echo 0 0 1 > /proc/1/uid_map
    unshare -U sh -c 'echo 0 0 2 > /proc/self/uid_map; cat /proc/self/uid_map'
    cat /proc/self/uid_map
    """
    ran = member(lambda: shell(daemon, tree, script, binds=[Bind(place, "/b")]))
    maps = [line.split() for line in ran.stdout.splitlines() if line.strip()]
    assert maps == [["0", str(MEMBER), "1"]]
    assert (place / "given").stat().st_uid == (place / "given").stat().st_gid == MEMBER


def test_a_setuid_file_that_a_step_makes_is_the_callers(
    daemon: Daemon, tree: Path, place: Path
) -> None:
    """chmod u+s in a step gives a program that acts for the member, on the machine as well."""
    script = "cp /bin/busybox /b/own && chmod 6755 /b/own && ls -ln /b/own"
    ran = member(lambda: shell(daemon, tree, script, binds=[Bind(place, "/b")]))
    assert ran.status == 0
    made = (place / "own").stat()
    assert (made.st_uid, made.st_gid) == (MEMBER, MEMBER)


def test_an_overlay_gives_no_way_to_what_is_below_it(
    daemon: Daemon, native: Path, place: Path, trees: Path
) -> None:
    """A root file system of root's under the member's overlay: changes go to the overlay, owned by
    the member, and what root keeps to itself stays unread."""
    below = copy(native, Path(tempfile.mkdtemp(dir=trees)))
    (below / "secret").write_text("secret\n")
    (below / "secret").chmod(0o600)
    changes = place / "changes"
    changes.mkdir()
    os.chown(changes, MEMBER, MEMBER)
    script = """
    cat /secret; chmod 644 /secret; chown 0 /secret; cat /secret
    mv /secret /moved; cat /moved; echo x >> /bin/busybox; touch /made; echo tried
    """
    ran = member(lambda: shell(daemon, below, script, overlay=changes))
    assert ran.stdout == "tried\n"
    assert (below / "secret").read_text() == "secret\n"
    assert (below / "bin/busybox").read_bytes() == (native / "bin/busybox").read_bytes()
    for path in (changes / "upper").rglob("*"):
        assert path.lstat().st_uid == MEMBER, path


def test_processes_of_the_machine_are_not_there(daemon: Daemon, tree: Path) -> None:
    """Not to be seen, not to be signalled, not to be joined: a step has numbers of its own."""
    script = """
    ls -d /proc/[0-9]* | wc -l
    kill -9 -1; kill -0 DAEMON && echo reached
    for kind in mnt pid net user; do nsenter -t DAEMON --$kind true && echo joined; done; true
    """.replace("DAEMON", str(daemon.pid))
    lines = member(lambda: shell(daemon, tree, script)).stdout.split()
    assert int(lines[0]) < 10 and lines[1:] == []
    assert asked(daemon, "io.maid.Manager.Status")


def test_secrets_of_a_step_are_in_no_log(daemon: Daemon, tree: Path) -> None:
    secret = "correct-horse-battery"
    script = "echo $TOKEN; sleep 60"  # what is cut off is told as an event
    given = {"TOKEN": secret, "PATH": "/bin"}
    ran = member(lambda: shell(daemon, tree, script, environment=given, timeout=0.5))
    assert ran.stdout == f"{secret}\n" and ran.status == 137
    assert secret not in daemon.text()
    with daemon.client() as client:
        events = list(client.stream("io.maid.Manager.Events", {}))
    assert "step ended" in str(events) and secret not in str(events)
    assert secret not in str(asked(daemon, "io.maid.Manager.Metrics"))
    assert secret not in str(asked(daemon, "io.maid.Steps.List"))
