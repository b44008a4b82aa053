"""The room that a build runs in: namespaces of its own, which end with whoever made them.

    python room.py PARENT [--join USERNS] [--devices PLACE STORE] -- CMD [ARG...]

PARENT is the process that starts it: should that have been killed by now, nothing is done.

A room is a user namespace below the one that maid's entries serve (USERNS, the private scope's, or
the machine's own, which it inherits), with a mount and a process namespace. In it the command is
root of its own ids. That gives buildah and the OCI runtime one and the same surrounding in both
scopes and for every user: devices that an image brings are dead, control groups are left alone, and
when this process ends, however it ends, so does everything in the room, and every mount with it.

One id fewer than all is mapped where all could be: crun and runc take a full map for the machine's
own namespace, in which they would set up control groups and make device nodes (facts/engines.md).

This is a program of its own, and imports next to nothing, because each of buildah's and skopeo's
calls waits for it. It knows nothing of images.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys

CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWPID = 0x20000, 0x10000000, 0x20000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_REMOUNT = 1, 2, 4, 32
MS_BIND, MS_REC, MS_SLAVE = 4096, 16384, 1 << 19
PR_SET_PDEATHSIG = 1
CGROUP2_MAGIC = 0x63677270

FULL = 0xFFFFFFFF
"""Ids of a user namespace that has all of them: 0 to 2^32-2 (user_namespaces(7))."""

FAILED = 125
"""Exit status when the room could not be made; what runs in it has the statuses below."""

UNIFIED = "/sys/fs/cgroup/unified"
"""Where a hybrid control group tree has its v2 part; crun before 1.9 refuses to run beside it."""

NODES = ("null", "zero", "full", "random", "urandom", "tty", "fuse")

_libc = ctypes.CDLL(None, use_errno=True)


def main(arguments: list[str]) -> int:
    """Make the room, run the command in it, and return its exit status (128+N for signal N)."""
    parent = int(arguments.pop(0))
    end_with_parent(parent)
    join, devices = "", []
    while arguments and arguments[0] != "--":
        option = arguments.pop(0)
        if option == "--join":
            join = arguments.pop(0)
        elif option == "--devices":
            devices = [arguments.pop(0), arguments.pop(0)]
        else:
            raise SystemExit(f"room: unknown option {option}")
    command = arguments[1:]
    may_map = os.geteuid() == 0
    if join:
        with open(join, "rb") as namespace:
            call("setns", namespace.fileno(), CLONE_NEWUSER)
        become_root()
        end_with_parent(parent)
        may_map = True
    made, mapped = os.pipe(), os.pipe()
    outer = os.getpid()
    child = os.fork()
    if child == 0:
        # Their other ends are the parent's alone: when it dies this is told.
        os.close(made[0])
        os.close(mapped[1])
        inside(outer, command, devices, made[1], mapped[0])
    os.close(made[1])
    os.close(mapped[0])
    if os.read(made[0], 1):
        map_ids(child, may_map)
        os.write(mapped[1], b"x")
    os.close(mapped[1])
    return wait(child)


def inside(parent: int, command: list[str], devices: list[str], made: int, mapped: int) -> None:
    """In the child: what needs the new namespaces, then the first process. Does not return."""
    status = FAILED
    try:
        call("unshare", CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID)
        os.write(made, b"x")
        os.close(made)
        if not os.read(mapped, 1):
            os._exit(FAILED)  # the parent has said why
        become_root()
        end_with_parent(parent)
        mount("none", "/", "", MS_REC | MS_SLAVE)
        if is_hybrid():
            mount("none", UNIFIED, "tmpfs")
        if devices:
            own_devices(*devices)
        alive = os.pipe()
        first = os.fork()
        if first == 0:
            end_with_parent(0)  # its parent is in another process namespace: number 0,
            os.close(alive[1])  # dead or not, so a pipe tells
            if select.select([alive[0]], [], [], 0)[0]:
                os._exit(FAILED)
            mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV)
            os.execvp(command[0], command)
        status = wait(first)
    except OSError as error:
        print(f"room: {error.strerror or error}", file=sys.stderr)
    finally:
        os._exit(status)


def map_ids(child: int, may_map: bool) -> None:
    """Give the child's user namespace all the ids that there are; newuidmap's for who may not."""
    for kind in ("uid", "gid"):
        if may_map:
            rows = own_rows(kind)
            text = "".join(f"{first} {first} {count}\n" for first, count in rows)
            if kind == "gid" and rows == [(0, 1)]:
                write(f"/proc/{child}/setgroups", "deny")
            write(f"/proc/{child}/{kind}_map", text)
            continue
        own = os.getuid() if kind == "uid" else os.getgid()
        ranges = subordinate(f"/etc/sub{kind}")
        if ranges:
            mapping = ["0", str(own), "1", "1", *map(str, ranges)]
            subprocess.run([f"new{kind}map", str(child), *mapping], check=True)
        else:
            if kind == "gid":
                write(f"/proc/{child}/setgroups", "deny")
            write(f"/proc/{child}/{kind}_map", f"0 {own} 1\n")


def own_rows(kind: str) -> list[tuple[int, int]]:
    """First id and number of each range that this process's namespace has, but for the very last
    id where it has all."""
    with open(f"/proc/self/{kind}_map") as file:
        rows = [line.split() for line in file]
    found = [(int(first), int(count)) for first, _, count in rows]
    return [(0, FULL - 1)] if found == [(0, FULL)] else found


def subordinate(file: str) -> tuple[int, int] | None:
    """The first range of ids that /etc/subuid or /etc/subgid gives the caller."""
    import pwd

    names = {str(os.getuid())}
    try:
        names.add(pwd.getpwuid(os.getuid()).pw_name)
        with open(file) as lines:
            for line in lines:
                name, first, count = line.strip().split(":")
                if name in names:
                    return int(first), int(count)
    except (OSError, KeyError, ValueError):
        pass
    return None


def own_devices(place: str, store: str) -> None:
    """A /dev of the room's own, with the native store at /dev/.maid: chroot isolation binds /dev
    whole. It is made in the empty directory `place` and bound over /dev."""
    mount("none", place, "tmpfs", MS_NOSUID, "mode=755")
    for node in NODES:
        if os.path.exists(f"/dev/{node}"):
            write(f"{place}/{node}", "")
            mount(f"/dev/{node}", f"{place}/{node}", "", MS_BIND)
    for name, target in (("fd", "/proc/self/fd"), ("ptmx", "pts/ptmx")):
        os.symlink(target, f"{place}/{name}")
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        os.symlink(f"/proc/self/fd/{number}", f"{place}/{name}")
    for name in ("pts", "shm", "mqueue", ".maid"):
        os.mkdir(f"{place}/{name}")
    mount("none", f"{place}/pts", "devpts", MS_NOSUID, "newinstance,ptmxmode=666,mode=620")
    mount("none", f"{place}/shm", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777")
    if store:
        mount(store, f"{place}/.maid", "", MS_BIND)
        flags = MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV
        mount("none", f"{place}/.maid", "", flags)
    mount(place, "/dev", "", MS_BIND | MS_REC)


def become_root() -> None:
    """Root of the namespace just entered; its groups too, where they may be given up."""
    with contextlib.suppress(OSError):
        os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)


def end_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent ends. Another user namespace undoes it, as
    new capabilities do (kernel/cred.c, commit_creds)."""
    call("prctl", PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(FAILED)


def is_hybrid() -> bool:
    """Whether control groups are those of version 1 with a part of version 2 beside them."""
    buffer = (ctypes.c_long * 32)()
    found = _libc.statfs(os.fsencode(UNIFIED), ctypes.byref(buffer)) == 0
    return found and buffer[0] == CGROUP2_MAGIC


def wait(child: int) -> int:
    """The exit status of a child, as a shell has it."""
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def mount(source: str, target: str, kind: str, flags: int = 0, data: str = "") -> None:
    """mount(2)."""
    encoded = [os.fsencode(text) if text else None for text in (source, target, kind)]
    result = _libc.mount(*encoded, ctypes.c_ulong(flags), os.fsencode(data) if data else None)
    check(result, f"mount {target}")


def call(name: str, *arguments: int) -> None:
    """A function of the C library that returns a negative number when it fails."""
    check(getattr(_libc, name)(*arguments), name)


def check(result: int, what: str) -> None:
    """Raise OSError with the kernel's word when `result` is negative."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def write(path: str, text: str) -> None:
    """Write a file at once."""
    with open(path, "w") as file:
        file.write(text)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (OSError, subprocess.CalledProcessError) as failure:
        print(f"room: {getattr(failure, 'strerror', None) or failure}", file=sys.stderr)
        sys.exit(FAILED)
