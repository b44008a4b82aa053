"""The rules of maid.platforms, each test named for the rule it holds."""

import copy
import functools
import itertools
import os
import pickle
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maid.errors import UsageError
from maid.platforms import (
    COMMON,
    Matcher,
    Platform,
    PlatformError,
    host,
    only,
    only_os,
    only_strict,
    parse,
)

HOST = host()
HOST_VARIANT = HOST.variant if (HOST.architecture, HOST.variant) != ("arm", "v7") else ""
HOST_VARIANT = HOST_VARIANT if HOST.architecture == "arm" else ""


def best_first(matcher: Matcher, *candidates: str) -> list[str]:
    """The matching candidates as R8 orders them, as text."""

    def compare(a: Platform, b: Platform) -> int:
        return matcher.less(b, a) - matcher.less(a, b)

    fitting = [each for each in map(parse, candidates) if matcher.matches(each)]
    return [str(each) for each in sorted(fitting, key=functools.cmp_to_key(compare))]


# R1


@pytest.mark.parametrize(
    ("text", "expected", "shown"),
    [
        ("linux/arm64", Platform("linux", "arm64"), "linux/arm64"),
        ("linux/arm64/v8", Platform("linux", "arm64", "v8"), "linux/arm64/v8"),
        ("linux/arm64/8", Platform("linux", "arm64", "v8"), "linux/arm64/v8"),
        ("linux/arm", Platform("linux", "arm"), "linux/arm"),
        ("linux/arm/v7", Platform("linux", "arm", "v7"), "linux/arm/v7"),
        ("linux/arm/v6", Platform("linux", "arm", "v6"), "linux/arm/v6"),
        ("linux/armhf", Platform("linux", "arm"), "linux/arm"),
        ("linux/armel", Platform("linux", "arm", "v6"), "linux/arm/v6"),
        ("Linux/x86_64", Platform("linux", "amd64"), "linux/amd64"),
        ("linux/amd64/v1", Platform("linux", "amd64"), "linux/amd64"),
        ("linux/amd64/v3", Platform("linux", "amd64", "v3"), "linux/amd64/v3"),
        ("linux/nosuch", Platform("linux", "nosuch"), "linux/nosuch"),
        (
            "windows(10.0.17763+win32k)/amd64",
            Platform("windows", "amd64", "", "10.0.17763", ("win32k",)),
            "windows(10.0.17763+win32k)/amd64",
        ),
        ("windows()/amd64", Platform("windows", "amd64"), "windows/amd64"),
        (
            "linux(+unsorted+erofs)/arm64",
            Platform("linux", "arm64", os_features=("unsorted", "erofs")),
            "linux(+erofs+unsorted)/arm64",
        ),
        (
            "windows(10.0%2Bbuild.42+feat%2B1)/amd64",
            Platform("windows", "amd64", "", "10.0+build.42", ("feat+1",)),
            "windows(10.0%2Bbuild.42+feat%2B1)/amd64",
        ),
        (
            "windows(50%25done)/amd64",
            Platform("windows", "amd64", "", "50%done"),
            "windows(50%25done)/amd64",
        ),
    ],
)
def test_r1_parts_are_read_and_shown(text: str, expected: Platform, shown: str) -> None:
    platform = parse(text)
    assert platform == expected
    assert str(platform) == shown
    assert str(parse(shown)) == shown


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("linux", Platform("linux", HOST.architecture, HOST_VARIANT)),
        ("macOS", Platform("darwin", HOST.architecture, HOST_VARIANT)),
        ("windows(10.0.17763)", Platform("windows", HOST.architecture, HOST_VARIANT, "10.0.17763")),
        ("arm", Platform("linux", "arm")),
        ("armel", Platform("linux", "arm", "v6")),
        ("armhf", Platform("linux", "arm")),
        ("Aarch64", Platform("linux", "arm64")),
        ("x86-64", Platform("linux", "amd64")),
        ("i386", Platform("linux", "386")),
        ("s390x", Platform("linux", "s390x")),
    ],
)
def test_r1_a_single_part_is_an_os_or_an_architecture(text: str, expected: Platform) -> None:
    assert parse(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/linux/arm",
        "linux/arm/",
        "linux /arm",
        "linux/&arm",
        "linux/arm/foo/bar",
        "*",
        "linux/*",
        "linux//v7",
        "nosuch",
        "nosuch(1)",
        "arm64(1)",
        "linux.x/arm",
        "(1)/amd64",
        "windows(1/amd64",
        "windows(1)x/amd64",
        "windows(1+)/amd64",
        "windows(+)/amd64",
        "windows(%zz)/amd64",
        "windows(%+1)/amd64",
        "windows(%4)/amd64",
        "windows(%ff)/amd64",
        "windows(1 0)/amd64",
        "linux/arm\u0664",
        "linux/arm64\n",
    ],
)
def test_r1_anything_else_is_a_usage_error_with_a_way_out(text: str) -> None:
    with pytest.raises(PlatformError) as caught:
        parse(text)
    assert isinstance(caught.value, UsageError)
    assert repr(text) in caught.value.message
    assert caught.value.hint


def test_r1_a_misspelled_single_part_names_the_nearest() -> None:
    with pytest.raises(PlatformError, match="did you mean riscv64"):
        parse("risc64")


# R2


@pytest.mark.parametrize(
    ("written", "normal"),
    [
        (("macOS", "AMD64"), ("darwin", "amd64", "")),
        (("linux", "x86_64"), ("linux", "amd64", "")),
        (("linux", "x86-64"), ("linux", "amd64", "")),
        (("linux", "amd64", "V1"), ("linux", "amd64", "")),
        (("linux", "amd64", "v2"), ("linux", "amd64", "v2")),
        (("linux", "i386"), ("linux", "386", "")),
        (("linux", "aarch64"), ("linux", "arm64", "")),
        (("linux", "arm64", "8"), ("linux", "arm64", "")),
        (("linux", "arm64", "v8"), ("linux", "arm64", "")),
        (("linux", "arm64", "v8.0"), ("linux", "arm64", "")),
        (("linux", "arm64", "v8.1"), ("linux", "arm64", "v8.1")),
        (("linux", "arm64", "9"), ("linux", "arm64", "v9")),
        (("linux", "arm64", "9.0"), ("linux", "arm64", "v9")),
        (("linux", "arm64", "v9.0"), ("linux", "arm64", "v9")),
        (("linux", "armhf"), ("linux", "arm", "v7")),
        (("linux", "armel"), ("linux", "arm", "v6")),
        (("linux", "arm"), ("linux", "arm", "v7")),
        (("linux", "arm", "7"), ("linux", "arm", "v7")),
        (("linux", "arm", "5"), ("linux", "arm", "v5")),
        (("linux", "arm", "6"), ("linux", "arm", "v6")),
        (("linux", "arm", "8"), ("linux", "arm", "v8")),
        (("linux", "riscv64"), ("linux", "riscv64", "")),
    ],
)
def test_r2_each_platform_has_one_spelling(
    written: tuple[str, ...], normal: tuple[str, str, str]
) -> None:
    platform = Platform(*written)
    assert platform.normalized() == Platform(*normal)
    assert platform.normalized().normalized() == platform.normalized()


def test_r2_features_are_sorted_and_each_there_once() -> None:
    platform = Platform("linux", "amd64", os_features=("b", "a", "b"))
    assert platform.normalized().os_features == ("a", "b")


# R3


@pytest.mark.parametrize(
    ("wanted", "candidate", "matches"),
    [
        ("linux(+a+b)/amd64", "linux/amd64", True),
        ("linux(+a+b)/amd64", "linux(+b)/amd64", True),
        ("linux(+a+b)/amd64", "linux(+b+a)/amd64", True),
        ("linux(+a)/amd64", "linux(+a+b)/amd64", False),
        ("linux/amd64", "linux(+a)/amd64", False),
        ("linux(6.1)/amd64", "linux(5.4)/amd64", True),
        ("linux/arm", "linux/armhf", True),
        ("linux/arm64", "linux/aarch64/v8", True),
        ("linux/amd64", "darwin/amd64", False),
        ("linux/amd64", "linux/amd64/v2", False),
        ("linux/amd64", "linux/386", False),
    ],
)
def test_r3_same_parts_and_no_feature_that_is_not_wanted(
    wanted: str, candidate: str, matches: bool
) -> None:
    assert only_strict(parse(wanted)).matches(parse(candidate)) is matches


# R4


@pytest.mark.parametrize(
    ("host_version", "version", "runs"),
    [
        ("", "10.0.17763", True),
        ("10.0.17763", "", True),
        ("10.0.17763", "unreadable", True),
        ("ten.0.17763", "10.0.20348", True),
        ("10.0.17763", "10.0.17763.3165", True),
        ("10.0.17763", "10.0.17764", False),
        ("10.0.17763", "6.0.17763", False),
        ("10.0.17763", "10.1.17763", False),
        ("10.0.20348", "10.0.20348", True),
        ("10.0.20348", "10.0.17763", False),
        ("10.0.20348", "10.0.22621", False),
        ("10.0.22621", "10.0.20348", True),
        ("10.0.22621", "10.0.22000", True),
        ("10.0.22621", "10.0.17763", False),
        ("10.0.26100", "10.0.20348", True),
        ("10.0.26100", "10.0.20347", False),
        ("10.0.26101", "10.0.26100", True),
        ("10.0.26101", "10.0.20348", False),
    ],
)
def test_r4_windows_builds(host_version: str, version: str, runs: bool) -> None:
    wanted = Platform("windows", "amd64", "", host_version)
    assert only(wanted).matches(Platform("windows", "amd64", "", version)) is runs


def test_r4_win32k_is_ignored_on_windows_and_only_there() -> None:
    assert only(parse("windows/amd64")).matches(parse("windows(+win32k)/amd64"))
    assert not only(parse("linux/amd64")).matches(parse("linux(+win32k)/amd64"))


# R5 and R6: the table of examples


@pytest.mark.parametrize(
    ("wanted", "will", "will_not"),
    [
        ("linux/amd64", "amd64 386", "amd64/v2 arm64 windows/amd64"),
        ("linux/amd64/v2", "amd64 amd64/v1 amd64/v2 386", "amd64/v3 amd64/v4"),
        ("linux/386", "386", "amd64"),
        ("linux/arm/v7", "arm arm/v5 arm/v6", "arm/v8 arm/v4 arm64"),
        ("linux/arm/v6", "arm/v5 arm/v6", "arm arm/v7"),
        ("linux/arm/v8", "arm/v8 arm arm/v6 arm/v5", "arm/v4 arm64"),
        ("linux/arm/v4", "arm/v4", "arm arm/v5"),
        ("linux/arm64", "arm64 arm64/v8 arm arm/v5 arm/v8", "arm64/v9 arm/v4 arm64/v8.1"),
        ("linux/arm64/v8.1", "arm64/v8 arm64/v8.1 arm/v8", "arm64/v9 arm64/v8.2"),
        ("linux/arm64/v9", "arm64/v8.5 arm64/v9.0 arm64/v9 arm64 arm/v5", "arm64/v8.6 arm/v4"),
        ("linux/arm64/v9.6", "arm64/v8.9 arm64/v9.5 arm64/v9.6", "arm64/v8.10 arm64/v9.7"),
        ("linux/arm64/v10", "", "arm64/v10 arm64 arm/v7"),
        ("linux/arm64/v8.x", "", "arm64/v8.x arm64"),
        ("linux/arm64/v8.10", "", "arm64/v8.10 arm64"),
        ("linux/riscv64", "riscv64", "riscv64/rva23u64 amd64"),
        ("windows/amd64", "windows/amd64 windows(10.0.17763)/amd64", "amd64 windows/arm"),
    ],
)
def test_r5_what_else_will_do(wanted: str, will: str, will_not: str) -> None:
    matcher = only(parse(wanted))
    for candidate in will.split():
        assert matcher.matches(candidate_of(candidate)), candidate
    for candidate in will_not.split():
        assert not matcher.matches(candidate_of(candidate)), candidate


@pytest.mark.parametrize(
    ("wanted", "will", "will_not"),
    [
        ("linux/arm64", "arm64/v8", "arm/v8 arm64/v9"),
        ("linux/amd64", "amd64 amd64/v1", "386 amd64/v2"),
        ("linux/arm/v7", "arm arm/v7", "arm/v6 arm/v8"),
        ("linux/arm64/v9", "arm64/v9.0", "arm64/v8 arm64"),
    ],
)
def test_r6_strict_is_itself_alone(wanted: str, will: str, will_not: str) -> None:
    matcher = only_strict(parse(wanted))
    for candidate in will.split():
        assert matcher.matches(candidate_of(candidate)), candidate
    for candidate in will_not.split():
        assert not matcher.matches(candidate_of(candidate)), candidate


def candidate_of(text: str) -> Platform:
    return parse(text if text.startswith("windows") else f"linux/{text}")


def test_r5_best_first() -> None:
    everything = ["linux/386", "linux/amd64", "linux/amd64/v2", "linux/amd64/v3", "linux/arm64"]
    assert best_first(only(parse("linux/amd64/v3")), *everything) == [
        "linux/amd64/v3",
        "linux/amd64/v2",
        "linux/amd64",
        "linux/386",
    ]
    arm = ["linux/arm/v5", "linux/arm/v6", "linux/arm/v8", "linux/arm64", "linux/arm64/v8.4"]
    arm += ["linux/arm64/v8.5", "linux/arm64/v9", "linux/arm64/v9.1", "linux/arm64/v9.2"]
    assert best_first(only(parse("linux/arm64/v9.1")), *arm) == [
        "linux/arm64/v9.1",
        "linux/arm64/v9",
        "linux/arm64/v8.5",
        "linux/arm64/v8.4",
        "linux/arm64",
        "linux/arm/v8",
        "linux/arm/v6",
        "linux/arm/v5",
    ]


def test_r5_a_huge_variant_costs_nothing() -> None:
    matcher = only(Platform("linux", "amd64", "v999999999"))
    assert [str(each) for each in matcher.wanted] == ["linux/amd64/v999999999", "linux/386"]


def test_r6_only_os_takes_any_architecture_its_own_first() -> None:
    matcher = only_os(parse("linux/arm64"))
    assert not matcher.matches(parse("windows/arm64"))
    assert best_first(
        matcher, "linux/s390x", "linux/arm/v7", "linux/arm64", "windows/arm64", "linux/amd64"
    ) == ["linux/arm64", "linux/arm/v7", "linux/s390x", "linux/amd64"]
    assert only_os(Platform("linux", "arm64", "nosuch")).matches(parse("linux/amd64"))


# R7


def test_r7_the_first_of_the_list_that_tells_them_apart_decides() -> None:
    matcher = only(parse("linux/amd64/v2"))
    assert matcher.less(parse("linux/amd64"), parse("linux/386"))
    assert not matcher.less(parse("linux/386"), parse("linux/amd64"))
    assert matcher.less(parse("linux/386"), parse("linux/arm64"))


def test_r7_more_of_the_wanted_features_wins() -> None:
    matcher = only(parse("linux(+a+b)/amd64"))
    assert matcher.less(parse("linux(+a+b)/amd64"), parse("linux(+a)/amd64"))
    assert matcher.less(parse("linux(+a)/amd64"), parse("linux/amd64"))
    assert not matcher.less(parse("linux(+a)/amd64"), parse("linux(+b)/amd64"))


def test_r7_without_a_match_features_are_left_out_of_it() -> None:
    matcher = only(parse("linux(+a)/amd64"))
    assert matcher.less(parse("linux(+a+x)/amd64"), parse("linux(+x)/amd64"))
    assert matcher.less(parse("linux(+x)/amd64"), parse("linux(+x)/386"))
    assert not matcher.less(parse("linux(+x)/arm64"), parse("linux(+x)/s390x"))


# R10

BASE = "fpu cx8 cmov mmx fxsr sse sse2 syscall lm"
V2 = f"{BASE} pni ssse3 cx16 sse4_1 sse4_2 popcnt lahf_lm"
V3 = f"{V2} fma movbe xsave avx f16c abm bmi1 avx2 bmi2"
V4 = f"{V3} avx512f avx512dq avx512cd avx512bw avx512vl"


@pytest.mark.parametrize(
    ("flags", "shown"),
    [
        (BASE, "linux/amd64"),
        (V2, "linux/amd64/v2"),
        (V2.replace(" cx16", ""), "linux/amd64"),
        (V3, "linux/amd64/v3"),
        (V3.replace(" abm", ""), "linux/amd64/v2"),
        (V4, "linux/amd64/v4"),
        (V4.replace(" avx512vl", ""), "linux/amd64/v3"),
        (V4.replace(" popcnt", ""), "linux/amd64"),
    ],
)
def test_r10_the_amd64_level_is_detected(flags: str, shown: str) -> None:
    cpuinfo = f"processor\t: 0\nmodel name\t: CPU\nflags\t\t: {flags}\nbugs\t\t: x\n\n"
    assert str(host("x86_64", cpuinfo)) == shown


@pytest.mark.parametrize(
    ("machine", "cpuinfo", "shown"),
    [
        ("x86_64", "", "linux/amd64"),
        ("i686", "", "linux/386"),
        ("aarch64", "CPU architecture: 8\n", "linux/arm64"),
        (
            "armv7l",
            "model name\t: ARMv7 Processor rev 4 (v7l)\nCPU architecture: 7\n",
            "linux/arm/v7",
        ),
        # A Raspberry Pi Zero.
        (
            "armv6l",
            "model name\t: ARMv6-compatible processor rev 7 (v6l)\nCPU architecture: 7\n",
            "linux/arm/v6",
        ),
        ("armv5tejl", "CPU architecture: 5TEJ\n", "linux/arm/v5"),
        # /proc/cpuinfo of another architecture, as under an emulator.
        ("armv7l", "flags : sse2\n", "linux/arm/v7"),
        ("armv8l", "CPU architecture: 8\n", "linux/arm/v8"),
        ("riscv64", "", "linux/riscv64"),
        ("ppc64le", "", "linux/ppc64le"),
        ("s390x", "", "linux/s390x"),
        ("loongarch64", "", "linux/loong64"),
        ("mips64", "", "linux/mips64le" if sys.byteorder == "little" else "linux/mips64"),
    ],
)
def test_r10_the_architecture_is_unames(machine: str, cpuinfo: str, shown: str) -> None:
    assert str(host(machine, cpuinfo)) == shown


def test_r10_this_machine_accepts_images_of_its_own_level() -> None:
    assert host() == host(os.uname().machine, None)
    assert host().normalized() == host()
    assert only(host()).matches(parse("linux"))


# What holds for all of them

PARTS = st.text("abcdefghijklmnopqrstuvwxyzABCXYZ0123456789_-.", min_size=1, max_size=12)
PLATFORMS = st.builds(
    Platform,
    os=st.text("abcdefghijklmnopqrstuvwxyzABC0123456789_-", min_size=1, max_size=12),
    architecture=PARTS | st.sampled_from(["arm", "arm64", "amd64", "386", "armhf", "x86_64"]),
    variant=st.just("") | PARTS | st.sampled_from(["v5", "v6", "v7", "8", "v8.3", "v9.2", "v2"]),
    os_version=st.text(max_size=12) | st.sampled_from(["10.0.20348", "10.0.26100.1"]),
    os_features=st.lists(st.text(min_size=1, max_size=6), max_size=3).map(tuple),
)


@given(PLATFORMS)
def test_what_is_written_reads_back_the_same(platform: Platform) -> None:
    normal = platform.normalized()
    assert parse(str(platform)).normalized() == normal
    assert str(parse(str(normal)).normalized()) == str(normal)


@given(st.text(max_size=30) | st.from_regex(r"[a-z0-9]{1,5}(\([^/]{0,8}\))?/[a-z0-9/]{0,9}"))
def test_any_text_is_a_platform_or_a_platform_error(text: str) -> None:
    try:
        platform = parse(text)
    except PlatformError:
        return
    assert parse(str(platform)).normalized() == platform.normalized()


@given(PLATFORMS, PLATFORMS, PLATFORMS)
def test_of_two_at_most_one_is_better(wanted: Platform, a: Platform, b: Platform) -> None:
    for matcher in (only(wanted), only_strict(wanted), only_os(wanted)):
        assert not (matcher.less(a, b) and matcher.less(b, a))
        assert not matcher.less(a, a)


def test_a_platform_cannot_be_changed_and_can_be_a_key() -> None:
    platform = parse("linux/arm/v7")
    with pytest.raises(AttributeError):
        platform.os = "windows"
    with pytest.raises(AttributeError):
        del platform.os
    assert {platform: 1}[Platform("linux", "arm", "v7")] == 1
    assert pickle.loads(pickle.dumps(platform)) == copy.deepcopy(platform) == platform
    assert platform != "linux/arm/v7"
    assert str(Platform("", "")) == "unknown"


def test_the_common_eleven_are_normalised_and_different() -> None:
    assert [str(each) for each in COMMON] == [
        "linux/386",
        "linux/amd64",
        "linux/arm/v5",
        "linux/arm/v6",
        "linux/arm/v7",
        "linux/arm64",
        "linux/loong64",
        "linux/mips64le",
        "linux/ppc64le",
        "linux/riscv64",
        "linux/s390x",
    ]
    assert all(each == each.normalized() for each in COMMON)
    for a, b in itertools.permutations(COMMON, 2):
        assert not only_strict(a).matches(b)


def test_importing_it_imports_nothing_slow() -> None:
    code = "import sys, maid.platforms; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-S", "-c", f"import sys; sys.path[:0] = {sys.path!r}; {code}"],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    ).stdout.split()
    assert not {"dataclasses", "inspect", "re", "typing", "difflib", "msgspec"} & set(loaded)
