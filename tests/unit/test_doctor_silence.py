"""maid.doctor: what it must not say, of machines that look odd and are fine."""

import os
from pathlib import Path

import msgspec
import pytest
from doctoring import (
    HOST,
    MOUNTS,
    NO_TABLE,
    OWN_PROGRAMS,
    PRIVATE,
    SUPPORT,
    USER,
    Made,
    conf,
    found,
    record,
)

from maid.config import Config, Paths
from maid.doctor import (
    Place,
    examine,
    machine,
    programs,
    resources,
    services,
    surroundings,
    table,
)
from maid.doctor import place as places


def test_a_member_and_root_are_told_nothing_to_do(made: Made) -> None:
    member = made.place(uid=1000, groups=frozenset({1000, 990}))
    assert "you are in it" in found(services.group, member)
    assert found(services.group, made.place()).startswith("ok")


def test_one_whom_no_file_names_is_in_no_empty_group(made: Made) -> None:
    made.write("/etc/group", "maid:x:990:\n")
    stranger = made.place(uid=12345, groups=frozenset({12345}))
    assert "you are not a member" in found(services.group, stranger)


def test_a_user_with_a_range_can_have_steps(made: Made) -> None:
    user = made.place(**dict(USER))
    assert found(machine.subordinate_ids, user).startswith("ok")


def test_the_service_is_root_whoever_asks_about_cgroups(made: Made, monkeypatch) -> None:
    monkeypatch.setattr(Place, "writable", lambda self, path: False)
    assert found(resources.cgroups, made.place(**dict(USER))).startswith("ok cgroups: v2")
    assert "cannot be written" in found(resources.cgroups, made.place(**dict(USER)), PRIVATE)
    assert "cannot be written" in found(resources.cgroups, made.place())


@pytest.mark.parametrize(
    ("size", "inodes", "says"),
    [
        (100 * 1024**2, None, "100 MiB are left in /var/lib/maid"),
        (10**12, 500, "500 files are left"),
        (10**12, None, "ok space"),
    ],
)
def test_little_space_is_told_in_bytes_or_files(
    made: Made, monkeypatch, size: int, inodes: int | None, says: str
) -> None:
    monkeypatch.setattr(Place, "free", lambda self, path: (size, inodes))
    assert says in found(resources.space, made.place())


def test_an_automount_with_another_mount_of_the_table_does_not_matter(made: Made) -> None:
    made.write(
        "/proc/self/mountinfo",
        MOUNTS
        + "29 22 0:39 / /proc/sys/fs/binfmt_misc rw - autofs systemd-1 rw,timeout=120\n"
        + "31 22 0:40 / /run/maid/table rw - binfmt_misc none rw\n",
    )
    assert "expires" not in found(table.mounts, made.place())


def test_an_automount_is_not_looked_into(made: Made, monkeypatch) -> None:
    made.write(
        "/proc/self/mountinfo",
        NO_TABLE + "29 22 0:39 / /proc/sys/fs/binfmt_misc rw - autofs systemd-1 rw,timeout=0\n",
    )
    looked = []
    for name in ("open", "listdir", "stat"):
        real = getattr(os, name)

        def note(path, *rest, real=real, **more):
            looked.append(str(path))
            return real(path, *rest, **more)

        monkeypatch.setattr(os, name, note)
    examine(Config(), HOST, made.place(release="6.6.36.3-microsoft-standard-WSL2"))
    assert any(path.endswith("/proc/self/mountinfo") for path in looked)
    assert not any("binfmt_misc" in path for path in looked)


def test_tables_of_private_instances_are_not_the_machine_s(made: Made) -> None:
    made.append(
        "/proc/self/mountinfo",
        "31 22 0:41 / /run/maid/instances/root/binfmt rw - binfmt_misc none rw\n",
    )
    assert found(table.mounts, made.place()).startswith("ok")


def test_the_private_table_is_the_one_that_is_examined(made: Made) -> None:
    config = Config(paths=Paths(runtime=Path("/run/maid/private/x")))
    there = "/run/maid/private/x/instances/root/binfmt"
    made.append("/proc/self/mountinfo", f"31 22 0:41 / {there} rw - binfmt_misc none rw\n")
    made.write(f"{there}/status", "disabled\n")
    assert "switched off" in found(table.switched_on, made.place(), PRIVATE, config)
    assert there in found(table.mounts, made.place(), PRIVATE, config)


def test_an_entry_that_holds_an_image_s_emulator_is_not_called_broken(made: Made) -> None:
    made.entry("arm64", interpreter="/usr/bin/qemu-aarch64", flags="OCPF")
    said = found(table.entries, made.place())
    assert "interpreter is not there" not in said
    assert "problem" not in said


def test_a_disabled_entry_for_the_own_architecture_is_no_danger(made: Made) -> None:
    made.entry(
        "qemu-x86_64",
        magic=OWN_PROGRAMS.magic.hex(),
        mask=OWN_PROGRAMS.mask.hex(),
        state="disabled",
    )
    assert "own programs" not in found(table.entries, made.place())


def test_entries_for_no_machine_s_programs_are_left_out(made: Made) -> None:
    made.entry("python3.11", "/usr/bin/python3.11", "", magic="a70d0d0a", mask="")
    made.entry("jar", "/usr/bin/jexec", "", magic="504b0304", mask="")
    assert found(table.entries, made.place()).startswith("ok entries: 1 for foreign programs")


def test_interop_that_is_there_and_kept_is_fine(made: Made) -> None:
    made.entry("WSLInterop-late", interpreter="/init", flags="PF", magic="4d5a", mask="")
    made.write("/etc/binfmt.d/WSLInterop.conf", ":WSLInterop:M::MZ::/init:PF\n")
    place = made.place(release="5.15.90.1-microsoft-standard-WSL2")
    assert found(surroundings.wsl, place).startswith("ok WSL")
    assert "\n" not in found(surroundings.wsl, place)


def test_early_wsl_2_is_not_taken_for_wsl_1(made: Made) -> None:
    place = made.place(release="4.19.104-microsoft-standard")
    assert "WSL 1" not in found(surroundings.wsl, place)
    assert "WSLInterop is gone" in found(surroundings.wsl, place)


def test_maid_s_own_flags_are_not_for_the_doctor_to_doubt(made: Made) -> None:
    own = record("qemu-aarch64", "/usr/bin/qemu-aarch64-static", "F")
    made.write("/run/maid/ledger/host.json", msgspec.json.encode([own]))
    made.entry("qemu-aarch64", flags="F")
    assert found(table.entries, made.place()).startswith("ok entries: 1 for foreign programs")


def test_of_two_mounts_in_one_place_the_last_counts(made: Made) -> None:
    below = "40 21 8:2 / /var rw - ext4 /dev/sda2 rw\n"
    above = "41 21 8:3 / /var ro - ext4 /dev/sda3 ro\n"
    made.write("/proc/self/mountinfo", MOUNTS + below + above)
    assert "read-only" in found(resources.space, made.place())
    made.write("/proc/self/mountinfo", MOUNTS + above + below)
    assert "read-only" not in found(resources.space, made.place())


def test_runc_or_another_tree_has_no_quirk(made: Made) -> None:
    assert "hybrid" not in found(programs.runtimes, made.place())
    made.write("/sys/fs/cgroup/unified/cgroup.procs", "")
    made.remove("/usr/bin/crun")
    made.program("/usr/sbin/runc")
    assert found(programs.runtimes, made.place()) == "ok OCI runtime: there is /usr/sbin/runc -> "


def test_randomisation_that_only_root_may_read_is_no_finding(made: Made, monkeypatch) -> None:
    def refuse(self: Place, path: str) -> int | None:
        raise places.CannotLook(path, "Permission denied")

    monkeypatch.setattr(Place, "number", refuse)
    assert found(resources.randomisation, made.place()) == ""


def test_masked_services_do_not_conflict(made: Made) -> None:
    conf(made)
    made.link(SUPPORT, "x")
    made.link("/etc/systemd/system/systemd-binfmt.service", "/dev/null")
    assert found(services.systemd_binfmt, made.place()) == "ok systemd-binfmt: it is masked -> "
    assert "both" not in found(services.binfmt_support, made.place())
