"""The file systems that a step sees: the usual ones, binds, a read-only root, an overlay."""

import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemons import Daemon, rootfs
from stepping import Bind, copy, run, shell

from maid.errors import StepRefused


def test_the_usual_devices_work(daemon: Daemon, native: Path) -> None:
    script = """
    for d in null zero full random urandom tty ptmx; do test -c /dev/$d || echo no $d; done
    head -c 5 /dev/urandom | wc -c; head -c 3 /dev/zero | wc -c; echo x > /dev/null
    (echo x > /dev/full) 2>&1 | grep -c 'No space'
    for l in fd stdin stdout stderr; do test -h /dev/$l || echo no $l; done
    """
    assert shell(daemon, native, script).lines == ["5", "3", "1"]


def test_no_other_device_is_there(daemon: Daemon, native: Path) -> None:
    found = run(daemon, native, "/bin/ls", "/dev").lines
    streams = {"fd", "stdin", "stdout", "stderr", "core"}
    usual = {"full", "null", "ptmx", "pts", "random", "shm", "tty", "urandom", "zero"}
    assert set(found) <= usual | streams


def test_proc_is_the_steps_own_and_shows_nobody_else(daemon: Daemon, native: Path) -> None:
    script = "ls /proc | grep -c '^[0-9]'; cat /proc/1/cmdline | tr '\\0' ' '"
    count, command = shell(daemon, native, script).lines
    assert int(count) <= 5
    assert command.startswith("/dev/.maid-init /bin/sh -c ls /proc")


@pytest.mark.parametrize("path", ["/proc/sys/kernel/hostname", "/proc/sys/vm/swappiness"])
def test_the_machines_settings_cannot_be_changed(daemon: Daemon, native: Path, path: str) -> None:
    ran = shell(daemon, native, f"echo 1 > {path}")
    assert ran.status != 0
    assert "Read-only file system" in ran.stderr


def test_what_proc_and_sys_tell_of_the_machine_is_masked(daemon: Daemon, native: Path) -> None:
    script = "cat /proc/keys /proc/timer_list; ls /proc/acpi /proc/scsi /sys/firmware 2>&1"
    ran = shell(daemon, native, script)
    words = {word for word in ran.stdout.split() if not word.endswith(":")}
    assert words <= {"ls", "No", "such", "file", "or", "directory"}, ran.stdout


def test_masks_cannot_be_avoided_in_a_namespace_of_ones_own(daemon: Daemon, native: Path) -> None:
    script = "mkdir -p /tmp/p; unshare -Urmpf sh -c 'mount -t proc proc /tmp/p && echo seen'"
    assert "seen" not in shell(daemon, native, script).stdout


@pytest.mark.parametrize("network", ["host", "none"])
def test_sys_is_there_and_read_only(daemon: Daemon, native: Path, network: str) -> None:
    script = "ls /sys/class/net; touch /sys/kernel/x; ls /sys/fs/cgroup"
    ran = shell(daemon, native, script, network=network)
    assert ran.lines[0:1] in (["lo"], ["eth0"], ["dummy0"]) or "lo" in ran.lines
    assert "Read-only file system" in ran.stderr


def test_no_cgroup_of_the_machine_can_be_reached(daemon: Daemon, native: Path) -> None:
    """They belong to root by id: an identity map alone would let a step's root write to them."""
    assert shell(daemon, native, "ls /sys/fs/cgroup; grep -c cgroup /proc/mounts || :").lines == [
        "0"
    ]


def test_shared_memory_and_terminals(daemon: Daemon, native: Path) -> None:
    script = "echo x > /dev/shm/y && cat /dev/shm/y; stat -c %a /dev/shm; stat -c %a /dev/pts/ptmx"
    assert shell(daemon, native, script).lines == ["x", "1777", "666"]


def test_tmpfs_where_it_is_asked_for(daemon: Daemon, native: Path) -> None:
    script = (
        "grep -E ' (/tmp|/deep/er) ' /proc/mounts | cut -d' ' -f2,3; stat -c %a /tmp; : > /tmp/x"
    )
    ran = shell(daemon, native, script, tmpfs=["/tmp", "/deep/er"])
    assert ran.lines == ["/tmp tmpfs", "/deep/er tmpfs", "1777"]
    assert not (native / "tmp/x").exists()


def test_the_host_name_is_always_the_same(daemon: Daemon, native: Path) -> None:
    assert run(daemon, native, "/bin/hostname").lines == ["maid"]


def test_names_are_resolved_as_on_the_machine(daemon: Daemon, native: Path) -> None:
    machine = Path("/etc/resolv.conf")
    if not machine.exists():
        pytest.skip("the machine has no /etc/resolv.conf")
    script = "cat /etc/resolv.conf; echo x >> /etc/resolv.conf"
    ran = shell(daemon, native, script, network="host")
    assert ran.stdout == machine.read_text()
    assert "Read-only file system" in ran.stderr


# Binds ------------------------------------------------------------------------------------------


def test_a_directory_and_a_file_are_bound_and_can_be_written_to(
    daemon: Daemon, native: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("before")
    (tmp_path / "directory").mkdir()
    binds = [
        Bind(tmp_path / "directory", "/not/there/yet"),
        Bind(tmp_path / "file", "/not/there/file"),
    ]
    script = "cat /not/there/file; echo after > /not/there/file; echo new > /not/there/yet/new"
    assert shell(daemon, native, script, binds=binds).lines == ["before"]
    assert (tmp_path / "file").read_text() == "after\n"
    assert (tmp_path / "directory/new").read_text() == "new\n"


def test_a_read_only_bind_is_so_to_the_last_mount_in_it(
    daemon: Daemon, native: Path, tmp_path: Path
) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "inner", inner], check=True)
    try:
        binds = [Bind(tmp_path, "/bound", readonly=True)]
        script = "touch /bound/x /bound/inner/x; mount -o remount,rw,bind /bound; touch /bound/x"
        ran = shell(daemon, native, script, binds=binds)
        assert ran.stderr.count("Read-only file system") == 3
        assert not (inner / "x").exists()
    finally:
        subprocess.run(["umount", inner], check=True)


def test_a_bind_within_a_bind(daemon: Daemon, native: Path, tmp_path: Path) -> None:
    for name in ("outer", "inner"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    (tmp_path / "outer/in").mkdir()
    binds = [Bind(tmp_path / "outer", "/outer"), Bind(tmp_path / "inner", "/outer/in")]
    assert run(daemon, native, "/bin/ls", "/outer", "/outer/in", binds=binds).lines == [
        *("/outer:", "in", "outer", "", "/outer/in:", "inner"),
    ]


def test_a_destination_that_is_a_link_stays_inside(
    daemon: Daemon, native: Path, tmp_path: Path
) -> None:
    tree = copy(native, tmp_path / "tree")
    outside = tmp_path / "outside"
    outside.mkdir()
    (tree / "link").symlink_to(outside)
    source = tmp_path / "source"
    source.mkdir()
    (source / "mark").touch()
    shell(daemon, tree, "ls /link", binds=[Bind(source, "/link/below")])
    assert list(outside.iterdir()) == []


def test_binds_on_the_command_line(daemon: Daemon, native: Path, tmp_path: Path) -> None:
    (tmp_path / "x").write_text("y\n")
    done = daemon.maid(
        *("run", "--rootfs", native, "--bind", f"{tmp_path}:/b:ro", "--tmpfs", "/tmp"),
        *(
            "--env",
            "A=B",
            "--cwd",
            "/b",
            "--",
            "/bin/sh",
            "-c",
            "cat x; echo $A; touch z; : > /tmp/t",
        ),
    )
    assert done.stdout == "y\nB\n", done
    assert "Read-only" in done.stderr
    done = daemon.maid("run", "--rootfs", native, "--bind", "/nosuch:/b", "--", "/bin/true")
    assert done.returncode == 125
    assert "the bind source /nosuch cannot be opened" in done.stderr
    assert done.stderr.count("/nosuch") == 1


def test_more_binds_than_a_message_carries_are_refused(
    daemon: Daemon, native: Path, tmp_path: Path
) -> None:
    ran = run(daemon, native, "/bin/true", binds=[Bind(tmp_path, f"/b/{n}") for n in range(121)])
    assert isinstance(ran.refused, StepRefused)
    assert "more than 120" in ran.refused.message


def test_a_hundred_binds(daemon: Daemon, native: Path, tmp_path: Path) -> None:
    binds = [Bind(tmp_path, f"/b/{n}") for n in range(100)]
    assert shell(daemon, native, "grep -c ' /b/' /proc/mounts", binds=binds).lines == ["100"]


# Read-only --------------------------------------------------------------------------------------


def test_readonly_writes_nothing_to_the_root_file_system(daemon: Daemon, native: Path) -> None:
    ran = shell(daemon, native, "touch /x; touch /etc/x; echo ok", readonly=True)
    assert ran.lines == ["ok"]
    assert ran.stderr.count("Read-only file system") == 2


# Overlay ----------------------------------------------------------------------------------------


@pytest.fixture
def overlay(trees: Path, tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "changes"


def contents(tree: Path) -> dict[str, tuple[int, int, float]]:
    found = {}
    for directory, _, names in os.walk(tree):
        for name in [".", *names]:
            path = Path(directory) / name
            what = path.lstat()
            found[str(path)] = (what.st_ino, what.st_mode, what.st_mtime)
    return found


def test_an_overlay_takes_the_changes_and_the_rootfs_has_none(
    daemon: Daemon, overlay: Path
) -> None:
    tree = rootfs("busybox-s390x")
    before = contents(tree)
    script = "echo new > /new; rm /bin/ls; echo more >> /etc/passwd; mv /var /moved; mkdir /d"
    assert shell(daemon, tree, script, overlay=overlay).status == 0
    assert contents(tree) == before
    assert (overlay / "upper/new").read_text() == "new\n"
    assert stat.S_ISCHR((overlay / "upper/usr/bin/ls").lstat().st_mode)  # overlayfs's whiteout
    script = "cat /new; test -e /bin/ls || echo gone; test -d /moved && echo moved; test -d /var"
    ran = shell(daemon, tree, script, overlay=overlay)
    assert ran.stdout.splitlines() == ["new", "gone", "moved"]
    assert contents(tree) == before


def test_a_directory_of_the_rootfs_can_be_renamed_in_an_overlay(
    daemon: Daemon, overlay: Path
) -> None:
    """Without redirect_dir rename(2) fails with EXDEV. mv copies then; dpkg gives up."""
    tree = rootfs("debian-13-arm64")
    script = (
        "import os; os.rename('/usr/share/doc', '/usr/share/d');"
        "os.rename('/usr/share/d', '/usr/share/doc'); print(len(os.listdir('/usr/share/doc')) > 9)"
    )
    perl = "rename('/usr/share/doc','/usr/share/d') or die $!; print 'renamed'"
    tool = ("/usr/bin/python3", "-c", script)
    if not (tree / "usr/bin/python3").exists():
        tool = ("/usr/bin/perl", "-e", perl)
    ran = run(daemon, tree, *tool, overlay=overlay)
    assert ran.lines in (["True"], ["renamed"]), ran


def test_dpkg_installs_and_replaces_a_package_in_an_overlay(
    daemon: Daemon, overlay: Path, tmp_path: Path
) -> None:
    tree = rootfs("debian-13-arm64")
    script = r"""
    set -e; cd /tmp; mkdir -p p/DEBIAN p/usr/share/thing
    for v in 1 2; do
        printf 'Package: thing\nVersion: %s\nArchitecture: all\n' $v > p/DEBIAN/control
        printf 'Maintainer: x <x@x>\nDescription: x\n' >> p/DEBIAN/control
        echo $v > p/usr/share/thing/version
        dpkg-deb -b p thing.deb >/dev/null; dpkg -i thing.deb >/dev/null 2>&1
        cat /usr/share/thing/version
    done
    dpkg -P thing >/dev/null; test -e /usr/share/thing || echo purged
    """
    assert shell(daemon, tree, script, overlay=overlay, tmpfs=["/tmp"]).lines == [
        "1",
        "2",
        "purged",
    ]


def test_an_overlay_on_the_command_line_is_made(
    daemon: Daemon, native: Path, tmp_path: Path
) -> None:
    changes = tmp_path / "a/b"
    command = ("run", "--rootfs", native, "--overlay", changes, "--", "/bin/touch", "/fresh")
    assert daemon.maid(*command).returncode == 0
    assert (changes / "upper/fresh").exists()
    assert not (native / "fresh").exists()


def test_an_overlay_that_cannot_be_written_to_is_refused(
    daemon: Daemon, native: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    command = ("run", "--rootfs", native, "--overlay", tmp_path / "file", "--", "/bin/true")
    done = daemon.maid(*command)
    assert done.returncode == 125
    assert "the overlay directory" in done.stderr
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "full", tmp_path], check=True)
    try:
        done = daemon.maid(
            "run", "--rootfs", native, "--overlay", tmp_path / "o", "--", "/bin/true"
        )
        assert done.returncode == 125
        assert "Read-only file system" in done.stderr
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_an_overlay_on_an_overlay_says_what_the_kernel_does_not(
    daemon: Daemon, native: Path, tmp_path: Path
) -> None:
    for name in ("lower", "upper", "work", "merged"):
        (tmp_path / name).mkdir()
    options = f"lowerdir={tmp_path}/lower,upperdir={tmp_path}/upper,workdir={tmp_path}/work"
    merged = tmp_path / "merged"
    subprocess.run(["mount", "-t", "overlay", "-o", options, "overlay", merged], check=True)
    try:
        done = daemon.maid("run", "--rootfs", native, "--overlay", merged / "o", "--", "/bin/true")
    finally:
        subprocess.run(["umount", merged], check=True)
    assert done.returncode == 125
    assert "lies on an overlay file system" in done.stderr


def test_an_overlay_without_its_directories_says_so(
    daemon: Daemon, native: Path, tmp_path: Path
) -> None:
    from stepping import request

    null = os.open(os.devnull, os.O_RDWR)
    message, descriptors, opened = request(native, ["/bin/true"], [null] * 3, overlay=tmp_path)
    (tmp_path / "work").rmdir()
    with daemon.client() as client:
        replies = list(client.stream("io.maid.Steps.Run", message, descriptors))
    for descriptor in (*opened, null):
        os.close(descriptor)
    result = replies[-1]["step"]["finished"]
    assert (result["outcome"], result["status"]) == ("failed", 125)
    assert "upper and work" in result["error"]


def test_read_only_and_an_overlay_exclude_each_other(
    daemon: Daemon, native: Path, overlay: Path
) -> None:
    ran = shell(daemon, native, "true", readonly=True, overlay=overlay)
    assert isinstance(ran.refused, StepRefused)
