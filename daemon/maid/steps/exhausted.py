"""Words for a machine that has no more of something: room, descriptors, processes, memory."""

from __future__ import annotations

import errno

from maid.errors import MaidError

_HINTS = {
    errno.ENOSPC: "make room on the disk that [paths] runtime of maid.toml names (df)",
    errno.EDQUOT: "make room on the disk that [paths] runtime of maid.toml names (quota)",
    errno.EROFS: "[paths] runtime of maid.toml must name a directory that can be written to",
    errno.EMFILE: "the daemon has as many files open as it may have: LimitNOFILE=",
    errno.ENFILE: "the machine has as many files open as it may have: sysctl fs.file-max",
    errno.EAGAIN: "there are as many processes as there may be: a step that forks without end?"
    " systemd-cgtop, sysctl kernel.pid_max",
    errno.ENOMEM: "the machine has no memory left: systemd-cgtop -m",
}


def refused(error: OSError | RuntimeError, what: str) -> MaidError:
    """The error in words: `what` failed, the kernel's reason and what to do about it.

    Python says RuntimeError where no thread could be started (EAGAIN, pthread_create(3)); any other
    one is none of the machine's, and is raised again.
    """
    if isinstance(error, RuntimeError):
        if "start new thread" not in str(error):
            raise error
        return MaidError(f"{what}: no thread could be started", _HINTS[errno.EAGAIN])
    at = f" ({error.filename})" if isinstance(error.filename, str) else ""
    hint = _HINTS.get(error.errno or 0, "journalctl -u maid")
    return MaidError(f"{what}: {error.strerror or error}{at}", hint)
