"""The ledger: what maid itself registered in one instance, and with which file behind it.

Only what stands here is ever changed or removed (rule 1 of design.md). It lies in the runtime
directory, because entries do not outlive a reboot either. The kernel cannot be asked which inode an
entry with flag F holds open, so the ledger remembers it.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterable, Iterator, Mapping

import msgspec

from maid.binfmt.entry import Entry
from maid.errors import MaidError

log = logging.getLogger(__name__)


class Record(msgspec.Struct, frozen=True):
    """One entry of maid's: the registration as it was made, and its interpreter's identity.

    `magic` and `mask` are hexadecimal; `device`, `inode` and `sha256` are those of the file that
    was opened by the registration (flag F); `baked` says that it was a copy with maid's front.
    """

    target: str
    name: str
    interpreter: str
    magic: str
    mask: str
    flags: str
    offset: int
    device: int
    inode: int
    sha256: str
    baked: bool

    def entry(self) -> Entry:
        """The registration as the kernel should show it."""
        return Entry(
            self.name,
            self.interpreter,
            bytes.fromhex(self.magic),
            bytes.fromhex(self.mask),
            self.flags,
            self.offset,
        )


class Ledger:
    """The records of one instance, kept in the file `path`; nothing is written until `put` or
    `drop`."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._records = {record.name: record for record in self._load()}
        self._reserve: dict[str, Record] = {}
        self._written = dict(self._records)
        """What the file has."""

    def _load(self) -> list[Record]:
        try:
            with open(self._path, "rb") as file:
                return msgspec.json.decode(file.read(), type=list[Record])
        except FileNotFoundError:
            return []
        except (OSError, msgspec.MsgspecError) as error:
            # Unreadable means that nothing is known to be ours: entries are then adopted, not
            # owned.
            log.warning("ledger %s cannot be read and is started anew: %s", self._path, error)
            return []

    def __iter__(self) -> Iterator[Record]:
        return iter(list(self._records.values()))

    def __contains__(self, name: str) -> bool:
        return name in self._records

    def get(self, name: str) -> Record | None:
        """The record of the entry `name`, or None."""
        return self._records.get(name)

    def of(self, target: str) -> list[Record]:
        """The records of the target of that name; two while one is being renewed."""
        return [record for record in self._records.values() if record.target == target]

    def owns(self, entry: Entry) -> bool:
        """Whether `entry`, as the kernel shows it, is one of maid's, byte for byte."""
        record = self._records.get(entry.name) or self._reserve.get(entry.name)
        return record is not None and record.entry().same_registration(entry)

    def put(self, record: Record) -> None:
        """Note a registration, before it is made: a crash in between leaves a record of nothing,
        which is harmless; the other way round would leave an entry that nobody owns.

        Raises MaidError when it cannot be written, and then it is not noted. What the file has
        already need not be written: an entry can be repaired on a full disk.
        """
        before = dict(self._records)
        self._records[record.name] = record
        try:
            self._save()
        except OSError as error:
            if self._written.get(record.name) == record:
                return
            self._records = before
            raise MaidError(
                f"the ledger {self._path} cannot be written: {error.strerror}",
                "nothing is registered that is not noted there first: make room on its disk",
            ) from error

    def drop(self, name: str) -> None:
        """Forget the entry `name`."""
        if self._records.pop(name, None) is not None:
            self._save_later()

    def reserve(self, records: Iterable[Record]) -> None:
        """Hold these in reserve, and no others: note them before the guard is told of them."""
        self._reserve = {record.name: record for record in records}
        self._save()

    @property
    def reserved(self) -> bool:
        """Whether anything is held in reserve."""
        return bool(self._reserve)

    def unreserve(self) -> None:
        """Hold nothing in reserve any more: no guard is left that could register it."""
        self._reserve = {}
        self._save_later()

    def take_up(self, table: Mapping[str, Entry]) -> None:
        """Have what was in reserve as a record where the table shows it now."""
        for name, record in self._reserve.items():
            shown = table.get(name)
            if name not in self._records and shown and record.entry().same_registration(shown):
                self._records[name] = record

    def keep_only(self, table: Mapping[str, Entry]) -> None:
        """Forget what the table does not hold (after `release`, or at the start)."""
        kept = {
            name: r for name, r in self._records.items() if name in table and self.owns(table[name])
        }
        if kept != self._records:
            self._records = kept
            self._save_later()

    def _save_later(self) -> None:
        """Save, or let the next change do it: until then the file has a record of nothing more."""
        try:
            self._save()
        except OSError as error:
            log.warning("ledger %s cannot be written: %s", self._path, error.strerror)

    def _save(self) -> None:
        """Raises OSError, and then the file is as it was."""
        held = self._reserve | self._records
        if held == self._written and os.path.exists(self._path):
            return
        new = f"{self._path}.new"
        data = msgspec.json.format(msgspec.json.encode(list(held.values())), indent=1)
        os.makedirs(os.path.dirname(self._path), mode=0o755, exist_ok=True)
        try:
            with open(new, "wb") as file:
                file.write(data)
            os.rename(new, self._path)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(new)
            raise
        self._written = held

    def remove(self) -> None:
        """Forget everything and remove the file."""
        self._records, self._reserve, self._written = {}, {}, {}
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)
