"""A made-up machine for tests of maid.doctor: healthy until a test changes it."""

import gzip
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from maid.config import Config, Emulation, Prefer, Scope
from maid.doctor import (
    Finding,
    Place,
    programs,
)
from maid.doctor import place as places
from maid.emulation.ledger import Record
from maid.emulation.targets import TARGETS

HOST, PRIVATE = Scope.HOST, Scope.PRIVATE
DEFAULTS = Config()
BINFMT = places.BINFMT
MAGIC, MASK = TARGETS["aarch64"].magic.hex(), TARGETS["aarch64"].mask.hex()

MOUNTS = """\
21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
22 21 0:21 / /proc rw,relatime - proc proc rw
23 21 0:22 / /sys rw,relatime - sysfs sysfs rw
24 21 0:23 / /run rw,nosuid,nodev - tmpfs tmpfs rw
25 23 0:24 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw
30 22 0:40 / /proc/sys/fs/binfmt_misc rw,relatime - binfmt_misc binfmt_misc rw
"""
LIMITS = """\
Limit                     Soft Limit           Hard Limit           Units
Max address space         unlimited            unlimited            bytes
Max processes             62803                62803                processes
Max open files            1024                 524288               files
"""
NO_TABLE = MOUNTS[: MOUNTS.index("30 22")]


@dataclass
class Made:
    """A made-up machine below `root`, healthy until a test changes it."""

    root: Path

    def write(self, path: str, text: str | bytes, mode: int = 0o644) -> Path:
        """A file, whatever was there before."""
        file = self.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.unlink(missing_ok=True)
        file.write_bytes(text.encode() if isinstance(text, str) else text)
        file.chmod(mode)
        return file

    def link(self, path: str, target: str) -> None:
        """A symbolic link, as text: it may dangle."""
        file = self.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.unlink(missing_ok=True)
        file.symlink_to(target)

    def remove(self, path: str) -> None:
        """Remove a file or an empty directory."""
        file = self.root / path.lstrip("/")
        file.rmdir() if file.is_dir() and not file.is_symlink() else file.unlink()

    def append(self, path: str, text: str) -> None:
        """More text at the end of a file."""
        self.write(path, (self.root / path.lstrip("/")).read_text() + text)

    def replace(self, path: str, old: str, new: str) -> None:
        """Other words in a file."""
        text = (self.root / path.lstrip("/")).read_text()
        assert old in text
        self.write(path, text.replace(old, new))

    def entry(
        self,
        name: str,
        interpreter: str = "/usr/bin/qemu-aarch64-static",
        flags: str = "POCF",
        magic: str = MAGIC,
        mask: str = MASK,
        state: str = "enabled",
        registered: float = 4e9,
    ) -> None:
        """An entry as the kernel shows it, registered at that time (by default long from now)."""
        lines = [state, f"interpreter {interpreter}", f"flags: {flags}", "offset 0"]
        lines += [f"magic {magic}", *([f"mask {mask}"] if mask else [])]
        file = self.write(f"{BINFMT}/{name}", "\n".join(lines) + "\n")
        os.utime(file, (registered, registered))

    def program(self, path: str, dynamic: bool = False, target: str = "x86_64") -> None:
        """An executable; `dynamic`: one with a loader."""
        data = TARGETS[target].probe
        assert data is not None
        self.write(path, with_loader(data) if dynamic else data, 0o755)

    def place(self, **changes: object) -> Place:
        """What the checks see."""
        plain = Place(
            root=self.root,
            release="6.12.1-test",
            machine="x86_64",
            uid=0,
            groups=frozenset({0}),
            environ={"PATH": "/usr/bin:/bin"},
        )
        return replace(plain, **changes)  # type: ignore[arg-type]


def with_loader(program: bytes) -> bytes:
    """The same ELF file with a second program header, PT_INTERP, at its end."""
    loader = b"/lib/ld.so\0"
    data = bytearray(program)
    headers = bytes(data[64 : 64 + 56])
    start = len(data)
    interp = bytearray(56)
    interp[0:4] = (3).to_bytes(4, "little")
    interp[8:16] = (start + 112).to_bytes(8, "little")
    interp[32:40] = len(loader).to_bytes(8, "little")
    data[32:40] = start.to_bytes(8, "little")
    data[56:58] = (2).to_bytes(2, "little")
    return bytes(data) + headers + bytes(interp) + loader


def healthy(root: Path) -> Made:
    """A machine below `root` that has no trouble: with maid installed, and one entry of its own."""
    made = Made(root)
    made.write("/proc/self/status", "CapEff:\t000001ffffffffff\nNoNewPrivs:\t0\nSeccomp:\t0\n")
    made.write("/proc/self/mountinfo", MOUNTS)
    made.write("/proc/self/limits", LIMITS)
    made.write("/proc/self/cgroup", "0::/system.slice/maid.service/daemon\n")
    made.write("/proc/self/uid_map", "         0          0 4294967295\n")
    made.write("/proc/self/ns/user", "")
    made.write(
        "/proc/self/net/unix",
        "Num       RefCount Protocol Flags    Type St Inode Path\n"
        "0: 00000002 00000000 00010000 0001 01 4711 /run/maid/io.maid\n",
    )
    made.write("/proc/filesystems", "nodev\tproc\nnodev\tbinfmt_misc\n\text4\n")
    made.write("/proc/meminfo", "MemTotal: 8000000 kB\nMemAvailable: 6000000 kB\nSwapFree: 0 kB\n")
    made.write("/proc/cpuinfo", cpuinfo(2))
    for name, value in {
        "user/max_user_namespaces": 16384,
        "kernel/pid_max": 4194304,
        "fs/inotify/max_user_instances": 128,
        "fs/inotify/max_user_watches": 65536,
        "vm/overcommit_memory": 0,
        "vm/mmap_min_addr": 65536,
        "vm/mmap_rnd_bits": 28,
    }.items():
        made.write(f"/proc/sys/{name}", f"{value}\n")
    made.write(f"{BINFMT}/status", "enabled\n")
    made.write(f"{BINFMT}/register", "")
    made.write("/sys/fs/cgroup/cgroup.controllers", "cpu memory pids\n")
    made.write("/sys/fs/cgroup/system.slice/maid.service/cgroup.controllers", "cpu memory pids\n")
    made.write("/etc/os-release", "ID=debian\n")
    made.write("/etc/passwd", "root:x:0:0::/root:/bin/sh\nann:x:1000:1000::/home/ann:/bin/sh\n")
    made.write("/etc/group", "root:x:0:\nmaid:x:990:ben\n")
    made.write("/etc/subuid", "ann:100000:65536\n")
    made.write("/etc/subgid", "1000:100000:65536\n")
    made.program("/usr/bin/crun")
    made.program("/usr/bin/qemu-aarch64-static")
    for name in ("newuidmap", "newgidmap"):
        made.program(f"/usr/bin/{name}")
        (made.root / "usr/bin" / name).chmod(0o4755)
    made.write("/usr/lib/systemd/system/systemd-binfmt.service", "")
    made.write("/etc/systemd/system/maid.service", "")
    made.link("/etc/systemd/system/multi-user.target.wants/maid.service", "../maid.service")
    made.write("/run/systemd/system/.keep", "")
    made.link("/run/systemd/units/invocation:maid.service", "0123456789abcdef")
    listening(made, "/run/maid/io.maid")
    made.entry("qemu-aarch64")
    made.write(
        "/usr/lib/binfmt.d/python.conf", ":python3:M::\\xa7\\x0d\\x0d\\x0a::/usr/bin/python3:\n"
    )
    made.write(
        "/run/maid/ledger/host.json",
        msgspec.json.encode([record("qemu-aarch64", "/usr/bin/qemu-aarch64-static")]),
    )
    return made


def listening(made: Made, path: str) -> None:
    """A socket's file, as a relative path: the absolute one may be longer than a socket's name."""
    file = made.root / path.lstrip("/")
    file.parent.mkdir(parents=True, exist_ok=True)
    here = os.getcwd()
    os.chdir(file.parent)
    try:
        with socket.socket(socket.AF_UNIX) as made_socket:
            made_socket.bind(file.name)
    finally:
        os.chdir(here)


def record(name: str, interpreter: str, flags: str = "POCF") -> Record:
    return Record("aarch64", name, interpreter, MAGIC, MASK, flags, 0, 0, 0, "", False)


def cpuinfo(level: int) -> str:
    """An amd64 CPU's flags up to x86-64-v1 or -v2 (System V psABI)."""
    flags = "fpu cx8 cmov mmx fxsr sse sse2 lm syscall"
    v2 = " cx16 lahf_lm popcnt pni sse4_1 sse4_2 ssse3"
    return f"processor\t: 0\nflags\t\t: {flags}{v2 if level > 1 else ''}\n"


Check = Callable[[Config, Scope, Place], Iterator[Finding]]


def found(check: Check, place: Place, scope: Scope = HOST, config: Config | None = None) -> str:
    """The findings of one check, one a line: level, subject, message, hint."""
    return "\n".join(
        f"{each.level} {each.subject}: {each.message} -> {each.hint}"
        for each in check(config or Config(), scope, place)
    )


# These two ask this machine's programs and not the made-up one's.
OWN_MACHINE = (programs.interpreters, programs.helpers)


@dataclass(frozen=True)
class Trouble:
    """A trouble: what is changed of a healthy machine, the check that must see it, how grave it is,
    what it must say and what it must tell to do. That a healthy machine does not have it is a test
    of its own (test_doctor.py)."""

    name: str
    check: Check
    level: str
    says: str
    todo: str
    change: Callable[[Made], object] = lambda made: None
    place: tuple[tuple[str, object], ...] = ()
    config: Config = DEFAULTS
    scope: Scope = HOST


def on(**changes: object) -> tuple[tuple[str, object], ...]:
    return tuple(changes.items())


def mounted(text: str, keep: str = MOUNTS) -> Callable[[Made], object]:
    return lambda made: made.write("/proc/self/mountinfo", keep + text)


def sysctl(name: str, value: int) -> Callable[[Made], object]:
    return lambda made: made.write(f"/proc/sys/{name}", f"{value}\n")


def several(*changes: Callable[[Made], object]) -> Callable[[Made], object]:
    return lambda made: [change(made) for change in changes]


def without_module(made: Made, config: str) -> None:
    made.write("/proc/filesystems", "nodev\tproc\n")
    if config:
        made.write("/proc/config.gz", gzip.compress(config.encode()))


def entry(*names: str, **how: object) -> Callable[[Made], object]:
    return lambda made: [made.entry(name, **how) for name in names]  # type: ignore[arg-type]


def conf(made: Made, flags: str = "OCF", name: str = "qemu-aarch64") -> None:
    made.write(
        f"/usr/lib/binfmt.d/{name}.conf",
        f"# a comment\n:{name}:M::\\x7fELF:\\xff:/usr/bin/qemu-aarch64-static:{flags}\n",
    )


USER = on(uid=1000, groups=frozenset({1000}))
OWN = Config(emulation=Emulation(prefer=Prefer.OWN))
OWN_PROGRAMS = TARGETS["x86_64"]
SUPPORT = "/etc/systemd/system/multi-user.target.wants/binfmt-support.service"
V1 = """\
21 1 8:1 / / rw - ext4 /dev/sda1 rw
31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw
32 31 0:29 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
33 31 0:30 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
"""


def version_1(made: Made, mounts: str = V1) -> None:
    made.remove("/sys/fs/cgroup/cgroup.controllers")
    made.write("/proc/self/cgroup", "4:memory:/\n3:cpu,cpuacct:/\n")
    for name in ("memory", "cpu,cpuacct"):
        (made.root / "sys/fs/cgroup" / name).mkdir()
    made.write("/proc/self/mountinfo", mounts)


HYBRID = V1 + "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"


def see(made: Made, trouble: Trouble) -> None:
    """Hold that the trouble is seen as it must be."""
    trouble.change(made)
    place = made.place(**dict(trouble.place))
    seen = list(trouble.check(trouble.config, trouble.scope, place))
    assert any(
        each.level.value == trouble.level
        and trouble.says in each.message
        and trouble.todo in each.hint
        for each in seen
    ), found(trouble.check, place, trouble.scope, trouble.config)
    if trouble.level in ("warning", "problem"):
        assert trouble.todo, "what is wrong has a way out"
