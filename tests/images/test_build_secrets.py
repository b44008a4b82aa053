"""`maid build --secret`: nothing of it is told or kept, whether the build works or fails."""

from __future__ import annotations

import json
import secrets
from pathlib import Path

import pytest
from building import Builds, pushing
from places import Place
from registry import Registry


@pytest.fixture(scope="module")
def builds(place: Place, registry: Registry) -> Builds:
    """A build directory for this module."""
    return Builds(place, registry, place.directory / "secrets")


def holding(directory: Path, word: str) -> list[Path]:
    """The files below that have the word in them."""
    return [
        path
        for path in directory.rglob("*")
        if path.is_file() and not path.is_symlink() and word.encode() in path.read_bytes()
    ]


@pytest.mark.parametrize("ends", ["true", "false"])
def test_a_builds_secret_is_told_and_kept_nowhere(builds: Builds, busybox: str, ends: str) -> None:
    secret = f"hush-{secrets.token_hex(12)}"
    given = builds.place.directory / "given-secret"
    given.write_text(secret)
    text = f"FROM {busybox}\nRUN --mount=type=secret,id=pw read x </run/secrets/pw; {ends}\n"
    options = pushing(builds.registry, "secrets/kept", "linux/arm64")
    done = builds.run(
        builds.place.context(text), *options, "--secret", f"id=pw,src={given}", check=False
    )
    assert (done.returncode == 0) == (ends == "true"), done.stdout + done.stderr
    assert secret not in done.stdout + done.stderr
    given.unlink()
    assert not holding(builds.root, secret)
    assert secret not in builds.place.daemon.text()
    if ends == "true":
        assert secret not in json.dumps(builds.config("secrets/kept"))
        assert not [name for name in builds.files("secrets/kept") if name.endswith("/pw")]
