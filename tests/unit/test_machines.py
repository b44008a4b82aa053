"""Programs are told by their ELF headers, and held against the platform they are to run on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from maid import elf
from maid.emulation.targets import TARGETS
from maid.images.machines import HEAD, architecture_of, stranger
from maid.platforms import parse


def program(machine: int, bits: int, little: bool) -> bytes:
    return elf.minimal(machine=machine, bits=bits, little=little, code=b"\0")


ARM64, ARM, AMD64, I386 = (
    program(183, 64, True),
    program(40, 32, True),
    program(62, 64, True),
    program(3, 32, True),
)


def test_the_catalogue_of_emulators_agrees() -> None:
    compared = 0
    for target in TARGETS.values():
        for platform in target.platforms:
            head = program(target.machine, target.bits, target.little)[:HEAD]
            assert architecture_of(head) == platform.architecture, target.name
            compared += 1
    assert compared > 10


@pytest.mark.parametrize(
    "head", [b"", b"#!/bin/sh\n" * 3, ARM64[:19], b"\x7fELF" + b"\0" * 16, b"\x7fELX" + ARM64[4:]]
)
def test_what_is_no_program_has_no_architecture(head: bytes) -> None:
    assert architecture_of(head) == ""


@pytest.mark.parametrize(
    ("platform", "shell", "expected"),
    [
        ("linux/arm64", ARM64, ("", "")),
        ("linux/arm64", ARM, ("", "")),
        ("linux/arm64", AMD64, ("/bin/sh", "amd64")),
        ("linux/arm/v7", ARM, ("", "")),
        ("linux/arm/v7", ARM64, ("/bin/sh", "arm64")),
        ("linux/amd64/v3", I386, ("", "")),
        ("linux/386", AMD64, ("/bin/sh", "amd64")),
        ("linux/arm64", b"#!/bin/true\n", ("", "")),
        ("linux/unheard", ARM64, ("/bin/sh", "arm64")),
    ],
)
def test_a_tree_is_judged_by_its_programs(
    tmp_path: Path, platform: str, shell: bytes, expected: tuple[str, str]
) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/sh").write_bytes(shell)
    assert stranger(tmp_path, parse(platform)) == expected


def test_the_first_program_decides_and_the_images_own_is_the_last(tmp_path: Path) -> None:
    assert stranger(tmp_path, parse("linux/arm64")) == ("", "")
    (tmp_path / "app").write_bytes(AMD64)
    assert stranger(tmp_path, parse("linux/arm64")) == ("", "")
    assert stranger(tmp_path, parse("linux/arm64"), ["/none", "/app"]) == ("/app", "amd64")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/busybox").write_bytes(ARM64)
    assert stranger(tmp_path, parse("linux/arm64"), ["/app"]) == ("", "")


def test_links_stay_in_the_tree_and_nothing_is_opened_that_waits(tmp_path: Path) -> None:
    tree, outside = tmp_path / "tree", tmp_path / "outside"
    (tree / "bin").mkdir(parents=True)
    outside.write_bytes(AMD64)
    (tree / "bin/sh").symlink_to(outside)
    (tree / "bin/busybox").symlink_to("../../outside")
    os.mkfifo(tree / "bin/bash")
    assert stranger(tree, parse("linux/arm64")) == ("", "")
    (tree / "real").write_bytes(AMD64)
    (tree / "bin/sh").unlink()
    (tree / "bin/sh").symlink_to("/real")
    assert stranger(tree, parse("linux/arm64")) == ("/bin/sh", "amd64")
