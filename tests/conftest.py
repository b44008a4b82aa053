"""For all tests."""

import signal

import pytest

# A shell that starts a test run in the background has it ignore SIGINT, and what is ignored is
# inherited: the programs that tests interrupt would not notice.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

LONG = (
    "kernel/test_accel_package.py",
    "kernel/test_accel_gcc.py",
    "systemd/",
    "kernel/test_accel_fill.py",
    "images/test_engines_read.py",
    "kernel/test_accel_perl.py",
    "kernel/test_accel_llvm.py",
    "engines/test_accelerated.py",
)
"""What takes a minute or more, the longest first. Begun last, it would be waited for alone."""

ROOT = __file__.removesuffix("conftest.py")


@pytest.hookimpl(tryfirst=True)  # before xdist reads the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Say what belongs together when tests run side by side (`-n 2 --dist loadgroup`, as
    scripts/test has it), and put what takes long first.

    A file's tests stay together: they share a daemon or a room. So do all under systemd, as it
    takes most of a minute to install what they boot.
    """

    def group(item: pytest.Item) -> str:
        name = str(item.path).removeprefix(ROOT)
        return "systemd/" if name.startswith("systemd/") else name

    place = {name: number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(group(item), len(place)))
    for item in items:
        item.add_marker(pytest.mark.xdist_group(group(item)))


@pytest.fixture(scope="session", autouse=True)
def reachable(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Other users reach what tests make for them in their directories.

    The ones above those are shared by all who run side by side: nobody changes them later.
    """
    base = tmp_path_factory.getbasetemp()
    for path in (base, *base.parents):
        if path.stat().st_mode & 0o777 == 0o700:  # as pytest makes them
            path.chmod(0o755)
