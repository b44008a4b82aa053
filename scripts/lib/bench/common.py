"""What the benchmarks share: a private daemon, commands that are timed, and how figures are
shown."""

import contextlib
import json
import os
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maid.emulation.targets import PROBE_STATUS

MAID = str(Path(sys.prefix) / "bin" / "maid")


def median(values: Sequence[float]) -> float:
    """The median."""
    return statistics.median(values)


def spread(values: Sequence[float], unit: str = "ms", digits: int = 1) -> str:
    """The median with the smallest and the 95th percentile."""
    ordered = sorted(values)
    high = ordered[min(len(ordered) - 1, int(len(ordered) * 0.95))]
    return (
        f"{median(values):.{digits}f} {unit}"
        f"  (min {ordered[0]:.{digits}f}, 95 % {high:.{digits}f}, n {len(values)})"
    )


def heading(text: str) -> None:
    """A headline for one benchmark, with how busy the machine is."""
    load = os.getloadavg()[0]
    print(f"\n== {text}  [load {load:.2f} on {os.cpu_count()} CPUs]", flush=True)


def row(name: str, value: str) -> None:
    """One figure."""
    print(f"  {name:<46} {value}", flush=True)


def aim(name: str, value: float, limit: float, unit: str = "", at_most: bool = True) -> None:
    """A figure that has an aim, and whether it was reached."""
    reached = value <= limit if at_most else value >= limit
    sign = "<=" if at_most else ">="
    row(
        name,
        f"{value:.2f}{unit}  (aim {sign} {limit:g}{unit}: {'reached' if reached else 'MISSED'})",
    )


@dataclass
class Daemon:
    """A private daemon of one's own."""

    process: subprocess.Popen[bytes]
    socket: str
    directory: Path
    runtime: Path
    started: float

    def status(self) -> dict[str, Any]:
        """The parsed `maid status --json`."""
        command = [MAID, "--socket", self.socket, "status", "--json"]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
        document: dict[str, Any] = json.loads(done.stdout)
        return document


@contextlib.contextmanager
def daemon(
    place: Path | None = None,
    *,
    settings: str = '[acceleration]\nfill = "off"\n',
    state: Path | None = None,
) -> Iterator[Daemon]:
    """A private daemon that is ready, and gone afterwards with everything it made.

    Its copies of interpreters are kept from run to run (the caches of a machine that has run maid
    before), in `state`. `place` keeps the directory for a daemon that comes after. `settings` are
    added to its configuration.
    """
    directory = place or Path(tempfile.mkdtemp(prefix="bench-", dir=cache()))
    state = state or cache() / "state"
    config = directory / "maid.toml"
    # /run is a tmpfs wherever systemd runs; a machine without has one at /dev/shm.
    runtime = Path(tempfile.mkdtemp(prefix="maid-bench-", dir="/dev/shm"))
    config.write_text(f'{settings}[paths]\nruntime = "{runtime}"\nstate = "{state}"\n')
    socket = str(directory / "io.maid")
    command = [MAID, "--config", str(config), "daemon", "--scope", "private", "--socket", socket]
    begun = time.perf_counter()
    with open(directory / "log", "ab") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        wait_ready(socket, process)
        yield Daemon(process, socket, directory, runtime, time.perf_counter() - begun)
    finally:
        if process.poll() is None:
            subprocess.run([MAID, "--socket", socket, "release"], stdout=subprocess.DEVNULL)
            process.terminate()
            process.wait(20)
        shutil.rmtree(runtime, ignore_errors=True)
        if place is None:
            shutil.rmtree(directory, ignore_errors=True)


def wait_ready(socket: str, process: subprocess.Popen[bytes]) -> None:
    """Wait until the daemon answers, which it does when its first probes have."""
    from maid.client import Client
    from maid.errors import DaemonUnreachable

    while True:
        try:
            with Client(socket) as client:
                client.call("org.varlink.service.GetInfo")
                return
        except DaemonUnreachable:
            if process.poll() is not None:
                raise SystemExit(f"the daemon ended with status {process.returncode}") from None
            time.sleep(0.002)


def cache() -> Path:
    """Where what is slow to make is kept."""
    path = Path(os.environ["MAID_CACHE"])
    path.mkdir(parents=True, exist_ok=True)
    return path


def timed(command: Sequence[str], **options: Any) -> float:
    """Wall milliseconds of a command that must succeed."""
    begun = time.perf_counter()
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, **options)
    return (time.perf_counter() - begun) * 1000


def cpu_seconds(command: Sequence[str]) -> tuple[float, float]:
    """Wall and CPU (user and system) seconds of a command that must succeed."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    begun = time.perf_counter()
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    wall = time.perf_counter() - begun
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def works(probe: str) -> bool:
    """Execute the probe; whether it gave its answer."""
    try:
        pid = os.posix_spawn(
            probe, [probe], {}, file_actions=[(os.POSIX_SPAWN_OPEN, 1, "/dev/null", 1, 0)]
        )
    except OSError:
        return False
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == PROBE_STATUS


def end_tidily() -> None:
    """End by an exception when SIGTERM comes, so that daemons and directories go too."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


def hide_unified() -> None:
    """Leave the v2 part of a hybrid cgroup tree out of this process's mounts, for crun before
    1.9."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if (
        libc.unshare(0x20000) < 0
        or libc.mount(b"none", b"/", None, (1 << 14) | (1 << 19), None) < 0
    ):
        raise SystemExit("this process cannot have a mount namespace of its own")
    libc.umount2(b"/sys/fs/cgroup/unified", 2)
