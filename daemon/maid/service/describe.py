"""Writes what is described by the code: python -m maid.service.describe docs units.

One file for each interface, io.maid.NAME.varlink, as the running service tells it
(org.varlink.service.GetInterfaceDescription); docs/events.md, the kinds of events; and the same for
`journalctl --catalog`, units/maid.catalog (systemd.catalog(7)).
"""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

from maid.service.interfaces import Emulation, Manager
from maid.service.kinds import KINDS
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


if __name__ == "__main__":
    docs, units = (Path(argument) for argument in sys.argv[1:])
    describe(docs)
    (docs / "events.md").write_text(events())
    (units / "maid.catalog").write_text(catalog())
