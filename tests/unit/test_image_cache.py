"""What was fetched is kept within bounds, and not taken away from under whoever uses it."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from maid.errors import MaidError
from maid.images import cache
from maid.images.index import OCI_CONFIG, OCI_MANIFEST, Descriptor, Manifest, encode
from maid.images.layout import Layout

DAY = 86400.0


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    with cache.opened(tmp_path / "images") as made:
        return made


def blob(layout: Layout, content: bytes, days: float = 0.0) -> Descriptor:
    descriptor = layout.write(content, OCI_CONFIG)
    moment = time.time() - days * DAY
    os.utime(layout.blob(descriptor.digest), (moment, moment))
    return descriptor


@pytest.mark.parametrize(
    ("environment", "root", "expected"),
    [
        ({}, True, "/var/lib/maid/images"),
        ({"XDG_CACHE_HOME": "/c"}, True, "/var/lib/maid/images"),
        ({"XDG_CACHE_HOME": "/c"}, False, "/c/maid/images"),
        ({}, False, os.path.expanduser("~/.cache/maid/images")),
        ({"XDG_CACHE_HOME": "/c", "MAID_IMAGES": "/m"}, False, "/m"),
        ({"MAID_IMAGES": "/m"}, True, "/m"),
        ({"MAID_IMAGES": ""}, True, "/var/lib/maid/images"),
    ],
)
def test_where_it_is(environment: dict[str, str], root: bool, expected: str) -> None:
    assert cache.cache_directory(environment, root) == Path(expected)


def test_nobody_else_reads_it(tmp_path: Path) -> None:
    with cache.opened(tmp_path / "a/b") as layout:
        assert (tmp_path / "a/b").stat().st_mode & 0o777 == 0o700
        assert layout.blobs() == set()


def test_what_is_old_goes(layout: Layout) -> None:
    old, new = blob(layout, b"old", 31), blob(layout, b"new", 29)
    assert cache.prune(layout) == 3
    assert layout.blobs() == {new.digest}
    assert old.digest not in layout.blobs()


def test_the_least_recently_used_goes_beyond_the_limit(layout: Layout) -> None:
    blobs = [blob(layout, bytes([65 + age]) * 10, age) for age in (3, 0, 2, 1)]
    assert cache.prune(layout, limit=25) == 20
    assert layout.blobs() == {blobs[1].digest, blobs[3].digest}


def test_what_fits_beside_a_large_one_stays(layout: Layout) -> None:
    small, large = blob(layout, b"a", 2), blob(layout, b"b" * 100, 1)
    assert cache.prune(layout, limit=50) == 100
    assert layout.blobs() == {small.digest}
    assert large.digest not in layout.blobs()


def test_what_is_used_is_new_again(layout: Layout) -> None:
    config, layer = blob(layout, b"{}", 40), blob(layout, b"layer", 40)
    manifest = Manifest(schemaVersion=2, mediaType=OCI_MANIFEST, config=config, layers=(layer,))
    named = layout.write(encode(manifest), OCI_MANIFEST)
    other = blob(layout, b"other", 40)
    cache.used(layout, named)
    cache.prune(layout)
    assert layout.blobs() == {config.digest, layer.digest, named.digest}
    assert other.digest not in layout.blobs()


def test_nothing_goes_while_somebody_uses_it(layout: Layout) -> None:
    old = blob(layout, b"old", 40)
    with cache.opened(layout.path):
        assert cache.prune(layout) == 0
        with cache.opened(layout.path):  # two at once
            pass
        assert layout.blobs() == {old.digest}
    assert layout.blobs() == set()


def test_what_cannot_be_removed_stops_nobody(layout: Layout) -> None:
    stray = layout.path / "blobs/sha256/directory"
    stray.mkdir()
    os.utime(stray, (0, 0))
    blob(layout, b"old", 31)
    assert cache.prune(layout) == 3
    assert stray.exists()


def test_a_place_that_cannot_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(MaidError, match="cannot be made") as raised,
        cache.opened(tmp_path / "file/images"),
    ):
        pass
    assert "MAID_IMAGES" in raised.value.hint
