"""How a copy goes on: bytes that are there, bytes that came, and how people see them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from memory import Memory

from maid.cli.transfers import amount
from maid.images.index import Descriptor, Manifest
from maid.images.layout import Layout
from maid.images.transfer import Account, blobs_of


class Watcher:
    def __init__(self) -> None:
        self.seen: list[object] = []

    def begin(self, descriptor: Descriptor, size: int) -> None:
        self.seen.append(size)

    def at(self, done: int) -> None:
        self.seen.append((done,))

    def end(self) -> None:
        self.seen.append("end")


def test_bytes_are_counted_once_and_what_was_there_is_not_fetched(tmp_path: Path) -> None:
    source = Memory()
    one, two = source.image("linux/amd64"), source.image("linux/arm64")
    layout = Layout.create(tmp_path / "layout")
    found = [source.find(source.name(each).descriptor) for each in (one, two)]
    documents = [each.document for each in found]
    assert all(isinstance(each, Manifest) for each in documents)
    first, second = (blobs_of(each) for each in documents if isinstance(each, Manifest))
    # The layer is the same; it is there before.
    (layer,) = first.keys() & second.keys()
    layout.blob(layer).write_bytes(source.blobs[layer])
    watcher = Watcher()
    account = Account(layout, source.find, watcher)
    stage = tmp_path / "stage"
    stage.mkdir()
    (stage / "oci-put-blob1").write_bytes(b"abc")
    (stage / "index.json").write_bytes(b"x" * 50)
    account(found[0].descriptor, stage)
    account(found[0].descriptor, None)
    account(found[1].descriptor, None)
    total, other = sum(first.values()), sum(second.values())
    assert watcher.seen == [total, (first[layer] + 3,), "end", other, "end"]
    assert account.size == total + other - first[layer]
    assert account.fetched == account.size - first[layer]


def test_a_bar_does_not_run_over_its_end(tmp_path: Path) -> None:
    source = Memory()
    found = source.name(source.image("linux/amd64"))
    layout = Layout.create(tmp_path / "layout")
    watcher = Watcher()
    stage = tmp_path / "stage"
    stage.mkdir()
    (stage / "oci-put-blob1").touch()
    os.truncate(stage / "oci-put-blob1", 1 << 40)
    Account(layout, source.find, watcher)(found.descriptor, stage)
    assert isinstance(found.document, Manifest)
    size = sum(blobs_of(found.document).values())
    assert watcher.seen == [size, (size,)]


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (99_900, "99.9 kB"),
        (123_456, "123 kB"),
        (999_499, "999 kB"),
        (999_500, "1.0 MB"),
        (4_200_000, "4.2 MB"),
        (1 << 30, "1.1 GB"),
        (5 * 10**12, "5.0 TB"),
        (1 << 60, "1152922 TB"),
    ],
)
def test_amounts_are_for_people(size: int, shown: str) -> None:
    assert amount(size) == shown
