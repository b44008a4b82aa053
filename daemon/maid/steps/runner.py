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
import re
import shutil
import signal
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import msgspec

from maid import native
from maid.binfmt import namespace
from maid.binfmt.namespace import Pinned
from maid.config import Network
from maid.emulation.machine import ROOT, Machine, Table
from maid.emulation.targets import Target
from maid.errors import AccessDenied, LimitReached, MaidError, PlatformUnavailable, StepRefused
from maid.platforms import Platform
from maid.steps import cgroups, rootfs
from maid.steps.bundle import bundle
from maid.steps.cgroups import Limits
from maid.steps.network import Networks
from maid.steps.runtime import Runtime, RuntimeUnavailable, quietly, read_text
from maid.steps.step import DEFAULT_PATH, Outcome, Result, Step, new_id

log = logging.getLogger(__name__)

UNCLAIMED = 15.0
"""Seconds that a step which was taken up after a restart may run without anybody waiting for it."""

REMEMBERED = 60.0
"""Seconds that the result of a finished step can still be asked for."""

_NOT_FOUND = re.compile(r"not found|no such file", re.IGNORECASE)
_NOT_EXECUTABLE = re.compile(r"permission denied|exec format error|is a directory", re.IGNORECASE)


class StepUnknown(MaidError):
    """There is no step of that id that the caller may see."""


@dataclass
class Descriptors:
    """What the caller handed over; the runner closes none of them. `changes` is a directory with
    upper/ and work/ for an overlay, or -1; `mount_namespace` is the caller's, where it is not the
    daemon's, or -1."""

    stdin: int
    stdout: int
    stderr: int
    rootfs: int
    changes: int = -1
    binds: tuple[int, ...] = ()
    mount_namespace: int = -1


@dataclass(frozen=True)
class Caller:
    """On whose behalf a step runs. `mapping` is None for root: an identity map."""

    uid: int
    mapping: namespace.Mapping | None

    @property
    def key(self) -> str:
        """The key of the caller's instance."""
        if self.mapping is None:
            return ROOT
        return f"uid-{self.uid}-{self.mapping.gids[0].outside}"


class Meta(msgspec.Struct, frozen=True):
    """What is written down of a step for a daemon that comes after: step.json in its directory."""

    id: str
    uid: int
    platform: str
    command: tuple[str, ...]
    started: float
    via: str
    interpreter: str | None
    table: str
    cgroups: tuple[str, ...] = ()
    peak_file: str = ""


@dataclass
class Active:
    """A step that was started. `finished` holds its result; `waiters` counts who asks for it."""

    meta: Meta
    directory: str
    pid: int
    child: bool
    finished: asyncio.Future[Result]
    handle: int = -1
    waiters: int = 0
    ended: float = 0.0

    @property
    def done(self) -> bool:
        """Whether it has ended."""
        return self.finished.done()


@dataclass
class _Places:
    """One user's places: steps at once, and who waits for one."""

    running: int = 0
    queue: list[asyncio.Future[None]] = field(default_factory=list)


class Runner:
    """Starts, watches, cancels and takes up steps. `emit` is told of ends: kind, target,
    sentence."""

    def __init__(self, machine: Machine, emit: Callable[[str, str, str], None]) -> None:
        self.runtime: Runtime | None = None
        self.runtime_problem = "not tried yet"
        self.steps: dict[str, Active] = {}
        self.outcomes: dict[str, int] = defaultdict(int)
        self._machine = machine
        self._emit = emit
        self._networks = Networks()
        self._places: dict[int, _Places] = defaultdict(_Places)
        self._directory = str(machine.config.paths.runtime / "steps")
        self._cleaning: set[asyncio.Task[None]] = set()
        self._closed = False

    # Starting -----------------------------------------------------------------------------------

    async def run(
        self, step: Step, caller: Caller, given: Descriptors, started: Callable[[Active], None]
    ) -> Result:
        """Run `step` and return its result; `started` is called once it has begun.

        When the waiting is cancelled (the caller went away) the step is ended. Raises StepRefused,
        PlatformUnavailable, LimitReached, RuntimeUnavailable.
        """
        step.check()
        self._check_rootfs(step, given)
        async with self._place(caller.uid):
            active = await self._start(step, caller, given)
            started(active)
            return await self.wait(active)

    def platform_of(
        self, root: int, command: Sequence[str], environment: Mapping[str, str]
    ) -> Platform:
        """The platform of a root file system for which none was named. Raises StepRefused."""
        path = environment.get("PATH", DEFAULT_PATH)
        target = rootfs.target_of(root, rootfs.candidates(command[0], path) if command else [])
        if target is None or not target.platforms:
            raise StepRefused(
                "no program in the root file system tells its platform", "name it: --platform"
            )
        # Of arm's three the newest: the programs do not say which they need.
        return target.platforms[-1]

    def _check_rootfs(self, step: Step, given: Descriptors) -> None:
        target = self._machine.find(step.platform)
        path = step.full_environment().get("PATH", "")
        found = rootfs.target_of(given.rootfs, rootfs.candidates(step.command[0], path))
        if found is not None and found.emulator != target.emulator:
            platforms = " or ".join(str(p) for p in found.platforms) or found.name
            raise StepRefused(
                f"the root file system is for {platforms}, not for {step.platform}",
                f"run it with --platform {found.platforms[0] if found.platforms else '…'}, or give"
                f" a root file system of {step.platform}",
            )

    @contextlib.asynccontextmanager
    async def _place(self, uid: int) -> AsyncIterator[None]:
        """Wait for one of the user's places. Raises LimitReached when too many wait already."""
        limits = self._machine.config.steps
        places = self._places[uid]
        if places.running >= limits.max_per_uid:
            if len(places.queue) >= limits.max_queued_per_uid:
                raise LimitReached(
                    f"user {uid} has {places.running} steps running and {len(places.queue)} waiting",
                    "[steps] max_per_uid and max_queued_per_uid in maid.toml are the limits",
                )
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            places.queue.append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                if turn in places.queue:
                    places.queue.remove(turn)
                else:
                    self._free(uid)  # the turn came and the caller left in the same moment
                raise
        else:
            places.running += 1
        try:
            yield
        finally:
            self._free(uid)

    def _free(self, uid: int) -> None:
        places = self._places[uid]
        while places.queue:
            turn = places.queue.pop(0)
            if not turn.done():
                turn.set_result(None)  # the place passes on
                return
        places.running -= 1

    def _free_after(self, uid: int, _: asyncio.Future[Result]) -> None:
        self._free(uid)

    async def _serve(
        self, step: Step, target: Target, caller: Caller
    ) -> tuple[Table | None, str, str | None]:
        """The instance for the step, how it will run, and its interpreter.

        Foreign platforms are ensured first: a probe whose verdict is about the entries as they are.
        """
        cpu = {target.name: step.cpu} if step.cpu else None
        machine = self._machine
        if machine.is_native(target.name):
            if cpu:
                raise StepRefused(
                    f"{step.platform} is native here: there is no CPU model to choose",
                    "leave --cpu out",
                )
            return await machine.table_for(caller.mapping, caller.key), "native", None
        table = await machine.table_for(caller.mapping, caller.key, cpu)
        keeper = table.keeper
        kept = keeper.kept.get(target.name)
        if kept is None or not keeper.proven(target.name):
            await machine.ensure(step.platform, table)
            kept = keeper.kept[target.name]
        if kept.serving is None:
            raise PlatformUnavailable(f"nothing serves {step.platform}", "maid doctor")
        return table, "emulated", kept.serving.interpreter

    async def _start(self, step: Step, caller: Caller, given: Descriptors) -> Active:
        if self.runtime is None:
            raise RuntimeUnavailable(
                f"steps are not possible here: {self.runtime_problem}", "maid doctor"
            )
        target = self._machine.find(step.platform)
        table, via, interpreter = await self._serve(step, target, caller)
        pinned = table.pinned if table else None
        identifier = new_id()
        directory = f"{self._directory}/{identifier}"
        limits: Limits | None = None
        network = -1
        try:
            limits = cgroups.make(identifier, step.memory, step.cpus)
            if step.network is Network.NONE:
                network = await self._network(pinned.open_user() if pinned else -1)
            self._write_bundle(step, directory, pinned, network >= 0)
            meta = Meta(
                id=identifier,
                uid=caller.uid,
                platform=str(step.platform),
                command=step.command,
                started=time.time(),
                via=via,
                interpreter=interpreter,
                table=table.key if table else "",
                cgroups=limits.directories if limits else (),
                peak_file=limits.peak_file if limits else "",
            )
            _write(f"{directory}/step.json", msgspec.json.encode(meta))
            pid = self._spawn(step, caller, given, directory, identifier, network, limits)
        except BaseException:
            if limits:
                limits.remove()
            shutil.rmtree(directory, ignore_errors=True)
            raise
        finally:
            if network >= 0:
                os.close(network)
        return self._watch(meta, directory, pid, child=True)

    async def _network(self, user: int) -> int:
        try:
            return await self._networks.new(user)
        finally:
            if user >= 0:
                os.close(user)

    def _write_bundle(
        self, step: Step, directory: str, instance: Pinned | None, network: bool
    ) -> None:
        os.makedirs(self._directory, mode=0o711, exist_ok=True)
        # A mapped root must be able to reach rootfs/ in it, but need not list it.
        os.mkdir(directory, 0o711)
        document = bundle(
            step,
            user_namespace=instance.user if instance else None,
            mapping=instance.mapping if instance else None,
            network_namespace=f"{directory}/net" if network else None,
            binds_directory=f"{directory}/bind",
            resolver=os.path.exists("/etc/resolv.conf"),
            terminal_group=instance is None or instance.mapping.gid_outside(5) is not None,
        )
        _write(f"{directory}/config.json", msgspec.json.encode(document))

    def _spawn(
        self,
        step: Step,
        caller: Caller,
        given: Descriptors,
        directory: str,
        identifier: str,
        network: int,
        limits: Limits | None,
    ) -> int:
        assert self.runtime is not None
        program = native.path("maid-step")
        arguments = [program, "directory", directory, "rootfs", str(given.rootfs)]
        kept = [given.rootfs, *given.binds]
        for name, descriptor in (
            ("changes", given.changes),
            ("network", network),
            ("caller", given.mount_namespace),
        ):
            if descriptor >= 0:
                arguments += [name, str(descriptor)]
                kept.append(descriptor)
        if given.changes >= 0 and caller.mapping is not None:
            arguments += ["owner", str(caller.uid)]
        for descriptor in given.binds:
            arguments += ["bind", str(descriptor)]
        timeout = step.timeout or self._machine.config.steps.timeout
        if timeout:
            arguments += ["timeout", str(max(1, int(timeout * 1000)))]
        for cgroup in limits.directories if limits else ():
            arguments += ["cgroup", cgroup]
        if self.runtime.hide:
            arguments += ["hide", self.runtime.hide]
        return os.posix_spawn(
            program,
            [*arguments, "--", *self.runtime.run_command(identifier, directory)],
            {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
            file_actions=[
                (os.POSIX_SPAWN_DUP2, given.stdin, 0),
                (os.POSIX_SPAWN_DUP2, given.stdout, 1),
                (os.POSIX_SPAWN_DUP2, given.stderr, 2),
                *((os.POSIX_SPAWN_DUP2, descriptor, descriptor) for descriptor in kept),
            ],
        )

    # Watching -----------------------------------------------------------------------------------

    def _watch(self, meta: Meta, directory: str, pid: int, child: bool) -> Active:
        loop = asyncio.get_running_loop()
        active = Active(meta, directory, pid, child, loop.create_future())
        self.steps[meta.id] = active
        active.handle = os.pidfd_open(pid)
        loop.add_reader(active.handle, self._on_end, active)
        return active

    def _on_end(self, active: Active) -> None:
        asyncio.get_running_loop().remove_reader(active.handle)
        os.close(active.handle)
        active.handle = -1
        if active.child:
            os.waitpid(active.pid, 0)
        self._finish(active)

    def _finish(self, active: Active) -> None:
        result = self._result(active)
        active.ended = time.monotonic()
        active.finished.set_result(result)
        self.outcomes[result.outcome.value] += 1
        if result.outcome is not Outcome.exited:
            words = result.error or result.outcome.value
            self._emit("step ended", active.meta.platform, f"{active.meta.id}: {words}")
        task = asyncio.get_running_loop().create_task(self._clean(active))
        self._cleaning.add(task)
        task.add_done_callback(self._cleaning.discard)

    def _result(self, active: Active) -> Result:
        meta, directory = active.meta, active.directory
        limits = Limits(meta.cgroups, meta.peak_file)
        fields = read_text(f"{directory}/result").split(maxsplit=6)
        if len(fields) < 6:
            _kill_container(directory)
            elapsed = time.time() - meta.started
            words = "the step's supervisor was killed, and the step was ended with it"
            return Result(
                Outcome.lost, 125, None, words, elapsed, 0.0, 0.0, 0, meta.via, meta.interpreter
            )
        outcome = Outcome(fields[0])
        number, wall, user, system, kilobytes = (int(word) for word in fields[1:6])
        status, signal_number = number, None
        error: str | None = None
        if outcome is Outcome.refused:
            status, error = _refusal(read_text(f"{directory}/log"), meta.command[0], number)
        elif outcome is Outcome.failed:
            error = (
                f"the step could not be prepared: {fields[6].strip() if len(fields) > 6 else '?'}"
            )
        elif outcome is not Outcome.exited:
            signal_number, status = number, 128 + number
            error = {
                Outcome.timeout: f"ended by its time limit after {wall / 1e6:.1f} s",
                Outcome.cancelled: "cancelled",
            }.get(outcome)
        if outcome is Outcome.signaled and limits.was_killed_for_memory():
            error = "killed because it needed more than its memory limit"
        return Result(
            outcome=outcome,
            status=status,
            signal=signal_number,
            error=error,
            wall=wall / 1e6,
            user=user / 1e6,
            system=system / 1e6,
            peak_memory=limits.peak() or kilobytes * 1024,
            via=meta.via,
            interpreter=meta.interpreter,
        )

    async def _clean(self, active: Active) -> None:
        """Remove what a step leaves behind; its result is remembered for a while."""
        if self.runtime is not None:
            command = self.runtime.delete_command(active.meta.id, active.directory)
            if command and os.path.isdir(f"{active.directory}/state"):
                await quietly(command)
        Limits(active.meta.cgroups, "").remove()
        shutil.rmtree(active.directory, ignore_errors=True)
        await asyncio.sleep(REMEMBERED)
        self.steps.pop(active.meta.id, None)

    async def wait(self, active: Active) -> Result:
        """Wait for a step's end. When the waiting is cancelled and nobody else waits, so is the
        step, unless the daemon is going down: then the next one takes it up."""
        active.waiters += 1
        try:
            return await asyncio.shield(active.finished)
        except asyncio.CancelledError:
            if active.waiters == 1 and not self._closed:
                self.cancel(active)
            raise
        finally:
            active.waiters -= 1

    def cancel(self, active: Active) -> None:
        """End a step: its whole process tree is killed by its supervisor."""
        if active.handle >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(active.handle, signal.SIGTERM)

    def find(self, identifier: str, uid: int) -> Active:
        """The step of that id. Raises StepUnknown, and AccessDenied for somebody else's."""
        active = self.steps.get(identifier)
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
        return sum(len(places.queue) for places in self._places.values())

    # A daemon's end and the next one's start ----------------------------------------------------

    def recover(self) -> int:
        """Take up the steps of an earlier daemon; how many still run. Those that nobody waits for
        within UNCLAIMED seconds are ended."""
        with contextlib.suppress(FileNotFoundError):
            for name in sorted(os.listdir(self._directory)):
                directory = f"{self._directory}/{name}"
                try:
                    self._take_up(directory)
                except (OSError, msgspec.MsgspecError) as error:
                    log.warning("step %s cannot be taken up (%s): it is removed", name, error)
                    _kill_container(directory)
                    shutil.rmtree(directory, ignore_errors=True)
        running = [active for active in self.steps.values() if not active.done]
        for active in running:
            self._places[active.meta.uid].running += 1
            active.finished.add_done_callback(partial(self._free_after, active.meta.uid))
            asyncio.get_running_loop().call_later(UNCLAIMED, self._end_unclaimed, active)
        return len(running)

    def _take_up(self, directory: str) -> None:
        with open(f"{directory}/step.json", "rb") as file:
            meta = msgspec.json.decode(file.read(), type=Meta)
        pid = int(read_text(f"{directory}/supervisor") or "0")
        if pid and _is_supervisor(pid, directory) and not os.path.exists(f"{directory}/result"):
            self._watch(meta, directory, pid, child=False)
            return
        active = Active(meta, directory, pid, False, asyncio.get_running_loop().create_future())
        self.steps[meta.id] = active
        self._finish(active)

    def _end_unclaimed(self, active: Active) -> None:
        if not active.done and active.waiters == 0:
            log.warning("nobody waits for step %s: it is ended", active.meta.id)
            self.cancel(active)

    async def close(self) -> None:
        """Stop watching. Running steps go on (rule 6)."""
        self._closed = True
        loop = asyncio.get_running_loop()
        for active in self.steps.values():
            if active.handle >= 0:
                loop.remove_reader(active.handle)
                os.close(active.handle)
                active.handle = -1
        for task in self._cleaning:
            task.cancel()
        await self._networks.close()


def _refusal(said: str, command: str, runtime_status: int) -> tuple[int, str]:
    """Status and words for a command that the runtime could not start, as docker has them."""
    words = " ".join(said.split())[-400:] or f"the runtime failed with status {runtime_status}"
    if _NOT_FOUND.search(words) and ("executable" in words or "exec" in words):
        return 127, f"{command}: not found in the root file system ({words})"
    if _NOT_EXECUTABLE.search(words) and "exec" in words:
        return 126, f"{command}: cannot be executed ({words})"
    return 125, f"the step could not be started: {words}"


def _is_supervisor(pid: int, directory: str) -> bool:
    """Whether process `pid` is the supervisor of that step, and not a later one with its number."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read().split(b"\0")
    except OSError:
        return False
    return len(words) > 2 and words[1] == b"directory" and words[2] == os.fsencode(directory)


def _kill_container(directory: str) -> None:
    """Kill the first process of a container whose supervisor is gone, and its namespace with it."""
    try:
        pid = int(read_text(f"{directory}/pid") or "0")
        written = os.stat(f"{directory}/pid").st_mtime
    except (OSError, ValueError):
        return
    import psutil

    with contextlib.suppress(psutil.Error, OSError):
        process = psutil.Process(pid)
        with open(f"/proc/{pid}/status") as file:
            innermost = next((line.split()[-1] for line in file if line.startswith("NSpid:")), "")
        # The number may be another process's by now: ours was there before the file was written.
        if innermost == "1" and process.create_time() <= written + 1:
            process.kill()


def _write(path: str, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
