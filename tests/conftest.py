"""For all tests."""

import signal
from typing import Any

import pytest

# A shell that starts a test run in the background has it ignore SIGINT, and what is ignored is
# inherited: the programs that tests interrupt would not notice.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

LONG = (
    "systemd/",
    "kernel/test_accel_package.py",
    "kernel/test_accel_gcc.py",
    "kernel/test_accel_fill.py",
    "images/test_engines_read.py",
    "kernel/test_accel_perl.py",
    "kernel/test_accel_llvm.py",
    "engines/test_accelerated.py",
    "kernel/test_soak.py",
    "kernel/test_faults_killed.py",
)
"""What takes a minute or more, the longest first. Begun last, it would be waited for alone."""


def group(nodeid: str) -> str:
    """What a test runs together with, on one of the processors.

    A file's tests: they share a daemon or a room. And all under systemd, as it takes most of a
    minute to install what they boot.
    """
    file = nodeid.partition("::")[0].removeprefix("tests/")
    return "systemd/" if file.startswith("systemd/") else file


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put what takes long first."""
    place = {name: number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(group(item.nodeid), len(place)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Where tests run side by side (-n), they do by group, in the order that they have here.

    Not by xdist's own groups: xdist 3.8 writes them where pytest 9.2 does not look.
    """
    from xdist.scheduler import LoadScopeScheduling

    class Groups(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group(nodeid)

    config.option.loadscopereorder = False
    return Groups(config, log)


@pytest.fixture(scope="session", autouse=True)
def reachable(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Other users reach what tests make for them in their directories.

    The ones above those are shared by all who run side by side: nobody changes them later.
    """
    base = tmp_path_factory.getbasetemp()
    for path in (base, *base.parents):
        if path.stat().st_mode & 0o777 == 0o700:  # as pytest makes them
            path.chmod(0o755)
