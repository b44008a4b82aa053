"""How a step is accelerated: whether it gets the native store, what it waits for, what is said.

The store itself, and what fills it, is maid.acceleration's. This knows what a step wants of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from maid.config import Accelerate
from maid.errors import MaidError, StepRefused
from maid.steps.rootfs import is_local


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
        """A descriptor of the store's directory, which stays open; None where there is none."""

    async def seen(self, rootfs: int, *, wait: bool, require: bool, trusted: bool) -> SeenRootfs:
        """Look which release the root file system is, and have the store filled for it."""

    def tools_of(self, ids: Iterable[bytes]) -> dict[bytes, str]:
        """The names of the tools with these build-ids."""


async def native_store(
    store: NativeStore | None,
    wish: Accelerate,
    rootfs: int,
    front: bool,
    trusted: bool,
    tell: Callable[[str], None],
) -> int:
    """The store's directory for a step in `rootfs` (descriptors), -1 where it gets none.

    `front`: maid's copy of the interpreter serves the platform; without it nothing would look into
    the store. `trusted`: the caller is root, and the archives that the root file system names may
    be asked. `tell` is called with what there is to know. Raises StepRefused where the step must
    be accelerated and cannot be.
    """
    if wish is Accelerate.OFF:
        return -1
    required = wish is Accelerate.REQUIRE
    root = store.root() if store else None
    if store is None or root is None:
        if required:
            raise StepRefused(
                "this step must be accelerated, and acceleration is switched off",
                "[acceleration] in maid.toml",
            )
        return -1
    if not front:
        if required:
            raise StepRefused(
                "this step must be accelerated, and its platform is not served by maid's copy of"
                " QEMU, which alone can",
                'maid status shows what serves it; prefer = "own" under [emulation] changes that',
            )
        return -1
    reason = await _reason(store, rootfs, required, trusted)
    if reason and required:
        raise StepRefused(
            "this step must be accelerated, and no native tools fit its root file system:"
            f" {reason}",
            "maid accel add fills the store; without --require-acceleration QEMU runs it all",
        )
    if reason:
        tell(f"no native tools for a root file system: {reason}")
    # Also where nothing fits: the store may grow while the step runs.
    return root


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
