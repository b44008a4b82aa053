"""Fill the store with one release for one foreign architecture: from its archive to a new set.

It runs as a process of its own (`python -m maid.acceleration.fill`), started by manager.py with a
request on standard input, because package lists take hundreds of megabytes and minutes may pass. It
writes one JSON document a line: what it is doing, and last what came of it.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import msgspec

from maid.acceleration import distributions, prove, selecting, sets, tools
from maid.acceleration.archive import Archive, ArchiveError, Tell
from maid.acceleration.distributions import DISTRIBUTIONS
from maid.acceleration.making import Maker
from maid.acceleration.model import MACHINES, Machine, Place
from maid.acceleration.roots import Roots
from maid.acceleration.sets import Manifest
from maid.acceleration.store import WORK, Store
from maid.errors import MaidError


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What to fill in. `state` is maid's state directory, `installed` the versions of a root file
    system's packages ({} for the newest of everything), `named` the archives its package sources
    name, `mirrors` are configured ones, `keyrings` configured files of keys, `keys` the root whose
    own keys are trusted ("/" for this machine's)."""

    state: str
    distribution: str
    codename: str
    native: str
    foreign: str
    installed: dict[str, str] = {}
    named: list[str] = []
    mirrors: list[str] = []
    keyrings: list[str] = []
    keys: str = "/"
    tools: tuple[str, ...] = ("*",)
    native_root: str = ""
    foreign_root: str = ""


class Progress(msgspec.Struct, frozen=True, kw_only=True, tag="progress"):
    """A step, in a few words."""

    doing: str


class Done(msgspec.Struct, frozen=True, kw_only=True, tag="done"):
    """The set that has what was asked for, and whether it is new; `tools` are counted, `size` is in
    bytes, `left` are the tools that stay emulated."""

    set: str
    new: bool
    tools: int
    size: int
    left: list[sets.Left]


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag="failed"):
    """Nothing was changed."""

    message: str
    hint: str


Message = Progress | Done | Failed


def fill(request: Request, tell: Tell) -> Done:
    """Do what is asked. Raises MaidError; nothing is left behind then but apt's lists and the
    packages that were fetched."""
    native, foreign = machine(request.native), machine(request.foreign)
    state = Path(request.state)
    store = Store(state / "store", state / "acceleration")
    with store.making(lambda: tell("waiting for another one that fills the store")):
        return _from_source(request, state, store, native, foreign, tell)


def _from_source(
    request: Request, state: Path, store: Store, native: Machine, foreign: Machine, tell: Tell
) -> Done:
    if request.native_root:
        roots = Roots(Path(request.native_root), Path(request.foreign_root), native, foreign)
        return _fill(request, roots, request.native_root, store, tell)
    distribution = DISTRIBUTIONS.get(request.distribution)
    if distribution is None:
        raise ArchiveError(
            f"{request.distribution} is not a distribution maid has native tools for",
            f"there are: {', '.join(DISTRIBUTIONS)}",
        )
    place = state / "acceleration" / f"{distribution.name}-{request.codename}-{foreign.debian}"
    keyrings = distributions.keyrings(distribution, map(Path, request.keyrings), Path(request.keys))
    if not keyrings and request.keys != "/":
        raise ArchiveError(
            f"{request.keys} has no keys of {distribution.name}'s archive",
            f"they are {distribution.keyrings[0]} in /usr/share/keyrings of a root file system",
        )
    archive = Archive(place / "apt", distribution, request.codename, native, foreign, keyrings)
    tell("asking the archive")
    lists = (request.mirrors, distributions.machine_mirrors(), request.named)
    mirror = archive.update(distributions.mirrors(distribution, lists))
    return _fill(request, archive, mirror.main, store, tell)


def _fill(request: Request, source: Archive | Roots, origin: str, store: Store, tell: Tell) -> Done:
    selection = selecting.select(tools.chosen(request.tools), source, request.installed)
    if not selection.pairs:
        raise ArchiveError(
            f"{request.distribution} {request.codename} has no native tool for {request.foreign}"
            " in these versions",
            selection.left[0].reason if selection.left else "",
        )
    name = selection.name(request.distribution, request.codename, request.native, request.foreign)
    known = store.get(name)
    if known is not None:
        store.used(name)
        return _done(known, [*selection.left, *known.left], new=False)
    natives = selecting.natives(selection, source, request.installed)
    foreigns = selecting.foreigns(selection, source, request.installed)
    root = store.new(name)
    try:
        with tempfile.TemporaryDirectory(prefix=WORK, dir=store.notes) as work:
            unpacked = source.unpacked(natives, foreigns, Path(work), tell)
            maker = Maker(Place(name, root, source.native, source.foreign), *unpacked, selection)
            tell(f"relocating {len(selection.pairs)} tools")
            for pair in selection.pairs:
                maker.add(pair)
        tell(f"trying {len(maker.entries)} tools")
        maker.drop(prove.programs(maker.place, [each.program for each in maker.entries]))
        sizes, digests = sets.measure(root)
        manifest = Manifest(
            format=sets.FORMAT,
            name=name,
            distribution=request.distribution,
            codename=request.codename,
            native=request.native,
            foreign=request.foreign,
            tables=tools.digest(),
            made=time.time(),
            mirror=origin,
            packages=sorted(package.spelled for package in natives | foreigns),
            entries=maker.entries,
            left=[*selection.left, *maker.left],
            sizes=sizes,
            digests=digests,
        )
        tell("publishing")
        store.publish(root, manifest)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    return _done(manifest, manifest.left, new=True)


def machine(name: str) -> Machine:
    """The machine of that Debian name. Raises ArchiveError."""
    if name not in MACHINES:
        raise ArchiveError(
            f"{name} is not an architecture of Debian that maid knows", f"try {', '.join(MACHINES)}"
        )
    return MACHINES[name]


def _done(manifest: Manifest, left: list[sets.Left], new: bool) -> Done:
    return Done(
        set=manifest.name,
        new=new,
        tools=len(manifest.entries),
        size=manifest.size,
        left=left,
    )


def main() -> int:
    """Read a request, fill the store, tell of it. Exit status 0, or 1 when it failed."""

    def say(message: Message) -> None:
        sys.stdout.buffer.write(msgspec.json.encode(message) + b"\n")
        sys.stdout.buffer.flush()

    os.umask(0o022)
    try:
        request = msgspec.json.decode(sys.stdin.buffer.read(), type=Request)
        say(fill(request, lambda words: say(Progress(doing=words))))
    except MaidError as error:
        say(Failed(message=error.message, hint=error.hint))
        return 1
    except (OSError, msgspec.MsgspecError) as error:
        say(Failed(message=f"the store could not be filled: {error}", hint=""))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
