"""A caller who is not root, of the group that may use the socket: a step can do to the machine's
files what its caller could do, no more."""

import os
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from daemons import Daemon, as_user
from stepping import Bind, Marked, Ran, copy, finished, read_until, run, running, shell

from maid.client import Client
from maid.errors import AccessDenied, DaemonUnreachable, MaidError, StepRefused

MEMBER, OTHER, STRANGER = 47110, 47111, 47112
USERS, TEAM = 100, 47200
"""The group of members (conftest.py), and one more that our member is in."""
SUBORDINATE = 600000


def member(call: Callable[[], Any], uid: int = MEMBER) -> Any:
    """What `call` returns when a member calls it."""
    return as_user(uid, [USERS, TEAM], call)


@pytest.fixture(scope="module")
def tree(native: Path, trees: Path) -> Path:
    """A root file system that is the member's."""
    return copy(native, trees / "member", MEMBER)


@pytest.fixture
def place(trees: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A directory that every user can reach."""
    directory = trees / request.node.name
    directory.mkdir()
    yield directory


def owner(path: Path) -> int:
    return path.lstat().st_uid


def test_root_inside_is_the_caller_outside(daemon: Daemon, tree: Path, place: Path) -> None:
    os.chown(place, MEMBER, MEMBER)
    script = "id -u; touch /made /b/made; mkdir /b/d; cat /proc/self/uid_map"
    ran = member(lambda: shell(daemon, tree, script, binds=[Bind(place, "/b")]))
    uid, mapping = ran.lines
    assert uid == "0"
    assert mapping.split() == ["0", str(MEMBER), "1"]
    for path in (tree / "made", place / "made", place / "d"):
        assert owner(path) == MEMBER


def test_a_foreign_step_of_a_members_is_emulated(daemon: Daemon, foreign: Path) -> None:
    ran = member(lambda: run(daemon, foreign, "/bin/uname", "-m", readonly=True))
    assert ran.lines == ["s390x"]


def test_roots_files_cannot_be_changed_or_read(daemon: Daemon, tree: Path, place: Path) -> None:
    """Neither through the root file system nor through a bind."""
    for where in (tree, place):
        (where / "secret").write_text("secret\n")
        (where / "secret").chmod(0o600)
        (where / "public").write_text("public\n")
        (where / "public").chmod(0o644)
    place.chmod(0o755)
    script = """
    for d in / /b; do
        cat $d/secret; cat $d/public; echo x >> $d/public; chmod 777 $d/public; chown 0 $d/secret
    done; rm /b/public; touch /b/new; mv /b/secret /b/moved
    """
    ran = member(lambda: shell(daemon, tree, script, binds=[Bind(place, "/b")]))
    assert ran.stdout == "public\npublic\n"
    for where in (tree, place):
        assert (where / "public").read_text() == "public\n"
        assert stat.S_IMODE((where / "public").stat().st_mode) == 0o644
    assert sorted(os.listdir(place)) == ["public", "secret"]


def test_a_directory_that_only_root_may_enter_stays_closed(
    daemon: Daemon, native: Path, tree: Path, place: Path
) -> None:
    """O_PATH opens it by name, as the directory above may be searched, and that is all it gives."""
    closed = copy(native, place / "closed")
    closed.chmod(0o700)
    inside = closed / "tmp/inside"
    inside.write_text("inside\n")
    ran = member(
        lambda: shell(daemon, tree, "ls /b; cat /b/tmp/inside", binds=[Bind(closed, "/b")])
    )
    assert ran.stdout == ""
    assert ran.stderr.count("Permission denied") == 2
    ran = member(lambda: run(daemon, closed, "/bin/cat", "/tmp/inside"))
    assert ran.refused or ran.status != 0
    assert "inside" not in ran.stdout


def test_a_setuid_program_of_roots_gives_nothing(daemon: Daemon, tree: Path, place: Path) -> None:
    program = tree / "setuid/busybox"
    program.parent.mkdir()
    subprocess.run(["cp", tree / "bin/busybox", program], check=True)
    os.chown(program, 0, 0)
    program.chmod(0o4755)
    (place / "secret").write_text("secret\n")
    (place / "secret").chmod(0o600)
    script = "for a in 'id -u' 'cat /b/secret' 'touch /b/made'; do /setuid/busybox $a; done"
    ran = member(lambda: shell(daemon, tree, script, binds=[Bind(place, "/b")]))
    assert ran.stdout == "0\n"  # which is the caller outside
    assert os.listdir(place) == ["secret"]


def test_device_nodes_cannot_be_made(daemon: Daemon, tree: Path) -> None:
    ran = member(lambda: shell(daemon, tree, "mknod /disk b 254 0; test -e /disk || echo none"))
    assert ran.stdout == "none\n"


def test_the_machines_settings_are_out_of_reach(daemon: Daemon, tree: Path) -> None:
    script = "echo 1 > /proc/sys/vm/swappiness; cat /proc/kcore | head -c1; ls /sys/fs/cgroup"
    assert member(lambda: shell(daemon, tree, script)).stdout == ""


def test_the_callers_groups_count_both_ways(daemon: Daemon, tree: Path, place: Path) -> None:
    """What a group may read its member's step may; what a group is denied it is denied as well."""
    for name, mode in (("granted", 0o640), ("denied", 0o604)):
        (place / name).write_text(f"{name}\n")
        os.chown(place / name, 0, TEAM)
        (place / name).chmod(mode)
    script = "cat /b/granted; cat /b/denied"
    ran = member(lambda: shell(daemon, tree, script, binds=[Bind(place, "/b", readonly=True)]))
    assert ran.stdout == "granted\n"


def test_ids_that_the_caller_does_not_have_are_refused(daemon: Daemon, tree: Path) -> None:
    refused = member(lambda: str(run(daemon, tree, "/bin/true", user=5).refused))
    assert "no user 5 in this step" in refused
    assert "/etc/subuid" in refused


def test_a_members_step_has_a_network_of_its_own(daemon: Daemon, tree: Path) -> None:
    script = (
        "tail -n +3 /proc/net/dev | cut -d: -f1; ls /sys/class/net; ping -c 1 127.0.0.1 | wc -l"
    )
    ran = member(lambda: shell(daemon, tree, script, network="none"))
    assert ran.lines[:2] == ["    lo", "lo"]


# Overlays ---------------------------------------------------------------------------------------


def test_a_members_overlay_takes_the_changes(daemon: Daemon, tree: Path, place: Path) -> None:
    os.chown(place, MEMBER, MEMBER)
    (tree / "var/old").mkdir(parents=True, exist_ok=True)
    os.chown(tree / "var/old", MEMBER, MEMBER)
    changes = place / "changes"
    script = "echo 1 > /fresh; mv /var/old /var/new; rm /bin/cal; chmod 700 /usr; echo done"
    for _ in range(2):
        ran: Ran = member(lambda: shell(daemon, tree, script, overlay=changes))
        assert ran.stdout == "done\n", ran
    assert (changes / "upper/fresh").read_text() == "1\n"
    assert not (tree / "fresh").exists()
    owners = {owner(Path(d) / n) for d, _, names in os.walk(place) for n in [".", *names]}
    owners.discard(0)  # whiteouts are the kernel's
    assert owners == {MEMBER}


def test_a_setuid_program_of_roots_is_not_copied_into_a_members_directory(
    daemon: Daemon, native: Path, place: Path
) -> None:
    """On a medium that is mounted nosuid it does nothing; copied to upper/ it would (as
    CVE-2023-0386 did)."""
    os.chown(place, MEMBER, MEMBER)
    medium = place / "medium"
    medium.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "nosuid,nodev", "stick", medium], check=True)
    try:
        lower = copy(native, medium / "tree", MEMBER)
        for name, mode in (("root", 0o4777), ("group", 0o2777)):
            subprocess.run(["cp", native / "bin/busybox", lower / name], check=True)
            os.chown(lower / name, 0 if name == "root" else MEMBER, 0)
            (lower / name).chmod(mode)
        subprocess.run(["mknod", "-m", "666", lower / "disk", "b", "254", "0"], check=True)
        os.chown(lower / "disk", MEMBER, MEMBER)
        (lower / "mine").write_text("mine")
        os.chown(lower / "mine", MEMBER, MEMBER)
        changes = place / "changes"
        script = """
        for f in root group disk mine; do touch -c /$f; chmod 4777 /$f; (: >> /$f); done
        mv /root /root2; mv /disk /disk2; ln /group /group2; echo done
        """
        ran = member(
            lambda: run(daemon, lower, "/bin/busybox", "sh", "-c", script, overlay=changes)
        )
        assert ran.result["outcome"] == "exited", ran
        for directory, _, names in os.walk(changes / "upper"):
            for name in names:
                what = (Path(directory) / name).lstat()
                whiteout = stat.S_ISCHR(what.st_mode) and what.st_rdev == 0
                assert whiteout or (what.st_uid, what.st_gid) == (MEMBER, MEMBER), name
                assert whiteout or stat.S_ISREG(what.st_mode), name
    finally:
        subprocess.run(["umount", medium], check=True)


def test_an_overlay_directory_of_roots_is_refused(daemon: Daemon, tree: Path, place: Path) -> None:
    for name in ("upper", "work"):
        (place / name).mkdir()
    ran = member(lambda: shell(daemon, tree, "touch /x", overlay=place))
    assert (ran.result["outcome"], ran.status) == ("failed", 125)
    assert "belong to somebody else" in ran.result["error"]
    assert os.listdir(place / "upper") == []


@pytest.mark.parametrize("name", ["upper", "work"])
def test_a_link_in_the_place_of_an_overlay_directory_is_not_followed(
    daemon: Daemon, tree: Path, place: Path, name: str
) -> None:
    os.chown(place, MEMBER, MEMBER)
    target = place / "target"
    changes = place / "changes"
    for directory in (target, changes, changes / "upper", changes / "work"):
        directory.mkdir()
        os.chown(directory, MEMBER, MEMBER)
    (changes / name).rmdir()
    (changes / name).symlink_to(target)
    ran = member(lambda: shell(daemon, tree, "touch /x", overlay=changes))
    assert (ran.result["outcome"], ran.status) == ("failed", 125)
    assert os.listdir(target) == []


def test_an_overlay_below_a_directory_that_the_caller_cannot_search_is_refused(
    daemon: Daemon, tree: Path, place: Path
) -> None:
    closed = place / "closed"
    for name in ("upper", "work"):
        (closed / name).mkdir(parents=True)
        os.chown(closed / name, MEMBER, MEMBER)
    closed.chmod(0o700)
    null = os.open(os.devnull, os.O_RDWR)
    handed = os.open(closed, os.O_PATH)

    def attempt() -> Any:
        root = os.open(tree, os.O_PATH)
        message = dict(
            stdin=0, stdout=0, stderr=0, rootfs=1, changes=2, command=["/bin/touch", "/x"], binds=[]
        )
        with daemon.client() as client:
            replies = client.stream("io.maid.Steps.Run", message, [null, root, handed])
            return list(replies)[-1]["step"]["finished"]

    assert member(attempt)["outcome"] == "failed"
    assert os.listdir(closed / "upper") == []
    os.close(null)
    os.close(handed)


# Others -----------------------------------------------------------------------------------------


def test_somebody_elses_step_cannot_be_seen_cancelled_or_waited_for(
    daemon: Daemon, native: Path, tree: Path
) -> None:
    def intrude(identifier: str) -> list[str]:
        said = []
        for method in ("Cancel", "Wait"):
            with daemon.client() as client:
                try:
                    client.call(f"io.maid.Steps.{method}", {"id": identifier})
                    said.append("worked")
                except AccessDenied:
                    said.append("denied")
        with daemon.client() as client:
            said.append(str(client.call("io.maid.Steps.List")["steps"]))
        return said

    marked = Marked()
    with running(daemon, native, f"echo up; sleep {marked.seconds}") as (client, step, output):
        read_until(output, b"up")
        for uid in (MEMBER, OTHER):
            assert member(lambda: intrude(step), uid) == ["denied", "denied", "[]"]
        assert marked.alive()
        with daemon.client() as root:
            root.call("io.maid.Steps.Cancel", {"id": step})
        assert finished(client)["outcome"] == "cancelled"


def test_a_member_may_cancel_its_own_step(daemon: Daemon, tree: Path) -> None:
    def both() -> str:
        with running(daemon, tree, "echo up; sleep 60") as (client, step, output):
            read_until(output, b"up")
            with daemon.client() as other:
                assert len(other.call("io.maid.Steps.List")["steps"]) == 1
                other.call("io.maid.Steps.Cancel", {"id": step})
            return str(finished(client)["outcome"])

    assert member(both) == "cancelled"


def test_who_is_not_in_the_group_gets_nothing(daemon: Daemon) -> None:
    def attempt() -> str:
        try:
            with Client(str(daemon.socket)) as client:
                client.call("io.maid.Steps.List")
        except DaemonUnreachable as error:
            return error.message
        return "served"

    assert "Permission denied" in as_user(STRANGER, [], attempt)


def test_a_member_may_not_stop_what_is_served(daemon: Daemon) -> None:
    def attempt() -> bool:
        with daemon.client() as client:
            try:
                client.call("io.maid.Manager.Release")
            except MaidError as error:
                return isinstance(error, AccessDenied)
        return False

    assert member(attempt)


# With subordinate ids ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ranged() -> Iterator[Daemon]:
    """A daemon that finds a range of ids for the member in /etc/subuid and /etc/subgid: files of
    its own in a mount namespace of its own, so that callers are in another one too."""
    with Daemon('[emulation]\nplatforms = ["linux/s390x"]\n[socket]\ngroup = "users"\n') as daemon:
        ids = daemon.directory / "ids"
        ids.write_text(f"{MEMBER}:{SUBORDINATE}:65536\n")
        mounts = " && ".join(f"mount --bind {ids} /etc/{name}" for name in ("subuid", "subgid"))
        daemon.prelude = [
            *("unshare", "--mount", "--propagation", "slave"),
            *("sh", "-c", f'touch /etc/subuid /etc/subgid; {mounts} && exec "$@"', "sh"),
        ]
        yield daemon.start()


def test_users_of_the_callers_range_are_there(ranged: Daemon, tree: Path, place: Path) -> None:
    place.chmod(0o777)
    binds = [Bind(place, "/b")]
    ran = member(lambda: shell(ranged, tree, "id -u; touch /b/x", user=33, group=33, binds=binds))
    assert ran.lines == ["33"]
    assert owner(place / "x") == SUBORDINATE + 32


def test_an_overlay_holds_files_of_the_callers_range(
    ranged: Daemon, tree: Path, place: Path
) -> None:
    os.chown(place, MEMBER, MEMBER)
    lower = copy(tree, place / "tree", MEMBER)
    (lower / "theirs").write_text("theirs\n")
    os.chown(lower / "theirs", SUBORDINATE + 32, SUBORDINATE + 32)
    (lower / "roots").write_text("roots\n")
    (lower / "roots").chmod(0o666)
    script = """
    echo more >> /theirs; touch /fresh; chown 33:33 /fresh; chmod 4755 /fresh
    (echo more >> /roots) 2>/dev/null || echo refused
    """
    changes = place / "changes"
    ran = member(lambda: shell(ranged, lower, script, overlay=changes))
    assert ran.stdout == "refused\n", ran
    assert (changes / "upper/theirs").read_text() == "theirs\nmore\n"
    for name in ("theirs", "fresh"):
        assert owner(changes / "upper" / name) == SUBORDINATE + 32
    assert not (changes / "upper/roots").exists()


def test_a_foreign_step_with_a_range(ranged: Daemon, foreign: Path) -> None:
    ran = member(lambda: run(ranged, foreign, "/bin/uname", "-m", readonly=True, user=7))
    assert ran.lines == ["s390x"]


def test_who_has_no_range_is_refused_other_ids(ranged: Daemon, tree: Path) -> None:
    refused = member(lambda: run(ranged, tree, "/bin/true", user=7).refused, OTHER)
    assert isinstance(refused, StepRefused)
