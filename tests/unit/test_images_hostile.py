"""What others may have put where images are: damage, pipes, deep nesting, others' entries."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from memory import Entry, Memory, encoded

from maid.errors import MaidError
from maid.images import regular
from maid.images.index import (
    OCI_CONFIG,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    DocumentError,
    Index,
    Manifest,
    PlatformObject,
    encode,
)
from maid.images.layout import Layout
from maid.images.publish import Part, gathered, into_layout
from maid.images.references import Reference, parse_reference
from maid.images.select import MAX_DEPTH
from maid.images.skopeo import Place, Skopeo
from maid.images.sources import DirectorySource, Found, LayoutSource
from maid.images.staging import remove, temporary


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout.create(tmp_path / "layout")


def image(layout: Layout, content: bytes = b"layer") -> Descriptor:
    config, layer = layout.write(b"{}", OCI_CONFIG), layout.write(content, "x/layer")
    manifest = Manifest(schemaVersion=2, mediaType=OCI_MANIFEST, config=config, layers=(layer,))
    return layout.write(encode(manifest), OCI_MANIFEST)


def layer_of(layout: Layout, named: Descriptor) -> Path:
    document = json.loads(layout.blob(named.digest).read_bytes())
    return layout.blob(document["layers"][0]["digest"])


# Damage -----------------------------------------------------------------------------------------


def test_a_damaged_blob_of_the_right_size_is_not_held(layout: Layout) -> None:
    named = image(layout)
    assert layout.holds(named)
    layer_of(layout, named).write_bytes(b"LAYER")
    assert not layout.holds(named)


class Copying(Skopeo):
    """A skopeo that copies an image of a layout, and like it takes any file for its blob."""

    def __init__(self, source: Layout, named: Descriptor) -> None:
        super().__init__()
        object.__setattr__(self, "told", (source, named))

    def copy(
        self,
        source: Place,
        destination: Place,
        about: Reference,
        options: object = (),
        waiting: Callable[[], None] | None = None,
    ) -> None:
        origin, named = getattr(self, "told")  # noqa: B009
        stage = Path(destination.argument.split(":")[1])
        blobs = Path(destination.options[0].partition("=")[2])
        for digest in origin.blobs():
            target = blobs / digest.replace(":", "/")
            if not os.path.lexists(target):
                target.write_bytes(origin.blob(digest).read_bytes())
        entry = {"mediaType": named.mediaType, "digest": named.digest, "size": named.size}
        (stage / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))


@pytest.mark.parametrize("damage", ["bits", "pipe"])
def test_what_was_there_and_is_damaged_is_fetched_again(
    layout: Layout, tmp_path: Path, damage: str
) -> None:
    origin = Layout.create(tmp_path / "origin")
    named = image(origin)
    path = layout.blob(layer_of(origin, named).name.join(["sha256:", ""]))
    if damage == "bits":
        path.write_bytes(b"LAYER")
    else:
        os.mkfifo(path)
    about = parse_reference("test.example/app:1")
    layout.receive(Copying(origin, named), Place("docker://x"), about, True)
    assert path.read_bytes() == b"layer"
    assert layout.holds(named)


# What is no file --------------------------------------------------------------------------------


def test_pipes_and_devices_are_not_read(layout: Layout, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path):
        with pytest.raises(OSError, match="no regular file"):
            regular.read(path, 10)
    named = image(layout)
    layout.set(named, "1")
    for name in ("index.json", "oci-layout"):
        (layout.path / name).unlink()
        os.mkfifo(layout.path / name)
        with pytest.raises(MaidError, match="no regular file"):
            Layout(layout.path).index()
    layout.blob(named.digest).unlink()
    os.symlink("/dev/zero", layout.blob(named.digest))
    with pytest.raises(MaidError, match="no regular file"):
        layout.read(named)


def test_skopeo_is_shown_no_pipe(layout: Layout, tmp_path: Path) -> None:
    named = image(layout)
    path = layer_of(layout, named)
    path.unlink()
    os.mkfifo(path)
    with (
        pytest.raises(DocumentError, match="no regular file"),
        LayoutSource(parse_reference(f"oci:{layout.path}:1")).place(named),
    ):
        pass
    directory = tmp_path / "dir"
    directory.mkdir()
    for name in ("manifest.json", f"{layout.blob(named.digest).name}.manifest.json"):
        (directory / name).write_bytes(layout.blob(named.digest).read_bytes())
    os.mkfifo(directory / "pipe")
    source = DirectorySource(parse_reference(f"dir:{directory}"), directory, Skopeo())
    with pytest.raises(DocumentError, match="no regular file"), source.place(named):
        pass


def test_no_more_is_read_than_is_taken(layout: Layout) -> None:
    with (layout.path / "index.json").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(DocumentError, match="and 4194304 are taken"):
        layout.index()


def test_a_version_that_is_nested_deeply_is_none(tmp_path: Path) -> None:
    (tmp_path / "oci-layout").write_text("[" * 200_000)
    with pytest.raises(MaidError, match="oci-layout cannot be read"):
        Layout(tmp_path)


# Entries of index.json ---------------------------------------------------------------------------


def entries(layout: Layout) -> list[dict[str, object]]:
    document = json.loads((layout.path / "index.json").read_bytes())
    found = document["manifests"]
    assert isinstance(found, list)
    return found


def test_what_an_entry_had_beside_stays_when_its_tag_is_replaced(layout: Layout) -> None:
    one, two, three = (layout.write(b"{}" + b" " * n, OCI_INDEX) for n in range(3))
    name = "org.opencontainers.image.ref.name"
    first = {
        "mediaType": OCI_INDEX,
        "digest": one.digest,
        "size": one.size,
        "annotations": {name: "a", "io.containerd.image.name": "example/a:1", "created": "x"},
        "data": "e30=",
        "platform": {"architecture": "arm64", "os": "linux"},
        "x-unknown": [1],
    }
    second = {"mediaType": OCI_INDEX, "digest": two.digest, "size": two.size}
    document = {"schemaVersion": 2, "manifests": [first, second]}
    (layout.path / "index.json").write_text(json.dumps(document))
    layout.set(three, "a")
    changed = {**first, "digest": three.digest, "size": three.size}
    del changed["platform"], changed["data"]  # of what it named before
    assert entries(layout) == [changed, second]
    layout.set(one, "b")
    assert entries(layout)[:2] == [changed, second]


def test_the_platform_stays_with_the_same_image(layout: Layout) -> None:
    one = layout.write(b"{}", OCI_MANIFEST)
    platform = PlatformObject(architecture="arm64", os="linux")
    layout.set(Descriptor(**{**_fields(one), "platform": platform}), "a")
    layout.set(one, "a")
    assert entries(layout)[0]["platform"] == {"architecture": "arm64", "os": "linux"}


def _fields(descriptor: Descriptor) -> dict[str, object]:
    return {"mediaType": descriptor.mediaType, "digest": descriptor.digest, "size": descriptor.size}


def test_images_without_a_name_stay_beside_each_other(layout: Layout) -> None:
    one, two, three = (layout.write(b"{}" + b" " * n, OCI_INDEX) for n in range(3))
    layout.set(one, "")
    layout.set(two, "")
    layout.set(one, "")
    assert [each["digest"] for each in entries(layout)] == [one.digest, two.digest]
    layout.set(three, "", instead_of=one.digest)
    assert [each["digest"] for each in entries(layout)] == [three.digest, two.digest]
    with pytest.raises(MaidError, match="by now"):
        layout.set(three, "", instead_of=one.digest)


# What killed processes leave, and where nothing can be put ----------------------------------------

KILLED = """
import os, sys
from pathlib import Path
from maid.images import layout, staging
if sys.argv[1] == "temporary":
    with staging.temporary() as path:
        (path / "file").write_text("")
        os.kill(os.getpid(), 9)
os.rename = lambda *_: os.kill(os.getpid(), 9)
layout._replace(Path(sys.argv[2]) / "index.json", b"{}")
"""


def test_temporary_directories_of_killed_processes_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    subprocess.run([sys.executable, "-c", KILLED, "temporary"], check=False)
    (left,) = tmp_path.iterdir()
    with temporary() as one, temporary() as two:
        assert not left.exists()
        assert one.exists() and two.exists()
    assert list(tmp_path.iterdir()) == []


def test_files_that_killed_processes_left_in_a_layout_go(layout: Layout) -> None:
    for directory in (layout.path, layout.path / "blobs/sha256"):
        subprocess.run([sys.executable, "-c", KILLED, "replace", directory], check=False)
        assert len(list(directory.glob(".maid-*"))) == 1
    with layout.staging():
        assert not list((layout.path / "blobs/sha256").glob(".maid-*"))
        assert len(list(layout.path.glob(".maid-*"))) == 1  # its own


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_another_users_leftovers_are_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    other = tmp_path / f"maid-image-{os.geteuid()}-x"
    other.mkdir()
    os.chown(other, 65534, 65534)
    with temporary():
        assert other.exists()


def test_what_is_above_what_cannot_be_removed_stays_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "tree").mkdir()

    def refused(*_: object, **__: object) -> None:
        raise PermissionError(1, "not permitted")

    monkeypatch.setattr(os, "rmdir", refused)
    remove(tmp_path / "tree")
    assert tmp_path.stat().st_mode & 0o777 == 0o755


def test_a_place_for_temporary_files_that_cannot_be_is_told(
    layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "none"))
    with (
        pytest.raises(MaidError, match=r"none cannot be written: No such file or directory"),
        layout.place(image(layout)),
    ):
        pass
    (tmp_path / "a:b").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "a:b"))
    with pytest.raises(MaidError, match="has a colon"), layout.place(image(layout)):
        pass


def test_a_full_place_for_temporary_files_is_told(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with (
        pytest.raises(MaidError, match="No space left") as raised,
        layout.place(image(layout)),
    ):
        pass
    assert raised.value.hint == "free some space"


# Indexes in indexes ------------------------------------------------------------------------------


def part(source: Memory, entry: Entry) -> Part:
    return Part(source, source.name(entry).descriptor)


@pytest.mark.parametrize("copies", [1, 200])
def test_no_more_indexes_are_copied_than_are_followed(layout: Layout, copies: int) -> None:
    source = Memory()
    entry: Entry = source.image("linux/arm64")
    for _ in range(1500 if copies == 1 else 7):
        entry = source.index(*[entry] * copies)
    with pytest.raises(DocumentError, match="nested too deeply, or too many"):
        gathered([part(source, entry)])
    top = source.name(entry)
    parts = [Part(source, each) for each in top.document.manifests]  # type: ignore[union-attr]
    with pytest.raises(DocumentError, match="nested too deeply, or too many"):
        into_layout(Skopeo(), parts, top, layout)
    assert layout.blobs() == set()


def test_attestations_that_are_indexes_count_too() -> None:
    source = Memory()
    entry: Entry = source.image("linux/arm64")
    for _ in range(MAX_DEPTH + 2):
        annotations = {"vnd.docker.reference.type": "attestation-manifest"}
        entry = {**source.index(entry), "annotations": annotations}
    with pytest.raises(DocumentError, match="nested too deeply"):
        gathered([part(source, entry)])


def test_what_is_there_several_times_is_copied_once_and_children_come_first() -> None:
    source = Memory()
    one, two = source.image("linux/arm64"), source.image("linux/amd64")
    inner = source.index(one, one, two)
    outer = source.index(inner, inner, one)
    found = gathered([part(source, each) for each in (outer, inner, two)])
    assert list(found.images) == [one["digest"], two["digest"]]
    assert list(found.indexes) == [inner["digest"], outer["digest"]]


def test_an_index_that_contains_itself_is_not_copied() -> None:
    source = Memory()
    digest = f"sha256:{'0' * 64}"
    entry: Entry = {"mediaType": OCI_INDEX, "digest": digest, "size": 1}
    document = encoded({"schemaVersion": 2, "manifests": [entry]})
    named = Descriptor(**entry)
    # A source that lies: what is under the digest is something else.
    source._known[digest] = Found(named, document, Index(schemaVersion=2, manifests=(named,)))
    with pytest.raises(DocumentError, match="contains itself"):
        gathered([Part(source, named)])
