"""The CPU model of every target: which models run current programs at all, and how fast.

For each tree, every model that the emulator lists computes a self test in Python, whose output has
to be that of the emulator's default model; then the models that could be chosen are timed, in turn,
with a compiler, a Python loop, vector code and a checksum. Ratios above 1 are faster than the
default. The models are those of the emulator in PATH, or of the directory $BENCH_QEMU.

BENCH_TREES holds the trees of scripts/rootfs as words ARCHITECTURE=DIRECTORY.
"""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import cpu_entry
from common import heading, median, row
from cpu_jobs import SELF_TEST, Emulator, Failed, build_vector, jobs

from maid.emulation.targets import Target, for_platform
from maid.platforms import parse

ROUNDS = 3
DEFAULT = ""

# What could be chosen for a target: the levels that distributions are compiled for, and what an
# emulator is thought to be quick at. Those that fail the self test are not timed.
TIMED = {
    "aarch64": (
        *("cortex-a57", "cortex-a76", "neoverse-n1", "a64fx"),
        *("max,pauth-impdef=on", "max,pauth=off"),
    ),
    "arm": ("cortex-a7", "cortex-a15", "max"),
    "i386": ("qemu32", "Haswell", "max"),
    "loongarch64": ("la464", "max"),
    "mips64el": ("MIPS64R2-generic", "5KEf", "Loongson-3A4000"),
    "ppc64le": ("power8", "power9", "power10"),
    "riscv64": ("rv64", "sifive-u54", "rva22s64", "rva23s64", "max"),
    "s390x": ("qemu", "max"),
    "x86_64": ("qemu64", "Nehalem", "Haswell", "max"),
}


def interpreter(target: Target) -> Path:
    """The plain static emulator of a target."""
    place = os.environ.get("BENCH_QEMU")
    for name in (f"qemu-{target.emulator}-static", f"qemu-{target.emulator}"):
        if found := shutil.which(name, path=place):
            return Path(found)
    raise SystemExit(f"there is no emulator for {target.name} in {place or 'PATH'}")


def listed(emulator: Path) -> list[str]:
    """The models of `-cpu help`, without aliases, versions of one model and old names."""
    command = [str(emulator), "-cpu", "help"]
    said = subprocess.run(command, capture_output=True, text=True, env={}).stdout
    models: dict[str, None] = {}
    for line in said.splitlines():
        words = line.replace("'", "").split()
        if line.startswith("Recognized"):
            break
        if words and words[0] in ("PowerPC", "x86", "MIPS", "s390"):
            del words[0]
        if not words or line.endswith(":") or "(alias for" in line or "(alias of" in line:
            continue
        name = words[0].removesuffix("-loongarch-cpu")
        if not (name.endswith("-base") or name[-3:-1] == "-v"):
            models[name] = None
    return list(models)


def runs(emulator: Emulator, expected: bytes) -> str:
    """Why the self test fails under a model, or ""."""
    try:
        return "" if emulator.python(SELF_TEST)[1] == expected else "another result"
    except Failed as failure:
        return str(failure)


def screen(path: Path, tree: Path, models: list[str]) -> dict[str, str]:
    """For each model, why the self test fails under it, or ""; prints the count and the names."""
    expected = Emulator(path, DEFAULT, tree).python(SELF_TEST)[1]
    found = {model: runs(Emulator(path, model, tree), expected) for model in models}
    good = [model for model, problem in found.items() if not problem]
    row("models that run Python", f"{len(good)} of {len(found)}: {' '.join(good)}")
    return found


def measure(path: Path, tree: Path, models: list[str], vector: str) -> None:
    """Time the jobs under each model, in turn, and print a line for each."""
    work = jobs(vector)
    seconds: dict[tuple[str, str], list[float]] = {}
    outputs: dict[str, set[bytes]] = {name: set() for name in work}
    for _ in range(ROUNDS):
        for model in models:
            for name, job in work.items():
                taken, output = job(Emulator(path, model, tree))
                seconds.setdefault((model, name), []).append(taken)
                outputs[name].add(output)
    different = [name for name, found in outputs.items() if len(found) > 1]
    row("the same output under all models", f"no: {different}" if different else "yes")
    row("CPU seconds (times as fast as the default)", "  ".join(f"{name:<14}" for name in work))
    for model in models:
        cells = []
        for name in work:
            mine = median(seconds[model, name])
            ratio = median(seconds[DEFAULT, name]) / mine
            cells.append(f"{mine:6.2f} ({ratio:5.2f})")
        row(f"  {model or 'default'}", "  ".join(cells))


def main() -> None:
    """Measure every tree of BENCH_TREES."""
    for word in os.environ["BENCH_TREES"].split():
        architecture, _, directory = word.partition("=")
        target = for_platform(parse(f"linux/{architecture}"))
        assert target is not None, architecture
        tree, path = Path(directory), interpreter(target)
        heading(f"cpu {target.name}: {path} with {tree.name}")
        wanted = TIMED[target.name]
        problems = screen(path, tree, list(dict.fromkeys((*listed(path), *wanted))))
        models = [DEFAULT, *(name for name in wanted if not problems[name])]
        with tempfile.TemporaryDirectory(dir=tree / "tmp") as scratch:
            inside = f"/{Path(scratch).relative_to(tree)}"
            measure(path, tree, models, build_vector(Emulator(path, DEFAULT, tree), inside))
        if architecture == "arm64" and "BENCH_QEMU" not in os.environ:
            cpu_entry.measure(str(tree))


if __name__ == "__main__":
    main()
