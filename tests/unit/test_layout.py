"""A layout's names: replaced at once, and only where they stand for what was read."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from maid.errors import MaidError
from maid.images.index import (
    OCI_CONFIG,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    DocumentError,
    Manifest,
    encode,
)
from maid.images.layout import Layout


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout.create(tmp_path / "layout")


def named(layout: Layout) -> dict[str, str]:
    return {
        (each.annotations or {}).get("org.opencontainers.image.ref.name", ""): each.digest
        for each in layout.index().manifests
    }


def test_a_name_stands_for_one_thing(layout: Layout) -> None:
    one, two = layout.write(b"{}", OCI_INDEX), layout.write(b"{ }", OCI_INDEX)
    layout.set(one, "a")
    layout.set(one, "b")
    layout.set(two, "a")
    layout.set(two, "")
    layout.set(one, "")
    assert named(layout) == {"a": two.digest, "b": one.digest, "": one.digest}
    layout.remove("b")
    assert named(layout) == {"a": two.digest, "": one.digest}
    with pytest.raises(MaidError, match="no image b"):
        layout.remove("b")


def test_what_was_written_meanwhile_is_not_overwritten(layout: Layout) -> None:
    one, two = layout.write(b"{}", OCI_INDEX), layout.write(b"{ }", OCI_INDEX)
    with pytest.raises(MaidError, match="another a by now"):
        layout.set(two, "a", instead_of=one.digest)
    layout.set(one, "a", instead_of=None)
    layout.set(two, "a", instead_of=one.digest)
    with pytest.raises(MaidError, match=two.digest):
        layout.set(one, "a", instead_of=one.digest)
    assert named(layout) == {"a": two.digest}


def test_unknown_fields_of_the_index_stay(layout: Layout) -> None:
    entry = {"mediaType": "", "digest": f"sha256:{'0' * 64}", "size": 1, "x": [1.0]}
    document = {"schemaVersion": 2, "manifests": [entry], "y": {"z": None}}
    (layout.path / "index.json").write_text(json.dumps(document))
    layout.set(layout.write(b"{}", OCI_INDEX), "a")
    after = json.loads((layout.path / "index.json").read_bytes())
    assert after["manifests"][0] == entry
    assert after["y"] == {"z": None}


def test_a_directory_with_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MaidError, match="not empty"):
        Layout.create(tmp_path)
    assert [each.name for each in tmp_path.iterdir()] == ["file"]
    with pytest.raises(MaidError, match="no file oci-layout"):
        Layout(tmp_path)
    with pytest.raises(MaidError, match="is not there"):
        Layout(tmp_path / "none")
    for text, words in (("{}", "cannot be read"), ('{"imageLayoutVersion":"2.0"}', "version 2.0")):
        (tmp_path / "oci-layout").write_text(text)
        with pytest.raises(MaidError, match=words):
            Layout(tmp_path)


def test_an_image_is_held_when_all_of_it_is_there(layout: Layout) -> None:
    config, layer = layout.write(b"{}", OCI_CONFIG), layout.write(b"layer", "x/layer")
    manifest = Manifest(schemaVersion=2, mediaType=OCI_MANIFEST, config=config, layers=(layer,))
    image = layout.write(encode(manifest), OCI_MANIFEST)
    assert layout.holds(image)
    os.truncate(layout.blob(layer.digest), 1)
    assert not layout.holds(image)
    layout.blob(layer.digest).unlink()
    assert not layout.holds(image)
    layout.write(b"layer", "x/layer")
    layout.blob(image.digest).write_bytes(b"")
    assert not layout.holds(image)


@pytest.mark.parametrize("digest", ["sha256:../../x", "sha256:", "x", f"sha256:{'A' * 64}"])
def test_no_digest_leads_out_of_it(layout: Layout, digest: str) -> None:
    with pytest.raises(DocumentError):
        layout.blob(digest)
    with pytest.raises(DocumentError):
        layout.read(Descriptor(digest=digest, size=1))


def test_what_is_read_is_what_was_announced(layout: Layout) -> None:
    descriptor = layout.write(b"{}", OCI_INDEX)
    assert layout.read(descriptor) == b"{}"
    layout.blob(descriptor.digest).write_bytes(b"[]")
    with pytest.raises(DocumentError, match="something else"):
        layout.read(descriptor)
    with pytest.raises(DocumentError, match="too much for a document"):
        layout.read(Descriptor(digest=descriptor.digest, size=1 << 40))
    layout.write(b"{}", OCI_INDEX)
    assert layout.read(descriptor) == b"{}"
