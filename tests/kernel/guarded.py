"""What the tests of the guard have in common."""

import time
from collections.abc import Callable
from pathlib import Path

from keeping import Kept, choices, configuration

from maid.emulation.emulators import Choice
from maid.emulation.targets import TARGETS

AARCH64 = TARGETS["aarch64"]
NAME, STANDIN = "qemu-aarch64", "qemu-aarch64.next"


def found(tmp_path: Path, *names: str) -> dict[str, Choice]:
    return choices(configuration(tmp_path), names or ("aarch64", "s390x", "riscv64"))


def write(kept: Kept, file: str, text: str) -> None:
    """As another program does it: through the file system, without maid."""
    Path(kept.pinned.binfmt, file).write_text(text)


def shows(kept: Kept, file: str, word: str) -> bool:
    """Whether a file of the table begins with `word`; False when it is not there."""
    try:
        return Path(kept.pinned.binfmt, file).read_text().startswith(word)
    except FileNotFoundError:
        return False


def soon(true: Callable[[], bool], what: str, seconds: float = 10.0) -> None:
    """Wait without letting the keeper run."""
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, what
        time.sleep(0.002)


def idle(kept: Kept) -> None:
    """Have the keeper do nothing any more when the table changes; its guard goes on."""
    kept.keeper.reconcile = lambda why: None  # type: ignore[method-assign]
    kept.keeper._later.close()


def is_alive(pid: int) -> bool:
    """Whether the process runs, as anything but a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def guard_of(kept: Kept) -> int:
    """The process of the keeper's guard."""
    pid = kept.keeper._guarding.pid
    assert pid > 0 and Path(f"/proc/{pid}/comm").read_text() == "maid-guard\n"
    return pid
