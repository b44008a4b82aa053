"""The front finds a program's build-id wherever it lies, and reads any other file without harm.

The parser itself, compiled with address and undefined-behaviour sanitizers (front/harness.c): each
file is compared with what front_elf.py, written apart, says of it.
"""

import contextlib
import random
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import compiled
import pytest
from front_elf import NOTE, Elf, expected, note
from hypothesis import given, settings
from hypothesis import strategies as st

from maid import elf

ID = bytes(range(100, 120))
BITS = pytest.mark.parametrize("bits", [32, 64])
ORDERS = pytest.mark.parametrize("order", ["<", ">"], ids=["little", "big"])
PT_LOAD, PROPERTY = 1, 5
SANITIZED = ("-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")


class Reader:
    """The front's parser, running: `ids` answers for one file after the other."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [compiled.harness(compiled.HOST, *SANITIZED), "ids"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def __call__(self, data: bytes) -> bytes:
        assert self.process.stdin and self.process.stdout and self.process.stderr
        self.process.stdin.write(struct.pack("=I", len(data)) + data)
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise AssertionError(self.process.stderr.read().decode())
        return bytes.fromhex(line.decode())


@pytest.fixture(scope="module")
def read() -> Iterator[Reader]:
    reader = Reader()
    yield reader
    _, errors = reader.process.communicate(timeout=60)
    assert (reader.process.returncode, errors) == (0, b"")


@BITS
@ORDERS
@pytest.mark.parametrize("size", [1, 8, 16, 20, 32, 64])
def test_a_build_id_is_found_in_every_class_and_byte_order(
    read: Reader, bits: int, order: str, size: int
) -> None:
    own = bytes(range(1, size + 1))
    made = Elf(bits, order, [(PT_LOAD, b"code", 4), (NOTE, note(own, order=order), 4)])
    assert read(bytes(made)) == own


@BITS
@ORDERS
@pytest.mark.parametrize(
    ("table", "data"),
    [(0, 0), (0, 10_001), (65, 5000), (4000, 200), (5000, 4090), (100_001, 70), (70, 5_000_003)],
)
def test_it_is_found_wherever_headers_and_notes_lie(
    read: Reader, bits: int, order: str, table: int, data: int
) -> None:
    segments = [(PT_LOAD, b"", 4)] * 40 + [(NOTE, note(ID, order=order), 4)]
    assert read(bytes(Elf(bits, order, segments, table=table, data=data))) == ID


@BITS
@ORDERS
def test_it_is_found_behind_other_notes_and_segments(read: Reader, bits: int, order: str) -> None:
    before = note(b"abc", 1, b"Linux\0", order=order) + note(b"", 7, b"", order=order)
    before += note(b"x" * 20, 3, b"Go\0\0", order=order)  # the type, but another owner
    own = note(ID, order=order)
    unit = note(bytes(16), PROPERTY, unit=8, order=order)
    for segments in (
        [(NOTE, before + own, 4)],
        [(NOTE, before, 4), (NOTE, own, 4)],
        [(NOTE, unit, 8), (NOTE, own, 4)],
        [(NOTE, unit + note(ID, unit=8, order=order), 8)],
        [(NOTE, own, 0)],
        [(NOTE, note(bytes(5), 9, unit=8, order=order) + note(ID, unit=8, order=order), 8)],
        [(NOTE, note(bytes(5), 9, order=order) + own, 4)],
        [(NOTE, b"", 4), (PT_LOAD, b"code", 16), (NOTE, own, 4)],
    ):
        assert read(bytes(Elf(bits, order, segments))) == ID


def test_the_first_of_two_counts(read: Reader) -> None:
    assert read(bytes(Elf(segments=[(NOTE, note(ID) + note(b"other"), 4)]))) == ID
    assert read(bytes(Elf(segments=[(NOTE, note(ID), 4), (NOTE, note(b"other"), 4)]))) == ID


def behind(
    content: bytes, own: bytes = b"", *, order: str = "<", bits: int = 64, **fields: int
) -> Elf:
    """A file as Go's linker makes it: `content` directly behind the notes of the PT_NOTE segment,
    Go's one unless they are `own`."""
    own = own or note(b"x" * 83, 4, b"Go\0\0", order=order)
    return Elf(bits, order, [(NOTE, own, 4), (PT_LOAD, content, 4)], fields)


@BITS
@ORDERS
@pytest.mark.parametrize("size", [1, 20, 64])
def test_one_directly_behind_the_notes_is_found(
    read: Reader, bits: int, order: str, size: int
) -> None:
    own = bytes(range(1, size + 1))
    made = behind(note(own, order=order) + b"code", order=order, bits=bits)
    assert read(bytes(made)) == own
    # It may end the file, but not be cut short.
    made = behind(note(own, order=order)[: 16 + size], order=order, bits=bits)
    assert read(bytes(made)) == own
    for less in range(1, 17):
        assert read(bytes(made)[:-less]) == b"", less


def test_one_in_the_notes_comes_before_the_one_behind_them(read: Reader) -> None:
    assert read(bytes(behind(note(b"other"), note(b"x", 4) + note(ID)))) == ID
    segments = [(NOTE, note(b"x", 4), 8), (PT_LOAD, b"code", 4), (NOTE, note(ID), 4)]
    assert read(bytes(Elf(segments=segments))) == ID


HUGE = (1 << 64) - 1
OWN = (NOTE, note(ID), 4)


def altered(**fields: int) -> Elf:
    """A file with a build-id, if these fields of it were not as they are."""
    return Elf(segments=[OWN], fields=fields)


def noted(content: bytes, unit: int = 4) -> Elf:
    """A file with these notes."""
    return Elf(segments=[(NOTE, content, unit)])


DAMAGED = {
    "no notes": Elf(segments=[(PT_LOAD, note(ID), 4)]),
    "no segments": Elf(),
    "a size of headers that is not the class's": altered(phentsize=32),
    "headers at the end of all offsets": altered(phoff=HUGE),
    "headers behind the end": altered(phoff=1 << 40),
    "PN_XNUM headers": altered(phnum=0xFFFF),
    "more headers than the kernel takes": Elf(segments=[(PT_LOAD, b"", 4)] * 1170 + [OWN]),
    "notes at the end of all offsets": altered(offset0=HUGE),
    "notes that wrap around": altered(offset0=HUGE - 35, filesz0=72),
    "notes behind the end": altered(offset0=1 << 40),
    "notes without size": altered(filesz0=0),
    "notes cut in the header": altered(filesz0=11),
    "notes cut in the owner": altered(filesz0=14),
    "notes cut in the build-id": altered(filesz0=35),
    "notes of negative size": altered(filesz0=HUGE),
    "an empty build-id": noted(note(b"")),
    "a build-id of 65 bytes": noted(note(bytes(65))),
    "notes after the segment's, which ends in its padding": Elf(
        segments=[(NOTE, note(bytes(5), 9) + note(ID), 4)], fields={"filesz0": 21}
    ),
    "behind an empty segment": behind(note(ID), filesz0=0),
    "behind a segment that is cut in its note": behind(note(ID), filesz0=99),
    "behind what is no note": behind(note(ID), note(b"", 4) + bytes(4)),
    "behind a note that is longer than its segment": behind(
        note(ID), struct.pack("<III", 4, 8, 4) + b"GNU\0" + bytes(4)
    ),
    "four bytes farther behind": behind(bytes(4) + note(ID)),
    "the second one behind": behind(note(b"x", 4) + note(ID)),
    "an empty one behind": behind(note(b"")),
    "65 bytes behind": behind(note(bytes(65))),
    "of huge size behind": behind(struct.pack("<III", 4, 0xFFFFFFFF, 3) + b"GNU\0" + bytes(64)),
    "of another type behind": behind(note(ID, 4)),
    "another's behind": behind(note(ID, name=b"Go\0\0")),
    "of a longer name behind": behind(note(ID, name=b"GNU\0\0")),
    "another owner": noted(note(ID, name=b"GNX\0")),
    "another first letter": noted(note(ID, name=b"XNU\0")),
    "another second letter": noted(note(ID, name=b"GXU\0")),
    "an owner without end": noted(note(ID, name=b"GNUX")),
    "a longer owner": noted(note(ID, name=b"GNU\0\0")),
    "a shorter owner": noted(note(ID, name=b"GNU")),
    "another type": noted(note(ID, 4)),
    "a name longer than all": noted(struct.pack("<III", 0xFFFFFFFF, 4, 3) + b"GNU\0", 4),
    "a content longer than all": noted(struct.pack("<III", 4, 0xFFFFFFFF, 3) + b"GNU\0", 4),
    "both longer than all": noted(struct.pack("<III", 0xFFFFFFFF, 0xFFFFFFFF, 3) + b"GNU\0", 8),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_what_is_damaged_or_no_build_id_is_none(read: Reader, what: str) -> None:
    assert read(bytes(Elf(segments=[OWN]))) == ID
    assert read(bytes(DAMAGED[what])) == b""


@pytest.mark.parametrize(
    ("at", "value"), [(0, 0x7E), (1, 0), (2, 0), (3, 0), (4, 0), (4, 3), (5, 0), (5, 3)]
)
def test_what_is_no_elf_file_has_none(read: Reader, at: int, value: int) -> None:
    made = bytearray(bytes(Elf(segments=[(NOTE, note(ID), 4)])))
    assert read(bytes(made)) == ID
    made[at] = value
    assert read(bytes(made)) == b""


@BITS
@ORDERS
def test_a_file_cut_anywhere_has_none(read: Reader, bits: int, order: str) -> None:
    made = bytes(Elf(bits, order, [(PT_LOAD, b"", 4), (NOTE, note(ID, order=order), 4)]))
    assert read(made) == ID
    for size in range(len(made)):
        assert read(made[:size]) == b"", size


def test_the_number_of_reads_is_bounded(read: Reader) -> None:
    """64 pieces of 4 KiB are all that is looked at: what needs more has no build-id."""
    filler = note(b"", 9, b"") * (4096 // 12)

    def with_notes(pieces: int) -> bytes:
        return bytes(Elf(segments=[(NOTE, filler * pieces + note(ID), 4)]))

    assert read(with_notes(50)) == ID
    assert read(with_notes(70)) == b""
    apart = Elf(segments=[(NOTE, b"", 4)] * 100 + [(NOTE, note(ID), 4)])
    for number in range(100):
        apart.fields |= {f"offset{number}": 20_000 + 5000 * number, f"filesz{number}": 12}
    assert read(bytes(apart).ljust(600_000, b"\0")) == b""


def damaged(random: random.Random) -> bytes:
    """A file with several segments of notes, some of its bytes changed, perhaps cut short."""
    bits, order = random.choice([32, 64]), random.choice("<>")
    segments = []
    for _ in range(random.randint(1, 4)):
        unit = random.choice([4, 8])
        content = b"".join(
            note(
                bytes(random.choice([0, 1, 16, 20, 64, 65])),
                random.choice([1, 3, 3, 5]),
                random.choice([b"GNU\0", b"GNU\0", b"", b"Go\0\0", b"stapsdt\0"]),
                unit,
                order,
            )
            for _ in range(random.randint(0, 4))
        )
        segments.append((random.choice([NOTE, NOTE, PT_LOAD]), content, unit))
    made = Elf(bits, order, segments, table=random.choice([0, 0, 99, 4080]))
    made.data = random.choice([0, 4090, 8000]) if not made.table else 5000
    data = bytearray(bytes(made))
    if random.random() < 0.7:
        for _ in range(random.randint(1, 6)):
            # Nearly always in what means something: headers and notes.
            where = random.choice([64, 64 + 4 * 56, len(data)])
            at = random.randrange(min(where, len(data)))
            data[at] = random.choice([0, 1, 2, 3, 4, 8, 0x7F, 0x80, 0xFF, random.randrange(256)])
    if random.random() < 0.2:
        del data[random.randrange(len(data)) :]
    return bytes(data)


def test_damaged_files_are_read_as_the_other_reader_reads_them(read: Reader) -> None:
    numbers = random.Random(1)
    found = both = 0
    for _ in range(6000):
        data = damaged(numbers)
        own = expected(data)
        assert read(data) == own, data.hex()
        found += bool(own)
        # And so does maid itself, which refuses most of what is damaged.
        with contextlib.suppress(elf.ElfError):
            assert (elf.read(data).build_id or "") == own.hex(), data.hex()
            both += 1
    assert both > 1000
    assert 1000 < found < 5000


@settings(max_examples=300, deadline=None)
@given(
    data=st.binary(max_size=300)
    | st.builds(
        lambda kind, order, rest: b"\x7fELF" + bytes([kind, order]) + rest,
        st.sampled_from([1, 2]),
        st.sampled_from([1, 2]),
        st.binary(max_size=300),
    )
)
def test_any_bytes_are_read_as_the_other_reader_reads_them(read: Reader, data: bytes) -> None:
    assert read(data) == expected(data)


def test_the_programs_of_this_machine_have_the_build_ids_that_readelf_shows(read: Reader) -> None:
    for program in (Path("/bin/sh").resolve(), Path("/usr/bin/env").resolve()):
        shown = subprocess.run(
            ["readelf", "-n", program], capture_output=True, text=True, check=True
        ).stdout
        own = next(line.split()[-1] for line in shown.splitlines() if "Build ID" in line)
        assert read(program.read_bytes()).hex() == own


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_fronts_numbers_and_structures_are_the_kernels(machine: str) -> None:
    program = compiled.program(
        "constants.c", machine, *compiled.linked(machine, False), parts=compiled.front_sources()
    )
    subprocess.run([*compiled.runner(machine), program], check=True, timeout=60)
