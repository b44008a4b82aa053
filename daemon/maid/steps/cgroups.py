"""Memory and CPU limits of a step, where this machine's cgroups allow them.

maid makes the cgroup itself and its supervisor enters it before the runtime starts, so that it
works alike with crun and runc, with cgroup v1, hybrid and v2. Only a step that asks for a limit
gets one: an empty cgroup costs time and shows nothing that wait4(2) does not.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from maid.errors import StepRefused

ROOT = "/sys/fs/cgroup"
PERIOD = 100_000
"""Microseconds of a CPU period: the kernel's own default."""

SERVICE = "maid-steps.service"
"""The unit whose cgroup is for limited steps. They cannot lie in maid.service's own: in cgroup v2 a
group with limits below it takes no process, and the next daemon could not start in it."""

WITHOUT = "leave --memory and --cpus out, or see maid doctor"

Controller: TypeAlias = Literal["memory", "cpu"]


@dataclass(frozen=True)
class Limits:
    """The cgroups of one step: `directories` to enter, `peak_file` with its peak memory or ""."""

    directories: tuple[str, ...]
    peak_file: str

    def peak(self) -> int:
        """Peak memory in bytes; 0 when the kernel does not tell (memory.peak is Linux 5.19's)."""
        try:
            with open(self.peak_file) as file:
                return int(file.read())
        except (OSError, ValueError):
            return 0

    def was_killed_for_memory(self) -> bool:
        """Whether the kernel's memory killer struck in this cgroup."""
        for directory in self.directories:
            for name in ("memory.events", "memory.oom_control"):
                with contextlib.suppress(OSError), open(f"{directory}/{name}") as file:
                    words = dict(line.split() for line in file if len(line.split()) == 2)
                    if int(words.get("oom_kill", "0")) > 0:
                        return True
        return False

    def remove(self) -> bool:
        """Remove the cgroups; False when something still lives in one of them."""
        for directory in self.directories:
            try:
                os.rmdir(directory)
            except FileNotFoundError:
                continue
            except OSError:
                return False
        return True


@dataclass(frozen=True)
class Plan:
    """Cgroups that are still to be made: their `limits`, and which file of theirs gets what."""

    limits: Limits
    files: tuple[tuple[str, str], ...]
    optional: tuple[tuple[str, str], ...]

    def make(self) -> None:
        """Make them. Raises StepRefused, and then there is none."""
        try:
            for directory in self.limits.directories:
                os.mkdir(directory)
            for path, value in self.files:
                _write(path, value)
            for path, value in self.optional:
                with contextlib.suppress(OSError):
                    _write(path, value)
        except OSError as error:
            self.limits.remove()
            raise StepRefused(
                f"this machine's cgroups do not allow the limit: {error.strerror}"
                f" ({error.filename})",
                WITHOUT,
            ) from error


def unavailable() -> str:
    """Why this machine cannot limit a step, or "" when it can."""
    try:
        _places(("memory", "cpu"))
    except StepRefused as error:
        return str(error)
    return ""


def plan(identifier: str, memory: int, cpus: float) -> Plan | None:
    """The cgroups for these limits (bytes, CPUs; 0 for none); None when there is nothing to limit.

    Raises StepRefused where the cgroups do not allow it, and says why.
    """
    wanted: list[Controller] = []
    if memory:
        wanted.append("memory")
    if cpus:
        wanted.append("cpu")
    if not wanted:
        return None
    places = _places(wanted)
    directories = {name: f"{place}/{identifier}" for name, place in places.items()}
    quota = int(cpus * PERIOD)
    files, optional, peak = [], [], ""
    if _is_unified():
        if memory:
            files.append((f"{directories['memory']}/memory.max", str(memory)))
            # Without swap the limit means what it says; a kernel without swap has no such file.
            optional.append((f"{directories['memory']}/memory.swap.max", "0"))
            peak = f"{directories['memory']}/memory.peak"
        if cpus:
            files.append((f"{directories['cpu']}/cpu.max", f"{quota} {PERIOD}"))
    else:
        if memory:
            files.append((f"{directories['memory']}/memory.limit_in_bytes", str(memory)))
            optional.append((f"{directories['memory']}/memory.memsw.limit_in_bytes", str(memory)))
            peak = f"{directories['memory']}/memory.max_usage_in_bytes"
        if cpus:
            files.append((f"{directories['cpu']}/cpu.cfs_period_us", str(PERIOD)))
            files.append((f"{directories['cpu']}/cpu.cfs_quota_us", str(quota)))
    made = tuple(dict.fromkeys(directories.values()))
    return Plan(Limits(made, peak), tuple(files), tuple(optional))


def _is_unified() -> bool:
    return os.path.exists(f"{ROOT}/cgroup.controllers")


def _places(wanted: Iterable[Controller]) -> dict[Controller, str]:
    """The directory below which each of the controllers' cgroups for steps are made."""
    own: dict[str, str] = {}
    try:
        with open("/proc/self/cgroup") as file:
            for line in file:
                _, controllers, path = line.rstrip("\n").split(":", 2)
                for controller in controllers.split(","):
                    own[controller] = path
    except OSError as error:
        raise StepRefused(f"/proc/self/cgroup cannot be read: {error.strerror}") from error
    if _is_unified():
        place = _unified(f"{ROOT}{own.get('', '/')}".rstrip("/"), list(wanted))
        return {controller: place for controller in wanted}
    return {controller: _separate(controller, own) for controller in wanted}


def _separate(controller: Controller, own: dict[str, str]) -> str:
    """Cgroup v1, hybrid: the place in one controller's own tree, below the daemon's own group."""
    for mount in (controller, "cpu,cpuacct"):
        tree = f"{ROOT}/{mount}"
        if (mount == controller or controller == "cpu") and os.path.isdir(tree):
            break
    else:
        raise StepRefused(f"there is no cgroup controller {controller} here", WITHOUT)
    directory = f"{tree}{own.get(controller, '/')}".rstrip("/")
    if not os.path.isdir(directory):
        directory = tree  # in a container, whose own group is the root of what it sees
    place = f"{directory}/maid-steps"
    try:
        os.makedirs(place, exist_ok=True)
    except OSError as error:
        raise StepRefused(f"no cgroup can be made in {directory}: {error.strerror}", WITHOUT) from (
            error
        )
    return place


def _unified(own: str, wanted: list[Controller]) -> str:
    """Cgroup v2: beside the daemon's group, in that of SERVICE; else below the daemon's own.

    Only leaves hold processes there: a daemon that is alone in its group moves to a leaf of it.
    Others' processes are never moved.
    """
    service = f"{os.path.dirname(own)}/{SERVICE}"
    base = service if os.path.isdir(service) else own.removesuffix("/daemon")
    leaf = f"{base}/{'owner' if base == service else 'daemon'}"
    try:
        _enable(base, leaf, wanted)
        steps = f"{base}/steps"
        os.makedirs(steps, exist_ok=True)
        _write(f"{steps}/cgroup.subtree_control", _enabled(wanted))
    except OSError as error:
        raise StepRefused(
            f"the cgroup {base} is not maid's to divide: {error.strerror}",
            f"{WITHOUT}; a service needs Delegate=yes",
        ) from error
    return steps


def _enable(base: str, leaf: str, wanted: list[Controller]) -> None:
    with open(f"{base}/cgroup.subtree_control") as file:
        if set(wanted) <= set(file.read().split()):
            return
    with open(f"{base}/cgroup.procs") as file:
        processes = file.read().split()
    # maid-steps.service's only process is a sleep that is there for its group's sake.
    allowed = {str(os.getpid())} if leaf.endswith("/daemon") else set(processes)
    if base != ROOT and set(processes) - allowed:
        raise StepRefused(f"other processes live in the cgroup {base} of the daemon", WITHOUT)
    if base != ROOT and processes:
        os.makedirs(leaf, exist_ok=True)
        for process in processes:
            _write(f"{leaf}/cgroup.procs", process)
    _write(f"{base}/cgroup.subtree_control", _enabled(wanted))


def _enabled(wanted: list[Controller]) -> str:
    return " ".join(f"+{controller}" for controller in wanted)


def _write(path: str, value: str) -> None:
    with open(path, "w") as file:
        file.write(value)
