"""What is laid out for the deep checks, what is left out and why, and how a failure is
explained."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from maid.emulation import deep, deep_build
from maid.emulation.deep import Command, Programs, explain, prepare
from maid.emulation.probes import Run
from maid.emulation.targets import TARGETS
from maid.errors import MaidError

TESTS = {test.name: test for test in deep.tests()}


@pytest.fixture
def built(tmp_path: Path) -> Programs:
    """Files in the places of the compiled programs; nothing here executes them."""
    directory = tmp_path / "built"
    directory.mkdir()
    for name in ("checks", "dynamic", "ld-maid.so", "libdeep.so"):
        (directory / name).write_bytes(name.encode())
    return Programs(TARGETS["arm"], directory)


def names(prepared: deep.Prepared) -> set[str]:
    return {command.name for command in prepared.commands}


def own_ids(monkeypatch: pytest.MonkeyPatch) -> dict[str, int | None]:
    """Let fchown succeed without root, and record the owner by the file's content."""
    owners: dict[str, int | None] = {}

    def fchown(descriptor: int, uid: int, gid: int) -> None:
        assert uid == gid
        owners[Path(f"/proc/self/fd/{descriptor}").readlink().name.split("-")[0].lstrip(".")] = uid

    monkeypatch.setattr("os.fchown", fchown)
    return owners


def test_a_machine_that_runs_the_programs_itself_is_checked_in_everything(
    built: Programs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_ids(monkeypatch)
    prepared = prepare(tmp_path / "root", built, flags=None)
    assert names(prepared) == set(TESTS)
    assert prepared.skipped == {}


def test_only_what_the_entrys_flags_promise_is_checked(
    built: Programs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_ids(monkeypatch)
    prepared = prepare(tmp_path / "root", built, flags="F")
    assert set(TESTS) - names(prepared) == {"argv0", "setuid", "unreadable"}
    assert prepared.skipped["setuid"] == "the entry has no flag C"
    assert names(prepare(tmp_path / "root", built, flags="FPC")) == set(TESTS), "C implies O"


def test_64_bit_targets_are_not_checked_for_32_bit_limits(
    built: Programs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_ids(monkeypatch)
    wide = Programs(TARGETS["aarch64"], built.directory)
    prepared = prepare(tmp_path / "root", wide, flags=None)
    assert set(prepared.skipped) == {"largemap", "directory"}
    assert names(prepared) == set(TESTS) - {"largemap", "directory"}


def test_with_one_user_id_what_needs_two_is_left_out(
    built: Programs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr("os.fchown", refuse)
    prepared = prepare(tmp_path / "root", built, flags=None)
    assert set(prepared.skipped) == {"setuid", "unreadable"}
    assert not list((tmp_path / "root").glob(".*")), "no temporary file may stay"


def test_where_the_kernel_ignores_setuid_it_is_left_out(
    built: Programs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_ids(monkeypatch)

    class NoSuid:
        f_flag = os.ST_NOSUID

    monkeypatch.setattr("os.statvfs", lambda path: NoSuid)
    prepared = prepare(tmp_path / "root", built, flags=None)
    assert set(prepared.skipped) == {"setuid"}
    assert "nosuid" in prepared.skipped["setuid"]


def test_under_no_new_privs_setuid_is_left_out(built: Programs, tmp_path: Path) -> None:
    """In a process of its own: no_new_privs cannot be taken back."""
    program = (
        "import ctypes, sys; from pathlib import Path; from maid.emulation import deep\n"
        "from maid.emulation.targets import TARGETS\n"
        "assert ctypes.CDLL(None).prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS\n"
        "built = deep.Programs(TARGETS['arm'], Path(sys.argv[1]))\n"
        "print(deep.prepare(Path(sys.argv[2]), built, flags=None).skipped['setuid'])\n"
    )
    arguments = [sys.executable, "-c", program, built.directory, tmp_path / "root"]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60)
    assert "no_new_privs" in done.stdout, done.stderr


def test_what_is_laid_out_has_the_modes_the_checks_need(
    built: Programs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owners = own_ids(monkeypatch)
    root = tmp_path / "root"
    for _ in range(2):  # the second time over the first
        prepare(root, built, flags=None, owner=7, owner_outside=100007)
    modes = {path.name: path.stat().st_mode & 0o7777 for path in root.iterdir()}
    assert modes == {
        **dict.fromkeys(("checks", "dynamic", "ld-maid.so", "libdeep.so", "script"), 0o755),
        "setuid": 0o4755,
        "unreadable": 0o711,
    }
    assert owners == {"setuid": 100007}
    assert (root / "script").read_bytes().startswith(b"#!/checks ")


def test_setuid_is_proved_by_two_different_ids(
    built: Programs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_ids(monkeypatch)
    prepared = prepare(tmp_path / "root", built, flags=None, caller=5, owner=7)
    command = next(command for command in prepared.commands if command.name == "setuid")
    assert (command.uid, command.expected_output) == (5, b"ids: 5 7\n")


@pytest.fixture
def command() -> Command:
    return Command(TESTS["threads"], ("/checks", "threads"), "/checks", 0, b"threads: ok\n")


def test_the_right_answer_needs_no_words(command: Command) -> None:
    assert explain(command, Run(ms=1, output=b"threads: ok\n")) == ""


@pytest.mark.parametrize(
    ("ran", "words"),
    [
        (Run(ms=1, output=b"threads: a sum is wrong\n", status=1), "'threads: a sum is wrong'"),
        (Run(ms=1, output=b"", status=0), "'nothing' instead of 'threads: ok'"),
        (Run(ms=1, output=b"threads: ok\n", status=3), "exited with 3"),
        (Run(ms=1, signal=signal.SIGSEGV, errors=b"qemu: oh\n"), "SIGSEGV (qemu: oh)"),
        (Run(ms=1, signal=99), "signal 99"),
        (Run(ms=1, timeout=True, signal=9), "no answer within 30 s"),
        (Run(ms=1, errno=errno.ENOENT, failed_call="execve"), "no F"),
        (Run(ms=1, errno=errno.ENOEXEC, failed_call="execve"), "exec format error"),
        (Run(ms=1, errno=errno.EPERM, failed_call="chroot"), "chroot: Operation not permitted"),
    ],
)
def test_every_failure_says_what_happened_and_what_it_means(
    command: Command, ran: Run, words: str
) -> None:
    said = explain(command, ran)
    assert words in said
    assert said.startswith(command.test.description)
    assert said.endswith(command.test.failure)


def test_every_test_says_what_its_failure_means() -> None:
    assert all(test.description and test.failure for test in deep.tests())
    assert {name for name, test in TESTS.items() if not test.required} == {"largemap", "directory"}


def test_a_target_without_a_compiler_is_an_error_with_a_way_out(tmp_path: Path) -> None:
    assert not deep.supported(TARGETS["alpha"])
    with pytest.raises(MaidError, match="alpha") as caught:
        deep.programs(TARGETS["alpha"], tmp_path)
    assert "--deep" in caught.value.hint


def test_every_common_architecture_has_programs() -> None:
    common = "i386 x86_64 arm aarch64 loongarch64 mips64el ppc64le riscv64 s390x"
    assert all(deep.supported(TARGETS[name]) for name in common.split())


def test_without_ziglang_the_error_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MaidError, match="ziglang") as caught:
        deep.programs(TARGETS["aarch64"], tmp_path)
    assert "pip install" in caught.value.hint
    assert not list(tmp_path.iterdir())


def test_a_failed_build_leaves_nothing_and_says_the_compilers_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ziglang")
    sources = tmp_path / "sources"
    sources.mkdir()
    for name in ("checks.c", "dynamic.c", "library.c", "loader.c"):
        (sources / name).write_text("#error no program\n")
    monkeypatch.setattr(deep_build, "SOURCES", sources)
    state = tmp_path / "state"
    with pytest.raises(MaidError, match="no program"):
        deep.programs(TARGETS["aarch64"], state)
    assert [path.name for path in (state / "deep").iterdir()] == [".lock"]


def test_other_sources_make_other_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ziglang")
    sources = tmp_path / "sources"
    sources.mkdir()
    monkeypatch.setattr(deep_build, "SOURCES", sources)
    keys = set()
    for text in ("one", "two"):
        (sources / "checks.c").write_text(text)
        keys.add(deep_build._key())
    assert len(keys) == 2


def test_kept_programs_are_taken_without_compiling_and_others_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ziglang")
    store = tmp_path / "deep"
    (store / "an-old-key" / "arm").mkdir(parents=True)
    (store / ".build-killed").mkdir()

    def compiled(command: list[str], *_: object) -> None:
        output = Path(command[command.index("-o") + 1])
        output.write_bytes(b"program")

    monkeypatch.setattr(deep_build, "_run", compiled)
    first = deep.programs(TARGETS["arm"], tmp_path)
    assert {path.name for path in first.directory.iterdir()} == {
        *("checks", "dynamic", "ld-maid.so", "libdeep.so")
    }
    assert {path.name for path in store.iterdir()} == {".lock", first.directory.parent.name}

    def refuse(*_: object) -> None:
        raise AssertionError("compiled again")

    monkeypatch.setattr(deep_build, "_run", refuse)
    assert deep.programs(TARGETS["arm"], tmp_path) == first
