"""What could be registered for each target: the interpreters found here, best first.

For a target with a CPU model, and for one of an OCI platform where there is a native store, that is
maid's copy of the interpreter with the front (bake.py), then the plain one for where the copy fails
its probe. Knows the files and the flags; what is in the table and what happens to it is the
keeper's.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from maid import native
from maid.binfmt.entry import INTERPRETER_LIMIT, Entry, ordered_flags
from maid.config import Accelerate, Config
from maid.emulation import bake, interpreters
from maid.emulation.interpreters import IdentityCache, Interpreter
from maid.emulation.ledger import Record
from maid.emulation.ratings import Rating
from maid.emulation.targets import Target
from maid.errors import MaidError

log = logging.getLogger(__name__)

ARGV0_KERNEL = (5, 12)
"""First Linux that tells the interpreter of flag P (AT_FLAGS_PRESERVE_ARGV0)."""

ARGV0_QEMU = (6, 0)
"""First QEMU whose linux-user reads AT_FLAGS_PRESERVE_ARGV0."""


@dataclass(frozen=True)
class Offer:
    """One file that could serve a target: `path` with `flags`, whose identity is that of the file
    itself; `interpreter` is the program it is a copy of, or itself; `cpu` the model that is baked
    into it, "" for the interpreter's default."""

    target: Target
    path: str
    flags: str
    device: int
    inode: int
    sha256: str
    interpreter: Interpreter
    rating: Rating
    cpu: str = ""

    @property
    def baked(self) -> bool:
        """Whether it is maid's copy with the front."""
        return self.path != str(self.interpreter.path)

    def entry(self, name: str) -> Entry:
        """The registration of this offer under `name`."""
        return Entry(name, self.path, self.target.magic, self.target.mask, self.flags)

    def record(self, name: str) -> Record:
        """The ledger's record of that registration."""
        return Record(
            target=self.target.name,
            name=name,
            interpreter=self.path,
            magic=self.target.magic.hex(),
            mask=self.target.mask.hex(),
            flags=self.flags,
            offset=0,
            device=self.device,
            inode=self.inode,
            sha256=self.sha256,
            baked=self.baked,
        )

    def is_behind(self, record: Record) -> bool:
        """Whether `record` is a registration of exactly this file, with these flags."""
        return self.record(record.name) == record

    def difference(self, record: Record) -> str:
        """In words, why `record` has to be renewed to become this offer."""
        if record.interpreter != self.path:
            return f"interpreter {record.interpreter} -> {self.path}"
        if record.flags != self.flags:
            return f"flags {record.flags} -> {self.flags}"
        if record.sha256 != self.sha256:
            return f"{self.path} is another program now"
        return f"{self.path} is another file now (inode {record.inode} -> {self.inode})"


@dataclass(frozen=True)
class Choice:
    """The offers for one target, best first, and what there is to say about them: `notes` are
    sentences for people; `problem` says why there is no offer, or is ""."""

    target: Target
    offers: tuple[Offer, ...]
    problem: str = ""
    notes: tuple[str, ...] = ()


def choose(
    targets: Iterable[Target],
    config: Config,
    cache: IdentityCache,
    cpu: dict[str, str] | None = None,
) -> dict[str, Choice]:
    """Find, identify and rate the interpreters of `targets`, and make the copies that are missing.

    `cpu` overrides the model for targets by name (for one step). The result has every target.
    """
    wanted = list(targets)
    found = interpreters.identify_all(wanted, config, cache)
    return {
        target.name: _choose(
            target, found.get(target.name, []), config, (cpu or {}).get(target.name)
        )
        for target in wanted
    }


def _choose(
    target: Target, candidates: list[Interpreter], config: Config, cpu: str | None
) -> Choice:
    if not target.reachable:
        return Choice(
            target, (), target.note or f"there is no program that could prove {target.name}"
        )
    best = interpreters.best(candidates, target)
    if best is None:
        return Choice(target, (), _missing(target, candidates))
    rating = interpreters.rate(best, target)
    settings = config.emulation.settings(target.name)
    if not best.usable_with_f:
        return Choice(
            target,
            (),
            f"{best.path} is a dynamic program, which cannot serve containers, so it is not"
            f" registered; install a static one (Debian: {_package()})",
        )
    credentials = target.credentials if settings.credentials is None else settings.credentials
    flags = _flags(best, credentials)
    plain = Offer(
        target,
        str(best.path),
        flags,
        best.device,
        best.inode,
        best.sha256,
        best,
        rating,
    )
    wanted = cpu if cpu is not None else settings.cpu
    models = target.cpu.models if wanted is None else (wanted,) if wanted else ()
    notes: list[str] = [rating.reason] if rating.reason else []
    offers = [plain]
    if best.name == "qemu":
        copies = _copies(plain, models, config, notes)
        if not copies and not _unchanged(best):
            # What serves must not give way to what is being written, or was truncated.
            return Choice(target, (), f"{best.path} changed while it was looked at")
        offers = [*copies, plain]
    return Choice(target, tuple(offers), "", tuple(notes))


def _unchanged(interpreter: Interpreter) -> bool:
    """Whether the file is still the one that was identified."""
    try:
        with open(interpreter.path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == interpreter.sha256
    except OSError:
        return False


def _copies(plain: Offer, models: tuple[str, ...], config: Config, notes: list[str]) -> list[Offer]:
    """The copy of a QEMU with the front, if there is something for a front to do, with the first of
    `models` that the QEMU knows; adds to `notes` what could not be had.

    Without flag P the front cannot know the caller's argv[0], and never uses a native program. Nor
    where acceleration is off: other engines mount a store that is left from before.
    """
    state, store = config.paths.state, None
    is_off = config.acceleration.accelerate is Accelerate.OFF
    if plain.target.platforms and "P" in plain.flags and not is_off:
        store = bake.store_identity(state)
    refused: dict[str, MaidError] = {}
    for model in models:
        try:
            return [_baked(plain, model, state, store)]
        except MaidError as error:
            refused[model] = error
    for model, reason in refused.items():
        notes.append(f"CPU model {model} is not used: {reason}")
        log.warning("%s: CPU model %s is not used: %s", plain.target.name, model, reason)
    if store is not None:
        try:
            return [_baked(plain, "", state, store)]
        except MaidError as error:
            notes.append(f"native programs are not used: {error}")
            log.warning("%s: native programs are not used: %s", plain.target.name, error)
    return []


def _baked(plain: Offer, model: str, state: Path, store: bake.StoreIdentity | None) -> Offer:
    if model and not bake.model_known(Path(plain.path), model):
        raise bake.BakeError(
            f"{plain.path} does not know it", f"{plain.path} -cpu help lists what it knows"
        )
    arguments = ("-cpu", model) if model else ()
    baked = bake.bake(Path(plain.path), arguments, state, Path(native.path("front.bin")), store)
    path = str(baked.path)
    if len(path.encode()) > INTERPRETER_LIMIT:
        raise bake.BakeError(
            f"the path {path} is longer than the {INTERPRETER_LIMIT} bytes the kernel takes",
            "set [paths] state to a shorter directory",
        )
    status = os.stat(path)
    return Offer(
        plain.target,
        path,
        plain.flags,
        status.st_dev,
        status.st_ino,
        baked.key,
        plain.interpreter,
        plain.rating,
        model,
    )


def _flags(interpreter: Interpreter, credentials: bool) -> str:
    """The flag policy: F always; C (and O with it) by target; P where it is understood."""
    flags = "F" + ("OC" if credentials else "")
    understands_argv0 = (
        interpreter.name == "qemu"
        and interpreter.version >= ARGV0_QEMU
        and _kernel() >= ARGV0_KERNEL
    )
    return ordered_flags(flags + ("P" if understands_argv0 else ""))


def _kernel() -> tuple[int, ...]:
    numbers = platform.release().split("-")[0].split(".")[:2]
    return tuple(int(number) for number in numbers if number.isdigit())


def _missing(target: Target, candidates: list[Interpreter]) -> str:
    if candidates:
        first = candidates[0]
        return f"{first.path} cannot be used: {interpreters.rate(first, target).reason}"
    return f"no interpreter for {target.name} was found; install one (Debian: {_package()})"


def _package() -> str:
    """The Debian package with static interpreters: since 13 qemu-user is static itself."""
    try:
        with open("/etc/os-release") as file:
            release = dict(line.rstrip().split("=", 1) for line in file if "=" in line)
    except OSError:
        release = {}
    version = release.get("VERSION_ID", "").strip('"').split(".")[0]
    is_debian = release.get("ID") == "debian"
    return (
        "qemu-user"
        if is_debian and version.isdigit() and int(version) >= 13
        else "qemu-user-static"
    )
