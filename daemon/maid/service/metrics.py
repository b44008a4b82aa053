"""The daemon's numbers in Prometheus' text format, made when somebody asks.

Nothing is counted here: every number is read from where it is kept. What each is stands in
metric_kinds.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from maid import __version__
from maid.emulation.culprit import Cause
from maid.service.kinds import KINDS
from maid.service.metric_kinds import METRICS

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

    from maid.emulation.machine import Machine
    from maid.measures import Histogram
    from maid.service.events import Events
    from maid.service.store_status import StoreSummary
    from maid.steps.runner import Runner

Samples = Iterable[tuple[tuple[str, ...], float]]
"""The labels' values and the number of each sample of a metric."""

NOBODY = "none"
"""The owner of what no entry serves."""


@dataclass(frozen=True)
class Sources:
    """Where the numbers are kept. `started` is the daemon's start in seconds since 1970; `crashes`
    are counted by target and signal; `connections` tells how many are open."""

    machine: Machine
    runner: Runner
    store: StoreSummary
    events: Events
    started: float
    crashes: Mapping[tuple[str, str], int]
    connections: Callable[[], int]


def exposition(sources: Sources) -> str:
    """All metrics: maid's own, and process_* of the daemon as every Prometheus client has them."""
    # Imported here: it costs 40 ms and some megabytes, and most daemons are never asked.
    from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest

    class Collector:
        def collect(self) -> Iterable[Metric]:
            yield from _platforms(sources.machine)
            yield from _keeper(sources.machine)
            yield from _steps(sources.runner)
            yield from _store(sources.store)
            yield from _service(sources)

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Collector())
    ProcessCollector(registry=registry)
    return generate_latest(registry).decode()


def _numbers(name: str, samples: Samples) -> Metric:
    """A gauge or a counter."""
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    kind = METRICS[name]
    make: Any = {"gauge": GaugeMetricFamily, "counter": CounterMetricFamily}[kind.kind]
    family: Metric = make(name, kind.text, labels=kind.labels)
    for labels, value in samples:
        family.add_metric(labels, value)  # type: ignore[attr-defined]
    return family


def _number(name: str, value: float) -> Metric:
    return _numbers(name, [((), value)])


def _histogram(name: str, samples: Iterable[tuple[tuple[str, ...], Histogram]]) -> Metric:
    from prometheus_client.core import HistogramMetricFamily

    kind = METRICS[name]
    family = HistogramMetricFamily(name, kind.text, labels=kind.labels)
    for labels, each in samples:
        family.add_metric(labels, each.buckets(), each.sum)
    return family


def _info(name: str, samples: Iterable[tuple[tuple[str, ...], tuple[str, ...]]]) -> Metric:
    from prometheus_client.core import InfoMetricFamily

    kind = METRICS[name]
    family = InfoMetricFamily(name, kind.text, labels=kind.labels)
    for labels, facts in samples:
        family.add_metric(labels, dict(zip(kind.facts, facts, strict=True)))
    return family


def _platforms(machine: Machine) -> Iterable[Metric]:
    statuses = machine.statuses()
    named = {(status.platform or "", status.target): status for status in statuses}
    yield _numbers(
        "maid_platform_executes",
        [(labels, float(status.state.executes)) for labels, status in named.items()],
    )
    yield _info(
        "maid_platform",
        [
            (labels, (s.state, s.via or "", s.owner or "", s.interpreter_version or ""))
            for labels, s in named.items()
        ],
    )
    states = Counter((str(s.state), str(s.owner or NOBODY)) for s in statuses if s.platform)
    yield _numbers("maid_platforms", sorted(states.items()))
    probes = {s.target: s.probe.ms / 1000 for s in statuses if s.probe is not None}
    yield _numbers(
        "maid_probe_last_duration_seconds", [((name,), took) for name, took in probes.items()]
    )
    yield _number("maid_ready", float(machine.ready()))


def _keeper(machine: Machine) -> Iterable[Metric]:
    keeper = machine.served.keeper
    counters = keeper.counters
    owners = {True: "maid", False: "other"}
    entries = Counter(
        ("enabled" if entry.enabled else "disabled", owners[keeper.ledger.owns(entry)])
        for entry in keeper.instance.entries().values()
    )
    yield _numbers("maid_entries", sorted(entries.items()))
    yield _number("maid_registrations", counters.registrations)
    yield _number("maid_renewals", counters.renewals)
    yield _number("maid_removals", counters.removals)
    yield _number("maid_refusals", counters.refusals)
    # A counter that appears with its first count has not risen, for whoever looks at its rate.
    never = dict.fromkeys((str(cause) for cause in Cause), 0)
    causes = {**never, **counters.causes, "unmounted": counters.remounts}
    yield _numbers("maid_heals", [((cause,), n) for cause, n in sorted(causes.items())])
    if counters.last_heal:
        yield _number("maid_last_heal_timestamp_seconds", counters.last_heal)
    yield _numbers(
        "maid_probes", [(("ok",), counters.probes_ok), (("failed",), counters.probes_failed)]
    )
    yield _histogram(
        "maid_probe_duration_seconds",
        [((target,), each) for target, each in sorted(counters.probe_times.items())],
    )
    yield _number("maid_guarded", float(keeper.guarded))
    yield _number("maid_instances", len(machine.tables))


def _steps(runner: Runner) -> Iterable[Metric]:
    yield _number("maid_steps_running", sum(1 for _ in runner.running()))
    yield _number("maid_steps_waiting", runner.waiting())
    yield _numbers("maid_steps", sorted(runner.tally.ended.items()))
    yield _histogram(
        "maid_step_duration_seconds",
        [(labels, runner.tally.durations[labels]) for labels in sorted(runner.tally.durations)],
    )
    yield _histogram("maid_step_wait_seconds", [((), runner.places.waited)])
    native = sorted(runner.accelerator.native.items())
    yield _numbers("maid_native_programs", [((tool,), count) for tool, count in native])
    yield _number("maid_emulated_programs", runner.accelerator.emulated)


def _store(store: StoreSummary) -> Iterable[Metric]:
    yield _number("maid_store_bytes", store.size)
    yield _number("maid_store_sets", store.sets)
    yield _number("maid_store_tools", store.tools)


def _service(sources: Sources) -> Iterable[Metric]:
    kinds = sorted({**dict.fromkeys(KINDS, 0), **sources.events.counts}.items())
    yield _numbers("maid_events", [((kind,), count) for kind, count in kinds])
    yield _numbers("maid_crashes", sorted(sources.crashes.items()))
    yield _number("maid_connections", sources.connections())
    yield _number("maid_start_timestamp_seconds", sources.started)
    yield _info("maid_build", [((), (__version__,))])
