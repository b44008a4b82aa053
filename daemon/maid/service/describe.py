"""Writes what is described by the code: python -m maid.service.describe docs units.

One file for each interface, io.maid.NAME.varlink, as the running service tells it
(org.varlink.service.GetInterfaceDescription); docs/events.md, the kinds of events; the same for
`journalctl --catalog`, units/maid.catalog (systemd.catalog(7)); and docs/metrics.md.
"""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

from maid.service.interfaces import Emulation, Manager
from maid.service.kinds import KINDS
from maid.service.metric_kinds import METRICS
from maid.service.step_interface import Steps
from maid.service.store_interface import Store

INTERFACES = (Manager, Emulation, Steps, Store)
"""Maid's own interfaces."""


def describe(directory: Path) -> list[Path]:
    """Write the description of every interface into `directory`; the files written."""
    written = []
    for interface in INTERFACES:
        path = directory / f"{interface.name}.varlink"
        lines = interface.render_interface_description().splitlines()
        path.write_text("".join(f"{line.rstrip()}\n" for line in lines))
        written.append(path)
    return written


_EVENTS = """\
# Events

What `maid events` shows, `io.maid.Manager.Events` streams, and the journal has with the fields
`MESSAGE_ID`, `MAID_EVENT` (the kind), `MAID_SUBJECT` (a target, a platform, or nothing) and
`MAID_SEQUENCE`: `journalctl -u maid MAID_EVENT=healed`; `journalctl --catalog -u maid` adds what is
said here. Kinds with a ! have priority 4 (warning), the others 6. The metric
`maid_events_total{kind="…"}` counts them.

Of a repair the sentence says what was undone and, where the kernel tells, by whom: "qemu-arm was
gone with all others and is registered again (by sh of make in container 0123456789ab, process
4711)". It is fanotify that names the process that wrote to the table: on Linux 6.6 or newer, to a
daemon that is root of the machine. A process that has ended at once is only a number; that
systemd-binfmt or binfmt-support was started in the seconds before is said as well. Programs' names,
units and containers are told, never arguments.

| kind | | what it means | what to do | MESSAGE_ID |
|---|---|---|---|---|
"""


def events() -> str:
    """docs/events.md."""
    rows = [
        f"| `{kind.name}` | {'!' if kind.grave else ''} | {kind.summary}. {kind.meaning}"
        f" | {kind.advice} | `{kind.identifier}` |\n"
        for kind in KINDS.values()
    ]
    return _EVENTS + "".join(rows)


def catalog() -> str:
    """units/maid.catalog."""
    return "\n".join(
        f"-- {kind.identifier}\nSubject: {kind.summary}\nDefined-By: maid\n"
        "\n@MAID_SUBJECT@: @MESSAGE@\n\n"
        + "\n".join(textwrap.wrap(" ".join((kind.meaning, kind.advice)).strip(), 79))
        + "\n"
        for kind in KINDS.values()
    )


_METRICS = """\
# Metrics

`maid metrics` prints them in Prometheus' text format, and `io.maid.Manager.Metrics` returns the
same text. They are read when they are asked for: at rest they cost nothing. Counters begin at 0
with the daemon (`maid_start_timestamp_seconds`); Prometheus' `rate` and `increase` take that as it
is.

## How they are scraped

By node_exporter's textfile collector, which most fleets run already: a timer writes `maid metrics`
to a file in its directory twice a minute, whole or not at all. There is no port to open and nothing
to let in; if the file grows old, the daemon does not answer (`node_textfile_mtime_seconds`, and an
alert for it below).

    cd units/monitoring
    install -m 644 maid-metrics.service maid-metrics.timer /etc/systemd/system/
    systemctl enable --now maid-metrics.timer

`/var/lib/prometheus/node-exporter` is Debian's directory for such files; another one
(`--collector.textfile.directory`) goes into `Environment=DIRECTORY=` of a drop-in. Then:

- `units/monitoring/alerts.yml`: alert rules for Prometheus (`rule_files:`), each with what it means
  and what to do.
- `units/monitoring/grafana-dashboard.json`: a dashboard for Grafana (Import), with a choice of
  machines.

## What there is

`_total`, `_info` and `_bucket` belong to the names of samples; a histogram has `_sum` and `_count`
too. Beside these there is `process_*` of the daemon, as every Prometheus client has it.

| metric | type | labels | what it is |
|---|---|---|---|
"""


def metrics() -> str:
    """docs/metrics.md."""
    rows = []
    for each in METRICS.values():
        labels = ", ".join(f"`{label}`" for label in (*each.labels, *each.facts))
        text = f"{each.text}. {each.more}" if each.more else each.text
        rows.append(f"| `{each.shown}` | {each.kind} | {labels} | {text} |\n")
    return _METRICS + "".join(rows)


if __name__ == "__main__":
    docs, units = (Path(argument) for argument in sys.argv[1:])
    describe(docs)
    (docs / "events.md").write_text(events())
    (docs / "metrics.md").write_text(metrics())
    (units / "maid.catalog").write_text(catalog())
