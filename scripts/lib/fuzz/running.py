"""Runs fuzz targets, in C and in Python, each as a process of its own, and counts."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import compiled

from fuzz import driver, native

ALL = [*driver.TARGETS, *native.TARGETS]
"""Every target's name."""

GRACE = 180
"""Seconds that a target may take to begin and to end, on a machine that does much else."""


@dataclass
class Ran:
    """What a run of one target came to. `corpus` is how many inputs are kept that each reach
    something that no other does; `engine` what made the inputs; `log` the end of what was said."""

    name: str
    engine: str
    inputs: int = 0
    seconds: float = 0.0
    findings: list[Path] = field(default_factory=list)
    corpus: int = 0
    log: str = ""
    status: int = 0

    @property
    def failed(self) -> bool:
        """Whether there is anything to mend: a finding, or a run that did not come to its end."""
        return bool(self.findings) or self.status != 0


def engine(name: str, guided: bool) -> str:
    """What makes a target's inputs: with `guided` the best that is there."""
    if not guided:
        return "own"
    if name in native.TARGETS:
        return "libFuzzer" if has_libfuzzer() else "own"
    return "atheris" if name in driver.INSTRUMENTED and has_atheris() else "own"


def has_libfuzzer() -> bool:
    """Whether clang is there with its run-time libraries, which Debian has in another package."""
    with tempfile.TemporaryDirectory() as directory:
        source = Path(directory) / "x.c"
        source.write_text(
            "int LLVMFuzzerTestOneInput(const char *d, long n) { return d && n < 0; }\n"
        )
        command = [
            "clang",
            "-fsanitize=fuzzer,address,undefined",
            "-o",
            f"{directory}/x",
            str(source),
        ]
        try:
            return subprocess.run(command, capture_output=True).returncode == 0
        except FileNotFoundError:
            return False


def has_atheris() -> bool:
    """Whether atheris is installed: there are wheels for x86-64 alone."""
    return (
        subprocess.run([sys.executable, "-c", "import atheris"], capture_output=True).returncode
        == 0
    )


def run(
    name: str,
    *,
    runs: int = 0,
    seconds: float = 0,
    seed: int = 1,
    guided: bool = False,
    repeat: Path | None = None,
    findings: Path | None = None,
    sources: Path = compiled.NATIVE,
) -> Ran:
    """Run one target for so many inputs or seconds, or only the input `repeat`.

    Findings are kept in the directory `findings`, by default in the cache. `sources` is where
    maid's sources in C are.
    """
    found = findings or native.cache() / "findings"
    found.mkdir(parents=True, exist_ok=True)
    made = Ran(name, engine(name, guided))
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="maid-fuzz-", dir=memory) as place:
        command, environment = _command(made, Path(place), sources)
        if repeat is not None:
            command.append(str(repeat))
        else:
            command += [f"-seed={seed}", *([f"-runs={runs}"] if runs else [])]
            command += [f"-max_total_time={seconds:g}"] if seconds else []
            command += _places(made, Path(place))
        prefix = found / f"{name}-"
        before = set(found.glob(f"{name}-*"))
        begun = time.monotonic()
        try:
            done = subprocess.run(
                [*command, f"-artifact_prefix={prefix}"],
                cwd=place,
                env=os.environ | environment | {"FUZZ_PLACE": place},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=(seconds or 600) + GRACE,
            )
            made.status, text = done.returncode, done.stdout.decode(errors="replace")
        except subprocess.TimeoutExpired as error:
            made.status, text = (
                124,
                (error.stdout or b"").decode(errors="replace") + "\ndid not end",
            )
        made.seconds = time.monotonic() - begun
        made.log = text[-6000:]
        made.findings = sorted(
            path for path in set(found.glob(f"{name}-*")) - before if path.suffix != ".txt"
        )
        counted = re.findall(r"number_of_executed_units: (\d+)", text)
        made.inputs = int(counted[-1]) if counted else 0
        kept = re.findall(r"stat::corpus: (\d+)", text)
        made.corpus = int(kept[-1]) if kept else len(list(_corpus(name).iterdir()))
    return made


def _corpus(name: str) -> Path:
    """What guided engines have kept of a target's inputs, from run to run."""
    place = native.cache() / "corpus" / name
    place.mkdir(parents=True, exist_ok=True)
    return place


def _command(made: Ran, place: Path, sources: Path) -> tuple[list[str], dict[str, str]]:
    """The command without its inputs, and what its environment has more."""
    guided = made.engine in ("libFuzzer", "atheris")
    limits = ["-timeout=10", "-max_len=16384", "-print_final_stats=1", "-rss_limit_mb=4096"]
    if made.name in native.TARGETS:
        program = native.build(made.name, made.engine == "libFuzzer", sources)
        return [str(program), *(limits if guided else [])], native.ENVIRONMENT
    paths = os.pathsep.join(path for path in sys.path if path)
    options = [f"-engine={made.engine}", *limits] if guided else []
    command = [sys.executable, "-m", "fuzz.driver", made.name, *options]
    return command, {"PYTHONPATH": paths}


def _places(made: Ran, place: Path) -> list[str]:
    """The directories with what a run begins with: guided engines write to the first one."""
    places = [str(_corpus(made.name))] if made.engine in ("libFuzzer", "atheris") else []
    if made.name in native.TARGETS:
        begin = place / "seeds"
        begin.mkdir()
        for number, data in enumerate(native.seeds(made.name)):
            (begin / f"{number:03}").write_bytes(data)
        places.append(str(begin))
    return places
