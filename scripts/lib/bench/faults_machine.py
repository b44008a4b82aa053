"""The machine that bench_faults.py damages: a private daemon, a program that executes in what it
serves, and steps."""

import ctypes
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from common import MAID, cache, wait_ready, works

CLONE_NEWUSER = 0x10000000
PLATFORM, TARGET = "linux/arm64", "aarch64"
ENTRY = f"qemu-{TARGET}"
PATIENCE = 20.0
"""Seconds until a platform that does not execute counts as lost."""


class Machine:
    """A private daemon that is started, killed and started again, in one place, with its own copy
    of the interpreter, so that it can be damaged."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.runtime = Path(tempfile.mkdtemp(prefix="maid-bench-", dir="/dev/shm"))
        self.runtime.chmod(0o755)
        self.socket = str(place / "io.maid")
        self.interpreter = place / "interpreters" / f"qemu-{TARGET}-static"
        self.interpreter.parent.mkdir()
        original = shutil.which(f"qemu-{TARGET}-static") or shutil.which(f"qemu-{TARGET}")
        if original is None:
            raise SystemExit(f"there is no qemu-{TARGET}")
        self.original = Path(original)
        self.restore()
        (place / "maid.toml").write_text(
            f'[emulation]\nplatforms = ["{PLATFORM}"]\nready = ["{PLATFORM}"]\n'
            f'interpreters = ["{self.interpreter.parent}"]\n'
            f'[emulation.target.{TARGET}]\ninterpreter = "{self.interpreter}"\n'
            f'[acceleration]\nfill = "off"\n'
            f'[paths]\nruntime = "{self.runtime}"\nstate = "{cache() / "state"}"\n'
        )
        self.process: subprocess.Popen[bytes] | None = None

    def restore(self) -> None:
        """Have the interpreter be as its package has it, as a package manager replaces a file."""
        new = self.interpreter.with_suffix(".new")
        shutil.copy(self.original, new)
        new.rename(self.interpreter)

    def start(self) -> None:
        command = [MAID, "--config", self.place / "maid.toml", "daemon", "--scope", "private"]
        with open(self.place / "log", "ab") as log:
            self.process = subprocess.Popen(
                [*command, "--socket", self.socket],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        wait_ready(self.socket, self.process)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def status(self) -> dict[str, object]:
        done = subprocess.run([MAID, "--socket", self.socket, "status", "--json"],
                              stdout=subprocess.PIPE)  # fmt: skip
        document: dict[str, object] = json.loads(done.stdout)
        return document

    @property
    def table(self) -> Path:
        return self.runtime / "instances/root/binfmt"

    def entries(self) -> list[str]:
        """The names of the entries that serve the platform."""
        with suppress(OSError):
            return [name for name in os.listdir(self.table) if TARGET in name]
        return []

    def cpu_seconds(self) -> float:
        """What the daemon and its guard have used until now, their ended children included."""
        assert self.process is not None
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        guards = [c for c in children.split() if _name(c) == "maid-guard"]
        return _cpu(str(self.process.pid)) + sum(_cpu(guard) for guard in guards)

    def steps(self) -> list[object]:
        """The steps that run now. (The result of one that has ended is kept for a while, for a
        client that lost the daemon it had asked.)"""
        from maid.client import Client

        with Client(self.socket) as client:
            found: list[object] = client.call("io.maid.Steps.List")["steps"]
        return found

    def maid(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [MAID, "--socket", self.socket, *arguments], capture_output=True, text=True, timeout=60
        )

    def remove(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.maid("release")
            self.process.terminate()
            self.process.wait(20)
        shutil.rmtree(self.runtime, ignore_errors=True)

    # What must hold ----------------------------------------------------------------------------

    def problems(self) -> list[str]:
        """What is not as it should be once a fault is over."""
        found = []
        if self.maid("ensure", PLATFORM, "--timeout", "10").returncode:
            found.append(f"{PLATFORM} does not execute")
        status = self.status()
        platform = next(p for p in status["platforms"] if p["platform"] == PLATFORM)  # type: ignore[attr-defined]
        entries = {p.name for p in self.table.iterdir()} - {"register", "status"}
        ours = {platform["entry"]} if platform["owner"] == "maid" else set()
        if ours - entries:
            found.append(f"the status names {ours - entries}, which the table does not have")
        if running := self.steps():
            found.append(f"steps run that nobody waits for: {running}")
        return found


def _name(pid: str) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


def _cpu(pid: str) -> float:
    """User and system seconds of a process and its children that have ended (proc(5), stat)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(int(field) for field in fields[11:15]) / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Executed:
    """How often a program was executed and how often that failed; `seconds` to the last failure,
    `longest` from the first failure in a row to the start of the next one that worked; `lost` 1 if
    none worked."""

    tries: int
    failures: int
    seconds: float
    longest: float
    lost: int


class Executor:
    """A process in the served namespace that executes a foreign program when it is told to."""

    def __init__(self, machine: Machine) -> None:
        probe = str(machine.runtime / "probes" / TARGET / "probe")
        user = machine.runtime / "instances/root/user"
        orders, self._orders = os.pipe()
        self._reports, reports = os.pipe()
        self._child = os.fork()
        if self._child == 0:
            os.close(self._orders)
            self._run(user, probe, orders, reports)
        os.close(orders)
        os.close(reports)
        self._lines = os.fdopen(self._reports)

    def _run(self, user: Path, probe: str, orders: int, reports: int) -> None:
        namespace = os.open(user, os.O_RDONLY)
        if ctypes.CDLL(None).setns(namespace, CLONE_NEWUSER) != 0:
            os._exit(1)
        while order := os.read(orders, 1):
            begun, tries, failures = time.monotonic(), 0, 0
            until = begun + (PATIENCE if order == b"u" else 0.0)
            last_failure, down_since, longest = begun, 0.0, 0.0
            while True:
                tries += 1
                tried = time.monotonic()
                is_good = works(probe)
                now = time.monotonic()
                if not is_good:
                    failures, last_failure = failures + 1, now
                    down_since = down_since or tried
                longest = max(longest, tried - down_since if down_since else 0.0)
                if is_good:
                    down_since = 0.0
                if (order == b"u" and (is_good or now > until)) or (
                    order == b"h" and stopped(orders)
                ):
                    break
            lost = int(order == b"u" and failures == tries)
            os.write(
                reports,
                f"{tries} {failures} {last_failure - begun} {longest} {lost}\n".encode(),
            )
        os._exit(0)

    def until_it_works(self) -> Executed:
        """Execute until it works, or PATIENCE is over."""
        os.write(self._orders, b"u")
        return self._report()

    def begin(self) -> None:
        """Execute again and again until `end`."""
        os.write(self._orders, b"h")

    def end(self) -> Executed:
        """Execute no more."""
        os.write(self._orders, b"s")
        return self._report()

    def _report(self) -> Executed:
        tries, failures, seconds, longest, lost = self._lines.readline().split()
        return Executed(int(tries), int(failures), float(seconds), float(longest), int(lost))

    def close(self) -> None:
        os.close(self._orders)
        self._lines.close()
        os.waitpid(self._child, 0)


def stopped(orders: int) -> bool:
    """Whether another order has come, which is taken."""
    os.set_blocking(orders, False)
    try:
        return bool(os.read(orders, 1))
    except BlockingIOError:
        return False
    finally:
        os.set_blocking(orders, True)


def write(path: Path, text: str) -> None:
    """Write to a file of the table that may be gone, or that another writes to as well."""
    with suppress(OSError):
        file = os.open(path, os.O_WRONLY)
        try:
            os.write(file, text.encode())
        finally:
            os.close(file)


def step(machine: Machine, tree: Path, script: str, *options: str) -> subprocess.Popen[bytes]:
    command = ["--socket", machine.socket, "run", "--rootfs", str(tree), "--readonly", *options]
    return subprocess.Popen(
        [MAID, *command, "--", "sh", "-c", script],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@contextmanager
def machine_of(place: Path) -> Iterator[Machine]:
    """A machine that is gone afterwards."""
    machine = Machine(place)
    try:
        machine.start()
        yield machine
    finally:
        machine.remove()
