"""maid.doctor: every trouble is seen in a made-up machine, and not in a healthy one."""

import gzip
import os
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_type_hints

import msgspec
import pytest

from maid import doctor, elf
from maid.config import Config, Emulation, Paths, Prefer, Scope, Socket, Steps, load
from maid.doctor import (
    CHECKS,
    Finding,
    Level,
    Place,
    engines,
    examine,
    from_status,
    machine,
    owners,
    programs,
    resources,
    services,
    surroundings,
    table,
)
from maid.doctor import place as places
from maid.emulation.identity import Interpreter, Kind
from maid.emulation.ledger import Record
from maid.emulation.ratings import Level as Quality
from maid.emulation.ratings import Rating
from maid.emulation.targets import TARGETS
from maid.platforms import parse

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


@pytest.fixture
def made(tmp_path: Path) -> Made:
    made = Made(tmp_path)
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


@pytest.mark.parametrize("check", [c for c in CHECKS if c not in OWN_MACHINE])
def test_a_healthy_machine_has_no_trouble(made: Made, check: Check) -> None:
    for each in check(Config(), HOST, made.place()):
        assert each.level is Level.ok, each


# Each trouble: what is changed, the check that must see it, how grave it is, what it must say and
# what it must tell to do. That a healthy machine does not have it is the test above.


@dataclass(frozen=True)
class Trouble:
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

TROUBLES = [
    # The kernel
    Trouble(
        "kernel 6.1, host",
        machine.kernel_version,
        "warning",
        "no binfmt_misc instance for each user namespace (6.7): steps share",
        "6.7",
        place=on(release="6.1.0-13-amd64"),
    ),
    Trouble(
        "kernel 6.1, private",
        machine.kernel_version,
        "problem",
        "there can be no private scope",
        "6.7",
        place=on(release="6.1.0-13-amd64"),
        scope=PRIVATE,
    ),
    Trouble(
        "kernel 5.11",
        machine.kernel_version,
        "note",
        "flag P (5.12)",
        "newer kernel",
        place=on(release="5.11.0"),
    ),
    Trouble(
        "kernel 5.5",
        machine.kernel_version,
        "problem",
        "openat2 (5.6), pidfd_open (5.3)",
        "maid run does not",
        place=on(release="5.5.19"),
    ),
    Trouble(
        "kernel 4.4",
        machine.kernel_version,
        "problem",
        "no flag F (4.8)",
        "newer kernel",
        place=on(release="4.4.0"),
    ),
    Trouble(
        "kernel without a number",
        machine.kernel_version,
        "note",
        "says nothing",
        "",
        place=on(release="custom"),
    ),
    Trouble(
        "binfmt_misc not built",
        machine.binfmt_option,
        "problem",
        "without CONFIG_BINFMT_MISC",
        "CONFIG_BINFMT_MISC=y",
        lambda made: without_module(made, "# CONFIG_BINFMT_MISC is not set\nCONFIG_USER_NS=y\n"),
    ),
    Trouble(
        "binfmt_misc not built, said in /boot",
        machine.binfmt_option,
        "problem",
        "without CONFIG_BINFMT_MISC",
        "CONFIG_BINFMT_MISC=y",
        lambda made: (
            without_module(made, ""),
            made.write("/boot/config-6.12.1-test", "CONFIG_USER_NS=y\n"),
        ),
    ),
    Trouble(
        "binfmt_misc loadable",
        machine.binfmt_option,
        "note",
        "mounting binfmt_misc loads it",
        "modules-load.d",
        lambda made: (
            without_module(made, "CONFIG_BINFMT_MISC=m\n"),
            made.write("/lib/modules/6.12.1-test/modules.dep", "kernel/fs/binfmt_misc.ko.xz:\n"),
        ),
    ),
    Trouble(
        "modules of the kernel gone",
        machine.binfmt_option,
        "problem",
        "are gone",
        "reboot",
        lambda made: without_module(made, "CONFIG_BINFMT_MISC=m\n"),
    ),
    Trouble(
        "modules without it",
        machine.binfmt_option,
        "problem",
        "no module to load",
        "linux-modules-extra",
        lambda made: (
            without_module(made, ""),
            made.write("/lib/modules/6.12.1-test/modules.dep", "kernel/fs/ext4.ko:\n"),
        ),
    ),
    Trouble(
        "modules forbidden",
        machine.binfmt_option,
        "problem",
        "modules_disabled",
        "modules-load.d",
        lambda made: (
            without_module(made, "CONFIG_BINFMT_MISC=m\n"),
            made.write("/proc/sys/kernel/modules_disabled", "1\n"),
        ),
    ),
    Trouble(
        "no /proc",
        machine.basics,
        "problem",
        "/proc is not mounted",
        "mount",
        lambda made: made.remove("/proc/self/status"),
    ),
    Trouble(
        "unknown machine",
        machine.basics,
        "problem",
        "no target describes",
        "registers nothing",
        place=on(machine="vax"),
    ),
    # Namespaces
    Trouble(
        "no user namespaces built",
        machine.user_namespaces,
        "problem",
        "CONFIG_USER_NS",
        "kernel",
        lambda made: made.remove("/proc/self/ns/user"),
    ),
    Trouble(
        "no user namespaces allowed",
        machine.user_namespaces,
        "problem",
        "max_user_namespaces is 0",
        "sysctl user.max_user_namespaces",
        sysctl("user/max_user_namespaces", 0),
    ),
    Trouble(
        "user namespaces for root, host",
        machine.user_namespaces,
        "note",
        "only root may make them",
        "unprivileged_userns_clone=1",
        sysctl("kernel/unprivileged_userns_clone", 0),
    ),
    Trouble(
        "user namespaces for root, private user",
        machine.user_namespaces,
        "problem",
        "you cannot have a private scope",
        "unprivileged_userns_clone=1",
        sysctl("kernel/unprivileged_userns_clone", 0),
        place=USER,
        scope=PRIVATE,
    ),
    Trouble(
        "AppArmor restricts user namespaces",
        machine.user_namespaces,
        "problem",
        "AppArmor takes the capabilities",
        "apparmor_restrict_unprivileged_userns=0",
        sysctl("kernel/apparmor_restrict_unprivileged_userns", 1),
        place=USER,
        scope=PRIVATE,
    ),
    Trouble(
        "no subordinate users",
        machine.subordinate_ids,
        "warning",
        "/etc/subuid give",
        "usermod --add-subuids",
        lambda made: made.write("/etc/subuid", "ben:100000:65536\n"),
        place=USER,
    ),
    Trouble(
        "no newuidmap",
        machine.subordinate_ids,
        "warning",
        "newuidmap is missing",
        "uidmap",
        lambda made: made.remove("/usr/bin/newuidmap"),
        place=USER,
    ),
    Trouble(
        "newgidmap without set-user-id",
        machine.subordinate_ids,
        "warning",
        "newgidmap is not set-user-id",
        "uidmap",
        lambda made: made.program("/usr/bin/newgidmap"),
        place=USER,
    ),
    Trouble(
        "in a user namespace",
        machine.own_namespace,
        "warning",
        "user namespace below the machine's",
        "private",
        lambda made: made.write("/proc/self/uid_map", "0 1000 1\n"),
    ),
    Trouble(
        "root without rights",
        machine.own_namespace,
        "warning",
        "no CAP_SYS_ADMIN",
        "--privileged",
        lambda made: made.write("/proc/self/status", "CapEff:\t00000000a80425fb\n"),
    ),
    Trouble(
        "no_new_privs",
        machine.process_state,
        "note",
        "no_new_privs",
        "NoNewPrivileges=no",
        lambda made: made.replace("/proc/self/status", "NoNewPrivs:\t0", "NoNewPrivs:\t1"),
    ),
    Trouble(
        "seccomp",
        machine.process_state,
        "note",
        "seccomp filter",
        "seccomp=unconfined",
        lambda made: made.replace("/proc/self/status", "Seccomp:\t0", "Seccomp:\t2"),
    ),
    Trouble(
        "SELinux",
        machine.security_modules,
        "note",
        "enforcing",
        "restorecon -R /var/lib/maid/baked",
        lambda made: made.write("/sys/fs/selinux/enforce", "1"),
    ),
    Trouble(
        "AppArmor confines",
        machine.security_modules,
        "note",
        "confined by docker-default (enforce)",
        "apparmor=unconfined",
        several(
            lambda made: made.write("/sys/module/apparmor/parameters/enabled", "Y\n"),
            lambda made: made.write("/proc/self/attr/current", "docker-default (enforce)\n"),
        ),
    ),
    # Mounts
    Trouble(
        "not mounted",
        table.mounts,
        "problem",
        "not mounted at /proc/sys/fs/binfmt_misc",
        "mount -t binfmt_misc",
        mounted("", NO_TABLE),
    ),
    Trouble(
        "no private table yet",
        table.mounts,
        "note",
        "no private table yet",
        "maid daemon --scope private",
        scope=PRIVATE,
    ),
    Trouble(
        "an unused automount",
        table.mounts,
        "note",
        "automount that nothing has used",
        "ls /proc",
        mounted("29 22 0:39 / /proc/sys/fs/binfmt_misc rw - autofs systemd-1 rw", NO_TABLE),
    ),
    Trouble(
        "an automount that expires",
        table.mounts,
        "warning",
        "expires when nobody uses it",
        "systemctl mask --now proc-sys-fs-binfmt_misc.automount",
        mounted("29 22 0:39 / /proc/sys/fs/binfmt_misc rw - autofs systemd-1 rw,timeout=120"),
    ),
    Trouble(
        "read-only",
        table.mounts,
        "problem",
        "mounted read-only",
        "remount,rw",
        mounted("30 22 0:40 / /proc/sys/fs/binfmt_misc ro - binfmt_misc none rw", NO_TABLE),
    ),
    Trouble(
        "hidden by another table",
        table.mounts,
        "problem",
        "another namespace's table is mounted over",
        "umount",
        mounted("31 22 0:41 / /proc/sys/fs/binfmt_misc rw - binfmt_misc none rw"),
    ),
    Trouble(
        "mounted twice",
        table.mounts,
        "note",
        "mounted 2 times",
        "umount",
        mounted("31 22 0:40 / /proc/sys/fs/binfmt_misc rw - binfmt_misc none rw"),
    ),
    Trouble(
        "mounted elsewhere too",
        table.mounts,
        "note",
        "mounted at /mnt/my table too",
        "",
        mounted("31 22 0:40 / /mnt/my\\040table rw - binfmt_misc none rw"),
    ),
    Trouble(
        "/proc/sys read-only",
        table.sysctl_directory,
        "warning",
        "/proc/sys is read-only",
        "ConditionPathIsReadWrite",
        mounted("28 22 0:21 /sys /proc/sys ro - proc proc rw", NO_TABLE),
    ),
    Trouble(
        "switched off",
        table.switched_on,
        "problem",
        "switched off",
        f"echo 1 >{BINFMT}/status",
        lambda made: made.write(f"{BINFMT}/status", "disabled\n"),
    ),
    # Entries
    Trouble(
        "no entry",
        table.entries,
        "note",
        "there are none",
        "start maid",
        lambda made: made.remove(f"{BINFMT}/qemu-aarch64"),
    ),
    Trouble(
        "unreadable entry",
        table.entries,
        "note",
        "odd cannot be read",
        "",
        lambda made: made.write(f"{BINFMT}/odd", "what?\n"),
    ),
    Trouble(
        "own architecture",
        table.entries,
        "problem",
        "catches this machine's own programs (x86_64)",
        f"echo -1 >{BINFMT}/qemu-x86_64",
        entry("qemu-x86_64", magic=OWN_PROGRAMS.magic.hex(), mask=OWN_PROGRAMS.mask.hex()),
    ),
    Trouble(
        "a relative of the own architecture",
        table.entries,
        "note",
        "may run by itself",
        f"echo 0 >{BINFMT}/qemu-i386",
        entry("qemu-i386", magic=TARGETS["i386"].magic.hex(), mask=TARGETS["i386"].mask.hex()),
    ),
    Trouble(
        "disabled entry",
        table.entries,
        "warning",
        "qemu-aarch64 (maid) is disabled",
        "echo 1",
        entry("qemu-aarch64", state="disabled"),
    ),
    Trouble(
        "missing interpreter without F",
        table.entries,
        "problem",
        "no flag F and its interpreter is not there",
        "registers a working one before it",
        entry("qemu-aarch64", interpreter="/usr/bin/gone", flags=""),
    ),
    Trouble(
        "no F",
        table.entries,
        "warning",
        "has no flag F: it works on the machine, and not in containers",
        "add F",
        entry("qemu-aarch64", flags="OC"),
    ),
    Trouble(
        "dynamic interpreter",
        table.entries,
        "warning",
        "has a dynamic interpreter",
        "install static ones",
        lambda made: made.program("/usr/bin/qemu-aarch64-static", dynamic=True),
    ),
    Trouble(
        "no program",
        table.entries,
        "problem",
        "no program of this machine",
        "reinstall",
        several(
            entry("qemu-aarch64", flags="OC"),
            lambda made: made.write("/usr/bin/qemu-aarch64-static", "#!/bin/sh\n", 0o755),
        ),
    ),
    Trouble(
        "upgraded interpreter",
        table.entries,
        "note",
        "was registered before its interpreter was last changed",
        "restart whoever registered",
        entry("qemu-aarch64", registered=1e9),
    ),
    Trouble(
        "two entries, another's last",
        table.entries,
        "warning",
        "qemu-aarch64 (maid), rival (somebody unknown) catch the same programs (aarch64); the"
        " kernel asks the one that was registered last, rival",
        "prefer",
        entry("rival", registered=4.1e9),
    ),
    Trouble(
        "two entries, maid's last",
        table.entries,
        "note",
        "registered last, qemu-aarch64",
        "",
        entry("rival", registered=3.9e9),
    ),
    Trouble(
        "entry from an image",
        table.entries,
        "note",
        "arm64 (a container image) came with a container's image, which flag F keeps open",
        "systemctl enable maid",
        entry("arm64", interpreter="/usr/bin/qemu-aarch64", flags="F"),
    ),
    Trouble(
        "entry by hand",
        table.entries,
        "note",
        "mine (somebody unknown) came by hand or by a script: gone after a reboot",
        "systemctl enable maid",
        several(lambda made: made.remove(f"{BINFMT}/qemu-aarch64"), entry("mine")),
    ),
    Trouble(
        "no C",
        table.entries,
        "note",
        "has no flag C: set-user-id programs (sudo",
        "prefer",
        entry("rival", flags="PF"),
    ),
    Trouble(
        "no P",
        table.entries,
        "note",
        "has no flag P",
        "maid registers one with it",
        entry("rival", flags="OCF"),
        config=OWN,
    ),
    # Programs
    Trouble(
        "no OCI runtime",
        programs.runtimes,
        "problem",
        "there is no crun and no runc",
        "install crun",
        lambda made: made.remove("/usr/bin/crun"),
    ),
    Trouble(
        "configured OCI runtime",
        programs.runtimes,
        "problem",
        "there is no /opt/youki",
        "[steps] runtime",
        config=Config(steps=Steps(runtime="/opt/youki")),
    ),
    Trouble(
        "crun and hybrid cgroups",
        programs.runtimes,
        "note",
        "crun before 1.9 refuses hybrid cgroups",
        "--runtime runc",
        lambda made: made.write("/sys/fs/cgroup/unified/cgroup.procs", ""),
    ),
    # Resources
    Trouble(
        "hybrid cgroups",
        resources.cgroups,
        "note",
        "hybrid (v1 with a v2 tree beside it), limits for steps can be set",
        "unified_cgroup_hierarchy=1",
        lambda made: version_1(made, HYBRID),
    ),
    Trouble(
        "cgroups v1",
        resources.cgroups,
        "note",
        "v1, limits for steps can be set",
        "",
        version_1,
    ),
    Trouble(
        "cgroups v1 without memory",
        resources.cgroups,
        "warning",
        "v1, without memory",
        "cgroup_enable=memory",
        lambda made: version_1(made, V1.replace("rw,memory", "rw,pids")),
    ),
    Trouble(
        "cgroups v2, not delegated",
        resources.cgroups,
        "warning",
        "v2, without memory and cpu",
        "Delegate=yes",
        lambda made: made.write(
            "/sys/fs/cgroup/system.slice/maid.service/cgroup.controllers", "pids\n"
        ),
    ),
    Trouble(
        "no cgroups",
        resources.cgroups,
        "warning",
        "none are mounted",
        "mount -t cgroup2",
        several(
            lambda made: made.remove("/sys/fs/cgroup/cgroup.controllers"),
            mounted("", "21 1 8:1 / / rw - ext4 /dev/sda1 rw\n"),
        ),
    ),
    Trouble(
        "few open files",
        resources.limits,
        "warning",
        "256 open files",
        "LimitNOFILE",
        lambda made: made.replace("/proc/self/limits", "1024 ", "256  "),
    ),
    Trouble(
        "little address space",
        resources.limits,
        "warning",
        "limited to 4096 MiB",
        "LimitAS=infinity",
        lambda made: made.replace(
            "/proc/self/limits", "space         unlimited ", "space         4294967296"
        ),
    ),
    Trouble(
        "few processes",
        resources.limits,
        "warning",
        "500 processes",
        "ulimit -u",
        lambda made: made.replace("/proc/self/limits", "62803 ", "500   "),
    ),
    Trouble(
        "few process ids",
        resources.limits,
        "warning",
        "1000 processes",
        "pid_max",
        sysctl("kernel/pid_max", 1000),
    ),
    Trouble(
        "few inotify instances",
        resources.limits,
        "warning",
        "fs.inotify.max_user_instances is 8",
        "sysctl fs.inotify.max_user_instances",
        sysctl("fs/inotify/max_user_instances", 8),
    ),
    Trouble(
        "few inotify watches",
        resources.limits,
        "warning",
        "max_user_watches is 10",
        "sysctl fs.inotify.max_user_watches",
        sysctl("fs/inotify/max_user_watches", 10),
    ),
    Trouble(
        "little memory",
        resources.memory,
        "warning",
        "390 MiB are free",
        "swap",
        lambda made: made.write("/proc/meminfo", "MemAvailable: 400000 kB\n"),
    ),
    Trouble(
        "strict overcommit",
        resources.memory,
        "warning",
        "overcommit_memory is 2",
        "overcommit_memory=0",
        sysctl("vm/overcommit_memory", 2),
    ),
    Trouble(
        "high lowest address",
        resources.memory,
        "warning",
        "mmap_min_addr is 1048576",
        "mmap_min_addr=65536",
        sysctl("vm/mmap_min_addr", 1048576),
    ),
    Trouble(
        "wide randomisation",
        resources.randomisation,
        "note",
        "mmap_rnd_bits is 32",
        "mmap_rnd_bits=28",
        sysctl("vm/mmap_rnd_bits", 32),
    ),
    Trouble(
        "old processor",
        resources.processor,
        "warning",
        "x86-64-v2",
        "CPU model host",
        lambda made: made.write("/proc/cpuinfo", cpuinfo(1)),
    ),
    Trouble(
        "read-only state",
        resources.space,
        "problem",
        "/var/lib/maid is on a read-only file system (/var)",
        "[paths]",
        mounted("40 21 8:2 / /var ro - ext4 /dev/sda2 ro"),
    ),
    Trouble(
        "state mounted noexec",
        resources.space,
        "problem",
        "mounted noexec (/var/lib)",
        "[paths] state",
        mounted("40 21 8:2 / /var/lib rw,noexec - ext4 /dev/sda2 rw"),
    ),
    Trouble(
        "32-bit programs on ext4",
        resources.large_inodes,
        "note",
        "/var/lib/docker is on ext4",
        "tmpfs",
        lambda made: made.write("/var/lib/docker/.keep", ""),
    ),
    # Surroundings
    Trouble(
        "docker without the table",
        surroundings.container,
        "warning",
        "docker container without the machine's table",
        "run maid on the machine itself",
        several(lambda made: made.write("/.dockerenv", ""), mounted("", NO_TABLE)),
    ),
    Trouble(
        "podman with the table",
        surroundings.container,
        "note",
        "podman container: what is registered here is the machine's",
        "on the machine itself",
        lambda made: made.write("/run/.containerenv", ""),
    ),
    Trouble(
        "nspawn, table read-only",
        surroundings.container,
        "warning",
        "systemd-nspawn container with the table read-only",
        "--private-users",
        several(
            lambda made: made.write("/run/systemd/container", "systemd-nspawn\n"),
            mounted("30 22 0:40 / /proc/sys/fs/binfmt_misc ro - binfmt_misc none rw", NO_TABLE),
        ),
    ),
    Trouble(
        "kubernetes",
        surroundings.container,
        "note",
        "kubernetes container",
        "on the nodes",
        place=on(environ={"KUBERNETES_SERVICE_HOST": "10.0.0.1"}),
    ),
    Trouble(
        "lxc",
        surroundings.container,
        "note",
        "lxc container",
        "on the machine itself",
        place=on(environ={"container": "lxc"}),
    ),
    Trouble(
        "OpenVZ",
        surroundings.container,
        "note",
        "openvz container",
        "virtual machine",
        lambda made: made.write("/proc/vz/veinfo", ""),
    ),
    Trouble(
        "a private scope in docker",
        surroundings.container,
        "note",
        "private scope needs unshare and mount",
        "seccomp=unconfined",
        lambda made: made.write("/.dockerenv", ""),
        scope=PRIVATE,
    ),
    Trouble(
        "WSL 1",
        surroundings.wsl,
        "problem",
        "WSL 1",
        "wsl --set-version",
        place=on(release="4.4.0-19041-Microsoft"),
    ),
    Trouble(
        "WSL 2 without interop",
        surroundings.wsl,
        "warning",
        "WSLInterop is gone",
        ":WSLInterop:M::MZ::/init:PF",
        place=on(release="5.15.90.1-microsoft-standard-WSL2"),
    ),
    Trouble(
        "WSL 2 with systemd",
        surroundings.wsl,
        "note",
        "a restart of systemd-binfmt removes WSLInterop",
        "/etc/binfmt.d/WSLInterop.conf",
        entry("WSLInterop", interpreter="/init", flags="PF", magic="4d5a", mask=""),
        place=on(release="6.6.36.3-microsoft-standard-WSL2"),
    ),
    Trouble(
        "Rosetta serves",
        surroundings.rosetta,
        "note",
        "rosetta runs amd64 by Rosetta",
        "prefer",
        entry(
            "rosetta",
            interpreter="/mnt/lima-rosetta/rosetta",
            magic=OWN_PROGRAMS.magic.hex(),
            mask=OWN_PROGRAMS.mask.hex(),
        ),
        place=on(machine="aarch64"),
    ),
    Trouble(
        "Rosetta is there",
        surroundings.rosetta,
        "note",
        "/media/rosetta/rosetta is there",
        "",
        lambda made: made.program("/media/rosetta/rosetta"),
        place=on(machine="aarch64"),
    ),
    Trouble(
        "QEMU's variables",
        surroundings.environment,
        "warning",
        "QEMU_CPU, QEMU_STRACE is set",
        "unset QEMU_CPU QEMU_STRACE",
        place=on(environ={"QEMU_STRACE": "1", "QEMU_CPU": "max"}),
    ),
    Trouble(
        "docker's old builder",
        surroundings.environment,
        "warning",
        "wrong architecture without a word",
        "unset DOCKER_BUILDKIT",
        place=on(environ={"DOCKER_BUILDKIT": "0"}),
    ),
    Trouble(
        "docker's default platform",
        surroundings.environment,
        "note",
        "DOCKER_DEFAULT_PLATFORM is linux/amd64",
        "unset",
        place=on(environ={"DOCKER_DEFAULT_PLATFORM": "linux/amd64"}),
    ),
    # Services
    Trouble(
        "no systemd",
        services.maid_units,
        "note",
        "systemd is not this system's init",
        "maid daemon",
        several(
            lambda made: made.remove("/run/systemd/system/.keep"),
            lambda made: made.remove("/run/systemd/system"),
        ),
    ),
    Trouble(
        "service not installed",
        services.maid_units,
        "problem",
        "not installed",
        "scripts/install",
        lambda made: made.remove("/etc/systemd/system/maid.service"),
    ),
    Trouble(
        "service masked",
        services.maid_units,
        "problem",
        "masked",
        "systemctl unmask maid",
        lambda made: made.link("/etc/systemd/system/maid.service", "/dev/null"),
    ),
    Trouble(
        "service not enabled",
        services.maid_units,
        "warning",
        "not enabled: after a reboot",
        "systemctl enable --now maid",
        lambda made: made.remove("/etc/systemd/system/multi-user.target.wants/maid.service"),
    ),
    Trouble(
        "service does not run",
        services.maid_units,
        "problem",
        "does not run",
        "journalctl -u maid",
        lambda made: made.remove("/run/systemd/units/invocation:maid.service"),
    ),
    Trouble(
        "systemd-binfmt registers emulators",
        services.systemd_binfmt,
        "note",
        "it registers 1 emulators from /usr/lib/binfmt.d at boot",
        "systemctl mask --now systemd-binfmt",
        conf,
    ),
    Trouble(
        "systemd-binfmt's are adopted",
        services.systemd_binfmt,
        "note",
        "maid adopts those that work, and its CPU models do not apply",
        "prefer",
        conf,
    ),
    Trouble(
        "systemd-binfmt's come after maid's",
        services.systemd_binfmt,
        "note",
        "maid's go before them",
        "",
        conf,
        config=OWN,
    ),
    Trouble(
        "systemd-binfmt without F",
        services.systemd_binfmt,
        "warning",
        "qemu-aarch64 is registered without flag F",
        "static package",
        lambda made: conf(made, flags="OC"),
    ),
    Trouble(
        "binfmt-support and systemd-binfmt",
        services.binfmt_support,
        "warning",
        "both register emulators",
        "systemctl disable --now binfmt-support",
        several(conf, lambda made: made.link(SUPPORT, "x")),
    ),
    Trouble(
        "binfmt-support",
        services.binfmt_support,
        "note",
        "it registers 2 emulators",
        "update-binfmts --disable",
        several(
            lambda made: made.link("/etc/rc2.d/S01binfmt-support", "x"),
            lambda made: made.write("/var/lib/binfmts/qemu-arm", ""),
            lambda made: made.write("/var/lib/binfmts/qemu-aarch64", ""),
            lambda made: made.write("/var/lib/binfmts/jar", ""),
        ),
    ),
    Trouble(
        "a job that resets",
        services.installers,
        "note",
        "/etc/cron.d/qemu runs a container that removes entries of others (--reset)",
        "not needed",
        lambda made: made.write(
            "/etc/cron.d/qemu",
            "@reboot root docker run --privileged multiarch/qemu-user-static --reset -p yes\n",
        ),
    ),
    Trouble(
        "a unit that installs",
        services.installers,
        "note",
        "/etc/systemd/system/binfmt.service runs a container that registers emulators",
        "not needed",
        lambda made: made.write(
            "/etc/systemd/system/binfmt.service",
            "[Service]\nExecStart=docker run --privileged tonistiigi/binfmt --install all\n",
        ),
    ),
    Trouble(
        "no socket",
        services.socket,
        "warning",
        "/run/maid/io.maid is not there",
        "systemctl enable --now maid",
        lambda made: made.remove("/run/maid/io.maid"),
    ),
    Trouble(
        "no private socket",
        services.socket,
        "note",
        "is not there",
        "maid daemon --scope private",
        scope=PRIVATE,
        config=Config(socket=Socket(path=Path("/run/maid/private/io.maid"))),
    ),
    Trouble(
        "no socket but a file",
        services.socket,
        "problem",
        "is no socket",
        "remove it",
        lambda made: made.write("/run/maid/io.maid", ""),
    ),
    Trouble(
        "nobody listens",
        services.socket,
        "warning",
        "nobody listens",
        "journalctl -u maid",
        lambda made: made.write("/proc/self/net/unix", "Num\n"),
    ),
    Trouble(
        "no group",
        services.group,
        "warning",
        "there is no group maid",
        "systemd-sysusers",
        lambda made: made.write("/etc/group", "root:x:0:\n"),
    ),
    Trouble(
        "not a member",
        services.group,
        "note",
        "you are not a member",
        "usermod -aG maid ann",
        place=USER,
    ),
    Trouble(
        "an older session",
        services.group,
        "warning",
        "this session is older",
        "log in again",
        lambda made: made.write("/etc/group", "maid:x:990:ben,ann\n"),
        place=USER,
    ),
]


@pytest.mark.parametrize("trouble", TROUBLES, ids=lambda trouble: trouble.name)
def test_each_trouble_is_seen(made: Made, trouble: Trouble) -> None:
    trouble.change(made)
    place = made.place(**dict(trouble.place))
    seen = list(trouble.check(trouble.config, trouble.scope, place))
    assert any(
        each.level.value == trouble.level
        and trouble.says in each.message
        and trouble.todo in each.hint
        for each in seen
    ), found(trouble.check, place, trouble.scope, trouble.config)


def test_every_check_is_tested() -> None:
    tested = {trouble.check for trouble in TROUBLES}
    elsewhere = {engines.engines}  # test_doctor_engines.py
    assert set(CHECKS) - tested == {*OWN_MACHINE, *elsewhere}


def test_what_is_wrong_has_a_way_out(made: Made) -> None:
    for trouble in TROUBLES:
        if trouble.level in ("warning", "problem"):
            assert trouble.todo, trouble.name


# What must not be said


def test_a_member_and_root_are_told_nothing_to_do(made: Made) -> None:
    member = made.place(uid=1000, groups=frozenset({1000, 990}))
    assert "you are in it" in found(services.group, member)
    assert found(services.group, made.place()).startswith("ok")


def test_a_user_with_a_range_can_have_steps(made: Made) -> None:
    user = made.place(**dict(USER))
    assert found(machine.subordinate_ids, user).startswith("ok")


def test_the_service_is_root_whoever_asks_about_cgroups(made: Made, monkeypatch) -> None:
    monkeypatch.setattr(Place, "writable", lambda self, path: False)
    assert found(resources.cgroups, made.place(**dict(USER))).startswith("ok cgroups: v2")
    assert "cannot be written" in found(resources.cgroups, made.place(**dict(USER)), PRIVATE)
    assert "cannot be written" in found(resources.cgroups, made.place())


@pytest.mark.parametrize(
    ("size", "inodes", "says"),
    [
        (100 * 1024**2, None, "100 MiB are left in /var/lib/maid"),
        (10**12, 500, "500 files are left"),
        (10**12, None, "ok space"),
    ],
)
def test_little_space_is_told_in_bytes_or_files(
    made: Made, monkeypatch, size: int, inodes: int | None, says: str
) -> None:
    monkeypatch.setattr(Place, "free", lambda self, path: (size, inodes))
    assert says in found(resources.space, made.place())


def test_an_automount_with_another_mount_of_the_table_does_not_matter(made: Made) -> None:
    made.write(
        "/proc/self/mountinfo",
        MOUNTS
        + "29 22 0:39 / /proc/sys/fs/binfmt_misc rw - autofs systemd-1 rw,timeout=120\n"
        + "31 22 0:40 / /run/maid/table rw - binfmt_misc none rw\n",
    )
    assert "expires" not in found(table.mounts, made.place())


def test_an_automount_is_not_looked_into(made: Made, monkeypatch) -> None:
    made.write(
        "/proc/self/mountinfo",
        NO_TABLE + "29 22 0:39 / /proc/sys/fs/binfmt_misc rw - autofs systemd-1 rw,timeout=0\n",
    )
    looked = []
    for name in ("open", "listdir", "stat"):
        real = getattr(os, name)

        def note(path, *rest, real=real, **more):
            looked.append(str(path))
            return real(path, *rest, **more)

        monkeypatch.setattr(os, name, note)
    examine(Config(), HOST, made.place(release="6.6.36.3-microsoft-standard-WSL2"))
    assert any(path.endswith("/proc/self/mountinfo") for path in looked)
    assert not any("binfmt_misc" in path for path in looked)


def test_tables_of_private_instances_are_not_the_machine_s(made: Made) -> None:
    made.append(
        "/proc/self/mountinfo",
        "31 22 0:41 / /run/maid/instances/root/binfmt rw - binfmt_misc none rw\n",
    )
    assert found(table.mounts, made.place()).startswith("ok")


def test_the_private_table_is_the_one_that_is_examined(made: Made) -> None:
    config = Config(paths=Paths(runtime=Path("/run/maid/private/x")))
    there = "/run/maid/private/x/instances/root/binfmt"
    made.append("/proc/self/mountinfo", f"31 22 0:41 / {there} rw - binfmt_misc none rw\n")
    made.write(f"{there}/status", "disabled\n")
    assert "switched off" in found(table.switched_on, made.place(), PRIVATE, config)
    assert there in found(table.mounts, made.place(), PRIVATE, config)


def test_an_entry_that_holds_an_image_s_emulator_is_not_called_broken(made: Made) -> None:
    made.entry("arm64", interpreter="/usr/bin/qemu-aarch64", flags="OCPF")
    said = found(table.entries, made.place())
    assert "interpreter is not there" not in said
    assert "problem" not in said


def test_a_disabled_entry_for_the_own_architecture_is_no_danger(made: Made) -> None:
    made.entry(
        "qemu-x86_64",
        magic=OWN_PROGRAMS.magic.hex(),
        mask=OWN_PROGRAMS.mask.hex(),
        state="disabled",
    )
    assert "own programs" not in found(table.entries, made.place())


def test_entries_for_no_machine_s_programs_are_left_out(made: Made) -> None:
    made.entry("python3.11", "/usr/bin/python3.11", "", magic="a70d0d0a", mask="")
    made.entry("jar", "/usr/bin/jexec", "", magic="504b0304", mask="")
    assert found(table.entries, made.place()).startswith("ok entries: 1 for foreign programs")


def test_interop_that_is_there_and_kept_is_fine(made: Made) -> None:
    made.entry("WSLInterop-late", interpreter="/init", flags="PF", magic="4d5a", mask="")
    made.write("/etc/binfmt.d/WSLInterop.conf", ":WSLInterop:M::MZ::/init:PF\n")
    place = made.place(release="5.15.90.1-microsoft-standard-WSL2")
    assert found(surroundings.wsl, place).startswith("ok WSL")
    assert "\n" not in found(surroundings.wsl, place)


def test_early_wsl_2_is_not_taken_for_wsl_1(made: Made) -> None:
    place = made.place(release="4.19.104-microsoft-standard")
    assert "WSL 1" not in found(surroundings.wsl, place)
    assert "WSLInterop is gone" in found(surroundings.wsl, place)


def test_maid_s_own_flags_are_not_for_the_doctor_to_doubt(made: Made) -> None:
    own = record("qemu-aarch64", "/usr/bin/qemu-aarch64-static", "F")
    made.write("/run/maid/ledger/host.json", msgspec.json.encode([own]))
    made.entry("qemu-aarch64", flags="F")
    assert found(table.entries, made.place()).startswith("ok entries: 1 for foreign programs")


def test_of_two_mounts_in_one_place_the_last_counts(made: Made) -> None:
    below = "40 21 8:2 / /var rw - ext4 /dev/sda2 rw\n"
    above = "41 21 8:3 / /var ro - ext4 /dev/sda3 ro\n"
    made.write("/proc/self/mountinfo", MOUNTS + below + above)
    assert "read-only" in found(resources.space, made.place())
    made.write("/proc/self/mountinfo", MOUNTS + above + below)
    assert "read-only" not in found(resources.space, made.place())


def test_runc_or_another_tree_has_no_quirk(made: Made) -> None:
    assert "hybrid" not in found(programs.runtimes, made.place())
    made.write("/sys/fs/cgroup/unified/cgroup.procs", "")
    made.remove("/usr/bin/crun")
    made.program("/usr/sbin/runc")
    assert found(programs.runtimes, made.place()) == "ok OCI runtime: there is /usr/sbin/runc -> "


def test_randomisation_that_only_root_may_read_is_no_finding(made: Made, monkeypatch) -> None:
    def refuse(self: Place, path: str) -> int | None:
        raise places.CannotLook(path, "Permission denied")

    monkeypatch.setattr(Place, "number", refuse)
    assert found(resources.randomisation, made.place()) == ""


def test_masked_services_do_not_conflict(made: Made) -> None:
    conf(made)
    made.link(SUPPORT, "x")
    made.link("/etc/systemd/system/systemd-binfmt.service", "/dev/null")
    assert found(services.systemd_binfmt, made.place()) == "ok systemd-binfmt: it is masked -> "
    assert "both" not in found(services.binfmt_support, made.place())


# Who owns an entry


@pytest.mark.parametrize(
    ("owner", "change", "name", "how"),
    [
        (owners.MAID, lambda made: None, "qemu-aarch64", {}),
        (owners.UNKNOWN, lambda made: None, "qemu-aarch64", {"flags": "F"}),
        (owners.SYSTEMD, lambda made: conf(made, name="sd"), "sd", {}),
        (
            owners.UNKNOWN,
            lambda made: conf(made, name="sd"),
            "sd",
            {"interpreter": "/usr/bin/crun"},
        ),
        (owners.SUPPORT, lambda made: made.write("/var/lib/binfmts/bs", ""), "bs", {}),
        (owners.WSL, lambda made: None, "WSLInterop", {}),
        (owners.ROSETTA, lambda made: None, "r", {"interpreter": "/run/rosetta/rosetta"}),
        (owners.IMAGE, lambda made: None, "d", {"interpreter": "/usr/bin/qemu-aarch64"}),
        (owners.UNKNOWN, lambda made: None, "x", {}),
    ],
)
def test_owners_are_told_by_what_files_say(made: Made, owner, change, name, how) -> None:
    change(made)
    made.entry(name, **how)
    rows, unreadable = table.rows(Config(), HOST, made.place())
    assert unreadable == []
    assert {row.entry.name: row.owner for row in rows}[name] == owner


def test_without_the_ledger_maid_s_copies_are_known_by_their_place(made: Made) -> None:
    made.remove("/run/maid/ledger/host.json")
    made.entry("maid-aarch64", interpreter="/var/lib/maid/baked/k/qemu-aarch64-static")
    rows, _ = table.rows(Config(), HOST, made.place())
    assert {row.entry.name: row.owner for row in rows}["maid-aarch64"] == owners.MAID


def test_binfmt_d_files_hide_one_another(made: Made) -> None:
    conf(made)
    assert set(owners.configured(made.place())) == {"qemu-aarch64", "python3"}
    made.write("/etc/binfmt.d/qemu-aarch64.conf", ";none\n\n:other:M::x:y:/z:\n")
    assert set(owners.configured(made.place())) == {"other", "python3"}
    made.link("/etc/binfmt.d/qemu-aarch64.conf", "/dev/null")
    assert set(owners.configured(made.place())) == {"python3"}


def test_binfmt_d_lines_may_have_any_delimiter(made: Made) -> None:
    made.write("/etc/binfmt.d/a.conf", "|a|M|0|\\x7f||/usr/bin/a|OCF\n")
    line = owners.configured(made.place())["a"]
    assert (line.interpreter, line.flags) == ("/usr/bin/a", "OCF")


# Interpreters


def identity(name: str, **how: object) -> Interpreter:
    plain = Interpreter(
        Path(f"/usr/bin/qemu-{name}"), Kind.QEMU, (name,), (10, 1), static=True, machine="x86_64"
    )
    return replace(plain, **how)  # type: ignore[arg-type]


def judged(found: dict[str, list[Interpreter]], *platforms: str) -> str:
    wanted: dict[str, list] = {}
    for each in platforms or ("linux/arm64", "linux/s390x"):
        name = next(n for n, t in TARGETS.items() if parse(each).normalized() in t.platforms)
        wanted.setdefault(name, []).append(parse(each).normalized())
    return "\n".join(
        f"{each.level} {each.message} -> {each.hint}"
        for each in programs.judge(wanted, found, "apt-get install it", (6, 12))
    )


def test_good_interpreters_are_only_named() -> None:
    said = judged({name: [identity(name)] for name in ("aarch64", "s390x")})
    assert said == "ok usable: qemu-aarch64 10.1, qemu-s390x 10.1 -> "


def test_a_missing_interpreter_is_a_warning_and_none_at_all_a_problem() -> None:
    some = judged({"aarch64": [identity("aarch64")], "s390x": []})
    assert "warning there is none for linux/s390x -> apt-get install it" in some
    assert judged({}).startswith("problem there is none for linux/arm64, linux/s390x")


def test_a_dynamic_interpreter_is_not_enough() -> None:
    said = judged({"aarch64": [identity("aarch64", static=False)]}, "linux/arm64")
    assert "warning /usr/bin/qemu-aarch64 is a dynamic program" in said
    assert "usable" not in said


def test_a_known_bad_version_is_named_with_its_source() -> None:
    said = judged({"aarch64": [identity("aarch64", version=(8, 2, 2))]}, "linux/arm64")
    assert said.startswith("warning linux/arm64: QEMU 8.2.2: ldconfig segfaults")
    assert "https://gitlab.com/qemu-project/qemu/-/issues/" in said


def test_what_a_good_version_lacks_is_a_note() -> None:
    said = judged({"s390x": [identity("s390x", version=(9, 1))]}, "linux/s390x")
    assert said.startswith("note linux/s390x: QEMU 9.1: it lacks openat2")
    assert "ok usable: qemu-s390x 9.1" in said


def test_an_unusable_file_is_named_with_the_reason() -> None:
    bad = identity("aarch64", rating=Rating(Quality.UNUSABLE, "/usr/bin/qemu-aarch64 is a script"))
    said = judged({"aarch64": [bad]}, "linux/arm64")
    assert "warning /usr/bin/qemu-aarch64 is a script -> reinstall it" in said


def test_the_platforms_that_are_excluded_are_not_missed() -> None:
    config = Config(emulation=Emulation(exclude=("s390x", "linux/arm/v5")))
    wanted = programs.served(config, "x86_64")
    assert "s390x" not in wanted and "x86_64" not in wanted
    assert [str(each) for each in wanted["arm"]] == ["linux/arm/v6", "linux/arm/v7"]


@pytest.mark.parametrize(
    ("release", "command"),
    [
        ("ID=fedora\n", "dnf install qemu-user-static"),
        ('ID="opensuse-leap"\nID_LIKE="suse opensuse"\n', "zypper"),
        ("ID=linuxmint\nID_LIKE=ubuntu\n", "apt-get"),
        ("ID=nixos\n", "qemu-user-static"),
    ],
)
def test_the_package_is_the_distribution_s(made: Made, release: str, command: str) -> None:
    made.write("/etc/os-release", release)
    assert command in programs.install_qemu(made.place())


def test_missing_helpers_are_a_problem_with_the_command_that_builds_them(
    made: Made, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setenv("MAID_LIBEXEC", str(tmp_path / "libexec"))
    monkeypatch.setattr("sys.prefix", str(tmp_path))
    said = found(programs.helpers, made.place())
    assert said.count("problem helpers") == 4
    assert "make -C daemon/native" in said
    for name in programs.HELPERS:
        made.write(f"libexec/{name}", "", 0o644)
    assert f"chmod 755 {tmp_path}/libexec/maid-step" in found(programs.helpers, made.place())
    for name in programs.HELPERS:
        made.write(f"libexec/{name}", "", 0o755)
    assert found(programs.helpers, made.place()).startswith("ok helpers")


# The whole


def test_a_check_that_fails_is_a_finding(made: Made, monkeypatch) -> None:
    def broken_check(config: Config, scope: Scope, place: Place) -> Iterator[Finding]:
        yield Finding(Level.ok, "first", "came before", "")
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(doctor, "CHECKS", (broken_check,))
    first, second = examine(Config(), HOST, made.place())
    assert first.message == "came before"
    assert (second.level, second.subject) == (Level.warning, "broken check")
    assert "ZeroDivisionError: by zero" in second.message


def test_an_unknown_machine_is_said_in_words(made: Made) -> None:
    seen = examine(Config(), HOST, made.place(machine="vax"))
    assert [each for each in seen if "check failed" in each.message] == []
    assert any(
        each.subject == "interpreters" and "no target describes" in each.message for each in seen
    )


def test_what_may_not_be_read_is_a_finding_that_says_so(made: Made, monkeypatch) -> None:
    real = os.open

    def refuse(path, *arguments, **more):
        if str(path).endswith("/limits"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *arguments, **more)

    monkeypatch.setattr(os, "open", refuse)
    seen = examine(Config(), HOST, made.place(**dict(USER)))
    [finding] = [each for each in seen if each.subject == "limits"]
    assert finding.level is Level.note
    assert "/proc/self/limits cannot be read: Permission denied" in finding.message
    assert "sudo maid doctor" in finding.hint


@pytest.mark.parametrize("scope", [HOST, PRIVATE])
@pytest.mark.parametrize("uid", [0, 1000])
def test_an_empty_machine_is_examined_to_the_end(tmp_path: Path, scope: Scope, uid: int) -> None:
    nothing = Place(tmp_path, "", "", uid, frozenset(), {})
    failed = [each for each in examine(Config(), scope, nothing) if "check failed" in each.message]
    assert failed == []


def test_files_full_of_rubbish_are_examined_to_the_end(made: Made) -> None:
    for file in [each for each in made.root.rglob("*") if each.is_file()]:
        mode = stat.S_IMODE(file.stat().st_mode)
        file.write_bytes(bytes(range(256)) * 4 + b"\n:::::::\n- - -\n")
        file.chmod(mode)
    seen = examine(Config(), HOST, made.place(**dict(USER)))
    # A number that is none, and a compressed file that is not, may end a check, never the rest.
    assert len({each.subject for each in seen}) > 10


@pytest.mark.parametrize("scope", [HOST, PRIVATE])
def test_this_machine_is_examined_quickly_and_nothing_is_written(scope: Scope, tmp_path) -> None:
    config = load(scope=scope)
    examine(config, scope)
    state = config.paths.state / "interpreters.json"
    before = (state.stat().st_mtime_ns if state.exists() else None, os.listdir("/run"))
    start = time.monotonic()
    seen = examine(config, scope)
    assert time.monotonic() - start < 2
    assert (state.stat().st_mtime_ns if state.exists() else None, os.listdir("/run")) == before
    assert [each for each in seen if "check failed" in each.message] == []
    assert {"kernel", "interpreters", "cgroups", "space"} <= {each.subject for each in seen}


def test_an_ordinary_user_is_told_and_not_failed(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("whoever runs this is one: the test above")
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)

    def nobody(program: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", program],
            user=65534,
            group=65534,
            extra_groups=[],
            cwd="/",
            env={"PATH": f"{closed}:/usr/bin"},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    if nobody("import maid").returncode:
        pytest.skip("an ordinary user cannot read this checkout")
    done = nobody(
        "from maid.config import *; from maid.doctor import *\n"
        "for each in examine(load(), Scope.HOST): print(each.subject, each.message)"
    )
    assert done.returncode == 0, done.stderr
    assert "check failed" not in done.stdout
    assert "subordinate ids" in done.stdout


@pytest.mark.skipif(
    not os.path.isdir("/sys/fs/cgroup/unified"), reason="cgroups are not hybrid here"
)
def test_hybrid_cgroups_of_this_machine_are_named() -> None:
    seen = examine(load(), HOST)
    assert any(each.subject == "cgroups" and "hybrid" in each.message for each in seen)


def test_findings_are_varlink_types() -> None:
    assert [each.value for each in Level] == [each.name for each in Level]
    assert get_type_hints(Finding)["level"] is Level
    assert not any(isinstance(kind, str) for kind in Finding.__annotations__.values())


# What the daemon knows


def platform(**changes: object) -> dict[str, object]:
    return {
        "platform": "linux/arm64",
        "target": "aarch64",
        "state": "ready",
        "via": "emulated",
        "entry": "qemu-aarch64",
        "owner": "maid",
        "reason": None,
        "required": True,
    } | changes


def said(*platforms: dict[str, object], **changes: object) -> str:
    status = {"ready": True, "runtime": "crun", "platforms": list(platforms)}
    return "\n".join(
        f"{each.level} {each.subject}: {each.message} -> {each.hint}"
        for each in from_status(status | changes)
    )


def test_a_healthy_status_is_one_line() -> None:
    assert said(platform()) == ("ok platforms: 1 execute, every required one among them -> ")


def test_a_required_platform_that_fails_is_a_problem_another_a_warning() -> None:
    failed = platform(state="failed", reason="killed by SIGSEGV")
    assert "problem linux/arm64: failed: killed by SIGSEGV" in said(failed)
    assert "warning linux/arm64: failed" in said(failed | {"required": False})
    assert "check --deep linux/arm64" in said(failed)
    assert 'prefer = "own"' in said(failed | {"owner": "other"})


def test_required_and_absent_or_disabled_is_a_problem() -> None:
    assert "problem linux/arm64: absent" in said(platform(state="absent"))
    assert "change [emulation] exclude" in said(platform(state="disabled"))


def test_absent_platforms_that_nobody_requires_are_one_note() -> None:
    lines = said(
        platform(state="absent", required=False),
        platform(state="absent", required=False, platform="linux/mips"),
        platform(state="absent", required=False, platform=None, target="hppa"),
    )
    assert (
        "note platforms: not served, for want of an interpreter: linux/arm64, linux/mips" in lines
    )
    assert "hppa" not in lines


def test_a_degraded_platform_is_a_warning_with_its_reason() -> None:
    lines = said(platform(state="degraded", reason="its interpreter is no longer on disk"))
    assert "warning linux/arm64: degraded: its interpreter is no longer on disk" in lines


def test_a_contended_entry_is_a_problem_with_a_way_to_find_who() -> None:
    reason = "somebody keeps removing the entry (9 times in the last minute); the next repair"
    assert "problem linux/arm64: somebody keeps" in said(platform(state="failed", reason=reason))
    assert "maid events --follow" in said(platform(reason=reason))


def test_the_daemon_s_words_for_contention_are_the_ones_looked_for() -> None:
    from maid.doctor import reported

    source = Path(elf.__file__).parent / "emulation" / "keeper.py"
    assert reported.CONTENDED in source.read_text()


def test_no_runtime_and_not_ready_are_problems() -> None:
    lines = said(platform(), runtime=None, ready=False, runtime_problem="crun: no cgroups")
    assert "problem OCI runtime: steps (maid run) cannot be started: crun: no cgroups" in lines
    assert "problem platforms: not ready" in lines


def test_what_the_daemon_could_not_have_is_told() -> None:
    lines = said(platform(), namespaces_problem="Linux 6.1", limits_problem="no controller")
    assert "warning namespaces: steps use the machine's own table: Linux 6.1" in lines
    assert "note limits: maid run --memory and --cpus are refused: no controller" in lines
    assert "namespaces" not in said(platform()) and "limits" not in said(platform())


def test_a_status_of_another_shape_is_a_finding() -> None:
    [finding] = from_status({"platforms": 3})
    assert finding.level is Level.warning
    assert "platforms" in finding.message
