"""The front, executed: what it puts on the stack, and that nothing else changes.

First with "interpreters" of our own that show how they were started (front/stack.c: the stack and
the registers, front/library.c: a C library at work), compared byte for byte with the same program
without the front; both kinds of static program, on this machine's architecture and the other one
that the front is written for. Then with QEMU, as binfmt_misc starts it.
"""

import ctypes
import errno
import os
import platform
import shutil
import signal
import struct
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import compiled
import fetched
import own_instance
import pytest
from own_instance import Job, Outcome

from maid.emulation.bake import BakeError, bake, model_known
from maid.emulation.targets import TARGETS

ADDR_NO_RANDOMIZE = 0x0040000
AT_NULL, AT_PHDR, AT_ENTRY, AT_SECURE, AT_RANDOM, AT_SYSINFO_EHDR = 0, 3, 9, 23, 25, 33
# Their values depend on where the program was loaded; the rest does not without randomization.
PLACES = {AT_PHDR, AT_ENTRY, AT_SYSINFO_EHDR}
# How many general registers front/stack.c shows, and which one holds the jump's destination: %r11
# and x16.
REGISTERS = {"x86_64": 15, "aarch64": 31}
JUMP = {"x86_64": 10, "aarch64": 16}
# What front/library.c takes from brk.
HEAP = 1 << 24
RAW = ("-nostdlib", "-ffreestanding", "-fno-stack-protector")
MODEL = ("-cpu", "neoverse-n1")
# arm64's HWCAP_PACA (uapi/asm/hwcap.h): pointer authentication, which neoverse-n1 has not.
HWCAP_PACA = 1 << 30

MACHINES = pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
KINDS = pytest.mark.parametrize("static_pie", [False, True], ids=["fixed", "static-pie"])
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make setuid programs")


@dataclass(frozen=True)
class Start:
    """How a program found itself at its entry point."""

    registers: tuple[int, ...]
    sp: int
    stack: bytes
    argv: tuple[bytes, ...]

    @property
    def top(self) -> int:
        """The address at which the stack ends. QEMU lays a static-pie program just below it, so
        there it moves with the program's size."""
        return self.sp + len(self.stack)

    @property
    def words(self) -> tuple[int, ...]:
        """The vectors: argc, argv, envp and auxv, up to and with AT_NULL and its value.

        Pointers into the stack are given as negative distances from its top.
        """
        words = struct.unpack(f"<{len(self.stack) // 8}Q", self.stack[: len(self.stack) // 8 * 8])
        at = words.index(0, 1 + words[0])
        at = words.index(0, at + 1) + 1
        while words[at] != AT_NULL:
            at += 2
        own = range(self.sp, self.top)
        return tuple(word - self.top if word in own else word for word in words[: at + 2])

    @property
    def tail(self) -> tuple[int, ...]:
        """What stands after the vectors' argv: envp and auxv."""
        return self.words[1 + self.words[0] + 1 :]

    @property
    def auxiliary(self) -> dict[int, int]:
        at = self.tail.index(0) + 1
        return dict(zip(self.tail[at::2], self.tail[at + 1 :: 2], strict=True))

    def last(self, count: int) -> bytes:
        """The stack's last bytes, without AT_RANDOM's, which are random."""
        data = bytearray(self.stack)
        at = len(data) + self.auxiliary[AT_RANDOM]
        data[at : at + 16] = bytes(16)
        return bytes(data[len(data) - count :])

    @classmethod
    def parse(cls, data: bytes, machine: str) -> "Start":
        size = 8 * REGISTERS[machine]
        registers = struct.unpack(f"<{REGISTERS[machine]}Q", data[:size])
        sp, length = struct.unpack_from("<QQ", data, size)
        stack = data[size + 16 : size + 16 + length]
        argv = data[size + 16 + length :].split(b"\0")[:-1]
        return cls(registers, sp, stack, tuple(argv))


class Bench:
    """Makes interpreters with a front and runs them and their originals under one name.

    Both are called `./interpreter`, each in a directory of its own, and run without address space
    randomization: then all that may differ between them is what the front did.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.fronts: dict[str, Path] = {}

    def front(self, machine: str) -> Path:
        if machine not in self.fronts:
            self.fronts[machine] = compiled.front(machine, self.directory / f"front-{machine}")
        return self.fronts[machine]

    def copy(self, original: Path, arguments: tuple[str, ...], machine: str) -> Path:
        return bake(original, arguments, self.directory / "state", self.front(machine)).path

    def execute(
        self, program: Path, machine: str, argv: list[bytes], environment: dict[str, str]
    ) -> bytes:
        """Standard output of `program`, started as ./interpreter with argv[1:]."""
        directory = self.directory / "run"
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
        shutil.copy(program, directory / "interpreter")
        done = subprocess.run(
            [*compiled.runner(machine), "./interpreter", *argv[1:]],
            cwd=directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=60,
            preexec_fn=lambda: ctypes.CDLL(None).personality(ADDR_NO_RANDOMIZE),
        )
        assert done.returncode == 0, (done.returncode, done.stderr)
        return done.stdout

    def starts(
        self,
        machine: str,
        static_pie: bool,
        arguments: tuple[str, ...],
        argv: tuple[bytes, ...] = (b"./interpreter", b"one", b"", b"three"),
        environment: dict[str, str] | None = None,
        flags: tuple[str, ...] = (),
    ) -> tuple[Start, Start]:
        """How the plain interpreter and the copy with `arguments` found themselves."""
        environment = {"HOME": "/", "EMPTY": ""} if environment is None else environment
        linked = compiled.linked(machine, static_pie)
        original = compiled.program("stack.c", machine, *RAW, *flags, *linked)
        plain, baked = (
            Start.parse(self.execute(each, machine, list(argv), environment), machine)
            for each in (original, self.copy(original, arguments, machine))
        )
        return plain, baked


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("front"))


def check(plain: Start, baked: Start, inserted: tuple[bytes, ...], machine: str) -> None:
    """All that the front promises about the stack and the registers."""
    count = len(inserted)
    moved = count + count % 2
    assert plain.sp % 16 == 0
    assert baked.sp - baked.top == plain.sp - plain.top - 8 * moved
    # The arguments, and the pointers of the others as they were.
    assert baked.argv == (plain.argv[0], *inserted, *plain.argv[1:])
    own = baked.words[2 : 2 + count]
    assert baked.words[0] == plain.words[0] + count
    assert baked.words[1] == plain.words[1]
    assert baked.words[2 + count : 1 + baked.words[0]] == plain.words[2 : 1 + plain.words[0]]
    # Those of the inserted ones lead into the program, not onto the stack.
    assert all(pointer > 0 for pointer in own)
    # Environment and auxiliary vector.
    before = plain.tail[: plain.tail.index(0) + 1]
    assert baked.tail[: len(before)] == before
    assert len(baked.tail) == len(plain.tail)
    assert list(baked.auxiliary) == list(plain.auxiliary)
    for kind, value in plain.auxiliary.items():
        assert baked.auxiliary[kind] == value or kind in PLACES
    # Everything above the vectors.
    above = len(plain.stack) - 8 * len(plain.words)
    assert baked.last(above) == plain.last(above)
    # Registers: only the jump's destination, which is the program's own entry point.
    jump = JUMP[machine]
    assert baked.registers[:jump] == plain.registers[:jump]
    assert baked.registers[jump + 1 :] == plain.registers[jump + 1 :]
    moved_by = baked.auxiliary[AT_PHDR] - plain.auxiliary[AT_PHDR]
    assert baked.registers[jump] == plain.auxiliary[AT_ENTRY] + moved_by


@MACHINES
@KINDS
@pytest.mark.parametrize("count", range(9))
def test_the_stack_is_the_kernels_but_for_the_arguments(
    bench: Bench, machine: str, static_pie: bool, count: int
) -> None:
    arguments = tuple(f"-argument{number}" for number in range(count))
    plain, baked = bench.starts(machine, static_pie, arguments)
    check(plain, baked, tuple(each.encode() for each in arguments), machine)


@MACHINES
@KINDS
def test_the_most_text_arrives_whole(bench: Bench, machine: str, static_pie: bool) -> None:
    arguments = tuple(chr(ord("a") + number) * 127 for number in range(8))
    plain, baked = bench.starts(machine, static_pie, arguments)
    check(plain, baked, tuple(each.encode() for each in arguments), machine)


@MACHINES
@pytest.mark.parametrize("arguments", [MODEL, (*MODEL, "-odd")], ids=["even", "odd"])
@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"ONE": "x" * 100_000},
        {f"NAME{number}": "value" * 5 for number in range(3000)},
    ],
    ids=["none", "long", "many"],
)
def test_any_environment_passes(
    bench: Bench, machine: str, arguments: tuple[str, ...], environment: dict[str, str]
) -> None:
    plain, baked = bench.starts(machine, True, arguments, environment=environment)
    check(plain, baked, tuple(each.encode() for each in arguments), machine)
    assert plain.tail.index(0) >= len(environment)


@MACHINES
@pytest.mark.parametrize("arguments", [MODEL, (*MODEL, "-odd")], ids=["even", "odd"])
@pytest.mark.parametrize("count", [0, 1, 5000])
def test_any_number_of_arguments_passes(
    bench: Bench, machine: str, arguments: tuple[str, ...], count: int
) -> None:
    argv = (b"./interpreter", *(b"%d" % number for number in range(count)))
    plain, baked = bench.starts(machine, True, arguments, argv=argv)
    check(plain, baked, tuple(each.encode() for each in arguments), machine)
    assert plain.argv == argv


EMPTY_ARGV = """
import ctypes, os, sys
nothing = (ctypes.c_char_p * 1)(None)
ctypes.CDLL(None).execve(os.fsencode(sys.argv[1]), nothing, nothing)
"""


@KINDS
def test_a_guarded_interpreter_is_entered_where_it_may_be(bench: Bench, static_pie: bool) -> None:
    """Branch target identification: the front's segment is guarded with the rest of the program."""
    flags = ("-mbranch-protection=bti",)
    plain, baked = bench.starts("aarch64", static_pie, MODEL, flags=flags)
    check(plain, baked, tuple(each.encode() for each in MODEL), "aarch64")


@KINDS
def test_an_empty_argv_starts_too(bench: Bench, static_pie: bool) -> None:
    machine = compiled.HOST
    original = compiled.program("stack.c", machine, *RAW, *compiled.linked(machine, static_pie))
    baked = bench.copy(original, MODEL, machine)
    done = subprocess.run(
        [sys.executable, "-c", EMPTY_ARGV, baked], capture_output=True, timeout=60, check=True
    )
    start = Start.parse(done.stdout, machine)
    # Since 5.18 the kernel makes it one empty string; before, there is nothing to insert after.
    release = tuple(int(part) for part in platform.release().split(".")[:2])
    expected = (b"", *(each.encode() for each in MODEL)) if release >= (5, 18) else ()
    assert start.argv == expected
    assert start.sp % 16 == 0


@MACHINES
@pytest.mark.parametrize(
    ("arguments", "left"),
    [
        (MODEL, ()),
        (("-R", "1G", "-cpu", "max", "-s"), (b"-R", b"1G", b"-s")),
        (("-strace", "-cpu"), (b"-strace",)),
        (("-cpuset", "x"), (b"-cpuset", b"x")),
    ],
)
def test_a_model_in_the_environment_wins_over_the_baked_one(
    bench: Bench, machine: str, arguments: tuple[str, ...], left: tuple[bytes, ...]
) -> None:
    plain, baked = bench.starts(machine, True, arguments, environment={"QEMU_CPU": "max"})
    check(plain, baked, left, machine)


@MACHINES
@pytest.mark.parametrize("name", ["QEMU_CP", "QEMU_CPUS", "xQEMU_CPU", "QEMU_LD_PREFIX"])
def test_other_variables_change_nothing(bench: Bench, machine: str, name: str) -> None:
    plain, baked = bench.starts(machine, True, MODEL, environment={name: "max"})
    check(plain, baked, tuple(each.encode() for each in MODEL), machine)


@needs_root
def test_a_setuid_start_gets_the_arguments_whatever_the_caller_set(
    bench: Bench, tmp_path: Path
) -> None:
    machine = compiled.HOST
    original = compiled.program("stack.c", machine, *RAW, *compiled.linked(machine, True))
    own_instance.require()
    (tmp_path / "setuid").write_bytes(bench.copy(original, MODEL, machine).read_bytes())
    (tmp_path / "setuid").chmod(0o4755)
    tmp_path.chmod(0o755)
    job = Job(tmp_path, "/setuid", ["name"], uid=1000, environment={"QEMU_CPU": "max"})
    (outcome,) = own_instance.run([], [job])
    start = Start.parse(outcome.stdout, machine)
    assert start.auxiliary[AT_SECURE] == 1
    assert start.argv == (b"name", *(each.encode() for each in MODEL))


@MACHINES
@KINDS
def test_a_c_library_finds_all_it_needs(bench: Bench, machine: str, static_pie: bool) -> None:
    original = compiled.program("library.c", machine, *compiled.linked(machine, static_pie))
    baked = bench.copy(original, (*MODEL, "-odd"), machine)
    argv, environment = [b"./interpreter", b"one"], {"HOME": "/somewhere"}
    plain_lines, lines = (
        bench.execute(each, machine, argv, environment).decode().splitlines()
        for each in (original, baked)
    )
    given = [f"argument {each}" for each in (*MODEL, "-odd")]
    fixed = [line for line in lines if not line.startswith(("map ", "brk "))]
    expected = [line for line in plain_lines if not line.startswith(("map ", "brk "))]
    assert fixed == [*expected[:1], *given, *expected[1:]]
    maps = [line.split() for line in lines if line.startswith("map ")]
    assert maps
    assert not [each for each in maps if "w" in each[2] and "x" in each[2]]
    # The heap, which begins at brk, is nowhere near the front, the last of the program's segments.
    own = [each for each in maps if each[-1].endswith("/interpreter")]
    assert own[-1][2] == "r-xp"
    brk = next(int(line.split()[1], 16) for line in lines if line.startswith("brk "))
    for each in own:
        start, end = (int(address, 16) for address in each[1].split("-"))
        assert end <= brk or start >= brk + HEAP


@MACHINES
def test_the_compiled_front_is_what_bake_takes_it_for(bench: Bench, machine: str) -> None:
    code = bench.front(machine).read_bytes()
    foreign = {"x86_64": "aarch64", "aarch64": "x86_64"}[machine]
    other = compiled.program("stack.c", foreign, *RAW, *compiled.linked(foreign, True))
    assert len(code) <= 12288
    with pytest.raises(BakeError, match="the front is for"):
        bench.copy(other, MODEL, machine)


def test_tools_find_nothing_wrong_with_a_copy(bench: Bench, qemu: Path) -> None:
    baked = bench.copy(qemu, MODEL, compiled.HOST)
    done = subprocess.run(
        ["readelf", "-aW", baked], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stderr == ""
    assert "Warning" not in done.stdout
    original = subprocess.run(["readelf", "-nW", qemu], capture_output=True, text=True, timeout=60)
    build_id = next(line for line in original.stdout.splitlines() if "Build ID" in line)
    assert build_id in done.stdout


# With QEMU


@pytest.fixture(scope="module", params=["installed", "debian-13"])
def qemu(request: pytest.FixtureRequest) -> Path:
    """A static QEMU for arm64 programs: the one installed here, and Debian 13's."""
    if request.param == "debian-13":
        if compiled.HOST != "x86_64":
            pytest.skip("arm64 programs run natively here")
        return fetched.debian_13_qemu("qemu-aarch64")
    if compiled.HOST == "aarch64":
        pytest.skip("arm64 programs run natively here")
    return Path(compiled.runner("aarch64")[0])


@pytest.fixture(scope="module")
def guest() -> Path:
    return compiled.program("guest.c", "aarch64", "-static")


def answer(
    interpreter: list[str | Path], guest: Path, *arguments: str, **environment: str
) -> list[str]:
    done = subprocess.run(
        [*interpreter, guest, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout.splitlines()


def hardware(lines: list[str]) -> int:
    return next(int(line.split()[2], 16) for line in lines if line.startswith("auxiliary 16 "))


def test_the_model_reaches_qemu_and_the_rest_is_as_without_the_front(
    bench: Bench, qemu: Path, guest: Path
) -> None:
    baked = bench.copy(qemu, MODEL, compiled.HOST)
    arguments, environment = ("a", "", "b c"), {"HOME": "/", "A": ""}
    default = answer([qemu], guest, *arguments, **environment)
    explicit = answer([qemu, *MODEL], guest, *arguments, **environment)
    lines = answer([baked], guest, *arguments, **environment)
    assert hardware(default) & HWCAP_PACA
    assert not hardware(lines) & HWCAP_PACA
    assert lines == explicit
    assert lines != default
    assert hardware(answer([baked], guest, QEMU_CPU="max")) & HWCAP_PACA
    assert hardware(answer([baked, "-cpu", "max"], guest)) & HWCAP_PACA


def test_qemu_knows_the_model_that_is_baked_in(qemu: Path) -> None:
    assert model_known(qemu, "neoverse-n1")
    assert not model_known(qemu, "neoverse-n0")


def test_streams_status_and_signals_pass(bench: Bench, qemu: Path, guest: Path) -> None:
    baked = bench.copy(qemu, MODEL, compiled.HOST)
    data = os.urandom(3_000_000)
    done = subprocess.run([baked, guest, "cat"], input=data, capture_output=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, data, b"")
    for status in (0, 1, 42, 255):
        done = subprocess.run([baked, guest, "exit", str(status)], timeout=60)
        assert done.returncode == status
    for number in (signal.SIGTERM, signal.SIGKILL, signal.SIGUSR1):
        done = subprocess.run([baked, guest, "signal", str(int(number))], timeout=60)
        assert done.returncode == -number


def in_instance(interpreter: Path, flags: str, *jobs: Job) -> list[Outcome]:
    """The jobs' outcomes where an entry for aarch64 with these flags serves, and nothing else."""
    own_instance.require()
    target = TARGETS["aarch64"]
    line = own_instance.line("qemu-aarch64", target.magic, target.mask, str(interpreter), flags)
    return own_instance.run([line], jobs)


@pytest.fixture
def rootfs(tmp_path: Path, guest: Path) -> Path:
    """A root file system with the guest and nothing else."""
    root = tmp_path / "rootfs"
    root.mkdir(mode=0o755)
    tmp_path.chmod(0o755)
    shutil.copy(guest, root / "guest")
    (root / "guest").chmod(0o755)
    return root


@pytest.mark.parametrize("flags", ["F", "PF", "OF", "CF", "POF", "POCF"])
def test_every_kind_of_entry_serves_an_empty_chroot(
    bench: Bench, qemu: Path, rootfs: Path, flags: str
) -> None:
    baked = bench.copy(qemu, MODEL, compiled.HOST)
    job = Job(rootfs, "/guest", ["a name", "one", "", "three"], environment={"A": "b", "HOME": "/"})
    (plain,), (outcome,) = (in_instance(interpreter, flags, job) for interpreter in (qemu, baked))
    assert (outcome.status, outcome.stderr, outcome.error) == (0, b"", "")
    lines = outcome.stdout.decode().splitlines()
    name = "a name" if "P" in flags else "/guest"
    assert lines[:4] == [f"argument {each}" for each in (name, "one", "", "three")]
    # QEMU 7.2 turns the order round, with and without the front.
    assert sorted(lines[4:6]) == ["environment A=b", "environment HOME=/"]
    assert not hardware(lines) & HWCAP_PACA
    before = plain.stdout.decode().splitlines()
    assert hardware(before) & HWCAP_PACA
    assert lines[:6] == before[:6]


@pytest.mark.parametrize("flags", ["", "P", "POC"])
def test_an_entry_without_f_serves_where_the_copy_can_be_found(
    bench: Bench, qemu: Path, rootfs: Path, flags: str
) -> None:
    baked = bench.copy(qemu, MODEL, compiled.HOST)
    outside = Job(Path("/"), str(rootfs / "guest"), ["name", "one"])
    inside = Job(rootfs, "/guest", ["name", "one"])
    served, missing = in_instance(baked, flags, outside, inside)
    assert served.status == 0
    lines = served.stdout.decode().splitlines()
    assert lines[0] == "argument " + ("name" if "P" in flags else str(rootfs / "guest"))
    assert lines[1] == "argument one"
    assert not hardware(lines) & HWCAP_PACA
    assert missing.error == os.strerror(errno.ENOENT)


@needs_root
def test_a_setuid_program_has_its_owner_and_the_same_model(
    bench: Bench, qemu: Path, rootfs: Path
) -> None:
    baked = bench.copy(qemu, MODEL, compiled.HOST)
    (rootfs / "guest").chmod(0o4755)
    job = Job(rootfs, "/guest", ["name"], uid=1000, environment={"QEMU_CPU": "max"})
    (outcome,) = in_instance(baked, "POCF", job)
    lines = outcome.stdout.decode().splitlines()
    assert "ids 1000 0" in lines
    assert not hardware(lines) & HWCAP_PACA
    (without,) = in_instance(baked, "PF", Job(rootfs, "/guest", ["name"], uid=1000))
    assert "ids 1000 1000" in without.stdout.decode().splitlines()


@needs_root
def test_a_program_that_cannot_be_read_runs_through_o(
    bench: Bench, qemu: Path, rootfs: Path
) -> None:
    baked = bench.copy(qemu, MODEL, compiled.HOST)
    (rootfs / "guest").chmod(0o711)
    (outcome,) = in_instance(baked, "POF", Job(rootfs, "/guest", ["name"], uid=1000))
    assert outcome.status == 0
    assert not hardware(outcome.stdout.decode().splitlines()) & HWCAP_PACA


def test_an_empty_argv_passes_through_an_entry(bench: Bench, qemu: Path, rootfs: Path) -> None:
    baked = bench.copy(qemu, MODEL, compiled.HOST)
    launcher = compiled.program("launch.c", compiled.HOST, "-static")
    shutil.copy(launcher, rootfs / "launch")
    job = Job(rootfs, "/launch", ["launch", "/guest"])
    (plain,), (outcome,) = (in_instance(each, "POCF", job) for each in (qemu, baked))
    assert outcome.status == plain.status == 0
    lines, before = (each.stdout.decode().splitlines() for each in (outcome, plain))
    assert lines[0] == before[0] == "argument "
    assert [line for line in lines if line.startswith(("argument", "environment"))] == ["argument "]
    assert not hardware(lines) & HWCAP_PACA


def test_a_large_environment_passes_through_an_entry(
    bench: Bench, qemu: Path, rootfs: Path
) -> None:
    baked = bench.copy(qemu, MODEL, compiled.HOST)
    environment = {f"NAME{number}": "value" * 20 for number in range(2000)}
    environment["LONG"] = "x" * 100_000
    job = Job(rootfs, "/guest", ["name"], environment=environment)
    (outcome,) = in_instance(baked, "POCF", job)
    found = [
        line.removeprefix("environment ")
        for line in outcome.stdout.decode().splitlines()
        if line.startswith("environment ")
    ]
    assert sorted(found) == sorted(f"{name}={value}" for name, value in environment.items())
