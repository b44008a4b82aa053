"""`make -C daemon/native`: builds all helpers, again only what changed, always the same bytes."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from compiled import NATIVE

PROGRAMS = (
    "maid-step",
    "maid-enter",
    "maid-init",
    "maid-profile",
    "maid-hook",
    "maid-runtime",
    "maid-guard",
)
HELPERS = {**dict.fromkeys((*PROGRAMS, "libmaid-shim.so"), 0o755), "front.bin": 0o644}


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A copy of daemon/native without what was built there."""
    return copied(tmp_path / "a place")


def copied(directory: Path) -> Path:
    shutil.copytree(NATIVE, directory, ignore=shutil.ignore_patterns("build"))
    return directory


def make(sources: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["make", "-C", str(sources), *arguments],
        env={name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "warning" not in done.stderr
    return done.stdout


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_all_helpers_are_installed_and_work_without_libraries(
    sources: Path, tmp_path: Path
) -> None:
    libexec = tmp_path / "some libexec" / "maid"
    make(sources, f"LIBEXEC={libexec}")
    assert {path.name: path.stat().st_mode & 0o7777 for path in libexec.iterdir()} == HELPERS
    for name in PROGRAMS:
        headers = subprocess.run(
            ["readelf", "-lW", libexec / name], capture_output=True, text=True, check=True
        )
        assert "INTERP" not in headers.stdout


def test_only_what_changed_is_built_again(sources: Path, tmp_path: Path) -> None:
    libexec = tmp_path / "libexec"
    install = f"LIBEXEC={libexec}"
    assert "front.o" in make(sources, install)
    inodes = {path.name: path.stat().st_ino for path in libexec.iterdir()}
    assert " -o " not in make(sources, install)
    assert {path.name: path.stat().st_ino for path in libexec.iterdir()} == inodes
    (sources / "front.c").touch()
    again = make(sources, install)
    assert "front.o" in again
    assert "maid-step" not in again


def test_the_front_can_be_built_alone_and_all_is_cleaned_up(sources: Path) -> None:
    before = set(sources.rglob("*"))
    make(sources, "front")
    (front,) = sources.rglob("front.bin")
    assert not list(sources.rglob("maid-*"))
    assert front.stat().st_size <= 3 * 4096  # as front.lds has it
    make(sources, "clean")
    assert set(sources.rglob("*")) == before


def test_the_same_sources_give_the_same_bytes(tmp_path: Path) -> None:
    made = []
    for name in ("one", "another-place"):
        libexec = tmp_path / f"libexec-{name}"
        make(copied(tmp_path / name), f"LIBEXEC={libexec}")
        made.append(contents(libexec))
    assert made[0] == made[1]
    assert set(made[0]) == set(HELPERS)
