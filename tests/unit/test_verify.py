"""Two runs' trees compared: every kind of difference is found, and nothing else is one."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from maid.acceleration import verify
from maid.acceleration.verify import Difference, Tree

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="owners and devices need root")


class Pair:
    """Two trees over one lower directory, made by hand as an overlay leaves them."""

    def __init__(self, directory: Path) -> None:
        self.lower, self.first, self.second = (
            directory / name for name in ("lower", "first", "second")
        )
        for path in (self.lower, self.first, self.second):
            path.mkdir()
        (self.lower / "etc").mkdir()
        (self.lower / "etc/hosts").write_text("localhost\n")
        (self.lower / "lib").mkdir()
        (self.lower / "lib/a").write_text("a")
        os.link(self.lower / "lib/a", self.lower / "lib/b")

    def both(self, make: Callable[[Path], object]) -> None:
        """Do the same in both upper directories."""
        for upper in (self.first, self.second):
            make(upper)

    def differences(self) -> list[Difference]:
        return verify.compare(
            Tree(str(self.first), str(self.lower)), Tree(str(self.second), str(self.lower))
        )

    def found(self) -> list[tuple[str, str]]:
        return [difference.key for difference in self.differences()]


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return Pair(tmp_path)


def file(upper: Path, name: str, text: str = "x", mode: int = 0o644) -> Path:
    path = upper / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
    return path


def whiteout(upper: Path, name: str) -> None:
    path = upper / name
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mknod(path, stat.S_IFCHR | 0o000, 0)


def mark(path: Path, name: str, value: bytes) -> None:
    path.mkdir(parents=True, exist_ok=True)
    os.setxattr(path, f"trusted.overlay.{name}", value)


def test_equal_trees_have_no_difference(pair: Pair) -> None:
    def make(upper: Path) -> None:
        file(upper, "usr/bin/x", "program", 0o755)
        os.symlink("x", upper / "usr/bin/y")
        os.link(upper / "usr/bin/x", upper / "usr/bin/z")
        os.mkfifo(upper / "fifo")
        whiteout(upper, "etc/hosts")
        mark(upper / "lib", "opaque", b"y")

    pair.both(make)
    os.utime(pair.first / "usr/bin/x", (1, 1))
    assert pair.found() == []


PLANTED: dict[str, tuple[Callable[[Path], object], list[tuple[str, str]]]] = {
    "a file more": (lambda d: file(d, "new"), [("/new", "type")]),
    "a file less": (lambda d: whiteout(d, "etc/hosts"), [("/etc/hosts", "type")]),
    "a directory more": (
        lambda d: file(d, "new/deep/file"),
        [("/new", "type"), ("/new/deep", "type"), ("/new/deep/file", "type")],
    ),
    "a directory less": (
        lambda d: whiteout(d, "lib"),
        [("/lib", "type"), ("/lib/a", "type"), ("/lib/b", "type")],
    ),
    "another type": (
        lambda d: ((d / "f").unlink(), os.symlink("x", d / "f")),
        [("/f", "type")],
    ),
    "a byte": (lambda d: (d / "f").write_text("One\n"), [("/f", "content")]),
    "a longer file": (lambda d: (d / "f").write_text("one\ntwo\n"), [("/f", "content")]),
    "a changed file of before": (
        lambda d: file(d, "etc/hosts", "evil\n"),
        [("/etc/hosts", "content")],
    ),
    "mode": (lambda d: (d / "f").chmod(0o755), [("/f", "mode")]),
    "the set-user-ID bit": (lambda d: (d / "f").chmod(0o4644), [("/f", "mode")]),
    "a directory's mode": (lambda d: (d / "dir").chmod(0o700), [("/dir", "mode")]),
    "owner": (lambda d: os.chown(d / "f", 5, 0), [("/f", "owner")]),
    "group": (lambda d: os.chown(d / "link", 0, 5, follow_symlinks=False), [("/link", "owner")]),
    "a link's target": (
        lambda d: ((d / "link").unlink(), os.symlink("elsewhere", d / "link")),
        [("/link", "target")],
    ),
    "hard links": (
        lambda d: ((d / "hard").unlink(), file(d, "hard", "one\n")),
        [("/f", "links"), ("/hard", "links")],
    ),
    "a device's number": (
        lambda d: ((d / "dev").unlink(), os.mknod(d / "dev", stat.S_IFCHR | 0o644, 0x105)),
        [("/dev", "device")],
    ),
    "an attribute": (
        lambda d: os.setxattr(d / "f", "user.note", b"2"),
        [("/f", "xattr user.note"), ("/hard", "xattr user.note")],
    ),
    "an attribute less": (
        lambda d: os.removexattr(d / "dir", "user.dir"),
        [("/dir", "xattr user.dir")],
    ),
    "an emptied directory": (
        lambda d: mark(d / "lib", "opaque", b"y"),
        [("/lib/a", "type"), ("/lib/b", "type")],
    ),
}


@pytest.mark.parametrize("name", PLANTED)
@pytest.mark.parametrize("where", ["first", "second"])
def test_a_planted_difference_is_found(pair: Pair, name: str, where: str) -> None:
    def make(upper: Path) -> None:
        file(upper, "f", "one\n")
        os.link(upper / "f", upper / "hard")
        os.symlink("f", upper / "link")
        os.mknod(upper / "dev", stat.S_IFCHR | 0o644, 0x103)
        (upper / "dir").mkdir()
        os.setxattr(upper / "dir", "user.dir", b"1")

    pair.both(make)
    assert pair.found() == []
    plant, expected = PLANTED[name]
    plant(getattr(pair, where))
    found = pair.found()
    for key in expected:
        assert key in found
    # What belongs to the same inode is the same difference under its other name.
    assert {path for path, _ in found} <= {path for path, _ in expected} | {"/f", "/hard"}


def test_what_was_only_copied_up_is_the_same(pair: Pair) -> None:
    """A program that opens a file for writing and leaves it alone has it copied up."""
    shutil.copytree(pair.lower / "etc", pair.first / "etc")
    assert pair.found() == []


def test_a_removed_and_remade_directory_does_not_show_what_was_in_it(pair: Pair) -> None:
    mark(pair.first / "lib", "opaque", b"y")
    whiteout(pair.second, "lib/a")
    whiteout(pair.second, "lib/b")
    assert pair.found() == []


@pytest.mark.parametrize("redirect", [b"etc", b"/etc"])
def test_a_renamed_directory_is_what_it_was(pair: Pair, redirect: bytes) -> None:
    pair.both(lambda upper: whiteout(upper, "etc"))
    mark(pair.first / "moved", "redirect", redirect)
    file(pair.second, "moved/hosts", "localhost\n")
    assert pair.found() == []
    (pair.second / "moved/hosts").write_text("other\n")
    assert pair.found() == [("/moved/hosts", "content")]


@pytest.mark.parametrize("redirect", [b"../../outside", b"/../outside", b"link"])
def test_a_redirection_does_not_lead_out(pair: Pair, tmp_path: Path, redirect: bytes) -> None:
    file(tmp_path, "outside/secret")
    os.symlink(tmp_path / "outside", pair.lower / "link")
    mark(pair.first / "moved", "redirect", redirect)
    (pair.second / "moved").mkdir()
    assert pair.found() == []


def test_differences_are_described(pair: Pair) -> None:
    file(pair.first, "f", "same then this")
    file(pair.second, "f", "same then that!", 0o600)
    content, mode = pair.differences()
    assert (content.first, content.second) == (
        "14 bytes",
        "15 bytes, different from byte 12 on",
    )
    assert (mode.first, mode.second) == ("0644", "0600")


def test_a_difference_far_inside_is_found(pair: Pair) -> None:
    data = bytearray(3 << 20)
    (pair.first / "f").write_bytes(data)
    data[2_500_000] = 1
    (pair.second / "f").write_bytes(data)
    assert "from byte 2500000 on" in pair.differences()[0].second


def test_names_that_are_no_text_are_compared(pair: Pair) -> None:
    (Path(os.fsdecode(b"%s/\xff\n" % bytes(pair.first)))).write_text("x")
    assert pair.found() == [(os.fsdecode(b"/\xff\n"), "type")]


def test_nothing_is_opened_but_regular_files(pair: Pair) -> None:
    pair.both(lambda upper: os.mkfifo(upper / "fifo"))
    os.symlink("/dev/zero", pair.first / "zero")
    os.symlink("/dev/zero", pair.second / "zero")
    assert pair.found() == []


def difference(path: str, attribute: str = "content") -> Difference:
    return Difference(path, attribute, "", "")


def test_patterns_leave_out_what_they_match() -> None:
    paths = ["/var/log/dpkg.log", "/var/log/apt/history.log", "/var/lib/x"]
    left = verify.without(map(difference, paths), ["/var/log/*"])
    assert [each.path for each in left] == ["/var/lib/x"]


def test_what_varies_by_itself_is_set_apart_by_attribute() -> None:
    differences = [difference("/a"), difference("/a", "mode"), difference("/b")]
    count, varying = verify.apart(differences, [difference("/a"), difference("/c")])
    assert [each.key for each in count] == [("/a", "mode"), ("/b", "content")]
    assert [each.key for each in varying] == [("/a", "content")]


class Overlay:
    """Runs scripts, each in an overlay of the kernel's over the pair's lower directory."""

    def __init__(self, pair: Pair, directory: Path) -> None:
        self.pair = pair
        self.directory = directory

    def run(self, upper: Path, script: str) -> None:
        """Run `script` in the root of an overlay with this upper directory."""
        merged, work = (self.directory / f"{upper.name}-{kind}" for kind in ("merged", "work"))
        for path in (merged, work):
            path.mkdir(exist_ok=True)
        layers = f"lowerdir={self.pair.lower},upperdir={upper},workdir={work}"
        mount = f"mount -t overlay overlay -o {layers},redirect_dir=on,index=off {merged}"
        subprocess.run(
            ["unshare", "-m", "sh", "-ec", f"{mount}; cd {merged}; {script}"], check=True
        )


@pytest.mark.parametrize(
    "script",
    [
        "rm -r lib; mkdir lib; echo n > lib/n",
        "mv etc other; echo more >> other/hosts",
        "mv lib a; mkdir lib; mv a lib/inside",
        "rm etc/hosts; ln -s nowhere etc/hosts",
        "mkdir -p x/y; mv x/y z; mv lib x/lib; mv x/lib x/other; mv x other",
    ],
)
def test_what_the_kernel_makes_of_changes_is_understood(
    pair: Pair, tmp_path: Path, script: str
) -> None:
    """The same end by another way, a copy of everything, is the same tree."""
    overlay = Overlay(pair, tmp_path)
    overlay.run(pair.first, script)
    overlay.run(
        pair.second,
        f"mkdir ../copy; cp -a . ../copy; (cd ../copy; {script}); "
        "find . -mindepth 1 -delete; cp -a ../copy/. .",
    )
    assert pair.found() == []
    overlay.run(pair.second, "touch new; rm -f etc/hosts other/hosts")
    assert ("/new", "type") in pair.found()
