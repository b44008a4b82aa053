"""How a platform's build goes: what buildah's output says, and who is told.

Pure but for the clock: buildah's lines go in, and the state of the build can be read from it.
"""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

TAIL = 10
"""Lines of a failed step that are shown."""

# "STEP 2/4: RUN make", with several stages "[1/2] STEP 2/4: RUN make"; buildah 1.23 and newer.
_STEP = re.compile(r"(?:\[(\d+)/(\d+)\] )?STEP (\d+)(?:/(\d+))?: (.*)")
_CACHED = re.compile(r"--> Using cache ")
_FAILED = re.compile(r'Error: (?:building at STEP "(.*?)": )?(.*)', re.DOTALL)

# The shim's, because MAID_VERBOSE is set (docs/engines.md).
_SHIM = re.compile(r"maid-runtime: (MAID_INIT: )?(.*)")

# Arguments that maid gives although no line may ask for them: BuildKit's, and buildah's own.
_UNUSED = re.compile(r"\[Warning\] one or more build args were not consumed: \[(.*)\]")

_MISMATCH = re.compile(
    r"image platform \(.*\) does not match the expected platform|"
    r"(?:requested|image) (?:image's )?platform .* does not match"
)


class State(StrEnum):
    """Where a platform's build is."""

    WAITING = "waiting"
    PREPARING = "preparing"
    BUILDING = "building"
    CHECKING = "checking"
    BUILT = "built"
    FAILED = "failed"
    ENDED = "ended"
    """Ended because another platform failed, or not begun."""


@dataclass(frozen=True)
class Step:
    """A STEP line: its number and how many there are in its stage, the stage's number and how many
    stages there are (1 of 1 where there is one), and the instruction."""

    number: int
    of: int
    stage: int
    stages: int
    text: str

    def __str__(self) -> str:
        """As buildah writes it."""
        stage = f"[{self.stage}/{self.stages}] " if self.stages > 1 else ""
        return f"{stage}STEP {self.number}/{self.of}: {self.text}"


class Watcher(Protocol):
    """Who is told of a build; called from the build's own thread."""

    def begin(self, builds: Sequence[Progress]) -> None:
        """These will be built. Called once, before anything else."""

    def line(self, progress: Progress, text: str) -> None:
        """A line of output."""

    def changed(self, progress: Progress) -> None:
        """Another state."""


@dataclass
class Progress:
    """One platform's build as far as it has come."""

    platform: str
    state: State = State.WAITING
    step: Step | None = None
    steps: int = 0
    cached: int = 0
    last: str = ""
    error: str = ""
    log: str = ""
    started: float = 0.0
    ended: float = 0.0
    accelerated: bool = False
    not_accelerated: str = ""
    mismatch: str = ""
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=TAIL))
    ignored_arguments: frozenset[str] = frozenset()

    @property
    def seconds(self) -> float:
        """How long it has taken, in seconds."""
        if not self.started:
            return 0.0
        return (self.ended or time.monotonic()) - self.started

    def read(self, line: str) -> str | None:
        """Take in a line of buildah's output; what is to be shown of it, None for nothing."""
        if shim := _SHIM.fullmatch(line):
            about_init, said = shim.groups()
            if not about_init and said == "mounted":
                self.accelerated = True
            elif not about_init:
                self.not_accelerated = said
            return None
        if unused := _UNUSED.fullmatch(line):
            given = [each for each in unused[1].split() if each not in self.ignored_arguments]
            if not given:
                return None
            line = f"[Warning] one or more build args were not consumed: [{' '.join(given)}]"
        if step := _STEP.fullmatch(line):
            stage, stages, number, of, text = step.groups()
            self.step = Step(
                int(number), int(of or number), int(stage or 1), int(stages or 1), text
            )
            self.steps += 1
            self.tail.clear()
        elif _CACHED.match(line):
            self.cached += 1
        elif line.strip():
            self.tail.append(line)
        if failed := _FAILED.match(line):
            # An instruction may have quotes in it: the one that runs is known.
            at = f'Error: building at STEP "{self.step.text}": ' if self.step else ""
            self.error = line.removeprefix(at) if at and line.startswith(at) else failed[2]
        if _MISMATCH.search(line) and self.step:
            self.mismatch = f"{self.step.text}: {line.removeprefix('WARNING: ')}"
        self.last = line
        return line
