"""What the daemon can do, apart from how it is asked: the machine, the steps and what is said of
both.

ServiceStatus goes over the socket and into `--json` as it is, so annotations stay real objects
here.
"""

import asyncio
import os
import platform as host_platform
import resource
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from maid import __version__, doctor
from maid.acceleration.manager import Acceleration
from maid.config import Config, Scope, load
from maid.doctor import Finding
from maid.emulation.checks import CheckResult, deep_checks, exec_check
from maid.emulation.crashes import Crashes
from maid.emulation.machine import Machine
from maid.emulation.status import PlatformStatus, State
from maid.emulation.targets import TARGETS, Target
from maid.errors import MaidError
from maid.platforms import Platform, parse
from maid.service import metrics, store_status
from maid.service.events import Events
from maid.service.sightings import Sightings
from maid.service.store_status import StoreContent, StoreSummary
from maid.steps import cgroups, runtime
from maid.steps.runner import Runner

RETRY = 0.25
"""Seconds between two tries of `ensure` with a time limit, for when nothing tells of a change."""


@dataclass(frozen=True)
class ServiceStatus:
    """How everything stands.

    `scope` is host or private; `kernel` its release; `instance` a directory in which the served
    table can be read by whoever asks; `namespaces`: steps have instances of their own (Linux 6.7);
    `runtime` the OCI runtime chosen ("crun" or "runc"), with `runtime_version` and `runtime_path`,
    or null and `runtime_problem`; `limits_problem` why steps cannot be limited, or null;
    `guarded`: a guard puts back at once what others take out of the served table; `ready`: every
    required platform executes; `store` is the native store; `memory` the daemon's resident
    memory in bytes; `started` in seconds since 1970; `events` the number of the newest event.
    """

    version: str
    scope: str
    kernel: str
    pid: int
    started: float
    socket: str
    instance: str
    namespaces: bool
    namespaces_problem: str | None
    runtime: str | None
    runtime_version: str | None
    runtime_path: str | None
    runtime_problem: str | None
    limits_problem: str | None
    guarded: bool
    ready: bool
    heals: int
    steps_running: int
    steps_waiting: int
    memory: int
    events: int
    store: StoreSummary
    platforms: list[PlatformStatus]


class Core:
    """One daemon's work. `config_file` is the file that was named, or None for the default one;
    `instance_prefix` leads from outside the daemon's mount namespace to its files, or is "";
    `socket_path` is where the socket really is. `on_reload` is called with a new configuration."""

    def __init__(
        self,
        config: Config,
        scope: Scope,
        events: Events,
        *,
        config_file: Path | None = None,
        instance_prefix: str = "",
        socket_path: str = "",
    ) -> None:
        self.config = config
        self.scope = scope
        self.events = events
        self.started = time.time()
        self.count_connections: Callable[[], int] = lambda: 0
        self.on_reload: Callable[[Config], None] = lambda _: None
        self.machine = Machine(config, scope, events.emit)
        self.acceleration = Acceleration(config, events.emit)
        self.runner = Runner(self.machine, self.acceleration, events.emit, self.find_runtime)
        self._sightings = Sightings(self.acceleration)
        self._config_file = config_file
        self._instance_prefix = instance_prefix
        self._socket_path = socket_path or str(config.socket.path)
        self._reloading = asyncio.Lock()
        self._choosing = asyncio.Lock()
        self._finding: asyncio.Task[None] | None = None
        self._limits_problem: str | None = None
        self._crashes: Crashes | None = None
        self._crashed: Counter[tuple[str, str]] = Counter()

    async def start(self) -> None:
        """Everything up to the first probes' verdicts. Raises MaidError when that is not
        possible."""
        await self.acceleration.exclude()
        await self.machine.start()
        runtime.remove_trials(str(self.config.paths.runtime))
        await self.choose_runtime()
        await self._watch_crashes()
        self._limits_problem = cgroups.unavailable() or None
        taken_up = self.runner.recover()
        if taken_up:
            self.events.emit("taken up", "", f"{taken_up} steps of an earlier daemon go on")
        self.machine.clean(keep={active.meta.table for active in self.runner.running()})

    async def find_runtime(self) -> None:
        """Look for an OCI runtime where there is none yet: for a step, whoever else waits for the
        same. Those who come while one is being looked for share what is found."""
        if self._finding is None:
            self._finding = asyncio.ensure_future(self.choose_runtime(again=False))
            self._finding.add_done_callback(self._found)
        # One of them may go away; the others still wait.
        await asyncio.shield(self._finding)

    def _found(self, task: asyncio.Task[None]) -> None:
        self._finding = None
        if not task.cancelled():
            task.exception()  # nobody may be left to be told

    async def choose_runtime(self, again: bool = True) -> None:
        """Find out which OCI runtime works; without one, everything but steps does. One that was
        found is kept unless it is to be chosen `again`.

        One at a time: the trials have the same directories.
        """
        async with self._choosing:
            if self.runner.runtime is not None and not again:
                return
            directory = str(self.config.paths.runtime)
            root = self.machine.tables.get("root")
            try:
                self.runner.runtime = await runtime.choose(
                    self.config.steps.runtime, directory, root.pinned if root else None
                )
                self.runner.runtime_problem = ""
            except runtime.RuntimeUnavailable as error:
                self.runner.runtime = None
                self.runner.runtime_problem = str(error)
                self.events.emit("refused", "", str(error))

    async def _watch_crashes(self) -> None:
        """Tell of emulated programs that crash, if the configuration wants it."""
        choices = self.machine.choices.values()
        if not self.config.emulation.watch_crashes:
            if self._crashes is not None:
                await self._crashes.close()
                self._crashes = None
        elif self._crashes is None:
            self._crashes = Crashes(self._on_crash)
            await self._crashes.start(choices)
        else:
            self._crashes.update(choices)

    def _on_crash(self, target: str, signal: str, message: str) -> None:
        if signal:
            self._crashed[target, signal] += 1
        self.events.emit("crashed", target, message)

    async def stop(self) -> None:
        """Let go of everything; entries and running steps stay (rule 6)."""
        if self._crashes is not None:
            await self._crashes.close()
        await self.runner.close()
        await self._sightings.close()
        await self.acceleration.close()
        self.machine.stop()

    def status(self) -> ServiceStatus:
        """The status as it is now."""
        chosen = self.runner.runtime
        newest = self.events.kept()
        return ServiceStatus(
            version=__version__,
            scope=self.scope.value,
            kernel=host_platform.release(),
            pid=os.getpid(),
            started=self.started,
            socket=self._socket_path,
            instance=self._instance_prefix + self.machine.served.instance.path,
            namespaces=not self.machine.namespaces_problem,
            namespaces_problem=self.machine.namespaces_problem or None,
            runtime=chosen.name if chosen else None,
            runtime_version=chosen.version if chosen else None,
            runtime_path=chosen.path if chosen else None,
            runtime_problem=self.runner.runtime_problem or None,
            limits_problem=self._limits_problem,
            guarded=self.machine.served.keeper.guarded,
            ready=self.machine.ready(),
            heals=self.machine.served.keeper.counters.heals,
            steps_running=sum(1 for _ in self.runner.running()),
            steps_waiting=self.runner.waiting(),
            memory=_resident(),
            events=newest[-1].sequence if newest else 0,
            store=store_status.summary(self.acceleration, self.runner.accelerator.reasons()),
            platforms=self.machine.statuses(),
        )

    def store(self) -> StoreContent:
        """The native store with all that is in it."""
        return store_status.content(self.acceleration, self.runner.accelerator.reasons())

    def saw(self, root: int, uid: int, trusted: bool) -> None:
        """Somebody tells of a root file system, by a descriptor, which is closed in the end."""
        self._sightings.add(root, uid, trusted)

    def metrics(self) -> str:
        """The metrics in Prometheus' text format."""
        return metrics.exposition(
            metrics.Sources(
                machine=self.machine,
                runner=self.runner,
                store=store_status.summary(self.acceleration, ()),
                events=self.events,
                started=self.started,
                crashes=self._crashed,
                connections=self.count_connections,
            )
        )

    async def diagnose(self) -> list[Finding]:
        """What there is to say about the machine, from the daemon's point of view."""
        return await asyncio.to_thread(doctor.examine, self.config, self.scope)

    async def reload(self) -> None:
        """Read the configuration again. Raises ConfigError, and then everything stays as it was.

        The directories and the socket's path stay until the next start: what is in use is there.
        It is done to its end also when whoever asked goes away.
        """
        await asyncio.shield(asyncio.ensure_future(self._reload()))

    async def _reload(self) -> None:
        async with self._reloading:
            config = load(self._config_file, self.scope, self.config.socket.path)
            if config.paths != self.config.paths:
                self.events.emit("refused", "", "[paths] are only read at the start: restart maid")
                config = msgspec.structs.replace(config, paths=self.config.paths)
            self.config = config
            self.on_reload(config)
            self.acceleration.configure(config)
            await self.acceleration.exclude()
            await self.machine.refresh(config)
            await self._watch_crashes()
            await self.choose_runtime()
            self.events.emit("reloaded", "", "the configuration was read again")

    def release(self) -> list[str]:
        """Remove what the ledger holds; the names of the entries removed."""
        return self.machine.release(keep={a.meta.table for a in self.runner.running()})

    def required(self) -> list[str]:
        """The platforms that maid-ready.target waits for."""
        return [s.platform for s in self.machine.statuses() if s.required and s.platform]

    async def ensure(self, platform: Platform, timeout: float) -> PlatformStatus:
        """As Machine.ensure, tried again until `timeout` (seconds) is over; a platform that is not
        known at all is refused at once."""
        self.machine.find(platform)
        until = time.monotonic() + timeout
        while True:
            try:
                return await self.machine.ensure(platform)
            except MaidError:
                left = until - time.monotonic()
                if left <= 0:
                    raise
            try:
                await asyncio.wait_for(self.machine.served.keeper.changed(), min(left, RETRY))
            except TimeoutError:
                continue

    async def check(
        self, names: list[str], deep: bool
    ) -> AsyncGenerator[tuple[Target, CheckResult], None]:
        """Run the probes of these platforms, and with `deep` real programs; as they come.

        Without names, all that are native or served. Raises UsageError, PlatformUnavailable.
        """
        targets = await asyncio.to_thread(self._targets, names)
        queue: asyncio.Queue[tuple[Target, CheckResult] | None] = asyncio.Queue()

        async def one(target: Target) -> None:
            result = await exec_check(self.machine, target)
            await queue.put((target, result))
            if deep:
                async for found in deep_checks(self.machine, target):
                    await queue.put((target, found))

        async def all_of_them() -> None:
            try:
                await asyncio.gather(*tasks)
            finally:
                await queue.put(None)

        tasks = [asyncio.ensure_future(one(target)) for target in targets]
        running = asyncio.ensure_future(all_of_them())
        try:
            while (item := await queue.get()) is not None:
                yield item
            await running
        finally:
            for task in (running, *tasks):
                task.cancel()

    def _targets(self, names: list[str]) -> list[Target]:
        if not names:
            states = {s.target: s.state for s in self.machine.statuses()}
            skipped = (State.absent, State.disabled)
            return [TARGETS[name] for name, state in states.items() if state not in skipped]
        found: dict[str, Target] = {}
        for name in names:
            target = TARGETS[name] if name in TARGETS else self.machine.find(parse(name))
            found[target.name] = target
        return list(found.values())


def _resident() -> int:
    """The daemon's resident memory in bytes (proc(5), statm)."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()
