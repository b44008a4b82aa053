"""The table of metrics, its page, and what is made of it for a fleet: names that exist."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from maid.measures import LONG, SHORT, Histogram
from maid.platforms import parse
from maid.service import describe
from maid.service.metric_kinds import METRICS, MetricKind
from maid.steps.step import Outcome, Result
from maid.steps.tally import OTHER, Tally, mode_of

REPOSITORY = Path(__file__).parents[2]
MONITORING = REPOSITORY / "units/monitoring"
SAMPLES = {
    "gauge": ("",),
    "counter": ("_total",),
    "info": ("_info",),
    "histogram": ("_bucket", "_sum", "_count"),
}


def names() -> set[str]:
    """Every name of a sample that the table stands for."""
    return {kind.name + end for kind in METRICS.values() for end in SAMPLES[kind.kind]}


def used(text: str) -> set[str]:
    """Names of maid's metrics in a text."""
    return set(re.findall(r"\bmaid_[a-z_]+", text))


def promtool() -> str:
    if path := shutil.which("promtool"):
        return path
    pytest.skip("promtool is not installed (Debian: prometheus)")


def test_the_page_is_what_the_table_says() -> None:
    page = (REPOSITORY / "docs/metrics.md").read_text()
    assert page == describe.metrics(), "python -m maid.service.describe docs units"
    assert {kind.shown for kind in METRICS.values()} <= used(page)
    for path in re.findall(r"units/monitoring/[a-z.-]+", page):
        assert (REPOSITORY / path.rstrip(".")).exists(), path


@pytest.mark.parametrize("kind", METRICS.values(), ids=lambda kind: kind.name)
def test_names_and_units_are_prometheus_conventions(kind: MetricKind) -> None:
    assert re.fullmatch(r"maid(_[a-z]+)+", kind.name)
    assert not re.search(r"_(total|count|sum|bucket|info)$", kind.name)
    assert not re.search(r"(milli|micro|nano)seconds|minutes|_ms$|kilo|mega", kind.name)
    for unit in ("seconds", "bytes"):
        assert unit not in kind.name or kind.name.endswith(f"_{unit}")
    if kind.kind == "histogram":
        assert kind.name.endswith("_seconds")
    assert kind.kind in SAMPLES and kind.text and not kind.text.endswith(".")
    assert bool(kind.facts) == (kind.kind == "info")


@pytest.mark.parametrize("kind", METRICS.values(), ids=lambda kind: kind.name)
def test_no_label_stands_for_a_step_a_user_or_a_process(kind: MetricKind) -> None:
    bounded = {"platform", "target", "state", "owner", "result", "cause", "signal", "outcome"}
    assert set(kind.labels) <= bounded | {"mode", "tool", "kind"}


@pytest.mark.parametrize("file", ["grafana-dashboard.json", "alerts.yml", "alerts_test.yml"])
def test_what_a_fleet_uses_names_metrics_that_there_are(file: str) -> None:
    found = used((MONITORING / file).read_text().replace("maid_metrics", ""))
    assert len(found) > 5
    assert found <= names(), found - names()


def test_the_dashboard_asks_for_labels_that_there_are() -> None:
    document = json.loads((MONITORING / "grafana-dashboard.json").read_text())
    panels = document["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) > 10
    for panel in panels:
        for target in panel["targets"]:
            expression = target["expr"]
            asked = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            known = {"instance", "le"}
            for name in used(expression):
                kind = next(
                    k
                    for k in METRICS.values()
                    if name.startswith(k.name) and (name.removeprefix(k.name) in SAMPLES[k.kind])
                )
                known |= {*kind.labels, *kind.facts}
            assert asked <= known, (panel["title"], asked - known)
            for group in re.findall(r"by \(([a-z, ]+)\)", expression):
                assert set(group.split(", ")) <= known, panel["title"]


def test_the_alert_rules_are_rules_and_come_when_they_should() -> None:
    tool = promtool()
    for arguments in (["check", "rules", "alerts.yml"], ["test", "rules", "alerts_test.yml"]):
        done = subprocess.run([tool, *arguments], cwd=MONITORING, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_says_what_to_do_and_is_tried() -> None:
    text = (MONITORING / "alerts.yml").read_text()
    alerts = re.findall(r"- alert: (\w+)", text)
    assert len(alerts) == len(set(alerts)) == text.count("description:") == text.count("summary:")
    tried = (MONITORING / "alerts_test.yml").read_text()
    for alert in alerts:
        assert f"alertname: {alert}," in tried, alert


def test_the_units_that_write_the_file_are_sound() -> None:
    units = sorted(MONITORING.glob("maid-metrics.*"))
    assert [unit.suffix for unit in units] == [".service", ".timer"]
    if not (tool := shutil.which("systemd-analyze")):
        pytest.skip("systemd-analyze is not installed")
    done = subprocess.run([tool, "verify", "--man=no", *units], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr


# What is counted


def result(outcome: Outcome, wall: float = 1.0, **more: object) -> Result:
    fields = {
        "outcome": outcome, "status": 0, "signal": None, "error": None, "wall": wall, "user": 0.0,
        "system": 0.0, "peak_memory": 0, "via": "emulated", "interpreter": None, **more,
    }  # fmt: skip
    return Result(**fields)  # type: ignore[arg-type]


def test_a_histogram_counts_in_every_bucket_that_is_large_enough() -> None:
    histogram = Histogram((0.1, 1.0))
    for seconds in (0.05, 0.1, 0.5, 7.0):
        histogram.observe(seconds)
    assert histogram.buckets() == [("0.1", 2.0), ("1.0", 3.0), ("+Inf", 4.0)]
    assert histogram.sum == pytest.approx(7.65) and histogram.count == 4


@pytest.mark.parametrize("bounds", [LONG, SHORT])
def test_buckets_rise(bounds: tuple[float, ...]) -> None:
    assert list(bounds) == sorted(set(bounds))
    assert LONG[0] == 0.01 and LONG[-1] == 3600


def test_steps_are_counted_by_platform_outcome_and_mode() -> None:
    tally = Tally()
    tally.count("linux/arm64", result(Outcome.exited, 2.0))
    tally.count("linux/arm64", result(Outcome.exited, 3.0, native={"gcc": 2}))
    tally.count("linux/amd64", result(Outcome.timeout, via="native"))
    assert dict(tally.ended) == {
        ("linux/arm64", "exited", "emulated"): 1,
        ("linux/arm64", "exited", "accelerated"): 1,
        ("linux/amd64", "timeout", "native"): 1,
    }
    assert tally.durations["linux/arm64", "accelerated"].sum == 3.0


def test_what_did_not_begin_has_no_duration() -> None:
    tally = Tally()
    for outcome in (Outcome.refused, Outcome.failed, Outcome.lost):
        tally.count("linux/arm64", result(outcome))
    assert sum(tally.ended.values()) == 3 and not tally.durations


def test_native_programs_do_not_make_a_native_step_accelerated() -> None:
    assert mode_of(result(Outcome.exited, via="native", native={"gcc": 1})) == "native"


def test_labels_are_bounded_whatever_is_asked_for() -> None:
    tally = Tally()
    asked = ["linux/amd64/v3", "linux/amd64/v2", "linux/arm64/v8", "linux/arm/v7", "?", "a/b/c"]
    asked += [f"linux/arm64/v{number}" for number in range(100)]
    for platform in asked:
        tally.count(platform, result(Outcome.exited))
    assert {platform for platform, _, _ in tally.ended} <= {
        "linux/amd64", "linux/arm64", "linux/arm/v7", OTHER,
    }  # fmt: skip
    assert str(parse("linux/arm/v7")) == "linux/arm/v7"
