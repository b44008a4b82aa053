"""Files of directories that others write to: only regular ones are opened.

What has a blob's name may be a pipe, which nobody ever writes to, or a device without an end.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from io import BufferedReader
from pathlib import Path

from maid.images.index import check_digest


class Irregular(OSError):
    """It is a pipe, a device, a directory."""


def opened(path: Path) -> BufferedReader:
    """The file, to be read; a symbolic link is followed. Raises OSError, Irregular among
    them."""
    # With O_NONBLOCK opening a pipe does not wait for who writes to it; a regular file ignores it.
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise Irregular(errno.EINVAL, "it is no regular file", str(path))
        return os.fdopen(file, "rb")
    except BaseException:
        os.close(file)
        raise


def read(path: Path, limit: int) -> bytes:
    """What is in a file, one byte more than `limit` at most. Raises OSError."""
    with opened(path) as file:
        return file.read(limit + 1)


def has_digest(file: BufferedReader, digest: str) -> bool:
    """Whether the digest is that of what follows in the file, which is read in pieces. Raises
    DocumentError for what is no digest, and OSError."""
    algorithm, encoded = check_digest(digest)
    return hashlib.file_digest(file, algorithm).hexdigest() == encoded
