"""The ways in which one job is run for comparison: natively, by plain QEMU, by QEMU with the CPU
that maid chooses, and accelerated. Each is a step of a private daemon, in an overlay of its own.
"""

import json
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common import MAID, cache, daemon

from maid.acceleration.verify import Difference, Tree, apart, compare

NATIVE, PLAIN, CHOSEN, ACCELERATED = "native", "plain", "chosen CPU", "accelerated"
TARGETS = {"arm64": "aarch64", "riscv64": "riscv64"}


@dataclass(frozen=True)
class Ran:
    """What a step cost, in seconds, and how many programs ran natively in it, by tool."""

    wall: float
    cpu: float
    native: dict[str, int]
    emulated: int | None


@dataclass(frozen=True)
class Side:
    """One of the ways: a daemon's socket, the platform, the tree, options of `maid run`."""

    name: str
    socket: str
    architecture: str
    tree: Path
    options: tuple[str, ...] = ()
    status: dict[str, Any] = field(default_factory=dict)

    def run(
        self,
        script: str,
        changes: Path,
        *,
        log: Path,
        binds: Sequence[str] = (),
        environment: Sequence[str] = (),
    ) -> Ran:
        """Run a shell script; what it changes is in `changes`/upper. It must succeed."""
        command = [MAID, "--socket", self.socket, "run", "--json", "--network", "host"]
        command += ["--platform", f"linux/{self.architecture}", "--rootfs", str(self.tree)]
        command += ["--overlay", str(changes), *self.options]
        for bind in binds:
            command += ["--bind", bind]
        for variable in ("LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive", *environment):
            command += ["--env", variable]
        with open(log, "wb") as file:
            done = subprocess.run(
                [*command, "--", "/bin/sh", "-ec", script],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=file,
            )
        if done.returncode:
            print(log.read_text(errors="replace")[-3000:])
            raise SystemExit(f"{self.name}: the step failed with status {done.returncode}; {log}")
        result = json.loads(done.stdout)
        return Ran(
            result["wall"],
            result["user"] + result["system"],
            result.get("native") or {},
            result.get("emulated"),
        )

    @property
    def emulator(self) -> str:
        """The emulator's version and CPU model, as the daemon has them."""
        platform = f"linux/{self.architecture}"
        found = next(p for p in self.status["platforms"] if p["platform"] == platform)
        return f"QEMU {found['interpreter_version']}, CPU {found['cpu'] or 'default'}"


@contextmanager
def sides(architecture: str, native: Path, foreign: Path) -> Iterator[dict[str, Side]]:
    """All four for a foreign architecture, by name; `native` and `foreign` are the trees. The store
    has been filled for the foreign one.

    Two daemons: plain QEMU's runs with QEMU's own default CPU.
    """
    state = cache() / "bench" / "state"
    target = TARGETS[architecture]
    plain_config = f'[emulation.target.{target}]\ncpu = ""\n[acceleration]\naccelerate = "off"\n'
    with ExitStack() as stack:
        ours = stack.enter_context(daemon(settings='[acceleration]\nfill = "wait"\n', state=state))
        plain = stack.enter_context(daemon(settings=plain_config, state=state.with_name("plain")))
        made = (
            Side(NATIVE, ours.socket, "amd64", native),
            Side(PLAIN, plain.socket, architecture, foreign, (), plain.status()),
            Side(CHOSEN, ours.socket, architecture, foreign, ("--no-accelerate",), ours.status()),
            Side(ACCELERATED, ours.socket, architecture, foreign, ("--require-acceleration",)),
        )
        fill(made[-1])
        yield {side.name: side for side in made}


def fill(side: Side) -> None:
    """Have the store filled for the side's tree."""
    changes = cache() / "bench" / "filling"
    side.run("true", changes, log=changes.with_suffix(".log"))
    shutil.rmtree(changes)


@dataclass
class Compared:
    """What plain and accelerated runs made: how many paths were compared, what differs, and what
    differs between two plain runs too, so that it says nothing."""

    paths: int = 0
    different: list[Difference] = field(default_factory=list)
    varying: list[Difference] = field(default_factory=list)


def compared(lower: Path, plain: Path, again: Path, accelerated: Path) -> Compared:
    """Compare what a plain run changed with an accelerated one, and with another plain one."""
    first, second, third = (
        Tree(str(changes / "upper"), str(lower)) for changes in (plain, again, accelerated)
    )
    different, varying = apart(compare(first, third), compare(first, second))
    paths = sum(1 for _ in (plain / "upper").rglob("*"))
    return Compared(paths, different, varying)
