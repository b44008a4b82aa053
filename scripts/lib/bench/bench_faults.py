"""What goes wrong on a bad day, many times over: what was lost, and how long until all was well.

A daemon of its own in private scope, programs that execute all the while in the namespace that it
serves, and steps. Each fault is made, then everything is held against what should be: the platform
executes, the ledger says what the table has, nothing is left over. --write FILE puts the table into
a document (docs/reliability.md).
"""

import argparse
import ctypes
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from common import MAID, cache, end_tidily, heading, hide_unified, median, row, wait_ready, works

from maid.emulation.targets import TARGETS

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
            last_failure = begun
            while True:
                tries += 1
                is_good = works(probe)
                now = time.monotonic()
                if not is_good:
                    failures, last_failure = failures + 1, now
                if (order == b"u" and (is_good or now > until)) or (
                    order == b"h" and stopped(orders)
                ):
                    break
            lost = int(order == b"u" and failures == tries)
            os.write(reports, f"{tries} {failures} {last_failure - begun} {lost}\n".encode())
        os._exit(0)

    def until_it_works(self) -> tuple[int, int, float, int]:
        """Tries, failures, seconds to the last failure, and 1 if it never worked."""
        os.write(self._orders, b"u")
        return self._report()

    def begin(self) -> None:
        """Execute again and again until `end`."""
        os.write(self._orders, b"h")

    def end(self) -> tuple[int, int, float, int]:
        os.write(self._orders, b"s")
        return self._report()

    def _report(self) -> tuple[int, int, float, int]:
        tries, failures, seconds, lost = self._lines.readline().split()
        return int(tries), int(failures), float(seconds), int(lost)

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


class Fault:
    """Something that is done to a machine, and undone."""

    def make(self, machine: Machine) -> None:
        raise NotImplementedError

    def undo(self, machine: Machine) -> None:
        """Nothing, where maid repairs it."""


@dataclass
class Written(Fault):
    """A word is written to a file of the table."""

    file: str
    text: str

    def make(self, machine: Machine) -> None:
        write(machine.table / self.file, self.text)


class Unmounted(Fault):
    """The table's file system is taken away."""

    def make(self, machine: Machine) -> None:
        subprocess.run(["umount", "--lazy", machine.table], check=True)


class Taken(Fault):
    """Another tool takes the name, with an entry that is broken: a program that is no emulator."""

    def make(self, machine: Machine) -> None:
        target = TARGETS[TARGET]
        magic, mask = (
            "".join(f"\\x{byte:02x}" for byte in octets) for octets in (target.magic, target.mask)
        )
        write(machine.table / ENTRY, "-1")
        write(machine.table / "register", f":{ENTRY}:M::{magic}:{mask}:/bin/true:F")

    def undo(self, machine: Machine) -> None:
        with suppress(FileNotFoundError):
            if "/bin/true" in (machine.table / ENTRY).read_text():
                write(machine.table / ENTRY, "-1")


@dataclass
class Damaged(Fault):
    """Something is done to the file of the interpreter; its package restores it."""

    damage: Callable[[Path], object]

    def make(self, machine: Machine) -> None:
        self.damage(machine.interpreter)

    def undo(self, machine: Machine) -> None:
        machine.restore()


def replace(file: Path) -> None:
    """Another file, that is no emulator, in its place."""
    new = file.with_suffix(".new")
    new.write_bytes(b"no emulator")
    new.rename(file)


FAULTS: dict[str, Fault] = {
    "the entry is removed": Written(ENTRY, "-1"),
    "the entry is disabled": Written(ENTRY, "0"),
    "the table is flushed": Written("status", "-1"),
    "the table is switched off": Written("status", "0"),
    "the table is unmounted": Unmounted(),
    "another tool takes the name, broken": Taken(),
    "the interpreter is deleted": Damaged(Path.unlink),
    "the interpreter is replaced by no emulator": Damaged(replace),
    "the interpreter is truncated": Damaged(lambda file: os.truncate(file, 4096)),
    "the interpreter is not executable": Damaged(lambda file: file.chmod(0o644)),
}


@dataclass
class Figures:
    """What came of one fault."""

    rounds: int = 0
    lost: int = 0
    recovery: list[float] = field(default_factory=list)
    note: str = ""
    problems: list[str] = field(default_factory=list)

    def cells(self, name: str) -> tuple[str, ...]:
        ordered = sorted(self.recovery) or [0.0]
        high = ordered[min(len(ordered) - 1, int(len(ordered) * 0.95))]
        recovered = (
            f"{median(ordered) * 1000:.1f} ms ({high * 1000:.1f} ms)" if self.recovery else ""
        )
        return name, str(self.rounds), str(self.lost), recovered, self.note


def table_faults(
    machine: Machine, executor: Executor, rounds: int
) -> Iterator[tuple[str, Figures]]:
    """Each fault of the table and of the interpreter, again and again."""
    for name, fault in FAULTS.items():
        figures = Figures()
        for _ in range(rounds):
            begun = time.monotonic()
            fault.make(machine)
            figures.lost += executor.until_it_works()[3]
            figures.recovery.append(time.monotonic() - begun)
            figures.rounds += 1
            fault.undo(machine)
            wait_proven(machine)
        figures.problems = machine.problems()
        yield name, figures


def wait_proven(machine: Machine) -> None:
    """Wait until the daemon has seen what was done, and the platform is ready in its eyes."""
    machine.maid("ensure", PLATFORM, "--timeout", "10")


def kills(machine: Machine, tree: Path, rounds: int) -> Figures:
    """kill -9 of the daemon at random moments, two steps running; started again at once."""
    figures, wrong, refused = Figures(), 0, 0
    for number in range(rounds):
        steps = [
            step(machine, tree, f"sleep 0.{random.randrange(1, 6)}; echo done") for _ in (1, 2)
        ]
        time.sleep(random.random() * 0.5)
        machine.kill()
        begun = time.monotonic()
        machine.start()
        figures.recovery.append(time.monotonic() - begun)
        for each in steps:
            output = each.communicate(timeout=60)[0]
            # One that had not begun when the daemon died says so.
            refused += each.returncode == 125 and not output
            wrong += (each.returncode, output) not in ((0, b"done\n"), (125, b""))
        figures.rounds += 1
        if number % 20 == 19:
            figures.problems += machine.problems()
    figures.lost = wrong
    figures.note = (
        f"{2 * rounds} steps: {refused} not begun, and said so; {wrong} with another result;"
        " recovery: to the first answer"
    )
    return figures


def step(machine: Machine, tree: Path, script: str, *options: str) -> subprocess.Popen[bytes]:
    command = ["--socket", machine.socket, "run", "--rootfs", str(tree), "--readonly", *options]
    return subprocess.Popen(
        [MAID, *command, "--", "sh", "-c", script],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )


def hostile_resets(
    machine: Machine, executor: Executor, tree: Path, seconds: float
) -> Iterator[tuple[str, Figures]]:
    """Removals, flushes, switches and disabled entries, four a second, while programs are executed
    through the served table, and through the instance of a step with a CPU model. (Who goes on for
    more than 256 of one kind is met with pauses that grow.)"""
    script = "n=0; while [ ! -e /tmp/stop ]; do /bin/true || echo failed; n=$((n+1)); done; echo $n"
    with tempfile.TemporaryDirectory(dir=machine.place) as directory:
        Path(directory).chmod(0o777)
        running = step(machine, tree, script, "--cpu", "max", "--bind", f"{directory}:/tmp:ro")
        # Its instance is made and proven first.
        time.sleep(2)
        executor.begin()
        until, resets = time.monotonic() + seconds, 0
        kinds = (("status", "-1"), (ENTRY, "-1"), (ENTRY, "0"), ("status", "0"))
        while time.monotonic() < until:
            name, text = kinds[resets % len(kinds)]
            write(machine.table / name, text)
            resets += 1
            time.sleep(0.25)
        tries, failures, _, _ = executor.end()
        Path(directory, "stop").touch()
        output = running.communicate(timeout=60)[0].decode().split()
    served = Figures(rounds=resets, lost=0)
    served.note = (
        f"{tries} programs, {failures} failed ({100 * failures / tries:.2f} %) in {seconds:.0f} s"
    )
    served.problems = machine.problems()
    yield "hostile resets, four a second: the served table", served
    own = Figures(rounds=resets, lost=output.count("failed"))
    own.note = f"{output[-1]} programs in a step, {output.count('failed')} failed"
    yield "the same: the instance of a step", own


@contextmanager
def machine_of(place: Path) -> Iterator[Machine]:
    """A machine that is gone afterwards."""
    machine = Machine(place)
    try:
        machine.start()
        yield machine
    finally:
        machine.remove()


HEADER = ("fault", "rounds", "lost", "until it works again, median (95 %)", "")


def show(rows: list[tuple[str, ...]]) -> str:
    """The rows as a table of a document."""
    lines = ["| " + " | ".join(HEADER) + " |", "|---|---|---|---|---|"]
    return "\n".join([*lines, *("| " + " | ".join(cells) + " |" for cells in rows)]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench faults", description=__doc__)
    parser.add_argument("--rounds", type=int, default=50, help="of each fault of the table")
    parser.add_argument("--kills", type=int, default=200, help="of the daemon")
    parser.add_argument("--seconds", type=float, default=60, help="of hostile resets")
    parser.add_argument("--write", type=Path, help="a document whose table is replaced")
    options = parser.parse_args()
    end_tidily()
    hide_unified()
    tree = Path(os.environ["BENCH_BUSYBOX"])
    heading(f"faults: {options.rounds} rounds each, {options.kills} kills")
    rows, problems = [], []
    with tempfile.TemporaryDirectory(prefix="faults-", dir=cache()) as directory:
        Path(directory).chmod(0o755)
        with machine_of(Path(directory)) as machine:
            executor = Executor(machine)

            def told(name: str, figures: Figures) -> None:
                cells = figures.cells(name)
                rows.append(cells)
                problems.extend(f"{name}: {each}" for each in figures.problems)
                row(name, f"{cells[1]} rounds, {cells[2]} lost; {' '.join(cells[3:])}")

            for name, figures in table_faults(machine, executor, options.rounds):
                told(name, figures)
            for name, figures in hostile_resets(machine, executor, tree, options.seconds):
                told(name, figures)
            executor.close()
            told("the daemon is killed with steps running", kills(machine, tree, options.kills))
    for problem in problems:
        row("PROBLEM", problem)
    if options.write:
        text = options.write.read_text()
        head, tail = (text.split(mark)[index] for mark, index in ((MARKS[0], 0), (MARKS[1], 1)))
        options.write.write_text(f"{head}{MARKS[0]}\n{show(rows)}{MARKS[1]}{tail}")
    sys.exit(1 if problems or any(int(cells[2]) for cells in rows) else 0)


MARKS = ("<!-- written by scripts/bench faults -->", "<!-- end -->")


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    main()
