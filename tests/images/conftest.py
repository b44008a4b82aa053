"""Fixtures for tests of images: a registry with base images, a registry that misbehaves, a place in
which everything is private.

`scripts/lib` has what the benchmarks use, too: the registry, images, rooms with other engines.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts/lib"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "kernel"))

import bases
import places
import registry as registries
from daemons import Daemon
from faulty import Faulty
from layouts import Layout
from making import Maker
from places import Place
from registry import Registry

CHECKOUT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module", autouse=True)
def host_table_is_left_alone() -> Iterator[None]:
    """Nothing that a module's tests do changes this machine's own binfmt table."""

    def table() -> str:
        script = '. "$0/common.sh"; . "$0/report.sh"; host_table'
        command = ["bash", "-c", script, CHECKOUT / "scripts/lib"]
        return subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=30
        ).stdout

    before = table()
    yield
    assert table() == before


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """A registry for all tests; each uses repositories of its own but for `base/…`."""
    with registries.serving(tmp_path_factory.mktemp("registry")) as running:
        yield running


@pytest.fixture(scope="session")
def busybox(registry: Registry) -> str:
    """A reference (HOST:PORT/base/busybox:1) of an index with small images, for bases.BUSYBOX."""
    return _pushed(registry, bases.busybox(), "base/busybox")


@pytest.fixture(scope="session")
def debian(registry: Registry) -> str:
    """A reference of an index of small Debians with gcc and apt, for bases.DEBIAN."""
    return _pushed(registry, bases.debian(), "base/debian")


def _pushed(registry: Registry, layout: Layout, name: str) -> str:
    for tag in layout.tags():
        registry.push(layout, name, tag)
    return f"{registry.address}/{name}:{bases.TAG}"


@pytest.fixture(scope="module")
def faulty(registry: Registry) -> Iterator[Faulty]:
    """What stands before the registry; without a fault until a test gives it some."""
    with Faulty(registry.address) as made:
        yield made


@pytest.fixture(scope="session")
def emulating() -> Iterator[Daemon]:
    """A private daemon that serves the platforms of the base images."""
    if os.geteuid() != 0:
        pytest.skip("only root can build images here")
    with Daemon(places.SETTINGS) as daemon:
        yield daemon.start()


@pytest.fixture(scope="module")
def place(emulating: Daemon, registry: Registry, faulty: Faulty) -> Iterator[Place]:
    """A place whose programs trust the registry and what stands before it."""
    with places.making(emulating, registry.address, faulty.address) as made:
        yield made


@pytest.fixture
def maker(registry: Registry, tmp_path: Path) -> Maker:
    """What makes images for one test and pushes them to a repository of its own."""
    return Maker(registry, tmp_path)
