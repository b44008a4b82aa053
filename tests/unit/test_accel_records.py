"""Records say in both directions what the front reads (daemon/native/front_rules.c)."""

from __future__ import annotations

import pytest

from maid.acceleration import records
from maid.acceleration.records import RecordError, Rule

PROGRAM = "/dev/.maid/abcde/bin/0123/xz"


def test_a_record_is_strings_ended_by_zero_bytes_the_program_last() -> None:
    rules = (records.argument("-fplugin="), records.plugin("lto.so", "/dev/.maid/abcde/lto.so"))
    assert records.encode(PROGRAM, rules) == (
        b"maid-native 1\0a-fplugin=\0plto.so\0/dev/.maid/abcde/lto.so\0=" + PROGRAM.encode() + b"\0"
    )


@pytest.mark.parametrize(
    "rules",
    [
        (),
        (records.UTF8_LOCALE, records.NEEDS_ARGUMENT),
        (records.same_build("/usr/lib/liblzma.so.5", "ab" * 20), records.option_letters("gP")),
        (records.plugin("a", "/dev/.maid/x"), records.exists("/etc/x"), records.environment("A*")),
        (records.some("-c"), records.first("get"), records.insert("-q"), records.missing("/p")),
        (records.setting("GOARCH", "arm64"), records.setting("A", "")),
        (records.file_size(12345), records.same_program("/usr/bin/perl")),
        (records.same_file("/usr/lib/llvm-19/bin/clang"),),
    ],
)
def test_what_was_written_is_read_again(rules: tuple[Rule, ...]) -> None:
    assert records.decode(records.encode(PROGRAM, rules)) == (PROGRAM, rules)


@pytest.mark.parametrize("program", ["/usr/bin/xz", "/dev/.maid", "/dev/.maid/a\0b", "xz"])
def test_a_program_outside_the_store_is_refused(program: str) -> None:
    with pytest.raises(RecordError):
        records.encode(program, ())


def test_a_record_longer_than_the_front_reads_is_refused() -> None:
    records.encode(PROGRAM, (records.argument("x" * 3900),))
    with pytest.raises(RecordError, match="more than 4096"):
        records.encode(PROGRAM, (records.argument("x" * 4096),))


@pytest.mark.parametrize("cut", range(0, 60, 7))
def test_half_a_record_is_none(cut: int) -> None:
    whole = records.encode(PROGRAM, (records.argument("-fplugin="),))
    with pytest.raises(RecordError):
        records.decode(whole[: min(cut, len(whole) - 1)])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"maid-native 2\0=/dev/.maid/x\0",
        b"maid-native 1\0=/dev/.maid/x",
        b"maid-native 1\0\0=/dev/.maid/x\0",
        b"maid-native 1\0pa\0=/dev/.maid/x\0"[:-2],
        b"maid-native 1\0a\xff\0=/dev/.maid/x\0",
    ],
)
def test_what_is_no_record_is_refused(data: bytes) -> None:
    with pytest.raises(RecordError):
        records.decode(data)
