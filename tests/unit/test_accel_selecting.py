"""Tools are paired by the version of their source, and what cannot be paired says why."""

from __future__ import annotations

import pytest

from maid.acceleration import selecting, tools
from maid.acceleration.archive import Package, source_version
from maid.acceleration.model import MACHINES, Extra, Need, Tool

AMD64, ARM64 = MACHINES["amd64"], MACHINES["arm64"]


def package(name: str, version: str, architecture: str, *depends: str) -> Package:
    return Package(name, version, architecture, name, source_version(version), 1, depends)


class Offers:
    """Packages, the newest of a name first."""

    native, foreign = AMD64, ARM64

    def __init__(self, *packages: Package) -> None:
        self.packages = packages

    def versions(self, name: str, architecture: str) -> list[Package]:
        return [p for p in self.packages if (p.name, p.architecture) == (name, architecture)]


XZ = Tool("xz", "xz-utils", "/usr/bin/xz", "why")
CC1 = Tool("cc1", "cpp-{gnu}", "/x", "why", native_package="cross-{gnu}")

ARCHIVE = Offers(
    package("xz-utils", "2-1", "arm64", "libc6", "liblzma5"),
    package("xz-utils", "1-1", "arm64", "libc6", "liblzma5"),
    package("xz-utils", "2-1+b3", "amd64", "libc6", "liblzma5", "debconf"),
    package("cpp-aarch64-linux-gnu", "14-1", "arm64"),
    package("cross-aarch64-linux-gnu", "14-1cross1", "amd64", "libisl23", "gcc-base", "libx-dev"),
    package("libc6", "5", "amd64"),
    package("liblzma5", "2-1", "amd64", "libc6"),
    package("liblzma5", "1-1", "amd64", "libc6"),
    package("liblzma5", "2-1", "arm64"),
    package("libisl23", "1", "amd64", "libgmp10"),
    package("libgmp10", "1", "amd64"),
    package("libx-dev", "1", "amd64"),
)


def test_the_newest_is_taken_when_nothing_is_installed() -> None:
    selection = selecting.select([XZ, CC1], ARCHIVE, {})
    assert [(p.tool.name, p.foreign.version, p.native.version) for p in selection.pairs] == [
        ("xz", "2-1", "2-1+b3"),
        ("cc1", "14-1", "14-1cross1"),
    ]
    assert selection.left == []


@pytest.mark.parametrize(
    ("installed", "reason"),
    [
        ("1-1", "1-1 needs a native xz-utils of the same source; it is only of 2-1+b3"),
        ("0-1", "the archive has 2-1, not 0-1"),
    ],
)
def test_another_version_than_installed_does_not_stand_in(installed: str, reason: str) -> None:
    selection = selecting.select([XZ], ARCHIVE, {"xz-utils": installed})
    assert selection.pairs == []
    (left,) = selection.left
    assert (left.tool, left.version) == ("xz", installed)
    assert reason in left.reason


def test_a_patched_compiler_is_not_its_cross_compiler() -> None:
    """Debian 12: gcc-12 12.2.0-14+deb12u1 against 12.2.0-14cross1."""
    offers = Offers(
        package("cpp-aarch64-linux-gnu", "12.2.0-14+deb12u1", "arm64"),
        package("cross-aarch64-linux-gnu", "12.2.0-14cross1", "amd64"),
    )
    selection = selecting.select([CC1], offers, {})
    assert selection.pairs == []
    assert "only of 12.2.0-14cross1" in selection.left[0].reason


def test_what_the_release_does_not_have_is_passed_over() -> None:
    selection = selecting.select([Tool("zap", "zap", "/usr/bin/zap", "why")], ARCHIVE, {})
    assert selection.pairs == selection.left == []


@pytest.mark.parametrize(
    ("foreign", "need", "serves"),
    [
        ("arm64", Need.ALL, True),
        ("armhf", Need.ORDER | Need.SIGNALS, True),
        ("armhf", Need.WIDTH, False),
        ("s390x", Need.WIDTH, True),
        ("s390x", Need.ORDER, False),
        ("mips64el", Need.WIDTH | Need.ORDER, True),
        ("mips64el", Need.SIGNALS, False),
    ],
)
def test_a_tool_serves_machines_that_share_what_it_needs(
    foreign: str, need: Need, serves: bool
) -> None:
    tool = Tool("x", "x", "/x", "why", needs=need)
    assert tool.serves(AMD64, MACHINES[foreign]) is serves


def test_a_cpu_without_a_feature_leaves_the_tool_emulated() -> None:
    tool = Tool("xz", "xz-utils", "/usr/bin/xz", "why", features=("no-such-feature",))
    selection = selecting.select([tool], ARCHIVE, {})
    assert selection.pairs == []
    assert "no no-such-feature" in selection.left[0].reason


CLANG = Tool("clang", "clang-1", "/x", "why", compared="1:1-1", on_demand=True)


def _llvm(theirs: str, ours: str, their_library: str, our_library: str) -> Offers:
    return Offers(
        package("clang-1", theirs, "arm64", "libllvm1", "libc6", "binutils", "lib-gone"),
        package("clang-1", ours, "amd64", "libllvm1"),
        package("libllvm1", their_library, "arm64"),
        package("libllvm1", our_library, "amd64"),
        package("libc6", "5", "amd64"),
        package("libc6", "5", "arm64"),
        package("binutils", "2", "amd64"),
        package("binutils", "1", "arm64"),
    )


def test_a_tool_on_demand_is_only_taken_for_what_has_it() -> None:
    """Nobody who has no clang is to fetch LLVM."""
    offers = _llvm("1:1-1", "1:1-1", "1:1-1", "1:1-1")
    assert selecting.select([CLANG], offers, {}) == selecting.Selection()
    assert selecting.select([CLANG], offers, {"binutils": "1"}) == selecting.Selection()
    (pair,) = selecting.select([CLANG], offers, {"clang-1": "1:1-1"}).pairs
    assert pair.tool == CLANG


@pytest.mark.parametrize(
    ("versions", "reason"),
    [
        (("1:1-1+b1", "1:1-1+b1", "1:1-1", "1:1-1"), ""),
        (("1:1-2", "1:1-2", "1:1-1", "1:1-1"), "1:1-2 was not compared with the native one"),
        (("1:1-1+b2", "1:1-1", "1:1-1", "1:1-1"), "clang-1 1:1-1+b2 needs the native one"),
        (("1:1-1", "1:1-1", "1:1-1+b1", "1:1-1"), "libllvm1 1:1-1+b1 needs the native one"),
    ],
)
def test_only_the_build_that_was_compared_stands_in(
    versions: tuple[str, str, str, str], reason: str
) -> None:
    """What a compiler writes names its build, and its libraries are most of it."""
    selection = selecting.select([CLANG], _llvm(*versions), {"clang-1": versions[0]})
    assert len(selection.pairs) == (not reason)
    assert len(selection.left) == bool(reason)
    assert all(reason in left.reason for left in selection.left)


@pytest.mark.parametrize(("library", "fetched"), [("libm.so.6", True), ("libllvm.so", False)])
def test_the_foreign_libc_is_only_fetched_for_its_own_build_id(library: str, fetched: bool) -> None:
    tool = Tool("clang", "clang-1", "/x", "why", decisive=(f"/usr/lib/{{gnu}}/{library}",))
    offers = _llvm("1:1-1", "1:1-1", "1:1-1", "1:1-1")
    found = selecting.foreigns(selecting.select([tool], offers, {}), offers, {})
    assert ("libc6" in {package.name for package in found}) is fetched


def test_libraries_are_followed_and_compilers_and_headers_are_not() -> None:
    selection = selecting.select([XZ, CC1], ARCHIVE, {})
    names = {package.name for package in selecting.natives(selection, ARCHIVE, {})}
    assert names == {
        "xz-utils", "cross-aarch64-linux-gnu", "libc6", "liblzma5", "libisl23", "libgmp10",
    }  # fmt: skip


def test_libraries_are_of_the_installed_version_where_there_is_one() -> None:
    selection = selecting.select([XZ], ARCHIVE, {})
    found = selecting.natives(selection, ARCHIVE, {"liblzma5": "1-1"})
    assert {p.version for p in found if p.name == "liblzma5"} == {"1-1"}


def test_extras_and_decisive_libraries_bring_their_packages() -> None:
    tool = Tool(
        "xz",
        "xz-utils",
        "/usr/bin/xz",
        "why",
        extras=(Extra("cross-{gnu}", "/x", "x"),),
        decisive=("/usr/lib/{gnu}/liblzma.so.5",),
    )
    offers = Offers(
        *(p for p in ARCHIVE.packages if "cross" not in p.name),
        package("cross-aarch64-linux-gnu", "2-1cross2", "amd64"),
    )
    selection = selecting.select([tool], offers, {})
    assert "cross-aarch64-linux-gnu" in {p.name for p in selecting.natives(selection, offers, {})}
    assert {p.name for p in selecting.foreigns(selection, offers, {})} == {"xz-utils", "liblzma5"}


def test_a_set_s_name_stands_for_what_decides_its_content() -> None:
    def name(selection: selecting.Selection, codename: str = "trixie") -> str:
        return selection.name("debian", codename, "amd64", "arm64")

    both, one = (selecting.select(each, ARCHIVE, {}) for each in ([XZ, CC1], [XZ]))
    assert name(both) == name(selecting.select([CC1, XZ], ARCHIVE, {}))
    assert len({name(both), name(one), name(both, "forky")}) == 3
    assert len(name(both)) == 5


@pytest.mark.parametrize(
    ("patterns", "has", "lacks"),
    [
        (["*"], ["xz", "perl"], []),
        (["*", "-perl*"], ["xz"], ["perl"]),
        (["xz"], ["xz"], ["perl", "xzdec"]),
        (["-xz", "*"], ["xz"], []),
        ([], [], ["xz", "perl"]),
    ],
)
def test_the_last_pattern_that_matches_decides(
    patterns: list[str], has: list[str], lacks: list[str]
) -> None:
    names = {tool.name for tool in tools.chosen(patterns)}
    assert names.issuperset(has)
    assert names.isdisjoint(lacks)


def test_every_tool_says_why_it_may_stand_in() -> None:
    for tool in tools.TOOLS:
        assert len(tool.why) > 15, tool.name
        assert tool.path.startswith("/usr/"), tool.name
