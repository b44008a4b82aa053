"""What a root file system says of itself is read, and nothing outside it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from maid.acceleration import facts
from maid.acceleration.facts import UnknownRootfs

STATUS = """\
Package: dpkg
Status: install ok installed
Architecture: arm64
Version: 1.22.21

Package: xz-utils
Status: install ok installed
Architecture: arm64
Multi-Arch: foreign
Version: 5.8.1-1
Description: a text with
 Version: 9 in it

Package: libc6
Status: install ok installed
Architecture: amd64
Version: 2.41-12

Package: tzdata
Status: install ok installed
Architecture: all
Version: 2025b-4

Package: gone
Status: deinstall ok config-files
Architecture: arm64
Version: 1

Package: ../evil
Status: install ok installed
Architecture: arm64
Version: 1
"""


@pytest.fixture
def rootfs(tmp_path: Path) -> Path:
    (tmp_path / "etc").mkdir()
    (tmp_path / "var/lib/dpkg").mkdir(parents=True)
    (tmp_path / "etc/os-release").write_text(
        'PRETTY_NAME="Debian"\nID=debian\nVERSION_CODENAME="trixie"\n'
    )
    (tmp_path / "var/lib/dpkg/status").write_text(STATUS)
    return tmp_path


@contextmanager
def opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_PATH | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def read(path: Path) -> facts.Facts:
    with opened(path) as root:
        return facts.read(root)


def test_release_architecture_and_installed_versions(rootfs: Path) -> None:
    found = read(rootfs)
    assert (found.release, found.architecture) == ("debian:trixie", "arm64")
    assert found.packages == {"dpkg": "1.22.21", "xz-utils": "5.8.1-1", "tzdata": "2025b-4"}


def test_without_dpkg_the_commonest_architecture_counts() -> None:
    text = "\n\n".join(
        f"Package: p{i}\nVersion: 1\nArchitecture: {arch}"
        for i, arch in enumerate(["all", "riscv64", "all", "riscv64", "amd64"])
    )
    assert facts.parse_status(text)[0] == "riscv64"


@pytest.mark.parametrize(
    ("path", "content", "reason"),
    [
        ("etc/os-release", "", "names no release"),
        ("etc/os-release", "ID=alpine\n", "alpine is not a distribution"),
        ("etc/os-release", "ID=../../x\nVERSION_CODENAME=y\n", "names no release"),
        ("var/lib/dpkg/status", None, "no package database"),
        ("var/lib/dpkg/status", "", "names no architecture"),
    ],
)
def test_what_is_not_known_is_said(
    rootfs: Path, path: str, content: str | None, reason: str
) -> None:
    if content is None:
        (rootfs / path).unlink()
    else:
        (rootfs / path).write_text(content)
    with pytest.raises(UnknownRootfs, match=reason):
        read(rootfs)


def test_links_lead_nowhere_outside(rootfs: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = tmp_path_factory.mktemp("outside") / "status"
    outside.write_text(STATUS)
    status = rootfs / "var/lib/dpkg/status"
    status.unlink()
    status.symlink_to(outside)
    with pytest.raises(UnknownRootfs, match="no package database"):
        read(rootfs)


def test_a_fifo_is_not_opened(rootfs: Path) -> None:
    status = rootfs / "var/lib/dpkg/status"
    status.unlink()
    os.mkfifo(status)
    with pytest.raises(UnknownRootfs):
        read(rootfs)


def test_the_stamp_changes_with_the_database(rootfs: Path) -> None:
    with opened(rootfs) as root:
        before = facts.stamp(root)
        assert any(before)
        (rootfs / "var/lib/dpkg/status").write_text(STATUS + "\n")
        assert facts.stamp(root) != before
        (rootfs / "var/lib/dpkg/status").unlink()
        assert not any(facts.stamp(root))


def test_archives_are_read_from_both_formats_without_comments_and_passwords(rootfs: Path) -> None:
    (rootfs / "etc/apt/sources.list.d").mkdir(parents=True)
    (rootfs / "etc/apt/sources.list").write_text(
        "# deb http://no/debian trixie main\ndeb [arch=arm64] http://a/debian/ trixie main\n"
        "deb http://user:word@b/debian trixie main\ndeb file:///x trixie main\n"
    )
    (rootfs / "etc/apt/sources.list.d/d.sources").write_text(
        "Types: deb\nURIs: https://c/debian http://a/debian\nSuites: trixie\n"
    )
    (rootfs / "etc/apt/sources.list.d/other.bak").write_text("deb http://bak/debian trixie main\n")
    with opened(rootfs) as root:
        named = facts.mirrors(root)
    assert "http://a/debian" in named
    assert "https://c/debian" in named
    assert len(named) == len(set(named))
    assert not any("no/" in uri or "bak" in uri or "word" in uri for uri in named)


def test_values_may_be_quoted_either_way(rootfs: Path) -> None:
    text = """# ID=other\nID='debian' \nNAME="\nVERSION_CODENAME="trixie"\n"""
    (rootfs / "etc/os-release").write_text(text)
    with opened(rootfs) as root:
        assert facts.read(root).release == "debian:trixie"


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("etc/os-release", "ID=" + " " * 65_000 + "x"),
        ("etc/os-release", "ID=" + "'" * 65_000 + "x"),
        ("etc/apt/sources.list", "\n" * 65_000 + "x"),
        ("etc/apt/sources.list", "http://a/" + "/" * 60_000 + "!"),
        ("var/lib/dpkg/status", "\n" * 1_000_000),
        (
            "var/lib/dpkg/status",
            "\n".join(f"Package: p\nVersion: 1\nArchitecture: a{n}\n" for n in range(50_000)),
        ),
    ],
)
def test_no_file_takes_long_to_read(rootfs: Path, path: str, content: str) -> None:
    """It is somebody's, and while a pattern is matched nothing else in the daemon runs."""
    (rootfs / path).parent.mkdir(exist_ok=True)
    (rootfs / path).write_text(content)
    with opened(rootfs) as root:
        begun = time.process_time()
        with suppress(UnknownRootfs):
            facts.read(root)
        facts.mirrors(root)
        assert time.process_time() - begun < 1


def test_so_many_packages_and_mirrors_are_none(rootfs: Path) -> None:
    (rootfs / "etc/apt").mkdir()
    (rootfs / "etc/apt/sources.list").write_text("\n".join(f"http://m{i}/x" for i in range(1000)))
    rows = (f"Package: p{i}\nVersion: 1\nArchitecture: arm64\n" for i in range(30_001))
    (rootfs / "var/lib/dpkg/status").write_text("\n".join(rows))
    with opened(rootfs) as root:
        assert len(facts.mirrors(root)) == 64
        with pytest.raises(UnknownRootfs, match="more than 30000"):
            facts.read(root)
