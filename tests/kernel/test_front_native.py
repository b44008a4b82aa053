"""The front executes the native program of the store, and steps aside wherever it must not.

With the installed QEMU, as binfmt_misc starts it, in private instances; the store is a directory
made by hand (front_store.py). What QEMU runs must be as it would be without the front, whatever
was tried before.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import compiled
import own_instance
import pytest
from daemons import rootfs
from front_elf import NOTE, Elf, note
from front_store import Stage, Told, build_id, record
from own_instance import Job

from maid.emulation.bake import bake
from maid.emulation.targets import TARGETS
from maid.platforms import host

NATIVE, FOREIGN = compiled.HOST, "aarch64"
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can change the ids")
pytestmark = pytest.mark.skipif(compiled.HOST == FOREIGN, reason="arm64 programs run natively here")
RLIMIT_FSIZE, RLIMIT_STACK, RLIMIT_NOFILE = 1, 3, 7


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled.front(compiled.HOST, tmp_path_factory.mktemp("front"))


@pytest.fixture
def stage(tmp_path: Path, front: Path) -> Iterator[Stage]:
    state = tmp_path / "state"
    yield Stage(tmp_path / "rootfs", Path(compiled.runner(FOREIGN)[0]), front, state)
    shutil.rmtree(state)


def same_as_qemu_alone(stage: Stage, *arguments: str, **environment: str) -> Told:
    """What the program said, which must be what it says under QEMU without the front."""
    told = stage.told(*arguments, **environment)
    alone = stage.told(*arguments, interpreter=stage.qemu, **environment)
    assert told == alone
    assert told.machine == FOREIGN
    return told


ARGUMENTS = ("one", "", "--three=3")


@pytest.mark.parametrize("flags", ["POCF", "POF", "PF"])
def test_the_native_program_gets_what_the_foreign_one_would(stage: Stage, flags: str) -> None:
    stage.flags = flags
    native = stage.told(*ARGUMENTS, HOME="/", EMPTY="")
    foreign = stage.told(*ARGUMENTS, HOME="/", EMPTY="", interpreter=stage.qemu)
    assert (native.machine, foreign.machine) == (NATIVE, FOREIGN)
    assert native.arguments == foreign.arguments == ("told", *ARGUMENTS)
    assert sorted(native.environment) == sorted(foreign.environment) == ["EMPTY=", "HOME=/"]
    assert native.files == foreign.files == (0, 1, 2)
    assert native.ids == foreign.ids


@pytest.mark.parametrize("flags", ["POCF", "PF"])
@pytest.mark.parametrize("has_record", [True, False])
def test_every_way_to_start_a_program_counts(stage: Stage, flags: str, has_record: bool) -> None:
    stage.flags = flags
    if not has_record:
        stage.record.unlink()
    machine = NATIVE if has_record else FOREIGN
    (stage.root / "script").write_text("#!/told from script\n")
    (stage.root / "script").chmod(0o755)
    (stage.root / "link").symlink_to("told")
    (stage.root / "sub").mkdir()
    jobs = [
        Job(stage.root, "/script", ["name", "x"]),
        Job(stage.root, "/link", ["name", "x"]),
        Job(stage.root, "./told", ["name", "x"]),
        Job(stage.root, "sub/../told", [""]),
        Job(stage.root, "/launcher", ["launcher", "exec", "/told", "x"]),
    ]
    told = [Told.parse(outcome.stdout.decode()) for outcome in stage.run(*jobs)]
    assert [each.machine for each in told] == [machine] * 5
    assert [each.arguments for each in told] == [
        ("/told", "from script", "/script", "x"),
        ("name", "x"),
        ("name", "x"),
        ("",),
        ("/told", "x"),
    ]
    assert {each.files for each in told} == {(0, 1, 2)}


@pytest.mark.parametrize("machine", ["s390x", "riscv64", "arm"])
def test_programs_of_every_class_and_byte_order_have_native_ones(
    tmp_path: Path, front: Path, machine: str
) -> None:
    """s390x is big-endian, arm has 32 bits; and their QEMU has no arguments baked in."""
    qemu = Path(compiled.runner(machine)[0])
    stage = Stage(tmp_path / "rootfs", qemu, front, tmp_path / "state", "POCF", machine, ())
    native = stage.told(*ARGUMENTS)
    assert (native.machine, native.arguments) == (NATIVE, ("told", *ARGUMENTS))
    stage.record.unlink()
    assert stage.told(*ARGUMENTS) == stage.told(*ARGUMENTS, interpreter=qemu)
    assert stage.told().machine == "other"


def test_the_status_passes(stage: Stage) -> None:
    ends = stage.run(*(stage.job("exit", str(status)) for status in (0, 1, 255)))
    assert [outcome.status for outcome in ends] == [0, 1, 255]


def test_without_flag_p_the_arguments_are_unknown_and_qemu_runs(stage: Stage) -> None:
    for flags in ("OCF", "F"):
        stage.flags = flags
        same_as_qemu_alone(stage, *ARGUMENTS)


def test_an_emulated_program_starts_native_ones_and_the_other_way_round(stage: Stage) -> None:
    stage.log.touch()
    stage.write("Aexec")
    told = stage.told("exec", "/told", "x")
    assert (told.machine, told.arguments) == (NATIVE, ("/told", "x"))
    assert [what for what, _ in stage.logged()] == ["e", "n"]
    stage.write("Ax")
    assert stage.told("exec", "/told", "x").machine == FOREIGN
    assert [what for what, _ in stage.logged()[2:]] == ["e", "e"]
    assert stage.told("exec", "/told", "y", "x").machine == FOREIGN


def test_a_large_argv_and_environment_pass(stage: Stage) -> None:
    stage.write("azz", "cyy", "ox", "eZZ*", "l8", "pso", "/dev/.maid/t/plugin.so", "1first")
    arguments = ("first", *(f"argument{number}" for number in range(50_000)))
    environment = {f"NAME{number}": "value" * 5 for number in range(3000)}
    native = stage.told(*arguments, **environment)
    assert (native.machine, native.arguments) == (NATIVE, ("told", *arguments))
    assert len(native.environment) == 3000
    told = same_as_qemu_alone(stage, *arguments, "zz", **environment)
    assert told.arguments == ("told", *arguments, "zz")


# What it changes


def test_an_argument_is_inserted_after_the_programs_name(stage: Stage) -> None:
    stage.write("i--inserted")
    for flags in ("POCF", "PF"):
        stage.flags = flags
        assert stage.told(*ARGUMENTS).arguments == ("told", "--inserted", *ARGUMENTS)
        assert stage.told().arguments == ("told", "--inserted")


def test_a_plugin_is_replaced(stage: Stage) -> None:
    stage.write("pplugin.so", "/dev/.maid/t/plugin.so", "i--inserted")
    told = stage.told("a.o", "-plugin", "/usr/lib/plugin.so", "b.o")
    assert told.arguments == (
        *("told", "--inserted", "a.o", "-plugin", "/dev/.maid/t/plugin.so", "b.o"),
    )


def gone(path: Path) -> None:
    path.unlink()


def not_executable(path: Path) -> None:
    path.chmod(0o644)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def text(path: Path) -> None:
    path.write_bytes(b"no program\n")


def directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path, 0o755)


def without_interpreter(path: Path) -> None:
    """A dynamic program whose loader is not there."""
    shutil.copy("/bin/true", path)


FAILURES = [
    *(gone, not_executable, empty, text, directory, dangling, loop, fifo, without_interpreter),
]
CHANGES = [
    (),
    ("i--inserted",),
    ("pplugin.so", "/dev/.maid/t/plugin.so"),
    ("pplugin.so", "/dev/.maid/t/plugin.so", "i--inserted"),
]


@pytest.mark.parametrize("failure", FAILURES)
def test_what_cannot_be_executed_leaves_everything_as_it_was(
    stage: Stage, failure: Callable[[Path], None]
) -> None:
    failure(stage.native)
    arguments = ("-plugin", "/usr/lib/plugin.so", "x", "--plugin", "plugin.so")
    for flags in ("POCF", "PF"):
        stage.flags = flags
        for rules in CHANGES:
            stage.write(*rules)
            stage.log.write_bytes(b"")
            told = same_as_qemu_alone(stage, *arguments, HOME="/", EMPTY="")
            assert told.arguments == ("told", *arguments)
            assert told.files == (0, 1, 2)
            assert [what for what, _ in stage.logged()] == ["n", "f"]


def test_a_native_program_that_is_being_written_is_not_waited_for(stage: Stage) -> None:
    stage.write("i--inserted")
    with stage.native.open("r+b"):
        same_as_qemu_alone(stage, *ARGUMENTS)
    assert stage.told().machine == NATIVE


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_a_failed_start_with_few_arguments_is_as_it_was(stage: Stage, count: int) -> None:
    gone(stage.native)
    stage.write("i--inserted")
    same_as_qemu_alone(stage, *("x" * count))


# Who is not to have native programs


@needs_root
@pytest.mark.parametrize("mode", [0o4755, 0o2755])
def test_a_setuid_or_setgid_program_is_emulated(stage: Stage, mode: int) -> None:
    stage.log.touch()
    stage.log.chmod(0o666)
    stage.program.chmod(mode)
    job = replace(stage.job("x"), uid=1000)
    (outcome,) = stage.run(job)
    told = Told.parse(outcome.stdout.decode())
    assert told.machine == FOREIGN
    assert told.ids.endswith(" 0" if mode == 0o4755 else " 1000")
    assert stage.logged() == []
    # By its owner, and without the bit, it is a program as any other.
    assert stage.told().machine == NATIVE
    stage.program.chmod(0o755)
    (outcome,) = stage.run(job)
    assert Told.parse(outcome.stdout.decode()).machine == NATIVE


@needs_root
def test_a_program_that_may_not_be_read_is_looked_at_as_qemu_would(stage: Stage) -> None:
    stage.program.chmod(0o711)
    for flags, status in (("POF", 0), ("PF", None)):
        stage.flags = flags
        (outcome,) = stage.run(replace(stage.job("x"), uid=1000))
        (alone,) = stage.run(replace(stage.job("x"), uid=1000), interpreter=stage.qemu)
        if status == 0:
            assert Told.parse(outcome.stdout.decode()).machine == NATIVE
        else:
            assert outcome == alone


@pytest.mark.parametrize(
    "variable", ["LD_PRELOAD=/lib/x.so", "LOCPATH=/x", "MAID_ACCELERATE=0", "QEMU_CPU=max"]
)
def test_some_variables_mean_qemu(stage: Stage, variable: str) -> None:
    name, _, content = variable.partition("=")
    told = same_as_qemu_alone(stage, *ARGUMENTS, **{name: content, "HOME": "/"})
    assert variable in told.environment
    assert stage.told(**{f"X{name}": content}).machine == NATIVE


@pytest.mark.parametrize("flags", ["POCF", "PF"])
def test_the_rule_about_the_programs_own_path(stage: Stage, flags: str) -> None:
    """`/told` may be what it is called by, in the image, and a link may lead there."""
    stage.flags = flags
    stage.log.touch()
    stage.write("s/told")
    (stage.root / "bin").symlink_to("/")
    (stage.root / "other").hardlink_to(stage.program)
    (stage.root / "copy").mkdir()
    shutil.copy(stage.program, stage.root / "copy" / "told")
    paths = ("/told", "/bin/told", "../told", "/other", "/copy/told")
    jobs = [Job(stage.root, path, ["name", "x"]) for path in paths]
    told = [Told.parse(outcome.stdout.decode()) for outcome in stage.run(*jobs)]
    assert [each.machine for each in told] == [*[NATIVE] * 3, *[FOREIGN] * 2]


def test_a_native_program_can_give_the_work_back(stage: Stage) -> None:
    (stage.store / "emulate").symlink_to("/")
    stage.log.touch()
    own = build_id(stage.foreign)
    told = stage.told("exec", "/dev/.maid/emulate/told", "x")
    assert (told.machine, told.arguments) == (FOREIGN, ("/dev/.maid/emulate/told", "x"))
    assert told.files == (0, 1, 2)
    assert stage.logged() == [("n", own), ("f", own)]
    # Only that path says so.
    (stage.store / "emulated").symlink_to("/")
    assert stage.told("exec", "/dev/.maid/emulated/told", "x").machine == NATIVE
    (stage.root / "link").symlink_to("/dev/.maid/emulate/told")
    assert stage.told("exec", "/link", "x").machine == NATIVE


def test_libraries_for_every_program_mean_qemu(stage: Stage) -> None:
    (stage.root / "etc").mkdir()
    assert stage.told().machine == NATIVE
    (stage.root / "etc" / "ld.so.preload").touch()
    same_as_qemu_alone(stage, *ARGUMENTS)


def test_a_copy_that_was_baked_without_a_store_has_none(stage: Stage) -> None:
    stage.log.touch()
    copy = bake(stage.qemu, stage.arguments, stage.state, stage.front).path
    assert stage.told(interpreter=copy).machine == FOREIGN
    assert stage.logged() == []


# What is not the store, or no record


def move_aside(stage: Stage) -> None:
    stage.store.rename(stage.root / "elsewhere")


def link_to_the_store(stage: Stage) -> None:
    move_aside(stage)
    stage.store.symlink_to("/elsewhere")


def an_image_brings_its_own(stage: Stage) -> None:
    move_aside(stage)
    shutil.copytree(stage.root / "elsewhere", stage.store)


def a_file_in_its_place(stage: Stage) -> None:
    move_aside(stage)
    stage.store.touch()


def a_fifo_in_its_place(stage: Stage) -> None:
    move_aside(stage)
    os.mkfifo(stage.store)


def no_dev(stage: Stage) -> None:
    (stage.root / "dev").rename(stage.root / "elsewhere")


NOT_THE_STORE = [
    *(move_aside, link_to_the_store, an_image_brings_its_own, a_file_in_its_place),
    *(a_fifo_in_its_place, no_dev),
]


@pytest.mark.parametrize("change", NOT_THE_STORE)
def test_what_is_not_the_store_is_ignored(stage: Stage, change: Callable[[Stage], None]) -> None:
    copy = stage.copy()
    assert stage.told(interpreter=copy).machine == NATIVE
    change(stage)
    told = stage.told(*ARGUMENTS, interpreter=copy)
    assert told == stage.told(*ARGUMENTS, interpreter=stage.qemu)


@pytest.mark.parametrize("field", ["device", "inode"])
def test_both_device_and_inode_must_be_the_stores(stage: Stage, field: str) -> None:
    stage.log.touch()
    for bit in (0, 33):
        identity = stage.identity
        other = replace(identity, **{field: getattr(identity, field) ^ 1 << bit})
        assert stage.told(interpreter=stage.copy(other)).machine == FOREIGN
    assert stage.logged() == []
    assert stage.told(interpreter=stage.copy()).machine == NATIVE


def record_gone(path: Path) -> None:
    path.unlink()


def record_is_a_link(path: Path) -> None:
    path.rename(path.with_name("other"))
    path.symlink_to("other")


def record_is_a_fifo(path: Path) -> None:
    fifo(path)


def record_is_a_directory(path: Path) -> None:
    directory(path)


def record_is_empty(path: Path) -> None:
    path.write_bytes(b"")


def record_is_half_written(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def record_is_too_long(path: Path) -> None:
    path.write_bytes(record(*["Ax"] * 2000))


def record_of_another_program(path: Path) -> None:
    path.rename(path.with_name(path.name[:-2] + "00"))


def record_in_capitals(path: Path) -> None:
    path.rename(path.with_name(path.name.upper()))


def record_leads_out_of_the_store(path: Path) -> None:
    path.write_bytes(record(program="/launcher"))


def no_ids(path: Path) -> None:
    shutil.rmtree(path.parent)


NOT_A_RECORD = [
    *(record_gone, record_is_a_link, record_is_a_fifo, record_is_a_directory, record_is_empty),
    *(record_is_half_written, record_is_too_long, record_of_another_program, record_in_capitals),
    *(record_leads_out_of_the_store, no_ids),
]


@pytest.mark.parametrize("change", NOT_A_RECORD)
def test_what_is_no_record_is_ignored(stage: Stage, change: Callable[[Path], None]) -> None:
    stage.log.touch()
    own = build_id(stage.foreign)
    assert any(character in own.hex() for character in "abcdef")
    change(stage.record)
    same_as_qemu_alone(stage, *ARGUMENTS)
    assert stage.logged() == [("e", own)]


def test_the_largest_record_is_read_and_a_longer_one_is_not(stage: Stage) -> None:
    filler = "A" + "x" * (4096 - len(record()) - 2)
    stage.write(filler)
    assert stage.record.stat().st_size == 4096
    assert stage.told().machine == NATIVE
    stage.write(filler + "x")
    assert stage.told().machine == FOREIGN


def test_a_program_without_build_id_is_emulated(stage: Stage) -> None:
    """Here one whose note is another's, so that all else stays as it is."""
    stage.log.touch()
    data = stage.program.read_bytes()
    at = data.index(b"\x04\0\0\0\x14\0\0\0\3\0\0\0GNU\0")
    stage.program.write_bytes(data[: at + 12] + b"XYZ\0" + data[at + 16 :])
    same_as_qemu_alone(stage, *ARGUMENTS)
    assert stage.logged() == [("e", b"")]


# The log


def test_the_log_says_what_ran(stage: Stage) -> None:
    own = build_id(stage.foreign)
    stage.log.touch()
    stage.told()
    stage.write("Ax")
    stage.told("x")
    stage.told(LD_PRELOAD="x")
    stage.write(program="/dev/.maid/t/bin/gone")
    stage.told()
    assert stage.logged() == [("n", own), ("e", own), ("e", own), ("n", own), ("f", own)]


@pytest.mark.parametrize("size", [1, 16, 21, 22, 23, 64])
def test_the_log_has_the_build_id_as_far_as_there_is_room(stage: Stage, size: int) -> None:
    """With a program that QEMU refuses, so that any build-id can be had."""
    own = bytes(range(1, size + 1))
    magic = bytearray(bytes(Elf(segments=[(NOTE, note(own), 4)])))
    magic[6] = 1
    stage.program.write_bytes(bytes(magic))
    stage.log.touch()
    stage.run(stage.job())
    assert stage.logged() == [("e", own[:22])]
    (stage.store / "id" / own.hex()).write_bytes(record())
    assert stage.told().machine == NATIVE
    assert stage.logged()[1:] == [("n", own[:22])]


def log_is_a_fifo(path: Path) -> None:
    os.mkfifo(path)


def log_is_a_link(path: Path) -> None:
    path.with_name("other").touch()
    path.symlink_to("other")


def log_is_a_directory(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize("make", [log_is_a_fifo, log_is_a_link, log_is_a_directory])
def test_what_is_no_log_is_left_alone(stage: Stage, make: Callable[[Path], None]) -> None:
    make(stage.log)
    assert stage.told().machine == NATIVE
    stage.record.unlink()
    same_as_qemu_alone(stage, *ARGUMENTS)
    other = stage.log.with_name("other")
    assert not other.exists() or other.stat().st_size == 0


@needs_root
def test_a_log_that_may_not_be_written_changes_nothing(stage: Stage) -> None:
    stage.log.touch(0o644)
    (outcome,) = stage.run(replace(stage.job(), uid=1000))
    assert Told.parse(outcome.stdout.decode()).machine == NATIVE
    assert stage.logged() == []


def test_a_process_that_may_write_no_files_is_not_killed_by_the_log(stage: Stage) -> None:
    stage.log.touch()

    def run(limit: int) -> Told:
        arguments = ["launcher", "limit", str(RLIMIT_FSIZE), str(limit), "/told"]
        (outcome,) = stage.run(Job(stage.root, "/launcher", arguments))
        assert outcome.status == 0, signal.Signals(-(outcome.status or 0))
        return Told.parse(outcome.stdout.decode())

    for limit in (0, 1, 23, 24, 4096):
        assert run(limit).machine == NATIVE
    assert stage.logged() == []
    assert run(1 << 30).machine == NATIVE
    assert len(stage.logged()) == 1
    os.truncate(stage.log, (2 << 20) // 24 * 24)
    assert run(2 << 20).machine == NATIVE
    assert stage.log.stat().st_size == (2 << 20) // 24 * 24


def test_processes_that_start_at_once_log_whole_records(stage: Stage) -> None:
    stage.log.touch()
    own = build_id(stage.foreign)
    script = "for i in 1 2 3 4 5 6 7 8; do (for j in 1 2 3 4 5; do /told exit 0; done) & done; wait"
    (stage.root / "dev" / "null").touch()
    shutil.copy(rootfs(f"busybox-{host().architecture}") / "bin/busybox", stage.root / "sh")
    (outcome,) = stage.run(Job(stage.root, "/sh", ["sh", "-c", script]))
    assert outcome.status == 0
    assert stage.logged() == [("n", own)] * 40


# Little room


def test_no_more_is_needed_than_qemu_needs(stage: Stage) -> None:
    """With the smallest stack and the fewest descriptors that QEMU itself runs with. With 16 KiB of
    stack it runs at some addresses and not at others."""
    stage.record.unlink()
    for resource, values in (
        (RLIMIT_STACK, [size << 10 for size in (8, 24, 32, 64, 256)]),
        (RLIMIT_NOFILE, list(range(3, 8))),
    ):
        jobs = [
            Job(stage.root, "/launcher", ["launcher", "limit", str(resource), str(value), "/told"])
            for value in values
        ]
        alone = [outcome.status for outcome in stage.run(*jobs, interpreter=stage.qemu)]
        assert 0 in alone
        assert [outcome.status for outcome in stage.run(*jobs)] == alone


# What it costs


RUN = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[1].split(":")
import own_instance
from own_instance import Job
line = bytes.fromhex(sys.argv[2])
(outcome,) = own_instance.run([line], [Job(Path(sys.argv[3]), "/told", ["told"])])
sys.stdout.buffer.write(outcome.stdout)
"""


def calls_before_qemu(stage: Stage, tmp_path: Path, interpreter: Path) -> list[str]:
    """The system calls that the front makes: those between the execution and QEMU's first, brk."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("needs strace")
    target = TARGETS[FOREIGN]
    line = own_instance.line("q", target.magic, target.mask, str(interpreter), stage.flags)
    own = str(Path(__file__).parent)
    output = tmp_path / "calls"
    # One file for each process: lines of several are not cut in two.
    command = [strace, "-ff", "-y", "-s", "200", "-o", output, sys.executable, "-c", RUN]
    subprocess.run([*command, own, line.hex(), stage.root], check=True, timeout=120)
    for file in tmp_path.glob("calls.*"):
        calls = file.read_text().splitlines()
        starts = [n for n, each in enumerate(calls) if each.startswith('execve("/told"')]
        file.unlink()
        if starts:
            break
    assert calls[starts[0]].endswith(" = 0")
    calls = calls[starts[0] + 1 :]
    return calls[: next(n for n, each in enumerate(calls) if each.startswith("brk("))]


def summary(calls: list[str]) -> list[str]:
    """Each call's name, the path it is about, and whether it failed."""
    made = []
    for each in calls:
        path = re.search(r'"([^"]*)"', each)
        failed = " failed" if " = -1 " in each else ""
        made.append(f"{each.split('(')[0]} {path[1] if path and '/' in path[1] else ''}{failed}")
    return made


def test_a_start_without_a_store_costs_one_call_that_fails(stage: Stage, tmp_path: Path) -> None:
    copy = stage.copy()
    move_aside(stage)
    calls = summary(calls_before_qemu(stage, tmp_path, copy))
    assert calls == ["newfstatat /dev/.maid failed"]
    unaware = bake(stage.qemu, stage.arguments, stage.state, stage.front).path
    for interpreter in (unaware, stage.qemu):
        assert calls_before_qemu(stage, tmp_path, interpreter) == []


def test_a_start_that_finds_no_record_costs_four_calls(stage: Stage, tmp_path: Path) -> None:
    stage.record.unlink()
    place = f"/dev/.maid/id/{build_id(stage.foreign).hex()}"
    around = ["newfstatat /dev/.maid", "newfstatat /dev/.maid-log failed"]
    calls = summary(calls_before_qemu(stage, tmp_path, stage.copy()))
    assert calls == [*around, "pread64 ", f"openat {place} failed"]
    stage.flags = "PF"
    calls = summary(calls_before_qemu(stage, tmp_path, stage.copy()))
    look = ["openat /told", "fstat ", "pread64 ", "close "]
    assert calls == [*around, *look, f"openat {place} failed"]


def test_the_program_is_passed_to_qemu_as_the_kernel_left_it(stage: Stage, tmp_path: Path) -> None:
    """After a native program that could not be executed: nothing is open but what was."""
    gone(stage.native)
    calls = calls_before_qemu(stage, tmp_path, stage.copy())
    moved = [each for each in calls if each.startswith(("lseek", "read("))]
    flags = [each for each in calls if "F_SETFD" in each]
    opened = [each for each in calls if each.startswith("openat") and " = -1" not in each]
    closed = [each for each in calls if each.startswith("close(")]
    assert moved == []
    assert [re.search(r"F_SETFD, (\w+)", each)[1] for each in flags] == ["FD_CLOEXEC", "0"]  # type: ignore[index]
    assert len(opened) == len(closed)
    assert all("O_CLOEXEC" in each for each in opened)
