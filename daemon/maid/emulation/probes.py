"""Execute a tiny foreign program, for real, and say in words why it did not run.

A probe runs in an empty directory as its root, in the user namespace of the instance that it is
to prove, under a hard time limit, and must answer with its exit status and with what it writes
(rule 3 of design.md: ready means executed). Knows how to run and how to explain, not when.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from maid import native
from maid.binfmt.entry import Entry
from maid.emulation.targets import PROBE_STATUS, Target

OUTPUT_LIMIT = 65536
"""Bytes of a program's output that are looked at: what a pipe holds, so nothing need be drained."""


class Cause(StrEnum):
    """Why a program did not give the answer that proves a platform."""

    NONE = "none"
    NO_ENTRY = "no entry"
    NOT_FIXED = "no F flag"
    DYNAMIC = "dynamic interpreter"
    REFUSED = "refused"
    SIGNAL = "signal"
    TIMEOUT = "timeout"
    WRONG_ANSWER = "wrong answer"
    NOT_RUN = "not run"


PASSING = frozenset({Cause.TIMEOUT, Cause.NOT_RUN})
"""Causes that may be over by themselves: a machine that is very busy, too many open files."""

EXHAUSTED = frozenset({errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE})
"""What execve(2) says where the machine has no processes, memory or open files left."""


@dataclass(frozen=True)
class Run:
    """One program's end: `errno` is that of the execve that failed, or 0; `signal` or `status` say
    how it ended; `output` is what it wrote to its standard output, `errors` to its standard error;
    `ms` how long it took, in milliseconds."""

    ms: float
    errno: int = 0
    failed_call: str = ""
    status: int = 0
    signal: int = 0
    timeout: bool = False
    output: bytes = b""
    errors: bytes = b""


@dataclass(frozen=True)
class ProbeResult:
    """What a probe found: `level` is "exec" or "deep"; `error` says in words why `ok` is false."""

    level: str
    ok: bool
    ms: float
    error: str = ""
    cause: Cause = Cause.NONE


@dataclass(frozen=True)
class Caught:
    """What the prober is told of the entry that should serve a target, to explain a failure.

    `static` is whether the entry's interpreter runs without a loader, None where nobody knows.
    """

    entry: Entry | None = None
    static: bool | None = None


async def run(
    root: str,
    command: Sequence[str],
    *,
    user_namespace: int = -1,
    uid: int = 0,
    argv0: str = "",
    timeout: float = 10.0,
) -> Run:
    """Execute `command` (a path within `root`, and arguments) chrooted into `root`.

    `user_namespace` is a descriptor, or -1 for the own one. `timeout` is in seconds; then the whole
    process group is killed. Raises MaidError when maid's own helper is missing, OSError when no
    process can be started.
    """
    program = native.path("maid-enter")
    begun = time.perf_counter()
    with contextlib.ExitStack() as stack:

        def pipe() -> tuple[int, int]:
            ends = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            stack.callback(_close, ends[0])
            return ends

        output, output_write = pipe()
        errors, errors_write = pipe()
        report, report_write = pipe()
        # Only our ends need not block; the program's are its own file descriptions.
        for end in (output_write, errors_write, report_write):
            os.set_blocking(end, True)
        directory = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, directory)
        null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        stack.callback(os.close, null)
        kept = [directory, report_write] + ([user_namespace] if user_namespace >= 0 else [])
        try:
            pid = os.posix_spawn(
                program,
                [
                    *(program, "exec", str(user_namespace), str(directory), str(uid)),
                    *(str(report_write), argv0 or command[0], *command),
                ],
                {},
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, null, 0),
                    (os.POSIX_SPAWN_DUP2, output_write, 1),
                    (os.POSIX_SPAWN_DUP2, errors_write, 2),
                    *((os.POSIX_SPAWN_DUP2, fd, fd) for fd in kept),
                ],
            )
        finally:
            for end in (output_write, errors_write, report_write):
                os.close(end)
        ended, wait_status = await _wait(pid, timeout)
        number, call = _reported(_read(report))
        return Run(
            ms=round((time.perf_counter() - begun) * 1000, 2),
            errno=number,
            failed_call=call,
            status=os.waitstatus_to_exitcode(wait_status) if os.WIFEXITED(wait_status) else 0,
            signal=os.WTERMSIG(wait_status) if os.WIFSIGNALED(wait_status) else 0,
            timeout=not ended,
            output=_read(output),
            errors=_read(errors),
        )


async def _wait(pid: int, timeout: float) -> tuple[bool, int]:
    """Wait for `pid`; (False, status) when it had to be killed, with its whole process group."""
    loop = asyncio.get_running_loop()
    handle = os.pidfd_open(pid)
    over: asyncio.Future[None] = loop.create_future()
    loop.add_reader(handle, _set, over)
    try:
        await asyncio.wait_for(over, timeout)
        ended = True
    except TimeoutError:
        ended = False
    finally:
        loop.remove_reader(handle)
        os.close(handle)
        # The helper makes its own session, so this reaches whatever the program left behind.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
    return ended, status


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, OUTPUT_LIMIT)
    except BlockingIOError:
        return b""  # Something that survived still holds the other end, and wrote nothing.


def _close(descriptor: int) -> None:
    with contextlib.suppress(OSError):
        os.close(descriptor)


def _reported(report: bytes) -> tuple[int, str]:
    number, _, call = report.decode(errors="replace").partition(" ")
    return (int(number), call) if number.isdigit() else (0, "")


def _is_program(path: str, content: bytes) -> bool:
    """Whether the file is an executable of exactly this content."""
    try:
        with open(path, "rb") as file:
            return os.fstat(file.fileno()).st_mode & 0o777 == 0o755 and file.read() == content
    except OSError:
        return False


def judge(target: Target, ran: Run, caught: Caught) -> ProbeResult:
    """What a run of the target's probe proves, and if it failed, why."""
    if (
        not (ran.errno or ran.signal or ran.timeout)
        and ran.status == PROBE_STATUS
        and ran.output == target.probe_output
    ):
        return ProbeResult("exec", True, ran.ms)
    cause, error = _explain(target, ran, caught)
    return ProbeResult("exec", False, ran.ms, error, cause)


def _explain(target: Target, ran: Run, caught: Caught) -> tuple[Cause, str]:
    entry = caught.entry
    if ran.timeout:
        return (
            Cause.TIMEOUT,
            f"the probe gave no answer within {ran.ms / 1000:.1f} s and was killed",
        )
    if ran.errno and (ran.failed_call != "execve" or ran.errno in EXHAUSTED):
        return (
            Cause.NOT_RUN,
            f"the probe could not be started: {ran.failed_call}: {os.strerror(ran.errno)}",
        )
    if ran.errno == errno.ENOEXEC:
        return Cause.NO_ENTRY, (
            f"exec format error: the entry {entry.name} does not catch it"
            if entry
            else f"exec format error: no enabled entry catches {target.name} programs"
        )
    if ran.errno == errno.ENOENT and entry is not None:
        if "F" not in entry.flags:
            return Cause.NOT_FIXED, (
                f"no such file or directory: entry {entry.name} lacks the flag F, so its"
                f" interpreter {entry.interpreter} is looked for inside the container"
            )
        if caught.static is False:
            return Cause.DYNAMIC, (
                f"no such file or directory: the interpreter {entry.interpreter} of entry"
                f" {entry.name} is dynamic, and its loader is not inside the container"
            )
        return Cause.DYNAMIC, (
            f"no such file or directory: entry {entry.name} has F, so its interpreter"
            f" {entry.interpreter} is probably a dynamic program whose loader is not inside the"
            " container"
        )
    if ran.errno == errno.ELOOP:
        return Cause.REFUSED, (
            "too many levels of symbolic links: an entry catches its own interpreter"
            f" ({entry.interpreter if entry else 'unknown'})"
        )
    if ran.errno:
        through = f" through {entry.name} ({entry.interpreter})" if entry else ""
        return Cause.REFUSED, f"the kernel refused to execute it{through}: {os.strerror(ran.errno)}"
    with_ = f" ({entry.interpreter})" if entry else ""
    said = ran.errors.decode(errors="replace").strip().splitlines()
    words = f": {said[-1][:200]}" if said else ""
    if ran.signal and (shortage := _shortage(ran)):
        return Cause.NOT_RUN, f"the machine has too little for the probe{with_}: {shortage}"
    if ran.signal:
        name = signal.Signals(ran.signal).name if ran.signal < signal.SIGRTMIN else str(ran.signal)
        return Cause.SIGNAL, f"killed by {name} under its interpreter{with_}{words}"
    return Cause.WRONG_ANSWER, (
        f"wrong answer: status {ran.status} and {ran.output[:40]!r} instead of {PROBE_STATUS} and"
        f" {target.probe_output!r}{with_}{words}"
    )


def _shortage(ran: Run) -> str:
    """What a killed interpreter lacked, which says nothing of it; "" when it was something else.

    QEMU aborts when it gets no thread ("qemu_thread_create: Resource temporarily unavailable") or
    no memory; nobody but the kernel's memory killer, or a person, sends SIGKILL.
    """
    if ran.signal == signal.SIGKILL:
        return "it was killed, as the kernel does where there is no memory left"
    said = ran.errors.decode(errors="replace")
    words = (os.strerror(number) for number in sorted(EXHAUSTED))
    return next((word for word in words if word in said), "")


class Prober:
    """Runs the probes of targets in one instance.

    `directory` gets one empty root for each target, with nothing but its probe in it; `timeout` is
    in seconds. As many run at once as keep the CPUs busy: more would only make each look slow.
    """

    def __init__(self, directory: str, timeout: float = 10.0) -> None:
        self._directory = directory
        self._timeout = timeout
        self._places = asyncio.Semaphore(2 * (os.cpu_count() or 1))

    def write(self, targets: Iterable[Target]) -> None:
        """Lay out the probes. Raises OSError when the directory cannot be written."""
        for target in targets:
            if target.probe is None:
                continue
            root = self.root(target)
            if _is_program(f"{root}/probe", target.probe):
                continue  # of an earlier daemon: no room is needed, should there be none left
            os.makedirs(root, mode=0o755, exist_ok=True)
            new = f"{root}.new"
            with open(new, "wb") as file:
                file.write(target.probe)
                os.fchmod(file.fileno(), 0o755)
            os.rename(new, f"{root}/probe")

    def root(self, target: Target) -> str:
        """The directory that is the root of the target's probe."""
        return f"{self._directory}/{target.name}"

    async def probe(
        self, target: Target, user_namespace: int = -1, caught: Caught | None = None
    ) -> ProbeResult:
        """Execute the target's probe in `user_namespace` (a descriptor, -1 for the own one)."""
        if target.probe is None:
            return ProbeResult(
                "exec", False, 0.0, f"there is no probe for {target.name}", Cause.NOT_RUN
            )
        try:
            async with self._places:
                ran = await run(
                    self.root(target),
                    ["/probe"],
                    user_namespace=user_namespace,
                    timeout=self._timeout,
                )
        except OSError as error:
            return ProbeResult(
                "exec", False, 0.0, f"the probe could not be started: {error}", Cause.NOT_RUN
            )
        return judge(target, ran, caught or Caught())
