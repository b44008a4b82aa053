"""Programs that end when maid does, however it ends: a copy that goes on alone could still publish
something, or fill what somebody removes."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from maid.images.stall import SECONDS, Stall

_POLL_SECONDS = 0.1

# Whoever dies between fork and the order to the kernel leaves a child that the kernel does not end:
# it looks itself, once the order is given.
_IF_STILL_OURS = '[ "$PPID" = "$0" ] && exec "$@"'


def bound(command: Sequence[str]) -> list[str]:
    """The command, which is killed when the thread that starts it ends (prctl(2),
    PR_SET_PDEATHSIG: the thread, not the process), and whose process is that of the program."""
    shell = ["/bin/sh", "-c", _IF_STILL_OURS, str(os.getpid())]
    return ["setpriv", "--pdeathsig=KILL", "--", *shell, *command]


def output() -> IO[bytes]:
    """A file for what a program says; it is memory, for the disk may be what it complains about."""
    return os.fdopen(os.memfd_create("output", os.MFD_CLOEXEC), "w+b")


def run(command: Sequence[str], cwd: Path | None = None, patience: float = SECONDS) -> str | None:
    """Run a program to its end; what it wrote where it failed, None where it did not.

    It is ended where it does nothing for `patience` seconds. Raises OSError where it cannot be
    started.
    """
    with output() as said:
        process = subprocess.Popen(
            bound(command), cwd=cwd, stdin=subprocess.DEVNULL, stdout=said, stderr=said
        )
        try:
            stall = Stall(process.pid, patience)
            while process.poll() is None:
                try:
                    process.wait(_POLL_SECONDS)
                except subprocess.TimeoutExpired:
                    if stall.has_come():
                        return f"it did nothing for {patience:.0f} s and was ended"
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        said.seek(0)
        return said.read().decode(errors="replace") if process.returncode else None
