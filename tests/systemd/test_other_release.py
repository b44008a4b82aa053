"""The service on the other Debian release, with another systemd: what users rely on most.

One machine serves all tests here; each leaves it as it was: enabled, and ready.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from container import Machine, booted, eventually
from test_service import OWN, not_executing, owned

INTERFACES = [f"io.maid.{name}" for name in ("Emulation", "Manager", "Steps", "Store")]


@pytest.fixture(scope="module")
def other(other_tree: Path) -> Iterator[Machine]:
    with booted(other_tree) as machine:
        machine.enable(OWN)
        yield machine


def test_every_platform_is_ready(other: Machine) -> None:
    status = other.status()
    assert status["ready"] is True and status["scope"] == "host"
    assert not_executing(other) == []
    assert other.output("systemctl", "is-active", "maid.service", "maid-ready.target")
    other.output("maid", "ensure", "linux/arm64", "linux/s390x")
    assert "platforms execute" in other.show("maid", "StatusText")
    ran = other.output(
        *("maid", "run", "--platform", "linux/arm64", "--rootfs", "/opt/busybox-arm64"),
        *("--", "uname", "-m"),
    )
    assert ran == "aarch64"


def test_entries_come_back_after_a_restart_of_systemd_binfmt(other: Machine) -> None:
    before = owned(other)
    assert len(before) >= 8
    other.output("systemctl", "restart", "systemd-binfmt")
    eventually("the same entries stand again", lambda: owned(other) == before)
    other.output("maid", "ensure", "linux/arm64", "linux/riscv64")


def test_stopping_keeps_the_entries_and_a_call_starts_the_daemon(other: Machine) -> None:
    before = owned(other)
    other.output("systemctl", "stop", "maid.service")
    assert other.show("maid", "ActiveState") == "inactive"
    assert other.table().items() >= before.items()
    assert other.status()["ready"] is True
    assert other.show("maid", "ActiveState") == "active"
    assert owned(other) == before


def test_a_killed_daemon_is_replaced(other: Machine) -> None:
    before, first = owned(other), other.show("maid", "MainPID")
    other.output("sh", "-c", f"kill -KILL {first}")
    eventually("another is up", lambda: other.show("maid", "MainPID") not in ("0", first))
    assert other.status()["ready"] is True
    assert owned(other) == before


def test_systemd_s_own_client_reads_every_interface_and_calls_it(other: Machine) -> None:
    if other.run("varlinkctl", "--version").returncode:
        # Debian 12's systemd 252 has none: tests/kernel does without it.
        assert "bookworm" in other.output("cat", "/etc/os-release")
        return
    socket = "/run/maid/io.maid"
    told = other.output("varlinkctl", "info", socket)
    assert "Product: maid" in told
    for interface in INTERFACES:
        assert interface in told
        # It parses what it is told, and prints it anew.
        described = other.output("varlinkctl", "introspect", socket, interface)
        assert f"interface {interface}" in described
    status = json.loads(other.output("varlinkctl", "call", socket, "io.maid.Manager.Status", "{}"))
    assert status["status"]["ready"] is True
    parameters = json.dumps({"platforms": ["linux/arm64"], "configured": False, "timeout": 1})
    ensured = other.output("varlinkctl", "call", socket, "io.maid.Emulation.Ensure", parameters)
    assert json.loads(ensured)["results"][0]["ok"] is True
    events = other.output(
        "varlinkctl", "call", "--more", "-j", socket, "io.maid.Manager.Events", '{"since": 0}'
    )
    assert '"started"' in events
    refused = other.run("varlinkctl", "call", socket, "io.maid.Steps.Wait", '{"id": "none"}')
    assert refused.returncode != 0 and "NoSuchStep" in refused.stderr
