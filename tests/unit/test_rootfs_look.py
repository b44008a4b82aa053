"""Which platform a root file system is of, whatever lies in it."""

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from maid.emulation.targets import TARGETS
from maid.errors import StepRefused
from maid.steps import rootfs


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("bin", "usr/bin", "etc", "opt"):
        (tmp_path / "tree" / name).mkdir(parents=True)
    return tmp_path / "tree"


@pytest.fixture
def root(tree: Path) -> Iterator[int]:
    descriptor = os.open(tree, os.O_PATH)
    yield descriptor
    os.close(descriptor)


def put(path: Path, target: str) -> None:
    path.write_bytes(TARGETS[target].probe or b"")


def found(root: int, *programs: str) -> str | None:
    target = rootfs.look(root, programs).target
    return target.name if target else None


def test_the_shell_decides(tree: Path, root: int) -> None:
    put(tree / "bin/sh", "s390x")
    put(tree / "usr/bin/env", "aarch64")
    assert found(root) == "s390x"


def test_a_script_in_its_place_does_not(tree: Path, root: int) -> None:
    (tree / "bin/sh").write_text("#!/bin/busybox\n")
    put(tree / "bin/busybox", "riscv64")
    assert found(root) == "riscv64"


def test_an_absolute_link_is_followed_within_the_tree(tree: Path, root: int) -> None:
    (tree / "bin/sh").symlink_to("/opt/shell")
    put(tree / "opt/shell", "arm")
    assert found(root) == "arm"


def test_a_link_out_of_the_tree_leads_nowhere(tree: Path, root: int) -> None:
    put(tree.parent / "outside", "arm")
    (tree / "bin/sh").symlink_to("../../outside")
    assert found(root) is None


def test_an_image_with_one_program(tree: Path, root: int) -> None:
    put(tree / "opt/only", "ppc64le")
    assert found(root) is None
    assert found(root, *rootfs.candidates("/opt/only", "")) == "ppc64le"
    assert found(root, *rootfs.candidates("only", "/bin:/opt")) == "ppc64le"
    assert found(root, "/opt/\0only") is None


@pytest.mark.parametrize("kind", ["fifo", "directory", "socket"])
def test_what_is_no_regular_file_is_not_opened(tree: Path, root: int, kind: str) -> None:
    import socket

    path = tree / "bin/sh"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    else:
        socket.socket(socket.AF_UNIX).bind(str(path))
    put(tree / "bin/bash", "aarch64")
    assert found(root) == "aarch64"


def test_whether_there_is_a_resolver_to_mount_on(tree: Path, root: int) -> None:
    assert not rootfs.look(root).resolver
    (tree / "etc/resolv.conf").symlink_to("/run/nosuch")
    assert not rootfs.look(root).resolver
    (tree / "etc/resolv.conf").unlink()
    (tree / "etc/resolv.conf").touch()
    assert rootfs.look(root).resolver


def test_a_file_is_no_root_file_system(tree: Path) -> None:
    (tree / "file").touch()
    descriptor = os.open(tree / "file", os.O_PATH)
    with pytest.raises(StepRefused, match="no directory"):
        rootfs.look(descriptor)
    os.close(descriptor)


def test_a_file_system_that_does_not_answer_is_given_up(
    root: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nobody else waits for it meanwhile."""
    import threading

    stuck = threading.Event()
    monkeypatch.setattr(rootfs, "PATIENCE", 0.2)
    monkeypatch.setattr(rootfs, "LOCAL", frozenset())  # as FUSE and NFS
    monkeypatch.setattr(rootfs, "look", lambda *_: stuck.wait(5))

    async def scenario() -> int:
        turns = 0

        async def others() -> None:
            nonlocal turns
            while True:
                await asyncio.sleep(0.01)
                turns += 1

        task = asyncio.ensure_future(others())
        with pytest.raises(StepRefused, match="did not answer"):
            await rootfs.look_apart(root)
        task.cancel()
        return turns

    assert asyncio.run(scenario()) > 5
    stuck.set()


def test_looking_leaves_no_descriptor(tree: Path, root: int) -> None:
    put(tree / "bin/sh", "arm")
    before = os.listdir("/proc/self/fd")
    for _ in range(3):
        assert asyncio.run(rootfs.look_apart(root)).target is TARGETS["arm"]
    assert len(os.listdir("/proc/self/fd")) <= len(before)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_what_lies_on_another_mount_is_looked_at_apart(
    tree: Path, root: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tree on a local file system may have a mount in it that does not answer."""
    import subprocess
    import threading

    put(tree / "bin/sh", "aarch64")
    where: list[str] = []
    header = rootfs._header

    def noted(descriptor: int, path: str, one_mount: bool) -> bytes:
        found = header(descriptor, path, one_mount)
        where.append(threading.current_thread().name)
        return found

    monkeypatch.setattr(rootfs, "_header", noted)
    assert asyncio.run(rootfs.look_apart(root)).target is TARGETS["aarch64"]
    assert where == ["MainThread"]
    where.clear()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", tree / "bin"], check=True)
    try:
        put(tree / "bin/sh", "s390x")
        assert asyncio.run(rootfs.look_apart(root)).target is TARGETS["s390x"]
        assert where == ["maid-look"]
    finally:
        subprocess.run(["umount", tree / "bin"], check=True)
