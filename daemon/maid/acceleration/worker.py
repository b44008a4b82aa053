"""The process that fills the store (fill.py), as the daemon has it run: at low priority, in a
session of its own, and ended with all that it started when nobody waits for it any more."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec

from maid.acceleration import fill
from maid.acceleration.fill import Done, Failed, Progress, Request
from maid.errors import MaidError

log = logging.getLogger(__name__)


class FillFailed(MaidError):
    """The store could not be filled."""


async def run(request: Request, tell: Callable[[str], None]) -> Done:
    """Run fill.py for a request. Raises FillFailed. Cancelled, it ends the process."""
    try:
        return await _run(request, tell)
    except (OSError, ValueError, msgspec.MsgspecError) as error:
        raise FillFailed(f"the store could not be filled: {error}", "journalctl -u maid") from error


async def _run(request: Request, tell: Callable[[str], None]) -> Done:
    process = await asyncio.create_subprocess_exec(
        # It is not to be in the way of what the machine is there for.
        *("nice", "-n", "10", sys.executable, "-m", fill.__name__),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd="/",
        env={**os.environ, "PYTHONPATH": str(Path(fill.__file__).parents[2])},
        start_new_session=True,
        limit=1 << 22,
    )
    assert process.stdin and process.stdout and process.stderr
    try:
        process.stdin.write(msgspec.json.encode(request))
        process.stdin.close()
        words = asyncio.ensure_future(process.stderr.read())
        done: Done | None = None
        failed: Failed | None = None
        async for line in process.stdout:
            message = msgspec.json.decode(line, type=fill.Message)
            match message:
                case Progress():
                    tell(message.doing)
                case Done():
                    done = message
                case Failed():
                    failed = message
        said = (await words).decode(errors="replace").strip()
        await process.wait()
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 9)
        await process.wait()
        raise
    if said:
        log.warning("%s: %s", fill.__name__, said[-2000:])
    if done is not None:
        return done
    if failed is not None:
        raise FillFailed(failed.message, failed.hint)
    raise FillFailed(
        f"the process that fetches native tools ended early, with status {process.returncode}",
        "journalctl -u maid",
    )
