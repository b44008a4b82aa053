"""Runs steps: from a checked request with its descriptors to a result, and takes them up again.

Each step has a directory of its own under RUNTIME/steps/ID with everything that is known of it, and
a supervisor (native/step.c) that does not need the daemon. So a daemon that is killed and started
again finds its steps, waits for them as before, and ends those that nobody asks for.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import msgspec

from maid.config import Network
from maid.emulation.machine import Machine
from maid.errors import AccessDenied, MaidError, StepRefused, StepUnknown
from maid.steps import cgroups, launch, programs, record, rootfs, serve
from maid.steps.accelerate import Accelerator, NativeStore
from maid.steps.exhausted import refused
from maid.steps.launch import Caller, Descriptors
from maid.steps.network import Networks
from maid.steps.places import Places
from maid.steps.record import Meta
from maid.steps.rootfs import Look
from maid.steps.runtime import Runtime, RuntimeUnavailable, quietly
from maid.steps.serve import Served
from maid.steps.step import DEFAULT_PATH, Outcome, Result, Step, new_id
from maid.steps.tally import Tally

log = logging.getLogger(__name__)

UNCLAIMED = 15.0
"""Seconds that a step which was taken up after a restart may run without anybody waiting for it."""

REMEMBERED = 60.0
"""Seconds that the result of a finished step can still be asked for."""

PATIENCE, PAUSE = 100, 0.02
"""How often, and seconds between, to try again to remove what a process that was killed still uses:
its end takes a moment."""

STUBBORN = 5.0
"""Seconds after which a supervisor that was told to end its step is killed: it hangs before the
step has begun (a mount of a file system that does not answer)."""


@dataclass(frozen=True)
class _Asked:
    """What is asked for: a step, on whose behalf, what was handed over, what `look` saw in its root
    file system, and its id."""

    step: Step
    caller: Caller
    given: Descriptors
    seen: Look
    identifier: str


@dataclass
class Active:
    """A step that was started. `finished` holds its result, which somebody has taken once `claimed`
    is set; `waiters` counts who asks for it; `handle` is its supervisor's pidfd, -1 once ended;
    `child`: the supervisor is this process's own."""

    meta: Meta
    directory: str
    pid: int
    child: bool
    finished: asyncio.Future[Result]
    handle: int = -1
    waiters: int = 0
    claimed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def done(self) -> bool:
        """Whether it has ended."""
        return self.finished.done()


class Runner:
    """Starts, watches, cancels and takes up steps. `emit` is told of ends: kind, target, sentence;
    `store` is where native tools come from; `choose_runtime` is called to look for a `runtime`
    where there is none."""

    def __init__(
        self,
        machine: Machine,
        store: NativeStore | None,
        emit: Callable[[str, str, str], None],
        choose_runtime: Callable[[], Awaitable[None]],
    ) -> None:
        self.runtime: Runtime | None = None
        self.runtime_problem = "not tried yet"
        self.steps: dict[str, Active] = {}
        self.tally = Tally()
        self.accelerator = Accelerator(store, emit)
        self._machine = machine
        self._emit = emit
        self._choose_runtime = choose_runtime
        self._networks = Networks()
        self.places = Places()
        self._directory = str(machine.config.paths.runtime / "steps")
        # Whoever asks for one of these, however late, must not be told that it had not begun.
        self._begun_file = str(machine.config.paths.runtime / "begun")
        self._begun_before = record.remembered(self._begun_file)
        self._cleaning: set[asyncio.Task[None]] = set()
        self._closed = False

    # Starting -----------------------------------------------------------------------------------

    async def run(
        self,
        step: Step,
        caller: Caller,
        given: Descriptors,
        seen: Look,
        started: Callable[[Active], None],
        identifier: str = "",
    ) -> Result:
        """Run `step` and return its result; `seen` is what `look` saw in its root file system, and
        `started` is called once it has begun. `identifier` is the caller's choice, "" for none: one
        who has chosen it can ask the next daemon whether the step began.

        When the waiting is cancelled (the caller went away) the step is ended. Raises StepRefused,
        PlatformUnavailable, LimitReached, RuntimeUnavailable.
        """
        step.check()
        serve.check_rootfs(self._machine, step, given, seen)
        async with self.places.one(caller.uid, self._machine.config.steps):
            asked = _Asked(step, caller, given, seen, identifier or new_id())
            active = await self._start(asked)
            started(active)
            return await self.wait(active)

    async def look(
        self, root: int, command: Sequence[str], environment: Mapping[str, str], cwd: str
    ) -> Look:
        """Look into the root file system of a step that would run this there. Raises
        StepRefused."""
        path = environment.get("PATH", DEFAULT_PATH)
        programs = rootfs.candidates(command[0], path) if command else []
        return await rootfs.look_apart(root, programs, cwd)

    async def _start(self, asked: _Asked) -> Active:
        step, caller, given = asked.step, asked.caller, asked.given
        if self.runtime is None:  # one may have been installed, or have got room to be tried
            await self._choose_runtime()
        self._chosen_runtime()
        served = await serve.serve(self._machine, step, caller)
        pinned = served.table.pinned if served.table else None
        launch.check_ids(step, pinned.mapping if pinned else None)
        if served.via != "emulated":
            return await self._spawn(asked, served)
        store = await self.accelerator.directory(
            str(step.platform),
            step.accelerate,
            given.rootfs,
            front=served.front,
            trusted=caller.mapping is None,
        )
        if store < 0:
            return await self._spawn(asked, served)
        own = os.dup(store)  # the store's own is closed where it is switched off
        try:
            return await self._spawn(replace(asked, given=replace(given, store=own)), served)
        finally:
            os.close(own)

    async def _spawn(self, asked: _Asked, served: Served) -> Active:
        network = -1
        if asked.step.network is Network.NONE:
            pinned = served.table.pinned if served.table else None
            network = await self._network(pinned.open_user() if pinned else -1)
        try:
            return self._begin(asked, served, network)
        except (OSError, RuntimeError) as error:
            what = f"the step for {asked.step.platform} could not be started"
            raise refused(error, what) from error
        finally:
            if network >= 0:
                os.close(network)

    def _begin(self, asked: _Asked, served: Served, network: int) -> Active:
        """Never waits, so that nobody else takes the id in between."""
        step, caller, given, identifier = asked.step, asked.caller, asked.given, asked.identifier
        runtime = self._chosen_runtime()
        table = served.table
        pinned = table.pinned if table else None
        directory = f"{self._directory}/{identifier}"
        known = identifier in self.steps or identifier in self._begun_before
        if known or os.path.lexists(directory):
            raise StepRefused(f"there is a step {identifier} already", "choose another id")
        plan = cgroups.plan(identifier, step.memory, step.cpus)
        meta = Meta(
            id=identifier,
            uid=caller.uid,
            platform=str(step.platform),
            command=step.command,
            started=time.time(),
            begun=time.clock_gettime(time.CLOCK_BOOTTIME),
            via=served.via,
            interpreter=served.interpreter,
            table=table.key if table else "",
            cgroups=plan.limits.directories if plan else (),
            peak_file=plan.limits.peak_file if plan else "",
        )
        try:
            places = launch.write_bundle(
                step, directory, pinned, network >= 0, asked.seen.resolver, given.store >= 0
            )
            # Before anything of it exists: a daemon that comes after can then clean up all of it.
            record.write(f"{directory}/step.json", msgspec.json.encode(meta))
            if plan:
                plan.make()
            timeout = step.timeout or self._machine.config.steps.timeout
            pid = launch.spawn(
                step, caller, given, meta, directory, network, runtime, timeout, pinned, places
            )
        except BaseException:
            meta.limits.remove()
            record.remove(directory)
            raise
        return self._watch(meta, directory, pid, child=True)

    def _chosen_runtime(self) -> Runtime:
        if self.runtime is None:
            raise RuntimeUnavailable(
                f"steps are not possible here: {self.runtime_problem}", "maid doctor"
            )
        return self.runtime

    async def _network(self, user: int) -> int:
        try:
            return await self._networks.new(user)
        finally:
            if user >= 0:
                os.close(user)

    # Watching -----------------------------------------------------------------------------------

    def _watch(self, meta: Meta, directory: str, pid: int, child: bool) -> Active:
        loop = asyncio.get_running_loop()
        active = Active(meta, directory, pid, child, loop.create_future())
        try:
            active.handle = os.pidfd_open(pid)
        except OSError:
            if child:  # too many open files: the step must not run on without anybody
                os.kill(pid, signal.SIGTERM)
                os.waitpid(pid, 0)
                meta.limits.remove()
                record.remove(directory)
            raise
        if not child and not record.is_supervisor(pid, directory):
            os.close(active.handle)
            raise ProcessLookupError(f"the supervisor of step {meta.id} is gone")
        self.steps[meta.id] = active
        loop.add_reader(active.handle, self._on_end, active)
        return active

    def _on_end(self, active: Active) -> None:
        asyncio.get_running_loop().remove_reader(active.handle)
        os.close(active.handle)
        active.handle = -1
        status = os.waitpid(active.pid, 0)[1] if active.child else 0
        self._finish(active, record.why_lost(status, self._directory))

    def _finish(self, active: Active, why_lost: str) -> None:
        result = self.accelerator.counted(
            active.meta.id,
            active.meta.platform,
            record.read_text(f"{active.directory}/{programs.FILE}"),
            record.result(active.directory, active.meta, why_lost),
        )
        if result.outcome is Outcome.lost:
            record.kill_container(active.directory, active.meta.begun)
        active.finished.set_result(result)
        self.tally.count(active.meta.platform, result)
        if result.outcome is not Outcome.exited:
            words = result.error or result.outcome.value
            self._emit("step ended", active.meta.platform, f"{active.meta.id}: {words}")
        task = asyncio.get_running_loop().create_task(self._clean(active))
        self._cleaning.add(task)
        task.add_done_callback(self._cleaning.discard)

    async def _clean(self, active: Active) -> None:
        """Remove what a step leaves behind, its result not before somebody has taken it: a daemon
        that comes after can be asked for it as well."""
        loop = asyncio.get_running_loop()
        loop.call_later(REMEMBERED, self.steps.pop, active.meta.id, None)
        if self.runtime is not None:
            command = self.runtime.delete_command(active.meta.id, active.directory)
            if command and os.path.isdir(f"{active.directory}/state"):
                await quietly(command)
        for _ in range(PATIENCE):
            if active.meta.limits.remove():
                break
            await asyncio.sleep(PAUSE)
        await asyncio.sleep(PAUSE)  # the answer goes first
        if not active.claimed.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(active.claimed.wait(), REMEMBERED)
            await asyncio.sleep(PAUSE)
        if active.finished.result().outcome is Outcome.lost:
            await self._clean_lost(active)
        else:
            record.remove(active.directory)

    async def _clean_lost(self, active: Active) -> None:
        """The runtime may have been starting the container. It is let finish, since only it can say
        which process is the container's first."""
        for _ in range(PATIENCE):
            if not record.in_use(active.directory):
                break
            await asyncio.sleep(PAUSE)
        record.kill_container(active.directory, active.meta.begun)
        record.remove(active.directory)

    async def wait(self, active: Active) -> Result:
        """Wait for a step's end. When the waiting is cancelled and nobody else waits, so is the
        step, unless the daemon is going down: then the next one takes it up."""
        active.waiters += 1
        try:
            result = await asyncio.shield(active.finished)
            active.claimed.set()
            return result
        except asyncio.CancelledError:
            if active.waiters == 1 and not self._closed:
                self.cancel(active)
                active.claimed.set()  # nobody will ask for its result
            raise
        finally:
            active.waiters -= 1

    def cancel(self, active: Active) -> None:
        """End a step: its whole process tree is killed by its supervisor."""
        if active.handle >= 0:
            self._signal(active, signal.SIGTERM)
            asyncio.get_running_loop().call_later(STUBBORN, self._signal, active, signal.SIGKILL)

    def _signal(self, active: Active, number: signal.Signals) -> None:
        if active.handle >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(active.handle, number)

    def find(self, identifier: str, uid: int) -> Active:
        """The step of that id. Raises AccessDenied for somebody else's, StepUnknown for one that
        has not begun (or ended a minute ago and was this daemon's own), and MaidError for one of an
        earlier daemon's whose result is not kept any more."""
        active = self.steps.get(identifier)
        if active is None and identifier in self._begun_before:
            raise MaidError(f"step {identifier} may have begun, and how it ended is not known")
        if active is None:
            raise StepUnknown(f"there is no step {identifier}", "maid status shows what runs")
        if uid not in (0, active.meta.uid):
            raise AccessDenied(f"step {identifier} is not yours", "root may")
        return active

    def running(self, uid: int = 0) -> Iterator[Active]:
        """The steps that have not ended: all for root, one's own for others."""
        return (a for a in self.steps.values() if not a.done and uid in (0, a.meta.uid))

    def waiting(self) -> int:
        """How many requests wait for a place."""
        return self.places.waiting()

    # A daemon's end and the next one's start ----------------------------------------------------

    def recover(self) -> int:
        """Take up the steps of an earlier daemon; how many still run. Those that nobody waits for
        within UNCLAIMED seconds are ended."""
        with contextlib.suppress(FileNotFoundError):
            for name in sorted(os.listdir(self._directory)):
                directory = f"{self._directory}/{name}"
                try:
                    if record.withhold(directory):
                        log.info("step %s had not begun: it is removed", name)
                    else:
                        self._take_up(directory)
                except (OSError, msgspec.MsgspecError) as error:
                    log.warning("step %s cannot be taken up (%s): it is removed", name, error)
                    self._have_begun(name)  # it may have
                    record.remove(directory)
        running = [active for active in self.steps.values() if not active.done]
        for active in running:
            self.places.take(active.meta.uid)
            active.finished.add_done_callback(partial(self._free, active.meta.uid))
            asyncio.get_running_loop().call_later(UNCLAIMED, self._end_unclaimed, active)
        return len(running)

    def _take_up(self, directory: str) -> None:
        meta = record.read(directory)
        # Its number is written a moment after the file was made.
        pid = int(record.read_text(f"{directory}/supervisor") or record.find_supervisor(directory))
        self._have_begun(meta.id)
        if pid > 0 and not os.path.exists(f"{directory}/result"):
            with contextlib.suppress(ProcessLookupError):
                self._watch(meta, directory, pid, child=False)
                return
        active = Active(meta, directory, pid, False, asyncio.get_running_loop().create_future())
        self.steps[meta.id] = active
        self._finish(active, record.KILLED)

    def _have_begun(self, identifier: str) -> None:
        if identifier not in self._begun_before:
            self._begun_before.add(identifier)
            record.remember(self._begun_file, identifier)

    def _free(self, uid: int, _: asyncio.Future[Result]) -> None:
        self.places.free(uid)

    def _end_unclaimed(self, active: Active) -> None:
        if not active.done and active.waiters == 0:
            log.warning("nobody waits for step %s: it is ended", active.meta.id)
            self.cancel(active)
            active.claimed.set()

    async def close(self) -> None:
        """Stop watching. Running steps go on (rule 6), and results stay for the next daemon, unless
        none is to come."""
        self._closed = True
        loop = asyncio.get_running_loop()
        for active in self.steps.values():
            if active.handle >= 0:
                loop.remove_reader(active.handle)
                os.close(active.handle)
                active.handle = -1
        for task in self._cleaning:
            task.cancel()
        if self._machine.leaves_nothing:
            for active in self.steps.values():
                # Of a lost one the runtime may still be at work.
                there = active.done and os.path.isdir(active.directory)
                if there and not record.in_use(active.directory):
                    record.remove(active.directory)
        await self._networks.close()
