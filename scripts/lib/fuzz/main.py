"""The command line of scripts/fuzz: runs the targets one after another and prints a table."""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path

from fuzz.running import ALL, Ran, run


def main() -> int:
    """0, or 1 where there is a finding."""
    parser = argparse.ArgumentParser(prog="scripts/fuzz", add_help=False)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeat", type=Path)
    parser.add_argument("targets", nargs="*", metavar="TARGET")
    given = parser.parse_args()
    for name in given.targets:
        if name not in ALL:
            parser.error(f"there is no target {name}: {', '.join(ALL)}")
    if given.repeat and len(given.targets) != 1:
        parser.error("--repeat FILE needs the one target that the file is for")
    if given.repeat:
        # The driver of our own: it shows what Python raised, and runs a file as it is.
        ran = run(given.targets[0], repeat=given.repeat.resolve())
        print(ran.log)
        return int(ran.failed)
    seed = given.seed or random.SystemRandom().randrange(1, 1 << 31)
    print(
        f"{'target':<14} {'engine':<10} {'inputs':>11} {'seconds':>8} {'corpus':>7} {'findings':>9}"
    )
    failed = []
    for name in given.targets or ALL:
        ran = run(name, seconds=given.seconds, seed=seed, guided=True)
        print(row(ran), flush=True)
        if ran.failed:
            failed.append(ran)
    for ran in failed:
        tell(ran, seed)
    return int(bool(failed))


def row(ran: Ran) -> str:
    """A run as a line of the table."""
    findings = str(len(ran.findings)) if ran.findings or not ran.status else f"status {ran.status}"
    numbers = f"{ran.inputs:>11,} {ran.seconds:>8.0f} {ran.corpus:>7,} {findings:>9}"
    return f"{ran.name:<14} {ran.engine:<10} {numbers}"


def tell(ran: Ran, seed: int) -> None:
    """What was found, and how to see it again."""
    print(f"\n{ran.name} (seed {seed}):\n{ran.log[-3000:]}", file=sys.stderr)
    for path in ran.findings:
        print(f"again: scripts/fuzz --repeat {path} {ran.name}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
