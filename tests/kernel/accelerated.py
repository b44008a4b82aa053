"""Run the same commands in a foreign root file system with and without native tools, and compare.

The store is a real one, filled from the distribution's archive for the root file system at hand. It
is kept in the cache, as fetching takes most of a minute; what is in it is checked by the daemon
against the tables of the checkout.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from daemons import Daemon
from stepping import Ran, run

from maid.acceleration import verify

CACHE = Path(os.environ.get("MAID_CACHE") or Path.home() / ".cache/maid")
STATE = CACHE / "tests/accelerated"

CONFIG = '[acceleration]\nfill = "wait"\nmax_bytes = 2_000_000_000\n'
"""A daemon that fetches what a step's root file system needs before the step begins."""


def daemon() -> Daemon:
    """A daemon whose store is the cached one; start it before use."""
    STATE.mkdir(parents=True, exist_ok=True)
    return Daemon(CONFIG, state=str(STATE))


@dataclass(frozen=True)
class Both:
    """What one command did under QEMU alone and with native tools."""

    plain: Ran
    native: Ran

    @property
    def tools(self) -> dict[str, int]:
        """How often each tool ran natively."""
        return dict(self.native.result["native"])

    @property
    def emulated(self) -> int:
        """How many programs QEMU ran in the accelerated step."""
        return int(self.native.result["emulated"])


def differences(place: Path, tree: Path) -> list[verify.Difference]:
    """What `both` left different in `place`, as programs in the root file system see it."""
    one, other = (verify.Tree(f"{place}/{kind}/upper", str(tree)) for kind in ("plain", "native"))
    return verify.compare(one, other)


def both(
    daemon: Daemon, rootfs: Path, command: Sequence[str], overlay: Path, **parameters: Any
) -> Both:
    """Run a command both ways, each with its changes in a directory of its own below `overlay`
    (plain/upper and native/upper)."""
    plain = run(daemon, rootfs, *command, overlay=overlay / "plain", accelerate=False, **parameters)
    native = run(
        daemon,
        rootfs,
        *command,
        overlay=overlay / "native",
        require_acceleration=True,
        **parameters,
    )
    assert plain.refused is None, plain.refused
    assert native.refused is None, native.refused
    assert not plain.result["native"]
    return Both(plain, native)
