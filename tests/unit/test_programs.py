"""What becomes of the front's log: counts by tool, whatever stands in the file."""

import pytest

from maid.steps import programs
from maid.steps.programs import Programs


def test_starts_are_counted_by_build_id() -> None:
    parsed = programs.parse("e - 12\nn 00ff 3\nn - 1\n")
    assert parsed == Programs({b"\x00\xff": 3, b"": 1}, 12, True)


def test_what_failed_natively_was_run_by_qemu() -> None:
    assert programs.parse("e - 1\nf aa 2\nn aa 5\nf bb 1\n") == Programs({b"\xaa": 3}, 4, True)


def test_a_full_log_is_told() -> None:
    parsed = programs.parse("n aa 1\nfull\n")
    assert not parsed.complete
    assert programs.sentence({"xz": 1}, parsed).endswith(", and more than could be counted")


@pytest.mark.parametrize(
    "text", ["", "\n\n", "n", "n aa", "n zz 1", "n aa x", "n aa 1 2", "q aa 1", "e\0 - 1"]
)
def test_lines_that_make_no_sense_count_nothing(text: str) -> None:
    assert programs.parse(text) == Programs({}, 0, True)


def test_tools_of_several_builds_are_one_and_unknown_ones_have_their_id() -> None:
    counted = Programs({b"\x01": 2, b"\x02": 3, b"\x03": 9}, 0, True)
    native = programs.by_tool(counted, {b"\x01": "xz", b"\x02": "xz"})
    assert list(native.items()) == [("03", 9), ("xz", 5)]


def test_the_sentence_names_the_most_frequent() -> None:
    native = {f"tool{number}": 30 - number for number in range(10)}
    text = programs.sentence(native, Programs({}, 7, True))
    assert text.startswith("255 programs ran natively (30 tool0, 29 tool1, ")
    assert text.endswith("23 tool7, 2 more tools), 7 under QEMU")
