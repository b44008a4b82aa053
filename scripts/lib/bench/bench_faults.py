"""What goes wrong on a bad day, many times over: what was lost, and how long until all was well.

A daemon of its own in private scope, programs that execute all the while in the namespace that it
serves, and steps. Each fault is made, then everything is held against what should be: the platform
executes, the ledger says what the table has, nothing is left over. --write FILE puts the table into
a document (docs/reliability.md).
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from common import cache, end_tidily, heading, hide_unified, median, row
from faults_machine import ENTRY, PLATFORM, TARGET, Executor, Machine, machine_of, step, write

from maid.emulation.targets import TARGETS

RATES = (4, 20)
"""Hostile resets a second."""


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
            figures.lost += executor.until_it_works().lost
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
    figures, wrong, unasked = Figures(), 0, 0
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
            output, errors = each.communicate(timeout=60)
            # A client that started so late that there was no daemon to ask says so. What had been
            # asked for is run, whether it had begun or not.
            is_unasked = each.returncode == 125 and b"no maid daemon answers" in errors
            unasked += is_unasked
            wrong += not is_unasked and (each.returncode, output) != (0, b"done\n")
        figures.rounds += 1
        if number % 20 == 19:
            figures.problems += machine.problems()
    figures.lost = wrong
    figures.note = (
        f"{2 * rounds} steps: {2 * rounds - unasked - wrong} with their result, {wrong} with"
        f" another or none; {unasked} asked for while there was no daemon, and said so;"
        " recovery: to the first answer"
    )
    return figures


def hostile_resets(
    machine: Machine, executor: Executor, tree: Path, seconds: float, rate: int
) -> Iterator[tuple[str, Figures]]:
    """Removals, flushes, switches and disabled entries, so many a second, while programs are
    executed through the served table, and through the instance of a step with a CPU model. Every
    entry that serves the platform is a target, whatever its name."""
    script = "n=0; while [ ! -e /tmp/stop ]; do /bin/true || echo failed; n=$((n+1)); done; echo $n"
    with tempfile.TemporaryDirectory(dir=machine.place) as directory:
        Path(directory).chmod(0o777)
        running = step(machine, tree, script, "--cpu", "max", "--bind", f"{directory}:/tmp:ro")
        # Its instance is made and proven first.
        time.sleep(2)
        cpu = machine.cpu_seconds()
        executor.begin()
        begun, resets = time.monotonic(), 0
        kinds = (("status", "-1"), ("", "-1"), ("", "0"), ("status", "0"))
        while time.monotonic() < begun + seconds:
            name, text = kinds[resets % len(kinds)]
            for file in [name] if name else machine.entries():
                write(machine.table / file, text)
            resets += 1
            time.sleep(max(0.0, begun + resets / rate - time.monotonic()))
        done = executor.end()
        cpu = machine.cpu_seconds() - cpu
        Path(directory, "stop").touch()
        output = running.communicate(timeout=60)[0].decode().split()
    served = Figures(rounds=resets, lost=int(done.failures == done.tries))
    served.note = (
        f"{done.tries} programs, {done.failures} failed"
        f" ({100 * done.failures / done.tries:.3f} %) in {seconds:.0f} s; at most"
        f" {done.longest * 1000:.1f} ms in which none worked; maid used"
        f" {100 * cpu / seconds:.1f} % of a CPU"
    )
    served.problems = machine.problems()
    yield f"hostile resets, {rate} a second: the served table", served
    own = Figures(rounds=resets, lost=output.count("failed"))
    own.note = f"{output[-1]} programs in a step, {output.count('failed')} failed"
    yield "the same: the instance of a step", own


HEADER = ("fault", "rounds", "lost", "until it works again, median (95 %)", "")


def show(rows: list[tuple[str, ...]]) -> str:
    """The rows as a table of a document."""
    lines = ["| " + " | ".join(HEADER) + " |", "|---|---|---|---|---|"]
    return "\n".join([*lines, *("| " + " | ".join(cells) + " |" for cells in rows)]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="scripts/bench faults", description=f"{__doc__}\n0 leaves a part out."
    )
    parser.add_argument("--rounds", type=int, default=50, help="of each fault of the table")
    parser.add_argument("--kills", type=int, default=200, help="of the daemon")
    parser.add_argument("--seconds", type=float, default=60, help="of hostile resets, at each rate")
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

            if options.rounds:
                for name, figures in table_faults(machine, executor, options.rounds):
                    told(name, figures)
            for rate in RATES if options.seconds else ():
                for name, figures in hostile_resets(machine, executor, tree, options.seconds, rate):
                    told(name, figures)
            executor.close()
            if options.kills:
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
