"""Start each program of a new set, where containers will see it, before anybody else can.

The set is mounted at /dev/.maid/<name> in a mount namespace of a child's own. Each program is
started by the kernel with LD_TRACE_LOADED_OBJECTS set (ld.so(8)): its loader maps it with all its
libraries, lists them and ends before the program's own code runs. So a tool whose loader or library
is missing, of the wrong version, or from outside the store is known before it stands in for
anything. A static program needs nothing of that, and is not started: it knows nothing of the
variable and would do its work.
"""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

import msgspec

from maid import elf
from maid.acceleration.model import Place
from maid.acceleration.records import MOUNT
from maid.acceleration.relocate import LOADER
from maid.errors import MaidError

_CLONE_NEWNS, _CLONE_NEWUSER = 0x20000, 0x10000000
_MS_NOSUID, _MS_BIND, _MS_REC, _MS_PRIVATE = 0x2, 0x1000, 0x4000, 0x40000
# Loading takes a millisecond; a program that ignores the variable must not hang.
_SECONDS = 20.0
_LIBRARY = re.compile(r"=> (\S+|not found)|^\s*(/\S+) \(0x", re.M)


# ld.so(8): list what is loaded, and resolve every symbol and say which cannot be.
_STRICTLY = {"LD_TRACE_LOADED_OBJECTS": "1", "LD_WARN": "1", "LD_BIND_NOW": "1"}


class ProofError(MaidError):
    """The set's programs could not be started for trial."""


def programs(place: Place, names: Iterable[str]) -> dict[str, str]:
    """Why a program of the set cannot be started, for each of `names` that cannot.

    `place.root` is the set's directory, `names` are paths in it. Raises ProofError when nothing can
    be tried: then nothing is known to work.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(reading)
            with os.fdopen(writing, "wb") as answer:
                answer.write(msgspec.json.encode(_in_place(place, names)))
            status = 0
        except OSError as error:
            os.write(2, f"{error}\n".encode())
        finally:
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading, "rb") as answer:
        content = answer.read()
    _, status = os.waitpid(child, 0)
    if status or not content:
        raise ProofError(
            "the native tools could not be tried out in a mount namespace of their own",
            "is the daemon root, or are user namespaces allowed?",
        )
    return msgspec.json.decode(content, type=dict[str, str])


def _in_place(place: Place, names: Iterable[str]) -> dict[str, str]:
    _enter()
    _mount("tmpfs", "/dev", "tmpfs", _MS_NOSUID)
    os.makedirs(place.mount)
    _mount(str(place.root), place.mount, "", _MS_BIND)
    found = {}
    for name in names:
        # A module has symbols that only the program defines that loads it.
        module = name.endswith(".so")
        try:
            if not module and elf.read(place.root / name).static:
                continue
        except elf.ElfError as error:
            found[name] = error.message
            continue
        loader = [f"{place.mount}/{LOADER}", "--list"] if module else []
        problem = _try([*loader, f"{place.mount}/{name}"], {} if module else _STRICTLY)
        if problem:
            found[name] = problem
    return found


def _try(command: list[str], environment: dict[str, str]) -> str:
    """Why the program, or the module that a loader lists, cannot be loaded, or ""."""
    try:
        done = subprocess.run(
            command,
            input="",  # there is no /dev/null here
            capture_output=True,
            text=True,
            errors="replace",
            env=environment,
            timeout=_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"it cannot be started: {error}"
    if done.returncode:
        return f"it cannot be loaded: {(done.stderr or done.stdout).strip()[-300:]}"
    if "symbol" in done.stderr or "version" in done.stderr:
        return f"its libraries do not fit: {done.stderr.strip()[-300:]}"
    for match in _LIBRARY.finditer(done.stdout):
        where = match[1] or match[2]
        if not where.startswith(f"{MOUNT}/"):
            return f"it would load {where}: {done.stdout.strip()[:300]}"
    return ""


def _enter() -> None:
    uid, gid = os.geteuid(), os.getegid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNS | (_CLONE_NEWUSER if uid else 0)) < 0:
        raise OSError(ctypes.get_errno(), "unshare")
    if uid:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
        Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
    _mount("", "/", "", _MS_REC | _MS_PRIVATE)


def _mount(source: str, target: str, kind: str, flags: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    arguments = [os.fsencode(text) or None for text in (source, target, kind)]
    if libc.mount(*arguments, ctypes.c_ulong(flags), None) < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"mount {target}: {os.strerror(number)}")
