"""What maid-profile writes becomes a table of programs."""

import pytest

from maid.acceleration import profile
from maid.acceleration.profile import Kind, Usage


def records(*lines: str) -> bytes:
    return b"".join(line.encode() + b"\0" for line in lines)


def test_the_starts_of_a_program_are_added_up() -> None:
    data = records(
        "e 1 10 1000000 500000 2048 /bin/sh",
        "e 0 11 250000 0 0 /bin/sh",
        "e 1 12 250000 500000 4096 /bin/sh",
    )
    (found,) = profile.parse(data)
    assert found == Usage("/bin/sh", Kind.EMULATED, 2, 1.5, 1.0, 4 << 20, 0)
    assert found.cpu == 2.5


def test_the_most_expensive_program_is_first() -> None:
    data = records("e 1 1 5 0 0 /a", "n 1 2 9 0 0 /b", "h 1 3 0 7 0 /c")
    assert [usage.name for usage in profile.parse(data)] == ["/b", "/c", "/a"]


def test_native_and_emulated_starts_of_a_program_stand_apart() -> None:
    """It may step aside, for example for an option."""
    data = records("n 1 1 5 0 0 /usr/bin/ld", "e 1 2 9 0 0 /usr/bin/ld")
    assert [(usage.kind, usage.starts) for usage in profile.parse(data)] == [
        (Kind.EMULATED, 1),
        (Kind.NATIVE, 1),
    ]


def test_a_look_at_a_running_process_counts_until_it_ends() -> None:
    looks = ("E 1 7 100 0 0 /bin/x", "E 1 7 200 0 0 /bin/x")
    (running,) = profile.parse(records(*looks))
    assert (running.user, running.starts, running.unfinished) == (200e-6, 1, 1)
    (ended,) = profile.parse(records(*looks, "e 1 7 300 0 0 /bin/x"))
    assert (ended.user, ended.starts, ended.unfinished) == (300e-6, 1, 0)


def test_names_may_hold_anything_but_zero_bytes() -> None:
    (found,) = profile.parse(b"e 1 1 0 0 0 /a b\nc\xff\0")
    assert found.name == "/a b\nc\udcff"


@pytest.mark.parametrize(
    "line", ["", "e", "e 1 1 0 0 0", "q 1 1 0 0 0 /x", "e x 1 0 0 0 /x", "e 1 1 -5 0 0 /x"]
)
def test_records_that_make_no_sense_count_nothing(line: str) -> None:
    assert profile.parse(records(line)) == []


def test_a_record_that_was_cut_off_counts_nothing() -> None:
    assert profile.parse(b"e 1 1 5 0 0 /x\0e 1 2 5") == profile.parse(b"e 1 1 5 0 0 /x\0")


def test_totals_by_kind() -> None:
    found = profile.parse(records("e 1 1 3000000 0 1 /a", "n 1 2 0 1000000 9 /b", "n 1 3 0 0 0 /c"))
    native = profile.total(found, Kind.NATIVE)
    assert (native.starts, native.cpu, native.peak) == (2, 1.0, 9 << 10)
    assert profile.total(found).cpu == 4.0
    assert profile.total([]).cpu == 0


def test_numbers_without_end_are_no_record() -> None:
    """The step can write to the file as well (scripts/fuzz logs)."""
    assert profile.parse(records(f"n 1 2 {'9' * 400} 1 1 /x", f"n 1 2 1 1 {1 << 63} /x")) == []
