"""Private scope as an ordinary user, and callers in other mount namespaces."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemons import MAID, Daemon, as_user, environment
from stepping import Bind, copy, run, shell

UID = 47120
SUBORDINATE = 700000
CONFIG = '[emulation]\nplatforms = ["linux/s390x"]\n'


def ordinary(prelude: list[str]) -> Daemon:
    """A daemon that is run by a user who is not root."""
    daemon = Daemon(CONFIG, uid=UID)
    (daemon.directory / "state").mkdir()
    os.chown(daemon.directory / "state", UID, UID)
    with open(daemon.directory / "maid.toml", "a") as config:
        config.write(f'state = "{daemon.directory}/state"\n')
    as_them = ["setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups"]
    path = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
    daemon.prelude = [*prelude, *as_them, "env", f"HOME={daemon.directory}", f"PATH={path}"]
    return daemon


@pytest.fixture(scope="module", params=["alone", "range"])
def theirs(request: pytest.FixtureRequest) -> Iterator[tuple[Daemon, bool]]:
    """Such a daemon with one id, and with those of /etc/subuid; whether it has them."""
    ranged = request.param == "range"
    if ranged and shutil.which("newuidmap") is None:
        pytest.skip("newuidmap is not installed (Debian: uidmap)")
    daemon = ordinary([])
    with daemon:
        if ranged:
            ids = daemon.directory / "ids"
            ids.write_text(f"{UID}:{SUBORDINATE}:65536\n")
            ids.chmod(0o644)
            passwd = daemon.directory / "passwd"  # newuidmap knows nobody whom getpwuid does not
            passwd.write_text(
                Path("/etc/passwd").read_text() + f"tester:x:{UID}:{UID}::/:/bin/sh\n"
            )
            passwd.chmod(0o644)
            mounts = " && ".join(
                f"mount --bind {source} /etc/{name}"
                for source, name in ((ids, "subuid"), (ids, "subgid"), (passwd, "passwd"))
            )
            script = f'touch /etc/subuid /etc/subgid; {mounts} && exec "$@"'
            daemon.prelude = [
                *("unshare", "--mount", "--propagation", "slave", "sh", "-c", script, "sh"),
                *daemon.prelude,
            ]
        yield daemon.start(), ranged


@pytest.fixture(scope="module")
def tree(native: Path, trees: Path) -> Path:
    return copy(native, trees / "ordinary", UID)


@pytest.fixture(scope="module")
def abroad(foreign: Path, trees: Path) -> Path:
    return copy(foreign, trees / "abroad", UID)


@pytest.fixture
def place(trees: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    directory = trees / request.node.name
    directory.mkdir()
    os.chown(directory, UID, UID)
    yield directory


def test_native_and_foreign(theirs: tuple[Daemon, bool], tree: Path, abroad: Path) -> None:
    daemon, _ = theirs
    assert as_user(UID, [], lambda: run(daemon, tree, "/bin/id", "-u")).lines == ["0"]
    assert as_user(UID, [], lambda: run(daemon, abroad, "/bin/uname", "-m")).lines == ["s390x"]


def test_other_users_with_a_range_alone(theirs: tuple[Daemon, bool], tree: Path) -> None:
    daemon, ranged = theirs
    ran = as_user(UID, [], lambda: run(daemon, tree, "/bin/id", "-u", user=33))
    if ranged:
        assert ran.lines == ["33"]
    else:
        assert "no user 33 in this step" in ran.refused.message


def test_network_none(theirs: tuple[Daemon, bool], tree: Path) -> None:
    daemon, _ = theirs
    script = "tail -n +3 /proc/net/dev | cut -d: -f1; ls /sys/class/net; ping -c1 127.0.0.1 | wc -l"
    ran = as_user(UID, [], lambda: shell(daemon, tree, script, network="none"))
    assert [line.strip() for line in ran.lines[:2]] == ["lo", "lo"]


def test_binds_and_an_overlay(theirs: tuple[Daemon, bool], tree: Path, place: Path) -> None:
    daemon, _ = theirs
    (place / "bound").mkdir()
    (place / "file").write_text("x\n")
    for name in ("bound", "file"):
        os.chown(place / name, UID, UID)
    binds = [Bind(place / "bound", "/b"), Bind(place / "file", "/f", readonly=True)]
    script = "cat /f; touch /b/x /new; echo 1 >> /f; rm /bin/cal"
    ran = as_user(
        UID, [], lambda: shell(daemon, tree, script, binds=binds, overlay=place / "changes")
    )
    assert ran.stdout == "x\n", ran
    assert "Read-only" in ran.stderr
    assert (place / "bound/x").lstat().st_uid == UID
    assert (place / "changes/upper/new").exists()
    assert not (tree / "new").exists()


def test_the_command_line(theirs: tuple[Daemon, bool], tree: Path) -> None:
    daemon, _ = theirs
    done = subprocess.run(
        [
            *("setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups"),
            *(MAID, "--socket", daemon.socket, "run", "--rootfs", tree, "--", "/bin/echo", "hello"),
        ],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=30,
    )
    assert (done.returncode, done.stdout) == (0, "hello\n"), done


def test_a_tree_that_the_daemon_cannot_see_is_refused_in_words(
    theirs: tuple[Daemon, bool], native: Path, place: Path
) -> None:
    """A mount that only the caller's namespace has. What the daemon sees in its place is something
    else, and not taken for it."""
    daemon, _ = theirs
    hidden = place / "hidden"
    hidden.mkdir()
    copy(native, hidden / "tree", UID)
    script = f"""
    mount -t tmpfs x {hidden} && cp -a {native} {hidden}/tree && chown -R {UID}:{UID} {hidden} &&
    exec setpriv --reuid={UID} --regid={UID} --clear-groups \
        {MAID} --socket {daemon.socket} run --rootfs {hidden}/tree -- /bin/true
    """
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", script],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=30,
    )
    assert done.returncode == 125, done
    assert f"{hidden}/tree: Stale file handle" in done.stderr


def test_a_caller_in_another_mount_namespace_hands_over_what_only_it_sees(
    daemon: Daemon, native: Path, tmp_path: Path
) -> None:
    script = f"""
    mount -t tmpfs x {tmp_path} && cp -a {native} {tmp_path}/tree && mkdir {tmp_path}/b &&
    echo seen > {tmp_path}/b/file &&
    exec {MAID} --socket {daemon.socket} run --rootfs {tmp_path}/tree --bind {tmp_path}/b:/b:ro \
        --overlay {tmp_path}/o -- /bin/sh -c 'cat /b/file; touch /x; touch /b/x'
    """
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", script],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=30,
    )
    assert done.stdout == "seen\n", done
    assert "Read-only" in done.stderr
    assert list(tmp_path.iterdir()) == []
