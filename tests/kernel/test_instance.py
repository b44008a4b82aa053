"""binfmt/instance.py and namespace.py on the real kernel, in private instances."""

import errno
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from keeping import pinned_at, plain, qemu

from maid import kernel, native
from maid.binfmt import namespace
from maid.binfmt.entry import Entry
from maid.binfmt.instance import RegistrationError, hidden_from_init
from maid.binfmt.namespace import IdRange, Mapping, for_user
from maid.emulation.targets import TARGETS


def test_every_target_goes_in_and_comes_out_without_loss(tmp_path: Path) -> None:
    with pinned_at(tmp_path / "instance") as pinned:
        put = {}
        for target in TARGETS.values():
            for flags in ("F", "PF", "OCF", "POCF"):
                name = f"{target.name}-{flags}"
                put[name] = replace(plain(target, native.path("maid-enter"), flags), name=name)
                pinned.instance.add(put[name])
        assert pinned.instance.entries() == put


def test_offsets_extensions_and_missing_masks_are_read_back(tmp_path: Path) -> None:
    with pinned_at(tmp_path / "instance") as pinned:
        made = [
            Entry("offset", "/bin/true", b"magic:\\\0\n", b"", "", 100),
            Entry("extension", "/bin/true", b"exe", b"", "", 0, "E"),
            Entry("colon", "/opt/a:b", b"\xff", b"\x0f", "P"),
        ]
        for entry in made:
            pinned.instance.add(entry)
        assert list(pinned.instance.entries().values()) == sorted(
            made, key=lambda e: list(pinned.instance.entries()).index(e.name)
        )


def test_the_kernels_refusals_have_words(tmp_path: Path) -> None:
    target = TARGETS["aarch64"]
    with pinned_at(tmp_path / "instance") as pinned:
        entry = plain(target, native.path("maid-enter"))
        pinned.instance.add(entry)
        with pytest.raises(RegistrationError, match="there already") as raised:
            pinned.instance.add(entry)
        assert raised.value.errno == errno.EEXIST
        with pytest.raises(RegistrationError, match="must be there and executable"):
            pinned.instance.add(replace(entry, name="missing", interpreter="/usr/bin/no-such"))
        kernel.detach(pinned.binfmt)
        with pytest.raises(RegistrationError, match="not mounted there"):
            pinned.instance.add(replace(entry, name="unmounted"))


def test_only_the_exact_entry_is_removed(tmp_path: Path) -> None:
    with pinned_at(tmp_path / "instance") as pinned:
        entry = plain(TARGETS["aarch64"], native.path("maid-enter"))
        pinned.instance.add(entry)
        assert not pinned.instance.remove(replace(entry, flags="PF"))
        assert not pinned.instance.remove(replace(entry, name="other"))
        assert pinned.instance.entries() == {entry.name: entry}
        assert pinned.instance.remove(entry)
        assert pinned.instance.entries() == {}


def test_status_is_never_written_with_minus_one(tmp_path: Path) -> None:
    with pinned_at(tmp_path / "instance") as pinned, pytest.raises(AssertionError):
        pinned.instance._write("status", b"-1", "flushing")


def test_a_pinned_instance_needs_no_process_and_is_taken_up(tmp_path: Path) -> None:
    directory = str(tmp_path / "instance")
    with pinned_at(tmp_path / "instance") as pinned:
        entry = plain(TARGETS["aarch64"], qemu("aarch64"), "F")
        pinned.instance.add(entry)
        taken = namespace.take_up(directory, pinned.mapping)
        assert taken is not None and taken.instance.entries() == {entry.name: entry}
    assert namespace.take_up(directory, namespace.identity()) is None
    assert not (tmp_path / "instance").exists()


def test_instances_do_not_see_each_other_nor_the_host(tmp_path: Path) -> None:
    before = sorted(os.listdir("/proc/sys/fs/binfmt_misc"))
    with pinned_at(tmp_path / "one") as one, pinned_at(tmp_path / "two") as two:
        one.instance.add(plain(TARGETS["aarch64"], native.path("maid-enter")))
        assert two.instance.entries() == {}
        assert sorted(os.listdir("/proc/sys/fs/binfmt_misc")) == before


def test_a_users_instance_maps_root_to_the_user(tmp_path: Path) -> None:
    mapping = Mapping((IdRange(0, 1234, 1),), (IdRange(0, 2345, 1),))
    pinned = namespace.create(str(tmp_path / "instance"), mapping)
    try:
        command = ["nsenter", f"--user={pinned.user}", "cat", "/proc/self/uid_map"]
        shown = subprocess.run(command, capture_output=True, check=True).stdout.split()
        assert shown == [b"0", b"1234", b"1"]
    finally:
        pinned.release()


def test_subordinate_ids_follow_the_users_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def subordinate(file: str, uid: int) -> tuple[IdRange, ...]:
        return (IdRange(1, 100000 if "uid" in file else 200000, 65536),)

    monkeypatch.setattr(namespace, "_subordinate", subordinate)
    mapping = for_user(1000, 100)
    assert mapping.uid_outside(0) == 1000 and mapping.gid_outside(0) == 100
    assert mapping.uid_outside(1) == 100000 and mapping.gid_outside(65536) == 265535
    assert mapping.uid_outside(65537) is None


def test_rule_4_what_the_first_process_does_not_see_is_named(tmp_path: Path) -> None:
    table = tmp_path / "proc/sys/fs/binfmt_misc"
    table.mkdir(parents=True)
    (table / "qemu-arm").touch()
    seen = hidden_from_init("/proc/sys/fs/binfmt_misc", ["qemu-arm", "qemu-aarch64"], str(tmp_path))
    assert seen == ["qemu-aarch64"]
