"""A keeper on a real private instance, for tests: nothing of it is left behind.

`keeping()` pins an instance in a temporary directory and starts a keeper on it with the real
interpreters of this machine.
"""

import asyncio
import contextlib
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from maid.binfmt import namespace
from maid.binfmt.entry import Entry
from maid.binfmt.namespace import Pinned
from maid.config import Config, Prefer, Scope, load
from maid.emulation import emulators
from maid.emulation.emulators import Choice, Offer
from maid.emulation.interpreters import IdentityCache
from maid.emulation.keeper import Keeper
from maid.emulation.ledger import Ledger
from maid.emulation.probes import Prober
from maid.emulation.targets import TARGETS, Target, own

SERVED = ("aarch64", "s390x", "riscv64")


def cache_directory() -> Path:
    """Where what is slow to make is kept between runs: outside the checkout."""
    home = os.environ.get("MAID_CACHE") or os.path.expanduser("~/.cache/maid")
    return Path(home) / "state"


def configuration(tmp_path: Path) -> Config:
    """A configuration for `tmp_path` whose state (copies of interpreters) is shared by all runs."""
    state = cache_directory()
    state.mkdir(parents=True, exist_ok=True)
    file = tmp_path / "maid.toml"
    file.write_text(f'[paths]\nstate = "{state}"\nruntime = "{tmp_path}/runtime"\n')
    return load(file, Scope.PRIVATE, tmp_path / "io.maid")


def choices(config: Config, names: tuple[str, ...] = SERVED) -> dict[str, Choice]:
    """What could be registered for these targets; skips where an interpreter is missing."""
    targets = [TARGETS[name] for name in names]
    found = emulators.choose(targets, config, IdentityCache(config.paths.state))
    for choice in found.values():
        if not choice.offers:
            pytest.skip(f"{choice.target.name}: {choice.problem}")
    return found


@dataclass
class Kept:
    """A keeper under test, the instance it keeps, and the events it told."""

    keeper: Keeper
    pinned: Pinned
    choices: dict[str, Choice]
    events: list[tuple[str, str, str]] = field(default_factory=list)

    def kinds(self, target: str = "") -> list[str]:
        """The kinds of the events about `target`."""
        return [kind for kind, name, _ in self.events if name == target]

    async def until(self, true: Callable[[], bool], what: str, seconds: float = 10.0) -> None:
        """Wait for something to become true; fails with `what` when it does not."""
        for _ in range(int(seconds / 0.01)):
            if true():
                return
            await asyncio.sleep(0.01)
        pytest.fail(f"not within {seconds} s: {what}; events: {self.events[-8:]}")

    async def until_ready(self, *names: str) -> None:
        """Wait until these targets are proven as the table is now."""
        for name in names or tuple(self.choices):
            await self.until(lambda name=name: self.keeper.proven(name), f"{name} is ready")  # type: ignore[misc]

    def table(self) -> dict[str, Entry]:
        """The table as the kernel shows it."""
        return dict(self.pinned.instance.entries())


@contextlib.contextmanager
def pinned_at(directory: Path) -> Iterator[Pinned]:
    """A pinned instance that is released whatever happens."""
    pinned = namespace.create(str(directory), namespace.identity())
    try:
        yield pinned
    finally:
        Pinned(pinned.directory, pinned.mapping).release()


@contextlib.asynccontextmanager
async def keeping(
    tmp_path: Path,
    found: dict[str, Choice],
    *,
    prefer: Prefer = Prefer.ADOPT,
    before: Callable[[Pinned], None] = lambda _: None,
    settle: bool = True,
    guarded: bool = False,
) -> AsyncIterator[Kept]:
    """A keeper that serves `found`; `before` prepares the instance before it starts."""
    prober = Prober(str(tmp_path / "probes"), 10.0)
    prober.write([choice.target for choice in found.values()])
    with pinned_at(tmp_path / "instance") as pinned:
        before(pinned)
        events: list[tuple[str, str, str]] = []

        def remount() -> None:
            try:
                pinned.mount_again()
            except namespace.NamespaceError:
                namespace.create(pinned.directory, pinned.mapping)

        keeper = Keeper(
            pinned.instance,
            Ledger(str(tmp_path / "ledger.json")),
            prober,
            prefer=prefer,
            emit=lambda *event: events.append(event),
            remount=remount,
            open_user=pinned.open_user,
            guarded=guarded,
        )
        keeper.start(found, found)
        try:
            if settle:
                await keeper.settle()
            yield Kept(keeper, pinned, found, events)
        finally:
            keeper.stop()


def another(kept: Kept, tmp_path: Path, *, guarded: bool = False) -> Keeper:
    """The keeper of another daemon for the same instance, after that of `kept`; not started."""
    return Keeper(
        kept.pinned.instance,
        Ledger(str(tmp_path / "ledger.json")),
        kept.keeper._prober,
        prefer=Prefer.ADOPT,
        emit=lambda *_: None,
        remount=lambda: None,
        open_user=kept.pinned.open_user,
        guarded=guarded,
    )


def plain(target: Target, path: str | os.PathLike[str], flags: str = "F") -> Entry:
    """An entry of somebody else's for `target`."""
    return Entry(f"qemu-{target.name}", str(path), target.magic, target.mask, flags)


def qemu(name: str) -> str:
    """The path of the installed static QEMU for the target `name`."""
    for candidate in (f"qemu-{name}-static", f"qemu-{name}"):
        if path := shutil.which(candidate):
            return path
    pytest.skip(f"there is no QEMU for {name}")


def with_offers(choice: Choice, *offers: Offer) -> dict[str, Choice]:
    """The same choice with other offers."""
    return {choice.target.name: replace(choice, offers=offers)}


def offer_of(choice: Choice, path: Path) -> Offer:
    """An offer of the file `path` instead of the choice's interpreter."""
    status = path.stat()
    base = choice.offers[-1]
    return replace(
        base,
        path=str(path),
        device=status.st_dev,
        inode=status.st_ino,
        sha256=f"{status.st_ino}",
        interpreter=replace(base.interpreter, path=path),
    )


def execute(
    pinned: Pinned, root: Path, program: str = "/probe"
) -> subprocess.CompletedProcess[bytes]:
    """Execute a program of `root` inside the instance's namespace, by util-linux: not by maid."""
    command = ["nsenter", f"--user={pinned.user}", "chroot", str(root), program]
    return subprocess.run(command, capture_output=True, timeout=30)


OWN = own()
