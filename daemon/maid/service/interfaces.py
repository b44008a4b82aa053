"""The varlink interfaces io.maid.Manager, io.maid.Emulation and io.maid.Steps.

The typed methods are the interface: docs/io.maid.*.varlink are written from them, and a test holds
those against the running service. Each connection has its own objects, which know their peer.
Annotations stay real objects here, because asyncvarlink reads them.
"""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

from asyncvarlink import FileDescriptor, VarlinkInterface, varlinkmethod
from asyncvarlink.error import TypedVarlinkErrorReply
from asyncvarlink.interface import LastResult
from asyncvarlink.serviceinterface import PermissionDenied

from maid import platforms
from maid.config import Network
from maid.doctor import Finding
from maid.emulation.status import PlatformStatus
from maid.errors import (
    AccessDenied,
    LimitReached,
    MaidError,
    PlatformUnavailable,
    StepRefused,
    UsageError,
)
from maid.service.access import Peer, Role
from maid.service.core import Core, ServiceStatus
from maid.service.events import Event
from maid.steps.runner import Active, Descriptors, StepUnknown
from maid.steps.step import Bind, Result, Step

# Errors -------------------------------------------------------------------------------------------


class Failed(TypedVarlinkErrorReply, interface="io.maid.Manager"):
    """It did not work; the message says what failed and the hint what to do. `status` is the exit
    status that `maid` gives it."""

    class Parameters:
        message: str
        hint: str
        status: int


class PlatformNotAvailable(TypedVarlinkErrorReply, interface="io.maid.Emulation"):
    """The platform cannot be executed; the hint names those that there are, or what to do."""

    class Parameters:
        message: str
        hint: str


class Refused(TypedVarlinkErrorReply, interface="io.maid.Steps"):
    """The step was not started: it makes no sense, or cannot run here."""

    class Parameters:
        message: str
        hint: str


class LimitExceeded(TypedVarlinkErrorReply, interface="io.maid.Steps"):
    """The caller has as many steps running and waiting as it may have."""

    class Parameters:
        message: str
        hint: str


class NoSuchStep(TypedVarlinkErrorReply, interface="io.maid.Steps"):
    """There is no step of that id, or it ended more than a minute ago."""

    class Parameters:
        message: str
        hint: str


@contextlib.contextmanager
def _as_varlink() -> Iterator[None]:
    """Turn maid's errors into varlink's."""
    try:
        yield
    except AccessDenied:
        raise PermissionDenied() from None
    except StepUnknown as error:
        raise NoSuchStep(message=error.message, hint=error.hint) from error
    except PlatformUnavailable as error:
        raise PlatformNotAvailable(message=error.message, hint=error.hint) from error
    except LimitReached as error:
        raise LimitExceeded(message=error.message, hint=error.hint) from error
    except StepRefused as error:
        raise Refused(message=error.message, hint=error.hint) from error
    except MaidError as error:
        raise Failed(message=error.message, hint=error.hint, status=error.exit_status) from error


def _require(peer: Peer, role: Role) -> None:
    """Raise PermissionDenied unless the peer has the role, or a higher one."""
    allowed = {Role.ADMIN: (Role.ADMIN,), Role.MEMBER: (Role.ADMIN, Role.MEMBER)}
    if peer.role not in allowed[role]:
        raise PermissionDenied()


# Manager ------------------------------------------------------------------------------------------


class Manager(VarlinkInterface, name="io.maid.Manager"):
    """The daemon as a whole."""

    errors = (Failed,)

    def __init__(self, core: Core, peer: Peer) -> None:
        self._core = core
        self._peer = peer

    @varlinkmethod(return_parameter="status")
    def Status(self) -> ServiceStatus:
        """How everything stands: what `maid status --json` prints."""
        _require(self._peer, Role.MEMBER)
        with _as_varlink():
            return self._core.status()

    @varlinkmethod(return_parameter="event", delay_generator=False)
    async def Events(
        self, *, since: int | None = None, follow: bool | None = None
    ) -> AsyncIterator[Event | None]:
        """What has happened: the remembered events after the one numbered `since` (null: all, or
        with `follow` none), then, with `follow`, each as it comes. Without, null comes last."""
        _require(self._peer, Role.MEMBER)
        if follow:
            async for event in self._core.events.follow(since):
                yield event
        for event in self._core.events.kept(since or 0):
            yield event
        raise LastResult(None)

    @varlinkmethod(return_parameter="text")
    def Metrics(self) -> str:
        """The daemon's metrics in Prometheus' text format."""
        _require(self._peer, Role.MEMBER)
        with _as_varlink():
            return self._core.metrics()

    @varlinkmethod(return_parameter="findings")
    async def Diagnose(self) -> list[Finding]:
        """What the daemon finds about the machine, as `maid doctor` does."""
        _require(self._peer, Role.ADMIN)
        with _as_varlink():
            return await self._core.diagnose()

    @varlinkmethod
    async def Reload(self) -> None:
        """Read the configuration again and look for interpreters again."""
        _require(self._peer, Role.ADMIN)
        with _as_varlink():
            await self._core.reload()

    @varlinkmethod(return_parameter="removed")
    def Release(self) -> list[str]:
        """Remove every entry that maid registered and keep none any longer, until Reload or the
        next start; the names of those removed. Running steps go on."""
        _require(self._peer, Role.ADMIN)
        with _as_varlink():
            return self._core.release()


# Emulation ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ensured:
    """Whether `platform` executes. `status` is null where it is unknown; `message` and `hint` say
    why it does not; `exit_status` is 0, or what `maid ensure` exits with."""

    platform: str
    ok: bool
    exit_status: int
    message: str | None
    hint: str | None
    status: PlatformStatus | None


@dataclass(frozen=True)
class Checked:
    """One check of a platform: `test` is "exec" or the name of a deep test; `error` says what is
    wrong; `skipped` says why it was not made. `ms` is how long it took in milliseconds."""

    platform: str | None
    target: str
    test: str
    ok: bool
    ms: float
    error: str | None
    skipped: str | None


class Emulation(VarlinkInterface, name="io.maid.Emulation"):
    """The platforms that can be executed here."""

    errors = (PlatformNotAvailable,)

    def __init__(self, core: Core, peer: Peer) -> None:
        self._core = core
        self._peer = peer

    @varlinkmethod(return_parameter="platforms")
    def List(self) -> list[PlatformStatus]:
        """Every platform, and every target that has none."""
        _require(self._peer, Role.MEMBER)
        with _as_varlink():
            return self._core.machine.statuses()

    @varlinkmethod(return_parameter="results")
    async def Ensure(
        self,
        *,
        platforms: list[str],
        configured: bool | None = None,
        timeout: float | None = None,
    ) -> list[Ensured]:
        """Execute a program of each platform now; the results in the same order. With `configured`
        also of every platform that maid-ready.target waits for. A platform that does not work is
        tried again until `timeout` (seconds) is over; without one it is tried once."""
        _require(self._peer, Role.MEMBER)
        with _as_varlink():
            names = [*platforms]
            if configured:
                names += [n for n in self._core.required() if n not in names]
            if not names and not configured:
                raise UsageError("no platform was named", "for example linux/arm64")
            if len(names) > 100:
                raise UsageError(f"{len(names)} platforms are too many at once", "100 at most")
            return list(
                await asyncio.gather(*(self._ensure(name, timeout or 0.0) for name in names))
            )

    async def _ensure(self, name: str, timeout: float) -> Ensured:
        try:
            status = await self._core.ensure(platforms.parse(name), min(timeout, 3600.0))
        except MaidError as error:
            return Ensured(name, False, error.exit_status, error.message, error.hint, None)
        return Ensured(name, True, 0, None, None, status)

    @varlinkmethod(return_parameter="result", delay_generator=False)
    async def Check(
        self, *, platforms: list[str], deep: bool | None = None
    ) -> AsyncIterator[Checked | None]:
        """Run the probes of these platforms now (none: of all that are served), and with `deep`
        real programs as well; each result as it comes, then null."""
        _require(self._peer, Role.MEMBER)
        with _as_varlink():
            async for target, result in self._core.check(platforms, bool(deep)):
                yield Checked(
                    platform=str(target.platforms[0]) if target.platforms else None,
                    target=target.name,
                    test=result.test,
                    ok=result.ok,
                    ms=result.ms,
                    error=result.error or None,
                    skipped=result.skipped or None,
                )
        raise LastResult(None)

    @varlinkmethod(return_parameter="platforms", delay_generator=False)
    async def Watch(self) -> AsyncIterator[list[PlatformStatus]]:
        """Every platform now, and all of them again whenever one changes."""
        _require(self._peer, Role.MEMBER)
        with _as_varlink():
            previous: list[PlatformStatus] = []
            while True:
                changed = asyncio.ensure_future(self._core.machine.served.keeper.changed())
                try:
                    statuses = self._core.machine.statuses()
                    if statuses != previous:
                        yield statuses
                    previous = statuses
                    await changed
                finally:
                    changed.cancel()


# Steps --------------------------------------------------------------------------------------------


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
    """Build steps: one command in one root file system for one platform."""

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
    ) -> AsyncIterator[StepReply]:
        """Run `command` in the directory `rootfs` for `platform` (null: that of the programs in
        it).

        The step writes to the descriptors `stdout` and `stderr` itself. `changes` is a directory
        with the sub-directories upper and work: then the rootfs stays as it is. `network` is host
        or none, `timeout` in seconds, `memory` in bytes. Closing the connection ends the step."""
        _require(self._peer, Role.MEMBER)
        with _as_varlink(), contextlib.ExitStack() as handed:

            def own(descriptor: FileDescriptor | None) -> int:
                if descriptor is None:
                    return -1
                number = os.dup(descriptor.fileno())
                handed.callback(os.close, number)
                descriptor.close()
                return number

            given = Descriptors(
                stdin=own(stdin),
                stdout=own(stdout),
                stderr=own(stderr),
                rootfs=own(rootfs),
                changes=own(changes),
                binds=tuple(own(bind.source) for bind in binds or []),
                mount_namespace=self._peer.mount_namespace(),
            )
            if given.mount_namespace >= 0:
                handed.callback(os.close, given.mount_namespace)
            settings = self._core.config.steps
            step = Step(
                platform=(
                    platforms.parse(platform).normalized()
                    if platform
                    else self._core.runner.platform_of(given.rootfs, command, environment or {})
                ),
                command=tuple(command),
                environment=environment or {},
                cwd=cwd or "/",
                user=user or 0,
                group=group or 0,
                network=_network(network) if network else settings.network,
                timeout=timeout or 0.0,
                memory=memory or 0,
                cpus=cpus or 0.0,
                readonly=bool(readonly),
                overlay=changes is not None,
                binds=tuple(Bind(b.destination, bool(b.readonly)) for b in binds or []),
                tmpfs=tuple(tmpfs or ()),
                cpu=cpu or "",
                accelerate=accelerate is not False,
            )
            begun: asyncio.Future[Active] = asyncio.get_running_loop().create_future()
            running = asyncio.ensure_future(
                self._core.runner.run(step, self._peer.caller(), given, begun.set_result)
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
        _require(self._peer, Role.MEMBER)
        with _as_varlink():
            runner = self._core.runner
            return await runner.wait(runner.find(id, self._peer.uid))

    @varlinkmethod
    def Cancel(self, *, id: str) -> None:
        """End a step, its whole process tree. Its result still comes to whoever waits for it."""
        _require(self._peer, Role.MEMBER)
        with _as_varlink():
            runner = self._core.runner
            runner.cancel(runner.find(id, self._peer.uid))

    @varlinkmethod(return_parameter="steps")
    def List(self) -> list[StepInfo]:
        """The steps that are running: all for root, one's own for others."""
        _require(self._peer, Role.MEMBER)
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


def _network(text: str) -> Network:
    try:
        return Network(text)
    except ValueError:
        raise StepRefused(f"{text!r} is no network", "host or none") from None
