"""The daemon's numbers in Prometheus' text format, made when somebody asks.

Nothing is counted here: every number is read from where it is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from maid import __version__

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

    from maid.emulation.machine import Machine
    from maid.service.events import Events
    from maid.service.store_status import StoreSummary
    from maid.steps.runner import Runner


def exposition(
    machine: Machine,
    runner: Runner,
    store: StoreSummary,
    events: Events,
    connections: Callable[[], int],
) -> str:
    """All metrics: maid's own, and process_* of the daemon as every Prometheus client has them."""
    # Imported here: it costs 40 ms and some megabytes, and most daemons are never asked.
    from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest

    class Collector:
        def collect(self) -> Iterable[Metric]:
            yield from _platforms(machine)
            yield from _keeper(machine)
            yield from _steps(runner)
            yield from _store(store)
            yield from _service(events, connections)

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Collector())
    ProcessCollector(registry=registry)
    return generate_latest(registry).decode()


def _platforms(machine: Machine) -> Iterable[Metric]:
    from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily

    names = ["platform", "target"]
    up = GaugeMetricFamily(
        "maid_platform_executes", "Whether the last probe of the platform worked", labels=names
    )
    info = InfoMetricFamily("maid_platform", "How the platform stands", labels=names)
    took = GaugeMetricFamily(
        "maid_probe_duration_seconds", "How long the last probe took", labels=["target"]
    )
    probed: set[str] = set()
    for status in machine.statuses():
        values = [status.platform or "", status.target]
        up.add_metric(values, float(status.state.executes))
        info.add_metric(
            values,
            {
                "state": status.state,
                "via": status.via or "",
                "owner": status.owner or "",
                "interpreter_version": status.interpreter_version or "",
            },
        )
        if status.probe is not None and status.target not in probed:
            probed.add(status.target)
            took.add_metric([status.target], status.probe.ms / 1000)
    ready = GaugeMetricFamily("maid_ready", "Whether every required platform executes")
    ready.add_metric([], float(machine.ready()))
    return up, info, took, ready


def _keeper(machine: Machine) -> Iterable[Metric]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    counters = machine.served.keeper.counters
    for name, value, text in (
        ("registrations", counters.registrations, "Entries registered"),
        ("renewals", counters.renewals, "Entries renewed without a gap"),
        ("heals", counters.heals, "Entries that were gone or disabled and were repaired"),
        ("removals", counters.removals, "Entries of maid's own removed"),
        ("refusals", counters.refusals, "Registrations that the kernel refused"),
        ("remounts", counters.remounts, "Times that binfmt_misc had to be mounted again"),
    ):
        family = CounterMetricFamily(f"maid_{name}", text)
        family.add_metric([], value)
        yield family
    probes = CounterMetricFamily("maid_probes", "Probes executed", labels=["result"])
    probes.add_metric(["ok"], counters.probes_ok)
    probes.add_metric(["failed"], counters.probes_failed)
    yield probes
    instances = GaugeMetricFamily("maid_instances", "Instances kept")
    instances.add_metric([], len(machine.tables))
    yield instances


def _steps(runner: Runner) -> Iterable[Metric]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    running = GaugeMetricFamily("maid_steps_running", "Steps that run now")
    running.add_metric([], sum(1 for _ in runner.running()))
    waiting = GaugeMetricFamily("maid_steps_waiting", "Requests that wait for a place")
    waiting.add_metric([], runner.waiting())
    ended = CounterMetricFamily("maid_steps", "Steps that have ended", labels=["outcome"])
    for outcome, count in sorted(runner.outcomes.items()):
        ended.add_metric([outcome], count)
    native = CounterMetricFamily(
        "maid_native_programs", "Programs that ran natively in emulated steps", labels=["tool"]
    )
    for tool, count in sorted(runner.accelerator.native.items()):
        native.add_metric([tool], count)
    emulated = CounterMetricFamily("maid_emulated_programs", "Programs that QEMU ran in steps")
    emulated.add_metric([], runner.accelerator.emulated)
    return running, waiting, ended, native, emulated


def _store(store: StoreSummary) -> Iterable[Metric]:
    from prometheus_client.core import GaugeMetricFamily

    for name, value, text in (
        ("bytes", store.size, "Size of the native store"),
        ("sets", store.sets, "Releases and architectures in the native store"),
        ("tools", store.tools, "Programs that have a native one in the store"),
    ):
        family = GaugeMetricFamily(f"maid_store_{name}", text)
        family.add_metric([], value)
        yield family


def _service(events: Events, connections: Callable[[], int]) -> Iterable[Metric]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily

    kinds = CounterMetricFamily("maid_events", "Events by kind", labels=["kind"])
    for kind, count in sorted(events.counts.items()):
        kinds.add_metric([kind], count)
    connected = GaugeMetricFamily("maid_connections", "Open connections to the socket")
    connected.add_metric([], connections())
    build = InfoMetricFamily("maid_build", "The daemon's version", value={"version": __version__})
    return kinds, connected, build
