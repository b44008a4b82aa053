"""The varlink interface io.maid.Store.

As in interfaces.py the typed methods are the interface, and each connection has its own object.
Annotations stay real objects here, because asyncvarlink reads them.
"""

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass

from asyncvarlink import FileDescriptor, VarlinkInterface, varlinkmethod
from asyncvarlink.interface import LastResult

from maid.errors import MaidError, UsageError
from maid.service.access import Peer, Role
from maid.service.connection import MAX_NAME
from maid.service.core import Core
from maid.service.refusals import as_varlink, number, require, texts
from maid.service.store_status import StoreContent, StoreSet, one_set

MAX_ARCHITECTURES = 20
"""Architectures in one request: more than Debian has."""

MAX_SIZE = float(1 << 62)
"""Bytes: more than a file system has."""

MAX_UNUSED = 3.2e9
"""Seconds: a century."""


@dataclass(frozen=True)
class Added:
    """What Add made of one architecture: the `set` that has it, whether it is `new`, how many
    programs have a native one in it, how many stay `emulated`, and its size in bytes."""

    architecture: str
    set: str
    new: bool
    tools: int
    emulated: int
    size: int


@dataclass(frozen=True)
class AddReply:
    """One of Add's replies: what is being done, for which architecture, or what came of it."""

    architecture: str
    doing: str | None
    added: Added | None


@dataclass(frozen=True)
class DamagedFile:
    """A file of the store that is not as it was made."""

    path: str
    problem: str


class Store(VarlinkInterface, name="io.maid.Store"):
    """The native store: programs of this machine's architecture that stand in for the same programs
    of the same versions in emulated steps and containers. What fails is io.maid.Manager.Failed."""

    def __init__(self, core: Core, peer: Peer) -> None:
        self._core = core
        self._peer = peer

    @varlinkmethod(return_parameter="store")
    def Status(self) -> StoreContent:
        """What is in the store and what is not: what `maid accel list --json` prints."""
        require(self._peer, Role.MEMBER)
        with as_varlink():
            return self._core.store()

    @varlinkmethod(return_parameter="reply", delay_generator=False)
    async def Add(
        self,
        *,
        release: str | None = None,
        architectures: list[str] | None = None,
        rootfs: FileDescriptor | None = None,
        keys: str | None = None,
        native_root: str | None = None,
    ) -> AsyncIterator[AddReply | None]:
        """Fill the store with the newest of a release ("debian:trixie") for these architectures as
        Debian names them, or with what the directory `rootfs` has installed. `keys` is a directory
        whose own archive keys are trusted, "/" where it is null. With `native_root`, the directory
        of a root file system of the same release and this machine's architecture, nothing is
        fetched: tools are taken from there, and what they stand in for from `rootfs`. What is done
        as it goes on, what came of each architecture, then null. Closing the connection ends it."""
        require(self._peer, Role.ADMIN)
        with as_varlink():
            names = architectures or []
            texts("architectures", names)
            texts("release", [release or "", keys or "", native_root or ""])
            if (rootfs is None) == (release is None) or bool(names) == bool(rootfs is not None):
                raise UsageError(
                    "what to add is not clear",
                    "a release and its architectures, or a root file system",
                )
            if len(names) > MAX_ARCHITECTURES or any(
                len(name) > MAX_NAME for name in (*names, release or "")
            ):
                raise UsageError("that is no release and no architecture")
            root = -1
            if rootfs is not None:
                root = os.dup(rootfs.fileno())
                rootfs.close()
            try:
                for name in names or [""]:
                    adding = self._add(release or "", name, root, keys or "/", native_root or "")
                    async with contextlib.aclosing(adding) as replies:
                        async for reply in replies:
                            yield reply
            finally:
                if root >= 0:
                    os.close(root)
        raise LastResult(None)

    async def _add(
        self, release: str, architecture: str, root: int, keys: str, native_root: str
    ) -> AsyncGenerator[AddReply, None]:
        """Fill in one architecture, and tell of it."""
        queue: asyncio.Queue[str | None] = asyncio.Queue()
        adding = asyncio.ensure_future(
            self._core.acceleration.add(
                release,
                architecture,
                queue.put_nowait,
                rootfs=root,
                keys=keys,
                native_root=native_root,
            )
        )
        adding.add_done_callback(lambda _: queue.put_nowait(None))
        try:
            while (doing := await queue.get()) is not None:
                yield AddReply(architecture, doing, None)
            done = await adding
        finally:
            adding.cancel()
            # To its end: what it reads from is the caller's, and closed next.
            with contextlib.suppress(asyncio.CancelledError, MaidError, OSError):
                await asyncio.wait((adding,))
                adding.result()
        added = Added(architecture, done.set, done.new, done.tools, len(done.left), done.size)
        yield AddReply(architecture, None, added)

    @varlinkmethod(return_parameter="damages")
    async def Verify(self) -> list[DamagedFile]:
        """Compare every file with the digest it was made with; those that differ. A set that is
        damaged is removed: its tools are emulated until it is fetched again."""
        require(self._peer, Role.ADMIN)
        with as_varlink():
            damages = await self._core.acceleration.verify()
            return [DamagedFile(damage.path, damage.problem) for damage in damages]

    @varlinkmethod(return_parameter="removed")
    async def Prune(
        self, *, size: int | None = None, unused: float | None = None
    ) -> list[StoreSet]:
        """Remove the sets that were not used for `unused` seconds, then the least used ones until
        the store has at most `size` bytes. Steps that use one go on, with the emulator."""
        require(self._peer, Role.ADMIN)
        with as_varlink():
            removed = await self._core.acceleration.prune(
                None if size is None else int(number("size", size, MAX_SIZE)),
                None if unused is None else number("unused", unused, MAX_UNUSED),
            )
            return [one_set(each, 0.0) for each in removed]

    @varlinkmethod
    def Seen(self, *, rootfs: FileDescriptor) -> None:
        """Tell of a root file system (a directory) in which something foreign is started: what the
        store lacks for it is fetched, if the configuration says so. Nothing is waited for."""
        require(self._peer, Role.MEMBER)
        with as_varlink():
            root = os.dup(rootfs.fileno())
            rootfs.close()
            self._core.saw(root, self._peer.uid, self._peer.role is Role.ADMIN)
