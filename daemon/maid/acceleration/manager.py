"""The daemon's side of the native store: what a root file system needs, and having it fetched.

A root file system that is seen for the first time is looked at (facts.py) and held against the sets
there are; what is missing is fetched by a process of its own (fill.py), one at a time, while steps
go on. A step profits from the moment its set is published: the front looks for a record at each
program's start.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import msgspec

from maid.acceleration import facts, tools, worker
from maid.acceleration.coverage import Seen, cover
from maid.acceleration.facts import Facts
from maid.acceleration.fill import Done, Request
from maid.acceleration.model import MACHINES, Machine
from maid.acceleration.sets import Damage, Left, Manifest
from maid.acceleration.store import Store, StoreError
from maid.acceleration.worker import FillFailed
from maid.config import Accelerate, Config, Fill
from maid.errors import MaidError
from maid.platforms import host

RETRY = 3600.0
"""Seconds until a filling that failed is tried again for the same root file system."""

WAIT = 600.0
"""Seconds that a step waits at most for a filling, where the configuration says so."""

IN_USE = 6 * 3600.0
"""Seconds since its last use for which a set is not removed for a newer one, while the store has
less than twice what it may have."""

QUEUE = 8
"""Root file systems that wait at most to have tools fetched for them; what is seen beyond that is
seen again."""

FAILURES = 64
"""Root file systems of which it is remembered that they could not be served."""

LEFT = 20_000
"""Packages' versions of a release of which it is remembered that there is no native one."""

REMEMBERED = 512
"""Root file systems whose verdict is kept, by the state of their package database."""


@dataclass(frozen=True)
class StoreStatus:
    """How the store stands. `path` where it is, "" when acceleration is off; `problem` why there is
    none, or ""; `size` and `limit` in bytes, 0 for no limit; `filling` what is being fetched for
    which release, or ""; `failures` what could not be had, newest last."""

    path: str
    problem: str
    size: int
    limit: int
    sets: list[Manifest]
    filling: str
    failures: list[str]


def host_machine() -> Machine | None:
    """This host's architecture, if the store can hold tools for it."""
    native = {"amd64": "amd64", "arm64": "arm64"}.get(host().architecture)
    return MACHINES[native] if native else None


class Acceleration:
    """The native store of a daemon. `emit` is told of events: kind, target, sentence."""

    def __init__(self, config: Config, emit: Callable[[str, str, str], None]) -> None:
        self._config = config
        self._emit = emit
        self._native = host_machine()
        self._store: Store | None = None
        self._root = -1
        self._problem = ""
        self._filling: dict[str, asyncio.Task[Done]] = {}
        self._doing = ""
        self._one = asyncio.Lock()
        self._failed: dict[str, tuple[float, str]] = {}
        self._seen: dict[tuple[object, ...], tuple[tuple[str, ...], Seen]] = {}
        self._left: dict[str, dict[tuple[str, str, str], Left]] = {}
        self.configure(config)

    def configure(self, config: Config) -> None:
        """Take a new configuration; make the store where there is to be one. `exclude` comes next.

        A store that was removed or replaced meanwhile is made or taken anew: the interpreters have
        to be renewed then too, for they know it by its inode."""
        self._config = config
        self._seen.clear()
        if config.acceleration.accelerate is Accelerate.OFF or self._native is None:
            self._problem = (
                "switched off: [acceleration] accelerate"
                if self._native is not None
                else "there are no native tools for this machine's architecture"
            )
            self.close_root()
            self._store = None
            return
        if self._store is None or self.root() is None:
            self.close_root()
            state = config.paths.state
            try:
                self._store = Store(state / "store", state / "acceleration")
                self._root = os.open(self._store.root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
                self._problem = ""
            except (StoreError, OSError) as error:
                self._store = None
                self._problem = str(error)
                self._emit("refused", "", f"programs are not accelerated: {error}")

    async def exclude(self) -> None:
        """Remove the sets with tools that the configuration does not allow (any more), and let
        nothing be started from those of other tables than this maid's: a rule may have come since,
        and their records would go on without it. These go when nothing of them can run any more."""
        store = self._store
        if store is None:
            return
        allowed = {tool.name for tool in tools.chosen(self._config.acceleration.tools)}
        sets = store.sets()
        old = [each.name for each in sets if each.tables != tools.digest()]
        dropped = [
            each.name
            for each in sets
            if any(entry.tool not in allowed for entry in each.entries)
            or (each.name in old and time.time() - store.last_used(each.name) > IN_USE)
        ]

        def exclude() -> None:
            store.retire(old)
            if dropped:
                store.drop(dropped)

        try:
            # Another daemon may be writing to it: not in the loop's thread.
            await asyncio.to_thread(exclude)
        except StoreError as error:
            self._emit("refused", "", f"tools that may not stand in are still there: {error}")

    def close_root(self) -> None:
        """Let go of the store's directory."""
        if self._root >= 0:
            os.close(self._root)
            self._root = -1

    async def close(self) -> None:
        """End what is being fetched; what is published stays."""
        tasks = list(self._filling.values())
        for task in tasks:
            task.cancel()
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError, MaidError):
                await task
        self.close_root()

    def root(self) -> int | None:
        """A descriptor (O_PATH) of the store's directory, open until the configuration changes;
        None without one, and where the directory is not there any more: nothing can mount it."""
        if self._store is None or self._root < 0:
            return None
        with contextlib.suppress(OSError):
            if os.path.samestat(os.lstat(self._store.root), os.fstat(self._root)):
                return self._root
        problem = f"{self._store.root} was removed or replaced: maid reload"
        if self._problem != problem:
            self._problem = problem
            self._emit("refused", "", f"programs are not accelerated: {problem}")
        return None

    def tools_of(self, ids: Iterable[bytes]) -> dict[bytes, str]:
        """The names of the tools that stand in for the programs of these build-ids."""
        store = self._store
        if store is None:
            return {}
        # Of all sets: reading every record would take longer than a step. The record of a set that
        # is just being published is there before its manifest is.
        names = {e.build_id: e.tool for each in store.sets() for e in each.entries}
        found = {each: names.get(each.hex()) or store.program_name(each.hex()) for each in ids}
        return {build_id: name for build_id, name in found.items() if name}

    # What a root file system needs -------------------------------------------------------------

    async def seen(
        self, rootfs: int, *, wait: bool, require: bool = False, trusted: bool = False
    ) -> Seen:
        """What the store has for the root file system `rootfs` (a directory's descriptor); what is
        missing is fetched, if the configuration says so.

        With `wait` and the configuration's, or `require`, this waits for it. `trusted`: the
        addresses of archives that the root file system names may be asked too (never its keys).
        """
        if self._store is None or self.root() is None:
            return Seen(False, self._problem)
        stamp = await asyncio.to_thread(facts.stamp, rootfs)
        known = self._seen.get(stamp)
        names = tuple(each.name for each in self._store.sets())
        if known is not None and known[0] == names and known[1].ready:
            for name in known[1].sets:
                self._store.used(name)
            return known[1]
        try:
            found = await asyncio.to_thread(facts.read, rootfs)
        except facts.UnknownRootfs as error:
            return Seen(False, error.message)
        seen, wanted = self._cover(found)
        fills = self._config.acceleration.fill
        if wanted and fills is not Fill.OFF:
            named = await asyncio.to_thread(facts.mirrors, rootfs) if trusted else []
            wait = wait and (require or fills is Fill.WAIT)
            seen = await self._have(found, wanted, named, wait, seen)
        if any(stamp) and seen.ready:
            if len(self._seen) >= REMEMBERED:
                self._seen.clear()
            names = tuple(each.name for each in self._store.sets())
            self._seen[stamp] = (names, seen)
        return seen

    def _cover(self, found: Facts) -> tuple[Seen, set[tuple[str, str]]]:
        """coverage.cover of the sets there are, which count as used now."""
        if self._store is None or self._native is None:  # switched off meanwhile
            return Seen(False, self._problem), set()
        chosen = tools.chosen(self._config.acceleration.tools)
        left = self._left.get(found.release + found.architecture, {}).values()
        current = [each for each in self._store.sets() if each.tables == tools.digest()]
        seen, wanted = cover(found, chosen, current, left, self._native)
        for name in seen.sets:
            self._store.used(name)
        return seen, wanted

    async def _have(
        self, found: Facts, wanted: set[tuple[str, str]], named: list[str], wait: bool, seen: Seen
    ) -> Seen:
        """Have what is missing fetched, once for all root file systems that want the same and may
        name the same archives."""
        about = found.release, found.architecture, sorted(wanted), named
        key = hashlib.sha256(repr(about).encode()).hexdigest()
        failed = self._failed.get(key)
        if failed is not None and time.monotonic() - failed[0] < RETRY:
            return Seen(False, failed[1], seen.sets)
        task = self._filling.get(key)
        if task is None:
            if not wait and len(self._filling) >= QUEUE:
                return Seen(False, f"{seen.reason}; others are being fetched first", seen.sets)
            request = self._request(
                found.distribution, found.codename, found.architecture, dict(found.packages), named
            )
            task = asyncio.ensure_future(self._fill(request, lambda _: None))
            self._filling[key] = task
            task.add_done_callback(lambda done: self._filled(key, found, done))
        if not wait:
            return Seen(False, f"{seen.reason}; they are being fetched", seen.sets)
        try:
            await asyncio.wait_for(asyncio.shield(task), WAIT)
        except TimeoutError:
            return Seen(False, f"{seen.reason}; they are still being fetched", seen.sets)
        except MaidError as error:
            return Seen(False, str(error), seen.sets)
        return self._cover(found)[0]

    def _filled(self, key: str, found: Facts, task: asyncio.Task[Done]) -> None:
        self._filling.pop(key, None)
        if task.cancelled():
            return
        error = task.exception()
        if error is not None:
            if len(self._failed) >= FAILURES:
                del self._failed[next(iter(self._failed))]
            self._failed[key] = (time.monotonic(), str(error))
            self._emit(
                "refused", "", f"{found.release} {found.architecture} stays emulated: {error}"
            )
            return
        # The set says so too, but not when it was there before and others found more missing.
        known = self._left.setdefault(found.release + found.architecture, {})
        if len(known) > LEFT:
            known.clear()
        known.update({(each.tool, each.package, each.version): each for each in task.result().left})

    # Filling ------------------------------------------------------------------------------------

    async def add(
        self,
        release: str,
        architecture: str,
        tell: Callable[[str], None],
        *,
        rootfs: int = -1,
        keys: str = "/",
        native_root: str = "",
    ) -> Done:
        """Fill the store with the newest of a release ("debian:trixie") for one architecture, or
        with the versions of the root file system `rootfs` (a descriptor), whose release and
        architecture count then. `keys` is a root whose keys are trusted. With `native_root`, a root
        file system of the same release and the host's architecture, the tools are taken from there,
        and what they stand in for from `rootfs`: root vouches for both.

        Raises FillFailed, UnknownRelease, UnknownRootfs, StoreError.
        """
        if self._store is None:
            raise StoreError(f"there is no native store: {self._problem}")
        installed: dict[str, str] = {}
        named: list[str] = []
        if rootfs >= 0:
            found = await asyncio.to_thread(facts.read, rootfs)
            named = await asyncio.to_thread(facts.mirrors, rootfs)
            installed = dict(found.packages)
            release, architecture = found.release, found.architecture
        distribution, codename = facts.parse_release(release)
        if self._native is not None and architecture == self._native.debian:
            raise FillFailed(f"{architecture} is this machine's own: nothing of it is emulated")
        request = self._request(distribution, codename, architecture, installed, named, keys)
        if native_root:
            if rootfs < 0:
                raise FillFailed(
                    "what the native root file system's programs stand in for is missing",
                    "name a foreign root file system of the same release too: --rootfs",
                )
            foreign_root = f"/proc/{os.getpid()}/fd/{rootfs}"
            request = msgspec.structs.replace(
                request, native_root=native_root, foreign_root=foreign_root
            )
        return await self._fill(request, tell)

    def _request(
        self,
        distribution: str,
        codename: str,
        architecture: str,
        installed: dict[str, str],
        named: list[str],
        keys: str = "/",
    ) -> Request:
        assert self._native is not None
        settings = self._config.acceleration
        return Request(
            state=str(self._config.paths.state),
            distribution=distribution,
            codename=codename,
            native=self._native.debian,
            foreign=architecture,
            installed=installed,
            named=named,
            mirrors=list(settings.mirrors),
            keyrings=[str(path) for path in settings.keyrings],
            tools=settings.tools,
            keys=keys,
        )

    async def _fill(self, request: Request, tell: Callable[[str], None]) -> Done:
        release = f"{request.distribution}:{request.codename} {request.foreign}"
        async with self._one:
            store = self._store
            if store is None:  # switched off while this waited for its turn
                raise FillFailed(f"there is no native store: {self._problem}")
            self._emit("filling", "", f"fetching native tools for {release}")

            def doing(words: str) -> None:
                self._doing = f"{release}: {words}"
                tell(words)

            begun = time.monotonic()
            try:
                done = await worker.run(request, doing)
            finally:
                self._doing = ""
            self._seen.clear()
            if done.new:
                self._emit(
                    "filled",
                    "",
                    f"{done.tools} native tools for {release} in {time.monotonic() - begun:.0f} s"
                    f" ({done.size >> 20} MiB); {len(done.left)} stay emulated",
                )
            limit = self._config.acceleration.max_bytes
            if limit:
                # Long builds may still use a set that was last looked for when they began; but the
                # limit is for whoever makes many sets, too.
                await asyncio.to_thread(store.prune, size=limit, spared=IN_USE)
                await asyncio.to_thread(store.prune, size=2 * limit)
            return done

    # Keeping ------------------------------------------------------------------------------------

    def status(self) -> StoreStatus:
        """How the store stands."""
        sets = self._store.sets() if self._store else []
        return StoreStatus(
            path=str(self._store.root) if self._store and self.root() is not None else "",
            problem=self._problem,
            size=sum(each.size for each in sets),
            limit=self._config.acceleration.max_bytes,
            sets=sets,
            filling=self._doing,
            failures=[reason for _, reason in self._failed.values()],
        )

    def last_used(self, name: str) -> float:
        """When a set was last used, in seconds since 1970, 0 if that is not known."""
        return self._store.last_used(name) if self._store else 0.0

    async def verify(self) -> list[Damage]:
        """Every file that is not as it was made. Damaged sets and records are removed: what they
        stood in for is emulated until it is fetched again."""
        if self._store is None:
            return []
        damages = await asyncio.to_thread(self._store.verify)
        if damages:
            damaged = {damage.path.split("/")[0] for damage in damages}
            names = [each.name for each in self._store.sets() if each.name in damaged]
            await asyncio.to_thread(self._store.drop, names)
            what = f"the sets {', '.join(names)}" if names else "records"
            self._emit(
                "refused", "", f"{what} were removed from the store: {damages[0].path} was changed"
            )
            self._seen.clear()
        return damages

    async def prune(self, size: int | None, unused: float | None) -> list[Manifest]:
        """Remove sets that were not used for `unused` seconds, and the least used ones until `size`
        bytes are left. Raises StoreError."""
        if self._store is None:
            return []
        removed = await asyncio.to_thread(self._store.prune, size, unused)
        self._seen.clear()
        return removed
