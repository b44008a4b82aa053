"""The front's cost where it has nothing to do: 1,000 starts of a tiny program, against QEMU alone.

Four copies of one static arm64 program, told apart by a byte of padding in their headers, in a
private table with an entry for each: QEMU, and copies of it with the front that find no store, a
store without a record for the program, and (for comparing) that pass a CPU model too. They take
turns, some starts at a time, so that a machine that becomes busier does it to all of them.
"""

import ctypes
import json
import os
import resource
import shutil
import struct
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common import aim, cache, heading, median, row, spread

from maid import native
from maid.binfmt import namespace
from maid.binfmt.entry import Entry
from maid.emulation.bake import bake, store_identity

STARTS, ROUNDS = 25, 40
AIM = 1.05
CLONE_NEWUSER = 0x10000000
ALONE, WITHOUT, LACKING, MODEL = range(4)
NAMES = ("QEMU alone", "front, no store", "front, store without it", "front, CPU model, no store")


def program(variant: int) -> bytes:
    """exit(0) for arm64, with a build-id; the last byte of e_ident, which nobody reads, tells the
    variants apart."""
    code = struct.pack("<3I", 0xD2800BA8, 0xD2800000, 0xD4000001)  # x8 = 93, x0 = 0, svc
    note = struct.pack("<III4s20s", 4, 20, 3, b"GNU\0", bytes([variant] * 20))
    headers = 64 + 2 * 56
    base, size = 0x400000, headers + len(code) + len(note)
    ident = b"\x7fELF\2\1\1" + bytes(8) + bytes([variant])
    header = struct.pack(
        "<16sHHIQQQIHHHHHH",
        *(ident, 2, 183, 1, base + headers, 64, 0, 0, 64, 56, 2, 0, 0, 0),
    )
    load = struct.pack("<IIQQQQQQ", 1, 5, 0, base, base, size, size, 0x10000)
    at = headers + len(code)
    notes = struct.pack("<IIQQQQQQ", 4, 4, at, base + at, base + at, len(note), len(note), 4)
    return header + load + notes + code + note


def entry(variant: int, interpreter: Path) -> Entry:
    """The registration that serves this variant and no other."""
    magic = program(variant)[:20]
    return Entry(f"front-{variant}", str(interpreter), magic, b"\xff" * 20, "POCF")


class Runner:
    """A process in the table's namespace whose root is `root`: starts a program there."""

    def __init__(self, root: Path, user: str) -> None:
        asked, self._ask = os.pipe()
        self._answer, told = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            os.close(self._ask)
            try:
                _serve(root, user, asked, told)
            finally:
                os._exit(0)
        os.close(asked)
        os.close(told)

    def run(self, variant: int) -> tuple[float, float]:
        """CPU and wall milliseconds of one of STARTS starts."""
        os.write(self._ask, bytes([variant]))
        cpu, wall = json.loads(os.read(self._answer, 4096))
        return cpu, wall

    def close(self) -> None:
        os.close(self._ask)
        os.close(self._answer)
        os.waitpid(self._pid, 0)


def _serve(root: Path, user: str, asked: int, told: int) -> None:
    if ctypes.CDLL(None).setns(os.open(user, os.O_RDONLY), CLONE_NEWUSER) != 0:
        raise SystemExit("cannot join the namespace")
    os.chroot(root)
    os.chdir("/")
    while variant := os.read(asked, 1):
        path = f"/program-{variant[0]}"
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        begun = time.perf_counter()
        for _ in range(STARTS):
            pid = os.posix_spawn(path, [path], {})
            if os.waitpid(pid, 0)[1] != 0:
                raise SystemExit(f"{path} failed")
        wall = time.perf_counter() - begun
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        os.write(told, json.dumps([cpu * 1000 / STARTS, wall * 1000 / STARTS]).encode())


@contextmanager
def runners(qemu: Path) -> Iterator[dict[int, Runner]]:
    """A runner for each variant; the table and all files are gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="front-", dir=cache()) as name:
        directory = Path(name)
        directory.chmod(0o755)
        state = directory / "state"
        (state / "store" / "id").mkdir(parents=True)
        front = Path(native.path("front.bin"))
        store = store_identity(state)
        # A copy, too: the same bytes start up to 8 % faster when they were written just now.
        plain = Path(shutil.copy(qemu, directory))
        interpreters = {ALONE: plain, WITHOUT: bake(qemu, (), state, front, store).path}
        interpreters[LACKING] = interpreters[WITHOUT]
        interpreters[MODEL] = bake(qemu, ("-cpu", "neoverse-n1"), state, front, store).path
        for root in ("with", "without"):
            (directory / root / "dev").mkdir(parents=True)
            for variant in interpreters:
                file = directory / root / f"program-{variant}"
                file.write_bytes(program(variant))
                file.chmod(0o755)
        # The root with a store has the very directory: only moved there, it keeps its identity.
        (state / "store").rename(directory / "with" / "dev" / ".maid")
        pinned = namespace.create(str(directory / "table"), namespace.identity())
        made: list[Runner] = []
        try:
            for variant, interpreter in interpreters.items():
                pinned.instance.add(entry(variant, interpreter))
            made += [
                Runner(directory / "without", pinned.user),
                Runner(directory / "with", pinned.user),
            ]
            yield {variant: made[variant == LACKING] for variant in interpreters}
        finally:
            # The second one's process has the first one's pipe, too.
            for each in reversed(made):
                each.close()
            pinned.release()


def main() -> None:
    heading(f"front: {STARTS * ROUNDS} starts each of a program that does nothing")
    qemu = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
    if qemu is None:
        raise SystemExit("no static QEMU for arm64")
    with runners(Path(qemu)) as each:
        for variant, runner in each.items():
            runner.run(variant)  # everything is in memory from here on
        figures: dict[int, list[tuple[float, float]]] = {variant: [] for variant in each}
        for number in range(ROUNDS):
            for variant in (*range(number % len(each), len(each)), *range(number % len(each))):
                figures[variant].append(each[variant].run(variant))
    for variant, found in figures.items():
        row(f"{NAMES[variant]}, CPU", spread([cpu for cpu, _ in found], digits=2))
    for column, what in enumerate(("CPU", "wall")):
        for variant in (WITHOUT, LACKING, MODEL):
            pairs = zip(figures[variant], figures[ALONE], strict=True)
            ratio = median([own[column] / alone[column] for own, alone in pairs])
            name = f"{NAMES[variant]} / QEMU alone, {what}"
            if column == 0 and variant != MODEL:
                aim(name, ratio, AIM)
            else:
                row(name, f"{ratio:.3f}")


if __name__ == "__main__":
    main()
