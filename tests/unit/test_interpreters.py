"""maid.emulation.interpreters, identity and ratings, with the machine's QEMU and with programs that
only pretend.

The pretenders are compiled from PRETENDER: what they do stands in a file beside them.
"""

import contextlib
import hashlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from maid.config import Config, Emulation, TargetSettings
from maid.emulation import identity, interpreters, ratings
from maid.emulation.identity import Interpreter, Kind, identify
from maid.emulation.interpreters import (
    IdentityCache,
    best,
    find,
    identify_all,
    rate,
    search_places,
)
from maid.emulation.ratings import KNOWN_BAD, Level, Rating
from maid.emulation.targets import TARGETS, own

PRETENDER = r"""
#include <dirent.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

extern char **environ;

int main(int argc, char **argv)
{
    char name[4096], text[4096] = "";
    snprintf(name, sizeof name, "%s.does", argv[0]);
    FILE *file = fopen(name, "r");
    char mode = fgetc(file);
    text[fread(text, 1, sizeof text - 1, file)] = 0;
    fclose(file);
    if (argc != 2 || strcmp(argv[1], "--version"))
        return 99;
    switch (mode) {
    case 'f':                       /* flood */
        for (;;)
            if (puts("much ado about nothing") < 0)
                return 0;
    case 'd':                       /* say it all, and stay */
        fputs(text, stdout);
        fclose(stdout);
        fclose(stderr);
        mode = 'h';
        /* fall through */
    case 'c':                       /* a child that keeps the pipe */
        if (mode == 'c' && fork() == 0)
            pause();
        /* fall through */
    case 'h':                       /* hang; say who we are */
        snprintf(name, sizeof name, "%s.pid", argv[0]);
        file = fopen(name, "w");
        fprintf(file, "%d", getpgrp());
        fclose(file);
        if (mode == 'h')
            pause();
        return 0;
    case 'k':
        raise(SIGSEGV);
    case 'r': {                     /* report what we were given */
        int count = 0;
        DIR *open_files = opendir("/proc/self/fd");
        while (readdir(open_files))
            count++;
        /* less . and .. and the directory itself */
        printf("descriptors %d", count - 3);
        for (char **each = environ; *each; each++)
            printf(" %s", *each);
        printf(" cwd %s\n", getcwd(name, sizeof name));
        return 0;
    }
    case 'e':
        fputs(text, stderr);
        return 3;
    }
    fputs(text, stdout);
    return 0;
}
"""

QEMUS = sorted(Path("/usr/bin").glob("qemu-*-static"))
needs_qemu = pytest.mark.skipif(not QEMUS, reason="needs qemu-user-static")


@pytest.fixture(scope="session")
def compiled(tmp_path_factory) -> dict[bool, Path]:
    """The pretender, static and dynamic."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    directory = tmp_path_factory.mktemp("pretender")
    (directory / "pretender.c").write_text(PRETENDER)
    made = {}
    for static in (True, False):
        made[static] = directory / ("static" if static else "dynamic")
        subprocess.run(
            [
                compiler,
                *(["-static"] if static else []),
                "-o",
                made[static],
                directory / "pretender.c",
            ],
            check=True,
            timeout=120,
        )
    return made


Pretend = Callable[..., Path]


@pytest.fixture
def pretend(compiled, tmp_path) -> Pretend:
    """Make a program called `name` that prints `text`, or does what `mode` says."""

    def pretend(name: str, text: str = "", mode: str = "p", static: bool = True) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(compiled[static], path)
        path.with_name(path.name + ".does").write_text(mode + text)
        return path

    return pretend


@pytest.fixture
def alone(monkeypatch) -> None:
    """Nothing is looked for but what the configuration names."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(interpreters, "_DIRECTORIES", ())
    monkeypatch.setattr(interpreters, "ROSETTA", ())


def configured(*places: Path, **targets: Path) -> Config:
    settings = {name: TargetSettings(interpreter=path) for name, path in targets.items()}
    return Config(emulation=Emulation(interpreters=places, target=settings))


def says(target: str, version: str) -> str:
    return f"qemu-{target} version {version} (Debian 1:{version}+dfsg-1)\nCopyright (c)\n"


def is_refused(interpreter: Interpreter, *words: str) -> None:
    assert interpreter.rating.level is Level.UNUSABLE
    assert interpreter.rating.reason.startswith(f"{interpreter.path} ")
    for word in words:
        assert word in interpreter.rating.reason
    assert not interpreter.usable_with_f


# What a program is


@needs_qemu
def test_the_machines_qemu_is_identified() -> None:
    for path in QEMUS:
        interpreter = identify(path)
        emulator = path.name.removeprefix("qemu-").removesuffix("-static")
        wanted = tuple(each for each in TARGETS if TARGETS[each].emulator == emulator)
        assert (interpreter.name, interpreter.targets) == (Kind.QEMU, wanted)
        assert interpreter.static
        assert interpreter.machine == own()
        assert interpreter.version >= (5,)
        dotted = ".".join(map(str, interpreter.version))
        assert interpreter.version_text.startswith(f"qemu-{emulator} version {dotted}")
        assert interpreter.usable_with_f
        status = path.stat()
        assert (interpreter.device, interpreter.inode) == (status.st_dev, status.st_ino)
        assert (interpreter.size, interpreter.mtime_ns) == (status.st_size, status.st_mtime_ns)
    assert interpreter.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_target_is_what_the_program_says_not_what_it_is_called(pretend) -> None:
    interpreter = identify(pretend("qemu-arm", says("aarch64", "9.1.2")))
    assert interpreter.targets == ("aarch64",)
    assert interpreter.version == (9, 1, 2)
    assert rate(interpreter, TARGETS["arm"]).level is Level.UNUSABLE
    assert "emulates aarch64, not arm" in rate(interpreter, TARGETS["arm"]).reason


@pytest.mark.parametrize(
    ("text", "kind", "targets", "version"),
    [
        (says("i386", "10.0"), Kind.QEMU, ("i386", "i486"), (10, 0)),
        (
            "Box64 with Dynarec v0.2.4 nogit built on Jan 1 2024 00:00:00\n",
            Kind.BOX64,
            ("x86_64",),
            (0, 2, 4),
        ),
        ("Box64 arm64 v0.3.6 nogit\n", Kind.BOX64, ("x86_64",), (0, 3, 6)),
        ("Box86 with Dynarec v0.3.2 x\n", Kind.BOX32, ("i386", "i486"), (0, 3, 2)),
        ("FEX-Emu (FEX-2306) 11.08\n", Kind.FEX, ("x86_64", "i386", "i486"), (2306,)),
    ],
)
def test_each_maker_is_known_by_its_version(pretend, text, kind, targets, version) -> None:
    interpreter = identify(pretend("it", text))
    assert (interpreter.name, interpreter.targets, interpreter.version) == (kind, targets, version)


def test_a_dynamic_one_is_never_usable_with_f(pretend) -> None:
    interpreter = identify(pretend("qemu-arm", says("arm", "9.0.0"), static=False))
    assert interpreter.rating.level is Level.GOOD
    assert not interpreter.static
    assert not interpreter.usable_with_f


def test_a_position_is_fixed_or_not(pretend, compiled) -> None:
    assert identify(pretend("qemu-arm", says("arm", "9.0.0"))).fixed
    assert not identify(pretend("qemu-sparc", says("sparc", "9.0.0"), static=False)).fixed


def test_a_script_is_refused(tmp_path) -> None:
    path = tmp_path / "qemu-arm"
    path.write_text('#!/bin/sh\nexec qemu-arm-static "$@"\n')
    path.chmod(0o755)
    is_refused(identify(path), "script")


def test_a_program_of_another_architecture_is_refused_and_not_run(tmp_path) -> None:
    other = "riscv64" if own() != "riscv64" else "s390x"
    path = tmp_path / "qemu-arm"
    path.write_bytes(TARGETS[other].probe or b"")
    path.chmod(0o755)
    is_refused(identify(path), f"is a program for {other}, this machine is {own()}")


def test_qemu_system_is_refused(pretend) -> None:
    text = "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)\nCopyright (c)\n"
    is_refused(identify(pretend("qemu-arm", text)), "whole machines", "user mode")


@pytest.mark.parametrize(
    ("text", "mode", "words"),
    [
        ("", "p", ["says nothing"]),
        ("\x1b[31mhello\n", "p", ["'?[31mhello'"]),
        ("qemu-arm version unknown\n", "p", ["no emulator that maid knows"]),
        ("usage\n", "e", ["'usage'", "exits 3"]),
        ("", "k", ["signal 11"]),
        ("", "f", ["does not stop"]),
        ("qemu-arm version " + "9" * 4000, "p", ["no emulator"]),
        ("qemu-nosuch version 9.0.0\n", "p", []),
    ],
)
def test_another_answer_is_refused_in_its_own_words(pretend, text, mode, words) -> None:
    interpreter = identify(pretend("qemu-arm", text, mode))
    if words:
        is_refused(interpreter, *words)
    assert rate(interpreter, TARGETS["arm"]).level is Level.UNUSABLE


def living(group: int) -> list[str]:
    """The processes of a process group, without those that are dead but not yet waited for."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, pgrp, *_ = status.read_text().rpartition(")")[2].split()
            if int(pgrp) == group and state not in "ZX":
                found.append(status.parent.name)
    return found


@pytest.mark.parametrize("mode", ["h", "c", "d"])
def test_one_that_hangs_is_refused_and_nothing_of_it_is_left(pretend, monkeypatch, mode) -> None:
    monkeypatch.setattr(identity, "VERSION_TIMEOUT", 0.5)
    path = pretend("qemu-arm", says("arm", "9.2.0"), mode)
    started = time.monotonic()
    is_refused(identify(path), "did not answer --version within 0.5 s")
    assert time.monotonic() - started < 5
    group = int(path.with_name(path.name + ".pid").read_text())
    for _ in range(100):
        if not living(group):
            break
        time.sleep(0.02)
    assert living(group) == []


def test_it_runs_with_nothing_of_ours(pretend, monkeypatch) -> None:
    monkeypatch.setenv("QEMU_LD_PREFIX", "/somewhere")
    with open("/dev/null") as ours:
        os.set_inheritable(ours.fileno(), True)
        interpreter = identify(pretend("it", mode="r"), trusted=True)
    assert interpreter.version_text == "descriptors 3 LC_ALL=C cwd /"


@pytest.mark.parametrize("what", ["fifo", "directory", "missing", "dangling", "text", "truncated"])
def test_what_is_no_program_is_refused_at_once(tmp_path, compiled, what) -> None:
    path = tmp_path / "qemu-arm"
    match what:
        case "fifo":
            os.mkfifo(path)
        case "directory":
            path.mkdir()
        case "dangling":
            path.symlink_to("nowhere")
        case "text":
            path.write_text("hello")
        case "truncated":
            path.write_bytes(compiled[True].read_bytes()[:70])
    is_refused(identify(path))


# Where they are


def test_places_are_configuration_path_and_distributions(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("PATH", "/opt/bin:relative::/usr/bin:/opt/bin")
    places = search_places(configured(tmp_path))
    assert places[:3] == [tmp_path, Path("/opt/bin"), Path("/usr/bin")]
    assert Path("/usr/libexec/qemu-binfmt") in places
    assert Path("/media/rosetta/rosetta") in places
    assert len(places) == len(set(places))


def test_every_name_is_found_each_file_once(pretend, alone, tmp_path) -> None:
    first = pretend("a/qemu-aarch64-static")
    second = pretend("b/qemu-aarch64")
    built = pretend("b/buildkit-qemu-aarch64")
    (tmp_path / "b/aarch64-binfmt-P").symlink_to(second)
    os.link(first, tmp_path / "b/qemu-aarch64-static")
    pretend("b/qemu-aarch64_be")
    pretend("b/qemu-arm").chmod(0o644)
    (tmp_path / "b/qemu-sparc").symlink_to("nowhere")
    config = configured(tmp_path / "none", tmp_path / "a", tmp_path / "b")
    assert find(TARGETS["aarch64"], config) == [first, second, built]
    assert find(TARGETS["arm"], config) == []
    assert find(TARGETS["sparc"], config) == []


def test_i486_and_i386_are_the_same_emulator(pretend, alone, tmp_path) -> None:
    path = pretend("qemu-i386-static", says("i386", "10.0"))
    found = identify_all(
        [TARGETS["i386"], TARGETS["i486"]], configured(tmp_path), IdentityCache(tmp_path / "state")
    )
    assert [each.path for each in found["i386"]] == [path]
    assert found["i386"] == found["i486"]


def test_others_are_found_for_x86_alone(pretend, alone, tmp_path) -> None:
    box, fex = pretend("box64"), pretend("FEXInterpreter")
    config = configured(tmp_path)
    assert find(TARGETS["x86_64"], config) == [box, fex]
    assert find(TARGETS["i386"], config) == [fex]
    assert find(TARGETS["arm"], config) == []


def test_a_file_that_the_configuration_lists_may_have_any_name(pretend, alone, tmp_path) -> None:
    path = pretend("my-emulator", says("arm", "10.0"))
    found = identify_all(
        [TARGETS["arm"], TARGETS["sparc"]], configured(path), IdentityCache(tmp_path / "state")
    )
    assert [each.path for each in found["arm"]] == [path]
    assert found["sparc"] == []


def test_the_targets_own_interpreter_goes_alone(pretend, alone, tmp_path) -> None:
    pretend("qemu-arm-static", says("arm", "10.0"))
    mine = pretend("mine", says("arm", "9.0"))
    config = configured(tmp_path, arm=mine)
    found = identify_all([TARGETS["arm"]], config, IdentityCache(tmp_path / "state"))
    assert [each.path for each in found["arm"]] == [mine]


def test_the_administrator_may_name_an_unknown_emulator(pretend, alone, tmp_path) -> None:
    path = pretend("mine", "Mine 1.0\n")
    cache = IdentityCache(tmp_path / "state")
    for _ in range(2):
        [interpreter] = identify_all([TARGETS["arm"]], configured(arm=path), cache)["arm"]
        assert (interpreter.name, interpreter.targets) == (Kind.OTHER, ("arm",))
        assert interpreter.sha256
        rating = rate(interpreter, TARGETS["arm"])
        assert rating.level is Level.SUSPECT
        assert "because the configuration says so" in rating.reason
    # Without that word it is nothing, although it is in the cache.
    found = identify_all([TARGETS["arm"]], configured(path), cache)["arm"]
    assert best(found, TARGETS["arm"]) is None


@pytest.mark.parametrize(
    ("text", "mode", "word"),
    [
        (says("aarch64", "9.0.0"), "p", "emulates aarch64, not arm"),
        ("QEMU emulator version 9.0.0\n", "p", "whole machines"),
        ("", "h", "did not answer"),
    ],
)
def test_the_administrators_mistake_is_named(
    pretend, alone, tmp_path, monkeypatch, text, mode, word
) -> None:
    monkeypatch.setattr(identity, "VERSION_TIMEOUT", 0.3)
    path = pretend("mine", text, mode)
    found = identify_all([TARGETS["arm"]], configured(arm=path), IdentityCache(tmp_path))["arm"]
    assert best(found, TARGETS["arm"]) is None
    assert [word in rate(each, TARGETS["arm"]).reason for each in found] == [True]


def test_a_missing_interpreter_of_the_configuration_is_named(alone, tmp_path) -> None:
    config = configured(arm=tmp_path / "none")
    [missing] = identify_all([TARGETS["arm"]], config, IdentityCache(tmp_path))["arm"]
    is_refused(missing, "No such file")


def test_an_unusable_one_is_listed_with_its_reason(pretend, alone, tmp_path) -> None:
    pretend("qemu-arm-static", "QEMU emulator version 9.0.0\n")
    good = pretend("qemu-arm", says("arm", "9.2.0"))
    found = identify_all([TARGETS["arm"]], configured(tmp_path), IdentityCache(tmp_path))["arm"]
    assert [each.rating.level for each in found] == [Level.UNUSABLE, Level.GOOD]
    chosen = best(found, TARGETS["arm"])
    assert chosen is not None
    assert chosen.path == good


# How good they are


def qemu(version: str, target: str = "aarch64", **values) -> Interpreter:
    defaults = {"name": Kind.QEMU, "targets": (target,), "static": True, "machine": "x86_64"}
    numbers = tuple(map(int, version.split(".")))
    return Interpreter(Path(f"/{version}"), version=numbers, **(defaults | values))


@pytest.mark.parametrize("row", KNOWN_BAD, ids=lambda row: f"{row.targets[:1]}{row.since}")
def test_every_known_problem_is_well_formed_and_found(row) -> None:
    assert set(row.targets) | set(row.hosts) <= set(TARGETS)
    assert row.since < row.until
    assert row.level is not Level.UNUSABLE
    assert row.symptom and not row.symptom.endswith(".")
    assert row.sources and all(each.startswith("https://") for each in row.sources)
    for target in row.targets or TARGETS:
        host = row.hosts[0] if row.hosts else "x86_64"
        found = ratings.known(target, row.since, host, (99,), row.fixed_position)
        assert row in found
        assert found[0].level <= row.level
        assert row not in ratings.known(target, row.until, host, (99,), row.fixed_position)


@pytest.mark.parametrize(
    ("interpreter", "kernel", "level", "words"),
    [
        (qemu("10.0.8"), (6, 12), Level.GOOD, ""),
        (qemu("9.2.0"), (6, 12), Level.BAD, "libc-bin"),
        (qemu("8.1.0"), (6, 12), Level.GOOD, "openat2"),
        (qemu("8.1.1"), (6, 12), Level.BAD, "libc-bin"),
        (qemu("7.2.22"), (6, 12), Level.GOOD, "openat2"),
        (qemu("7.2.22", fixed=True), (6, 12), Level.SUSPECT, "now and then"),
        (qemu("7.2.22", fixed=True), (5, 15), Level.GOOD, "openat2"),
        (qemu("4.2"), (6, 12), Level.BAD, "libc-bin"),
        (qemu("10.0.4", "x86_64", machine="aarch64"), (6, 12), Level.SUSPECT, "Go 1.26"),
        (qemu("10.0.4", "x86_64", machine="riscv64"), (6, 12), Level.GOOD, ""),
        (qemu("7.2", "x86_64", machine="aarch64"), (6, 12), Level.SUSPECT, "x86-64-v2"),
        (qemu("7.2.1", "x86_64", machine="aarch64"), (6, 12), Level.GOOD, "openat2"),
        (qemu("5.2.0", "arm"), (6, 12), Level.BAD, "0xffff0000"),
        (qemu("7.2.22", "arm"), (6, 12), Level.SUSPECT, "musl"),
        (qemu("7.2.22", "hexagon"), (6, 12), Level.GOOD, ""),
    ],
)
def test_a_version_is_rated_by_the_worst_that_is_known(interpreter, kernel, level, words) -> None:
    rating = rate(interpreter, TARGETS[interpreter.targets[0]], kernel)
    assert rating.level is level
    assert words in rating.reason
    assert bool(rating.reason) == bool(rating.source) == bool(words)


def test_the_running_kernel_counts_by_default(monkeypatch) -> None:
    release = ["5.15.0-91-generic"]
    uname = os.uname()

    def older() -> os.uname_result:
        return os.uname_result((uname[0], uname[1], release[0], uname[3], uname[4]))

    monkeypatch.setattr(os, "uname", older)
    fixed = qemu("7.2.22", fixed=True)
    assert rate(fixed, TARGETS["aarch64"]).level is Level.GOOD
    release[0] = "6.18.44-fc-v669"
    assert rate(fixed, TARGETS["aarch64"]).level is Level.SUSPECT


def test_best_is_static_then_well_rated_then_qemu_then_new_then_first() -> None:
    arm64 = TARGETS["aarch64"]
    good, newer, bad = qemu("8.0.5"), qemu("10.0.0"), qemu("9.2.0")
    dynamic = qemu("10.1.0", static=False)
    other = Interpreter(Path("/o"), Kind.OTHER, ("aarch64",), (99,), static=True)
    refused = qemu("11.0", rating=Rating(Level.UNUSABLE, "for a reason"))
    wrong = qemu("11.0", "arm")
    assert best([], arm64) is None
    assert best([refused, wrong], arm64) is None
    assert best([dynamic, bad], arm64) is bad
    assert best([refused, wrong, bad, good], arm64) is good
    assert best([good, newer], arm64) is newer
    assert best([other, good], arm64) is good
    assert best([dynamic], arm64) is dynamic
    same = qemu("10.0.0", inode=7)
    assert best([newer, same], arm64) is newer


# What is kept


@pytest.fixture
def runs(monkeypatch) -> list[Path]:
    """The paths that were identified by reading and running them."""
    seen: list[Path] = []

    def counted(path: Path, trusted: bool = False) -> Interpreter:
        seen.append(path)
        return identify(path, trusted)

    monkeypatch.setattr(interpreters, "identify", counted)
    return seen


def test_a_second_start_runs_nothing_and_says_the_same(pretend, alone, tmp_path, runs) -> None:
    pretend("bin/qemu-arm-static", says("arm", "9.2.1"))
    pretend("bin/qemu-riscv64", says("riscv64", "10.0.1"), static=False)
    config, targets = configured(tmp_path / "bin"), [TARGETS["arm"], TARGETS["riscv64"]]
    first = identify_all(targets, config, IdentityCache(tmp_path / "state"))
    assert len(runs) == 2
    second = identify_all(targets, config, IdentityCache(tmp_path / "state"))
    assert len(runs) == 2
    assert second == first
    assert os.listdir(tmp_path / "state") == ["interpreters.json"]


def test_a_changed_program_is_identified_anew(pretend, alone, tmp_path, runs) -> None:
    path = pretend("bin/qemu-arm-static", says("arm", "9.2.1"))
    config, cache = configured(tmp_path / "bin"), IdentityCache(tmp_path / "state")
    identify_all([TARGETS["arm"]], config, cache)
    # As a package manager does it: another file under the same name.
    upgraded = pretend("new", says("arm", "10.0.0"))
    path.with_name(path.name + ".does").write_text("p" + says("arm", "10.0.0"))
    upgraded.rename(path)
    for again in (cache, IdentityCache(tmp_path / "state")):
        [interpreter] = identify_all([TARGETS["arm"]], config, again)["arm"]
        assert interpreter.version == (10, 0, 0)
    assert len(runs) == 2


@pytest.mark.parametrize("seconds", [-1, 1])
def test_another_time_of_change_is_another_program(pretend, alone, tmp_path, runs, seconds) -> None:
    path = pretend("bin/qemu-arm-static", says("arm", "9.2.1"))
    config, cache = configured(tmp_path / "bin"), IdentityCache(tmp_path / "state")
    identify_all([TARGETS["arm"]], config, cache)
    modified = path.stat().st_mtime_ns + seconds * 10**9
    os.utime(path, ns=(modified, modified))
    [interpreter] = identify_all([TARGETS["arm"]], config, cache)["arm"]
    assert interpreter.mtime_ns == modified
    assert runs == [path, path]


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\x00", b"[]", b'{"format":0,"machine":"x86_64","interpreters":[]}'],
)
def test_a_corrupt_cache_is_ignored_and_rewritten(pretend, alone, tmp_path, runs, content) -> None:
    pretend("bin/qemu-arm-static", says("arm", "9.2.1"))
    config = configured(tmp_path / "bin")
    state = tmp_path / "state"
    state.mkdir()
    (state / "interpreters.json").write_bytes(content)
    for _ in range(2):
        [interpreter] = identify_all([TARGETS["arm"]], config, IdentityCache(state))["arm"]
        assert interpreter.version == (9, 2, 1)
    assert len(runs) == 1


def test_a_cache_of_another_machine_is_not_believed(pretend, alone, tmp_path, runs) -> None:
    pretend("bin/qemu-arm-static", says("arm", "9.2.1"))
    config, state = configured(tmp_path / "bin"), tmp_path / "state"
    identify_all([TARGETS["arm"]], config, IdentityCache(state))
    saved = msgspec.json.decode((state / "interpreters.json").read_bytes())
    saved["machine"] = "s390x"
    (state / "interpreters.json").write_bytes(msgspec.json.encode(saved))
    identify_all([TARGETS["arm"]], config, IdentityCache(state))
    assert len(runs) == 2


def test_what_is_unusable_is_tried_again(pretend, alone, tmp_path, runs, monkeypatch) -> None:
    path = pretend("bin/qemu-arm-static", says("arm", "9.2.1"), "h")
    monkeypatch.setattr(identity, "VERSION_TIMEOUT", 0.3)
    config, state = configured(tmp_path / "bin"), tmp_path / "state"
    [interpreter] = identify_all([TARGETS["arm"]], config, IdentityCache(state))["arm"]
    is_refused(interpreter, "did not answer")
    monkeypatch.setattr(identity, "VERSION_TIMEOUT", 10.0)
    path.with_name(path.name + ".does").write_text("p" + says("arm", "9.2.1"))
    [interpreter] = identify_all([TARGETS["arm"]], config, IdentityCache(state))["arm"]
    assert interpreter.usable_with_f


def test_a_cache_that_cannot_be_written_stops_nothing(pretend, alone, tmp_path) -> None:
    pretend("bin/qemu-arm-static", says("arm", "9.2.1"))
    (tmp_path / "file").write_text("")
    cache = IdentityCache(tmp_path / "file" / "state")
    found = identify_all([TARGETS["arm"]], configured(tmp_path / "bin"), cache)
    assert found["arm"][0].version == (9, 2, 1)
    with pytest.raises(OSError):
        cache.save()


@needs_qemu
def test_the_machines_qemu_serves_every_target_it_is_there_for(tmp_path, runs) -> None:
    cache = IdentityCache(tmp_path)
    found = identify_all(TARGETS.values(), Config(), cache)
    assert set(found) == set(TARGETS)
    emulators = {path.name.removeprefix("qemu-").removesuffix("-static") for path in QEMUS}
    for target in TARGETS.values():
        if target.emulator in emulators:
            chosen = best(found[target.name], target)
            assert chosen is not None, target.name
            assert chosen.usable_with_f
    ran = len(runs)
    assert ran == len(set(runs))
    assert identify_all(TARGETS.values(), Config(), IdentityCache(tmp_path)) == found
    assert [path for path in runs[ran:] if identify(path).usable_with_f] == []
