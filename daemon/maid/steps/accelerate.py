"""How a step is accelerated: whether it gets the native store, what it waits for, what is said.

The store itself, and what fills it, is maid.acceleration's. This knows what a step wants of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from maid.config import Accelerate
from maid.errors import MaidError, StepRefused


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
    try:
        seen = await store.seen(rootfs, wait=True, require=required, trusted=trusted)
        ready, reason = seen.ready, seen.reason
    except (MaidError, OSError) as error:
        ready, reason = False, str(error)
    if not ready:
        if required:
            raise StepRefused(
                f"this step must be accelerated, and no native tools fit its root file system:"
                f" {reason}",
                "maid accel add fills the store; without --require-acceleration QEMU runs it all",
            )
        tell(reason)
    return root
