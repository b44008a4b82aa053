"""Writes the interfaces' descriptions: python -m maid.service.describe docs.

One file for each interface, io.maid.NAME.varlink, as the running service tells it
(org.varlink.service.GetInterfaceDescription).
"""

from __future__ import annotations

import sys
from pathlib import Path

from maid.service.interfaces import Emulation, Manager
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


if __name__ == "__main__":
    for file in describe(Path(sys.argv[1] if len(sys.argv) > 1 else "docs")):
        print(file)
