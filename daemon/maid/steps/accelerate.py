"""How a step is accelerated: whether it gets the native store, what it waits for, what is said.

The store itself, and what fills it, is maid.acceleration's. This knows what a step wants of it.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Protocol

from maid.config import Accelerate
from maid.errors import MaidError, StepRefused
from maid.steps import programs
from maid.steps.rootfs import is_local
from maid.steps.step import Result

REMEMBERED = 20
"""Root file systems of which it is remembered why they were not accelerated."""


OTHER = "other"
"""What programs are counted as that the store does not know (any more)."""


class SeenRootfs(Protocol):
    """What the store says of a root file system: whether it has tools for it now (`ready`), and in
    `reason` why not, or why not yet."""

    @property
    def ready(self) -> bool: ...

    @property
    def reason(self) -> str: ...


class NativeStore(Protocol):
    """What a step needs of maid.acceleration.manager.Acceleration."""

    def root(self) -> int | None:
        """A descriptor of the store's directory, open until the configuration changes; None where
        there is none."""

    async def seen(self, rootfs: int, *, wait: bool, require: bool, trusted: bool) -> SeenRootfs:
        """Look which release the root file system is, and have the store filled for it."""

    def tools_of(self, ids: Iterable[bytes]) -> dict[bytes, str]:
        """The names of the tools with these build-ids."""


class Accelerator:
    """Accelerates the steps of a runner, and counts what came of it. `emit` is told: kind, target,
    sentence.

    `native` counts program starts by tool, of all steps that have ended, `emulated` those under
    QEMU in accelerated steps.
    """

    def __init__(self, store: NativeStore | None, emit: Callable[[str, str, str], None]) -> None:
        self.native: Counter[str] = Counter()
        self.emulated = 0
        self._store = store
        self._emit = emit
        self._lacking: dict[tuple[int, int], str] = {}

    def reasons(self) -> list[str]:
        """Why root file systems that steps ran in were not accelerated, the newest last."""
        return list(dict.fromkeys(self._lacking.values()))

    async def directory(
        self, platform: str, wish: Accelerate, rootfs: int, *, front: bool, trusted: bool
    ) -> int:
        """As native_store, with what there is to know kept, and told once as an event."""
        found = os.fstat(rootfs)
        root = found.st_dev, found.st_ino

        def tell(reason: str) -> None:
            known = reason in self._lacking.values()
            self._lacking.pop(root, None)
            if not reason:
                return
            self._lacking[root] = reason
            if len(self._lacking) > REMEMBERED:
                del self._lacking[next(iter(self._lacking))]
            if not known:
                self._emit("emulated", platform, reason)

        return await native_store(
            self._store, wish, rootfs, front=front, trusted=trusted, tell=tell
        )

    def counted(self, identifier: str, platform: str, text: str, result: Result) -> Result:
        """The result of a step with its programs, from the `text` of programs.txt."""
        if not text:
            return result
        counted = programs.parse(text)
        names = self._store.tools_of(counted.native) if self._store else {}
        native = programs.by_tool(counted, names)
        if native:
            told = programs.sentence(native, counted)
            self._emit("accelerated", platform, f"{identifier}: {told}")
        # By the names that there are: what else stands in the log is the step's own invention.
        for build, number in counted.native.items():
            self.native[names.get(build, OTHER)] += number
        self.emulated += counted.emulated
        return replace(result, native=native, emulated=counted.emulated)


async def native_store(
    store: NativeStore | None,
    wish: Accelerate,
    rootfs: int,
    *,
    front: bool,
    trusted: bool,
    tell: Callable[[str], None],
) -> int:
    """The store's directory for a step in `rootfs` (descriptors), -1 where it gets none. It is the
    store's, and open until the loop's next turn for certain: to be copied at once.

    `front`: maid's copy of the interpreter serves the platform; without it nothing would look into
    the store. `trusted`: the caller is root, and the archives that the root file system names may
    be asked. `tell` is called with the reason why nothing will run natively, or "" where something
    may. Raises StepRefused where the step must be accelerated and cannot be.
    """
    if wish is Accelerate.OFF:
        return -1
    required = wish is Accelerate.REQUIRE
    if store is None or store.root() is None:
        return _without_store(required)
    if not front:
        if required:
            raise StepRefused(
                "this step must be accelerated, and its platform is not served by maid's copy of"
                " QEMU, which alone can",
                'maid status shows what serves it; prefer = "own" under [emulation] changes that',
            )
        tell("a platform is not served by maid's copy of QEMU, which alone runs programs natively")
        return -1
    reason = await _reason(store, rootfs, required, trusted)
    if reason and required:
        raise StepRefused(
            "this step must be accelerated, and no native tools fit its root file system:"
            f" {reason}",
            "maid accel add fills the store; without --require-acceleration QEMU runs it all",
        )
    tell(f"no native tools for a root file system: {reason}" if reason else "")
    # Also where nothing fits: the store may grow while the step runs. Asked for anew: it may have
    # been switched off while this waited.
    root = store.root()
    return root if root is not None else _without_store(required)


def _without_store(required: bool) -> int:
    if required:
        raise StepRefused(
            "this step must be accelerated, and there is no native store",
            "maid accel list says why: switched off ([acceleration] in maid.toml), or removed",
        )
    return -1


async def _reason(store: NativeStore, rootfs: int, required: bool, trusted: bool) -> str:
    """Why the store has nothing for the root file system, or ""."""
    if not trusted and not is_local(rootfs):
        # Whoever looks into it might have to wait for ever.
        return "it lies on a file system that may not answer (FUSE, a network)"
    try:
        seen = await store.seen(rootfs, wait=True, require=required, trusted=trusted)
    except (MaidError, OSError) as error:
        return str(error)
    return "" if seen.ready else seen.reason
