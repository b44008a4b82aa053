"""Which interpreters are on this machine, and which is best for a target.

They are found by name, in the places of the configuration, PATH and the distributions; what each
one is, maid.emulation.identity sees, and how good, the table of maid.emulation.ratings says. What
turns out to be unusable is listed too, with the reason, because somebody may be looking for it.

Identities are cached by inode, size and time of change, so that a daemon which starts again reads
and runs none of the programs. The module registers nothing.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import msgspec

from maid.config import Config
from maid.emulation.identity import ROSETTA, Interpreter, Kind, identify
from maid.emulation.ratings import Level, Rating, Version, known
from maid.emulation.targets import TARGETS, Target, own

__all__ = [
    "IdentityCache",
    "Interpreter",
    "Kind",
    "Level",
    "Rating",
    "best",
    "find",
    "identify",
    "identify_all",
    "rate",
    "search_places",
]

# Where distributions put them when PATH does not say. Debian: qemu-TARGET-static in /usr/bin up to
# 12, qemu-TARGET since, and TARGET-binfmt-P in /usr/libexec/qemu-binfmt. Fedora, Arch, Alpine and
# openSUSE: /usr/bin. BuildKit's image: /usr/bin/buildkit-qemu-TARGET.
_DIRECTORIES = tuple(map(Path, ("/usr/local/bin", "/usr/bin", "/usr/libexec/qemu-binfmt")))

# Interpreters of other makers: file names for each target.
_OTHERS = {
    "x86_64": ("box64", "FEXInterpreter", "FEX"),
    "i386": ("box32", "box86", "FEXInterpreter", "FEX"),
    "i486": ("box32", "box86", "FEXInterpreter", "FEX"),
}


def search_places(config: Config) -> list[Path]:
    """Directories and files to look in, in order, each once: configuration, PATH, distributions."""
    path = [Path(each) for each in os.environ.get("PATH", "").split(":") if each.startswith("/")]
    places = [*config.emulation.interpreters, *path, *_DIRECTORIES, *ROSETTA]
    return list(dict.fromkeys(places))


def find(target: Target, config: Config) -> list[Path]:
    """Files that may be interpreters for `target`, in the order of `search_places`.

    Only the one that the configuration names for the target, if it does. A file is listed once,
    whatever links lead to it. A program that the configuration lists under `interpreters` is there
    whatever it is called.
    """
    return _find(target, config, _listing(config))


def rate(interpreter: Interpreter, target: Target, kernel: Version | None = None) -> Rating:
    """How good `interpreter` is for `target` on a Linux of `kernel`, by default the running one.

    The worst that is known of its version, or that it is unusable and why.
    """
    if interpreter.rating.level is Level.UNUSABLE:
        return interpreter.rating
    if target.name not in interpreter.targets:
        emulates = " and ".join(interpreter.targets) or "something that maid does not know"
        return Rating(Level.UNUSABLE, f"{interpreter.path} emulates {emulates}, not {target.name}")
    if interpreter.name is not Kind.QEMU:
        return interpreter.rating
    rows = known(
        target.name,
        interpreter.version,
        interpreter.machine,
        _kernel() if kernel is None else kernel,
        interpreter.fixed,
    )
    if not rows:
        return interpreter.rating
    version = ".".join(map(str, interpreter.version))
    return Rating(rows[0].level, f"QEMU {version}: {rows[0].symptom}", rows[0].sources[0])


def best(
    candidates: Iterable[Interpreter], target: Target, kernel: Version | None = None
) -> Interpreter | None:
    """The best of `candidates` for `target`, None when none is usable.

    Static before dynamic, then by rating, then QEMU before others (whose version numbers say
    nothing of QEMU's), then the newest, then the order of `candidates`.
    """
    chosen: Interpreter | None = None
    highest: tuple[object, ...] = ()
    for each in candidates:
        level = rate(each, target, kernel).level
        merit = (each.static, level, each.name is Kind.QEMU, each.version)
        if level is not Level.UNUSABLE and (chosen is None or merit > highest):
            chosen, highest = each, merit
    return chosen


class IdentityCache:
    """What was found out about files, kept in a file below the state directory `state`.

    An identity holds for a path as long as device, inode, size and time of change are the same. A
    cache that cannot be read, or is of another version of maid's, is empty. Not for several threads
    at once.
    """

    def __init__(self, state: Path) -> None:
        self._file = state / "interpreters.json"
        self._saved: dict[Path, Interpreter] | None = None
        self._used: dict[Path, Interpreter] = {}

    def get(self, path: Path) -> Interpreter | None:
        """The identity of the file that is at `path` now, None when it is not known."""
        identity = self._used.get(path) or self._loaded().get(path)
        try:
            status = path.stat()
        except OSError:
            return None
        now = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        if identity is None or now != (
            identity.device,
            identity.inode,
            identity.size,
            identity.mtime_ns,
        ):
            return None
        self._used[path] = identity
        return identity

    def put(self, interpreter: Interpreter) -> None:
        """Keep an identity, unless the program is unusable: its trouble may have been passing."""
        if interpreter.rating.level is not Level.UNUSABLE:
            self._used[interpreter.path] = interpreter

    def save(self) -> None:
        """Write what has been got and put, if that is not what is written; the rest is forgotten.

        Raises OSError when the state directory cannot be written.
        """
        if self._used == self._loaded():
            return
        self._file.parent.mkdir(parents=True, exist_ok=True)
        content = msgspec.json.encode(
            _Saved(_FORMAT, own(), list(self._used.values())), enc_hook=str
        )
        with tempfile.NamedTemporaryFile(
            dir=self._file.parent, prefix=".interpreters.", delete=False
        ) as file:
            try:
                file.write(content)
                file.flush()
                os.replace(file.name, self._file)
            except BaseException:
                os.unlink(file.name)
                raise
        self._saved = dict(self._used)

    def _loaded(self) -> dict[Path, Interpreter]:
        if self._saved is None:
            self._saved = self._load()
        return self._saved

    def _load(self) -> dict[Path, Interpreter]:
        try:
            saved = msgspec.json.decode(self._file.read_bytes(), type=_Saved, dec_hook=_decode)
        except (OSError, msgspec.MsgspecError):
            return {}
        if (saved.format, saved.machine) != (_FORMAT, own()):
            return {}
        return {each.path: each for each in saved.interpreters}


def identify_all(
    targets: Iterable[Target], config: Config, cache: IdentityCache
) -> dict[str, list[Interpreter]]:
    """Find and identify the interpreters of `targets`, several at a time.

    Returns, for the name of each target, what was found for it in the order of `find`: unusable
    ones too, so that it can be said why, and each file once. Updates `cache`; that it cannot be
    written is no error, since it only saves time.
    """
    listing = _listing(config)
    found = {target.name: _find(target, config, listing) for target in targets}
    paths = list(dict.fromkeys(path for paths in found.values() for path in paths))
    identities = {path: identity for path in paths if (identity := cache.get(path))}
    missing = [path for path in paths if path not in identities]
    if missing:
        trusted = {each.interpreter for each in config.emulation.target.values()}
        from concurrent.futures import ThreadPoolExecutor

        # Most of the time is waiting for programs to start and for hashes, which both leave
        # Python's lock alone.
        with ThreadPoolExecutor(max_workers=2 * (os.cpu_count() or 1)) as pool:
            for identity in pool.map(identify, missing, (path in trusted for path in missing)):
                identities[identity.path] = identity
                cache.put(identity)
    with contextlib.suppress(OSError):
        cache.save()
    return {
        name: [
            identity
            for path in paths
            for identity in [_for_target(identities[path], name, config)]
            if name in identity.targets or _meant_for(path, name, config)
        ]
        for name, paths in found.items()
    }


def _for_target(interpreter: Interpreter, target: str, config: Config) -> Interpreter:
    """With the administrator's word for what a program emulates that does not say so itself."""
    chosen = interpreter.path == config.emulation.settings(target).interpreter
    if chosen and interpreter.name is Kind.OTHER and not interpreter.targets:
        return replace(interpreter, targets=(target,))
    return interpreter


# A new number whenever Interpreter or what `identify` means by it changes.
_FORMAT = 1


class _Saved(msgspec.Struct, frozen=True):
    format: int
    machine: str
    interpreters: list[Interpreter]


def _decode(kind: type, raw: object) -> Path:
    if kind is Path and isinstance(raw, str):
        return Path(raw)
    raise NotImplementedError(kind)


def _kernel() -> Version:
    """The running Linux's version: 6.1.0-13-amd64 is (6, 1, 0)."""
    numbers = re.match(r"\d+(\.\d+)*", os.uname().release)
    return tuple(map(int, numbers[0].split("."))) if numbers else ()


# Finding


def _names(target: str) -> tuple[str, ...]:
    """What the interpreters of a target are called."""
    emulator = TARGETS[target].emulator
    return (
        f"qemu-{emulator}-static",
        f"qemu-{emulator}",
        f"{emulator}-binfmt-P",
        *_OTHERS.get(target, ()),
        f"buildkit-qemu-{emulator}",
    )


def _meant_for(path: Path, target: str, config: Config) -> bool:
    """Whether somebody would look for `path` under the target, whatever it turned out to be."""
    return path.name in _names(target) or path == config.emulation.settings(target).interpreter


# For each place, in order, the names in a directory; None for a file that was named itself.
_Listing = list[tuple[Path, frozenset[str] | None]]


def _listing(config: Config) -> _Listing:
    """The contents of the search places: 35 targets with five names each would be many stats."""
    listing: _Listing = []
    for place in search_places(config):
        try:
            listing.append((place, frozenset(os.listdir(place))))
        except NotADirectoryError:
            listing.append((place, None))
        except OSError:
            continue
    return listing


def _find(target: Target, config: Config, listing: _Listing) -> list[Path]:
    chosen = config.emulation.settings(target.name).interpreter
    if chosen is not None:
        return [chosen]
    return list(_each_once(_candidates(target.name, listing)))


def _candidates(target: str, listing: _Listing) -> Iterator[Path]:
    for place, content in listing:
        if content is not None:
            yield from (place / name for name in _names(target) if name in content)
        elif place not in ROSETTA or target == "x86_64":
            yield place


def _each_once(paths: Iterable[Path]) -> Iterator[Path]:
    seen = set()
    for path in paths:
        try:
            status = path.stat()
        except OSError:
            continue
        if (status.st_dev, status.st_ino) in seen or not os.access(path, os.X_OK):
            continue
        seen.add((status.st_dev, status.st_ino))
        yield path
