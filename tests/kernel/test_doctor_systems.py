"""`maid doctor`, the command, on a healthy system and on systems that were broken on purpose: each
gives its finding with its level and a way out, no other trouble, and exit status 1 for a problem.

Real files and a real kernel in namespaces of their own (broken_systems.py). Made-up machines, for
what no test can have, are in tests/unit/test_doctor_*.py.
"""

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from broken_systems import CONFIG, Examined, examine, host_has_a_table, line
from own_instance import require
from serving import Serving

from maid.emulation.targets import own

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="systems of their own are made by root")

STATIC = shutil.which("qemu-aarch64-static") or ""
GOOD = line("qemu-aarch64", "aarch64", STATIC, "POCF")
NO_DAEMON = ("warning socket: /run/maid/io.maid is not there", "warning daemon: no maid daemon")
"""What is said of every system on which no daemon was started."""

CONTAINER = ("warning container:",)
"""What is said beside, where this machine is a container itself."""

# Changes the version that a QEMU tells of itself into one with known faults, and nothing else.
OLDER = r"""
import re, subprocess, sys
path = sys.argv[1]
said = subprocess.run([path, "--version"], capture_output=True).stdout
old = re.search(rb"version ([0-9.]+)", said)[1]
new = b"8.2." + b"2".zfill(len(old) - 4)
data = open(path, "rb").read()
open(path + ".new", "wb").write(data.replace(old, new))
"""

# Writes the entry when all is imported: from then on no program of this machine starts.
OWN_ARCHITECTURE = """
import sys
import maid.cli.app, maid.cli.doctor, maid.doctor
with open(sys.argv[1] + "/register", "w") as register:
    register.write(sys.argv[2])
sys.exit(maid.cli.doctor.show("/run/maid/io.maid", None, True))
"""


@dataclass(frozen=True)
class Broken:
    """A system: `script` breaks it, `level`, `subject` and `says` are the finding it must give, and
    `hint` a part of the way out. `also`: what else is wrong then, as the beginnings of lines."""

    name: str
    script: str
    level: str
    subject: str
    says: str
    hint: str
    also: tuple[str, ...] = ()
    variables: dict[str, str] = field(default_factory=dict)


def entry(name: str, interpreter: str, flags: str, target: str = "aarch64") -> str:
    return f'register "{line(name, target, interpreter, flags)}"'


SYSTEMS = (
    # The table
    Broken("not mounted", "", "problem", "table", "not mounted at", "systemctl enable --now maid",
           CONTAINER),
    Broken("/proc/sys read-only", "mount --bind /proc/sys /proc/sys;"
           " mount -o remount,bind,ro /proc/sys", "warning", "table", "is read-only, as in a",
           "mount -t binfmt_misc", ("problem table: binfmt_misc is not mounted", *CONTAINER)),
    Broken("table read-only", "table; mount -o remount,bind,ro $T", "problem", "table",
           "mounted read-only", "mount -o remount,rw", CONTAINER),
    Broken("mounted twice", f"table; mount --bind $T $T; register '{GOOD}'", "note",
           "table", "mounted 2 times", "umount"),
    Broken("switched off", f"table; register '{GOOD}'; echo 0 >$T/status", "problem", "table",
           "switched off", "echo 1 >"),
    Broken("no entry", "table", "note", "entries", "there are none", "systemctl start maid"),
    # Entries
    Broken("static QEMU without F", f"table; {entry('qemu-aarch64', STATIC, '')}", "warning",
           "entries", "qemu-aarch64 (somebody unknown) has no flag F", "add F"),
    Broken("dynamic QEMU without F", f"table; {entry('qemu-aarch64', '/usr/bin/env', '')}",
           "warning", "entries", "dynamic interpreter", "qemu-user-static"),
    Broken("interpreter deleted", f"table; cp {STATIC} $W/qemu; {entry('q', '$W/qemu', '')};"
           " rm $W/qemu", "problem", "entries",
           "has no flag F and its interpreter is not there", "maid's service registers a working"),
    Broken("name taken by a broken package", "table; echo '#!/bin/sh' >/usr/bin/qemu-broken;"
           f" chmod 755 /usr/bin/qemu-broken; {entry('qemu-aarch64', '/usr/bin/qemu-broken', '')}",
           "problem", "entries", "no program of this machine", "reinstall the package"),
    Broken("disabled entry", f"table; register '{GOOD}'; echo 0 >$T/qemu-aarch64", "warning",
           "entries", "is disabled", "echo 1 >"),
    Broken("own architecture", "table; doctor() { rc=0; python3 -c \"$PROGRAM\" $T \"$LINE\""
           " >$W/found || rc=$?; while read -r each; do printf '%s\\n' \"$each\"; done <$W/found;"
           " exit $((rc + 100)); }",
           "problem", "entries", "catches this machine's own programs", "echo -1 >",
           ("warning interpreters", "problem interpreters", "warning entries: bad"),
           {"PROGRAM": OWN_ARCHITECTURE, "LINE": line("bad", own(), "/usr/bin/true", "")}),
    Broken("two for the same programs", f"table; register '{GOOD}';"
           f" {entry('rival', STATIC, 'F')}", "warning", "entries", "catch the same programs",
           "maid status shows which one serves"),
    Broken("interpreter upgraded", f"table; cp {STATIC} /usr/bin/q;"
           f" {entry('qemu-aarch64', '/usr/bin/q', 'POCF')}; sleep 0.05; touch /usr/bin/q", "note",
           "entries", "registered before its interpreter was last changed", "registered"),
    Broken("entry from a container's image", f"table; mkdir $W/image; cp {STATIC} $W/image/qemu;"
           f" {entry('qemu-aarch64', '$W/image/qemu', 'POCF')}; rm -r $W/image", "note", "entries",
           "came with a container's image", "systemctl enable maid"),
    Broken("no C and no P", f"table; {entry('qemu-aarch64', STATIC, 'F')}", "note", "entries",
           "has no flag C: set-user-id programs", 'prefer = "own"'),
    # Interpreters and other programs
    Broken("no QEMU", "table; rm -f /usr/bin/qemu-*-static /usr/bin/qemu-aarch64"
           " /usr/bin/qemu-riscv64", "problem", "interpreters", "there is none for linux/arm64",
           "qemu-user-static"),
    Broken("one QEMU is missing", "table; rm -f /usr/bin/qemu-riscv64*", "warning",
           "interpreters", "there is none for linux/riscv64", "qemu-user-static"),
    Broken("a QEMU with known faults", f"table; python3 -c \"$PROGRAM\" {STATIC};"
           f" mv {STATIC}.new {STATIC}; chmod 755 {STATIC}", "warning", "interpreters",
           "ldconfig segfaults", "https://", variables={"PROGRAM": OLDER}),
    Broken("QEMU is a script", f"table; rm {STATIC}; echo '#!/bin/sh' >{STATIC};"
           f" chmod 755 {STATIC}", "warning", "interpreters", "is a script", "reinstall it",
           ("problem interpreters: there is none for", "warning interpreters: there is none for")),
    Broken("no OCI runtime", "table; rm -f /usr/bin/crun /usr/sbin/runc /usr/bin/runc"
           " /usr/local/bin/crun /usr/local/sbin/runc", "problem", "OCI runtime",
           "there is no crun and no runc", "crun"),
    Broken("compiled helpers are missing", "table; cd $(dirname $(command -v maid))/../libexec;"
           " mount -t tmpfs tmpfs maid", "problem", "helpers", "maid-step",
           "make -C daemon/native", also=("warning helpers: ",)),
    # Resources
    Broken("user namespaces switched off", "table; echo 0 >/proc/sys/user/max_user_namespaces",
           "problem", "user namespaces", "max_user_namespaces is 0", "sysctl"),
    Broken("few open files", "table; ulimit -n 256", "warning", "limits", "256 open files",
           "ulimit -n"),
    Broken("little address space", "table; ulimit -v 4194304", "warning", "limits",
           "the address space is limited to 4096 MiB", "ulimit -v unlimited"),
    Broken("few inotify instances", "table; echo 8 >/proc/sys/user/max_inotify_instances",
           "warning", "limits", "max_inotify_instances is 8", "sysctl"),
    Broken("strict overcommit", "table; echo 2 >$W/two;"
           " mount --bind $W/two /proc/sys/vm/overcommit_memory", "warning", "memory",
           "vm.overcommit_memory is 2", "sysctl vm.overcommit_memory=0"),
    Broken("wide randomisation", "table; echo 32 >$W/bits;"
           " mount --bind $W/bits /proc/sys/vm/mmap_rnd_bits", "note", "randomisation",
           "vm.mmap_rnd_bits is 32", "sysctl vm.mmap_rnd_bits=28"),
    Broken("no space for the state", "table; mount -t tmpfs -o size=1m tmpfs /var/lib/maid",
           "warning", "space", "are left in /var/lib/maid", "make room"),
    Broken("state read-only", "table; mount -t tmpfs -o ro tmpfs /var/lib/maid", "problem",
           "space", "read-only file system", "[paths]"),
    Broken("state noexec", "table; mount -t tmpfs -o noexec tmpfs /var/lib/maid", "problem",
           "space", "mounted noexec", "[paths] state"),
    Broken("root without rights", "table; doctor2() { rc=0; setpriv --bounding-set=-sys_admin"
           " --inh-caps=-sys_admin maid doctor --json >$W/found || rc=$?; cat $W/found;"
           " exit $((rc + 100)); }; doctor2", "warning", "namespace", "no CAP_SYS_ADMIN",
           "--privileged"),
    Broken("in a rootless container", "table; doctor unshare --user --map-root-user", "warning",
           "namespace", "user namespace below the machine's", "maid daemon --scope private"),
    # Services and the socket
    Broken("nobody listens", "table; mkdir /run/maid; python3 -c 'import socket;"
           " socket.socket(socket.AF_UNIX).bind(\"/run/maid/io.maid\")'", "warning", "socket",
           "nobody listens at", "maid daemon"),
    Broken("a file instead of the socket", "table; mkdir /run/maid; touch /run/maid/io.maid",
           "problem", "socket", "is no socket", "remove it"),
    Broken("a user who may not", "table; daemon; doctor setpriv --reuid=12345 --regid=12345"
           " --clear-groups", "warning", "socket", "you may not use it", "usermod -aG maid",
           ("warning subordinate ids", "warning user namespaces", "warning daemon:")),
    Broken("no group", "table; sed -i /^maid:/d /etc/group", "warning", "group",
           "there is no group maid", "systemd-sysusers"),
    Broken("a broken configuration", "table; printf '[emulation]\\nplatforms = 7\\n'"
           " >/etc/maid/maid.toml", "problem", "configuration", "line 2", "docs/configuration.md",
           ("warning interpreters",)),
    Broken("the service is not enabled", "table; systemd; touch /etc/systemd/system/maid.service",
           "warning", "service", "not enabled: after a reboot", "systemctl enable --now maid"),
    Broken("the service is masked", "table; systemd;"
           " ln -sf /dev/null /etc/systemd/system/maid.service", "problem", "service", "is masked",
           "systemctl unmask maid"),
    Broken("systemd-binfmt without F", "table; systemd; mkdir /etc/binfmt.d;"
           " cd /usr/lib; mkdir -p systemd/system; touch systemd/system/systemd-binfmt.service;"
           f" echo '{line('qemu-arm', 'arm', '/usr/bin/qemu-arm', 'P')}' >/etc/binfmt.d/qemu.conf",
           "warning", "systemd-binfmt", "without flag F", "lines have F", ("problem service",)),
    Broken("two tools at boot", "table; systemd; mkdir -p /etc/binfmt.d /var/lib/binfmts"
           " /etc/rc2.d /usr/lib/systemd/system;"
           " touch /usr/lib/systemd/system/systemd-binfmt.service /var/lib/binfmts/qemu-arm"
           " /etc/rc2.d/S01binfmt-support;"
           f" echo '{line('qemu-arm', 'arm', STATIC, 'PF')}' >/etc/binfmt.d/qemu.conf",
           "warning", "binfmt-support", "both register emulators", "keep one",
           ("problem service",)),
    Broken("a job that resets", "table; mkdir /etc/cron.d; echo '@daily root docker run --rm"
           " --privileged multiarch/qemu-user-static --reset -p yes' >/etc/cron.d/qemu", "note",
           "installers", "removes entries of others (--reset)", "remove it"),
    # The environment
    Broken("docker's old builder", "table; export DOCKER_BUILDKIT=0", "warning", "environment",
           "DOCKER_BUILDKIT is 0", "unset DOCKER_BUILDKIT"),
    Broken("docker's default platform", "table; export DOCKER_DEFAULT_PLATFORM=linux/amd64",
           "note", "environment", "DOCKER_DEFAULT_PLATFORM is linux/amd64", "--platform"),
    Broken("QEMU's variables", "table; export QEMU_CPU=max", "warning", "environment",
           "QEMU_CPU is set", "unset QEMU_CPU"),
)  # fmt: skip


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    with Serving(CONFIG) as made:
        yield made.start()


def test_a_healthy_system_has_no_trouble(daemon: Serving) -> None:
    done = daemon.maid("--config", str(daemon.directory / "maid.toml"), "doctor", "--json")
    found = Examined(done.returncode, json.loads(done.stdout)["findings"])
    assert found.of("warning", "problem") == []
    assert found.status == 0
    assert len(found.of("ok")) > 5


def test_a_system_without_a_daemon_lacks_nothing_else() -> None:
    require()
    found = examine(f"table; register '{GOOD}'")
    assert [
        each
        for each in found.of("warning", "problem")
        if not each.startswith(NO_DAEMON)
    ] == []  # fmt: skip
    assert len(found.of("warning", "problem")) == len(NO_DAEMON)
    assert found.status == 0


@pytest.mark.parametrize("system", SYSTEMS, ids=lambda system: system.name)
def test_a_broken_system_gives_its_finding(system: Broken) -> None:
    require()
    if "table" not in system.script.split(";")[0] and host_has_a_table():
        pytest.skip("this machine's own table is mounted, and nobody can be without it")
    found = examine(system.script, system.variables)
    assert any(
        each["level"] == system.level
        and each["subject"] == system.subject
        and system.says in each["message"]
        and system.hint in each["hint"]
        for each in found.findings
    ), "\n".join(found.of("note", "warning", "problem"))
    expected = f"{system.level} {system.subject}: "
    other = [
        each
        for each in found.of("warning", "problem")
        if not each.startswith((*NO_DAEMON, *system.also, expected))
    ]
    assert other == [], "nothing else is wrong"
    assert found.status == (1 if found.of("problem") else 0)


def test_there_are_enough_of_them() -> None:
    names = [system.name for system in SYSTEMS]
    print(f"{len(names)} broken systems: {', '.join(names)}")
    assert len(set(names)) == len(names) >= 12
    assert Path(STATIC).exists()
