"""Versions, sources and mirrors as Debian and Ubuntu have them."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from maid.acceleration import archive, distributions
from maid.acceleration.archive import Archive, ArchiveError, source_version
from maid.acceleration.distributions import DISTRIBUTIONS, Mirrors
from maid.acceleration.model import MACHINES

AMD64, ARM64 = MACHINES["amd64"], MACHINES["arm64"]


@pytest.mark.parametrize(
    ("version", "source"),
    [
        ("14.2.0-19cross1", "14.2.0-19"),
        ("14.2.0-19", "14.2.0-19"),
        ("12.2.0-14cross1", "12.2.0-14"),
        ("12.2.0-14+deb12u1", "12.2.0-14+deb12u1"),
        ("1:19.1.7-3+b1", "1:19.1.7-3"),
        ("5.8.1-1+deb13u2", "5.8.1-1+deb13u2"),
        ("2.44-3+b12", "2.44-3"),
    ],
)
def test_a_rebuild_and_a_cross_build_are_of_their_source_s_version(
    version: str, source: str
) -> None:
    assert source_version(version) == source


ORDERED = [
    "1.0~rc1-1", "1.0-1", "1.0-1+deb13u1", "1.0-1+deb13u2", "1.0-1+deb13u10", "1.0-2", "1.0a-1",
    "1.0+dfsg-1", "1.1", "1.10-1", "1:0.1-1", "1:0.1-1.1",
]  # fmt: skip


@pytest.mark.skipif(shutil.which("dpkg") is None, reason="dpkg is what it is compared with")
def test_versions_are_ordered_as_dpkg_orders_them() -> None:
    for first in ORDERED:
        for second in ORDERED:
            done = subprocess.run(["dpkg", "--compare-versions", first, "lt", second])
            assert (archive._Version(first) < archive._Version(second)) == (done.returncode == 0), (
                first,
                second,
            )


LISTS = """\
Package: xz-utils
Version: 5.8.1-1
Architecture: arm64
Size: 100
Depends: libc6 (>= 2.34), liblzma5 (>= 5.8.1) | other

Package: cpp-14-aarch64-linux-gnu
Source: gcc-14-cross (9)
Version: 14.2.0-19cross1
Architecture: amd64
Size: 5

Package: clang-19
Source: llvm-toolchain-19 (1:19.1.7-3)
Version: 1:19.1.7-3+b1
Architecture: arm64

Package: xz-utils
Version: 5.8.1-1+deb13u2
Architecture: arm64
Size: 101
"""


@pytest.fixture
def lists(tmp_path: Path) -> Archive:
    (tmp_path / "lists").mkdir()
    arm, amd = [], []
    for paragraph in LISTS.split("\n\n"):
        (arm if "arm64" in paragraph else amd).append(paragraph)
    for name, paragraphs in (("arm64", arm), ("amd64", amd)):
        file = tmp_path / "lists" / f"host_debian_dists_trixie_main_binary-{name}_Packages"
        file.write_text("\n\n".join(paragraphs))
    return Archive(tmp_path, DISTRIBUTIONS["debian"], "trixie", AMD64, ARM64, [])


def test_all_versions_of_a_package_are_found_the_newest_first(lists: Archive) -> None:
    found = lists.versions("xz-utils", "arm64")
    assert [package.version for package in found] == ["5.8.1-1+deb13u2", "5.8.1-1"]
    assert found[1].depends == ("libc6", "liblzma5")
    assert found[0].spelled == "xz-utils:arm64=5.8.1-1+deb13u2"
    assert lists.versions("xz-utils", "amd64") == []


def test_the_source_of_a_cross_compiler_is_the_compiler_s(lists: Archive) -> None:
    (cross,) = lists.versions("cpp-14-aarch64-linux-gnu", "amd64")
    assert cross.source_version == "14.2.0-19"
    (clang,) = lists.versions("clang-19", "arm64")
    assert clang.source_version == "1:19.1.7-3"
    assert archive.file_name(clang) == "clang-19_1%3a19.1.7-3+b1_arm64.deb"


def sources(distribution: str, foreign: str, mirrors: Mirrors) -> str:
    made = Archive(
        Path("/nowhere"), DISTRIBUTIONS[distribution], "rel", AMD64, MACHINES[foreign], [Path("/k")]
    )
    return "".join(made._sources(mirrors))


def test_debian_has_both_architectures_and_security_in_an_archive_of_its_own() -> None:
    text = sources("debian", "riscv64", Mirrors("http://m/debian", "http://s/debian-security"))
    assert text == (
        "deb [arch=amd64,riscv64 signed-by=/k] http://m/debian rel main\n"
        "deb [arch=amd64,riscv64 signed-by=/k] http://m/debian rel-updates main\n"
        "deb [arch=amd64,riscv64 signed-by=/k] http://s/debian-security rel-security main\n"
    )


def test_ubuntu_has_other_architectures_in_its_ports() -> None:
    text = sources("ubuntu", "arm64", Mirrors("http://m/ubuntu", "http://m/ubuntu", "http://p/u"))
    assert "deb [arch=amd64 signed-by=/k] http://m/ubuntu rel-security main universe\n" in text
    assert "deb [arch=arm64 signed-by=/k] http://p/u rel-security main universe\n" in text


def test_mirrors_are_known_by_how_they_end_and_the_usual_one_comes_last() -> None:
    debian = DISTRIBUTIONS["debian"]
    usual = Mirrors(debian.main, debian.security)
    assert distributions.mirrors(debian, ([], ["http://x/other"])) == [usual]
    assert distributions.mirrors(
        debian, (["http://a/debian-security", "http://a/debian"], ["http://b/debian"])
    ) == [
        Mirrors("http://a/debian", "http://a/debian-security"),
        Mirrors("http://b/debian", debian.security),
        usual,
    ]
    ubuntu = DISTRIBUTIONS["ubuntu"]
    assert distributions.mirrors(ubuntu, (["http://a/ubuntu"],))[0] == Mirrors(
        "http://a/ubuntu", "http://a/ubuntu", ubuntu.ports
    )


def test_no_keys_is_said_before_anything_is_fetched(tmp_path: Path) -> None:
    made = Archive(tmp_path, DISTRIBUTIONS["ubuntu"], "noble", AMD64, ARM64, [])
    with pytest.raises(ArchiveError, match="no keys of ubuntu") as caught:
        made.update([Mirrors("http://x", "http://x")])
    assert "ubuntu-keyring" in caught.value.hint
    assert not list(tmp_path.iterdir())


def test_keys_are_the_machine_s_unless_others_are_configured(tmp_path: Path) -> None:
    debian = DISTRIBUTIONS["debian"]
    assert distributions.keyrings(debian, [], tmp_path) == []
    own = tmp_path / "usr/share/keyrings" / debian.keyrings[0]
    own.parent.mkdir(parents=True)
    own.touch()
    other = tmp_path / "other.gpg"
    other.touch()
    assert distributions.keyrings(debian, [], tmp_path) == [own]
    assert distributions.keyrings(debian, [other], tmp_path) == [other, own]


def test_an_archive_signed_by_somebody_else_is_refused(tmp_path: Path) -> None:
    """A mirror without a signature that our keys made: nothing is taken from it."""
    mirror = tmp_path / "mirror/debian"
    release = mirror / "dists/trixie"
    release.mkdir(parents=True)
    (release / "Release").write_text("Suite: trixie\nCodename: trixie\nComponents: main\n")
    keyring = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
    made = Archive(tmp_path / "apt", DISTRIBUTIONS["debian"], "trixie", AMD64, ARM64, [keyring])
    with pytest.raises(ArchiveError, match="cannot be had"):
        made.update([Mirrors(f"file://{mirror}", f"file://{mirror}")])


def test_packages_are_kept_while_they_are_whole_and_used(
    lists: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def apt(_: str, *names: str, **__: object) -> subprocess.CompletedProcess[str]:
        asked.extend(names)
        for package in wanted:
            if package.spelled in names:
                (into / archive.file_name(package)).write_bytes(b"x" * package.size)
        return subprocess.CompletedProcess([], 0, "", "")

    monkeypatch.setattr(lists, "_apt", apt)
    into = tmp_path / "packages"
    wanted = lists.versions("xz-utils", "arm64")
    files = lists.download(wanted, into)
    assert asked == sorted(package.spelled for package in wanted)
    files[wanted[0]].write_bytes(b"cut")
    left = into / "left_1_all.deb"
    left.touch()
    os.utime(left, (1, 1))
    asked.clear()
    assert lists.download(wanted, into) == files
    assert asked == [wanted[0].spelled]
    assert files[wanted[0]].stat().st_size == wanted[0].size
    assert not left.exists() and files[wanted[1]].exists()
