"""A daemon whose native store is a directory that a test fills by hand.

Executed as `storing.py STORE MAID ARG…` it is the command `maid` with a store that knows no package
and fetches nothing: STORE/names.json has the tools' names by build-id, STORE/ready is there when
there are tools for every root file system, and STORE/reason says why there are none.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from daemons import Daemon


class Storing(Daemon):
    """A daemon with a store in `store`. Daemons share one in tests, as in life."""

    def __init__(self, config: str = "", **options: Any) -> None:
        self.store = Path(tempfile.mkdtemp(prefix="maid-store-"))
        self.store.chmod(0o755)
        (self.store / "id").mkdir()
        super().__init__(config, prelude=[sys.executable, __file__, str(self.store)], **options)

    def name(self, names: dict[str, str]) -> None:
        """Give the tools with these build-ids, in hexadecimal, names."""
        (self.store / "names.json").write_text(json.dumps(names))

    def ready(self, reason: str = "") -> None:
        """Say that there are tools for every root file system, or with `reason` why not."""
        (self.store / "ready").write_text(reason)

    def remove(self) -> None:
        """As the base class; the store goes too."""
        super().remove()
        import shutil

        shutil.rmtree(self.store)


@dataclass(frozen=True)
class Seen:
    """What the store says of a root file system."""

    ready: bool
    reason: str


class Directory:
    """The store's interface to a step (maid.steps.accelerate.NativeStore)."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._root = os.open(path, os.O_PATH | os.O_DIRECTORY)

    def root(self) -> int | None:
        """A descriptor of the directory."""
        return self._root

    async def seen(self, rootfs: int, *, wait: bool, require: bool, trusted: bool) -> Seen:
        """What `Storing.ready` was told."""
        try:
            reason = Path(self._path, "ready").read_text()
        except FileNotFoundError:
            reason = "the test has none"
        return Seen(not reason, reason)

    def tools_of(self, ids: Iterable[bytes]) -> dict[bytes, str]:
        """What `Storing.name` was told."""
        names = json.loads(Path(self._path, "names.json").read_text())
        return {build: names[build.hex()] for build in ids if build.hex() in names}


def main() -> None:
    """Run the command line with the store in place of maid's own."""
    from maid.service import core
    from maid.steps.runner import Runner

    directory = Directory(sys.argv[1])

    def runner(machine: Any, _: Any, emit: Any, choose_runtime: Any) -> Runner:
        return Runner(machine, directory, emit, choose_runtime)

    core.Runner = runner  # type: ignore[assignment, misc]
    sys.argv = sys.argv[2:]
    from maid.cli.app import main as maid

    maid()


if __name__ == "__main__":
    main()
