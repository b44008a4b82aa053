"""The front obeys every rule of a record, and leaves a record alone that is not right to the last
byte.

The rules themselves, compiled with address and undefined-behaviour sanitizers (front/harness.c), in
a root file system of their own.
"""

import os
import random
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import compiled
import pytest
from front_elf import NOTE, Elf, note
from front_store import PROGRAM, record
from test_front_elf import SANITIZED

from maid.acceleration import records

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can change its root")
ASIDE = "aside"
GO = PROGRAM


class Judge:
    """The front's rules, running: `judge` answers for one program start after the other, in the
    root file system `root`, which has the linker plug-ins of a store."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "dev/.maid/t/lib").mkdir(parents=True)
        for plugin in ("so", "lib/liblto_plugin.so", "lib/other.so"):
            (root / "dev/.maid/t" / plugin).touch()
        self.process = subprocess.Popen(
            [compiled.harness(compiled.HOST, *SANITIZED), "rules", root],
            env={"ASAN_OPTIONS": "detect_leaks=0"},  # that needs /proc
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def __call__(
        self,
        record: bytes,
        argv: tuple[str, ...] = ("name",),
        envp: tuple[str, ...] = (),
        path: str = "/usr/bin/program",
    ) -> str:
        assert self.process.stdin and self.process.stdout and self.process.stderr
        for data in (record, strings(("interpreter", path, *argv)), strings(envp)):
            self.process.stdin.write(struct.pack("=I", len(data)) + data)
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise AssertionError(self.process.stderr.read().decode())
        return os.fsdecode(line).rstrip("\n")


def strings(values: tuple[str, ...]) -> bytes:
    return b"".join(value.encode() + b"\0" for value in values)


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Judge]:
    made = Judge(tmp_path_factory.mktemp("rules") / "rootfs")
    yield made
    _, errors = made.process.communicate(timeout=60)
    assert (made.process.returncode, errors) == (0, b"")


@pytest.fixture
def inside(judge: Judge, tmp_path: Path) -> Path:
    """A directory of the judge's root file system for one test; `seen` tells its path there."""
    made = judge.root / tmp_path.name
    made.mkdir()
    return made


def seen(judge: Judge, path: Path) -> str:
    """The path as the rules see it. (Not `resolve`: links are for them to follow.)"""
    return f"/{path.relative_to(judge.root)}"


# rules, the arguments after argv[0], environment, verdict
ARGUMENTS: list[tuple[tuple[str, ...], tuple[str, ...], str]] = [
    ((), (), GO),
    ((), ("anything", "-at", "all"), GO),
    (("a-fplugin=",), ("x", "-fplugin=y"), ASIDE),
    (("a-fplugin=",), ("-fplugin=",), ASIDE),
    (("a-fplugin=",), ("-fplugin", "x-fplugin="), GO),
    (("a@",), ("@file",), ASIDE),
    (("a@",), ("file@",), GO),
    (("a",), (), GO),
    (("a",), ("",), ASIDE),
    (("A-march=native",), ("-march=native",), ASIDE),
    (("A-march=native",), ("-march=native2", "-march=nativ", "-march"), GO),
    (("A",), ("",), ASIDE),
    (("A",), ("x",), GO),
    (("cnative",), ("-march=native",), ASIDE),
    (("cnative",), ("native",), ASIDE),
    (
        ("cnative",),
        (
            "nativ",
            "natinative",
        ),
        ASIDE,
    ),
    (("cnative",), ("nativ", "ative", "nat", "ive"), GO),
    (("oP",), ("-xP",), ASIDE),
    (("oP",), ("--Peter",), ASIDE),
    (("oP",), ("+P",), ASIDE),
    (("oP",), ("0P",), ASIDE),
    (("oP",), ("9P",), ASIDE),
    (("oP",), ("P", "xP", "/P", ":P", "", "-", "-p"), GO),
    (("oPQ",), ("-xQ",), ASIDE),
    (("o",), ("-x",), GO),
    (("m",), (), ASIDE),
    (("m",), ("",), GO),
    (("+-c",), (), ASIDE),
    (("+-c",), ("x", "-d"), ASIDE),
    (("+-c",), ("x", "-cc"), GO),
    (("+-c", "+-S"), ("-S",), GO),
    (("+-S", "+-c"), ("-S",), GO),
    (("+-c", "+-S"), ("-d",), ASIDE),
    (("1update",), (), ASIDE),
    (("1update",), ("update",), GO),
    (("1update",), ("updates",), ASIDE),
    (("1update",), ("x", "update"), ASIDE),
    (("1update", "1list"), ("list",), GO),
    (("1list", "1update"), ("list",), GO),
    (("1update", "+-q"), ("update",), ASIDE),
    (("1update", "+-q"), ("update", "-q"), GO),
    (("iARG",), (), f"{GO}|insert ARG"),
    (("i",), (), f"{GO}|insert "),
    (("iARG", "iARG"), (), ASIDE),
    (("iARG", "Ax"), ("x",), ASIDE),
]


@pytest.mark.parametrize(("rules", "arguments", "verdict"), ARGUMENTS)
def test_rules_about_the_arguments(
    judge: Judge, rules: tuple[str, ...], arguments: tuple[str, ...], verdict: str
) -> None:
    assert judge(record(*rules), ("name", *arguments)) == verdict
    # argv[0] is the program's name and no argument.
    if verdict == GO:
        for name in arguments:
            assert judge(record(*rules), (name, *arguments)) == verdict


ENVIRONMENT: list[tuple[tuple[str, ...], tuple[str, ...], str]] = [
    (("eTAR_OPTIONS",), ("TAR_OPTIONS=-v",), ASIDE),
    (("eTAR_OPTIONS",), ("A=b", "TAR_OPTIONS=-v"), ASIDE),
    (("eTAR_OPTIONS",), ("TAR_OPTIONS=", "TAR_OPTIONS"), GO),
    (("eTAR_OPTIONS",), ("TAR_OPTION=x", "TAR_OPTIONSS=x", "XTAR_OPTIONS=x"), GO),
    (("EGOARCH=arm64",), ("A=b", "GOARCH=arm64"), GO),
    (("EGOARCH=arm64",), (), ASIDE),
    (("EGOARCH=arm64",), ("GOARCH=arm64be",), ASIDE),
    (("EGOARCH=arm64",), ("GOARCH=arm", "GOARCH"), ASIDE),
    (("EGOARCH=arm64",), ("XGOARCH=arm64", "GOARCHX=arm64", "GO=arm64", "GOARCH="), ASIDE),
    (("EGOARCH=arm64",), ("GOARCHX=amd64", "GOARCH=arm64", "GO=x"), GO),
    (("EGOARCH=arm64",), ("GOARCH=arm64", "GOARCH=arm64"), GO),
    (("EGOARCH=arm64",), ("GOARCH=amd64", "GOARCH=arm64"), ASIDE),
    (("EGOARCH=arm64",), ("GOARCH=arm64", "GOARCH="), ASIDE),
    (("EA=",), ("A=",), GO),
    (("EA=",), ("A=b",), ASIDE),
    (("EA=b=c",), ("A=b=c",), GO),
    (("EA=b=c",), ("A=b",), ASIDE),
    (("EA",), ("A", "A=", "A=A"), ASIDE),
    (("E",), ("",), ASIDE),
    (("ePERL*",), ("PERL5OPT=x",), ASIDE),
    (("ePERL*",), ("PERL=x",), ASIDE),
    (("ePERL*",), ("PERL5OPT=", "PER=x", "PERL"), GO),
    (("eA*B",), ("AXB=1",), GO),
    (("e*",), ("A=1",), ASIDE),
    (("e*",), (), GO),
]
LOCALES: list[tuple[str, tuple[str, ...], str]] = [
    ("l8", (), GO),
    ("lc", (), GO),
    *(
        (rule, (f"{name}={value}",), GO)
        for rule in ("l8", "lc")
        for name in ("LANG", "LC_ALL")
        for value in ("C", "POSIX", "")
    ),
    *(
        (rule, (name,), verdict)
        for name in ("LANG=C.UTF-8", "LC_ALL=en_US.utf8", "LC_X=de.UTF8@euro", "LC_CTYPE=a.Utf-8")
        for rule, verdict in (("l8", GO), ("lc", ASIDE))
    ),
    *(
        (rule, (f"{name}={value}",), ASIDE)
        for rule in ("l8", "lc")
        for name in ("LANG", "LC_ALL", "LC_TIME")
        for value in (
            "en_US",
            "de_DE@euro",
            "de_DE.ISO-8859-1",
            "ja_JP.eucJP",
            "c",
            "CC",
            "POSIX.1",
            "zh.UTF-16",
            "x.utf-88",
            "x.utf",
            "x.utf-",
            "x.",
            "UTF-8",
            "x@y.UTF-8",
            "x.u-tf8",
            "x.utf8.y",
            "x.UT",
        )
    ),
    ("l8", ("LC_ALL=C", "LANG=en_US"), ASIDE),
    ("l8", ("LANGUAGE=de", "LOCALE=de", "XLANG=de"), GO),
    ("l7", (), ASIDE),
    ("l", (), ASIDE),
    ("l8x", (), ASIDE),
]


@pytest.mark.parametrize(
    ("rules", "environment", "verdict"),
    [*ENVIRONMENT, *(((rule,), environment, verdict) for rule, environment, verdict in LOCALES)],
)
def test_rules_about_the_environment(
    judge: Judge, rules: tuple[str, ...], environment: tuple[str, ...], verdict: str
) -> None:
    assert judge(record(*rules), envp=environment) == verdict


LOADERS = (
    *("LD_PRELOAD", "LD_LIBRARY_PATH", "LD_AUDIT", "LD_BIND_NOW", "LD_DEBUG", "LD_X", "LD_"),
    *("GLIBC_TUNABLES", "GCONV_PATH", "LOCPATH"),
)


@pytest.mark.parametrize("name", LOADERS)
def test_what_the_loader_and_the_c_library_obey_means_qemu(judge: Judge, name: str) -> None:
    assert judge(record(), envp=("A=b", f"{name}=x")) == ASIDE
    assert judge(record(), envp=(f"{name}=", f"X{name}=x", name)) == GO


def test_what_only_the_linker_reads_does_not(judge: Judge) -> None:
    assert judge(record(), envp=("LD_RUN_PATH=/x", "LDFLAGS=x", "LD=ld", "GCONV_PATHS=x")) == GO
    assert judge(record(), envp=("LD_RUN_PATH2=/x",)) == ASIDE


@pytest.mark.parametrize("name", ["QEMU_STRACE", "QEMU_LD_PREFIX", "QEMU_CPU", "QEMU_"])
def test_a_variable_of_qemus_means_qemu(judge: Judge, name: str) -> None:
    assert judge(record(), envp=(f"{name}=x",)) == ASIDE
    assert judge(record(), envp=(f"{name}=",)) == ASIDE
    assert judge(record(), envp=(f"X{name}=x", "QEMU=x")) == GO


def test_the_documented_switch_means_qemu(judge: Judge) -> None:
    for value in ("0", "off", "no"):
        assert judge(record(), envp=(f"MAID_ACCELERATE={value}",)) == ASIDE
    for value in ("", "1", "on", "yes", "auto", "00", "offs", "n"):
        assert judge(record(), envp=(f"MAID_ACCELERATE={value}",)) == GO
    assert judge(record(), envp=("MAID_ACCELERATEX=0", "XMAID_ACCELERATE=0")) == GO


def test_rules_about_files(judge: Judge, inside: Path) -> None:
    there, link, dangling = inside / "there", inside / "link", inside / "dangling"
    there.mkdir()
    (there / "file").touch()
    link.symlink_to("there")
    dangling.symlink_to("gone")
    for path in (there, link, link / "file"):
        assert judge(record(f"x{seen(judge, path)}")) == ASIDE
        assert judge(record(f"X{seen(judge, path)}")) == GO
    for path in (dangling, inside / "gone", there / "x" / "y", there / "file" / "x"):
        assert judge(record(f"x{seen(judge, path)}")) == GO
        assert judge(record(f"X{seen(judge, path)}")) == ASIDE


def test_the_rule_about_the_build_of_a_library(judge: Judge, inside: Path) -> None:
    own = bytes(range(20))
    library, link, fifo = inside / "lib.so.1.2", inside / "lib.so.1", inside / "fifo"
    library.write_bytes(bytes(Elf(segments=[(NOTE, note(own), 4)])))
    (inside / "none").write_bytes(bytes(Elf()))
    link.symlink_to(library.name)
    os.mkfifo(fifo)
    for path in (library, link):
        rule = f"b{seen(judge, path)}"
        assert judge(record(rule, own.hex())) == GO
        for other in (own[:-1], own + b"x", b"", bytes(20)):
            assert judge(record(rule, other.hex())) == ASIDE
        assert judge(record(rule, own.hex().upper())) == ASIDE
        # The second string is a build-id, whatever letter it begins with.
        assert judge(record(rule, own.hex(), "Ax"), ("name", "x")) == ASIDE
    for path in (fifo, inside, inside / "gone", inside / "none"):
        assert judge(record(f"b{seen(judge, path)}", own.hex())) == ASIDE
        assert judge(record(f"b{seen(judge, path)}", "")) == ASIDE


def test_the_rule_about_the_programs_own_path(judge: Judge, inside: Path) -> None:
    program = inside / "perl"
    program.touch()
    for directory in ("linked", "hard", "other"):
        (inside / directory).mkdir()
    (inside / "linked" / "perl").symlink_to("../perl")
    (inside / "hard" / "perl").hardlink_to(program)
    (inside / "perl5").hardlink_to(program)
    (inside / "other" / "perl").touch()
    (inside / "alias").symlink_to("linked")
    same = [program, inside / "linked/perl", inside / "hard/perl", inside / "alias/perl"]
    other = [inside / "perl5", inside / "other/perl", inside / "gone/perl", inside]
    texts = ["", "perl", "/", f"{seen(judge, program)}/"]

    def verdict(path: str, rule: str) -> str:
        return judge(record(f"s{rule}"), path=path)

    own = seen(judge, program)
    for path in (seen(judge, each) for each in same):
        assert verdict(path, own) == verdict(own, path) == GO
    for path in (*(seen(judge, each) for each in other), *texts):
        assert verdict(path, own) == verdict(own, path) == ASIDE


SUFFIX, NATIVE_PLUGIN = "liblto_plugin.so", "/dev/.maid/t/lib/liblto_plugin.so"
PLUGIN = (f"p{SUFFIX}", NATIVE_PLUGIN)


@pytest.mark.parametrize("option", ["-plugin", "--plugin"])
def test_the_rule_about_the_linkers_plugin(judge: Judge, option: str) -> None:
    foreign = "/usr/libexec/gcc/aarch64-linux-gnu/14/liblto_plugin.so"

    def verdict(*arguments: str, rules: tuple[str, ...] = PLUGIN) -> str:
        return judge(record(*rules), ("ld", *arguments))

    assert verdict("a.o", option, foreign, "b.o") == f"{GO}|replace 3 {NATIVE_PLUGIN}"
    assert verdict(option, "liblto_plugin.so") == f"{GO}|replace 2 {NATIVE_PLUGIN}"
    assert verdict("a.o", foreign) == GO
    assert verdict(foreign, option[:-1], foreign) == GO
    assert verdict(f"{option}-opt=x") == GO
    # Without a rule for it the native program cannot have it; nor can "=" forms be changed.
    assert verdict(option, "/usr/lib/other.so") == ASIDE
    assert verdict(option, foreign + ".0") == ASIDE
    # Nor can what the store does not have be loaded.
    lacking = (f"p{SUFFIX}", "/dev/.maid/t/lib/lacking.so")
    assert verdict(option, foreign, rules=lacking) == ASIDE
    assert verdict(foreign, rules=lacking) == GO
    assert verdict(f"{option}={foreign}") == ASIDE
    assert verdict("x", option) == ASIDE
    # Without any such rule the tool is not one that takes plug-ins.
    assert verdict(option, foreign, rules=()) == GO
    # More than one, and more than one rule.
    two = (*PLUGIN, "pother.so", "/dev/.maid/t/lib/other.so")
    assert (
        verdict(option, "/x/other.so", option, foreign, rules=two)
        == f"{GO}|replace 2 /dev/.maid/t/lib/other.so|replace 4 {NATIVE_PLUGIN}"
    )
    assert verdict(*[option, foreign] * 4).count("replace") == 4
    assert verdict(*[option, foreign] * 5) == ASIDE
    assert verdict(option, option, "x") == ASIDE


def test_a_plugin_must_be_the_stores(judge: Judge) -> None:
    for path in ("/usr/lib/liblto_plugin.so", "/dev/.maid/../x", ""):
        assert judge(record("pliblto_plugin.so", path), ("ld",)) == ASIDE


WHOLE = record("Ax", "pso", "/dev/.maid/t/so", "iy")


def test_a_record_that_is_cut_short_or_goes_on_is_ignored(judge: Judge) -> None:
    assert judge(WHOLE) == f"{GO}|insert y"
    for size in range(len(WHOLE)):
        assert judge(WHOLE[:size]) == ASIDE, size
    for more in (b"\0", b"Az\0", b"x", b"=/dev/.maid/t/bin/other\0"):
        assert judge(WHOLE + more) == ASIDE, more


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0",
        b"maid-native 1\0",
        b"maid-native 2\0" + record().partition(b"\0")[2],
        b"maid-native 11\0" + record().partition(b"\0")[2],
        b"maid-native\0" + record().partition(b"\0")[2],
        b"\0" + record(),
        record(""),
        record("zunknown"),
        record("B/usr/lib/x", "00"),
        record("mx"),
        record("pso"),
        record("b/usr/lib/x"),
        record(program=""),
        record(program="/usr/bin/xz"),
        record(program="dev/.maid/t/bin/xz"),
        record(program="/dev/.maid"),
        record(program="/dev/.maidx/bin/xz"),
        record(program="/dev/.maid/../../bin/xz"),
        record(program="/dev/.maid/t/.."),
        bytes(4096),
        b"A" * 4096,
        b"\xff" * 100,
    ],
)
def test_a_record_that_is_not_right_is_ignored(judge: Judge, content: bytes) -> None:
    assert judge(content, ("name", "argument")) == ASIDE


def test_a_record_as_large_as_may_be_is_read(judge: Judge) -> None:
    filler = "A" + "x" * (4096 - len(record()) - 2)
    assert len(record(filler)) == 4096
    assert judge(record(filler)) == GO
    assert judge(record(filler), ("name", filler[1:])) == ASIDE
    many = ["Ax"] * ((4096 - len(record())) // 3)
    assert judge(record(*many), ("name", *"y" * 2000)) == GO


def test_damaged_records_are_never_read_beyond_their_end(judge: Judge) -> None:
    numbers = random.Random(2)
    whole = record(
        *("a-f", "Ax", "c+", "oxy", "eA", "eB*", "l8", "x/x", "X/", "b/bin/sh", "00", "m"),
        *(*PLUGIN, "iq", "+-", "1-a", "s/usr/bin/program"),
    )
    taken = 0
    for _ in range(4000):
        data = bytearray(whole if numbers.random() < 0.5 else WHOLE)
        for _ in range(numbers.randint(0, 3)):
            data[numbers.randrange(len(data))] = numbers.choice(b"\0\0=aAcoelxXbsmpi+1/.-\xff")
        if numbers.random() < 0.3:
            del data[numbers.randrange(len(data)) :]
        verdict = judge(bytes(data), ("name", "-a", "-plugin", "so"), ("A=", "LANG=C"))
        assert verdict == ASIDE or verdict.startswith("/dev/.maid/")
        taken += verdict != ASIDE
    assert taken > 100


def test_what_the_store_writes_is_what_the_front_reads(judge: Judge, inside: Path) -> None:
    """records.py, rule by rule: whether it goes and steps aside where it says."""
    own = bytes(range(20))
    (inside / "library").write_bytes(bytes(Elf(segments=[(NOTE, note(own), 4)])))
    library = seen(judge, inside / "library")
    size = (inside / "library").stat().st_size
    bad_sizes = (f"{size - 1}", f"{size}0", f"{size + (1 << 64)}", f"{size}x", f"-{size}", "x", "")
    cases: list[tuple[records.Rule, tuple[str, ...], tuple[str, ...], str]] = [
        (records.argument("-f"), ("-fx",), (), ASIDE),
        (records.argument_is("-f"), ("-f",), (), ASIDE),
        (records.argument_with("f"), ("xfx",), (), ASIDE),
        (records.option_letters("f"), ("-xf",), (), ASIDE),
        (records.environment("F"), (), ("F=1",), ASIDE),
        (records.UTF8_LOCALE, (), ("LANG=x",), ASIDE),
        (records.C_LOCALE, (), ("LANG=x.UTF-8",), ASIDE),
        (records.exists(library), (), (), ASIDE),
        (records.missing(f"{library}x"), (), (), ASIDE),
        (records.NEEDS_ARGUMENT, (), (), ASIDE),
        (records.some("-c"), (), (), ASIDE),
        (records.first("x"), ("y",), (), ASIDE),
        (records.same_build(library, bytes(20).hex()), (), (), ASIDE),
        (records.argument("-f"), ("f",), (), GO),
        (records.argument_is("-f"), ("-fx",), (), GO),
        (records.argument_with("f"), ("x",), (), GO),
        (records.option_letters("f"), ("f",), (), GO),
        (records.environment("F"), (), ("F=",), GO),
        (records.UTF8_LOCALE, (), ("LANG=x.UTF-8",), GO),
        (records.C_LOCALE, (), ("LANG=C",), GO),
        (records.exists(f"{library}x"), (), (), GO),
        (records.missing(library), (), (), GO),
        (records.NEEDS_ARGUMENT, ("x",), (), GO),
        (records.some("-c"), ("-cx",), (), GO),
        (records.first("x"), ("x",), (), GO),
        (records.same_build(library, own.hex()), (), (), GO),
        (records.same_program(library), (), (), GO),
        (records.same_program("/library"), (), (), ASIDE),
        (records.same_file(library), (), (), GO),
        (records.same_file("/library"), (), (), ASIDE),
        (records.file_size(size), (), (), GO),
        *((records.Rule("z", text), (), (), ASIDE) for text in bad_sizes),
        (records.insert("x"), (), (), f"{GO}|insert x"),
        (
            records.plugin(SUFFIX, NATIVE_PLUGIN),
            ("-plugin", SUFFIX),
            (),
            f"{GO}|replace 2 {NATIVE_PLUGIN}",
        ),
    ]
    for rule, arguments, environment, verdict in cases:
        written = records.encode(PROGRAM, (rule,))
        assert judge(written, ("name", *arguments), environment, library) == verdict, rule
