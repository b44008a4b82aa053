"""Start and rest: the daemon's start to ready, `maid status`, memory, and wake-ups while idle."""

import subprocess
import time
from pathlib import Path

from common import MAID, Daemon, aim, daemon, heading, median, row, spread, timed

STARTS = 7
QUIET = 20.0


def resident(pid: int) -> float:
    """Resident memory in MiB (VmRSS of /proc/PID/status)."""
    text = Path(f"/proc/{pid}/status").read_text()
    line = next(line for line in text.splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def switches(pid: int) -> int:
    """How often the threads of a process went to sleep of their own accord since they started."""
    count = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        for line in (task / "status").read_text().splitlines():
            if line.startswith("voluntary_ctxt_switches"):
                count += int(line.split()[1])
    return count


def at_rest(running: Daemon) -> None:
    """What a running daemon costs."""
    row("served", f"{sum(p['entry'] is not None for p in running.status()['platforms'])} entries")
    command = [MAID, "--socket", running.socket, "status"]
    times = [timed(command, stdout=subprocess.DEVNULL) for _ in range(25)]
    row("maid status", spread(times))
    aim("maid status, median", median(times), 120, " ms")
    aim("resident memory", resident(running.process.pid), 45, " MiB")
    time.sleep(2)
    before = switches(running.process.pid)
    time.sleep(QUIET)
    count = switches(running.process.pid) - before
    aim(f"wake-ups in {QUIET:.0f} s of rest (no watchdog set)", count, 0)


def main() -> None:
    heading("start: daemon start to ready (every target registered, the first probes answered)")
    starts = []
    for _ in range(STARTS):
        with daemon() as running:
            starts.append(running.started * 1000)
    row("start to ready", spread(starts))
    aim("start to ready, median", median(starts) / 1000, 1.0, " s")
    with daemon() as running:
        at_rest(running)


if __name__ == "__main__":
    main()
