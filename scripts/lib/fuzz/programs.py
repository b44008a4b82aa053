"""The ELF reader: any bytes are read, or an ElfError with words; a file as its bytes; and the
build-id is the one that the front finds, which is another reader of the same (front_elf.c), running
with sanitizers."""

from __future__ import annotations

import os
import random
import resource
import struct
import subprocess
from pathlib import Path

import compiled
import front_elf
import test_front_elf

from fuzz.driver import shape
from maid import elf

SANITIZED = ("-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
REAL = ("/bin/true", "/bin/sh", "/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1")
HEAD = 2048
"""Bytes of a real program that are kept as a seed: all headers and notes are in them."""


def unlimited() -> None:
    """The address sanitizer reserves more than any program uses."""
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


class Programs:
    """The target."""

    # fmt: off
    words = (
        b"\x7fELF", b"GNU\0", b"\xff\xff\xff\xff", b"\0\0\0\x80", b"\4\0\0\0", b"\0\0\0\4",
        b"\3\0\0\0", b"\0\0\0\3", b"\x38\0", b"\x20\0", b'\xff' * 8, b"\1\1\1", b"\2\2\1",
    )
    # fmt: on

    def __enter__(self) -> Programs:
        self.file = os.memfd_create("program")
        self.front = subprocess.Popen(
            [compiled.harness(compiled.HOST, *SANITIZED), "ids"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            preexec_fn=unlimited,
        )
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.file)
        assert self.front.stdin
        self.front.stdin.close()
        assert self.front.wait(30) == 0

    def seeds(self) -> list[bytes]:
        numbers = random.Random(1)
        made = [test_front_elf.damaged(numbers) for _ in range(40)]
        for bits in (32, 64):
            for order in "<>":
                notes = front_elf.note(bytes(range(20)), order=order)
                segments = [(1, b"code", 4), (4, notes, 4), (3, b"/lib/ld.so\0", 1), (2, b"", 8)]
                made.append(bytes(front_elf.Elf(bits, order, segments)))
        made.append(bytes(test_front_elf.behind(front_elf.note(bytes(range(20))))))
        real = [Path(path) for path in REAL if os.path.exists(path)]
        return made + [path.read_bytes()[:HEAD] for path in real]

    def one(self, data: bytes) -> object:
        os.ftruncate(self.file, 0)
        os.pwrite(self.file, data, 0)
        found: list[elf.Elf] = []
        outcome = shape(lambda: found.append(elf.read(data)), elf.ElfError)
        same = shape(lambda: found.append(elf.read(self.file)), elf.ElfError)
        assert (outcome == "worked") == (same == "worked")
        other = self.front_reads(data)
        if found:
            one, two = found
            assert one == two
            assert (one.build_id or "") == other, (one.build_id, other)
            assert one.bits in (32, 64) and len(one.interpreter or "") <= 4096
            return one.static, one.bits, one.little, bool(one.build_id), bool(one.interpreter)
        return outcome

    def front_reads(self, data: bytes) -> str:
        """The build-id that the front finds."""
        assert self.front.stdin and self.front.stdout
        self.front.stdin.write(struct.pack("=I", len(data)) + data)
        self.front.stdin.flush()
        line = self.front.stdout.readline()
        assert line, "the front's reader died: see its words above"
        return line.decode().strip()
