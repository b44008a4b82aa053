"""Which platform a root file system is of: by the programs in it, not by what anybody says.

Looks only through the directory's descriptor, with every symbolic link kept inside it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from maid import kernel
from maid.emulation.targets import Target, for_header

SHELLS = ("/bin/sh", "/usr/bin/env", "/bin/busybox", "/usr/bin/dpkg", "/sbin/apk", "/bin/bash")
"""Programs that tell a distribution's architecture; the first one that is an ELF file decides."""


def target_of(root: int, programs: Iterable[str] = ()) -> Target | None:
    """The target of the root file system `root` (a descriptor); None when nothing in it tells.

    `programs` are looked at when none of the usual ones is there (a scratch image has just one).
    """
    for path in (*SHELLS, *programs):
        header = _header(root, path)
        if header[:4] == b"\x7fELF":
            return for_header(header)
    return None


def candidates(command: str, search_path: str) -> list[str]:
    """Where `command` may be, as execvp(3) looks for it."""
    if "/" in command:
        return [command]
    return [f"{directory}/{command}" for directory in search_path.split(":") if directory]


def _header(root: int, path: str) -> bytes:
    try:
        # A FIFO put in its place must not make the daemon wait.
        descriptor = kernel.open_in_root(root, path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:
        return b""
    try:
        return os.pread(descriptor, 64, 0)
    except OSError:
        return b""
    finally:
        os.close(descriptor)
