"""What `maid check --deep` executes: programs that prove more of a platform than that it can exit.

A probe shows that the kernel finds an interpreter and that it runs. Builds need more: programs that
start programs, threads, signals, set-user-ID, scripts, a dynamic loader, files beyond 2 GiB on
32-bit machines. The programs for that are C, in the directory deep/, compiled for each target by
zig (the package ziglang, an optional dependency), which has a C library for every target that it
can compile for.

- checks.c, statically linked with musl, does one check for each of its sub-commands.
- dynamic.c is linked against library.c and has loader.c as its PT_INTERP. That proves what the
  kernel and the emulator contribute to dynamic linking: PT_INTERP is loaded and entered with the
  right auxiliary vector, libraries are mapped segment by segment from files, what the loader writes
  (relocations) is what executes. It does not prove that glibc's or musl's own loader works, nor
  thread-local storage in libraries: zig brings no loader.

deep_build.py compiles them. This module lays out and judges; who executes the commands, and in
which namespace, is the caller's business.
"""

from __future__ import annotations

import errno as errors
import os
import signal
import tempfile
from dataclasses import dataclass
from pathlib import Path

from maid.emulation.deep_build import Programs, programs, supported
from maid.emulation.probes import Run
from maid.emulation.targets import Target

__all__ = [
    "CALLER",
    "OWNER",
    "TIME_LIMIT",
    "Command",
    "DeepTest",
    "Prepared",
    "Programs",
    "explain",
    "prepare",
    "programs",
    "supported",
    "tests",
]

TIME_LIMIT = 30.0
"""Seconds for one command. The slowest measured under QEMU 7.2 on two busy cores: below 1."""

CALLER, OWNER = 65534, 65533
"""Who executes the setuid program, and whom it belongs to: nobody, and an id that is hardly
used."""


@dataclass(frozen=True)
class DeepTest:
    """One thing that is proved.

    `flags` are the binfmt_misc flags that the entry must have for it to work, so that without them
    there is nothing to check. `only_32_bit` restricts it to 32-bit targets. `required` is false
    where a failure is a known limit of emulators or file systems, which is worth knowing but does
    not make a platform unusable.
    """

    name: str
    description: str
    flags: str = ""
    only_32_bit: bool = False
    required: bool = True
    failure: str = ""

    def applies(self, target: Target) -> bool:
        """Whether it means something for `target`."""
        return target.bits == 32 or not self.only_32_bit


_TESTS = (
    DeepTest(
        "dynamic",
        "a program with a dynamic loader and a shared library",
        failure="dynamically linked programs do not work, which is nearly every program there is",
    ),
    DeepTest(
        "forkexec",
        "fork, and execute another program of the platform",
        failure="programs cannot start programs: shells, make and package managers do not work",
    ),
    DeepTest(
        "threads",
        "threads with mutexes, conditions, atomics and thread-local variables",
        failure="programs with threads may hang or compute wrong results",
    ),
    DeepTest(
        "signals",
        "handlers, blocked signals, timers, alternate stacks, faults",
        failure="signals do not work as they should: shells, Go and Java programs depend on them",
    ),
    DeepTest(
        "script",
        "a #! script whose interpreter is a program of the platform",
        failure="scripts cannot be executed",
    ),
    DeepTest(
        "argv0",
        "argv[0] is what the caller gave",
        flags="P",
        failure=(
            "argv[0] is lost although the entry has P, so login shells and busybox-like programs"
            " misbehave; before Linux 5.12 QEMU cannot see the flag"
        ),
    ),
    DeepTest(
        "setuid",
        "a set-user-ID program runs as its owner",
        flags="C",
        failure=(
            "set-user-ID programs (su, sudo, ping) run as their caller although the entry has C:"
            " perhaps the file system is mounted nosuid"
        ),
    ),
    DeepTest(
        "unreadable",
        "a program that its caller may execute but not read",
        flags="O",
        failure="programs without read permission cannot be executed although the entry has O",
    ),
    DeepTest(
        "largefile",
        "file offsets and sizes beyond 4 GiB",
        failure="files beyond 2 GiB are damaged or refused",
    ),
    DeepTest(
        "clock",
        "the time of day and pauses",
        failure="clocks are wrong",
    ),
    DeepTest(
        "largemap",
        "memory-mapped files beyond 4 GiB",
        only_32_bit=True,
        required=False,
        failure=(
            "QEMU 7.2 cuts the offset of such a mapping to 32 bits, so that the program sees"
            " another part of the file; few 32-bit programs do this"
        ),
    ),
    DeepTest(
        "directory",
        "directory offsets and inode numbers that fit in 32 bits",
        only_32_bit=True,
        required=False,
        failure=(
            "this file system gives a 64-bit emulator numbers that do not fit in 32 bits, so 32-bit"
            " programs without large-file support fail to list directories ('Value too large for"
            " defined data type'); ext4 does so, tmpfs does not"
        ),
    ),
)


def tests() -> tuple[DeepTest, ...]:
    """Return all tests, in the order in which they are executed."""
    return _TESTS


@dataclass(frozen=True)
class Command:
    """One command to execute in the prepared directory as its root.

    `argv` is what the program gets after its name (argv[0] of the tuple is the path to execute),
    `argv0` the name it is to see itself by. `uid` is the user and group in the instance's
    namespace, `seconds` the time limit.
    """

    test: DeepTest
    argv: tuple[str, ...]
    argv0: str
    uid: int
    expected_output: bytes
    expected_status: int = 0
    seconds: float = TIME_LIMIT

    @property
    def name(self) -> str:
        """The test's name."""
        return self.test.name


@dataclass(frozen=True)
class Prepared:
    """What there is to do in a directory: commands, and for each test left out the reason."""

    commands: tuple[Command, ...]
    skipped: dict[str, str]


def prepare(
    directory: Path,
    built: Programs,
    *,
    flags: str | None,
    caller: int = CALLER,
    owner: int = OWNER,
    owner_outside: int | None = None,
) -> Prepared:
    """Lay out `directory` as the root directory of the commands, and return these.

    The directory is made if need be; what lies in it under the same names is replaced. `flags` are
    those of the entry that serves the target, or None where the machine runs the programs itself;
    tests of flags that the entry has not are left out. `caller` and `owner` are ids in the
    namespace in which the commands are executed; `owner_outside` is the owner's id where this
    function runs, if it is another. Where the owner cannot be set (a namespace with one id), the
    tests that need a second user are left out, and where the kernel would ignore set-user-ID
    (nosuid, no_new_privs) the test of it. Raises OSError when the directory cannot be written.
    """
    directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    directory.chmod(0o755)
    for name in ("checks", "dynamic", "ld-maid.so", "libdeep.so"):
        _place(directory, name, (built.directory / name).read_bytes(), 0o755)
    _place(directory, "script", b"#!/checks script\n", 0o755)
    checks = (built.directory / "checks").read_bytes()
    skipped: dict[str, str] = {}
    if why := _setuid_ignored(directory):
        skipped["setuid"] = why
    try:
        _place(directory, "unreadable", checks, 0o711)
        uid = owner if owner_outside is None else owner_outside
        # The mode is set after the owner: chown takes set-user-ID away (chown(2)).
        _place(directory, "setuid", checks, 0o4755, uid)
    except PermissionError:
        for name in ("setuid", "unreadable"):
            skipped.setdefault(name, "there is no second user id in this namespace")

    # Each test's path to execute, its arguments, argv[0], user and answer.
    ok = {test.name: f"{test.name}: ok\n" for test in _TESTS}
    ways: dict[str, tuple[tuple[str, ...], str, int, str]] = {
        test.name: (("/checks", test.name), "/checks", 0, ok[test.name]) for test in _TESTS
    }
    ways["dynamic"] = (("/dynamic",), "/dynamic", 0, ok["dynamic"])
    ways["script"] = (("/script", "argument"), "/script", 0, "script: 4 /script argument\n")
    ways["argv0"] = (("/checks", "argv0"), "-argv zero", 0, "argv0: -argv zero\n")
    ways["setuid"] = (("/setuid", "ids"), "/setuid", caller, f"ids: {caller} {owner}\n")
    ways["unreadable"] = (
        *(("/unreadable", "ids"), "/unreadable", caller),
        f"ids: {caller} {caller}\n",
    )
    commands = []
    for test in _TESTS:
        if not test.applies(built.target):
            skipped[test.name] = f"{built.target.name} is a 64-bit target"
        elif flags is not None and (missing := set(test.flags) - _implied(flags)):
            skipped[test.name] = f"the entry has no flag {', '.join(sorted(missing))}"
        elif test.name not in skipped:
            argv, argv0, uid, output = ways[test.name]
            commands.append(Command(test, argv, argv0, uid, output.encode()))
    return Prepared(tuple(commands), skipped)


def _setuid_ignored(directory: Path) -> str:
    """Return why no set-user-ID program in `directory` would work, whoever runs it, or ""."""
    if os.statvfs(directory).f_flag & os.ST_NOSUID:
        return f"{directory} is on a file system that is mounted nosuid"
    status = Path("/proc/self/status").read_text()
    if "\nNoNewPrivs:\t1\n" in status:
        return "this process runs under no_new_privs, which its children inherit"
    return ""


def _implied(flags: str) -> set[str]:
    """C implies O (fs/binfmt_misc.c, check_special_flags)."""
    return set(flags) | ({"O"} if "C" in flags else set())


def _place(directory: Path, name: str, content: bytes, mode: int, uid: int | None = None) -> None:
    """Write a file beside its place and move it there, so that nobody executes half of it."""
    descriptor, temporary = tempfile.mkstemp(prefix=f".{name}-", dir=directory)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            # Before the mode is set: a write takes set-user-ID away, unless root writes (inode(7)).
            file.flush()
            if uid is not None:
                os.fchown(file.fileno(), uid, uid)
            os.fchmod(file.fileno(), mode)
        os.rename(temporary, directory / name)
    except BaseException:
        os.unlink(temporary)
        raise


def explain(command: Command, ran: Run) -> str:
    """Return why `ran` does not prove what `command` tests, in words, or "" when it does."""
    test = command.test
    if ran.timeout:
        how = f"it gave no answer within {command.seconds:.0f} s"
    elif ran.errno == errors.ENOENT and ran.failed_call == "execve":
        how = "no such file: the entry has no F, or its interpreter is dynamic"
    elif ran.errno == errors.ENOEXEC and ran.failed_call == "execve":
        how = "exec format error: no enabled entry catches it"
    elif ran.errno:
        how = f"it could not be started: {ran.failed_call}: {os.strerror(ran.errno)}"
    elif ran.signal:
        known = ran.signal in {number.value for number in signal.Signals}
        name = signal.Signals(ran.signal).name if known else f"signal {ran.signal}"
        how = f"it was killed by {name}"
    elif (ran.status, ran.output) == (command.expected_status, command.expected_output):
        return ""
    else:
        said = ran.output.decode(errors="replace").strip() or "nothing"
        how = f"it said {said[:200]!r} and exited with {ran.status}"
        if ran.status == command.expected_status:
            how = f"it said {said[:200]!r} instead of {command.expected_output.decode().strip()!r}"
    words = ran.errors.decode(errors="replace").strip().splitlines()
    more = f" ({words[-1][:200]})" if words else ""
    return f"{test.description}: {how}{more}; {test.failure}"
