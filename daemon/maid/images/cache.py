"""Blobs that were fetched to be unpacked: kept for the next time, within bounds.

It is an OCI layout in which nothing is named. What has not been used for 30 days goes after each
use, and so does the least recently used beyond 10 GiB.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from maid.errors import MaidError
from maid.images.index import Descriptor, read_manifest
from maid.images.layout import Layout
from maid.images.staging import writing
from maid.images.transfer import blobs_of

LIMIT = 10 << 30
"""Bytes that are kept."""

KEPT_SECONDS = 30 * 86400.0
"""How long what is not used is kept."""


def cache_directory(environment: Mapping[str, str], root: bool) -> Path:
    """Where the blobs are: MAID_IMAGES, else /var/lib/maid/images for root and the user's cache for
    others."""
    if given := environment.get("MAID_IMAGES"):
        return Path(given)
    if root:
        return Path("/var/lib/maid/images")
    home = environment.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(home) / "maid/images"


@contextmanager
def opened(directory: Path) -> Iterator[Layout]:
    """The cache, from which nothing is removed meanwhile; afterwards what is too much.

    Raises MaidError where it cannot be written.
    """
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            directory.mkdir(mode=0o700)  # what is in there may be nobody else's business
    except OSError as error:
        raise MaidError(
            f"{directory} cannot be made: {error.strerror}",
            "the variable MAID_IMAGES names another directory for what was fetched",
        ) from error
    layout = Layout.create(directory)
    with writing(directory):
        holder = os.open(directory / "blobs", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(holder, fcntl.LOCK_SH)
        yield layout
    finally:
        os.close(holder)
    prune(layout)


def used(layout: Layout, descriptor: Descriptor) -> None:
    """Note that an image, all of it, was used just now."""
    manifest = read_manifest(layout.read(descriptor))
    for digest in (descriptor.digest, *blobs_of(manifest)):
        with suppress(OSError):
            os.utime(layout.blob(digest))


def prune(layout: Layout, limit: int = LIMIT, kept_seconds: float = KEPT_SECONDS) -> int:
    """Remove what is too old or too much, and return the bytes; nothing while it is in use."""
    holder = os.open(layout.path / "blobs", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(holder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return _prune(layout, limit, time.time() - kept_seconds)
    except BlockingIOError:
        return 0
    finally:
        os.close(holder)


def _prune(layout: Layout, limit: int, oldest: float) -> int:
    kept, removed = 0, 0
    files = []
    for path in layout.path.glob("blobs/*/*"):
        with suppress(FileNotFoundError):
            files.append((path.stat().st_mtime, path.stat().st_size, path))
    for used_at, size, path in sorted(files, reverse=True):
        kept += size
        if kept > limit or used_at < oldest:
            kept -= size
            with suppress(OSError):  # it is gone, or no blob: nobody's work ends for that
                path.unlink()
                removed += size
    return removed
