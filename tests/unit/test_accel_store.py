"""The store changes by renames, checks itself, and gives way by size and use."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from maid.acceleration import records, sets
from maid.acceleration import store as store_module
from maid.acceleration.sets import FORMAT, Entry, Manifest
from maid.acceleration.store import Store, StoreError


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "GRACE", 0.0)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store", tmp_path / "notes")


def entry(name: str, tool: str, build_id: str) -> Entry:
    program = f"bin/{tool}"
    record = records.encode(f"/dev/.maid/{name}/{program}", ())
    return Entry(tool, build_id, f"/usr/bin/{tool}", tool, "1", tool, "1", program, record)


def publish(store: Store, name: str, tools: Iterable[str], size: int = 10) -> Manifest:
    """A set of tools whose build-ids are their names in hexadecimal."""
    root = store.root / f".new-{name}"
    (root / "bin").mkdir(parents=True)
    for tool in tools:
        (root / "bin" / tool).write_bytes(name.encode() * size)
        (root / "bin" / tool).chmod(0o755)
    sizes, digests = sets.measure(root)
    entries = [entry(name, tool, tool.encode().hex()) for tool in tools]
    manifest = Manifest(
        FORMAT, name, "debian", "trixie", "amd64", "arm64", "t", 1.0, "m", [], entries, [], sizes,
        digests,
    )  # fmt: skip
    store.publish(root, manifest)
    return manifest


def program_of(store: Store, tool: str) -> str:
    return records.decode((store.root / "id" / tool.encode().hex()).read_bytes())[0]


def test_a_published_set_is_found_again_by_another_process(store: Store, tmp_path: Path) -> None:
    made = publish(store, "aaaaa", ["xz", "tar"])
    other = Store(tmp_path / "store", tmp_path / "notes")
    assert other.sets() == [made]
    assert other.get("aaaaa") == made
    assert {build_id: e.tool for build_id, (_, e) in other.entries().items()} == {
        b"xz".hex(): "xz",
        b"tar".hex(): "tar",
    }
    assert program_of(store, "xz") == "/dev/.maid/aaaaa/bin/xz"
    assert other.verify() == []
    assert not list(store.root.glob(".new-*"))


def test_what_containers_read_has_modes_for_everybody(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        store = Store(tmp_path / "store", tmp_path / "notes")
        publish(store, "aaaaa", ["xz"])
    finally:
        os.umask(before)
    for path in (store.root, *store.root.rglob("*")):
        assert path.stat().st_mode & 0o444 == 0o444, path
        assert not path.is_dir() or path.stat().st_mode & 0o111 == 0o111, path


@pytest.mark.parametrize("mode", [0o775, 0o777, 0o757])
def test_a_directory_others_can_write_is_no_store(tmp_path: Path, mode: int) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store").chmod(mode)
    with pytest.raises(StoreError, match="only this user can write"):
        Store(tmp_path / "store", tmp_path / "notes")


def test_a_link_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "store").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError):
        Store(tmp_path / "store", tmp_path / "notes")


def test_the_newest_set_s_records_count(store: Store) -> None:
    publish(store, "aaaaa", ["xz", "tar"])
    publish(store, "bbbbb", ["xz"])
    assert program_of(store, "xz") == "/dev/.maid/bbbbb/bin/xz"
    assert program_of(store, "tar") == "/dev/.maid/aaaaa/bin/tar"


def test_a_removed_set_s_records_go_to_another_that_has_them(store: Store) -> None:
    publish(store, "aaaaa", ["xz", "tar"])
    publish(store, "bbbbb", ["xz", "sed"])
    store.drop(["bbbbb"])
    assert program_of(store, "xz") == "/dev/.maid/aaaaa/bin/xz"
    assert not (store.root / "id" / b"sed".hex()).exists()
    assert store.verify() == []


def test_a_record_never_names_what_is_not_there(store: Store) -> None:
    """Sets come and go while a reader looks, as the front does, for a record and its program."""
    missing, stop = [], threading.Event()

    def look() -> None:
        while not stop.is_set():
            try:
                name = program_of(store, "xz")
            except FileNotFoundError:
                continue
            path = store.root / name.removeprefix("/dev/.maid/")
            # The record may have gone since; only one that stays must be right.
            if not path.exists() and (store.root / "id" / b"xz".hex()).exists():
                time.sleep(0.005)
                try:
                    if program_of(store, "xz") == name and not path.exists():
                        missing.append(name)
                except FileNotFoundError:
                    continue

    reader = threading.Thread(target=look)
    reader.start()
    try:
        for _ in range(30):
            publish(store, "aaaaa", ["xz"])
            publish(store, "bbbbb", ["xz"])
            store.drop(["aaaaa"])
            store.drop(["bbbbb"])
    finally:
        stop.set()
        reader.join()
    assert missing == []


def test_the_least_used_sets_go_first(store: Store) -> None:
    for name in ("aaaaa", "bbbbb", "ccccc"):
        publish(store, name, ["xz"], size=100)  # 500 bytes
    notes = store.notes
    for name, age in (("aaaaa", 10), ("bbbbb", 5000), ("ccccc", 100)):
        then = time.time() - age
        os.utime(notes / f"used-{name}", (then, then))
    assert [each.name for each in store.prune(size=1200)] == ["bbbbb"]
    assert [each.name for each in store.prune(unused=50)] == ["ccccc"]
    assert store.prune(size=500, unused=3600) == []
    assert [each.name for each in store.prune(size=0)] == ["aaaaa"]
    assert list((store.root / "id").iterdir()) == []


def test_what_is_in_use_is_spared(store: Store) -> None:
    for name, age in (("aaaaa", 10), ("bbbbb", 5000)):
        publish(store, name, [name])
        os.utime(store.notes / f"used-{name}", (time.time() - age,) * 2)
    assert [each.name for each in store.prune(size=0, spared=60)] == ["bbbbb"]
    assert [each.name for each in store.sets()] == ["aaaaa"]


def test_a_program_that_has_just_started_finds_its_libraries(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the front's execve and the loader's first open a set may be removed."""
    publish(store, "aaaaa", ["xz"])
    seen = []

    def look(seconds: float) -> None:
        record = (store.root / "id" / b"xz".hex()).exists()
        seen.append((seconds, record, (store.root / "aaaaa/bin/xz").exists()))

    monkeypatch.setattr(store_module, "GRACE", 1.5)
    monkeypatch.setattr(time, "sleep", look)
    store.prune(size=0)
    assert seen == [(1.5, False, True)]
    assert not (store.root / "aaaaa").exists()


def test_what_a_killed_maker_left_is_removed_when_it_is_old(store: Store) -> None:
    old, fresh = store.root / ".new-aaaaa-1", store.root / ".new-bbbbb-2"
    for path in (old, fresh):
        path.mkdir()
    os.utime(old, (1, 1))
    store.prune()
    assert not old.exists()
    assert fresh.exists()


def tamper_content(root: Path) -> None:
    file = root / "aaaaa/bin/xz"
    file.write_bytes(file.read_bytes()[:-1] + b"X")


def tamper_mode(root: Path) -> None:
    (root / "aaaaa/bin/xz").chmod(0o777)


def tamper_setuid(root: Path) -> None:
    (root / "aaaaa/bin/xz").chmod(0o4755)


def tamper_missing(root: Path) -> None:
    (root / "aaaaa/bin/xz").unlink()


def tamper_added(root: Path) -> None:
    (root / "aaaaa/bin/more").write_text("x")


def tamper_link(root: Path) -> None:
    (root / "aaaaa/bin/xz").unlink()
    (root / "aaaaa/bin/xz").symlink_to("/bin/sh")


def tamper_record(root: Path) -> None:
    (root / "id" / b"xz".hex()).write_bytes(records.encode("/dev/.maid/aaaaa/bin/tar", ()))


def tamper_new_record(root: Path) -> None:
    (root / "id" / "00").write_bytes(records.encode("/dev/.maid/aaaaa/bin/tar", ()))


@pytest.mark.parametrize(
    "tamper",
    [
        tamper_content, tamper_mode, tamper_setuid, tamper_missing, tamper_added, tamper_link,
        tamper_record, tamper_new_record,
    ],
)  # fmt: skip
def test_every_kind_of_tampering_is_found(store: Store, tamper: object) -> None:
    publish(store, "aaaaa", ["xz", "tar"])
    assert callable(tamper)
    tamper(store.root)
    (damage,) = store.verify()
    damaged = damage.path.split("/")[0]
    store.drop([damaged] if damaged == "aaaaa" else [])
    assert store.verify() == []
    assert len(store.sets()) == (damaged == "id")


def test_a_full_disk_leaves_nothing_half_done(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(store, "aaaaa", ["xz"])

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(StoreError, match="No space left"):
            publish(store, "bbbbb", ["xz"])
    assert [each.name for each in store.sets()] == ["aaaaa"]
    assert store.verify() == []
    assert not list(store.root.glob(".new-bbbbb*"))
    publish(store, "bbbbb", ["xz"])
    assert program_of(store, "xz") == "/dev/.maid/bbbbb/bin/xz"


@pytest.mark.parametrize("after", range(4))
def test_a_set_whose_records_could_not_all_be_written_is_none(
    store: Store, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    publish(store, "aaaaa", ["xz", "tar"])
    write, count = store_module._write, 0

    def filling_up(path: Path, data: bytes) -> None:
        nonlocal count
        count += 1
        if count > after:
            raise OSError(28, "No space left on device")
        write(path, data)

    with monkeypatch.context() as patched:
        patched.setattr(store_module, "_write", filling_up)
        with pytest.raises(StoreError, match="No space left"):
            publish(store, "bbbbb", ["xz", "sed", "tar"])
    assert [each.name for each in store.sets()] == ["aaaaa"]
    store.prune()  # there is room again
    assert program_of(store, "xz") == "/dev/.maid/aaaaa/bin/xz"
    assert program_of(store, "tar") == "/dev/.maid/aaaaa/bin/tar"
    assert store.verify() == []
    assert sorted(path.name for path in store.root.iterdir()) == ["aaaaa", "emulate", "id"]


def test_a_file_that_could_not_be_written_is_not_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space left"):
        store_module._write(tmp_path / "record", b"x")
    assert list(tmp_path.iterdir()) == []


class Killed(BaseException):
    """What ends a process at once."""


def test_a_publishing_that_is_killed_is_done_again(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(store_module, "_write_manifest", killed)
        patched.setattr(Store, "_take_back", killed)
        with pytest.raises(Killed):
            publish(store, "aaaaa", ["xz"])
    assert store.sets() == [] and store.get("aaaaa") is None
    publish(store, "aaaaa", ["xz"])
    assert [each.name for each in store.sets()] == ["aaaaa"]
    assert store.verify() == []


def test_a_store_that_somebody_removed_has_no_sets(store: Store) -> None:
    publish(store, "aaaaa", ["xz"])
    shutil.rmtree(store.root)
    assert store.sets() == [] and store.entries() == {}


def test_one_makes_at_a_time_and_cleans_up_after_those_who_were_killed(store: Store) -> None:
    left = store.root / ".new-aaaaa-1", store.notes / ".work-x"
    for path in left:
        path.mkdir()
    other, waited, order = Store(store.root, store.notes), threading.Event(), []

    def make() -> None:
        with other.making(waited.set):
            order.append("second")

    with store.making(waited.set):
        assert not any(path.exists() for path in left)
        assert not waited.is_set()
        thread = threading.Thread(target=make)
        thread.start()
        assert waited.wait(5)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


def test_the_same_set_twice_is_one(store: Store) -> None:
    made = publish(store, "aaaaa", ["xz"])
    publish(store, "aaaaa", ["xz"])
    assert store.sets() == [made]
    assert not list(store.root.glob(".new-*"))


def test_a_set_with_a_damaged_manifest_is_none_and_can_be_made_again(store: Store) -> None:
    publish(store, "aaaaa", ["xz"])
    (store.root / "aaaaa/manifest.json").write_text("{")
    fresh = Store(store.root, store.notes)
    assert fresh.sets() == []
    publish(fresh, "aaaaa", ["xz"])
    assert [each.name for each in fresh.sets()] == ["aaaaa"]
    assert fresh.verify() == []


def test_nothing_is_started_from_a_retired_set_and_its_files_stay(store: Store) -> None:
    publish(store, "aaaaa", ["xz", "tar"])
    publish(store, "bbbbb", ["xz"])
    store.retire(["bbbbb"])
    assert program_of(store, "xz") == "/dev/.maid/aaaaa/bin/xz"
    store.retire(["aaaaa", "bbbbb"])
    assert list((store.root / "id").iterdir()) == []
    assert (store.root / "aaaaa/bin/xz").exists()
    store.prune()
    assert list((store.root / "id").iterdir()) == []
    store.retire(["bbbbb"])
    assert program_of(store, "xz") == "/dev/.maid/aaaaa/bin/xz"
    store.drop(["bbbbb"])
    store.retire([])
    assert [each.name for each in store.sets()] == ["aaaaa"]
    assert store.verify() == []
