"""The varlink interface io.maid.Steps.

As in interfaces.py the typed methods are the interface, and each connection has its own object.
Annotations stay real objects here, because asyncvarlink reads them.
"""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass

from asyncvarlink import FileDescriptor, VarlinkInterface, varlinkmethod
from asyncvarlink.interface import LastResult
from asyncvarlink.serviceinterface import InvalidParameter

from maid import platforms
from maid.config import Accelerate, Network
from maid.errors import StepRefused
from maid.service.access import Peer, Role
from maid.service.core import Core
from maid.service.refusals import (
    LimitExceeded,
    NoSuchStep,
    Refused,
    as_varlink,
    number,
    require,
    texts,
)
from maid.steps.bundle import PROFILE_LOG
from maid.steps.launch import Descriptors
from maid.steps.runner import Active
from maid.steps.serve import platform_of
from maid.steps.step import Bind, Result, Step, is_id

A_YEAR = 31_536_000.0
"""Seconds: the longest time limit."""

MAX_MEMORY = float(1 << 62)
"""Bytes: more than the kernel counts in memory.max."""

MAX_CPUS = 65536.0
"""More than a machine has (CONFIG_NR_CPUS is 8192)."""


@dataclass(frozen=True)
class BindMount:
    """A bind mount: `source` is a descriptor of a file or directory (O_PATH is enough)."""

    source: FileDescriptor
    destination: str
    readonly: bool | None


@dataclass(frozen=True)
class StepInfo:
    """A step that was started: `started` in seconds since 1970, `pid` that of its supervisor; `via`
    is native or emulated, `interpreter` what runs it in that case."""

    id: str
    uid: int
    pid: int
    platform: str
    command: list[str]
    started: float
    via: str
    interpreter: str | None
    running: bool


@dataclass(frozen=True)
class StepReply:
    """One of Run's replies: first `started`, then `finished`."""

    started: StepInfo | None
    finished: Result | None


class Steps(VarlinkInterface, name="io.maid.Steps"):
    """Build steps: one command in one root file system for one platform.

    Besides the errors below: io.maid.Emulation.PlatformNotAvailable where the step's platform does
    not execute, and io.maid.Manager.Failed for everything else.
    """

    errors = (Refused, LimitExceeded, NoSuchStep)

    def __init__(self, core: Core, peer: Peer) -> None:
        self._core = core
        self._peer = peer

    @varlinkmethod(return_parameter="step", delay_generator=False)
    async def Run(
        self,
        *,
        stdin: FileDescriptor,
        stdout: FileDescriptor,
        stderr: FileDescriptor,
        rootfs: FileDescriptor,
        command: list[str],
        platform: str | None = None,
        environment: dict[str, str] | None = None,
        cwd: str | None = None,
        user: int | None = None,
        group: int | None = None,
        network: str | None = None,
        timeout: float | None = None,
        memory: int | None = None,
        cpus: float | None = None,
        readonly: bool | None = None,
        changes: FileDescriptor | None = None,
        binds: list[BindMount] | None = None,
        tmpfs: list[str] | None = None,
        cpu: str | None = None,
        accelerate: bool | None = None,
        require_acceleration: bool | None = None,
        profile: FileDescriptor | None = None,
        id: str | None = None,
    ) -> AsyncIterator[StepReply]:
        """Run `command` in the directory `rootfs` for `platform` (null: that of the programs in
        it).

        The step writes to the descriptors `stdout` and `stderr` itself. `changes` is a directory
        with the sub-directories upper and work: then the rootfs stays as it is. `network` is host
        or none, `timeout` in seconds, `memory` in bytes. Closing the connection ends the step.

        `id` is the step's, where the caller wants to choose it: hexadecimal digits, a hyphen and at
        least eight of them more, used by no other step. Whoever loses the connection to a daemon
        that is killed can Wait for it at the next one. Where that says NoSuchStep and `started` had
        not come, the step has not begun and never will: it may be run anew, with another id.

        `accelerate`: whether native tools stand in (null: as the configuration has it);
        `require_acceleration`: the step is refused where none can. `profile` is a file to which a
        record of every program is written (native/profile.c says how)."""
        require(self._peer, Role.MEMBER)
        with as_varlink(), contextlib.ExitStack() as handed:
            mounts = binds or []
            texts("command", command)
            if id is not None and not is_id(id):
                raise InvalidParameter(parameter="id")
            texts("environment", (text for pair in (environment or {}).items() for text in pair))
            texts("binds", (bind.destination for bind in mounts))
            texts("tmpfs", tmpfs or [])
            for name, value in (("platform", platform), ("cwd", cwd), ("cpu", cpu)):
                texts(name, [value or ""])

            def own(descriptor: FileDescriptor | None) -> int:
                if descriptor is None:
                    return -1
                copy = os.dup(descriptor.fileno())
                handed.callback(os.close, copy)
                return copy

            given = Descriptors(
                stdin=own(stdin),
                stdout=own(stdout),
                stderr=own(stderr),
                rootfs=own(rootfs),
                changes=own(changes),
                binds=(
                    *(own(bind.source) for bind in mounts),
                    *([own(profile)] if profile is not None else []),
                ),
                mount_namespace=self._peer.mount_namespace(),
            )
            # After all of them: one may be named twice, as standard output and standard error are.
            sources = [bind.source for bind in mounts]
            for descriptor in (stdin, stdout, stderr, rootfs, changes, profile, *sources):
                if descriptor is not None:
                    descriptor.close()
            if given.mount_namespace >= 0:
                handed.callback(os.close, given.mount_namespace)
            config = self._core.config
            runner = self._core.runner
            seen = await runner.look(given.rootfs, command, environment or {}, cwd or "/")
            step = Step(
                platform=(
                    platforms.parse(platform).normalized() if platform else platform_of(seen)
                ),
                command=tuple(command),
                environment=environment or {},
                cwd=cwd or "/",
                user=user or 0,
                group=group or 0,
                network=_network(network) if network else config.steps.network,
                timeout=number("timeout", timeout, A_YEAR),
                memory=int(number("memory", memory, MAX_MEMORY)),
                cpus=number("cpus", cpus, MAX_CPUS),
                readonly=bool(readonly),
                overlay=changes is not None,
                binds=(
                    *(Bind(b.destination, bool(b.readonly)) for b in mounts),
                    *([Bind(PROFILE_LOG)] if profile is not None else []),
                ),
                tmpfs=tuple(tmpfs or ()),
                cpu=cpu or "",
                profile=profile is not None,
                accelerate=_wish(accelerate, require_acceleration, config.acceleration.accelerate),
            )
            begun: asyncio.Future[Active] = asyncio.get_running_loop().create_future()
            running = asyncio.ensure_future(
                runner.run(step, self._peer.caller(), given, seen, begun.set_result, id or "")
            )
            try:
                await asyncio.wait((begun, running), return_when=asyncio.FIRST_COMPLETED)
                if begun.done():
                    # The step has its own copies now. Whoever reads from its output must see the
                    # end of it when the step ends, not when this call does.
                    handed.close()
                    yield StepReply(started=_info(begun.result()), finished=None)
                result = await running
            finally:
                running.cancel()
            raise LastResult(StepReply(started=None, finished=result))

    @varlinkmethod(return_parameter="result")
    async def Wait(self, *, id: str) -> Result:
        """Take up a step again by its id, after a lost connection or a restart of the daemon: its
        result, once it has ended. The step ends with this connection, as with Run's."""
        require(self._peer, Role.MEMBER)
        with as_varlink():
            texts("id", [id])
            runner = self._core.runner
            return await runner.wait(runner.find(id, self._peer.uid))

    @varlinkmethod
    def Cancel(self, *, id: str) -> None:
        """End a step, its whole process tree. Its result still comes to whoever waits for it."""
        require(self._peer, Role.MEMBER)
        with as_varlink():
            texts("id", [id])
            runner = self._core.runner
            runner.cancel(runner.find(id, self._peer.uid))

    @varlinkmethod(return_parameter="steps")
    def List(self) -> list[StepInfo]:
        """The steps that are running: all for root, one's own for others."""
        require(self._peer, Role.MEMBER)
        return [_info(active) for active in self._core.runner.running(self._peer.uid)]


def _info(active: Active) -> StepInfo:
    meta = active.meta
    return StepInfo(
        id=meta.id,
        uid=meta.uid,
        pid=active.pid,
        platform=meta.platform,
        command=list(meta.command),
        started=meta.started,
        via=meta.via,
        interpreter=meta.interpreter,
        running=not active.done,
    )


def _wish(accelerate: bool | None, required: bool | None, configured: Accelerate) -> Accelerate:
    """Whether a step is accelerated: what it says goes before the configuration."""
    if required and accelerate is False:
        raise StepRefused("a step cannot be accelerated and not", "leave one of them out")
    if required:
        return Accelerate.REQUIRE
    if accelerate is None:
        return configured
    return Accelerate.AUTO if accelerate else Accelerate.OFF


def _network(text: str) -> Network:
    try:
        return Network(text)
    except ValueError:
        raise StepRefused(f"{text!r} is no network", "host or none") from None
