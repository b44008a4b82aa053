"""Run commands where a binfmt_misc instance of their own serves foreign programs.

`run` forks a child into a new user and mount namespace, mounts a new instance on a temporary
directory, registers the given lines there, and executes commands in it. It writes only below that
mount: should the mount fail, nothing is registered anywhere. It shares no code with maid, so that
it can judge maid.
"""

import contextlib
import ctypes
import os
import pickle
import platform
import subprocess
import tempfile
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

CLONE_NEWNS, CLONE_NEWUSER = 0x20000, 0x10000000
MS_REC, MS_PRIVATE = 1 << 14, 1 << 18


@dataclass(frozen=True)
class Job:
    """One command: `argv` is executed as it is, argv[0] included, from `program` inside `root`."""

    root: Path
    program: str
    argv: Sequence[str]
    uid: int | None = None
    time_limit: float = 20.0
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """Exit status (negative: signal) and output; or the error with which it could not be
    executed."""

    status: int | None
    stdout: bytes = b""
    stderr: bytes = b""
    error: str = ""


def line(name: str, magic: bytes, mask: bytes, interpreter: str, flags: str) -> bytes:
    """The register line, every byte of magic and mask escaped."""

    def escaped(data: bytes) -> bytes:
        return b"".join(b"\\x%02x" % byte for byte in data)

    parts = (name.encode(), b"M", b"0", escaped(magic), escaped(mask), interpreter.encode())
    return b":" + b":".join(parts) + b":" + flags.encode()


def require() -> None:
    """Skip the test where the kernel has no binfmt_misc instances for user namespaces."""
    release = tuple(int(part) for part in platform.release().split(".")[:2])
    if release < (6, 7):
        pytest.skip(f"Linux {platform.release()}: instances of user namespaces came with 6.7")


def run(lines: Sequence[bytes], jobs: Sequence[Job]) -> list[Outcome]:
    """Register `lines` in an instance of its own and execute `jobs` there, one after another."""
    libc = ctypes.CDLL(None, use_errno=True)
    with contextlib.ExitStack() as stack:
        table = stack.enter_context(tempfile.TemporaryDirectory(prefix="maid-test-"))
        unshared, mapped, result = (os.pipe() for _ in range(3))
        child = os.fork()
        if child == 0:
            try:
                os.close(result[0])
                outcomes = _inside(libc, Path(table), lines, jobs, unshared[1], mapped[0])
                answer: object = outcomes
            except BaseException:
                answer = traceback.format_exc()
            with os.fdopen(result[1], "wb") as file:
                pickle.dump(answer, file)
            os._exit(0)
        os.close(result[1])
        os.read(unshared[0], 1)
        _map(child)
        os.write(mapped[1], b"x")
        with os.fdopen(result[0], "rb") as file:
            answer = pickle.load(file)
        os.waitpid(child, 0)
        for descriptor in (*unshared, *mapped):
            os.close(descriptor)
    if isinstance(answer, str):
        raise AssertionError(answer)
    assert isinstance(answer, list)
    return answer


def _map(child: int) -> None:
    """Map all ids to themselves as root, else only the caller's to root."""
    if os.geteuid() == 0:
        maps = {"uid_map": "0 0 4294967295", "gid_map": "0 0 4294967295"}
    else:
        maps = {
            "setgroups": "deny",
            "uid_map": f"0 {os.geteuid()} 1",
            "gid_map": f"0 {os.getegid()} 1",
        }
    for name, text in maps.items():
        Path(f"/proc/{child}/{name}").write_text(text)


def _inside(
    libc: ctypes.CDLL,
    table: Path,
    lines: Sequence[bytes],
    jobs: Sequence[Job],
    unshared: int,
    mapped: int,
) -> list[Outcome]:
    def check(result: int, what: str) -> None:
        if result < 0:
            raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")

    try:
        check(libc.unshare(CLONE_NEWUSER | CLONE_NEWNS), "unshare")
    finally:
        os.write(unshared, b"x")
    os.read(mapped, 1)
    check(libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None), "make / private")
    check(libc.mount(b"maid", os.fsencode(table), b"binfmt_misc", 0, None), "mount binfmt_misc")
    for text in lines:
        with (table / "register").open("wb", buffering=0) as register:
            register.write(text)
    return [_execute(job) for job in jobs]


def _execute(job: Job) -> Outcome:
    def enter() -> None:
        os.chroot(job.root)
        os.chdir("/")
        if job.uid is not None:
            os.setgroups([])
            os.setgid(job.uid)
            os.setuid(job.uid)

    try:
        done = subprocess.run(
            list(job.argv),
            executable=job.program,
            preexec_fn=enter,
            env=job.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=job.time_limit,
        )
    except subprocess.TimeoutExpired as error:
        return Outcome(None, error.stdout or b"", error.stderr or b"", "time limit")
    except OSError as error:
        return Outcome(None, error=os.strerror(error.errno or 0))
    return Outcome(done.returncode, done.stdout, done.stderr)
