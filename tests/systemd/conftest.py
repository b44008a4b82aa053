"""Fixtures of the tests under systemd."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from container import Machine, booted, installed_tree


@pytest.fixture(scope="session")
def tree() -> Iterator[Path]:
    """A bootable root file system with maid installed in it, of the release that runs here."""
    if os.geteuid() != 0:
        pytest.skip("booting a container needs root")
    # What is compiled for maid is compiled here, so both need the same version of Python.
    release = "12" if 'VERSION_ID="12"' in Path("/etc/os-release").read_text() else "13"
    with installed_tree(release) as made:
        yield made


@pytest.fixture
def machine(tree: Path) -> Iterator[Machine]:
    """A freshly booted machine on which maid is installed, but not enabled."""
    with booted(tree) as made:
        yield made
