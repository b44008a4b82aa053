"""What is known of a step on disk, so that a daemon that comes after can take it up.

RUNTIME/steps/ID is the bundle, the places of its mounts (which only its supervisor's mount
namespace sees) and three small files: step.json from the daemon, `supervisor` and `result` from
maid-step (native/step.c says what stands in them).
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import time

import msgspec

from maid.steps import programs
from maid.steps.cgroups import Limits
from maid.steps.step import Outcome, Result

_NOT_FOUND = re.compile(r"not found|no such file", re.IGNORECASE)
_NOT_EXECUTABLE = re.compile(
    r"permission denied|not permitted|exec format error|is a directory", re.IGNORECASE
)

FILES = (
    *("step.json", "config.json", "result", "result.new", "supervisor", "pid", "log"),
    programs.FILE,
)
PLACES = ("rootfs", "lower", "changes", "sys", "init", "profile", "store", "programs")


_WITHHELD, _ASIDE = "withheld", ".withheld"

_REMEMBERED = 10_000
"""Ids of steps that earlier daemons began: some for each restart."""


class Meta(msgspec.Struct, frozen=True):
    """What the daemon writes down of a step before it starts: step.json in its directory.

    `started` is in seconds since 1970, for people; `begun` in seconds since the machine started,
    which no clock that is set can change (0: the version that wrote it knew only the other).
    """

    id: str
    uid: int
    platform: str
    command: tuple[str, ...]
    started: float
    via: str
    interpreter: str | None
    table: str
    cgroups: tuple[str, ...] = ()
    peak_file: str = ""
    begun: float = 0.0

    @property
    def limits(self) -> Limits:
        """The step's cgroups."""
        return Limits(self.cgroups, self.peak_file)


def write(path: str, data: bytes) -> None:
    """Write a new file that only root reads."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        while data:
            data = data[os.write(descriptor, data) :]
    finally:
        os.close(descriptor)


def read(directory: str) -> Meta:
    """What is written down of the step in `directory`. Raises OSError, MsgspecError."""
    with open(f"{directory}/step.json", "rb") as file:
        meta = msgspec.json.decode(file.read(), type=Meta)
    if meta.begun:
        return meta
    # What was an upgrade ago, if the clock has not been set since: if it has, the step's container
    # is not known for certain (kill_container).
    began = time.clock_gettime(time.CLOCK_BOOTTIME) - (time.time() - meta.started)
    return msgspec.structs.replace(meta, begun=began)


def read_text(path: str) -> str:
    """The text of a small file; "" when it is not there."""
    with contextlib.suppress(OSError), open(path, errors="replace") as file:
        return file.read(65536)
    return ""


def remove(directory: str) -> bool:
    """Remove a step's directory: every known name by itself, and nothing through a mount. False
    when something is left of it.

    A recursive removal would empty the caller's root file system, should its mount ever be visible
    here; rmdir(2) of a mount point fails instead.
    """
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return True
    for name in names:
        path = f"{directory}/{name}"
        if name in FILES:
            with contextlib.suppress(OSError):
                os.unlink(path)
        elif name == "state":  # the runtime's own; it holds no mount points
            shutil.rmtree(path, ignore_errors=True)
        elif name == "bind":
            with contextlib.suppress(OSError):
                for number in os.listdir(path):
                    _remove_place(f"{path}/{number}")
            _remove_place(path)
        elif name in PLACES:
            _remove_place(path)
    try:
        os.rmdir(directory)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _remove_place(path: str) -> None:
    try:
        os.rmdir(path)
    except NotADirectoryError:
        with contextlib.suppress(OSError):
            os.unlink(path)
    except OSError:
        pass


def result(directory: str, meta: Meta, why_lost: str) -> Result:
    """How the step ended, from what its supervisor wrote; lost when it wrote nothing (whole)."""
    fields = read_text(f"{directory}/result").split(maxsplit=6)
    try:
        outcome = Outcome(fields[0])
        number, wall, user, system, kilobytes = (int(word) for word in fields[1:6])
    except (IndexError, ValueError):
        return lost(meta, why_lost)
    status, signal_number = number, None
    error: str | None = None
    if outcome is Outcome.refused:
        status, error = refusal(read_text(f"{directory}/log"), meta.command[0], number)
    elif outcome is Outcome.failed:
        error = f"the step could not be prepared: {fields[6].strip() if len(fields) > 6 else '?'}"
    elif outcome is not Outcome.exited:
        signal_number, status = number, 128 + number
        error = {
            Outcome.timeout: f"ended by its time limit after {wall / 1e6:.1f} s",
            Outcome.cancelled: "cancelled",
        }.get(outcome)
    # Also when a shell inside has turned its child's death into a status.
    killable = outcome in (Outcome.signaled, Outcome.exited) and status != 0
    if killable and meta.limits.was_killed_for_memory():
        error = "killed because it needed more than its memory limit"
    return Result(
        outcome=outcome,
        status=status,
        signal=signal_number,
        error=error,
        wall=wall / 1e6,
        user=user / 1e6,
        system=system / 1e6,
        peak_memory=meta.limits.peak() or kilobytes * 1024,
        via=meta.via,
        interpreter=meta.interpreter,
    )


_USAGE = 2
"""With what maid-step ends where it does not know an option."""

KILLED = "the step's supervisor was killed, and the step was ended with it"


def why_lost(status: int, directory: str) -> str:
    """Why a supervisor that has ended with this status (as waitpid(2) has it) left no result."""
    if os.WIFEXITED(status) and os.WEXITSTATUS(status) == _USAGE:
        return "maid's helper programs are of another version: run scripts/install"
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        return f"the step could not be started, or its result not be written: is {directory} full?"
    return KILLED


def lost(meta: Meta, why: str) -> Result:
    """The result of a step whose supervisor left none."""
    return Result(
        outcome=Outcome.lost,
        status=125,
        signal=None,
        error=why,
        wall=max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - meta.begun),
        user=0.0,
        system=0.0,
        peak_memory=0,
        via=meta.via,
        interpreter=meta.interpreter,
    )


def refusal(said: str, command: str, runtime_status: int) -> tuple[int, str]:
    """Status and words for a command that the runtime could not start, as docker has them.

    `said` is the runtime's log. 127: the command is not there; 126: it is, but cannot be executed;
    125: anything else.
    """
    words = " ".join(said.split())[-400:] or f"the runtime failed with status {runtime_status}"
    if _NOT_FOUND.search(words) and "exec" in words:
        return 127, f"{command}: not found in the root file system ({words})"
    if _NOT_EXECUTABLE.search(words) and "exec" in words:
        return 126, f"{command}: cannot be executed ({words})"
    return 125, f"the step could not be started: {words}"


def withhold(directory: str) -> bool:
    """See to it that a step of an earlier daemon which has not begun never does; False where it has
    begun, or may have. Then nothing is changed.

    A supervisor begins by making the file `supervisor` (native/step.c), where nothing of that name
    may be. It may be just being started by a daemon that was killed: so this takes the name first,
    with a link, which is made whole or not at all. Afterwards the directory has another name, at
    which no supervisor looks for it. Raises OSError.
    """
    try:
        os.symlink(_WITHHELD, f"{directory}/supervisor")
    except FileExistsError:
        if not os.path.islink(f"{directory}/supervisor"):
            return False
    # Else it was made by a daemon that was killed here.
    aside = directory if directory.endswith(_ASIDE) else directory + _ASIDE
    os.rename(directory, aside)
    with contextlib.suppress(OSError, msgspec.MsgspecError), open(f"{aside}/step.json", "rb") as f:
        msgspec.json.decode(f.read(), type=Meta).limits.remove()
    remove(aside)
    return True


def remember(file: str, identifier: str) -> None:
    """Add the id of a step to those in `file`. A file system that is full is not an error."""
    with contextlib.suppress(OSError), open(file, "a") as lines:
        lines.write(f"{identifier}\n")


def remembered(file: str) -> set[str]:
    """The ids in `file`; of very many the last ones, and the file is cut down to those."""
    lines: list[str] = []
    with contextlib.suppress(OSError), open(file) as found:
        lines = found.read().split()
    if len(lines) > 2 * _REMEMBERED:
        lines = lines[-_REMEMBERED:]
        with contextlib.suppress(OSError):
            write(f"{file}.new", "".join(f"{line}\n" for line in lines).encode())
            os.rename(f"{file}.new", file)
    return set(lines)


def is_supervisor(pid: int, directory: str) -> bool:
    """Whether process `pid` is the supervisor of that step, and not a later one with its number."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read().split(b"\0")
    except OSError:
        return False
    return words[1:3] == [b"directory", os.fsencode(directory)]


def find_supervisor(directory: str) -> int:
    """The supervisor of a step that has not written its number down yet; 0 when there is none."""
    numbers = (int(name) for name in os.listdir("/proc") if name.isdigit())
    return next((pid for pid in numbers if is_supervisor(pid, directory)), 0)


def in_use(directory: str) -> bool:
    """Whether a process, the runtime, names the step's directory in its command line."""
    needle = os.fsencode(directory)
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{name}/cmdline", "rb") as file:
                if needle in file.read():
                    return True
    return False


def kill_container(directory: str, begun: float) -> None:
    """Kill the first process of a container whose supervisor is gone, and its namespace with it.

    `begun` is when the step was (Meta.begun).
    """
    try:
        pid = int(read_text(f"{directory}/pid") or "0")
        handle = os.pidfd_open(pid) if pid > 0 else -1
    except (OSError, ValueError):
        return
    if handle < 0:
        return
    try:
        with open(f"/proc/{pid}/status") as file:
            innermost = next((line.split()[-1] for line in file if line.startswith("NSpid:")), "")
        # The number may be another process's by now. Ours came after the step had begun, and before
        # the file was written.
        if innermost == "1" and begun - 1 <= _started(pid) <= begun + _preparing(directory) + 1:
            signal.pidfd_send_signal(handle, signal.SIGKILL)
    except (OSError, ValueError, IndexError):
        return
    finally:
        os.close(handle)


def _started(pid: int) -> float:
    """When a process was started, in seconds since the machine was (proc_pid_stat(5), field 22)."""
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return int(fields[19]) / os.sysconf("SC_CLK_TCK")


def _preparing(directory: str) -> float:
    """Seconds from the step's beginning until its runtime wrote the container's number down: by the
    files' times, which are the clock's, but not longer apart when that is set later."""
    first = os.stat(f"{directory}/step.json").st_mtime
    return max(0.0, os.stat(f"{directory}/pid").st_mtime - first)
