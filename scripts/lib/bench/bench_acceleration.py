"""Acceleration: the jobs of jobs.py natively, by plain QEMU, with maid's CPU model, accelerated.

All in one run, the four in turn, so that a change of the machine's speed meets all of them. What
plain QEMU and the accelerated step left behind is compared, file by file; what two plain runs have
different (logs with the time of day) says nothing.
"""

import argparse
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import debian
import jobs
from common import cache, end_tidily, heading, hide_unified, median, row
from jobs import JOBS, Job, Material
from sides import (
    ACCELERATED,
    CHOSEN,
    NATIVE,
    PLAIN,
    TARGETS,
    Compared,
    Ran,
    Side,
    compared,
    sides,
)

ORDER = (NATIVE, PLAIN, CHOSEN, ACCELERATED)


@dataclass
class Figures:
    """What a job cost each side, round for round."""

    job: Job
    ran: dict[str, list[Ran]] = field(default_factory=dict)
    compared: Compared | None = None

    def cpu(self, side: str) -> float:
        """The median of CPU seconds."""
        return median([ran.cpu for ran in self.ran[side]])

    def wall(self, side: str) -> float:
        """The median of seconds that passed."""
        return median([ran.wall for ran in self.ran[side]])

    def judged(self, side: str) -> float:
        """What the job's aims are about."""
        return self.wall(side) if self.job.wall else self.cpu(side)


def measure(
    job: Job, made: dict[str, Side], files: Material, rounds: int, place: Path, address: str
) -> Figures:
    """Run one job on every side, `rounds` times, and compare what it left."""
    figures = Figures(job)
    kept: dict[str, list[Path]] = {PLAIN: [], ACCELERATED: []}
    begun = {architecture: place / f"begun-{architecture}" for architecture in files.own}
    for side in (made[NATIVE], made[ACCELERATED]):
        changes = begun[side.architecture]
        files.put(job, side.architecture, changes)
        if job.before:
            side.run(
                job.before,
                changes,
                log=place / "before.log",
                environment=[f"ARCHIVE={address}/{side.architecture}"],
            )
    for number in range(rounds):
        for name in ORDER:
            side = made[name]
            changes = place / f"{name.replace(' ', '-')}-{number}"
            # With cp: whiteouts and the overlay's own attributes are taken over.
            subprocess.run(["cp", "-a", begun[side.architecture], changes], check=True)
            script = f"cd /work\n{job.script}"
            ran = side.run(script, changes, log=changes.with_suffix(".log"))
            figures.ran.setdefault(name, []).append(ran)
            if name in kept and len(kept[name]) < 2:
                kept[name].append(changes)
            else:
                shutil.rmtree(changes)
    plain, accelerated = kept[PLAIN], kept[ACCELERATED]
    figures.compared = compared(made[PLAIN].tree, plain[0], plain[-1], accelerated[0])
    for directory in (*plain, *accelerated, *begun.values()):
        shutil.rmtree(directory)
    return figures


def show_header(words: str) -> None:
    """The first line of a table."""
    columns = "".join(f"{name:>13}" for name in ORDER)
    print(f"\n  {words:<30}{columns}{'acc./native':>13}{'plain/acc.':>12}", flush=True)


def show_line(name: str, seconds: dict[str, float]) -> None:
    """A job's line of a table: its seconds on every side, and the two ratios."""
    columns = "".join(f"{seconds[side]:13.2f}" for side in ORDER)
    ours = seconds[ACCELERATED]
    ratios = f"{ours / seconds[NATIVE]:13.2f}{seconds[PLAIN] / ours:12.1f}"
    print(f"  {name:<30}{columns}{ratios}", flush=True)


def show_aims(figures: Figures) -> None:
    """One line for a job: its aims, and what plain QEMU made and the accelerated step did not."""
    job, said = figures.job, []
    native, plain, ours = (figures.judged(name) for name in (NATIVE, PLAIN, ACCELERATED))
    for value, limit, reached in (
        (ours / native, job.most, ours / native <= job.most),
        (plain / ours, job.least, plain / ours >= job.least),
    ):
        if limit:
            sign = "<=" if limit is job.most else ">="
            said.append(f"{value:.2f} {sign} {limit:g} {'reached' if reached else 'MISSED'}")
    assert figures.compared is not None
    count = len(figures.compared.different)
    said.append(f"{figures.compared.paths} paths " + ("the same" if not count else "DIFFER"))
    if figures.compared.varying:
        said[-1] += f" but for {len(figures.compared.varying)} that vary by themselves"
    ran = figures.ran[ACCELERATED][-1]
    said.append(f"{sum(ran.native.values())} programs native, {ran.emulated} emulated")
    row(job.name, "; ".join(said))
    for difference in figures.compared.different[:10]:
        print(
            f"      {difference.path} {difference.attribute}: "
            f"{difference.first} | {difference.second}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench acceleration", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--architecture", choices=sorted(TARGETS), default="arm64")
    parser.add_argument("--only", default="", help="jobs whose name contains this")
    options = parser.parse_args()
    architecture = options.architecture
    hide_unified()
    end_tidily()
    trees = {
        "amd64": Path(os.environ["BENCH_NATIVE"]).resolve(),
        architecture: Path(os.environ["BENCH_FOREIGN"]).resolve(),
    }
    heading(f"acceleration: Debian 13 {architecture}, {options.rounds} rounds")
    archives = {
        name: debian.partial_archive(tree, name, [*jobs.INSTALLED, *jobs.UNPACKED])
        for name, tree in trees.items()
    }
    with tempfile.TemporaryDirectory(prefix="acceleration-", dir=cache() / "bench") as temporary:
        place = Path(temporary)
        served = place / "served"
        served.mkdir()
        for name, archive in archives.items():
            (served / name).symlink_to(archive)
        files = jobs.material(place, trees, archives)
        with (
            debian.served(served) as address,
            sides(architecture, trees["amd64"], trees[architecture]) as made,
        ):
            for name in (PLAIN, CHOSEN):
                row(name, made[name].emulator)
            measured = []
            show_header("CPU seconds, medians")
            for job in JOBS:
                if options.only in job.name:
                    figures = measure(job, made, files, options.rounds, place, address)
                    show_line(job.name, {side: figures.cpu(side) for side in ORDER})
                    measured.append(figures)
    show_header("seconds that passed, medians")
    for figures in measured:
        show_line(figures.job.name, {side: figures.wall(side) for side in ORDER})
    print()
    for figures in measured:
        show_aims(figures)


if __name__ == "__main__":
    main()
