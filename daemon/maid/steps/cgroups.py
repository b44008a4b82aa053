"""Memory and CPU limits of a step, where this machine's cgroups allow them.

maid makes the cgroup itself and its supervisor enters it before the runtime starts, so that it
works alike with crun and runc, with cgroup v1, hybrid and v2. Only a step that asks for a limit
gets one: an empty cgroup costs time and shows nothing that wait4(2) does not.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass

from maid.errors import StepRefused

ROOT = "/sys/fs/cgroup"
PERIOD = 100_000
"""Microseconds of a CPU period: the kernel's own default."""


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

    def remove(self) -> None:
        """Remove the cgroups; what still lives in one keeps it."""
        for directory in self.directories:
            with contextlib.suppress(OSError):
                os.rmdir(directory)


def unavailable() -> str:
    """Why this machine cannot limit a step, or "" when it can."""
    try:
        _layout()
    except StepRefused as error:
        return str(error)
    return ""


def make(identifier: str, memory: int, cpus: float) -> Limits | None:
    """Cgroups with these limits (bytes, CPUs; 0 for none); None when there is nothing to limit.

    Raises StepRefused where the cgroups do not allow it, and says why.
    """
    if not memory and not cpus:
        return None
    layout = _layout()
    made: list[str] = []
    try:
        if isinstance(layout, str):
            directory = f"{layout}/{identifier}"
            os.mkdir(directory)
            made.append(directory)
            if memory:
                _write(directory, "memory.max", str(memory))
                with contextlib.suppress(OSError):
                    _write(directory, "memory.swap.max", "0")
            if cpus:
                _write(directory, "cpu.max", f"{int(cpus * PERIOD)} {PERIOD}")
            return Limits((directory,), f"{directory}/memory.peak")
        peak = ""
        if memory:
            directory = f"{layout['memory']}/{identifier}"
            os.mkdir(directory)
            made.append(directory)
            _write(directory, "memory.limit_in_bytes", str(memory))
            with contextlib.suppress(OSError):
                _write(directory, "memory.memsw.limit_in_bytes", str(memory))
            peak = f"{directory}/memory.max_usage_in_bytes"
        if cpus:
            directory = f"{layout['cpu']}/{identifier}"
            os.mkdir(directory)
            made.append(directory)
            _write(directory, "cpu.cfs_period_us", str(PERIOD))
            _write(directory, "cpu.cfs_quota_us", str(int(cpus * PERIOD)))
        return Limits(tuple(made), peak)
    except OSError as error:
        Limits(tuple(made), "").remove()
        raise StepRefused(
            f"this machine's cgroups do not allow the limit: {error.strerror} ({error.filename})",
            "leave --memory and --cpus out, or give the service Delegate=yes: maid doctor",
        ) from error


def _layout() -> str | dict[str, str]:
    """The directory for steps in cgroup v2, or one for each v1 controller."""
    own: dict[str, str] = {}
    try:
        with open("/proc/self/cgroup") as file:
            for line in file:
                _, controllers, path = line.rstrip("\n").split(":", 2)
                for controller in controllers.split(","):
                    own[controller] = path
    except OSError as error:
        raise StepRefused(f"/proc/self/cgroup cannot be read: {error.strerror}") from error
    if os.path.exists(f"{ROOT}/cgroup.controllers"):
        return _unified(f"{ROOT}{own.get('', '/')}".rstrip("/"))
    found: dict[str, str] = {}
    for controller in ("memory", "cpu"):
        directory = next(
            (
                f"{ROOT}/{mount}{own.get(controller, '/')}".rstrip("/")
                for mount in (controller, "cpu,cpuacct" if controller == "cpu" else controller)
                if os.path.isdir(f"{ROOT}/{mount}")
            ),
            "",
        )
        if not directory or not os.path.isdir(directory):
            raise StepRefused(
                f"there is no cgroup controller {controller} for this process",
                "leave --memory and --cpus out: maid doctor",
            )
        found[controller] = f"{directory}/maid-steps"
        try:
            os.makedirs(found[controller], exist_ok=True)
        except OSError as error:
            raise StepRefused(
                f"no cgroup can be made in {directory}: {error.strerror}",
                "leave --memory and --cpus out, or run the daemon as root",
            ) from error
    return found


def _unified(own: str) -> str:
    """In cgroup v2 only leaves hold processes: the daemon moves to a leaf, steps get their own."""
    base = own.removesuffix("/daemon")
    try:
        if base == own:
            os.makedirs(f"{base}/daemon", exist_ok=True)
            with open(f"{base}/cgroup.procs") as file:
                processes = file.read().split()
            for process in processes:
                with contextlib.suppress(OSError):
                    _write(f"{base}/daemon", "cgroup.procs", process)
        _write(base, "cgroup.subtree_control", "+memory +cpu")
        steps = f"{base}/steps"
        os.makedirs(steps, exist_ok=True)
        _write(steps, "cgroup.subtree_control", "+memory +cpu")
    except OSError as error:
        raise StepRefused(
            f"the cgroup {base} is not maid's to divide: {error.strerror}",
            "leave --memory and --cpus out, or give the service Delegate=yes",
        ) from error
    return steps


def _write(directory: str, name: str, value: str) -> None:
    with open(f"{directory}/{name}", "w") as file:
        file.write(value)
