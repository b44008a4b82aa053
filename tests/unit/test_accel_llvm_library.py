"""What is changed in LLVM's library is one jump, and only where it is what is expected."""

from __future__ import annotations

from pathlib import Path

import pytest

from maid.acceleration import llvm
from maid.acceleration.model import MACHINES, Place
from maid.acceleration.relocate import RelocationError

PLACE = Place("abcde", Path("/set"), MACHINES["amd64"], MACHINES["arm64"])

COMPARE, JUMP = b"\x83\xf9\x05", b"\x0f\x85\x01\x02\x03\x04"
REST = b"\x41\x81\xffabcd\x0f\x85abcd\x48\x89\xf7\xe8abcd\xe8abcd\xe8abcd"


def test_folding_of_128_bits_is_jumped_over() -> None:
    data = b"before" + COMPARE + JUMP + REST + b"after"
    changed = llvm.folds_no_quad(data, PLACE)
    assert changed == b"before" + COMPARE + b"\x90\xe9\x01\x02\x03\x04" + REST + b"after"


@pytest.mark.parametrize("data", [b"", COMPARE + JUMP, (COMPARE + JUMP + REST) * 2])
def test_another_library_is_not_changed(data: bytes) -> None:
    with pytest.raises(RelocationError, match="128-bit"):
        llvm.folds_no_quad(data, PLACE)
