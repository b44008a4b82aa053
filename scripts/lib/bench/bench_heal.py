"""Healing: from the removal of an entry to the end of the next foreign program that works.

One process in the instance's namespace removes the entry, then executes a probe until it answers;
what it takes without a removal is measured in the same run.
"""

import ctypes
import os
import time
from pathlib import Path

from common import aim, daemon, heading, median, row, spread, works

ROUNDS = 100
CLONE_NEWUSER = 0x10000000


def main() -> None:
    heading("heal: from removal to the next working exec")
    with daemon() as running:
        instance = running.status()["instance"]
        probe = str(running.runtime / "probes" / "aarch64" / "probe")
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            measure(instance, probe, write)
        os.close(write)
        with os.fdopen(read) as lines:
            figures = [[float(word) for word in line.split()] for line in lines]
        os.waitpid(child, 0)
        without, removed, disabled = ([f[i] for f in figures] for i in range(3))
        row("exec of the probe, nothing removed", spread(without))
        row("entry removed, until it works", spread(removed))
        row("entry disabled, until it works", spread(disabled))
        aim("median from removal to the next working exec", median(removed), 50, " ms")


def measure(instance: str, probe: str, out: int) -> None:
    """The child: joins the namespace, as a container would be in it, and reports milliseconds."""
    user = os.open(Path(instance).parent / "user", os.O_RDONLY)
    if ctypes.CDLL(None).setns(user, CLONE_NEWUSER) != 0:
        os._exit(1)
    entry = f"{instance}/qemu-aarch64"

    def until_it_works(change: str) -> float:
        while change and not Path(entry).exists():
            time.sleep(0.001)
        begun = time.perf_counter()
        if change:
            with open(entry, "w") as file:
                file.write(change)
        while not works(probe):
            pass
        return (time.perf_counter() - begun) * 1000

    with os.fdopen(out, "w") as report:
        for _ in range(ROUNDS):
            report.write(f"{until_it_works('')} {until_it_works('-1')} {until_it_works('0')}\n")
    os._exit(0)


if __name__ == "__main__":
    main()
