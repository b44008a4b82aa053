"""The private scope for an ordinary user: the daemon becomes root of a user namespace of its own.

From there everything works as for root in private scope, in a mount namespace that nobody else
sees: with the user's own id alone, or with the range of /etc/subuid where newuidmap(1) is
installed.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess

from maid.binfmt.namespace import Mapping, for_user
from maid.errors import MaidError

CLONE_NEWNS, CLONE_NEWUSER = 0x20000, 0x10000000
MS_REC, MS_SLAVE = 1 << 14, 1 << 19


def become_root_of_own_namespace() -> None:
    """Move this process, which must have one thread only, into a new user and mount namespace.

    Raises MaidError where the system does not allow it.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    mapping = for_user(os.getuid(), os.getgid())
    pid = os.getpid()
    ready_read, ready_write = os.pipe()
    helper = os.fork()
    if helper == 0:
        # Outside the new namespace, where the set-user-ID programs that write the maps have power.
        status = 1
        try:
            os.close(ready_write)
            if os.read(ready_read, 1) and _write_maps(pid, mapping):
                status = 0
        finally:
            # Whatever happens: there must not be two daemons.
            os._exit(status)
    os.close(ready_read)
    if libc.unshare(CLONE_NEWUSER | CLONE_NEWNS) < 0:
        number = ctypes.get_errno()
        os.close(ready_write)
        os.waitpid(helper, 0)
        raise MaidError(
            f"this user may not make a user namespace: {os.strerror(number)}",
            "maid doctor says which setting forbids it; root needs none of it",
        )
    os.write(ready_write, b"x")
    os.close(ready_write)
    _, status = os.waitpid(helper, 0)
    if status:
        _write_own_map(mapping)
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    if libc.mount(b"none", b"/", None, MS_REC | MS_SLAVE, None) < 0:
        raise MaidError(
            f"the own mount namespace cannot be set up: {os.strerror(ctypes.get_errno())}",
            "maid doctor",
        )


def _write_maps(pid: int, mapping: Mapping) -> bool:
    """Map the subordinate ids too, by newuidmap(1) and newgidmap(1); False where that fails."""
    if len(mapping.uids) < 2 or len(mapping.gids) < 2:
        return False
    for program, rows in (("newuidmap", mapping.uids), ("newgidmap", mapping.gids)):
        path = shutil.which(program)
        if path is None:
            return False
        numbers = [str(n) for row in rows for n in (row.inside, row.outside, row.count)]
        done = subprocess.run(
            [path, str(pid), *numbers], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        if done.returncode:
            return False
    return True


def _write_own_map(mapping: Mapping) -> None:
    """Map the own id alone, which needs no help (user_namespaces(7))."""
    uid, gid = mapping.uids[0].outside, mapping.gids[0].outside
    try:
        for name, text in (
            ("setgroups", "deny"),
            ("gid_map", f"0 {gid} 1"),
            ("uid_map", f"0 {uid} 1"),
        ):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    except OSError as error:
        raise MaidError(f"the own id cannot be mapped: {error.strerror}", "maid doctor") from error
