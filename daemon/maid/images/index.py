"""The documents of the OCI image specification and Docker's counterparts: typed, and kept whole.

An image index (Docker: manifest list) names one manifest a platform, a manifest a configuration and
layers. They are read into the types below and written again byte for byte the same way whenever
their content is the same; a field that this module has no name for is kept as it was written, in
its place after the known ones, so that editing a document loses nothing of it.

Where documents come from is not known here (sources.py), nor which entry is wanted (select.py).

Rules: github.com/opencontainers/image-spec, image-index.md, manifest.md, config.md, descriptor.md.
"""

from __future__ import annotations

import hashlib
import re
from typing import ClassVar, TypeVar

import msgspec

from maid.images.documents import MAX_DOCUMENT as MAX_DOCUMENT
from maid.images.documents import Document, object_in, read_as, text_in
from maid.images.documents import DocumentError as DocumentError
from maid.images.documents import encode as encode
from maid.platforms import Platform

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"

INDEX_TYPES = frozenset({OCI_INDEX, DOCKER_LIST})
MANIFEST_TYPES = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
CONFIG_TYPES = frozenset({OCI_CONFIG, DOCKER_CONFIG})

# Docker's first format, in both spellings: an image that no current tool makes.
_SCHEMA_1 = frozenset(
    f"application/vnd.docker.distribution.manifest.v1+{form}" for form in ("json", "prettyjws")
)

REF_NAME = "org.opencontainers.image.ref.name"
"""Annotation of an entry of a layout's index.json: its tag (annotations.md)."""

ATTESTATION_TYPE = "vnd.docker.reference.type"
ATTESTATION_OF = "vnd.docker.reference.digest"
"""Annotations by which BuildKit marks an entry that speaks of another (attestation-storage.md)."""

# Grammar of descriptor.md, "Digests". What stands after the algorithm becomes a file name.
_DIGEST = re.compile(r"[a-z0-9]+(?:[+._-][a-z0-9]+)*:[a-zA-Z0-9=_-]+")
_LENGTHS = {"sha256": 64, "sha384": 96, "sha512": 128}


class PlatformObject(Document, frozen=True, kw_only=True):
    """The `platform` of an entry. Both names are required by the specification, and "" where a
    document lacks them: one careless entry is no reason to refuse an index."""

    architecture: str = ""
    os: str = ""
    os_version: str | None = msgspec.field(default=None, name="os.version")
    os_features: tuple[str, ...] | None = msgspec.field(default=None, name="os.features")
    variant: str | None = None

    def platform(self) -> Platform:
        """As maid.platforms has it."""
        return _platform(self)


def _platform(stated: PlatformObject | ImageConfig) -> Platform:
    """What an entry or a configuration states, as maid.platforms has it."""
    return Platform(
        stated.os,
        stated.architecture,
        stated.variant or "",
        stated.os_version or "",
        stated.os_features or (),
    )


class Descriptor(Document, frozen=True, kw_only=True):
    """What stands for a blob: its type, digest and size in bytes, and what is known of it."""

    mediaType: str = ""
    digest: str
    size: int
    urls: tuple[str, ...] | None = None
    annotations: dict[str, str] | None = None
    data: str | None = None
    artifactType: str | None = None
    platform: PlatformObject | None = None

    def annotation(self, name: str) -> str:
        """The annotation of that name, or ""."""
        return (self.annotations or {}).get(name, "")


class Index(Document, frozen=True, kw_only=True):
    """An image index, or a Docker manifest list."""

    schemaVersion: int
    mediaType: str | None = None
    artifactType: str | None = None
    manifests: tuple[Descriptor, ...]
    subject: Descriptor | None = None
    annotations: dict[str, str] | None = None

    foreign: ClassVar[tuple[str, ...]] = ("config", "layers", "fsLayers")

    @property
    def media_type(self) -> str:
        """Its type: an OCI index need not say it."""
        return self.mediaType or OCI_INDEX


class Manifest(Document, frozen=True, kw_only=True):
    """An image manifest, OCI's or Docker's (schema 2)."""

    schemaVersion: int
    mediaType: str | None = None
    artifactType: str | None = None
    config: Descriptor
    layers: tuple[Descriptor, ...]
    subject: Descriptor | None = None
    annotations: dict[str, str] | None = None

    foreign: ClassVar[tuple[str, ...]] = ("manifests", "fsLayers")

    @property
    def media_type(self) -> str:
        """Its type: an OCI manifest need not say it."""
        return self.mediaType or OCI_MANIFEST


class RootFS(Document, frozen=True, kw_only=True):
    """The digests of an image's layers before they were compressed, lowest first."""

    type: str = "layers"
    diff_ids: tuple[str, ...] = ()


class ImageConfig(Document, frozen=True, kw_only=True):
    """An image's configuration: which platform it is for, and the layers. What is executed in it
    is kept in `extra`."""

    created: str | None = None
    architecture: str = ""
    os: str = ""
    os_version: str | None = msgspec.field(default=None, name="os.version")
    os_features: tuple[str, ...] | None = msgspec.field(default=None, name="os.features")
    variant: str | None = None
    rootfs: RootFS | None = None

    def platform(self) -> Platform:
        """The platform that the image is for."""
        return _platform(self)


def read(data: bytes, media_type: str = "") -> Index | Manifest:
    """The index or manifest in `data`.

    `media_type` is what a descriptor or a registry says it is, "" where nobody does. Raises
    DocumentError for what is neither, for both at once (containerd, validateMediaType: a document
    that is read one way here must not be another one elsewhere), or for another than is said.
    """
    fields = object_in(data)
    said = text_in(fields.get("mediaType"))
    if media_type and said and media_type != said and _known(media_type) and _known(said):
        raise DocumentError(f"the document says it is {said}, where {media_type} was announced")
    kind = said if _known(said) else media_type if _known(media_type) else ""
    if kind in _SCHEMA_1 or "fsLayers" in fields:
        raise DocumentError(
            "it is an image of Docker's schema 1, which was given up in 2019",
            "push it again with a current tool",
        )
    if kind in INDEX_TYPES or (not kind and "manifests" in fields):
        return read_index(data)
    if kind in MANIFEST_TYPES or (not kind and "config" in fields and "layers" in fields):
        return read_manifest(data)
    raise DocumentError(
        f"the document is neither an image index nor a manifest ({said or media_type or 'no type'})"
    )


def read_index(data: bytes) -> Index:
    """The image index or manifest list in `data`. Raises DocumentError."""
    return _checked(read_as(Index, data), INDEX_TYPES)


def read_manifest(data: bytes) -> Manifest:
    """The manifest in `data`. Raises DocumentError."""
    return _checked(read_as(Manifest, data), MANIFEST_TYPES)


def read_config(data: bytes) -> ImageConfig:
    """The image configuration in `data`. Raises DocumentError."""
    return read_as(ImageConfig, data)


_IM = TypeVar("_IM", Index, Manifest)


def _checked(document: _IM, types: frozenset[str]) -> _IM:
    if document.schemaVersion != 2:
        raise DocumentError(f"its schemaVersion is {document.schemaVersion}, which must be 2")
    if document.mediaType and document.mediaType not in types:
        raise DocumentError(f"its mediaType is {document.mediaType}")
    for name in document.foreign:
        if name in document.extra:
            raise DocumentError(
                f"it has the field {name}, so that it is two kinds of document at once"
            )
    return document


def digest_of(data: bytes) -> str:
    """The digest that `data` is known by."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def describe(data: bytes, media_type: str) -> Descriptor:
    """The descriptor of a document."""
    return Descriptor(mediaType=media_type, digest=digest_of(data), size=len(data))


def check_digest(digest: str) -> tuple[str, str]:
    """The algorithm and the encoded part of a digest that can be verified here.

    Raises DocumentError for what is no digest (it becomes part of a path) or of an unknown
    algorithm.
    """
    algorithm, _, encoded = digest.partition(":")
    if not _DIGEST.fullmatch(digest):
        raise DocumentError(f"{digest[:80]!r} is no digest")
    if algorithm not in _LENGTHS:
        raise DocumentError(f"the digest {digest[:80]} has an algorithm that maid does not know")
    if len(encoded) != _LENGTHS[algorithm] or encoded.strip("0123456789abcdef"):
        raise DocumentError(f"{digest[:160]!r} is no {algorithm} digest")
    return algorithm, encoded


def verify(descriptor: Descriptor, data: bytes) -> bytes:
    """`data`, which has the descriptor's size and digest. Raises DocumentError where it has not."""
    if len(data) != descriptor.size:
        raise DocumentError(
            f"{descriptor.digest} has {len(data)} bytes, where {descriptor.size} were announced"
        )
    algorithm, encoded = check_digest(descriptor.digest)
    found = hashlib.new(algorithm, data).hexdigest()
    if found != encoded:
        raise DocumentError(
            f"what was sent for {descriptor.digest} is something else: {algorithm}:{found}"
        )
    return data


def is_attestation(descriptor: Descriptor) -> bool:
    """Whether the entry speaks of another one (R9)."""
    return bool(descriptor.annotation(ATTESTATION_TYPE))


def _known(media_type: str) -> bool:
    return media_type in INDEX_TYPES | MANIFEST_TYPES | _SCHEMA_1
