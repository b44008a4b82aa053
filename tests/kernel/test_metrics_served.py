"""The metrics of a real daemon: what stands in the table is there, counts what happens, and is what
the page, the dashboard and the alert rules ask for."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from daemons import environment, rootfs, until
from prometheus_client.parser import text_string_to_metric_families
from serving import Serving
from stepping import shell

from maid.service.kinds import KINDS
from maid.service.metric_kinds import METRICS

CONFIG = """
[emulation]
platforms = ["linux/arm64", "linux/riscv64"]
ready = ["linux/arm64"]
watch_crashes = true
[steps]
max_per_uid = 1
"""
ARM64 = rootfs("busybox-arm64")

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the process connector needs root")


class Metrics:
    """One reading of a daemon's metrics."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.families = {f.name: f for f in text_string_to_metric_families(text)}

    def value(self, name: str, **labels: str) -> float | None:
        """The sum of the samples of that name with these labels; None when there is none."""
        found = [
            sample.value
            for family in self.families.values()
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        ]
        return sum(found) if found else None


@pytest.fixture(scope="module")
def daemon() -> Iterator[Serving]:
    with Serving(CONFIG) as made:
        yield made.start()


def read(daemon: Serving) -> Metrics:
    return Metrics(daemon.call("io.maid.Manager.Metrics")["parameters"]["text"])


def step(daemon: Serving, script: str, **parameters: Any) -> Any:
    return shell(daemon, ARM64, script, readonly=True, **parameters)


def risen(daemon: Serving, before: Metrics, name: str, by: float, **labels: str) -> None:
    """Hold that a counter rises by so much, and no more."""
    expected = (before.value(name, **labels) or 0.0) + by
    assert until(lambda: read(daemon).value(name, **labels) == expected, 20), (
        name, labels, expected, read(daemon).value(name, **labels),
    )  # fmt: skip


def test_steps_are_counted_with_how_they_ran_and_how_long(daemon: Serving) -> None:
    before = read(daemon)
    assert step(daemon, "exit 3").status == 3
    arm64 = {"platform": "linux/arm64", "mode": "emulated"}
    risen(daemon, before, "maid_steps_total", 1, outcome="exited", **arm64)
    assert step(daemon, "sleep 60", timeout=0.3).result["outcome"] == "timeout"
    risen(daemon, before, "maid_steps_total", 1, outcome="timeout", **arm64)
    risen(daemon, before, "maid_step_duration_seconds_count", 2, **arm64)
    now = read(daemon)
    assert 0.3 < (now.value("maid_step_duration_seconds_sum", **arm64) or 0) < 120
    ended = now.value("maid_step_duration_seconds_bucket", le="+Inf", **arm64)
    assert ended == now.value("maid_step_duration_seconds_count", **arm64)
    assert now.value("maid_step_duration_seconds_bucket", le="0.25", **arm64) != ended


def test_waiting_for_a_place_is_measured(daemon: Serving) -> None:
    before = read(daemon)
    with ThreadPoolExecutor(2) as pool:
        steps = [pool.submit(step, daemon, "sleep 1") for _ in range(2)]
        assert until(lambda: read(daemon).value("maid_steps_waiting") == 1, 20)
        assert read(daemon).value("maid_steps_running") == 1
        assert [each.result().status for each in steps] == [0, 0]
    risen(daemon, before, "maid_step_wait_seconds_count", 2)
    now = read(daemon)
    waited = now.value("maid_step_wait_seconds_sum"), before.value("maid_step_wait_seconds_sum")
    assert (waited[0] or 0) - (waited[1] or 0) > 0.2
    assert now.value("maid_steps_waiting") == 0


@pytest.mark.parametrize(
    ("write", "cause"),
    [
        (("qemu-riscv64", "-1"), "removed"),
        (("qemu-riscv64", "0"), "disabled"),
        (("status", "-1"), "flushed"),
        (("status", "0"), "switched off"),
    ],
)
def test_repairs_are_counted_by_what_was_undone(
    daemon: Serving, write: tuple[str, str], cause: str
) -> None:
    table = Path(daemon.call("io.maid.Manager.Status")["parameters"]["status"]["instance"])
    assert str(table).startswith(str(daemon.directory))
    name, word = write
    assert until((table / name).exists, 20)  # a moment before its stand-in may have served
    assert until(lambda: read(daemon).value("maid_entries") == 2, 20)
    before = read(daemon)
    subprocess.run(["sh", "-c", f"echo {word} >{table / name}"], check=True)
    by = 2 if cause == "flushed" else 1
    risen(daemon, before, "maid_heals_total", by, cause=cause)
    risen(daemon, before, "maid_heals_total", by)  # and nothing else
    at = read(daemon).value("maid_last_heal_timestamp_seconds")
    assert at is not None and at >= (before.value("maid_start_timestamp_seconds") or 0)
    assert until(lambda: read(daemon).value("maid_entries", state="enabled", owner="maid") == 2, 20)
    assert read(daemon).value("maid_entries", state="disabled") is None


def test_a_crash_is_counted_and_told_with_target_program_and_signal(daemon: Serving) -> None:
    before = read(daemon)
    told: list[str] = []

    def crashed() -> bool:
        step(daemon, "kill -SEGV $$")
        events = daemon.maid("events").stdout
        told[:] = [line for line in events.splitlines() if "crashed" in line]
        return bool(told)

    assert until(crashed, 60), daemon.text()
    assert "aarch64" in told[-1] and "died of SIGSEGV" in told[-1] and "/bin/sh" in told[-1]
    rise = read(daemon).value("maid_crashes_total", target="aarch64", signal="SIGSEGV") or 0
    assert rise > (before.value("maid_crashes_total", target="aarch64", signal="SIGSEGV") or 0)


def test_all_that_the_table_has_is_there_and_nothing_else(daemon: Serving) -> None:
    """After what the tests above did; only what a step runs natively needs a store."""
    test_a_crash_is_counted_and_told_with_target_program_and_signal(daemon)
    test_steps_are_counted_with_how_they_ran_and_how_long(daemon)
    now = read(daemon)
    # An info is a gauge that is 1 in Prometheus' older format.
    table = {k.shown if k.kind == "info" else k.name: k for k in METRICS.values()}
    expected = {name: k.kind.replace("info", "gauge") for name, k in table.items()}
    told = {name: family.type for name, family in now.families.items() if name[:5] == "maid_"}
    assert told == expected
    for name, kind in table.items():
        family = now.families[name]
        assert family.documentation == kind.text
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == {*kind.labels, *kind.facts}, sample
    empty = {name for name, family in now.families.items() if not family.samples}
    assert empty <= {"maid_native_programs", "maid_last_heal_timestamp_seconds"}


def test_events_and_causes_that_have_not_happened_are_zero(daemon: Serving) -> None:
    """A counter that only appears when it is 1 has not risen, for whoever looks at its rate."""
    now = read(daemon)
    for kind in KINDS:
        assert now.value("maid_events_total", kind=kind) is not None, kind
    for cause in ("removed", "flushed", "disabled", "replaced", "switched off", "unmounted"):
        assert now.value("maid_heals_total", cause=cause) is not None, cause


def test_the_unit_s_command_writes_the_file_whole(daemon: Serving, tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "units/monitoring/maid-metrics.service").read_text()
    (line,) = [line for line in text.splitlines() if line.startswith("ExecStart=/bin/sh -c ")]
    script = line.removeprefix("ExecStart=/bin/sh -c ").strip("'")
    maid = tmp_path / "bin"
    maid.mkdir()
    (maid / "maid").symlink_to(shutil.which("maid", path=str(Path(sys.executable).parent)) or "")
    variables = {
        **environment(), "DIRECTORY": str(tmp_path), "MAID_SOCKET": str(daemon.socket),
        "PATH": f"{maid}:/usr/bin:/bin",
    }  # fmt: skip
    subprocess.run(["sh", "-c", script], env=variables, check=True)
    file = tmp_path / "maid.prom"
    assert Metrics(file.read_text()).value("maid_ready") == 1
    assert file.stat().st_mode & 0o777 == 0o644
    old = file.read_bytes()
    variables["MAID_SOCKET"] = str(tmp_path / "nothing")
    assert subprocess.run(["sh", "-c", script], env=variables, capture_output=True).returncode
    assert file.read_bytes() == old  # its age tells


def test_prometheus_own_checker_finds_nothing(daemon: Serving) -> None:
    if not (tool := shutil.which("promtool")):
        pytest.skip("promtool is not installed (Debian: prometheus)")
    text = read(daemon).text
    done = subprocess.run([tool, "check", "metrics"], input=text, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_whether_the_table_is_guarded_is_told() -> None:
    def told(daemon: Serving) -> tuple[bool, float | None]:
        status = daemon.call("io.maid.Manager.Status")["parameters"]["status"]
        return status["guarded"], read(daemon).value("maid_guarded")

    with Serving(CONFIG) as daemon:
        daemon.start()
        assert told(daemon) == (True, 1.0)
        children = Path(f"/proc/{daemon.pid}/task/{daemon.pid}/children").read_text().split()
        (guard,) = [c for c in children if Path(f"/proc/{c}/comm").read_text() == "maid-guard\n"]
        os.kill(int(guard), signal.SIGKILL)
        assert until(lambda: told(daemon) == (False, 0.0), 20), told(daemon)
