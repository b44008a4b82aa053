"""A copy with the front: made right, made once, and refused where it could not be right."""

import itertools
import json
import multiprocessing
import os
import struct
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maid.emulation import bake as bakery
from maid.emulation import front as fronts
from maid.emulation.bake import BakeError, bake, intact, model_known, prune

PT_LOAD, PT_DYNAMIC, PT_INTERP, PT_NOTE, PT_TLS, PT_GNU_STACK = 1, 2, 3, 4, 7, 0x6474E551
X86_64, AARCH64 = 62, 183
# Where the notes of the programs below lie in the file.
NOTES = 0x300
PAGES = {X86_64: 0x1000, AARCH64: 0x10000}
MODEL = ("-cpu", "neoverse-n1")


def note(kind: int, content: bytes) -> bytes:
    return struct.pack("<III4s", 4, len(content), kind, b"GNU\0") + content


BUILD_ID = note(3, bytes(range(20)))
PROPERTY = note(5, bytes(16))


@dataclass
class Program:
    """An ELF file made by hand: the fields of the header and the program headers, and a body."""

    kind: int = 2
    machine: int = X86_64
    ident: bytes = b"\x7fELF\x02\x01\x01"
    entry: int = 0x401000
    table: int = 64
    entry_size: int = 56
    count: int | None = None
    headers: list[tuple[int, ...]] = field(default_factory=list)
    notes: bytes = b""
    body: bytes = b""

    def __bytes__(self) -> bytes:
        count = len(self.headers) if self.count is None else self.count
        header = struct.pack(
            "<16sHHIQQQIHHHHHH",
            *(self.ident, self.kind, self.machine, 1, self.entry, self.table, 0, 0, 64),
            *(self.entry_size, count, 64, 0, 0),
        )
        table = b"".join(struct.pack("<IIQQQQQQ", *each) for each in self.headers)
        head = (header + table).ljust(NOTES, b"\0") + self.notes
        return head.ljust(0x400, b"\0") + self.body


def program(machine: int = X86_64, notes: tuple[bytes, ...] = (BUILD_ID,)) -> Program:
    """As a linker would make it: headers, code, data with .bss, and the notes at the end."""
    page = PAGES[machine]
    base = 0x400000
    made = Program(machine=machine, entry=base + page + 0x10)
    made.headers = [
        (PT_LOAD, 4, 0, base, base, 0x400, 0x400, page),
        (PT_LOAD, 5, 0x1000, base + page, base + page, 0x200, 0x200, page),
        (PT_LOAD, 6, 0x1200, base + 2 * page, base + 2 * page, 0x100, 0x2345, page),
        (PT_GNU_STACK, 6, 0, 0, 0, 0, 0, 16),
    ]
    at = NOTES
    for each in notes:
        made.headers.append((PT_NOTE, 4, at, base + at, base + at, len(each), len(each), 4))
        at += len(each)
    made.notes = b"".join(notes)
    made.body = bytes(0x1000 - 0x400) + b"\xc3" * 0x200 + b"d" * 0x100 + b"sections"
    return made


def front_bytes(machine: int = X86_64, room: int = 1024, **fields: int) -> bytes:
    """The shape of front.bin, with code that no test executes."""
    version, entry, count = (
        fields.get(name, n) for name, n in (("version", 2), ("entry", 0), ("count", 0))
    )
    store = (fields.get(name, 0) for name in ("has_store", "device", "inode"))
    block = fronts.PARAMS.pack(fronts.MAGIC, version, machine, entry, count, room, *store)
    return b"\xcc" * 48 + block + bytes(room)


@dataclass
class Kitchen:
    """Where a test bakes: an interpreter, a front, a state directory."""

    directory: Path

    @property
    def state(self) -> Path:
        return self.directory / "state"

    @property
    def root(self) -> Path:
        return self.state / "baked"

    def interpreter(self, content: Program | bytes, name: str = "qemu-aarch64-static") -> Path:
        path = self.directory / name
        path.write_bytes(bytes(content))
        return path

    def front(self, content: bytes) -> Path:
        path = self.directory / "front.bin"
        path.write_bytes(content)
        return path

    def bake(
        self, content: Program | bytes, arguments: tuple[str, ...] = MODEL, machine: int = X86_64
    ) -> bakery.Baked:
        front = self.front(front_bytes(machine))
        return bake(self.interpreter(content), arguments, self.state, front)


@pytest.fixture
def kitchen(tmp_path: Path) -> Kitchen:
    return Kitchen(tmp_path)


def headers(data: bytes) -> list[tuple[int, ...]]:
    table, count = struct.unpack_from("<Q", data, 32)[0], struct.unpack_from("<H", data, 56)[0]
    return [struct.unpack_from("<IIQQQQQQ", data, table + 56 * i) for i in range(count)]


def params(data: bytes) -> tuple[int, int, int, int, int, bytes]:
    at = data.rindex(fronts.MAGIC)
    _, version, machine, entry, count, room, *_ = fronts.PARAMS.unpack_from(data, at)
    at += fronts.PARAMS.size
    return version, machine, entry, count, room, data[at : at + room]


@pytest.mark.parametrize("machine", [X86_64, AARCH64])
def test_the_copy_loads_the_front_above_everything_and_starts_there(
    kitchen: Kitchen, machine: int
) -> None:
    original = program(machine)
    data = kitchen.bake(original, machine=machine).path.read_bytes()
    loads = [each for each in headers(data) if each[0] == PT_LOAD]
    _, flags, offset, vaddr, paddr, filesz, memsz, align = loads[-1]
    assert len(loads) == 4
    assert flags == 5
    assert vaddr == paddr == struct.unpack_from("<Q", data, 24)[0]
    assert (offset % PAGES[machine], vaddr % PAGES[machine], align) == (0, 0, PAGES[machine])
    assert filesz == memsz == len(front_bytes(machine)) == len(data) - offset
    assert vaddr >= loads[-2][3] + loads[-2][6]
    _, baked_for, entry, count, _, text = params(data)
    assert (baked_for, vaddr + entry) == (machine, original.entry)
    assert (count, text.rstrip(b"\0")) == (2, b"-cpu\0neoverse-n1")
    # All else is the original's.
    plain = bytes(original)
    assert data[0x400 : len(plain)] == plain[0x400:]
    assert data[:24] + data[32:64] == plain[:24] + plain[32:64]


def test_the_other_program_headers_stay_in_order(kitchen: Kitchen) -> None:
    original = program()
    data = kitchen.bake(original).path.read_bytes()
    kept = [each for each in headers(data) if each in original.headers]
    assert kept == original.headers[:-1]


def test_a_note_before_the_loaded_segments_leaves_them_ascending(kitchen: Kitchen) -> None:
    original = program()
    original.headers.insert(0, original.headers.pop())
    kinds = [(each[0], each[3]) for each in headers(kitchen.bake(original).path.read_bytes())]
    assert [kind for kind, _ in kinds] == [PT_LOAD] * 4 + [PT_GNU_STACK]
    assert sorted(kinds[:4]) == kinds[:4]


@pytest.mark.parametrize("order", [(BUILD_ID, PROPERTY), (PROPERTY, BUILD_ID)])
def test_the_build_id_is_kept_where_there_is_another_note(
    kitchen: Kitchen, order: tuple[bytes, ...]
) -> None:
    data = kitchen.bake(program(notes=order)).path.read_bytes()
    kept = [each for each in headers(data) if each[0] == PT_NOTE]
    assert len(kept) == 1
    assert data[kept[0][2] : kept[0][2] + kept[0][5]] == BUILD_ID


def test_a_note_that_points_nowhere_can_be_given_up(kitchen: Kitchen) -> None:
    data = kitchen.bake(changed(4, offset=(1 << 64) - 1)).path.read_bytes()
    assert [each[0] for each in headers(data)] == [PT_LOAD] * 4 + [PT_GNU_STACK]


def test_no_arguments_and_the_most_arguments_are_baked(kitchen: Kitchen) -> None:
    assert params(kitchen.bake(program(), ()).path.read_bytes())[3] == 0
    many = tuple("x" * 127 for _ in range(8))
    text = params(kitchen.bake(program(), many).path.read_bytes())[5]
    assert text == b"".join(b"x" * 127 + b"\0" for _ in range(8))


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("a",) * 9, "9 arguments are too many"),
        (("a" * 1024,), "too long: 1025 bytes"),
        (("x" * 128,) * 8, "too long"),
        (("a\0b",), "zero byte"),
        (("\udc80",), "not text"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(
    kitchen: Kitchen, arguments: tuple[str, ...], complaint: str
) -> None:
    with pytest.raises(BakeError, match=complaint):
        kitchen.bake(program(), arguments)
    assert not kitchen.state.exists()


def without_notes() -> Program:
    made = program()
    made.headers = [each for each in made.headers if each[0] != PT_NOTE]
    return made


def changed(index: int, **fields: int) -> Program:
    """The usual program with fields of one program header changed."""
    names = ("type", "flags", "offset", "vaddr", "paddr", "filesz", "memsz", "align")
    made = program()
    values = dict(zip(names, made.headers[index], strict=True)) | fields
    made.headers[index] = tuple(values[name] for name in names)
    return made


def altered(**fields: object) -> Program:
    made = program()
    for name, value in fields.items():
        setattr(made, name, value)
    return made


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "not an ELF"),
        (b"#!/bin/sh\nexec true\n" * 10, "not an ELF"),
        (bytes(program())[:63], "not an ELF"),
        (bytes(program())[:64], "truncated"),
        (bytes(program())[:300], "truncated"),
        (bytes(program())[:0x1100], "truncated"),
        (altered(ident=b"\x7fELF\x01\x01\x01"), "64-bit little-endian"),
        (altered(ident=b"\x7fELF\x02\x02\x01"), "64-bit little-endian"),
        (altered(machine=AARCH64), "a program for AArch64, the front is for x86-64"),
        (altered(machine=243), "a program for ELF machine 243"),
        (altered(kind=1), "not an executable"),
        (altered(kind=4), "not an executable"),
        (altered(count=0), "program headers are damaged"),
        (altered(count=0xFFFF), "program headers are damaged"),
        (altered(count=1170), "truncated"),
        (altered(entry_size=32), "program headers are damaged"),
        (altered(table=0), "program headers are damaged"),
        (altered(table=63), "program headers are damaged"),
        (altered(table=1 << 63), "truncated"),
        (altered(table=(1 << 64) - 1), "truncated"),
        (altered(headers=[]), "program headers are damaged"),
        (changed(3, type=PT_INTERP), "dynamically linked"),
        (without_notes(), "no PT_NOTE"),
        (altered(headers=program().headers[3:]), "nothing of it is loaded"),
        (changed(1, vaddr=0x400100), "overlap or are out of order"),
        (changed(0, vaddr=0x500000), "overlap or are out of order"),
        (changed(2, memsz=1 << 63), "overlap or are out of order"),
        (changed(2, memsz=(1 << 47) - 0x402000), "no room above it"),
        (changed(2, filesz=0x3000), "truncated"),
        (changed(2, offset=(1 << 64) - 1), "truncated"),
        (changed(1, flags=4), "entry point is not in its code"),
        (altered(entry=0), "entry point is not in its code"),
        (altered(entry=0x402200), "entry point is not in its code"),
    ],
)
def test_what_is_no_static_program_for_this_machine_is_refused(
    kitchen: Kitchen, content: Program | bytes, complaint: str
) -> None:
    with pytest.raises(BakeError, match=complaint) as caught:
        kitchen.bake(content)
    assert "qemu-aarch64-static" in caught.value.message
    assert not kitchen.root.exists()


def test_a_copy_is_not_baked_again(kitchen: Kitchen) -> None:
    once = kitchen.bake(program(notes=(BUILD_ID, PROPERTY)))
    with pytest.raises(BakeError, match="such a copy already"):
        bake(once.path, ("-cpu", "max"), kitchen.state, kitchen.directory / "front.bin")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "no params block"),
        (b"\x90" * 2000, "no params block"),
        (front_bytes() * 2, "no params block"),
        (front_bytes()[:60], "no params block"),
        (front_bytes() + bytes(65536), "no params block"),
        (front_bytes()[:-1], "params block is damaged"),
        (front_bytes(version=1), "has version 1, not 2"),
        (front_bytes(machine=40), "params block is damaged"),
        (front_bytes(entry=-4096), "params block is damaged"),
        (front_bytes(count=1), "params block is damaged"),
        (front_bytes(has_store=1), "params block is damaged"),
        (front_bytes(inode=1), "params block is damaged"),
    ],
)
def test_another_file_is_not_taken_for_the_front(
    kitchen: Kitchen, content: bytes, complaint: str
) -> None:
    interpreter = kitchen.interpreter(program())
    with pytest.raises(BakeError, match=complaint) as caught:
        bake(interpreter, MODEL, kitchen.state, kitchen.front(content))
    assert "make -C daemon/native" in caught.value.hint


def test_what_is_no_file_is_refused_and_does_not_block(kitchen: Kitchen) -> None:
    front = kitchen.front(front_bytes())
    fifo = kitchen.directory / "fifo"
    os.mkfifo(fifo)
    for path, complaint in (
        (fifo, "not a regular file"),
        (kitchen.directory, "not a regular file"),
        (kitchen.directory / "absent", "No such file"),
    ):
        with pytest.raises(BakeError, match=complaint):
            bake(path, MODEL, kitchen.state, front)
        with pytest.raises(BakeError, match=complaint):
            bake(kitchen.interpreter(program()), MODEL, kitchen.state, path)


def test_a_state_directory_that_cannot_be_written_is_one_clear_error(kitchen: Kitchen) -> None:
    (kitchen.directory / "state").write_text("a file")
    with pytest.raises(BakeError, match=r"cannot make a copy.*Not a directory") as caught:
        kitchen.bake(program())
    assert "writable" in caught.value.hint


@pytest.mark.parametrize("mode", [0o777, 0o775])
def test_a_directory_that_others_can_write_is_not_used(kitchen: Kitchen, mode: int) -> None:
    kitchen.root.mkdir(parents=True)
    kitchen.root.chmod(mode)
    with pytest.raises(BakeError, match="only this user can write"):
        kitchen.bake(program())


def test_everybody_can_execute_a_copy_whatever_the_umask(kitchen: Kitchen) -> None:
    before = os.umask(0o077)
    try:
        baked = kitchen.bake(program())
    finally:
        os.umask(before)
    assert baked.path.stat().st_mode & 0o7777 == 0o755
    assert baked.path.parent.stat().st_mode & 0o7777 == 0o755
    assert kitchen.root.stat().st_mode & 0o7777 == 0o755


def test_a_setuid_original_gives_an_ordinary_copy(kitchen: Kitchen) -> None:
    kitchen.interpreter(program()).chmod(0o6755)
    assert kitchen.bake(program()).path.stat().st_mode & 0o7777 == 0o755


def test_the_same_again_is_the_same_file(kitchen: Kitchen) -> None:
    first = kitchen.bake(program())
    inode = first.path.stat().st_ino
    assert kitchen.bake(program()) == first
    assert first.path.stat().st_ino == inode
    assert intact(first) and intact(first, full=True)
    assert first.path == kitchen.root / first.key / "qemu-aarch64-static"


def test_every_input_has_its_own_copy(kitchen: Kitchen) -> None:
    upgraded = program()
    upgraded.body = upgraded.body.replace(b"sections", b"SECTIONS")
    copies = [
        kitchen.bake(program()),
        kitchen.bake(program(), ("-cpu", "max")),
        kitchen.bake(program(), ("-cpu neoverse-n1",)),
        kitchen.bake(upgraded),
        bake(
            kitchen.interpreter(program(), "other-name"),
            MODEL,
            kitchen.state,
            kitchen.front(front_bytes()),
        ),
        bake(
            kitchen.interpreter(program()),
            MODEL,
            kitchen.state,
            kitchen.front(front_bytes() + b"\x90"),
        ),
    ]
    assert len({copy.key for copy in copies}) == len(copies)
    assert all(intact(copy, full=True) for copy in copies)


def test_an_interpreter_that_did_not_change_is_not_read_again(
    kitchen: Kitchen, monkeypatch: pytest.MonkeyPatch
) -> None:
    baked = kitchen.bake(program())

    def read(file: int) -> str:
        raise AssertionError("the interpreter was hashed")

    monkeypatch.setattr(bakery, "_digest", read)
    front = kitchen.directory / "front.bin"
    again = bake(kitchen.directory / "qemu-aarch64-static", MODEL, kitchen.state, front)
    assert again == baked


def test_an_interpreter_changed_in_place_is_noticed(kitchen: Kitchen) -> None:
    interpreter = kitchen.interpreter(program())
    front = kitchen.front(front_bytes())
    first = bake(interpreter, MODEL, kitchen.state, front)
    status = interpreter.stat()
    with interpreter.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"S")
    os.utime(interpreter, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert bake(interpreter, MODEL, kitchen.state, front).key != first.key


def damage_byte(path: Path) -> None:
    status = path.stat()
    with path.open("r+b") as file:
        file.seek(0x500)
        file.write(b"!")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_a_damaged_byte_is_found_by_the_full_check(kitchen: Kitchen) -> None:
    baked = kitchen.bake(program())
    damage_byte(baked.path)
    assert intact(baked)
    assert not intact(baked, full=True)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: os.truncate(path, 100),
        lambda path: path.unlink(),
        lambda path: path.chmod(0o777),
        lambda path: path.chmod(0o644),
        lambda path: path.write_bytes(path.read_bytes()),
        lambda path: path.with_name(path.name + ".json").unlink(),
        lambda path: path.with_name(path.name + ".json").write_text("{"),
        lambda path: path.with_name(path.name + ".json").write_text('{"format": 1}'),
        lambda path: (path.unlink(), path.symlink_to("/bin/true")),
        lambda path: (path.unlink(), path.mkdir()),
    ],
)
def test_a_damaged_copy_is_made_again(kitchen: Kitchen, damage) -> None:
    baked = kitchen.bake(program())
    content = baked.path.read_bytes()
    damage(baked.path)
    assert not intact(baked)
    assert kitchen.bake(program()) == baked
    assert intact(baked, full=True)
    assert baked.path.read_bytes() == content
    assert [each.name for each in kitchen.root.iterdir() if each.name != ".lock"] == [baked.key]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_copy_that_belongs_to_somebody_else_is_made_again(kitchen: Kitchen) -> None:
    baked = kitchen.bake(program())
    os.chown(baked.path, 1, 1)
    baked.path.chmod(0o755)
    assert not intact(baked)
    assert kitchen.bake(program()).path.stat().st_uid == 0


def test_a_record_of_another_format_is_not_trusted(kitchen: Kitchen) -> None:
    baked = kitchen.bake(program())
    record = baked.path.with_name(baked.path.name + ".json")
    content = json.loads(record.read_text())
    assert content["original_sha256"] == baked.original_sha256
    record.write_text(json.dumps(content | {"format": 0}))
    assert not intact(baked)


def test_a_half_made_copy_of_a_dead_process_is_cleared_away(kitchen: Kitchen) -> None:
    (kitchen.root / ".new-dead").mkdir(parents=True)
    (kitchen.root / ".new-dead" / "qemu-aarch64-static").write_bytes(b"half")
    kitchen.root.chmod(0o755)
    baked = kitchen.bake(program())
    assert {each.name for each in kitchen.root.iterdir()} == {".lock", baked.key}


def test_a_failed_copy_leaves_nothing(kitchen: Kitchen, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bakery, "_pwrite", full)
    with pytest.raises(BakeError, match="No space left"):
        kitchen.bake(program())
    assert {each.name for each in kitchen.root.iterdir()} == {".lock"}


def test_an_interpreter_that_changes_while_it_is_copied_gives_no_copy(
    kitchen: Kitchen, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = bakery._copy

    def slow(source: int, target: int, size: int, path: Path) -> None:
        copy(source, target, size, path)
        with (kitchen.directory / "qemu-aarch64-static").open("ab") as file:
            file.write(b"more")

    monkeypatch.setattr(bakery, "_copy", slow)
    with pytest.raises(BakeError, match="changed while it was being copied"):
        kitchen.bake(program())
    assert {each.name for each in kitchen.root.iterdir()} == {".lock"}


def test_the_copy_is_the_same_where_the_kernel_cannot_share_blocks(
    kitchen: Kitchen, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = kitchen.bake(program())
    content = shared.path.read_bytes()

    def refuse(*_: object) -> int:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "copy_file_range", refuse)
    prune(kitchen.state, set())
    assert kitchen.bake(program()).path.read_bytes() == content


def bake_elsewhere(directory: str, arguments: tuple[str, ...], barrier, results) -> None:
    barrier.wait()
    try:
        baked = bake(
            Path(directory) / "qemu-aarch64-static",
            arguments,
            Path(directory) / "state",
            Path(directory) / "front.bin",
        )
        results.put((baked.key, intact(baked, full=True), baked.path.stat().st_ino))
    except BaseException as error:
        results.put((repr(error), False, 0))


def test_processes_that_bake_at_once_get_one_whole_copy_each(kitchen: Kitchen) -> None:
    kitchen.interpreter(program())
    kitchen.front(front_bytes())
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(12), context.Queue()
    processes = [
        context.Process(
            target=bake_elsewhere,
            args=(str(kitchen.directory), ("-cpu", f"model{number % 3}"), barrier, results),
        )
        for number in range(12)
    ]
    for process in processes:
        process.start()
    answers = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert all(whole for _, whole, _ in answers), answers
    assert len(set(answers)) == 3
    left = {each.name for each in kitchen.root.iterdir()}
    assert left == {".lock"} | {key for key, _, _ in answers}


def test_prune_keeps_what_it_is_told_and_what_is_not_its_own(kitchen: Kitchen) -> None:
    kept = kitchen.bake(program())
    gone = kitchen.bake(program(), ("-cpu", "max"))
    (kitchen.root / ".new-dead").mkdir()
    (kitchen.root / "notes").mkdir()
    assert prune(kitchen.state, {kept.key}) == (gone.key,)
    assert intact(kept, full=True)
    assert {each.name for each in kitchen.root.iterdir()} == {".lock", "notes", kept.key}
    assert prune(kitchen.directory / "nothing", set()) == ()


def check_result(original: bytes, baked: bytes) -> None:
    """What the kernel relies on, for any copy that was made."""
    entry = struct.unpack_from("<Q", baked, 24)[0]
    loads = [each for each in headers(baked) if each[0] == PT_LOAD]
    assert len(headers(baked)) == len(headers(original))
    assert any(flags & 1 and at <= entry < at + size for _, flags, _, at, _, size, *_ in loads)
    assert all(a[3] + a[6] <= b[3] for a, b in itertools.pairwise(loads))
    assert all(offset + size <= len(baked) for _, _, offset, _, _, size, _, _ in loads)
    assert entry + params(baked)[2] == struct.unpack_from("<Q", original, 24)[0]


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """The usual program with some of its header bytes changed, perhaps cut short."""
    data = bytearray(bytes(program(notes=(PROPERTY, BUILD_ID))))
    for _ in range(draw(st.integers(0, 6))):
        at = draw(st.integers(0, 64 + 6 * 56 - 1) | st.integers(0, len(data) - 1))
        data[at] = draw(
            st.sampled_from([0, 1, 2, 3, 4, 0x10, 0x40, 0x7F, 0x80, 0xFF]) | st.integers(0, 255)
        )
    return bytes(data[: draw(st.just(len(data)) | st.integers(0, len(data)))])


@settings(max_examples=400, deadline=None)
@given(
    data=mutated()
    | st.binary(max_size=400)
    | st.binary(max_size=200).map(lambda tail: b"\x7fELF\x02\x01" + tail)
)
def test_no_file_makes_it_fail_otherwise_than_with_its_own_error(data: bytes) -> None:
    front = fronts.parse(front_bytes())
    text = fronts.text(MODEL, front.room)
    try:
        place = fronts.place(lambda n, at: data[at : at + n], len(data), front)
    except BakeError:
        return
    baked = bytearray(data)
    for offset, change in fronts.changes(place, len(data), front, text):
        baked = baked.ljust(offset, b"\0")
        baked[offset : offset + len(change)] = change
    check_result(data, bytes(baked))


@settings(max_examples=100, deadline=None)
@given(data=st.binary(max_size=300) | st.binary(max_size=80).map(lambda b: fronts.MAGIC + b))
def test_no_front_makes_it_fail_otherwise_than_with_its_own_error(data: bytes) -> None:
    try:
        front = fronts.parse(data)
    except BakeError:
        return
    assert front.params + fronts.PARAMS.size + front.room <= len(data)


HELP = {
    "qemu 7.2 aarch64": ("Available CPUs:\n  a64fx\n  max\n  neoverse-n1\n", 1),
    "qemu ppc64le": ("PowerPC 601 PVR 00010001\nPowerPC power9 (alias for power9_v2.0)\n", 0),
    "qemu mips": ("MIPS '4Kc'\nMIPS '24Kf'\n", 0),
    "qemu 7.2 x86_64": ("Available CPUs:\nx86 max  x\n\nRecognized CPUID flags:\n  fpu vme\n", 0),
    "qemu loongarch64": ("la464-loongarch-cpu\n", 0),
}


@pytest.mark.parametrize(
    ("which", "cpu", "known"),
    [
        ("qemu 7.2 aarch64", "neoverse-n1", True),
        ("qemu 7.2 aarch64", "max,pauth-impdef=on", True),
        ("qemu 7.2 aarch64", "neoverse", False),
        ("qemu 7.2 aarch64", "Available", False),
        ("qemu 7.2 aarch64", "", False),
        ("qemu ppc64le", "power9", True),
        ("qemu mips", "24Kf", True),
        ("qemu 7.2 x86_64", "max", True),
        ("qemu 7.2 x86_64", "fpu", False),
        ("qemu loongarch64", "la464", True),
        ("qemu loongarch64", "la464-loongarch-cpu", True),
    ],
)
def test_a_model_is_known_when_the_interpreter_lists_it(
    tmp_path: Path, which: str, cpu: str, known: bool
) -> None:
    text, status = HELP[which]
    script = tmp_path / "qemu"
    script.write_text(f"#!{sys.executable}\nprint({text!r}, end='')\nraise SystemExit({status})\n")
    script.chmod(0o755)
    assert model_known(script, cpu) is known


def test_an_interpreter_that_hangs_or_crashes_cannot_tell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "qemu"
    with pytest.raises(BakeError, match="No such file"):
        model_known(script, "max")
    script.write_text("#!/bin/sh\nkill -SEGV $$\n")
    script.chmod(0o755)
    with pytest.raises(BakeError, match="killed by signal 11"):
        model_known(script, "max")
    monkeypatch.setattr(bakery, "_HELP_SECONDS", 0.2)
    script.write_text("#!/bin/sh\nexec sleep 60\n")
    with pytest.raises(BakeError, match="timed out"):
        model_known(script, "max")


def test_a_held_lock_is_waited_for_but_not_for_ever(
    kitchen: Kitchen, monkeypatch: pytest.MonkeyPatch
) -> None:
    kitchen.root.mkdir(parents=True)
    kitchen.root.chmod(0o755)
    monkeypatch.setattr(bakery, "_LOCK_SECONDS", 0.3)
    holder = subprocess.Popen(
        ["flock", kitchen.root / ".lock", "sh", "-c", "echo held; read line"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdin and holder.stdout
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(BakeError, match="another process has held"):
        kitchen.bake(program())
    holder.communicate(b"\n")
    assert intact(kitchen.bake(program()))
