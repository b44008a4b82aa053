"""The varlink interfaces io.maid.Manager and io.maid.Emulation.

The typed methods are the interface: docs/io.maid.*.varlink are written from them (describe.py), and
a test holds those against the running service. Each connection has its own objects, which know
their peer. Annotations stay real objects here, because asyncvarlink reads them.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

from asyncvarlink import VarlinkInterface, varlinkmethod
from asyncvarlink.interface import LastResult

from maid.doctor import Finding
from maid.emulation.status import PlatformStatus
from maid.errors import MaidError, UsageError
from maid.platforms import parse
from maid.service.access import Peer, Role
from maid.service.connection import MAX_NAME
from maid.service.core import Core, ServiceStatus
from maid.service.events import Event
from maid.service.refusals import Failed, PlatformNotAvailable, as_varlink, number, require, texts

MAX_PLATFORMS = 100
"""Platforms in one request: more than there are."""

MAX_ENSURE = 86400.0
"""Seconds that Ensure may try again."""


class Manager(VarlinkInterface, name="io.maid.Manager"):
    """The daemon as a whole."""

    errors = (Failed,)

    def __init__(self, core: Core, peer: Peer) -> None:
        self._core = core
        self._peer = peer

    @varlinkmethod(return_parameter="status")
    def Status(self) -> ServiceStatus:
        """How everything stands: what `maid status --json` prints."""
        require(self._peer, Role.MEMBER)
        with as_varlink():
            return self._core.status()

    @varlinkmethod(return_parameter="event", delay_generator=False)
    async def Events(
        self, *, since: int | None = None, follow: bool | None = None
    ) -> AsyncIterator[Event | None]:
        """What has happened: the remembered events after the one numbered `since` (null: all, or
        with `follow` none), then, with `follow`, each as it comes. Without, null comes last."""
        require(self._peer, Role.MEMBER)
        if follow:
            async with contextlib.aclosing(self._core.events.follow(since)) as followed:
                async for event in followed:
                    yield event
        for event in self._core.events.kept(since or 0):
            yield event
        raise LastResult(None)

    @varlinkmethod(return_parameter="text")
    def Metrics(self) -> str:
        """The daemon's metrics in Prometheus' text format."""
        require(self._peer, Role.MEMBER)
        with as_varlink():
            return self._core.metrics()

    @varlinkmethod(return_parameter="findings")
    async def Diagnose(self) -> list[Finding]:
        """What the daemon finds about the machine, as `maid doctor` does."""
        require(self._peer, Role.ADMIN)
        with as_varlink():
            return await self._core.diagnose()

    @varlinkmethod
    async def Reload(self) -> None:
        """Read the configuration again and look for interpreters again."""
        require(self._peer, Role.ADMIN)
        with as_varlink():
            await self._core.reload()

    @varlinkmethod(return_parameter="removed")
    def Release(self) -> list[str]:
        """Remove every entry that maid registered and keep none any longer, until Reload or the
        next start; the names of those removed. Running steps go on."""
        require(self._peer, Role.ADMIN)
        with as_varlink():
            return self._core.release()


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
    """The platforms that can be executed here. What fails otherwise is io.maid.Manager.Failed."""

    errors = (PlatformNotAvailable,)

    def __init__(self, core: Core, peer: Peer) -> None:
        self._core = core
        self._peer = peer

    @varlinkmethod(return_parameter="platforms")
    def List(self) -> list[PlatformStatus]:
        """Every platform, and every target that has none."""
        require(self._peer, Role.MEMBER)
        with as_varlink():
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
        require(self._peer, Role.MEMBER)
        with as_varlink():
            seconds = number("timeout", timeout, MAX_ENSURE)
            _few(platforms)
            names = [*platforms]
            if configured:
                names += [n for n in self._core.required() if n not in names]
            if not names and not configured:
                raise UsageError("no platform was named", "for example linux/arm64")
            return list(await asyncio.gather(*(self._ensure(name, seconds) for name in names)))

    async def _ensure(self, name: str, timeout: float) -> Ensured:
        try:
            status = await self._core.ensure(parse(name), timeout)
        except MaidError as error:
            return Ensured(name, False, error.exit_status, error.message, error.hint, None)
        return Ensured(name, True, 0, None, None, status)

    @varlinkmethod(return_parameter="result", delay_generator=False)
    async def Check(
        self, *, platforms: list[str], deep: bool | None = None
    ) -> AsyncIterator[Checked | None]:
        """Run the probes of these platforms now (none: of all that are served), and with `deep`
        real programs as well; each result as it comes, then null."""
        require(self._peer, Role.MEMBER)
        with as_varlink():
            _few(platforms)
            async with contextlib.aclosing(self._core.check(platforms, bool(deep))) as results:
                async for target, result in results:
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
        require(self._peer, Role.MEMBER)
        with as_varlink():
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


def _few(platforms: list[str]) -> None:
    texts("platforms", platforms)
    if len(platforms) > MAX_PLATFORMS:
        raise UsageError(
            f"{len(platforms)} platforms are too many at once", f"{MAX_PLATFORMS} at most"
        )
    if any(len(name) > MAX_NAME for name in platforms):
        raise UsageError(f"a platform's name has at most {MAX_NAME} characters")
