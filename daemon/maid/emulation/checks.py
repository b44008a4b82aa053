"""`maid check`: the probes on request, and with --deep real programs.

Says what was tried and how it went, one result for each test; changes nothing but the verdict that
the keeper has of a target.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from maid.emulation.probes import run
from maid.errors import MaidError

if TYPE_CHECKING:
    from maid.emulation.machine import Machine
    from maid.emulation.targets import Target

_COMPILING = asyncio.Semaphore(1)


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
    """Real programs of the target in the served instance, one result for each test.

    They are compiled when they are not in the state directory yet, one target at a time: that takes
    all of a CPU for half a minute. A failure that is a known limit of emulators counts as skipped.
    """
    # Here, because it is seldom wanted: the compiler part brings subprocess and more.
    from maid.emulation import deep

    if not deep.supported(target):
        yield CheckResult("deep", False, 0.0, skipped=f"no compiler makes {target.name} programs")
        return
    state = machine.config.paths.state
    try:
        async with _COMPILING:
            built = await asyncio.to_thread(deep.programs, target, state)
        flags, pinned = None, machine.served.pinned
        if not machine.is_native(target.name):
            kept = machine.served.keeper.kept[target.name]
            if kept.serving is None:
                yield CheckResult("deep", False, 0.0, "nothing serves it")
                return
            flags = kept.serving.flags
        directory = Path(tempfile.mkdtemp(prefix="deep-", dir=state))
    except (MaidError, OSError) as error:
        yield CheckResult("deep", False, 0.0, str(error))
        return
    user = -1
    try:
        if pinned is not None:
            user = pinned.open_user()
        outside = pinned.mapping.uid_outside(deep.OWNER) if pinned is not None else None
        prepared = await asyncio.to_thread(
            deep.prepare, directory, built, flags=flags, owner_outside=outside
        )
        for name, why in prepared.skipped.items():
            yield CheckResult(name, False, 0.0, skipped=why)
        for command in prepared.commands:
            ran = await run(
                str(directory),
                command.argv,
                user_namespace=user,
                uid=command.uid,
                argv0=command.argv0,
                timeout=command.seconds,
            )
            wrong = deep.explain(command, ran)
            if wrong and not command.test.required:
                yield CheckResult(command.name, False, ran.ms, skipped=f"known limit: {wrong}")
            else:
                yield CheckResult(command.name, not wrong, ran.ms, wrong)
    except (MaidError, OSError) as error:
        yield CheckResult("deep", False, 0.0, str(error))
    finally:
        if user >= 0:
            os.close(user)
        shutil.rmtree(directory, ignore_errors=True)
