"""Many commands in one step, both ways, compared one by one.

A step under load takes seconds to begin and its commands milliseconds, so a module's cases run in a
single step of each kind. What one case leaves behind the next may use.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from accelerated import Both, both, differences
from daemons import Daemon


@dataclass(frozen=True)
class Cases:
    """What each command wrote, with its exit status, under QEMU alone and with native tools."""

    ran: Both
    plain: Mapping[str, str]
    native: Mapping[str, str]
    differences: list[str]

    @property
    def tools(self) -> dict[str, int]:
        """How often each tool ran natively."""
        return self.ran.tools


def run_cases(
    daemon: Daemon, tree: Path, commands: list[str], place: Path, prepare: str = ":"
) -> Cases:
    """Run the commands with /bin/sh, after `prepare` in the same step and directory."""
    body = "".join(
        f"echo '=== {number}'; ( {command}\n) 2>&1; echo \"--- $?\"\n"
        for number, command in enumerate(commands)
    )
    script = f"cd /root; {prepare}\n{body}"
    ran = both(daemon, tree, ["/bin/sh", "-c", script], place, timeout=600)
    outputs = [
        dict(zip(commands, re.split(r"(?m)^=== \d+\n", text)[1:], strict=True))
        for text in (ran.plain.stdout, ran.native.stdout)
    ]
    return Cases(ran, *outputs, [str(each) for each in differences(place, tree)])
