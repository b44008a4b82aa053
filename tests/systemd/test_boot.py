"""Boots with maid enabled: ready before a runner, or with a broken configuration."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from container import Machine, booted, eventually

RUNNER = {
    "/etc/systemd/system/runner.service": "[Unit]\nRequires=maid-ready.target\n"
    "After=maid-ready.target\n[Service]\nExecStart=/bin/sleep infinity\n"
    "[Install]\nWantedBy=multi-user.target\n"
}
CONFIGURATION = "/etc/maid/maid.toml"
OWN = '[emulation]\nprefer = "own"\n'
BROKEN = f"# broken\n{OWN}\nplatformz = []\n"
LINE = f"{CONFIGURATION}: line 5: there is no key emulation.platformz"


@pytest.mark.parametrize("of", ["tree", "other_tree"])
def test_a_boot_starts_the_runner_when_every_platform_has_run(
    request: pytest.FixtureRequest, of: str
) -> None:
    with booted(request.getfixturevalue(of), RUNNER, ["maid", "runner"]) as machine:
        began = {
            "maid is up": int(machine.show("maid", "ActiveEnterTimestampMonotonic")),
            "ready": int(machine.show("maid-ready.target", "ActiveEnterTimestampMonotonic")),
            "runner": int(machine.show("runner", "ExecMainStartTimestampMonotonic")),
        }
        assert 0 < began["maid is up"] < began["ready"] < began["runner"]
        boot = machine.output("systemd-analyze").splitlines()[0]
        print(of, boot, {name: at - began["maid is up"] for name, at in began.items()})
        assert machine.status()["ready"] is True
        probes = [p for p in machine.status()["platforms"] if p["state"] == "ready"]
        assert all(p["probe"]["ok"] for p in probes) and len(probes) >= 8


def says_the_line(machine: Machine) -> None:
    asked = machine.run("maid", "status")
    assert (asked.returncode, asked.stdout) == (4, "")
    assert f"the daemon cannot start: {LINE}" in asked.stderr
    assert "did you mean platforms?" in asked.stderr
    eventually(
        "the start is over", lambda: machine.show("maid", "ActiveState") == "failed", seconds=10
    )
    assert LINE in machine.run("systemctl", "status", "--no-pager", "-l", "maid").stdout
    assert LINE in machine.output("journalctl", "-u", "maid", "-o", "cat", "--no-pager")


def test_a_boot_with_a_broken_configuration_says_which_line_and_one_start_mends_it(
    other_tree: Path,
) -> None:
    files = {**RUNNER, CONFIGURATION: BROKEN}
    with booted(other_tree, files, ["maid", "runner"], state="degraded") as machine:
        says_the_line(machine)
        assert machine.show("maid-ready.target", "ActiveState") == "inactive"
        assert machine.show("runner", "ActiveState") == "inactive"
        # Who waited for the platforms was told why.
        assert LINE in machine.output("journalctl", "-u", "maid-ready", "-o", "cat", "--no-pager")
        step = machine.run("maid", "run", "--rootfs", "/opt/busybox-amd64", "--", "true")
        assert step.returncode == 125 and LINE in step.stderr
        found = json.loads(machine.run("maid", "doctor", "--json").stdout)["findings"]
        assert any(LINE in each["message"] for each in found)
        # However often somebody has asked meanwhile.
        for _ in range(5):
            assert machine.run("maid", "status").returncode == 4
        machine.write(CONFIGURATION, OWN)
        machine.output("systemctl", "restart", "maid")
        machine.output("systemctl", "start", "runner")
        assert machine.show("maid-ready.target", "ActiveState") == "active"
        assert machine.status()["ready"] is True
        assert machine.run("systemctl", "is-system-running").stdout.strip() == "running"


def test_a_configuration_broken_later_costs_neither_entries_nor_the_running_daemon(
    machine: Machine,
) -> None:
    machine.enable(OWN)
    table, daemon = machine.table(), machine.show("maid", "MainPID")
    machine.write(CONFIGURATION, BROKEN)
    reloaded = machine.run("systemctl", "reload", "maid")
    assert reloaded.returncode != 0
    assert LINE in machine.output("journalctl", "-u", "maid", "-o", "cat", "--no-pager")
    assert machine.show("maid", "MainPID") == daemon
    assert machine.table() == table
    assert machine.status()["ready"] is True
    assert LINE in machine.run("maid", "reload").stderr

    assert machine.run("systemctl", "restart", "maid").returncode != 0
    assert machine.show("maid", "NRestarts") == "0"
    says_the_line(machine)
    assert machine.table() == table
    machine.output("/opt/busybox-arm64/bin/busybox", "true")
    machine.write(CONFIGURATION, OWN)
    machine.output("systemctl", "restart", "maid")
    assert machine.table() == table
    assert machine.status()["ready"] is True


UNUSABLE = f'[paths]\nruntime = "{CONFIGURATION}/run"\n'
CANNOT = f"maid cannot use its directory {CONFIGURATION}/run: Not a directory"


def test_a_daemon_that_cannot_start_says_so_costs_little_and_comes_when_it_can(
    machine: Machine,
) -> None:
    """For any other reason than a configuration that is broken, which may be gone later."""
    machine.write(CONFIGURATION, UNUSABLE)
    assert machine.run("systemctl", "enable", "--now", "maid").returncode != 0
    for _ in range(3):
        asked = machine.run("maid", "status", timeout=30)
        assert asked.returncode == 4
        assert f"the daemon cannot start: {CANNOT}" in asked.stderr
    assert CANNOT in machine.output("journalctl", "-u", "maid", "-o", "cat", "--no-pager")
    began, before = time.monotonic(), int(machine.show("maid", "NRestarts"))
    eventually("it is tried again", lambda: int(machine.show("maid", "NRestarts")) > before + 1)
    starts = int(machine.show("maid", "NRestarts")) - before
    assert starts <= 1 + (time.monotonic() - began) / 2
    machine.write(CONFIGURATION, OWN)
    eventually("it is up", lambda: machine.show("maid", "ActiveState") == "active", seconds=60)
    assert machine.status()["ready"] is True


def test_the_first_request_starts_the_daemon(machine: Machine) -> None:
    run = ["maid", "run", "--platform", "linux/arm64", "--rootfs", "/opt/busybox-arm64", "--"]
    machine.output("systemctl", "start", "maid.socket")
    assert machine.show("maid", "ActiveState") == "inactive"
    assert machine.status()["ready"] is True
    assert machine.show("maid", "ActiveState") == "active"
    # Not while maid-ready.service asks something, too.
    machine.output("systemctl", "start", "maid-ready.target")
    machine.output("systemctl", "stop", "maid")
    assert machine.show("maid", "ActiveState") == "inactive"
    assert machine.output(*run, "uname", "-m") == "aarch64"
    # Several at once, which all wait for the same start.
    machine.output("systemctl", "stop", "maid")
    started = [machine.start(*run, "echo", str(number)) for number in range(4)]
    said = [(step.communicate(timeout=60)[0], step.returncode) for step in started]
    assert said == [(f"{number}\n", 0) for number in range(4)]
    assert machine.show("maid", "ActiveState") == "active"
