"""Inputs for fuzz targets: how bytes become choices, and how other bytes are made of them.

A target takes bytes, whatever makes them: atheris, the driver here, a file that is to be repeated.
One that needs something with a structure (a call, an entry) has `Choices` make it of the bytes, so
that every input there is can be saved, changed and repeated.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Protocol, TypeVar

Thing = TypeVar("Thing")

MAX_SIZE = 16384
"""Bytes of the largest input that is made."""


class Target(Protocol):
    """What is fuzzed. It is a context: what it needs is made on entry and gone afterwards."""

    words: Sequence[bytes]
    """What means something to it, to be put into inputs."""

    def __enter__(self) -> Target: ...

    def __exit__(self, *_: object) -> None: ...

    def seeds(self) -> list[bytes]:
        """Inputs to begin with."""

    def one(self, data: bytes) -> object:
        """Try one input; what came of it, in a few words, equal for what is alike. Any exception is
        a finding."""


class Choices:
    """Decisions, made by the bytes of an input one after another; 0 and "no" when they run out."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def number(self, limit: int) -> int:
        """A number below `limit`."""
        size = max(1, ((limit - 1).bit_length() + 7) // 8)
        piece = self.data[self.at : self.at + size]
        self.at += size
        return int.from_bytes(piece, "big") % limit

    def chance(self, of: int) -> bool:
        """Yes once in `of` times."""
        return self.number(of) == of - 1

    def choice(self, things: Sequence[Thing]) -> Thing:
        """One of these."""
        return things[self.number(len(things))]

    def some(self, limit: int) -> bytes:
        """Up to `limit` bytes as they are."""
        size = self.number(limit + 1)
        piece = self.data[self.at : self.at + size]
        self.at += size
        return piece

    def rest(self) -> bytes:
        """All that was not used yet."""
        piece, self.at = self.data[self.at :], len(self.data)
        return piece


ODD = bytes([0, 1, 2, 3, 4, 8, 10, 0x7F, 0x80, 0xFE, 0xFF, *b'"\\{[/:-='])


def changed(chance: random.Random, corpus: Sequence[bytes], words: Sequence[bytes]) -> bytes:
    """One of the corpus with a few small changes; now and then bytes out of nowhere."""
    if chance.randrange(16) == 0:
        return chance.randbytes(chance.randrange(300))
    data = bytearray(chance.choice(corpus))
    for _ in range(chance.randint(1, 5)):
        at = chance.randrange(len(data) + 1)
        length = chance.randint(1, 8)
        match chance.randrange(9):
            case 0:
                data[at : at + 1] = bytes([chance.randrange(256)])
            case 1:
                data[at : at + 1] = bytes([chance.choice(ODD)])
            case 2:
                data[at:at] = bytes([chance.choice(ODD)]) * length
            case 3:
                del data[at : at + length]
            case 4:
                data[at : at + length] = chance.choice(words) if words else b""
            case 5:
                data[at:at] = chance.choice(words) if words else b"\0"
            case 6:
                other = chance.choice(corpus)
                start = chance.randrange(len(other) + 1)
                data[at:at] = other[start : start + chance.randint(1, 64)]
            case 7 if chance.randrange(4) == 0:
                del data[at:]
            case 8 if chance.randrange(8) == 0:
                data[at:at] = bytes(data[at : at + length]) * chance.randrange(200)
            case _ if at < len(data):
                data[at] ^= 1 << chance.randrange(8)
    return bytes(data[:MAX_SIZE])
