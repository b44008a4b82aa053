"""The catalogue's promises: every header belongs to at most one target, every probe to its own."""

from itertools import combinations

import pytest

from maid import elf
from maid.emulation.cpus import CHOICES, NOT_MEASURED
from maid.emulation.targets import (
    PROBE_OUTPUT,
    TARGETS,
    Target,
    family_of_host,
    for_header,
    for_platform,
    own,
)
from maid.errors import MaidError
from maid.platforms import COMMON, Platform, parse

ALL = list(TARGETS.values())
by_name = pytest.mark.parametrize("target", ALL, ids=lambda target: target.name)

# QEMU's magic of microblaze matches no valid program; tests/kernel/test_probe_programs.py shows it.
UNREACHABLE = {"microblaze"}


QEMUS_SCRIPT = """
i386 i486 x86_64 alpha arm armeb aarch64 aarch64_be sparc sparc32plus sparc64 ppc ppc64 ppc64le
m68k mips mipsel mipsn32 mipsn32el mips64 mips64el sh4 sh4eb s390x hppa riscv32 riscv64 xtensa
xtensaeb microblaze microblazeel or1k hexagon loongarch64
"""


def test_the_catalogue_has_every_cpu_of_qemus_script() -> None:
    assert list(TARGETS) == QEMUS_SCRIPT.split()


@by_name
def test_magic_and_mask_are_what_the_kernel_takes(target: Target) -> None:
    assert len(target.magic) == len(target.mask) in (20, 40)
    assert target.magic[:4] == b"\x7fELF"
    assert target.mask[:5] == b"\xff" * 5


def test_no_two_rows_overlap() -> None:
    for a, b in combinations(ALL, 2):
        rows = zip(a.magic, a.mask, b.magic, b.mask, strict=False)
        both = all((x ^ y) & p & q == 0 for x, p, y, q in rows)
        assert not both, f"a header can match {a.name} and {b.name}"


@by_name
def test_a_probe_matches_its_own_row_and_no_other(target: Target) -> None:
    assert target.probe is not None
    matching = {other.name for other in ALL if other.matches(target.probe)}
    assert matching == {target.name} - UNREACHABLE
    assert target.reachable == (target.name not in UNREACHABLE)
    if target.reachable:
        assert for_header(target.probe[:40]) is target


@by_name
def test_a_probe_is_a_small_static_program_for_its_machine(target: Target) -> None:
    assert target.probe is not None
    found = elf.read(target.probe)
    assert (found.machine, found.bits, found.little) == (target.machine, target.bits, target.little)
    assert found.static and not found.dynamic
    assert len(target.probe) < 256
    assert target.probe_output in target.probe


def test_no_two_probes_write_the_same() -> None:
    outputs = {target.probe_output for target in ALL}
    assert len(outputs) == len(ALL)
    assert all(target.probe_output == PROBE_OUTPUT % target.name.encode() for target in ALL)


@pytest.mark.parametrize("name", [name for name in TARGETS if name not in UNREACHABLE])
def test_position_independent_programs_and_any_osabi_match_too(name: str) -> None:
    target = TARGETS[name]
    assert target.probe is not None
    header = bytearray(target.probe)
    header[16:18] = (3).to_bytes(2, "little" if target.little else "big")
    assert target.matches(bytes(header)), "ET_DYN"
    header[7] = 3
    assert target.matches(bytes(header)), "OSABI GNU, as programs with IFUNC have it"
    header[16:18] = (1).to_bytes(2, "little" if target.little else "big")
    assert not target.matches(bytes(header)), "an object file is no program"


def test_mips_programs_match_whatever_their_abi_version() -> None:
    for name in ("mips", "mipsel", "mipsn32", "mipsn32el", "mips64", "mips64el"):
        probe = TARGETS[name].probe
        assert probe is not None
        assert for_header(probe[:8] + b"\x05" + probe[9:]) is TARGETS[name]


def test_what_no_target_runs_matches_none() -> None:
    x86_64 = TARGETS["x86_64"].probe
    assert x86_64 is not None
    assert for_header(b"#!/bin/sh\n") is None
    assert for_header(b"") is None
    x32 = x86_64[:4] + b"\x01" + x86_64[5:]
    assert for_header(x32) is None, "x32: 32-bit class with x86-64's machine number"


def test_every_common_platform_has_its_target() -> None:
    names = {str(platform): getattr(for_platform(platform), "name", None) for platform in COMMON}
    assert names == {
        "linux/386": "i386",
        "linux/amd64": "x86_64",
        "linux/arm/v5": "arm",
        "linux/arm/v6": "arm",
        "linux/arm/v7": "arm",
        "linux/arm64": "aarch64",
        "linux/loong64": "loongarch64",
        "linux/mips64le": "mips64el",
        "linux/ppc64le": "ppc64le",
        "linux/riscv64": "riscv64",
        "linux/s390x": "s390x",
    }


@pytest.mark.parametrize(
    ("platform", "name"),
    [
        ("linux/amd64/v3", "x86_64"),
        ("linux/arm64/v8.1", "aarch64"),
        ("linux/arm/v8", "arm"),
        ("linux/aarch64", "aarch64"),
        ("linux/mips", "mips"),
        ("linux/mipsle", "mipsel"),
        ("linux/mips64", "mips64"),
        ("linux/ppc64", "ppc64"),
        ("windows/amd64", None),
        ("linux/sparc64", None),
        ("linux/wasm", None),
    ],
)
def test_a_platforms_variant_does_not_count(platform: str, name: str | None) -> None:
    found = for_platform(parse(platform))
    assert (found and found.name) == name


@by_name
def test_platforms_are_normalized_and_lead_back(target: Target) -> None:
    for platform in target.platforms:
        assert platform == platform.normalized()
        assert for_platform(platform) is target


@by_name
def test_credentials_are_for_targets_with_a_platform(target: Target) -> None:
    assert target.credentials == bool(target.platforms)


def test_arm64_runs_with_a_model_without_pointer_authentication() -> None:
    chosen = {target.name: target.cpu.models for target in ALL if target.cpu.models}
    assert chosen == {"aarch64": ("neoverse-n1", "max,pauth=off")}


def test_every_choice_of_a_model_has_a_target_and_a_reason() -> None:
    assert set(CHOICES) <= set(TARGETS)
    for target in ALL:
        assert target.cpu.reason
        assert (target.cpu is NOT_MEASURED) == (target.name not in CHOICES)


def test_only_platforms_without_a_current_distribution_are_not_measured() -> None:
    left = {target.name for target in ALL if target.platforms} - set(CHOICES)
    assert left == {"mips", "mipsel", "mips64", "ppc64"}


@pytest.mark.parametrize(
    ("machine", "little", "name"),
    [
        ("x86_64", True, "x86_64"),
        ("i686", True, "i386"),
        ("i486", True, "i486"),
        ("aarch64", True, "aarch64"),
        ("aarch64_be", False, "aarch64_be"),
        ("armv7l", True, "arm"),
        ("armv5tel", True, "arm"),
        ("armv8l", True, "arm"),
        ("armv7b", False, "armeb"),
        ("mips64", True, "mips64el"),
        ("mips64", False, "mips64"),
        ("mips", False, "mips"),
        ("ppc64le", True, "ppc64le"),
        ("s390x", False, "s390x"),
        ("riscv64", True, "riscv64"),
        ("loongarch64", True, "loongarch64"),
        ("sh4a", True, "sh4"),
        ("parisc64", False, "hppa"),
        ("openrisc", False, "or1k"),
    ],
)
def test_the_hosts_own_target_is_known(machine: str, little: bool, name: str) -> None:
    assert own(machine, little) == name


def test_an_unknown_host_is_an_error_with_a_hint() -> None:
    with pytest.raises(MaidError, match="vax") as caught:
        own("vax")
    assert caught.value.hint


def test_family_is_what_the_host_may_run_itself() -> None:
    assert family_of_host("x86_64") == ("x86_64", "i386", "i486")
    assert family_of_host("aarch64") == ("aarch64", "arm")
    assert family_of_host("ppc64le", True) == ("ppc64le",)
    assert family_of_host("mips64", True) == ("mips64el", "mipsel", "mipsn32el")
    assert family_of_host("riscv64") == ("riscv64",)


def test_this_machines_own_target_is_in_the_catalogue() -> None:
    assert own() in TARGETS
    assert isinstance(TARGETS[own()].platforms, tuple)
    assert all(isinstance(platform, Platform) for platform in TARGETS[own()].platforms)
