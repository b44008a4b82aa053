"""driver.py TARGET [-runs=N] [-max_total_time=S] [-seed=N] [-artifact_prefix=P] [PLACE…]

Fuzzes Python. The options are libFuzzer's, and so is what is said at the end, so that targets in C
and in Python are run alike. With -engine=atheris the inputs come from atheris, which is led by what
code they reach; else from here: changes of the seeds, and of inputs of which something new has
come. The same seed gives the same inputs. A PLACE is a directory of more seeds, or a file to be
repeated.

An input that makes the target raise an exception, or take longer than LIMIT seconds, is written to
Pcrash-HASH with the exception in Pcrash-HASH.txt; the exit status is 77.
"""

from __future__ import annotations

import hashlib
import importlib
import random
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from fuzz.inputs import MAX_SIZE, Target, changed

LIMIT = 10.0
"""Seconds that one input may take, on a machine that does much else."""

MEMORY = 4 << 30
"""Bytes of address space that a target may use."""

MAX_CORPUS = 4000

TARGETS = {
    "entry": "fuzz.entries.Entries",
    "configuration": "fuzz.configuration.Configuration",
    "elf": "fuzz.programs.Programs",
    "logs": "fuzz.logs.Logs",
    "documents": "fuzz.documents.Documents",
    "varlink": "fuzz.calls.Calls",
}
"""The targets in Python, and where they are."""

INSTRUMENTED = {
    "entry": ["maid.binfmt.entry"],
    "configuration": ["tomllib", "maid.config", "maid.settings", "maid.platforms"],
    "elf": ["maid.elf"],
    "logs": ["maid.acceleration.profile", "maid.steps.programs"],
    "documents": ["maid.images", "maid.platforms"],
}
"""What atheris watches; a target that is not here only the driver can run."""


def main() -> int:
    """Run the target that the command line names."""
    name, options, places = sys.argv[1], {}, []
    for argument in sys.argv[2:]:
        if argument.startswith("-"):
            option, _, value = argument[1:].partition("=")
            options[option] = value
        else:
            places.append(Path(argument))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.RLIM_INFINITY))
    if options.get("engine") == "atheris":
        return guided(name, sys.argv[2:])
    with make(name) as target:
        return Driver(target, options).run(places)


def make(name: str) -> Target:
    """The target of that name."""
    module, _, kind = TARGETS[name].rpartition(".")
    target: Target = getattr(importlib.import_module(module), kind)()
    return target


def guided(name: str, arguments: list[str]) -> int:
    """Have atheris make the inputs; it never returns from Fuzz."""
    import atheris

    with atheris.instrument_imports(include=INSTRUMENTED[name]):
        target = make(name)
    target.__enter__()  # gone with this process: atheris ends it
    places = [Path(each) for each in arguments if not each.startswith("-")]
    for number, seed in enumerate(target.seeds()):
        if places and places[0].is_dir():
            (places[0] / f"seed-{number}").write_bytes(seed)
    passed = [each for each in arguments if not each.startswith("-engine")]
    atheris.Setup([sys.argv[0], *passed], lambda data: void(target.one(data)))
    atheris.Fuzz()
    return 0


def void(_: object) -> None:
    """libFuzzer takes anything but nothing for an input that it must not keep."""


class TooLong(Exception):
    """An input took longer than LIMIT."""


class Driver:
    """Makes inputs for one target, and keeps those of which something new came."""

    def __init__(self, target: Target, options: dict[str, str]) -> None:
        self.target = target
        self.runs = int(options.get("runs") or 1 << 62)
        self.seconds = float(options.get("max_total_time") or 1e9)
        self.prefix = options.get("artifact_prefix", "")
        self.random = random.Random(int(options.get("seed") or 1))
        self.corpus: list[bytes] = []
        self.known: set[object] = set()
        self.done = 0

    def run(self, places: list[Path]) -> int:
        """Everything there is to begin with, then changes of it; the exit status."""
        signal.signal(signal.SIGALRM, too_long)
        begin = [path.read_bytes() for path in places if path.is_file()]
        repeating = bool(begin)
        if not repeating:
            begin = self.target.seeds()
            for path in places:
                begin += [each.read_bytes() for each in sorted(path.iterdir()) if each.is_file()]
        end = time.monotonic() + self.seconds
        status = 0
        for data in begin:
            status = status or self.one(data, seed=True)
        while not status and not repeating and self.done < self.runs and time.monotonic() < end:
            status = self.one(changed(self.random, self.corpus, self.target.words))
        print(f"stat::number_of_executed_units: {self.done}", file=sys.stderr)
        print(f"stat::corpus: {len(self.corpus)}", file=sys.stderr)
        return status

    def one(self, data: bytes, seed: bool = False) -> int:
        """Try an input; 77 when it is a finding."""
        self.done += 1
        signal.setitimer(signal.ITIMER_REAL, LIMIT)
        try:
            outcome = self.target.one(data)
        except Exception:
            signal.setitimer(signal.ITIMER_REAL, 0)
            self.save(data, traceback.format_exc())
            return 77
        signal.setitimer(signal.ITIMER_REAL, 0)
        if seed or (outcome not in self.known and len(self.corpus) < MAX_CORPUS):
            self.corpus.append(data[:MAX_SIZE])
        self.known.add(outcome)
        return 0

    def save(self, data: bytes, words: str) -> None:
        """Keep a finding, and say so as libFuzzer does."""
        path = f"{self.prefix}crash-{hashlib.sha256(data).hexdigest()[:16]}"
        Path(path).write_bytes(data)
        Path(f"{path}.txt").write_text(words, errors="backslashreplace")
        print(f"{words}\nTest unit written to {path}", file=sys.stderr)


def too_long(number: int, frame: FrameType | None) -> Any:
    """An input that takes too long is a finding, with the place where it was."""
    raise TooLong(f"longer than {LIMIT:g} s")


def shape(call: Callable[[], object], *expected: type[Exception]) -> object:
    """What came of a call: a word, or the error that may be, without its numbers."""
    try:
        call()
    except expected as error:
        return type(error).__name__, "".join(
            letter for letter in str(error)[:80] if letter.isascii() and letter.isalpha()
        )
    return "worked"


if __name__ == "__main__":
    sys.exit(main())
