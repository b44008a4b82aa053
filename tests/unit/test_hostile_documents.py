"""Whatever a registry says, it is chosen from, looked at and changed, or it is an error with words:
never another exception."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from memory import Memory
from test_index_documents import INDEXES, JSON, MANIFESTS
from test_select import MATCHERS, sources

from maid.errors import MaidError
from maid.images import edit
from maid.images.index import OCI_CONFIG, OCI_MANIFEST, Index
from maid.images.look import look
from maid.images.pull import choose_image
from maid.platforms import Matcher, only, parse


def survives(action: Callable[[], object]) -> None:
    """That it works, or says why not."""
    try:
        action()
    except MaidError as error:
        assert error.message
        assert "\n" not in error.message


def judge(source: Memory, matcher: Matcher) -> None:
    """All that can be done with what a reference names."""
    survives(lambda: choose_image(source, matcher))
    survives(lambda: choose_image(source, matcher, accept_any=True))
    survives(lambda: look(source, sizes=True))
    survives(lambda: look(source, matcher))
    try:
        index = source.top().document
    except MaidError:
        return
    if not isinstance(index, Index):
        return
    group = edit.Group("it", index.manifests)
    survives(lambda: edit.combine([group, group]))
    changes = edit.Changes({"a": "b"}, variant="v9")
    for entry in index.manifests[:2]:
        survives(lambda entry=entry: edit.remove(index, [entry.digest], "it"))  # type: ignore[misc]
        survives(lambda entry=entry: edit.annotate(index, entry.digest, changes, "it"))  # type: ignore[misc]
    survives(lambda: edit.remove(index, ["linux/arm64"], "it"))


@given(INDEXES | MANIFESTS, MATCHERS)
@settings(max_examples=200)
def test_any_document(document: dict[str, Any], matcher: Matcher) -> None:
    source = Memory()
    source.named = json.dumps(document).encode()
    judge(source, matcher)


@given(sources(), MATCHERS, st.data())
@settings(max_examples=200)
def test_a_damaged_index_of_images_that_are_there(
    source: Memory, matcher: Matcher, data: Any
) -> None:
    damaged = bytearray(source.named)
    for _ in range(data.draw(st.integers(0, 3))):
        at = data.draw(st.integers(0, len(damaged) - 1))
        damaged[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
        if not damaged:
            break
    source.named = bytes(damaged)
    judge(source, matcher)


@given(JSON | st.dictionaries(st.sampled_from(["os", "architecture", "variant", "rootfs"]), JSON))
@settings(max_examples=150)
def test_any_configuration(config: object) -> None:
    source = Memory()
    blob = source.blob(config, OCI_CONFIG)
    manifest = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": blob, "layers": []}
    image = source.blob(manifest, OCI_MANIFEST)
    for entry in (image, source.index(image)):
        source.name(entry)
        judge(source, only(parse("linux/arm64")))


@given(st.binary(max_size=100) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_for_a_manifest(data: bytes) -> None:
    source = Memory()
    entry = source.blob(data, OCI_MANIFEST) | {"platform": {"os": "linux", "architecture": "386"}}
    source.name(source.index(entry))
    judge(source, only(parse("linux/386")))
