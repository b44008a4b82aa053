"""The service under systemd: what an administrator and a CI runner's unit rely on."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

from container import Machine, eventually

from maid.service.kinds import KINDS

OWN = '[emulation]\nprefer = "own"\n'
"""systemd-binfmt has registered QEMU before maid comes: this has maid register all the same."""


def owned(machine: Machine) -> dict[str, str]:
    """The entries of the table that maid's status calls its own."""
    names = {p["entry"] for p in machine.status()["platforms"] if p["owner"] == "maid"}
    return {name: text for name, text in machine.table().items() if name in names}


def not_executing(machine: Machine) -> list[str]:
    """The platforms, of those that have an emulator in the container, that do not execute."""
    return [
        f"{p['platform']}: {p['state']} {p['reason']}"
        for p in machine.status()["platforms"]
        if p["platform"] and p["state"] not in ("native", "ready")
    ]


def another_daemon(machine: Machine, first: str) -> None:
    """Wait until a daemon with another process id than `first` is up."""

    def is_up() -> bool:
        pid = machine.show("maid", "MainPID")
        return pid not in ("0", first) and machine.show("maid", "ActiveState") == "active"

    eventually("another daemon is up", is_up, seconds=30)


def test_enabling_makes_every_platform_ready(machine: Machine) -> None:
    machine.enable()
    status = machine.status()
    assert status["ready"] is True
    assert status["scope"] == "host"
    assert machine.output("systemctl", "is-active", "maid.service", "maid-ready.target")
    machine.output("maid", "ensure", "linux/arm64", "linux/s390x")
    assert re.search(r"\d+ of \d+ platforms execute", machine.show("maid", "StatusText"))
    assert machine.show("maid.socket", "ActiveState") == "active"


def test_a_runner_starts_only_when_its_platforms_work(machine: Machine) -> None:
    example = "/usr/share/doc/maid/examples/gitlab-runner.service.d/maid.conf"
    machine.write(
        "/etc/systemd/system/gitlab-runner.service",
        "[Service]\nType=oneshot\nExecStart=/usr/bin/maid ensure linux/arm64\n",
    )
    machine.output("mkdir", "/etc/systemd/system/gitlab-runner.service.d")
    machine.output("cp", example, "/etc/systemd/system/gitlab-runner.service.d/")
    machine.output("systemctl", "daemon-reload")
    machine.output("systemctl", "start", "gitlab-runner")
    assert machine.show("maid-ready.target", "ActiveState") == "active"


def test_a_platform_that_fails_keeps_the_runner_from_starting(machine: Machine) -> None:
    # No other entry serves it, and the program that should is no emulator.
    machine.output("systemctl", "stop", "systemd-binfmt")
    machine.output("systemctl", "mask", "systemd-binfmt")
    assert machine.table() == {}
    machine.write(
        "/etc/maid/maid.toml",
        '[emulation]\nready = ["linux/loong64"]\n'
        '[emulation.target.loongarch64]\ninterpreter = "/bin/false"\n',
    )
    machine.write(
        "/etc/systemd/system/maid-ready.service.d/quick.conf",
        "[Service]\nExecStart=\nExecStart=/usr/bin/maid ensure --configured --timeout 1\n",
    )
    machine.write(
        "/etc/systemd/system/runner.service",
        "[Unit]\nRequires=maid-ready.target\nAfter=maid-ready.target\n"
        "[Service]\nExecStart=/bin/sleep infinity\n",
    )
    machine.output("systemctl", "daemon-reload")
    started = machine.run("systemctl", "start", "runner")
    assert started.returncode != 0
    assert machine.show("runner", "ActiveState") == "inactive"
    assert machine.show("maid-ready.target", "ActiveState") == "inactive"
    assert machine.show("maid-ready.service", "ActiveState") == "failed"
    assert machine.show("maid.service", "ActiveState") == "active"
    journal = machine.output("journalctl", "-u", "maid-ready", "-o", "cat", "--no-pager")
    assert "linux/loong64" in journal


def test_entries_come_back_after_systemd_binfmt_has_wiped_the_table(machine: Machine) -> None:
    machine.enable(OWN)
    before = owned(machine)
    assert len(before) >= 8
    machine.output("systemctl", "restart", "systemd-binfmt")
    eventually("the same entries stand again", lambda: owned(machine) == before)
    machine.output("maid", "ensure", "linux/arm64", "linux/riscv64")
    events = machine.output("journalctl", "-o", "json", "MAID_EVENT=healed").splitlines()
    assert events


def test_adopted_entries_are_served_again_after_a_restart_of_systemd_binfmt(
    machine: Machine,
) -> None:
    machine.enable()
    before = not_executing(machine)
    machine.output("systemctl", "restart", "systemd-binfmt")
    eventually("as before", lambda: not_executing(machine) == before)
    machine.output("maid", "ensure", "linux/arm64")


def test_a_daemon_that_hangs_is_replaced_and_its_entries_stay(machine: Machine) -> None:
    machine.write(
        "/etc/systemd/system/maid.service.d/quick.conf",
        "[Service]\nWatchdogSec=2s\nTimeoutAbortSec=1s\n",
    )
    machine.enable(OWN)
    before = owned(machine)
    first = machine.show("maid", "MainPID")
    machine.output("sh", "-c", f"kill -STOP {first}")
    another_daemon(machine, first)
    assert machine.show("maid", "NRestarts") == "1"
    assert owned(machine) == before


def test_a_killed_daemon_is_replaced_and_its_entries_stay(machine: Machine) -> None:
    machine.enable(OWN)
    before = owned(machine)
    first = machine.show("maid", "MainPID")
    machine.output("sh", "-c", f"kill -KILL {first}")
    assert machine.table().items() >= before.items()
    another_daemon(machine, first)
    assert owned(machine) == before


def test_stopping_keeps_the_entries_and_a_call_starts_the_daemon(machine: Machine) -> None:
    machine.enable(OWN)
    before = owned(machine)
    machine.output("systemctl", "stop", "maid.service")
    assert machine.show("maid", "ActiveState") == "inactive"
    assert machine.table().items() >= before.items()
    assert machine.show("maid.socket", "ActiveState") == "active"
    assert machine.status()["ready"] is True
    assert machine.show("maid", "ActiveState") == "active"
    assert owned(machine) == before


def test_restarting_maid_restarts_no_runner(machine: Machine) -> None:
    machine.enable()
    machine.write(
        "/etc/systemd/system/runner.service",
        "[Unit]\nRequires=maid-ready.target\nAfter=maid-ready.target\n"
        "[Service]\nExecStart=/bin/sleep infinity\n",
    )
    machine.output("systemctl", "daemon-reload")
    machine.output("systemctl", "start", "runner")
    before = machine.show("runner", "MainPID")
    machine.output("systemctl", "restart", "maid")
    assert machine.show("runner", "MainPID") == before
    assert machine.show("maid-ready.target", "ActiveState") == "active"


def test_a_running_step_survives_a_restart_of_the_daemon(machine: Machine) -> None:
    machine.enable()
    # Not on the container's root, which is an overlay: an overlay cannot write to another one.
    machine.output("mkdir", "-p", "/run/test/out", "/run/test/changes")
    step = machine.start(
        *("maid", "run", "--platform", "linux/arm64", "--rootfs", "/opt/busybox-arm64"),
        *("--overlay", "/run/test/changes", "--bind", "/run/test/out:/out", "--"),
        *("sh", "-c", "while :; do echo >>/out/ticks; sleep 0.1; done"),
    )

    def ticks() -> int:
        return len(machine.run("cat", "/run/test/out/ticks").stdout)

    try:
        eventually("the step runs", lambda: ticks() > 2)
        for how in (
            ["systemctl", "restart", "maid"],
            ["systemctl", "kill", "--kill-who=main", "-s", "KILL", "maid"],
        ):
            daemon = machine.show("maid", "MainPID")
            machine.output(*how)
            another_daemon(machine, daemon)
            before = ticks()
            eventually("the step goes on", lambda before=before: ticks() > before + 2)  # type: ignore[misc]
        # Time for the client to ask the new daemon for its step.
        time.sleep(1)
        machine.kill(step)
        output, _ = step.communicate(timeout=30)
        assert not output, output
    finally:
        machine.kill(step)
        step.kill()

    def ticking() -> bool:
        before = ticks()
        time.sleep(0.5)
        return ticks() != before

    # Its client gone, so is the step, whichever daemon started it.
    eventually("the step is gone", lambda: not ticking(), seconds=5)


def test_reload_reads_the_configuration(machine: Machine) -> None:
    machine.enable()
    machine.write("/etc/maid/maid.toml", '[emulation]\nexclude = ["linux/s390x"]\n')
    machine.output("systemctl", "reload", "maid")

    def state() -> str:
        platforms = machine.status()["platforms"]
        return str(next(p["state"] for p in platforms if p["platform"] == "linux/s390x"))

    eventually("s390x is disabled", lambda: state() == "disabled")


def test_a_broken_configuration_is_not_tried_again_and_again(machine: Machine) -> None:
    machine.write("/etc/maid/maid.toml", "[emulation]\nplatformz = []\n")
    assert machine.run("systemctl", "start", "maid.service").returncode != 0
    assert machine.show("maid", "NRestarts") == "0"
    journal = machine.output("journalctl", "-u", "maid", "-o", "cat", "--no-pager")
    assert "platformz" in journal


def test_the_journal_has_fields_to_search_by(machine: Machine) -> None:
    machine.enable(OWN)
    lines = machine.output("journalctl", "-u", "maid", "-o", "json", "MAID_EVENT=registered")
    records = [json.loads(line) for line in lines.splitlines()]
    assert records
    for record in records:
        assert record["SYSLOG_IDENTIFIER"] == "maid"
        assert record["MAID_SUBJECT"]
        assert record["PRIORITY"] in {"5", "6"}
        assert record["MESSAGE_ID"] == KINDS["registered"].identifier
    explained = machine.output(
        "journalctl", "-u", "maid", "--catalog", "--no-pager", "MAID_EVENT=registered"
    )
    words = " ".join(line.lstrip("░- ") for line in explained.splitlines())
    assert KINDS["registered"].meaning in " ".join(words.split())


def test_the_group_may_use_the_socket_and_others_may_not(machine: Machine) -> None:
    machine.enable()
    group = machine.output("sh", "-c", "getent group maid | cut -d: -f3")
    user = ["setpriv", "--reuid=4711", "--regid=4711"]
    machine.output(*user, f"--groups={group}", "maid", "status")
    machine.output(*user, f"--groups={group}", "maid", "ensure", "linux/arm64")
    refused = machine.run(*user, "--clear-groups", "maid", "status")
    assert refused.returncode == 4
    released = machine.run(*user, f"--groups={group}", "maid", "release")
    assert released.returncode != 0


def test_this_machines_own_table_is_out_of_reach(machine: Machine) -> None:
    table = Path("/proc/sys/fs/binfmt_misc")
    before = sorted(path.name for path in table.iterdir())
    machine.enable(OWN)
    machine.output("systemctl", "restart", "systemd-binfmt")
    assert sorted(path.name for path in table.iterdir()) == before
