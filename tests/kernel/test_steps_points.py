"""What a step leaves in a root file system for its mounts: ordinary empty files and directories,
made with no more power than its caller has."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from daemons import Daemon, as_user, rootfs
from stepping import Bind, Ran, read_until, run, running, shell

MEMBER, USERS = 47110, 100
"""A user and its group (conftest.py)."""

USUAL = {"dev", "proc", "sys"}
FOR_NETWORK = {"etc", "etc/resolv.conf"}


@pytest.fixture(params=["root", "member"])
def caller(request: pytest.FixtureRequest) -> tuple[int, Callable[[Callable[[], Any]], Any]]:
    """A uid, and what calls something as that user."""
    if request.param == "root":
        return 0, lambda call: call()
    return MEMBER, lambda call: as_user(MEMBER, [USERS], call)


@pytest.fixture
def bare(trees: Path, tmp_path: Path) -> Iterator[Path]:
    """A root file system with a shell and nothing else."""
    from maid.platforms import host

    tree = trees / f"bare-{tmp_path.name}"
    (tree / "bin").mkdir(parents=True)
    shutil.copy(rootfs(f"busybox-{host().architecture}") / "bin/busybox", tree / "bin/sh")
    yield tree
    shutil.rmtree(tree)


def made(tree: Path) -> dict[str, tuple[str, int, int]]:
    """What is there besides the shell: type and mode as ls has them, owner, size of a file."""
    found = {}
    for path in tree.rglob("*"):
        name = str(path.relative_to(tree))
        if name.split("/")[0] != "bin":
            status = path.lstat()
            size = status.st_size if stat.S_ISREG(status.st_mode) else 0
            found[name] = (stat.filemode(status.st_mode), status.st_uid, size)
    return found


def test_what_is_made_has_the_usual_modes_and_is_the_callers(
    daemon: Daemon,
    bare: Path,
    tmp_path: Path,
    caller: tuple[int, Callable[[Callable[[], Any]], Any]],
) -> None:
    uid, called = caller
    for path in (bare, *bare.rglob("*")):
        os.chown(path, uid, uid)
    bare_source = bare.with_name(f"{bare.name}-source")
    bare_source.mkdir()
    (bare_source / "file").write_text("data")
    binds = [Bind(bare_source, "/b//c/"), Bind(bare_source / "file", "/b/d/file")]
    try:
        ran: Ran = called(
            lambda: shell(
                daemon,
                bare,
                "read -r x < /b/c/file; read -r y < /b/d/file; read -r z < /etc/resolv.conf; "
                "echo $x $y; : > /var/tmp/t; : > /dev/shm/s",
                binds=binds,
                tmpfs=["/var/tmp"],
                network="host",
            )
        )
    finally:
        shutil.rmtree(bare_source)
    assert ran.lines == ["data data"]
    directories = USUAL | {"etc", "b", "b/c", "b/d", "var", "var/tmp"}
    assert made(bare) == {
        **{name: ("drwxr-xr-x", uid, 0) for name in directories},
        **{name: ("-rw-r--r--", uid, 0) for name in ("etc/resolv.conf", "b/d/file")},
    }


def test_a_step_without_a_network_leaves_no_place_for_a_resolver(
    daemon: Daemon, bare: Path
) -> None:
    assert shell(daemon, bare, "exit 3", network="none").status == 3
    assert set(made(bare)) == USUAL


def test_a_tree_that_has_all_is_left_as_it_is(daemon: Daemon, bare: Path) -> None:
    for name in USUAL | {"etc"}:
        (bare / name).mkdir(mode=0o751)
    (bare / "etc/resolv.conf").write_text("its own\n")
    (bare / "etc/resolv.conf").chmod(0o640)
    before = {path: path.lstat() for path in (bare, *bare.rglob("*"))}
    assert shell(daemon, bare, "exit 3", network="host").status == 3
    after = {path: path.lstat() for path in (bare, *bare.rglob("*"))}
    assert before.keys() == after.keys()
    for path, status in after.items():
        assert (status.st_mode, status.st_mtime_ns) == (
            before[path].st_mode,
            before[path].st_mtime_ns,
        ), path


def test_a_read_only_tree_gets_no_working_directory(daemon: Daemon, bare: Path) -> None:
    """One that is not there, on the way of a file, or that a link leads to out of the tree."""
    (bare / "file").touch()
    (bare / "out").symlink_to("/usr/share/../../usr")
    before = set(made(bare))
    for cwd in ("/nowhere", "/file", "/file/below", "/out", "/process"):
        ran = shell(daemon, bare, "exit 3", readonly=True, cwd=cwd)
        assert ran.refused is not None and ran.refused.exit_status == 125, (cwd, ran.result)
        assert f"there is no directory {cwd} in the root file system" in str(ran.refused)
    assert set(made(bare)) == before


def test_a_working_directory_in_a_mount_is_no_matter_of_the_tree(
    daemon: Daemon, bare: Path, tmp_path: Path
) -> None:
    """Beneath a bind, a tmpfs, or what every step has."""
    (bare / "b").mkdir()
    source = bare / "source"
    (source / "deep").mkdir(parents=True)
    options: dict[str, Any] = {"readonly": True, "tmpfs": ["/tmp"]}
    options["binds"] = [Bind(source, "/b/", readonly=True)]
    for cwd in ("/b", "//b/deep/", "/tmp", "/tmp/made", "/dev/shm", "/proc/self"):
        assert shell(daemon, bare, "exit 3", cwd=cwd, **options).status == 3, cwd
    ran = shell(daemon, bare, "exit 3", cwd="/b/nowhere", **options)
    assert ran.status == 125
    assert [path.name for path in source.iterdir()] == ["deep"]


def test_a_tree_that_may_be_written_to_gets_the_working_directory(
    daemon: Daemon, bare: Path
) -> None:
    assert shell(daemon, bare, "echo > here; exit 3", cwd="/new/deep").status == 3
    assert (bare / "new/deep/here").exists()


def test_an_overlay_gets_the_places_and_the_tree_stays_bare(
    daemon: Daemon,
    bare: Path,
    trees: Path,
    caller: tuple[int, Callable[[Callable[[], Any]], Any]],
) -> None:
    uid, called = caller
    for path in (bare, *bare.rglob("*")):
        os.chown(path, uid, uid)
    changes = trees / f"changes-{bare.name}"
    changes.mkdir()
    os.chown(changes, uid, uid)
    try:
        ran: Ran = called(lambda: shell(daemon, bare, "exit 3", overlay=changes, network="host"))
        assert ran.status == 3
        assert made(bare) == {}
        assert made(changes / "upper") == {
            **{name: ("drwxr-xr-x", uid, 0) for name in USUAL | {"etc"}},
            "etc/resolv.conf": ("-rw-r--r--", uid, 0),
        }
    finally:
        shutil.rmtree(changes)


def test_another_step_in_the_same_tree_keeps_its_mounts(daemon: Daemon, bare: Path) -> None:
    """Made by the first, used by the second, which goes on when the first is over."""
    script = "echo up; while [ ! -e /go ]; do :; done; read -r x < /proc/self/stat && : > /dev/null"
    with (
        running(daemon, bare, "echo up; while [ ! -e /end ]; do :; done") as (first, _, one),
        running(daemon, bare, f"{script} && echo there") as (_, _, two),
    ):
        read_until(one, b"up")
        read_until(two, b"up")
        (bare / "end").touch()
        reply, _ = first._reply()
        assert reply["step"]["finished"]["status"] == 0
        (bare / "go").touch()
        read_until(two, b"there")


# Trees that are made to have something written elsewhere ----------------------------------------


def as_member(daemon: Daemon, tree: Path, **options: Any) -> Ran:
    """A step of the member's in that tree."""
    ran = as_user(MEMBER, [USERS], lambda: shell(daemon, tree, "exit 3", **options))
    assert isinstance(ran, Ran)
    return ran


def test_links_lead_to_nothing_outside(daemon: Daemon, bare: Path, trees: Path) -> None:
    """A place whose way leads through links, absolute ones and ones that go up: in the tree, or
    nowhere."""
    outside = trees / f"outside-{bare.name}"
    outside.mkdir(mode=0o777)
    outside.chmod(0o777)
    for number, target in enumerate((str(outside), f"../../{outside.name}", f"/..{outside}")):
        (bare / f"l{number}").symlink_to(target)
    for path in (bare, *bare.rglob("*")):
        os.chown(path, MEMBER, MEMBER, follow_symlinks=False)
    try:
        for number in range(3):
            as_member(daemon, bare, tmpfs=[f"/l{number}/made/by"])
            assert list(outside.iterdir()) == []
    finally:
        shutil.rmtree(outside)


@pytest.mark.parametrize("where", ["etc", ""])
def test_a_member_makes_nothing_where_it_may_not_write(
    daemon: Daemon, bare: Path, where: str
) -> None:
    """A tree, or a directory in it, that is root's."""
    for path in (bare, *bare.rglob("*")):
        os.chown(path, 0 if not where else MEMBER, 0)
    if where:
        (bare / where).mkdir()
    before = made(bare)
    as_member(daemon, bare, network="host", tmpfs=["/etc/deep/er"])
    after = made(bare)
    assert {n for n in after if n.startswith("etc/")} == set()
    if not where:
        assert after == before == {}


def test_what_is_no_directory_is_left_to_the_runtime_to_name(daemon: Daemon, bare: Path) -> None:
    (bare / "file").write_text("data")
    ran = run(daemon, bare, "/bin/sh", "-c", "exit 3", tmpfs=["/file/below"])
    assert ran.status == 125
    assert "file" in ran.result["error"]
    assert (bare / "file").read_text() == "data"
