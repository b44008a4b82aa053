"""Root file systems with a native store, made by hand, and programs started in them by the front.

`Stage` is a directory to chroot to: an emulated program `/told` (front/told.c) and, at /dev/.maid,
a store whose set `t` holds the same program for this machine, which is also `/launcher`. It shares
no code with maid but `bake`, so that it can judge it.
"""

import os
import shutil
import struct
from dataclasses import dataclass, field
from pathlib import Path

import compiled
import own_instance
from own_instance import Job, Outcome

from maid.emulation.bake import StoreIdentity, bake
from maid.emulation.targets import TARGETS

PROGRAM = "/dev/.maid/t/bin/told"
LOG_RECORD = 24


def record(*strings: str | bytes, program: str = PROGRAM) -> bytes:
    """A record with these rules, each string of them, that executes `program`."""
    every = ["maid-native 1", *strings, f"={program}"]
    return b"".join(os.fsencode(each) + b"\0" for each in every)


def build_id(program: Path) -> bytes:
    """The GNU build-id of a program that our compilers made, not as the front reads it: by the
    words that its note begins with."""
    data = program.read_bytes()
    order = "<" if data[5] == 1 else ">"
    at = data.index(struct.pack(order + "III4s", 4, 20, 3, b"GNU\0")) + 16
    return data[at : at + 20]


@dataclass(frozen=True)
class Told:
    """What front/told.c said: which machine it was for, and what it was given."""

    machine: str
    arguments: tuple[str, ...]
    environment: tuple[str, ...]
    ids: str
    files: tuple[int, ...]

    @classmethod
    def parse(cls, text: str) -> "Told":
        said: dict[str, list[str]] = {}
        for line in text.splitlines():
            word, _, rest = line.partition(" ")
            said.setdefault(word, []).append(rest)
        return cls(
            said["machine"][0],
            tuple(said["argument"]),
            tuple(said.get("environment", ())),
            said["ids"][0],
            tuple(int(each) for each in said["file"]),
        )


@dataclass
class Stage:
    """A root file system with `/told`, a store, and an interpreter that knows the store."""

    root: Path
    qemu: Path
    front: Path
    state: Path
    flags: str = "POCF"
    machine: str = "aarch64"
    arguments: tuple[str, ...] = ("-cpu", "neoverse-n1")
    foreign: Path = field(init=False)

    def __post_init__(self) -> None:
        linked = compiled.linked(self.machine, False)
        self.foreign = compiled.program("told.c", self.machine, *linked)
        native = compiled.program("told.c", compiled.HOST, *compiled.linked(compiled.HOST, False))
        self.root.mkdir(mode=0o755)
        self.root.parent.chmod(0o755)
        (self.store / "id").mkdir(parents=True)
        (self.store / "t" / "bin").mkdir(parents=True)
        (self.store / "t" / "plugin.so").touch()
        (self.store / "t" / "lib").mkdir()
        (self.store / "t" / "lib" / "plugin.so").touch()
        for source, place in (
            (self.foreign, self.program),
            (native, self.native),
            (native, self.root / "launcher"),
        ):
            shutil.copy(source, place)
            place.chmod(0o755)
        self.write()

    @property
    def store(self) -> Path:
        return self.root / "dev" / ".maid"

    @property
    def program(self) -> Path:
        return self.root / "told"

    @property
    def native(self) -> Path:
        return self.store / "t" / "bin" / "told"

    @property
    def log(self) -> Path:
        return self.root / "dev" / ".maid-log"

    @property
    def record(self) -> Path:
        return self.store / "id" / build_id(self.foreign).hex()

    @property
    def identity(self) -> StoreIdentity:
        found = self.store.stat()
        return StoreIdentity(found.st_dev, found.st_ino)

    def write(self, *rules: str | bytes, program: str = PROGRAM) -> None:
        """Give the program the record with these rules."""
        self.record.write_bytes(record(*rules, program=program))

    def copy(self, store: StoreIdentity | None = None) -> Path:
        """The interpreter with the front, for this store if no other is given."""
        return bake(self.qemu, self.arguments, self.state, self.front, store or self.identity).path

    def run(self, *jobs: Job, interpreter: Path | None = None) -> list[Outcome]:
        """The jobs' outcomes where an entry for the machine serves, and nothing else."""
        own_instance.require()
        target = TARGETS[self.machine]
        line = own_instance.line(
            f"qemu-{self.machine}",
            target.magic,
            target.mask,
            str(interpreter or self.copy()),
            self.flags,
        )
        return own_instance.run([line], jobs)

    def job(self, *arguments: str, name: str = "told", **environment: str) -> Job:
        return Job(self.root, "/told", [name, *arguments], environment=environment)

    def told(self, *arguments: str, interpreter: Path | None = None, **environment: str) -> Told:
        """What `/told` said, started with these arguments and this environment."""
        (outcome,) = self.run(self.job(*arguments, **environment), interpreter=interpreter)
        assert (outcome.status, outcome.stderr, outcome.error) == (0, b"", "")
        return Told.parse(outcome.stdout.decode())

    def logged(self) -> list[tuple[str, bytes]]:
        """The log's records: what happened, and the build-id."""
        data = self.log.read_bytes()
        assert len(data) % LOG_RECORD == 0
        records = [data[at : at + LOG_RECORD] for at in range(0, len(data), LOG_RECORD)]
        for each in records:
            assert each[1] <= LOG_RECORD - 2
            assert each[2 + each[1] :].strip(b"\0") == b""
        return [(chr(each[0]), each[2 : 2 + each[1]]) for each in records]
