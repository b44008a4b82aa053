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

Compiling takes some 45 s of CPU for each target, nearly all of it for musl, so the results are kept
under the state directory, keyed by everything that determines them. This module builds, lays out,
and judges; who executes the commands, and in which namespace, is the caller's business.
"""

from __future__ import annotations

import contextlib
import errno as errors
import fcntl
import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from maid.emulation.probes import Run
from maid.emulation.targets import Target
from maid.errors import MaidError

SOURCES = Path(__file__).with_name("deep")
"""The directory with the C sources."""

BUILD_LIMIT = 900.0
"""Seconds for one run of the compiler. The slowest measured, musl on two busy cores: 135."""

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
class _Zig:
    """How zig calls a target: its triple, musl's name of the architecture, further flags."""

    triple: str
    arch: str
    headers: str
    flags: tuple[str, ...] = ()


# QEMU 7.2's loongarch64 has no vector instructions, which zig's baseline would use; its hexagon
# knows no version above 67.
_ZIG = {
    "i386": _Zig("x86-linux-musl", "i386", "x86"),
    "x86_64": _Zig("x86_64-linux-musl", "x86_64", "x86_64"),
    "arm": _Zig("arm-linux-musleabihf", "arm", "arm"),
    "armeb": _Zig("armeb-linux-musleabihf", "arm", "arm"),
    "aarch64": _Zig("aarch64-linux-musl", "aarch64", "aarch64"),
    "aarch64_be": _Zig("aarch64_be-linux-musl", "aarch64", "aarch64"),
    "ppc": _Zig("powerpc-linux-musleabihf", "powerpc", "powerpc"),
    "ppc64": _Zig("powerpc64-linux-musl", "powerpc64", "powerpc64"),
    "ppc64le": _Zig("powerpc64le-linux-musl", "powerpc64", "powerpc64"),
    "mips": _Zig("mips-linux-musleabihf", "mips", "mips"),
    "mipsel": _Zig("mipsel-linux-musleabihf", "mips", "mips"),
    "mipsn32": _Zig("mips64-linux-muslabin32", "mipsn32", "mips64"),
    "mipsn32el": _Zig("mips64el-linux-muslabin32", "mipsn32", "mips64"),
    "mips64": _Zig("mips64-linux-muslabi64", "mips64", "mips64"),
    "mips64el": _Zig("mips64el-linux-muslabi64", "mips64", "mips64"),
    "s390x": _Zig("s390x-linux-musl", "s390x", "s390x"),
    "riscv32": _Zig("riscv32-linux-musl", "riscv32", "riscv32"),
    "riscv64": _Zig("riscv64-linux-musl", "riscv64", "riscv64"),
    "hexagon": _Zig("hexagon-linux-musl", "hexagon", "hexagon", ("-mcpu=hexagonv67",)),
    "loongarch64": _Zig(
        "loongarch64-linux-musl", "loongarch64", "loongarch64", ("-mcpu=generic_la64+d",)
    ),
}

_STATIC = ("-static", "-Os", "-s", "-std=gnu11")
# Everything that would make the compiler call a C library, or emit what only one could serve, is
# off.
_FREESTANDING = (
    *("-Os", "-s", "-std=gnu11", "-ffreestanding", "-nostdlib", "-nostdinc", "-fno-builtin"),
    *("-fno-stack-protector", "-fno-unwind-tables", "-fno-asynchronous-unwind-tables"),
    *("-fno-sanitize=all", "-Wno-deprecated-non-prototype", "-Wno-shift-op-parentheses"),
    *("-D_XOPEN_SOURCE=700", "-Wl,--hash-style=sysv", "-Wl,-z,now"),
)
_LOADER = ("-fPIC", "-shared", "-Wl,-Bsymbolic", "-Wl,-e,_dlstart", "-Wl,-soname,ld-maid.so")
_LIBRARY = ("-fPIC", "-shared", "-Wl,-soname,libdeep.so")
_DYNAMIC = ("-fPIE", "-pie", "-rdynamic", "-Wl,--dynamic-linker=/ld-maid.so")


@dataclass(frozen=True)
class Programs:
    """The compiled programs of one target: `directory` has checks, dynamic, ld-maid.so and
    libdeep.so."""

    target: Target
    directory: Path


def supported(target: Target) -> bool:
    """Whether there are programs for `target`: zig can compile for it and has a C library."""
    return target.name in _ZIG


def programs(target: Target, state: Path, zig_cache: Path | None = None) -> Programs:
    """Return the programs of `target`, compiled now or taken from `state`/deep.

    `zig_cache` is a directory for zig's own cache, some 40 MB for each target; by default it is
    temporary, because nothing in it is needed again. Blocks while another process compiles into the
    same state directory. Raises MaidError when the target has no compiler, ziglang is not
    installed, or the compiler fails.
    """
    if not supported(target):
        raise MaidError(
            f"there are no deep checks for {target.name}: zig has no compiler or C library for it",
            "its probe is checked all the same: leave out --deep",
        )
    zig = _find_zig()
    store = state / "deep"
    key = _key()
    directory = store / key / target.name
    if not directory.is_dir():
        store.mkdir(parents=True, exist_ok=True)
        with _locked(store):
            if not directory.is_dir():
                _remove_others(store, key)
                _build(zig, _ZIG[target.name], store, directory, zig_cache)
    return Programs(target, directory)


def _find_zig() -> Path:
    found = importlib.util.find_spec("ziglang")
    if found is None or not found.submodule_search_locations:
        raise MaidError(
            "the deep checks are compiled with zig, and the package ziglang is not installed",
            f"install it for this Python: {sys.executable} -m pip install 'maid[deep]'",
        )
    return Path(found.submodule_search_locations[0])


def _key() -> str:
    """A digest of all that determines the programs: sources, compiler, how it is called."""
    digest = hashlib.sha256(importlib.metadata.version("ziglang").encode())
    for source in sorted(SOURCES.glob("*.c")):
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    digest.update(repr((_ZIG, _STATIC, _FREESTANDING, _LOADER, _LIBRARY, _DYNAMIC)).encode())
    return digest.hexdigest()[:20]


@contextlib.contextmanager
def _locked(store: Path) -> Iterator[None]:
    descriptor = os.open(store / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _remove_others(store: Path, key: str) -> None:
    """Remove what other sources or compilers made, and what a killed build left. Under the lock."""
    for entry in store.iterdir():
        if entry.is_dir() and entry.name != key:
            shutil.rmtree(entry, ignore_errors=True)


def _build(zig: Path, how: _Zig, store: Path, directory: Path, zig_cache: Path | None) -> None:
    musl, include = zig / "lib/libc/musl", zig / "lib/libc/include"
    n32 = "abin32" if how.arch == "mipsn32" else ""
    headers = (
        *(musl / "ldso", musl / "arch" / how.arch, musl / "arch/generic"),
        *(musl / "src/include", musl / "src/internal", musl / "include"),
        *(include / f"{how.headers}-linux-musl{n32}", include / "generic-musl"),
    )
    freestanding = (*_FREESTANDING, *(f"-I{path}" for path in headers))
    with tempfile.TemporaryDirectory(prefix=".build-", dir=store) as build:
        out = Path(build) / "out"
        out.mkdir(mode=0o755)

        def compile(output: str, source: str, *flags: str) -> None:
            command = [
                *(sys.executable, "-m", "ziglang", "cc"),
                *("-target", how.triple),
                *how.flags,
                *flags,
                *("-o", str(out / output)),
                str(SOURCES / source),
                *([str(out / "libdeep.so")] if source == "dynamic.c" else []),
            ]
            _run(command, Path(build), zig_cache or Path(build) / "zig", how.triple)

        compile("ld-maid.so", "loader.c", *freestanding, *_LOADER)
        compile("libdeep.so", "library.c", *freestanding, *_LIBRARY)
        compile("dynamic", "dynamic.c", *freestanding, *_DYNAMIC)
        compile("checks", "checks.c", *_STATIC)
        directory.parent.mkdir(exist_ok=True)
        out.rename(directory)


def _run(command: list[str], build: Path, cache: Path, triple: str) -> None:
    environment = {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": str(build),
        "TMPDIR": str(build),
        "ZIG_GLOBAL_CACHE_DIR": str(cache),
        "ZIG_LOCAL_CACHE_DIR": str(cache),
    }
    try:
        done = subprocess.run(
            command,
            cwd=build,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=BUILD_LIMIT,
        )
    except subprocess.TimeoutExpired as error:
        raise MaidError(
            f"zig compiled for {triple} for {BUILD_LIMIT:.0f} s without an end",
            "try again when the machine has less to do",
        ) from error
    if done.returncode != 0:
        words = done.stderr.decode(errors="replace").strip().splitlines()
        raise MaidError(
            f"zig could not compile the deep checks for {triple}: "
            + (
                next((line for line in words if "error" in line), "") or f"status {done.returncode}"
            ),
            "ziglang 0.17 is known to work; the directory must have 200 MB free",
        )


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
