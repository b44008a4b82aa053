"""A root file system is served when every tool it has is in a set, or known not to be had."""

from __future__ import annotations

from maid.acceleration.coverage import cover
from maid.acceleration.facts import Facts
from maid.acceleration.model import MACHINES, Need, Tool
from maid.acceleration.sets import FORMAT, Entry, Left, Manifest

AMD64 = MACHINES["amd64"]
TOOLS = (
    Tool("xz", "xz-utils", "/usr/bin/xz", "why"),
    Tool("tar", "tar", "/usr/bin/tar", "why"),
    Tool("cc1", "cpp-{gnu}", "/cc1", "why", needs=Need.WIDTH),
)


def rootfs(architecture: str = "arm64", **packages: str) -> Facts:
    named = {name.replace("_", "-"): version for name, version in packages.items()}
    return Facts("debian", "trixie", architecture, named)


def a_set(
    name: str,
    *packages: tuple[str, str],
    left: tuple[Left, ...] = (),
    distribution: str = "debian",
    foreign: str = "arm64",
) -> Manifest:
    entries = [Entry("t", "0", "/p", p, v, p, v, "bin/p", b"") for p, v in packages]
    return Manifest(
        FORMAT, name, distribution, "trixie", "amd64", foreign, "t", 0.0, "m", [], entries,
        list(left), {}, {},
    )  # fmt: skip


def test_everything_there_is_ready() -> None:
    sets = [a_set("aaaaa", ("xz-utils", "1")), a_set("bbbbb", ("tar", "2"), ("sed", "1"))]
    seen, wanted = cover(rootfs(xz_utils="1", tar="2", bash="5"), TOOLS, sets, (), AMD64)
    assert (seen.ready, seen.reason, seen.sets) == (True, "", ("aaaaa", "bbbbb"))
    assert not wanted


def test_another_version_is_missing_and_all_that_is_wanted_is_named() -> None:
    sets = [a_set("aaaaa", ("xz-utils", "1"), ("tar", "1"))]
    seen, wanted = cover(rootfs(xz_utils="1", tar="2"), TOOLS, sets, (), AMD64)
    assert not seen.ready
    assert "tar 2 of debian:trixie arm64" in seen.reason
    assert seen.sets == ("aaaaa",)
    assert wanted == {("xz-utils", "1"), ("tar", "2")}


def test_what_is_known_not_to_be_had_is_not_missed() -> None:
    gone = Left("tar", "tar", "2", "the archive has 3, not 2")
    has = ("xz-utils", "1")
    for sets, left in (([a_set("aaaaa", has, left=(gone,))], ()), ([a_set("aaaaa", has)], (gone,))):
        seen, _ = cover(rootfs(xz_utils="1", tar="2"), TOOLS, sets, left, AMD64)
        assert (seen.ready, seen.sets) == (True, ("aaaaa",))


def test_nothing_to_be_had_at_all_says_why() -> None:
    gone = Left("tar", "tar", "2", "the archive has 3, not 2")
    seen, wanted = cover(rootfs(tar="2"), TOOLS, [], (gone,), AMD64)
    assert (seen.ready, wanted) == (False, set())
    assert "the archive has 3, not 2" in seen.reason


def test_sets_of_other_distributions_and_machines_do_not_count() -> None:
    sets = [
        a_set("aaaaa", ("tar", "2"), distribution="ubuntu"),
        a_set("bbbbb", ("tar", "2"), foreign="riscv64"),
    ]
    seen, wanted = cover(rootfs(tar="2"), TOOLS, sets, (), AMD64)
    assert (seen.ready, seen.sets, wanted) == (False, (), {("tar", "2")})


def test_tools_are_looked_for_under_the_foreign_machine_s_name() -> None:
    found = rootfs(cpp_aarch64_linux_gnu="14")
    assert cover(found, TOOLS, [], (), AMD64)[1] == {("cpp-aarch64-linux-gnu", "14")}


def test_what_cannot_be_served_is_said_and_nothing_is_fetched() -> None:
    for found, reason in (
        (rootfs("amd64", tar="2"), "no native tools for amd64"),
        (rootfs("sparc", tar="2"), "no native tools for sparc"),
        (rootfs(bash="5"), "none of the programs"),
        (rootfs("armhf", cpp_arm_linux_gnueabihf="14"), "none of the programs"),
    ):
        seen, wanted = cover(found, TOOLS, [], (), AMD64)
        assert (seen.ready, wanted) == (False, set())
        assert reason in seen.reason
