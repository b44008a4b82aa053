"""Systems of their own for tests of `maid doctor`: real files and a real kernel, and nothing of
them reaches this machine's.

`examine` makes a user, mount and process namespace with a binfmt_misc table of its own at the
usual place, lays writable copies over /etc and /usr, and runs a shell script there, which breaks
something and then runs the command itself. All of it goes with the namespace's first process.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from daemons import MAID, environment
from keeping import cache_directory
from own_instance import CLONE_NEWNS, CLONE_NEWUSER, _map

from maid.emulation.targets import TARGETS

TABLE = "/proc/sys/fs/binfmt_misc"
CLONE_NEWPID = 0x20000000

CONFIG = """
[emulation]
platforms = ["linux/arm64", "linux/riscv64"]
ready = ["linux/arm64"]
[acceleration]
fill = "off"
"""


def escaped(data: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in data)


def line(name: str, target: str, interpreter: str, flags: str) -> str:
    """The register line of an entry for a target's programs."""
    found = TARGETS[target]
    magic, mask = escaped(found.magic), escaped(found.mask)
    return f":{name}:M::{magic}:{mask}:{interpreter}:{flags}"


PRELUDE = r"""
set -eu
mount --make-rprivate /
mount -t tmpfs -o mode=755 tmpfs "$W"
mkdir "$W/etc" "$W/etc.work" "$W/usr" "$W/usr.work" "$W/bin"
mount -t overlay -o "userxattr,lowerdir=/etc,upperdir=$W/etc,workdir=$W/etc.work" overlay /etc
mount -t overlay -o "userxattr,lowerdir=/usr,upperdir=$W/usr,workdir=$W/usr.work" overlay /usr
mount -t tmpfs -o mode=755 tmpfs /run
mount -t tmpfs -o mode=755 tmpfs /var/lib
mkdir -p /run/lock /var/lib/maid /etc/maid
mount --bind "$STATE" /var/lib/maid
mount -t proc proc /proc
printf '%s' "$CONFIG" >/etc/maid/maid.toml
rm -rf /etc/binfmt.d /usr/lib/binfmt.d /etc/cron.d /etc/rc2.d /etc/rcS.d
grep -q '^maid:' /etc/group || echo maid:x:990: >>/etc/group
T=/proc/sys/fs/binfmt_misc
table() {
    mount -t binfmt_misc own $T
    # Were it another one, nothing may be written to it.
    test "$(echo $T/*)" = "$T/register $T/status"
}
daemon() {
    maid daemon --scope host >"$W/log" 2>&1 &
    for _ in $(seq 600); do
        if maid status >"$W/status" 2>&1; then return; fi
        sleep 0.05
    done
    cat "$W/status" "$W/log" >&2
    exit 70
}
register() { printf '%s' "$1" >$T/register; }
systemd() { mkdir -p /run/systemd/system /run/systemd/units; }
doctor() { rc=0; "$@" maid doctor --json >"$W/found" || rc=$?; cat "$W/found"; exit $((rc + 100)); }
"""


@dataclass(frozen=True)
class Examined:
    """What `maid doctor` said: its exit status, and its findings."""

    status: int
    findings: list[dict[str, str]]

    def of(self, *levels: str) -> list[str]:
        """The findings of these levels, one a line."""
        return [
            f"{each['level']} {each['subject']}: {each['message']} -> {each['hint']}"
            for each in self.findings
            if each["level"] in levels
        ]


def examine(script: str, variables: dict[str, str] | None = None) -> Examined:
    """Run PRELUDE and `script`, which ends with `doctor`, in a system of its own."""
    state = cache_directory()
    state.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="maid-test-") as work:
        done = subprocess.run(
            [sys.executable, __file__, f"{PRELUDE}\n{script}\ndoctor\n"],
            env={
                **environment(),
                "PATH": f"{MAID.parent}:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                "W": work,
                "STATE": str(state),
                "CONFIG": CONFIG,
                **(variables or {}),
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert done.returncode in (100, 101), f"{done.returncode}: {done.stderr}\n{done.stdout}"
    return Examined(done.returncode - 100, json.loads(done.stdout)["findings"])


def _enter(script: str) -> int:
    """Be the parent of a namespace whose first process runs the script; its exit status."""
    libc = ctypes.CDLL(None, use_errno=True)
    unshared, mapped = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        if libc.unshare(CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID) < 0:
            os._exit(71)
        os.write(unshared[1], b"x")
        os.read(mapped[0], 1)
        first = os.fork()
        if first == 0:
            os.execvp("bash", ["bash", "-c", script])
        os._exit(os.waitstatus_to_exitcode(os.waitpid(first, 0)[1]) & 0xFF)
    if os.read(unshared[0], 1) == b"x":
        _map(child)
        os.write(mapped[1], b"x")
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def host_has_a_table() -> bool:
    """Whether this machine's own table is mounted, so that a namespace cannot be without one."""
    points = [each.split()[4] for each in Path("/proc/self/mountinfo").read_text().splitlines()]
    return TABLE in points


if __name__ == "__main__":
    sys.exit(_enter(sys.argv[1]))
