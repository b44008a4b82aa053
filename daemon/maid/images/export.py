"""A built image out of its storage, its layers compressed once and for all.

A storage holds layers unpacked, and skopeo would compress all of them again for each build, the
base's too, to bytes that no registry has. So the compressed form of a layer is kept beside the
storages, by the digest of the layer (its diff id), and a base's is fetched from where the base came
from: then a layer that is known is neither compressed nor sent again, and who has pulled the base
does not pull it a second time.

A base's layer is never taken for the registry's when it was compressed here: its digest would be
another one. It is known by the digest that the base's manifest has for it, and where the registry
does not answer, what stands in for it is used once, with a warning.

    ROOT/layers/            a layout in which nothing is named: the compressed layers (cache.py)
    ROOT/layers/diff/HEX    which of them a diff id is that was compressed here, as JSON
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from maid.errors import MaidError
from maid.images.build_storage import Storage
from maid.images.buildah import Image, full_disk
from maid.images.index import (
    DOCKER_MANIFEST,
    Descriptor,
    ImageConfig,
    Manifest,
    check_digest,
    digest_of,
    encode,
    read_config,
    read_index,
    read_manifest,
)
from maid.images.layout import Layout
from maid.images.programs import go_on
from maid.images.references import Reference, parse_reference
from maid.images.skopeo import Place, Skopeo
from maid.platforms import Platform

_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
_DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"

_BASE_NAME = "org.opencontainers.image.base.name"
_BASE_DIGEST = "org.opencontainers.image.base.digest"


class Known(msgspec.Struct, frozen=True):
    """The compressed form of a layer: a gzip file of that digest and size in bytes."""

    digest: str
    size: int


class Layers:
    """The compressed layers that are kept, in `layout`."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self._records = layout.path / "diff"
        self._records.mkdir(exist_ok=True)

    def find(self, diff_id: str) -> Known | None:
        """The compressed form of a layer, if it is kept."""
        try:
            known = msgspec.json.decode(self._record(diff_id).read_bytes(), type=Known)
            blob = self.layout.blob(known.digest)
            os.utime(blob)  # used just now
            return known if blob.stat().st_size == known.size else None
        except (OSError, msgspec.DecodeError, MaidError):
            return None

    def take(self, layer: Descriptor, file: Path) -> Known:
        """Keep the compressed form `layer` of a layer, which `file` is."""
        known = Known(layer.digest, layer.size)
        os.chmod(file, 0o644)
        os.rename(file, self.layout.blob(known.digest))
        return known

    def note(self, diff_id: str, known: Known) -> None:
        """Have `find` find what was taken."""
        file, name = tempfile.mkstemp(prefix=".", dir=self._records)
        with os.fdopen(file, "wb") as record:
            record.write(msgspec.json.encode(known))
        os.rename(name, self._record(diff_id))

    def fetch(
        self, skopeo: Skopeo, base: Base, waiting: Callable[[Path], None] | None = None
    ) -> dict[str, Known]:
        """The layers of a base as the registry has them, which it was pulled from, by diff id; none
        for a base of this machine, or whose layers are not compressed with gzip. What is not here
        yet is fetched. Raises MaidError where it cannot be."""
        layers = base.manifest.layers
        if base.origin is None or len(layers) != len(base.diff_ids):
            return {}
        if any(each.mediaType not in (_LAYER, _DOCKER_LAYER) for each in layers):
            return {}
        if not all(map(self._has, layers)):
            self.layout.receive(skopeo, Place(base.origin.argument), base.origin, False, waiting)
        if not all(map(self._has, layers)):
            raise MaidError(f"{base.origin} does not give the layers that its manifest names")
        known = [Known(each.digest, each.size) for each in layers]
        return dict(zip(base.diff_ids, known, strict=True))

    def _has(self, layer: Descriptor) -> bool:
        try:
            blob = self.layout.blob(layer.digest)
            os.utime(blob)  # used just now
            return blob.stat().st_size == layer.size
        except OSError:
            return False

    def _record(self, diff_id: str) -> Path:
        return self._records / "-".join(check_digest(diff_id))


@dataclass(frozen=True)
class Base:
    """The image that a build's last stage began with: its manifest, the diff ids of its layers, its
    platform, and where it came from, None for what is only here."""

    manifest: Manifest
    diff_ids: tuple[str, ...]
    platform: Platform
    origin: Reference | None


@dataclass(frozen=True)
class Built:
    """An image as its storage has it: the manifest names layers that are not compressed."""

    manifest: Manifest
    config: ImageConfig
    config_data: bytes
    base: Base | None

    @property
    def diff_ids(self) -> tuple[str, ...]:
        """The digests of its layers, lowest first."""
        return self.config.rootfs.diff_ids if self.config.rootfs else ()

    @property
    def base_name(self) -> str:
        """What buildah says that the image begins with, "" for nothing."""
        return (self.manifest.annotations or {}).get(_BASE_NAME, "")


def look_at(storage: Storage, image: str) -> Built:
    """What the storage knows of an image that was just built. Raises MaidError."""
    ((manifest_data, config_data),), there = storage.documents([image])
    built = Built(read_manifest(manifest_data), read_config(config_data), config_data, None)
    return replace(built, base=_base(storage, built, there))


def _base(storage: Storage, built: Built, there: Sequence[Image]) -> Base | None:
    """The base of an image.

    Its digest stands among the annotations of an image of OCI's format. Otherwise it is one of
    those that have a name, because a build's own have none; the longest whose layers are the
    image's first ones.
    """
    annotations = built.manifest.annotations or {}
    digest = annotations.get(_BASE_DIGEST, "")
    candidates = [each for each in there if digest and each.digest == digest]
    candidates = candidates or [each for each in there if each.names]
    found: Base | None = None
    documents, _ = storage.documents([each.id for each in candidates])
    for image, (manifest_data, config_data) in zip(candidates, documents, strict=True):
        if not manifest_data or not config_data:
            continue  # a list of images is none
        config = read_config(config_data)
        below = config.rootfs.diff_ids if config.rootfs else ()
        longest = len(found.diff_ids) if found else 0
        is_it = bool(digest) and image.digest == digest
        if built.diff_ids[: len(below)] == below and (is_it or len(below) > longest):
            name = annotations.get(_BASE_NAME, "") or next(iter(image.names), "")
            origin = _origin(name, digest_of(manifest_data))
            found = Base(read_manifest(manifest_data), below, config.platform(), origin)
    return found


def _origin(name: str, digest: str) -> Reference | None:
    """Where a base was pulled from; what has the host `localhost` was made here."""
    try:
        reference = parse_reference(name)
    except MaidError:
        return None
    if reference.transport != "docker" or reference.host == "localhost":
        return None
    return reference.at(digest)


@dataclass(frozen=True)
class Exported:
    """A built image in a layout: its manifest, and what there is to say about it."""

    descriptor: Descriptor
    warnings: tuple[str, ...]


def export(
    storage: Storage,
    image: str,
    built: Built,
    layers: Layers,
    layout: Layout,
    skopeo: Skopeo,
    waiting: Callable[[], None] = go_on,
) -> Exported:
    """Put a built image into `layout`, with layers that are compressed. `waiting` is called now and
    then; what it raises ends this. Raises MaidError."""
    warnings = []
    below: dict[str, Known] = {}
    passing: tuple[str, ...] = ()
    try:
        if built.base is not None:
            try:
                below = layers.fetch(skopeo, built.base, lambda _: waiting())
            except MaidError as error:
                waiting()
                passing = built.base.diff_ids
                warnings.append(
                    f"the layers of {built.base.origin} were compressed here, so the digests are"
                    f" not those of a build for which its registry answers: {error.message}"
                )
        known = _compressed(storage, image, built.diff_ids, layers, below, passing)
        for each in known:
            _link(layers.layout.blob(each.digest), layout.blob(each.digest))
    except OSError as error:
        hint = full_disk(str(error), layers.layout.path)
        raise MaidError(f"{layers.layout.path}: {error.strerror or error}", hint) from error
    kind = _DOCKER_LAYER if built.manifest.media_type == DOCKER_MANIFEST else _LAYER
    descriptors = tuple(
        Descriptor(mediaType=kind, digest=each.digest, size=each.size) for each in known
    )
    layout.write(built.config_data, built.manifest.config.mediaType)
    manifest = msgspec.structs.replace(built.manifest, layers=descriptors)
    return Exported(layout.write(encode(manifest), built.manifest.media_type), tuple(warnings))


def _compressed(
    storage: Storage,
    image: str,
    diff_ids: Sequence[str],
    layers: Layers,
    below: Mapping[str, Known],
    passing: Collection[str],
) -> list[Known]:
    """The compressed form of each layer: those `below` are the base's; what is not kept yet is read
    from the storage, and remembered but for what is `passing`.

    skopeo passes over a layer whose blob the destination has already, and looks at its name alone
    (containers/image, oci/layout/oci_dest.go, TryReusingBlob): so it is shown empty files.
    """
    known: dict[str, Known] = {}
    for diff_id in diff_ids:
        found = below.get(diff_id) or (None if diff_id in passing else layers.find(diff_id))
        if found is not None:
            known[diff_id] = found
    if all(each in known for each in diff_ids):
        return [known[each] for each in diff_ids]
    scratch = storage.work / "export"
    blobs = scratch / "blobs/sha256"
    blobs.mkdir(parents=True)
    for diff_id in known:
        (blobs / check_digest(diff_id)[1]).touch()
    shared = f"--dest-shared-blob-dir={blobs.parent}"
    copy = ["skopeo", "copy", "--quiet", shared, storage.reference(image)]
    storage.run(*copy, f"oci:{scratch}/image:image")
    entries = read_index((scratch / "image/index.json").read_bytes()).manifests
    manifests = [read_manifest((blobs / _encoded(each)).read_bytes()) for each in entries]
    if len(manifests) != 1 or len(manifests[0].layers) != len(diff_ids):
        raise MaidError(f"skopeo has not copied the image {image} as it is in {storage.graph}")
    for diff_id, layer in zip(diff_ids, manifests[0].layers, strict=True):
        if diff_id not in known:
            known[diff_id] = layers.take(layer, blobs / _encoded(layer))
            if diff_id not in passing:
                layers.note(diff_id, known[diff_id])
    shutil.rmtree(scratch, ignore_errors=True)
    return [known[each] for each in diff_ids]


def _encoded(descriptor: Descriptor) -> str:
    return check_digest(descriptor.digest)[1]


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except FileExistsError:
        pass
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)
