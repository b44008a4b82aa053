"""maid.doctor.owners: who registered an entry, told by what files say."""

import pytest
from doctoring import HOST, Made, conf

from maid.config import Config
from maid.doctor import (
    owners,
    table,
)


@pytest.mark.parametrize(
    ("owner", "change", "name", "how"),
    [
        (owners.MAID, lambda made: None, "qemu-aarch64", {}),
        (owners.UNKNOWN, lambda made: None, "qemu-aarch64", {"flags": "F"}),
        (owners.SYSTEMD, lambda made: conf(made, name="sd"), "sd", {}),
        (
            owners.UNKNOWN,
            lambda made: conf(made, name="sd"),
            "sd",
            {"interpreter": "/usr/bin/crun"},
        ),
        (owners.SUPPORT, lambda made: made.write("/var/lib/binfmts/bs", ""), "bs", {}),
        (owners.WSL, lambda made: None, "WSLInterop", {}),
        (owners.ROSETTA, lambda made: None, "r", {"interpreter": "/run/rosetta/rosetta"}),
        (owners.IMAGE, lambda made: None, "d", {"interpreter": "/usr/bin/qemu-aarch64"}),
        (owners.UNKNOWN, lambda made: None, "x", {}),
    ],
)
def test_owners_are_told_by_what_files_say(made: Made, owner, change, name, how) -> None:
    change(made)
    made.entry(name, **how)
    rows, unreadable = table.rows(Config(), HOST, made.place())
    assert unreadable == []
    assert {row.entry.name: row.owner for row in rows}[name] == owner


def test_without_the_ledger_maid_s_copies_are_known_by_their_place(made: Made) -> None:
    made.remove("/run/maid/ledger/host.json")
    made.entry("maid-aarch64", interpreter="/var/lib/maid/baked/k/qemu-aarch64-static")
    rows, _ = table.rows(Config(), HOST, made.place())
    assert {row.entry.name: row.owner for row in rows}["maid-aarch64"] == owners.MAID


def test_binfmt_d_files_hide_one_another(made: Made) -> None:
    conf(made)
    assert set(owners.configured(made.place())) == {"qemu-aarch64", "python3"}
    made.write("/etc/binfmt.d/qemu-aarch64.conf", ";none\n\n:other:M::x:y:/z:\n")
    assert set(owners.configured(made.place())) == {"other", "python3"}
    made.link("/etc/binfmt.d/qemu-aarch64.conf", "/dev/null")
    assert set(owners.configured(made.place())) == {"python3"}


def test_binfmt_d_lines_may_have_any_delimiter(made: Made) -> None:
    made.write("/etc/binfmt.d/a.conf", "|a|M|0|\\x7f||/usr/bin/a|OCF\n")
    line = owners.configured(made.place())["a"]
    assert (line.interpreter, line.flags) == ("/usr/bin/a", "OCF")
