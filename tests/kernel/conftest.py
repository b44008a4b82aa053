"""Fixtures that several files use: a running daemon, root file systems that may be written to."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from daemons import Daemon, rootfs
from stepping import copy


@pytest.fixture
def tmp_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As pytest's own, but with a short name, not the test's: the kernel takes 127 bytes for an
    interpreter's path, and copies of QEMU lie below a state directory in here."""
    return tmp_path_factory.mktemp("own")


@pytest.fixture(scope="session")
def daemon() -> Iterator[Daemon]:
    """A daemon of root's that answers, for all tests that leave it running and as it is.

    Every user may have 16 steps at once and only 2 waiting; members are in the group `users`.
    """
    config = '[steps]\nmax_queued_per_uid = 2\n[socket]\ngroup = "users"\n'
    with Daemon(config) as made:
        yield made.start()


@pytest.fixture(scope="session")
def trees(daemon: Daemon) -> Path:
    """A directory for root file systems that every user can reach; it goes with the daemon."""
    directory = daemon.directory / "trees"
    directory.mkdir()
    return directory


@pytest.fixture(scope="session")
def native(trees: Path) -> Path:
    """A busybox of the machine's own architecture."""
    from maid.platforms import host

    return copy(rootfs(f"busybox-{host().architecture}"), trees / "native")


@pytest.fixture(scope="session")
def foreign(trees: Path) -> Path:
    """A busybox that needs an emulator: s390x is nobody's own here, and of the other byte order."""
    return copy(rootfs("busybox-s390x"), trees / "foreign")
