"""What a program is: an interpreter, of which kind, for what, how old, and which bytes.

A program is never believed by its name. Its ELF headers say whether it is a static program of this
machine, its own `--version` what it emulates and how old it is, its SHA-256 which bytes they are. A
script in front of an emulator, QEMU's machine emulator (qemu-system-*) and a program of another
architecture are not interpreters, and come back with the reason.

Knows nothing of where interpreters are, how good they are, or binfmt_misc.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import select
import signal
import stat
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from maid import elf
from maid.emulation.ratings import Level, Rating, Version
from maid.emulation.targets import TARGETS, for_header, own
from maid.errors import MaidError

VERSION_TIMEOUT = 5.0
"""How long `--version` may take, in seconds. QEMU answers in some 10 ms; a busy machine may not."""

_OUTPUT_LIMIT = 16384

# Apple's Rosetta for Linux, as Lima and as other virtual machines mount it.
ROSETTA = (Path("/mnt/lima-rosetta/rosetta"), Path("/media/rosetta/rosetta"))


class Kind(StrEnum):
    """Who made an interpreter."""

    QEMU = "qemu"
    BOX64 = "box64"
    BOX32 = "box32"
    FEX = "fex"
    ROSETTA = "rosetta"
    OTHER = "other"


_VERSION = r"(?P<version>\d{1,6}(\.\d{1,6})*)(?!\d)"

# What the programs say of themselves, to be found in the output of --version, with their targets;
# for QEMU the target is in the output. Box64 (src/build_info.c) runs i386 programs too where it was
# built with Box32, which the text does not tell: only a probe can.
_SAYS: tuple[tuple[Kind, re.Pattern[str], tuple[str, ...]], ...] = (
    (Kind.QEMU, re.compile(rf"^qemu-(?P<target>\w+) version {_VERSION}", re.M), ()),
    (Kind.BOX64, re.compile(rf"^Box64\b.* v{_VERSION}", re.M), ("x86_64",)),
    (Kind.BOX32, re.compile(rf"^Box(32|86)\b.* v{_VERSION}", re.M), ("i386", "i486")),
    (Kind.FEX, re.compile(rf"^FEX-Emu \(FEX-{_VERSION}", re.M), ("x86_64", "i386", "i486")),
)
_SYSTEM = re.compile(r"^QEMU emulator version ", re.M)

_NOTHING_KNOWN = Rating()


@dataclass(frozen=True)
class Interpreter:
    """One program, as it was when it was identified.

    `path` is where it was found; `device`, `inode`, `size` (bytes) and `mtime_ns` are stat's,
    `sha256` is in lower-case hexadecimal. `targets` are the names of what it emulates; `version` is
    () where it has none, `version_text` its own first line. `static`: it needs no loader. `fixed`:
    it is no position-independent program. `machine` is the name of the target that it is itself a
    program of. `rating` says whether it is an interpreter at all: how good it is for a target is
    `rate`'s to say. Of one that is unusable only what was needed to see that is filled in.
    """

    path: Path
    name: Kind = Kind.OTHER
    targets: tuple[str, ...] = ()
    version: Version = ()
    version_text: str = ""
    static: bool = False
    fixed: bool = False
    machine: str = ""
    sha256: str = ""
    device: int = 0
    inode: int = 0
    size: int = 0
    mtime_ns: int = 0
    rating: Rating = _NOTHING_KNOWN

    @property
    def usable_with_f(self) -> bool:
        """Whether it can be registered with flag F, and so serve containers and chroots."""
        return self.static and self.rating.level > Level.UNUSABLE


DIES = " and dies of signal"


def identify(path: Path, trusted: bool = False) -> Interpreter:
    """Read and run the program at `path` to see what it is.

    Never raises for what the program is or does: what is no interpreter for this machine comes back
    with a rating of UNUSABLE that says why. The program runs with an empty environment, no
    descriptor but the standard ones, and for at most VERSION_TIMEOUT seconds.
    A program of this machine that does not say what it is is unusable too, unless it is `trusted`,
    since the administrator chose it, and does not crash: then it is of Kind.OTHER, without targets.
    Raises MaidError on a machine that no target describes (targets.own).
    """
    try:
        file = open(path, "rb", opener=_open)  # noqa: SIM115 - the next statement closes it
    except OSError as error:
        return _unusable(Interpreter(path), f"cannot be read: {error.strerror}")
    with file:
        descriptor = file.fileno()
        status = os.fstat(descriptor)
        interpreter = Interpreter(
            path,
            device=status.st_dev,
            inode=status.st_ino,
            size=status.st_size,
            mtime_ns=status.st_mtime_ns,
        )
        if not stat.S_ISREG(status.st_mode):
            return _unusable(interpreter, "is not a regular file")
        start = os.pread(descriptor, 64, 0)
        if start.startswith(b"#!"):
            return _unusable(interpreter, "is a script; the kernel needs the emulator itself")
        try:
            headers = elf.read(descriptor)
        except (MaidError, OSError) as error:
            return _unusable(interpreter, f"is not a program: {_sentence(error)}")
        machine = for_header(start)
        interpreter = replace(
            interpreter,
            static=headers.static,
            fixed=headers.type == elf.ET_EXEC,
            machine=machine.name if machine else "",
        )
        if interpreter.machine != own():
            return _unusable(
                interpreter,
                f"is a program for {interpreter.machine or f'machine {headers.machine}'},"
                f" this machine is {own()}",
            )
        interpreter = _ask(interpreter, descriptor, trusted)
        if interpreter.rating.level is Level.UNUSABLE:
            return interpreter
        return replace(interpreter, sha256=hashlib.file_digest(file, "sha256").hexdigest())


def _open(path: str, flags: int) -> int:
    # O_NONBLOCK: opening a FIFO must not wait for a writer.
    return os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK)


def _unusable(interpreter: Interpreter, reason: str) -> Interpreter:
    return replace(interpreter, rating=Rating(Level.UNUSABLE, f"{interpreter.path} {reason}"))


def _sentence(error: MaidError | OSError) -> str:
    return error.message if isinstance(error, MaidError) else str(error.strerror)


def _ask(interpreter: Interpreter, descriptor: int, trusted: bool) -> Interpreter:
    """Have the program say what it is; `descriptor` is the open file that was read."""
    if interpreter.path.name == "rosetta" and own() == "aarch64":
        # It has no --version and runs nothing but x86-64 programs.
        return replace(interpreter, name=Kind.ROSETTA, targets=("x86_64",))
    try:
        output, how = _run(interpreter.path, descriptor)
    except TimeoutError:
        return _unusable(interpreter, f"did not answer --version within {VERSION_TIMEOUT:g} s")
    except OSError as error:
        return _unusable(interpreter, f"cannot be executed: {error.strerror}")
    first = next(iter(output.strip().splitlines()), "")
    interpreter = replace(interpreter, version_text=_printable(first))
    if _SYSTEM.search(output):
        return _unusable(
            interpreter,
            "emulates whole machines; single programs need QEMU's user mode (qemu-user-static)",
        )
    for kind, pattern, targets in _SAYS:
        said = pattern.search(output)
        if said is None:
            continue
        version = tuple(int(number) for number in said["version"].split("."))
        if kind is Kind.QEMU:
            targets = tuple(each for each in TARGETS if TARGETS[each].emulator == said["target"])
        return replace(interpreter, name=kind, targets=targets, version=version)
    if trusted and not how.startswith(DIES):  # a truncated file dies of SIGSEGV
        reason = f"{interpreter.path} is used because the configuration says so"
        return replace(interpreter, rating=Rating(Level.SUSPECT, reason))
    answer = f"says {interpreter.version_text!r}" if first else "says nothing"
    return _unusable(interpreter, f"is no emulator that maid knows: to --version it {answer}{how}")


def _printable(text: str) -> str:
    return "".join(each if each.isprintable() else "?" for each in text[:200])


def _run(path: Path, descriptor: int) -> tuple[str, str]:
    """What the program prints for `--version`, both streams, and how it ended in words, or "".

    It is the file behind `descriptor` that runs, even when another has taken its path since. Raises
    OSError when it cannot be executed, TimeoutError when it does not end.
    """
    deadline = time.monotonic() + VERSION_TIMEOUT
    process = subprocess.Popen(
        [path, "--version"],
        executable=f"/proc/{os.getpid()}/fd/{descriptor}",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd="/",
        env={"LC_ALL": "C"},
        start_new_session=True,
    )
    with process, _ending(process) as ended:
        assert process.stdout is not None
        output = _read(process.stdout.fileno(), deadline)
        talks_on = len(output) == _OUTPUT_LIMIT
        if not talks_on and not _ready(ended, deadline):
            raise TimeoutError
    text, status = output.decode(errors="replace"), process.returncode
    if talks_on:
        return text, " and does not stop"
    if status < 0:
        return text, f"{DIES} {-status}"
    return text, f" and exits {status}" if status else ""


@contextlib.contextmanager
def _ending(process: subprocess.Popen[bytes]) -> Iterator[int]:
    """A descriptor that becomes readable when the process ends; its session is killed at last.

    The whole session, as the program may have started others that hold its pipe. Until the process
    is waited for, which is later, nobody else can get its number.
    """
    descriptor = os.pidfd_open(process.pid)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _read(pipe: int, deadline: float) -> bytes:
    """Up to _OUTPUT_LIMIT bytes of a pipe, to its end. Raises TimeoutError."""
    output = b""
    while len(output) < _OUTPUT_LIMIT:
        if not _ready(pipe, deadline):
            raise TimeoutError
        read = os.read(pipe, _OUTPUT_LIMIT - len(output))
        if not read:
            break
        output += read
    return output


def _ready(descriptor: int, deadline: float) -> bool:
    """Wait until `descriptor` can be read or has ended; False when that is after `deadline`."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(max(deadline - time.monotonic(), 0) * 1000))
