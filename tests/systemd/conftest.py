"""Fixtures of the tests under systemd."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from container import Machine, booted
from trees import installed_here, installed_there, shift_owners


@pytest.fixture(scope="session")
def tree() -> Iterator[Path]:
    """A bootable root file system with maid installed in it, of the release that runs here."""
    _needs_root()
    with installed_here() as made:
        shift_owners(made)
        yield made


@pytest.fixture(scope="session")
def other_tree() -> Iterator[Path]:
    """One of the other release: with another systemd, and what building and installing takes."""
    _needs_root()
    with installed_there() as made:
        shift_owners(made)
        yield made


def _needs_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("booting a container needs root")


@pytest.fixture
def machine(tree: Path) -> Iterator[Machine]:
    """A freshly booted machine on which maid is installed, but not enabled."""
    with booted(tree) as made:
        yield made
