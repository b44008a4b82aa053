"""Removal without a trace: the whole machine is compared, before maid came and after it went."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from container import Machine, booted, eventually
from trees import INSTALLER, SOURCE

INSTALL = f"{SOURCE}/scripts/install"
STAYS = {"/etc/maid", "/etc/maid/maid.toml"}
"""What --remove leaves, as docs/operations.md says."""

ELSEWHERE = (
    "/proc",
    "/sys",
    "/tmp",
    "/var/tmp",
    "/var/log/journal",
    "/opt",
    "/run/log",
    "/run/host",
)
"""Not looked at: other file systems, the journal, and the sources that the test put there."""

SYSTEMD_S = ("/run/systemd/", "/run/udev/", "/run/credentials", "/var/lib/systemd/timers")
"""systemd's own notes on units, some of which it makes when it likes."""


@pytest.fixture
def machine(other_tree: Path) -> Iterator[Machine]:
    """A machine from which all of maid is gone: as if it had never been there."""
    with booted(other_tree) as made:
        made.output(INSTALL, "--remove", "--purge", "--no-packages")
        made.output("systemctl", "daemon-reload")
        yield made


def files(machine: Machine) -> dict[str, str]:
    """Every path, with its type, mode, owner and, for files and links, size or target."""
    pruned = " -o ".join(f"-path {path}" for path in ELSEWHERE)
    found = machine.output(
        *(
            "sh",
            "-c",
            f"find / /run /dev \\( {pruned} \\) -prune -o -printf '%p\\t%y %m %U:%G %l\\n'",
        ),
        timeout=60,
    )
    entries = dict(line.split("\t", 1) for line in found.splitlines())
    return {path: what for path, what in entries.items() if not path.startswith(SYSTEMD_S)}


def other_state(machine: Machine) -> dict[str, object]:
    """Accounts, mounts, processes, binfmt table and units."""
    processes = machine.output(
        "sh", "-c", 'for p in /proc/[0-9]*; do tr "\\0" " " <$p/cmdline; echo; done'
    )
    daemons = {line.strip() for line in processes.splitlines() if line.startswith("/")}
    return {
        "accounts": machine.output("cat", "/etc/passwd", "/etc/group", "/etc/gshadow"),
        "mounts": sorted(machine.output("cut", "-d ", "-f5", "/proc/self/mountinfo").splitlines()),
        "processes": sorted(daemons),
        "table": machine.table(),
        "failed units": machine.output("systemctl", "--failed", "--no-legend", "--plain"),
        "cgroups": machine.run("find", "/sys/fs/cgroup", "-name", "*maid*").stdout,
    }


def changed(before: dict[str, str], after: dict[str, str]) -> dict[str, tuple[str, str]]:
    return {
        path: (before.get(path, ""), after.get(path, ""))
        for path in before.keys() | after.keys()
        if before.get(path) != after.get(path)
    }


def test_nothing_is_left_but_what_is_said_to_stay(machine: Machine) -> None:
    settle = ["systemctl", "is-system-running", "--wait"]
    machine.run(*settle)
    paths, state = files(machine), other_state(machine)
    assert not [path for path in paths if "maid" in path]
    machine.output("env", f"MAID_CACHE={INSTALLER}", INSTALL, "--no-packages", timeout=300)
    machine.enable('[emulation]\nprefer = "own"\n')
    # It is used, too: step instances, copies, a limit, a network, an overlay.
    step = ["maid", "run", "--platform", "linux/arm64", "--rootfs", "/opt/busybox-arm64"]
    machine.output(*step, "--network", "none", "--", "true")
    machine.output("systemctl", "restart", "maid")
    assert changed(paths, files(machine)).keys() >= {"/usr/bin/maid", "/run/maid/io.maid"}
    assert other_state(machine) != state

    machine.output(INSTALL, "--remove", "--no-packages")
    eventually(
        "its processes have ended",
        lambda: other_state(machine)["processes"] == state["processes"],
    )
    left = changed(paths, files(machine))
    print("after --remove:", left)
    assert left.keys() - OTHERS == STAYS
    accounts = str(state.pop("accounts"))
    after = other_state(machine)
    group = set(str(after.pop("accounts")).splitlines()) - set(accounts.splitlines())
    assert {line.partition(":")[0] for line in group} == {"maid"}
    assert after == state

    machine.output(INSTALL, "--remove", "--purge", "--no-packages")
    left = changed(paths, files(machine))
    print("after --purge:", left)
    assert left.keys() - OTHERS == set()
    after = other_state(machine)
    assert after.pop("accounts") == accounts
    assert after == state


OTHERS = {"/etc/group-", "/etc/gshadow-", "/run/crun", "/run/agetty.reload"}
"""What other programs leave of themselves until the next boot or edit: groupadd the old files,
crun its directory, in which podman has its containers, too; the login prompt that it was told of a
reload."""
