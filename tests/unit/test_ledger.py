"""emulation/ledger.py: only what stands in it is maid's, and it survives a crash."""

from dataclasses import replace
from pathlib import Path

import msgspec

from maid.emulation.ledger import Ledger, Record

RECORD = Record("arm", "qemu-arm", "/q", "7f", "ff", "PF", 0, 1, 2, "abc", False)


def test_what_is_put_is_there_for_the_next_daemon(tmp_path: Path) -> None:
    path = str(tmp_path / "dir" / "ledger.json")
    Ledger(path).put(RECORD)
    assert list(Ledger(path)) == [RECORD]
    Ledger(path).drop("qemu-arm")
    assert list(Ledger(path)) == []


def test_ownership_is_byte_for_byte(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path / "ledger.json"))
    ledger.put(RECORD)
    entry = RECORD.entry()
    assert ledger.owns(entry)
    assert ledger.owns(replace(entry, enabled=False))
    for changed in (
        replace(entry, flags="F"),
        replace(entry, magic=b"\x7e"),
        replace(entry, mask=b"\xfe"),
        replace(entry, interpreter="/other"),
        replace(entry, offset=1),
        replace(entry, name="other"),
    ):
        assert not ledger.owns(changed)


def test_a_damaged_ledger_owns_nothing(tmp_path: Path) -> None:
    path = tmp_path / "ledger.json"
    for damage in (b"", b"[{", b'[{"target": 1}]', b"\xff\0"):
        path.write_bytes(damage)
        assert list(Ledger(str(path))) == []


def test_what_the_table_has_lost_is_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "ledger.json"
    ledger = Ledger(str(path))
    ledger.put(RECORD)
    ledger.put(msgspec.structs.replace(RECORD, name="gone"))
    ledger.keep_only({"qemu-arm": RECORD.entry()})
    assert [record.name for record in Ledger(str(path))] == ["qemu-arm"]
    ledger.keep_only({"qemu-arm": replace(RECORD.entry(), interpreter="/changed")})
    assert list(Ledger(str(path))) == []


def test_both_records_of_a_renewal_are_of_their_target(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path / "ledger.json"))
    ledger.put(RECORD)
    ledger.put(msgspec.structs.replace(RECORD, name="qemu-arm.next"))
    ledger.put(msgspec.structs.replace(RECORD, name="qemu-mips", target="mips"))
    assert [record.name for record in ledger.of("arm")] == ["qemu-arm", "qemu-arm.next"]


STANDIN = msgspec.structs.replace(RECORD, name="qemu-arm.next")


def test_what_is_in_reserve_is_in_the_file_and_a_record_only_once_the_table_shows_it(
    tmp_path: Path,
) -> None:
    path = str(tmp_path / "ledger.json")
    ledger = Ledger(path)
    ledger.put(RECORD)
    ledger.reserve([STANDIN, RECORD])
    assert list(ledger) == [RECORD] and ledger.of("arm") == [RECORD]
    assert ledger.owns(STANDIN.entry())
    ledger.take_up({"qemu-arm.next": replace(STANDIN.entry(), interpreter="/theirs")})
    assert list(ledger) == [RECORD]
    ledger.take_up({"qemu-arm.next": STANDIN.entry()})
    assert list(ledger) == [RECORD, STANDIN]
    again = Ledger(path)  # after a crash
    again.keep_only({"qemu-arm.next": STANDIN.entry()})
    assert list(again) == [STANDIN]
    ledger.drop("qemu-arm")
    ledger.drop("qemu-arm.next")
    ledger.reserve([])
    assert not ledger.owns(STANDIN.entry()) and list(Ledger(path)) == []


def test_what_comes_and_goes_in_a_fight_is_not_written_each_time(tmp_path: Path) -> None:
    path = tmp_path / "ledger.json"
    ledger = Ledger(str(path))
    ledger.put(RECORD)
    ledger.reserve([STANDIN, RECORD])
    written = path.stat().st_ino
    for _ in range(3):
        ledger.take_up({"qemu-arm.next": STANDIN.entry()})
        ledger.drop("qemu-arm")
        ledger.put(RECORD)
        ledger.drop("qemu-arm.next")
    assert path.stat().st_ino == written
