"""Which interpreters are on this machine, what they are, and which is best for a target.

An interpreter is found by name, but never believed by name: its ELF headers say whether it is a
static program of this machine, its own `--version` what it emulates and how old it is, its SHA-256
which bytes they are. A script in front of an emulator, QEMU's machine emulator (qemu-system-*) and
a program of another architecture are not interpreters: they are listed as unusable, with the
reason, because somebody may be looking for them.

Identities are cached by inode, size and time of change, so that a daemon which starts again reads
and runs none of the programs. The module registers nothing and knows nothing of binfmt_misc, save
that flag F needs a static program: it has the kernel open the interpreter once, at registration,
and a dynamic one would look for its loader and libraries in the container of whoever uses it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import select
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

import msgspec

from maid import elf
from maid.config import Config
from maid.emulation.ratings import Level, Rating, Version, known
from maid.emulation.targets import TARGETS, Target, for_header, own
from maid.errors import MaidError

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

VERSION_TIMEOUT = 5.0
"""How long `--version` may take, in seconds. QEMU answers in some 10 ms; a busy machine may not."""

_OUTPUT_LIMIT = 16384

# Where distributions put them when PATH does not say. Debian: qemu-TARGET-static in /usr/bin up to
# 12, qemu-TARGET since, and TARGET-binfmt-P in /usr/libexec/qemu-binfmt. Fedora, Arch, Alpine and
# openSUSE: /usr/bin. BuildKit's image: /usr/bin/buildkit-qemu-TARGET.
_DIRECTORIES = tuple(map(Path, ("/usr/local/bin", "/usr/bin", "/usr/libexec/qemu-binfmt")))

# Apple's Rosetta for Linux, as Lima and as other virtual machines mount it.
_ROSETTA = (Path("/mnt/lima-rosetta/rosetta"), Path("/media/rosetta/rosetta"))

# Interpreters of other makers: file names for each target.
_OTHERS = {
    "x86_64": ("box64", "FEXInterpreter", "FEX"),
    "i386": ("box32", "box86", "FEXInterpreter", "FEX"),
    "i486": ("box32", "box86", "FEXInterpreter", "FEX"),
}


class Kind(StrEnum):
    """Who made an interpreter."""

    QEMU = "qemu"
    BOX64 = "box64"
    BOX32 = "box32"
    FEX = "fex"
    ROSETTA = "rosetta"
    OTHER = "other"


# What the programs say of themselves, to be found in the output of --version, with their targets;
# for QEMU the target is in the output. Box64 (src/build_info.c) runs i386 programs too where it was
# built with Box32, which the text does not tell: only a probe can.
_SAYS: tuple[tuple[Kind, re.Pattern[str], tuple[str, ...]], ...] = (
    (Kind.QEMU, re.compile(r"^qemu-(?P<target>\w+) version (?P<version>\d+(\.\d+)*)", re.M), ()),
    (Kind.BOX64, re.compile(r"^Box64\b.* v(?P<version>\d+(\.\d+)*)", re.M), ("x86_64",)),
    (Kind.BOX32, re.compile(r"^Box(32|86)\b.* v(?P<version>\d+(\.\d+)*)", re.M), ("i386", "i486")),
    (
        Kind.FEX,
        re.compile(r"^FEX-Emu \(FEX-(?P<version>\d+(\.\d+)*)", re.M),
        ("x86_64", "i386", "i486"),
    ),
)
_SYSTEM = re.compile(r"^QEMU emulator version ", re.M)

_NOTHING_KNOWN = Rating()


@dataclass(frozen=True)
class Interpreter:
    """One program, as it was when it was identified.

    `path` is where it was found; `device`, `inode`, `size` (bytes) and `mtime_ns` are stat's,
    `sha256` is in lower-case hexadecimal. `targets` are the names of what it emulates; `version` is
    () where it has none, `version_text` its own first line. `static`: it needs no loader. `fixed`:
    it is no position-independent program. `machine` is the name of the target that it is itself a
    program of. `rating` says whether it is an interpreter at all: how good it is for a target is
    `rate`'s to say. Of one that is unusable only what was needed to see that is filled in.
    """

    path: Path
    name: Kind = Kind.OTHER
    targets: tuple[str, ...] = ()
    version: Version = ()
    version_text: str = ""
    static: bool = False
    fixed: bool = False
    machine: str = ""
    sha256: str = ""
    device: int = 0
    inode: int = 0
    size: int = 0
    mtime_ns: int = 0
    rating: Rating = _NOTHING_KNOWN

    @property
    def usable_with_f(self) -> bool:
        """Whether it can be registered with flag F, and so serve containers and chroots."""
        return self.static and self.rating.level > Level.UNUSABLE


def search_places(config: Config) -> list[Path]:
    """Directories and files to look in, in order, each once: configuration, PATH, distributions."""
    path = [Path(each) for each in os.environ.get("PATH", "").split(":") if each.startswith("/")]
    places = [*config.emulation.interpreters, *path, *_DIRECTORIES, *_ROSETTA]
    return list(dict.fromkeys(places))


def find(target: Target, config: Config) -> list[Path]:
    """Files that may be interpreters for `target`, in the order of `search_places`.

    Only the one that the configuration names for the target, if it does. A file is listed once,
    whatever links lead to it. A program that the configuration lists under `interpreters` is there
    whatever it is called.
    """
    return _find(target, config, _listing(config))


def identify(path: Path) -> Interpreter:
    """Read and run the program at `path` to see what it is.

    Never raises for what the program is or does: what is no interpreter for this machine comes back
    with a rating of UNUSABLE that says why. The program runs with an empty environment, no
    descriptor but the standard ones, and for at most VERSION_TIMEOUT seconds.
    Raises MaidError on a machine that no target describes (targets.own).
    """
    try:
        # O_NONBLOCK: opening a FIFO must not wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        return _unusable(Interpreter(path), f"cannot be read: {error.strerror}")
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        interpreter = Interpreter(
            path,
            device=status.st_dev,
            inode=status.st_ino,
            size=status.st_size,
            mtime_ns=status.st_mtime_ns,
        )
        if not stat.S_ISREG(status.st_mode):
            return _unusable(interpreter, "is not a regular file")
        start = os.pread(descriptor, 64, 0)
        if start.startswith(b"#!"):
            return _unusable(interpreter, "is a script; the kernel needs the emulator itself")
        try:
            headers = elf.read(descriptor)
        except (MaidError, OSError) as error:
            return _unusable(interpreter, f"is not a program: {_sentence(error)}")
        machine = for_header(start)
        interpreter = replace(
            interpreter,
            static=headers.static,
            fixed=headers.type == elf.ET_EXEC,
            machine=machine.name if machine else "",
        )
        if interpreter.machine != own():
            return _unusable(
                interpreter,
                f"is a program for {interpreter.machine or f'machine {headers.machine}'},"
                f" this machine is {own()}",
            )
        interpreter = _ask(interpreter, descriptor)
        if interpreter.rating.level is Level.UNUSABLE:
            return interpreter
        return replace(interpreter, sha256=hashlib.file_digest(file, "sha256").hexdigest())


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
        from concurrent.futures import ThreadPoolExecutor

        # Most of the time is waiting for programs to start and for hashes, which both leave
        # Python's lock alone.
        with ThreadPoolExecutor(max_workers=2 * (os.cpu_count() or 1)) as pool:
            for identity in pool.map(identify, missing):
                identities[identity.path] = identity
                cache.put(identity)
    with contextlib.suppress(OSError):
        cache.save()
    return {
        name: [
            identity
            for path in paths
            for identity in [_configured(identities[path], name, config)]
            if name in identity.targets or _meant_for(path, name, config)
        ]
        for name, paths in found.items()
    }


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


def _unusable(interpreter: Interpreter, reason: str) -> Interpreter:
    return replace(interpreter, rating=Rating(Level.UNUSABLE, f"{interpreter.path} {reason}"))


def _sentence(error: MaidError | OSError) -> str:
    return error.message if isinstance(error, MaidError) else str(error.strerror)


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
        elif place not in _ROSETTA or target == "x86_64":
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


def _configured(interpreter: Interpreter, target: str, config: Config) -> Interpreter:
    """The administrator's word for what a program is that does not say so itself."""
    if (
        interpreter.path == config.emulation.settings(target).interpreter
        and interpreter.name is Kind.OTHER
        and interpreter.machine == own()
    ):
        reason = f"{interpreter.path} is used because the configuration says so"
        return replace(interpreter, targets=(target,), rating=Rating(Level.SUSPECT, reason))
    return interpreter


# Asking


def _ask(interpreter: Interpreter, descriptor: int) -> Interpreter:
    """Have the program say what it is; `descriptor` is the open file that was read."""
    if interpreter.path in _ROSETTA or interpreter.path.name == "rosetta":
        # It has no --version and runs nothing but x86-64 programs.
        return replace(interpreter, name=Kind.ROSETTA, targets=("x86_64",))
    try:
        output, how = _run(interpreter.path, descriptor)
    except OSError as error:
        return _unusable(interpreter, f"cannot be executed: {error.strerror}")
    except TimeoutError:
        return _unusable(interpreter, f"did not answer --version within {VERSION_TIMEOUT:g} s")
    first = next(iter(output.strip().splitlines()), "")
    interpreter = replace(interpreter, version_text=_printable(first))
    if _SYSTEM.search(output):
        return _unusable(
            interpreter,
            "emulates whole machines; single programs need QEMU's user mode (qemu-user-static)",
        )
    for kind, pattern, targets in _SAYS:
        said = pattern.search(output)
        if said is None:
            continue
        version = tuple(int(number) for number in said["version"].split("."))
        if kind is Kind.QEMU:
            targets = tuple(each for each in TARGETS if TARGETS[each].emulator == said["target"])
        return replace(interpreter, name=kind, targets=targets, version=version)
    answer = f"says {interpreter.version_text!r}" if first else "says nothing"
    return _unusable(interpreter, f"is no emulator that maid knows: to --version it {answer}{how}")


def _printable(text: str) -> str:
    return "".join(each if each.isprintable() else "?" for each in text[:200])


def _run(path: Path, descriptor: int) -> tuple[str, str]:
    """What the program prints for `--version`, both streams, and how it ended in words, or "".

    It is the file behind `descriptor` that runs, even when another has taken its path since. Raises
    OSError when it cannot be executed, TimeoutError when it does not end.
    """
    deadline = time.monotonic() + VERSION_TIMEOUT
    process = subprocess.Popen(
        [path, "--version"],
        executable=f"/proc/{os.getpid()}/fd/{descriptor}",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd="/",
        env={"LC_ALL": "C"},
        start_new_session=True,
    )
    with process, _ending(process) as ended:
        assert process.stdout is not None
        output = _read(process.stdout.fileno(), deadline)
        talks_on = len(output) == _OUTPUT_LIMIT
        if not talks_on and not _ready(ended, deadline):
            raise TimeoutError
    text, status = output.decode(errors="replace"), process.returncode
    if talks_on:
        return text, " and does not stop"
    if status < 0:
        return text, f" and dies of signal {-status}"
    return text, f" and exits {status}" if status else ""


@contextlib.contextmanager
def _ending(process: subprocess.Popen[bytes]) -> Iterator[int]:
    """A descriptor that becomes readable when the process ends; its session is killed at last.

    The whole session, as the program may have started others that hold its pipe. Until the process
    is waited for, which is later, nobody else can get its number.
    """
    descriptor = os.pidfd_open(process.pid)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _read(pipe: int, deadline: float) -> bytes:
    """Up to _OUTPUT_LIMIT bytes of a pipe, to its end. Raises TimeoutError."""
    output = b""
    while len(output) < _OUTPUT_LIMIT:
        if not _ready(pipe, deadline):
            raise TimeoutError
        read = os.read(pipe, _OUTPUT_LIMIT - len(output))
        if not read:
            break
        output += read
    return output


def _ready(descriptor: int, deadline: float) -> bool:
    """Wait until `descriptor` can be read or has ended; False when that is after `deadline`."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(max(deadline - time.monotonic(), 0) * 1000))
