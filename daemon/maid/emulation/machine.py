"""The whole machine's ability to execute: every platform, native or emulated, in every instance.

Brings together the interpreters that were found, the instance that is served, and the pinned ones
in which steps run, one for each kind of caller and CPU model. What a single instance needs is the
keeper's; what runs in it is the steps'.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import shutil
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field

from maid import kernel
from maid.binfmt import namespace
from maid.binfmt.instance import HOST_PATH, Instance, hidden_from_init
from maid.binfmt.namespace import Mapping, NamespaceError, Pinned
from maid.config import Config, Prefer, Scope
from maid.emulation import describe, emulators
from maid.emulation.emulators import Choice
from maid.emulation.interpreters import IdentityCache, search_places
from maid.emulation.keeper import Keeper
from maid.emulation.ledger import Ledger
from maid.emulation.probes import Cause, Prober, ProbeResult
from maid.emulation.proving import Emit
from maid.emulation.status import PlatformStatus
from maid.emulation.targets import TARGETS, Target, family_of_host, for_platform, own
from maid.emulation.upgrades import Upgrades
from maid.errors import MaidError, PlatformUnavailable
from maid.platforms import COMMON, Platform, host, only

log = logging.getLogger(__name__)

HOST = "host"
"""The key of the machine's own instance."""

ROOT = "root"
"""The key of the pinned instance with an identity map: root's steps, and the private scope."""


@dataclass
class Table:
    """One instance with its keeper; `pinned` is None for the host's own; `cpu` has the CPU models
    it was made for, by target's name."""

    key: str
    keeper: Keeper
    pinned: Pinned | None
    cpu: dict[str, str] = field(default_factory=dict)

    @property
    def instance(self) -> Instance:
        """The table's directory."""
        return self.keeper.instance


class Machine:
    """Everything that is kept. `emit` is told what happens: kind, target's name or "", a
    sentence."""

    def __init__(self, config: Config, scope: Scope, emit: Emit) -> None:
        self.config = config
        self.scope = scope
        self.platform = host()
        self.natives: dict[str, ProbeResult] = {}
        self.choices: dict[str, Choice] = {}
        self.tables: dict[str, Table] = {}
        self.namespaces_problem = ""
        self._served_key = HOST if scope is Scope.HOST else ROOT
        self._own = own()
        self._native: set[str] = set()
        self._released = False
        self._refresh_lock = asyncio.Lock()
        self._emit = emit
        self._cache = IdentityCache(config.paths.state)
        self._prober = Prober(str(config.paths.runtime / "probes"), config.emulation.probe_timeout)
        self._served: Table | None = None
        self._root: Pinned | None = None
        self._making: dict[str, asyncio.Task[Table]] = {}
        self._upgrades = Upgrades(self._begin_refresh)
        self._refreshing: asyncio.Task[None] | None = None

    # Life ---------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Make the instances, register what is wanted and wait until the first probes have spoken.

        Raises MaidError when the served instance cannot be had at all.
        """
        for directory in (self.config.paths.runtime, self.config.paths.state):
            try:
                os.makedirs(directory, mode=0o755, exist_ok=True)
            except OSError as error:
                raise MaidError(
                    f"maid cannot make its directory {directory}: {error.strerror}",
                    "run it as root, or name other directories in [paths] of the configuration",
                ) from error
        choosing = asyncio.create_task(self._choose())
        self._prober.write(TARGETS.values())
        pinned = self._root = self._pin(ROOT, namespace.identity())
        await self._probe_natives(family_of_host())
        # What the kernel refuses is not native; a probe that only failed is native, and failed.
        refusals = (Cause.NO_ENTRY, Cause.REFUSED)
        self._native = {n for n, r in self.natives.items() if r.cause not in refusals}
        await choosing
        if pinned is not None:
            self.tables[ROOT] = self._table(ROOT, pinned.instance, pinned)
        if self.scope is Scope.HOST:
            self._served = self.tables[HOST] = self._table(HOST, Instance(HOST_PATH), None)
        elif pinned is not None:
            self._served = self.tables[ROOT]
        else:
            raise NamespaceError(
                f"the private scope is not possible here: {self.namespaces_problem}",
                "it needs Linux 6.7 or later and user namespaces: maid doctor",
            )
        for table in self.tables.values():
            table.keeper.start(self.choices, self.wanted())
        await self.served.keeper.settle()
        if self.scope is Scope.HOST:
            self._verify_from_outside()

    def _verify_from_outside(self) -> None:
        names = [record.name for record in self.served.keeper.ledger]
        hidden = hidden_from_init(HOST_PATH, names)
        if hidden:
            self._emit(
                "refused",
                "",
                f"the machine does not see {', '.join(hidden)} at {HOST_PATH}: this daemon runs in"
                " a mount namespace of its own (a container, or a unit with PrivateMounts=)",
            )

    def stop(self) -> None:
        """Watch no longer; entries, instances and steps stay as they are (rule 6)."""
        for task in self._making.values():
            task.cancel()
        for table in self.tables.values():
            table.keeper.stop()
        self._upgrades.close()
        if self._refreshing:
            self._refreshing.cancel()
        if self.leaves_nothing:
            self._leave_nothing()

    @property
    def leaves_nothing(self) -> bool:
        """Whether this is a private daemon's and everything was released: its runtime directory
        serves nobody when it stops, unless a step still runs."""
        ledgers = (table.keeper.ledger for table in self.tables.values())
        return self.scope is Scope.PRIVATE and not any(map(list, ledgers))

    def _leave_nothing(self) -> None:
        """Take the runtime directory away, unless steps are left in it."""
        runtime = self.config.paths.runtime
        with contextlib.suppress(FileNotFoundError):
            if os.listdir(runtime / "steps"):
                return
        for table in self.tables.values():
            if table.pinned is not None:
                table.pinned.release()
        self.tables = {}
        self.clean()
        for name in ("instances", "ledger", "probes", "steps"):
            shutil.rmtree(runtime / name, ignore_errors=True)
        with contextlib.suppress(OSError):
            (runtime / "begun").unlink(missing_ok=True)
            (runtime / "lock").unlink()
            runtime.rmdir()

    def release(self, keep: Iterable[str] = ()) -> list[str]:
        """Remove what the ledgers hold and unpin every instance whose key is not in `keep`.

        `keep` are the keys that running steps use. Returns the names of the entries removed.
        """
        self._released = True
        used = set(keep)
        for task in self._making.values():
            task.cancel()
        removed = self.served.keeper.release()
        for key, table in list(self.tables.items()):
            if table is self._served or table.pinned is None or key in used:
                continue  # a running step keeps what it needs
            table.keeper.release()
            table.keeper.stop()
            table.pinned.release()
            del self.tables[key]
        self.clean(used)
        return removed

    def clean(self, keep: Iterable[str] = ()) -> None:
        """Unpin the instances of earlier daemons that nobody uses: neither this daemon nor a step,
        whose keys are in `keep`."""
        used = set(keep) | set(self.tables)
        instances = self.config.paths.runtime / "instances"
        for directory in instances.iterdir() if instances.is_dir() else ():
            if directory.name in used:
                continue
            Pinned(str(directory), namespace.identity()).release()
            ledger = self.config.paths.runtime / "ledger" / f"{directory.name}.json"
            ledger.unlink(missing_ok=True)

    @property
    def served(self) -> Table:
        """The instance that this daemon serves, by its scope."""
        if self._served is None:
            raise MaidError("the daemon has not started yet", "wait for maid-ready.target")
        return self._served

    def wanted(self) -> list[str]:
        """The names of the targets to register: wanted by the configuration, and not native
        here."""
        return [
            target.name
            for target in TARGETS.values()
            if target.name != self._own
            and not self.is_native(target.name)
            and any(
                self.config.emulation.serves(target.name, platform)
                for platform in target.platforms or (None,)
            )
        ]

    def is_native(self, name: str) -> bool:
        """Whether this machine runs programs of the target of that name by itself."""
        return name == self._own or name in self._native

    async def _probe_natives(self, names: Iterable[str]) -> None:
        """Find out which of these targets the machine's CPU and kernel run by themselves.

        Only where no entry catches their programs: that can be tried in an instance of maid's own,
        whatever others have registered in the machine's.
        """
        pinned = self._root if self._root is not None and self._root.alive() else None
        user = pinned.open_user() if pinned is not None else -1
        entries = (pinned.instance if pinned else Instance(HOST_PATH)).entries().values()
        try:
            for name in names:
                target = TARGETS[name]
                program = target.probe
                caught = program and any(entry.catches(program) for entry in entries)
                if program is not None and (name == self._own or not caught):
                    self.natives[name] = await self._prober.probe(target, user)
        finally:
            if user >= 0:
                os.close(user)

    # Instances ----------------------------------------------------------------------------------

    def _directory(self, key: str) -> str:
        return str(self.config.paths.runtime / "instances" / key)

    def _pin(self, key: str, mapping: Mapping) -> Pinned | None:
        directory = self._directory(key)
        try:
            return namespace.take_up(directory, mapping) or namespace.create(directory, mapping)
        except (MaidError, OSError) as error:
            self.namespaces_problem = str(error)
            log.warning("%s", error)
            return None

    def _table(self, key: str, instance: Instance, pinned: Pinned | None) -> Table:
        ledger = Ledger(str(self.config.paths.runtime / "ledger" / f"{key}.json"))

        def remount() -> None:
            if pinned is None:
                _mount_host()
                return
            try:
                pinned.mount_again()
            except NamespaceError:
                namespace.create(pinned.directory, pinned.mapping)

        keeper = Keeper(
            instance,
            ledger,
            self._prober,
            # Nobody else registers in an instance of maid's own.
            prefer=self.config.emulation.prefer if pinned is None else Prefer.OWN,
            # Steps' own instances say nothing: what happens in them is no news to anybody else.
            emit=self._emit if key == self._served_key else lambda *_: None,
            remount=remount,
            open_user=pinned.open_user if pinned is not None else None,
            guarded=key == self._served_key,  # nobody outside reaches the others
        )
        return Table(key, keeper, pinned)

    async def table_for(
        self, mapping: Mapping | None, key: str = ROOT, cpu: dict[str, str] | None = None
    ) -> Table:
        """The instance for steps of a caller, made and probed if it is not there yet.

        `mapping` None is root's identity map; otherwise `key` names the caller. `cpu` gives other
        CPU models by target's name: such an instance holds these targets alone. Where the kernel
        has no instances for namespaces (before Linux 6.7) it is the host's. Raises MaidError.
        """
        if cpu:
            models = "+".join(f"{name}={model}" for name, model in sorted(cpu.items()))
            # Part of a directory's name: readable, short, and another one for other models.
            readable = re.sub("[^A-Za-z0-9=.-]", "_", models)[:80]
            key = f"{key}+{readable}-{zlib.crc32(models.encode()):08x}"
        table = self.tables.get(key)
        if table is not None:
            return table
        if self.namespaces_problem and ROOT not in self.tables:
            if mapping is None and not cpu:
                return self.served
            raise NamespaceError(
                f"this step needs an instance of its own: {self.namespaces_problem}", "maid doctor"
            )
        if key not in self._making:
            making = asyncio.create_task(self._make(key, mapping, cpu or {}))
            making.add_done_callback(lambda _: self._making.pop(key, None))
            self._making[key] = making
        try:
            return await asyncio.shield(self._making[key])
        except asyncio.CancelledError:
            if not self._released or key in self._making:
                raise
            raise NamespaceError(
                "everything was released while the step was being prepared", "try again"
            ) from None

    async def _make(self, key: str, mapping: Mapping | None, cpu: dict[str, str]) -> Table:
        choices, wanted = self.choices, self.wanted()
        if cpu:
            targets = [TARGETS[name] for name in cpu]
            choices = await asyncio.to_thread(
                emulators.choose, targets, self.config, self._cache, cpu
            )
            for name, choice in choices.items():
                if cpu[name] and not any(offer.cpu == cpu[name] for offer in choice.offers):
                    unused = f"CPU model {cpu[name]} is not used: "
                    notes = [n.removeprefix(unused) for n in choice.notes if n.startswith(unused)]
                    why = choice.problem or "; ".join(notes)
                    raise PlatformUnavailable(f"{name} cannot be emulated as {cpu[name]}: {why}")
            wanted = list(cpu)
        directory = self._directory(key)
        ids = mapping or namespace.identity()
        pinned = namespace.take_up(directory, ids) or namespace.create(directory, ids)
        table = self._table(key, pinned.instance, pinned)
        table.cpu = cpu
        self.tables[key] = table  # from now on a refresh or a release concerns it too
        table.keeper.start(choices, wanted)
        await table.keeper.settle()
        return table

    # Interpreters -------------------------------------------------------------------------------

    async def _choose(self) -> None:
        """Find out what could be registered for each target, and be told when that changes."""
        targets = [target for target in TARGETS.values() if target.name != self._own]
        self.choices = await asyncio.to_thread(emulators.choose, targets, self.config, self._cache)
        used = [offer.interpreter.path for c in self.choices.values() for offer in c.offers]
        # Also those that are configured and not there, or no good: they may come, or be mended.
        named = (each.interpreter for each in self.config.emulation.target.values())
        used += [path for path in named if path is not None]
        self._upgrades.watch(search_places(self.config), used)

    def _begin_refresh(self) -> None:
        if not self._released:
            self._refreshing = asyncio.get_running_loop().create_task(self._refresh_quietly())

    async def _refresh_quietly(self) -> None:
        try:
            await self.refresh()
        except (MaidError, OSError) as error:
            self._emit("refused", "", f"interpreters could not be looked for: {error}")

    async def refresh(self, config: Config | None = None) -> None:
        """Look for interpreters again and bring every instance up to date, with a new configuration
        if one is given (directories and socket stay as they are). What failed before gets another
        chance then, and what was released is registered again."""
        async with self._refresh_lock:
            if config is not None:
                self.config = config
                self._released = False
            anew = config is not None
            await self._choose()
            if self._released:
                return
            for table in list(self.tables.values()):
                if not table.cpu:
                    table.keeper.update(self.choices, self.wanted(), anew=anew)
                    continue
                choices = await asyncio.to_thread(
                    emulators.choose,
                    [TARGETS[name] for name in table.cpu],
                    self.config,
                    self._cache,
                    table.cpu,
                )
                table.keeper.update(choices, list(table.cpu), anew=anew)
            await self.served.keeper.settle()
        self._emit("refreshed", "", "interpreters were looked for again")

    # What can be said ---------------------------------------------------------------------------

    def statuses(self) -> list[PlatformStatus]:
        """Every platform of every target, the common platforms first, then by name."""
        found: list[PlatformStatus] = []
        for target in TARGETS.values():
            for platform in target.platforms or (None,):
                if target.name == "i486":
                    continue  # a second row for the same platform and emulator as i386
                found.append(self.status(target, platform))
        order = {str(platform): number for number, platform in enumerate(COMMON)}
        return sorted(
            found,
            key=lambda s: (order.get(s.platform or "", len(order)), s.platform is None, s.target),
        )

    def status(self, target: Target, platform: Platform | None) -> PlatformStatus:
        """How `platform` of `target` stands in the served instance."""
        required = self._required(target, platform)
        if self.is_native(target.name):
            level = self.platform.variant if target.name == self._own else ""
            probe = self.natives.get(target.name)
            return describe.native(target, platform, probe, level, required)
        wanted = self.config.emulation.serves(target.name, platform)
        return describe.emulated(platform, self.served.keeper.kept[target.name], wanted, required)

    def _required(self, target: Target, platform: Platform | None) -> bool:
        if not self.config.emulation.must_be_ready(target.name, platform):
            return False
        if self.config.emulation.ready is not None or self.is_native(target.name):
            return True
        choice = self.choices.get(target.name)
        return bool(choice and choice.offers)

    def ready(self) -> bool:
        """Whether every required platform executes."""
        return all(status.state.executes for status in self.statuses() if status.required)

    def find(self, platform: Platform) -> Target:
        """The target that runs `platform`.

        Raises PlatformUnavailable, with a list of what there is, when there is none.
        """
        wanted = platform.normalized()
        target = for_platform(wanted)
        if target is None:
            raise PlatformUnavailable(
                f"no platform {platform} is known", f"there are: {', '.join(self._known())}"
            )
        if target.name == self._own and not only(self.platform).matches(wanted):
            raise PlatformUnavailable(
                f"{platform} cannot run here: this machine is {self.platform}",
                "a machine's own architecture is never emulated",
            )
        return target

    def _known(self) -> list[str]:
        return [status.platform for status in self.statuses() if status.platform]

    async def probe_now(self, target: Target) -> ProbeResult | None:
        """Execute the target's probe anew, native or in the served instance; None: nothing serves
        it."""
        if self.is_native(target.name):
            await self._probe_natives([target.name])
            return self.natives[target.name]
        await self.served.keeper.probe_now([target.name])
        return self.served.keeper.kept[target.name].result

    async def ensure(self, platform: Platform, table: Table | None = None) -> PlatformStatus:
        """Execute a program of `platform` now, native or emulated; its status when that worked.

        In the served instance, or in `table`. Raises PlatformUnavailable otherwise.
        """
        target = self.find(platform)
        if self.is_native(target.name):
            await self.probe_now(target)
            status = self.status(target, platform.normalized())
        else:
            keeper = (table or self.served).keeper
            await keeper.probe_now([target.name])
            wanted = self.config.emulation.serves(target.name, platform.normalized())
            status = describe.emulated(platform, keeper.kept[target.name], wanted, False)
        if not status.state.executes:
            raise PlatformUnavailable(
                f"{platform} is {status.state.value}: {status.reason or 'nothing serves it'}",
                "maid status shows all platforms; maid doctor says what to do",
            )
        return status


def _mount_host() -> None:
    """Mount the machine's own table where everybody looks for it."""
    try:
        kernel.mount_binfmt(HOST_PATH)
    except OSError as error:
        raise MaidError(
            f"binfmt_misc cannot be mounted at {HOST_PATH}: {error.strerror}",
            "modprobe binfmt_misc, and a /proc/sys that is writable: maid doctor",
        ) from error
