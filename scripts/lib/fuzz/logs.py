"""What a step can write itself and maid reads: the records of maid-profile, and the counts of
programs. Whatever is in them, there is a table to be shown."""

from __future__ import annotations

import math

from maid.acceleration import profile
from maid.steps import programs

RECORD = b"e 1 4711 2500 300 1024 /usr/bin/cc1\0"


class Logs:
    """The target."""

    # fmt: off
    words = (
        b"\0", b"\n", b" ", b"n ", b"E 1 ", b"-1 ", b'9' * 400 + b' ', b"\xff", b"full\n",
        b"e - ", b'9' * 5000, b"1_0 ", b"\xd9\xa3 ", b"n abcd 3\n", b"0 ",
    )
    # fmt: on

    def __enter__(self) -> Logs:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def seeds(self) -> list[bytes]:
        big = b"n 1 2 " + b"9" * 400 + b" 1 1 x\0"
        return [
            RECORD * 3,
            b"N 0 1 0 0 0 a b\0" + RECORD,
            b"n abcd 3\ne - 4\nf abcd 1\nfull\n",
            big,
        ]

    def one(self, data: bytes) -> object:
        usages = profile.parse(data)
        total = profile.total(usages)
        assert math.isfinite(total.cpu) and total.cpu >= 0 and total.peak >= 0
        told = programs.parse(data.decode(errors="surrogateescape"))
        programs.sentence(programs.by_tool(told, {}), told)
        return min(len(usages), 4), min(len(told.native), 4), told.complete
