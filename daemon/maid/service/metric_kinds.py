"""The metrics: what each counts, in which unit and with which labels.

One table. metrics.py makes the exposition from it, and docs/metrics.md is written from it, by
`python -m maid.service.describe`. Names and units are Prometheus' conventions: seconds, bytes,
counters that end in _total. No label has more values than the catalogue of targets, the kinds of
events or the store's tools: no identifiers of steps, users or processes.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class MetricKind:
    """A metric. `name` is without the _total, _info or _bucket that its samples have; `kind` is
    gauge, counter, histogram or info; `labels` those that choose a sample, and `facts` those of an
    info that say something of it; `text` is its HELP; `more` stands in docs/metrics.md beside
    it."""

    name: str
    kind: str
    text: str
    labels: tuple[str, ...] = ()
    facts: tuple[str, ...] = ()
    more: str = ""

    @property
    def shown(self) -> str:
        """The name by which its samples are asked for."""
        suffix = {"counter": "_total", "info": "_info", "histogram": "_bucket"}
        return self.name + suffix.get(self.kind, "")


_STATES = "`state` is one of native, ready, degraded, failed, absent, disabled (docs/json.md)"

METRICS: dict[str, MetricKind] = {
    each.name: each
    for each in (
        MetricKind("maid_ready", "gauge", "Whether every required platform executes"),
        MetricKind("maid_build", "info", "The daemon's version", facts=("version",)),
        MetricKind(
            "maid_start_timestamp_seconds",
            "gauge",
            "When the daemon started, in seconds since 1970",
            more="Every counter is counted from then on",
        ),
        MetricKind(
            "maid_platform_executes",
            "gauge",
            "Whether the last probe of the platform worked",
            ("platform", "target"),
            more="A target without an OCI platform has an empty `platform`",
        ),
        MetricKind(
            "maid_platform",
            "info",
            "How the platform stands",
            ("platform", "target"),
            ("state", "via", "owner", "interpreter_version"),
            more=_STATES,
        ),
        MetricKind(
            "maid_platforms",
            "gauge",
            "Platforms by state and by whose entry serves",
            ("state", "owner"),
            more=f"{_STATES}; `owner` maid, other or none",
        ),
        MetricKind(
            "maid_entries",
            "gauge",
            "Entries of the served table by state and owner",
            ("state", "owner"),
            more="`state` enabled or disabled; `owner` maid or other. All entries, other tools' for"
            " other things among them",
        ),
        MetricKind(
            "maid_probe_last_duration_seconds",
            "gauge",
            "How long the last probe took",
            ("target",),
        ),
        MetricKind(
            "maid_probe_duration_seconds",
            "histogram",
            "How long probes took",
            ("target",),
        ),
        MetricKind("maid_probes", "counter", "Probes executed", ("result",), more="ok or failed"),
        MetricKind("maid_registrations", "counter", "Entries registered"),
        MetricKind("maid_renewals", "counter", "Entries renewed without a gap"),
        MetricKind("maid_removals", "counter", "Entries of maid's own removed"),
        MetricKind("maid_refusals", "counter", "Registrations that the kernel refused"),
        MetricKind(
            "maid_heals",
            "counter",
            "Repairs of what somebody had undone",
            ("cause",),
            more="`cause`: removed (one entry), flushed (all of them at once, as a restart of"
            " systemd-binfmt does), disabled, replaced (by an entry of that name), switched off"
            " (the table as a whole), unmounted",
        ),
        MetricKind(
            "maid_last_heal_timestamp_seconds",
            "gauge",
            "When something was repaired last, in seconds since 1970",
            more="Not there before the first repair",
        ),
        MetricKind(
            "maid_guarded",
            "gauge",
            "Whether a guard puts back at once what is taken out of the served table",
            more="0: the daemon repairs alone, some ms later; another guard is tried every minute",
        ),
        MetricKind("maid_instances", "gauge", "Instances kept"),
        MetricKind(
            "maid_crashes",
            "counter",
            "Emulated programs that died of a signal",
            ("target", "signal"),
            more="Counted where `[emulation] watch_crashes` is on",
        ),
        MetricKind("maid_steps_running", "gauge", "Steps that run now"),
        MetricKind("maid_steps_waiting", "gauge", "Requests that wait for a place"),
        MetricKind(
            "maid_steps",
            "counter",
            "Steps that have ended",
            ("platform", "outcome", "mode"),
            more="`outcome` as in docs/json.md, and exited is any status; `mode` is native,"
            " accelerated (under QEMU, and some programs ran natively) or emulated",
        ),
        MetricKind(
            "maid_step_duration_seconds",
            "histogram",
            "How long steps ran, by the wall clock",
            ("platform", "mode"),
            more="Those whose command was started",
        ),
        MetricKind(
            "maid_step_wait_seconds",
            "histogram",
            "How long steps waited for a place before they began",
            more="0 where a place was free; `[steps] max_per_uid` is the number of places",
        ),
        MetricKind(
            "maid_native_programs",
            "counter",
            "Programs that ran natively in emulated steps",
            ("tool",),
        ),
        MetricKind("maid_emulated_programs", "counter", "Programs that QEMU ran in steps"),
        MetricKind("maid_store_bytes", "gauge", "Size of the native store"),
        MetricKind("maid_store_sets", "gauge", "Releases and architectures in the native store"),
        MetricKind("maid_store_tools", "gauge", "Programs that have a native one in the store"),
        MetricKind("maid_events", "counter", "Events by kind", ("kind",), more="docs/events.md"),
        MetricKind("maid_connections", "gauge", "Open connections to the socket"),
    )
}
"""In the order in which docs/metrics.md has them."""
