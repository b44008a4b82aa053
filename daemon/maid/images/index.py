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
from functools import cache
from typing import Any, ClassVar, NamedTuple, TypeVar, get_args, get_origin

import msgspec

from maid.errors import MaidError
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

MAX_DOCUMENT = 4 << 20
"""Bytes of a document: what registries must take (distribution-spec, "Pushing Manifests") and all
that skopeo reads (containers/image, iolimits.MaxManifestBodySize)."""

REF_NAME = "org.opencontainers.image.ref.name"
"""Annotation of an entry of a layout's index.json: its tag (annotations.md)."""

ATTESTATION_TYPE = "vnd.docker.reference.type"
ATTESTATION_OF = "vnd.docker.reference.digest"
"""Annotations by which BuildKit marks an entry that speaks of another (attestation-storage.md)."""

# Grammar of descriptor.md, "Digests". What stands after the algorithm becomes a file name.
_DIGEST = re.compile(r"[a-z0-9]+(?:[+._-][a-z0-9]+)*:[a-zA-Z0-9=_-]+")
_LENGTHS = {"sha256": 64, "sha384": 96, "sha512": 128}

_INT64 = (1 << 63) - 1

_OBJECTS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_LISTS = msgspec.json.Decoder(list[msgspec.Raw])


class DocumentError(MaidError):
    """A document is not what it should be: malformed, of another kind, or not the one named."""


class _Document(msgspec.Struct, frozen=True, kw_only=True):
    """A JSON object; `extra` holds, as it was written, what the type has no field for."""

    extra: dict[str, msgspec.Raw] = {}


class PlatformObject(_Document, frozen=True, kw_only=True):
    """The `platform` of an entry. Both names are required by the specification, and "" where a
    document lacks them: one careless entry is no reason to refuse an index."""

    architecture: str = ""
    os: str = ""
    os_version: str | None = msgspec.field(default=None, name="os.version")
    os_features: tuple[str, ...] | None = msgspec.field(default=None, name="os.features")
    variant: str | None = None

    def platform(self) -> Platform:
        """As maid.platforms has it."""
        return Platform(
            self.os,
            self.architecture,
            self.variant or "",
            self.os_version or "",
            self.os_features or (),
        )


class Descriptor(_Document, frozen=True, kw_only=True):
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


class Index(_Document, frozen=True, kw_only=True):
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


class Manifest(_Document, frozen=True, kw_only=True):
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


class RootFS(_Document, frozen=True, kw_only=True):
    """The digests of an image's layers before they were compressed, lowest first."""

    type: str = "layers"
    diff_ids: tuple[str, ...] = ()


class ImageConfig(_Document, frozen=True, kw_only=True):
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
        return Platform(
            self.os,
            self.architecture,
            self.variant or "",
            self.os_version or "",
            self.os_features or (),
        )


_D = TypeVar("_D", bound=_Document)


def read(data: bytes, media_type: str = "") -> Index | Manifest:
    """The index or manifest in `data`.

    `media_type` is what a descriptor or a registry says it is, "" where nobody does. Raises
    DocumentError for what is neither, for both at once (containerd, validateMediaType: a document
    that is read one way here must not be another one elsewhere), or for another than is said.
    """
    fields = _object(data)
    said = _text(fields.get("mediaType"))
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
    return _checked(_read(Index, data, ""), INDEX_TYPES)


def read_manifest(data: bytes) -> Manifest:
    """The manifest in `data`. Raises DocumentError."""
    return _checked(_read(Manifest, data, ""), MANIFEST_TYPES)


def read_config(data: bytes) -> ImageConfig:
    """The image configuration in `data`. Raises DocumentError."""
    return _read(ImageConfig, data, "")


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


def encode(document: _Document) -> bytes:
    """The document as JSON: known fields in the specification's order, then the others in theirs.
    The same document is the same bytes, always."""
    return msgspec.json.encode(_plain(document))


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


# How a document is read: an object's fields are taken as they were written, and only those that a
# type names are looked into. ------------------------------------------------------------------


def _known(media_type: str) -> bool:
    return media_type in INDEX_TYPES | MANIFEST_TYPES | _SCHEMA_1


def _object(data: bytes | msgspec.Raw, where: str = "") -> dict[str, msgspec.Raw]:
    if isinstance(data, bytes) and len(data) > MAX_DOCUMENT:
        raise DocumentError(f"the document has {len(data)} bytes, and {MAX_DOCUMENT} are taken")
    try:
        return _OBJECTS.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        at = f"{where}: " if where else ""
        raise DocumentError(f"the document cannot be read: {at}{_words(error)}") from error


def _text(raw: msgspec.Raw | None) -> str:
    if raw is None:
        return ""
    try:
        return msgspec.json.decode(raw, type=str)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return ""


def _read(kind: type[_D], data: bytes | msgspec.Raw, where: str) -> _D:
    given = _object(data, where)
    values: dict[str, Any] = {}
    for field in _fields(kind):
        raw = given.pop(field.key, None)
        path = f"{where}.{field.key}" if where else field.key
        # Go's encoders write null for what is not there, and for an empty list.
        value = None if raw is None or bytes(raw) == b"null" else _value(field, raw, path)
        if value is None and field.required:
            if raw is None or not field.is_list:
                raise DocumentError(f"the document cannot be read: {path} is missing")
            value = ()
        if value is not None:
            values[field.name] = value
    return kind(**values, extra=given)


class _Field(NamedTuple):
    """A field of a document: how it is named in the type and in JSON; the class of document that
    it, or each item of it, is, or else a decoder for it."""

    name: str
    key: str
    required: bool
    is_list: bool
    document: type[_Document] | None
    decoder: msgspec.json.Decoder[Any]


@cache
def _fields(kind: type[_Document]) -> list[_Field]:
    found = []
    for field in msgspec.structs.fields(kind):
        if field.name == "extra":
            continue
        documents = [
            each
            for each in (field.type, *get_args(field.type))
            if isinstance(each, type) and issubclass(each, _Document)
        ]
        is_list = get_origin(field.type) is tuple
        found.append(
            _Field(
                field.name,
                field.encode_name,
                field.required,
                is_list,
                documents[0] if documents else None,
                _LISTS if documents else msgspec.json.Decoder(field.type),
            )
        )
    return found


def _value(field: _Field, raw: msgspec.Raw, path: str) -> Any:
    if field.document and not field.is_list:
        return _read(field.document, raw, path)
    try:
        value = field.decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DocumentError(f"the document cannot be read: {path}: {_words(error)}") from error
    if field.document:
        return tuple(
            _read(field.document, item, f"{path}[{number}]") for number, item in enumerate(value)
        )
    if isinstance(value, int) and not 0 <= value <= _INT64:
        raise DocumentError(f"the document cannot be read: {path} is {value}")
    return value


def _words(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return str(error).splitlines()[0]


def _plain(document: _Document) -> dict[str, object]:
    written: dict[str, object] = {}
    for field in _fields(type(document)):
        value = getattr(document, field.name)
        if value is None:
            continue
        if field.document:
            value = [_plain(item) for item in value] if field.is_list else _plain(value)
        written[field.key] = value
    return written | document.extra
