"""What must hold once a fault is over, for every test of one: all that worked works, the ledger
tells the truth, and nothing is left over.

Shares no code with maid where it reads the table or the ledger.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from daemons import mounts_below, processes_of, until
from serving import FEW, Serving, message, read_message

CGROUPS = Path("/sys/fs/cgroup")
BAD_WORDS = ("Traceback", "unhandled", "never retrieved", "was destroyed but", "Exception in")
RESERVE = ".next"
"""How records end of what may be registered by the guard: they are there before that is."""

SETTLES = 20.0
"""Seconds until what a fault has left must be gone, on a busy machine."""


@dataclass(frozen=True)
class Registration:
    """What an entry is, apart from whether it is switched on."""

    interpreter: str
    flags: frozenset[str]
    offset: int
    magic: str
    mask: str


def table_of(directory: Path) -> dict[str, tuple[bool, Registration]]:
    """The entries of the table mounted there: whether each is enabled, and what it is."""
    found = {}
    for name in os.listdir(directory):
        if name in ("register", "status"):
            continue
        try:
            lines = (directory / name).read_text().splitlines()
        except FileNotFoundError:
            continue  # it went just now
        fields = dict(line.split(" ", 1) if " " in line else (line, "") for line in lines[1:])
        magic = fields["magic"]
        registration = Registration(
            fields["interpreter"],
            frozenset(fields["flags:"].strip()),
            int(fields["offset"]),
            magic,
            fields.get("mask", "f" * len(magic)),
        )
        found[name] = lines[0] == "enabled", registration
    return found


def ledger_of(file: Path) -> dict[str, Registration]:
    """The records of a ledger; it must be whole."""
    with contextlib.suppress(FileNotFoundError):
        return {
            record["name"]: Registration(
                record["interpreter"],
                frozenset(record["flags"]),
                record["offset"],
                record["magic"],
                record["mask"],
            )
            for record in json.loads(file.read_text())
        }
    return {}


class Faulted(Serving):
    """A daemon that something bad happens to. `foreign` are the names of entries that others have
    registered in the served table."""

    def __init__(self, config: str = FEW, **options: Any) -> None:
        super().__init__(config, **options)
        self.foreign: set[str] = set()

    @property
    def table(self) -> Path:
        """The served table."""
        return self.inside(self.runtime) / "instances/root/binfmt"

    def inside(self, path: Path) -> Path:
        """The path as the daemon sees it, which may be in a mount namespace of its own."""
        return path if self.process is None else Path(f"/proc/{self.pid}/root{path}")

    def status(self) -> dict[str, Any]:
        """What `maid status --json` says."""
        status = self.call("io.maid.Manager.Status")["parameters"]["status"]
        assert isinstance(status, dict)
        return status

    def executing(self) -> list[str]:
        """The platforms that execute, in the daemon's own eyes."""
        states = {each["platform"]: each["state"] for each in self.status()["platforms"]}
        return [name for name, state in states.items() if name and state in ("native", "ready")]

    def ensure(self, platforms: Sequence[str], timeout: float = SETTLES) -> dict[str, Any]:
        """Have these executed now: each one's result, by its name."""
        with self.connect() as connection:
            connection.settimeout(timeout + 20)
            call = message("io.maid.Emulation.Ensure", platforms=list(platforms), timeout=timeout)
            connection.sendall(call)
            results = read_message(connection)["parameters"]["results"]
        return {each["platform"]: each for each in results}

    def children(self) -> set[int]:
        """The processes that it has started and not yet waited for."""
        text = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text()
        return {int(word) for word in text.split()}

    def programs(self) -> Counter[str]:
        """What runs below it, and what names its directories: programs by their names."""
        found = {*self.children(), *processes_of(self.runtime)}
        return Counter(name for name in map(_program, found) if name)

    def events(self) -> list[dict[str, Any]]:
        """The events that it remembers."""
        with self.client() as client:
            replies = client.stream("io.maid.Manager.Events", {"follow": False})
            return [reply["event"] for reply in replies if reply["event"]]


@dataclass(frozen=True)
class Before:
    """A daemon that was well: what must be so again, or no more than that."""

    platforms: tuple[str, ...]
    descriptors: int
    programs: Counter[str]
    mounts: tuple[str, ...]
    runtime: frozenset[str]


def well(daemon: Faulted) -> Before:
    """Have everything done once that is done once, and note how the daemon is then."""
    platforms = tuple(daemon.executing())
    assert len(platforms) >= 2, daemon.text()
    daemon.ensure(platforms)
    assert until(lambda: not daemon.steps() and still(daemon), SETTLES)
    return Before(
        platforms,
        daemon.descriptors(),
        daemon.programs(),
        tuple(sorted(mounts_below(daemon.directory))),
        frozenset(os.listdir(daemon.runtime)) | {"steps"},
    )


def still(daemon: Faulted) -> bool:
    """Whether nothing comes and goes below the daemon for a fifth of a second."""
    before = daemon.children()
    return not until(lambda: daemon.children() != before, 0.2)


def all_is_well(
    daemon: Faulted, before: Before, *, quiet: bool = True, remembered: bool = False
) -> None:
    """Hold that every platform executes that did before, that the ledgers tell the truth, that the
    status says what the table has, and that nothing is left over. `quiet`: nor is there an
    exception in the log. `remembered`: results may lie there that nobody has asked for yet.

    `before` may be of the same daemon, or of one before it in the same directory.
    """
    failed = {
        name: each for name, each in daemon.ensure(before.platforms).items() if not each["ok"]
    }
    assert not failed, failed
    settled(lambda: ledger_problems(daemon))
    settled(lambda: status_problems(daemon))
    settled(lambda: leftovers(daemon, before, remembered))
    if quiet:
        text = daemon.text()
        at = [text.index(word) for word in BAD_WORDS if word in text]
        assert not at, text[max(0, min(at) - 500) :][:4000]


def settled(problems: Callable[[], list[str]], seconds: float = SETTLES) -> None:
    """Wait until there are no `problems` any more."""
    if not until(lambda: not problems(), seconds):
        raise AssertionError(problems())


def ledger_problems(daemon: Faulted) -> list[str]:
    """Where a ledger and its table differ: in every instance each record stands in the table, byte
    for byte, and each entry that is not somebody else's has its record."""
    found = []
    for directory in sorted((daemon.inside(daemon.runtime) / "instances").iterdir()):
        table = table_of(directory / "binfmt")
        ledger = ledger_of(daemon.runtime / "ledger" / f"{directory.name}.json")
        foreign = daemon.foreign if directory.name == "root" else set()
        for name, registration in ledger.items():
            if name not in table and not name.endswith(RESERVE):
                found.append(f"{directory.name}: the ledger has {name}, the table not")
            elif name in table and table[name] != (True, registration):
                found.append(f"{directory.name}: {name} is {table[name]}, not {registration}")
        for name in set(table) - set(ledger) - foreign:
            found.append(f"{directory.name}: {name} is in no ledger")
    kept = {path.name for path in (daemon.runtime / "ledger").iterdir()}
    instances = {f"{path.name}.json" for path in (daemon.runtime / "instances").iterdir()}
    if kept - instances:
        found.append(f"in the directory of ledgers lie {kept - instances}")
    return found


def status_problems(daemon: Faulted) -> list[str]:
    """Where the status is not what the table has."""
    table = table_of(daemon.table)
    ledger = ledger_of(daemon.runtime / "ledger/root.json")
    found = []
    for platform in daemon.status()["platforms"]:
        entry, name = platform["entry"], platform["platform"]
        if entry is None:
            continue
        enabled, registration = table.get(entry, (False, None))
        if registration is None or not enabled:
            found.append(f"{name}: {entry} serves, says the status; it is not in the table")
            continue
        owner = "maid" if entry in ledger else "other"
        if (platform["interpreter"], platform["owner"]) != (registration.interpreter, owner):
            found.append(f"{name}: {platform} is not {registration} of {owner}")
        if platform["flags"] is not None and set(platform["flags"]) != registration.flags:
            found.append(f"{name}: flags {platform['flags']} are not {registration.flags}")
    return found


def leftovers(daemon: Faulted, before: Before, remembered: bool = False) -> list[str]:
    """What is there that was not before: steps, processes, mounts, files, descriptors."""
    found = []
    with daemon.client() as client:
        if steps := client.call("io.maid.Steps.List")["steps"]:
            found.append(f"steps run: {steps}")
    steps = daemon.steps()
    if remembered:
        steps = [
            name for name in steps if not (daemon.runtime / "steps" / name / "result").exists()
        ]
    if steps:
        found.append(f"directories of steps: {steps}")
    if programs := daemon.programs() - before.programs:
        found.append(f"processes: {programs}")
    mounts = set(mounts_below(daemon.directory)) ^ set(before.mounts)
    if mounts:
        found.append(f"mounts that came or went: {mounts}")
    # A few bytes for each step that a daemon took up: for clients that ask late.
    if names := set(os.listdir(daemon.runtime)) - before.runtime - {"begun"}:
        found.append(f"files in the runtime directory: {names}")
    if daemon.descriptors() > before.descriptors:
        found.append(f"{daemon.descriptors()} descriptors, not {before.descriptors}")
    return found


def _program(pid: int) -> str:
    """The name of a process's program; "" when it has ended."""
    with contextlib.suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        return os.path.basename(os.fsdecode(words[0]))
    return ""


# Places for faults --------------------------------------------------------------------------------


@contextlib.contextmanager
def cgroup(controller: str, name: str, limits: Mapping[str, str]) -> Iterator[Path]:
    """A cgroup of that controller with these limits, for a daemon to start in; gone afterwards.
    Skips where there is no such controller (cgroup v1, or v2 with it switched on)."""
    separate = CGROUPS / controller
    unified = CGROUPS / "cgroup.subtree_control"
    if separate.is_dir():
        place, files = separate / name, limits
    elif unified.exists() and controller in unified.read_text().split():
        place = CGROUPS / name
        files = {file.replace("limit_in_bytes", "max"): value for file, value in limits.items()}
    else:
        pytest.skip(f"there is no cgroup controller {controller} here")
    place.mkdir()
    try:
        for file, value in files.items():
            (place / f"{controller}.{file}").write_text(value)
        yield place
    finally:
        for _ in range(200):
            with contextlib.suppress(OSError):
                for below in sorted(place.glob("**/"), reverse=True):
                    below.rmdir()
                break
            if not until(lambda: not (place / "cgroup.procs").read_text(), 0.1):
                for pid in (place / "cgroup.procs").read_text().split():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(int(pid), 9)


def within(*cgroups: Path) -> list[str]:
    """A prelude that starts a daemon in these cgroups."""
    script = "".join(f'echo $$ >"{place}/cgroup.procs"; ' for place in cgroups)
    return ["sh", "-c", f'{script}exec "$0" "$@"']


@contextlib.contextmanager
def small_disk(place: Path, size: str, inodes: int = 10000) -> Iterator[Path]:
    """A tmpfs of that size mounted at `place`, which is made; unmounted afterwards."""
    place.mkdir(parents=True, exist_ok=True)
    options = f"size={size},nr_inodes={inodes},mode=0755"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "maid-test", place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", place], check=False)


@contextlib.contextmanager
def filled(place: Path, *, leave: int = 0) -> Iterator[None]:
    """While this lasts there is no room on the file system of `place`, or `leave` bytes."""
    file = place / "filler"
    with open(file, "wb", buffering=0) as filler:
        room = os.statvfs(place)
        with contextlib.suppress(OSError):
            os.posix_fallocate(filler.fileno(), 0, room.f_bavail * room.f_bsize - leave)
        with contextlib.suppress(OSError):
            while not leave and filler.write(b"x" * 4096) > 0:
                pass
    try:
        yield
    finally:
        file.unlink()
