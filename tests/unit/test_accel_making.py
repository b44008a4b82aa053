"""What the records of a set say that is no tool's own business."""

from __future__ import annotations

from pathlib import Path

import pytest

from maid.acceleration import records
from maid.acceleration.making import Maker
from maid.acceleration.model import MACHINES, Place, Tool
from maid.acceleration.selecting import Selection


@pytest.mark.parametrize(
    ("foreign", "rule"),
    [
        ("arm64", records.UTF8_LOCALE),
        ("armhf", records.UTF8_LOCALE),
        ("s390x", records.C_LOCALE),
    ],
)
def test_locales_of_another_byte_order_are_not_read(
    tmp_path: Path, foreign: str, rule: records.Rule
) -> None:
    """glibc refuses the files (locale/loadlocale.c compares a magic number), and the program would
    go on in the C locale: another order in sort, other characters in grep."""
    place = Place("abcde", tmp_path, MACHINES["amd64"], MACHINES[foreign])
    tool = Tool("sort", "coreutils", "/usr/bin/sort", "why", rules=(records.UTF8_LOCALE,))
    assert list(Maker(place, tmp_path, tmp_path, Selection())._rules(tool)) == [rule]
