"""Have a name stand for a whole image: what it consists of goes first, the name last.

A registry may refuse an index whose images it lacks, and a tag must never name half of one: so the
images go by digest, then the indexes between, then the one that is named. Whoever is ended half-way
leaves the old tag as it was, and the next attempt finds what was sent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from maid.errors import MaidError
from maid.images import pool
from maid.images.index import (
    ATTESTATION_OF,
    DOCKER_MANIFEST,
    INDEX_TYPES,
    OCI_INDEX,
    Descriptor,
    DocumentError,
    Index,
    digest_of,
    encode,
    is_attestation,
)
from maid.images.layout import Layout
from maid.images.references import LAYOUT, REGISTRY, Reference
from maid.images.select import Budget
from maid.images.skopeo import Place, Skopeo
from maid.images.sources import Found, LayoutSource, Source
from maid.images.staging import temporary, writing

_AT_ONCE = 4

Progress = Callable[[Descriptor, Path | None], None]
"""Called for each image: while it is copied with the directory in which files grow (a layout only),
and with None when it is there."""

Naming = Callable[[Reference], None]


def _untold(_: Reference) -> None:
    """Where nobody wants to know."""


@dataclass(frozen=True)
class Part:
    """An image, an index or an attestation that goes along, and where it is."""

    source: Source
    descriptor: Descriptor


def publish(
    skopeo: Skopeo,
    parts: Sequence[Part],
    top: Found,
    destinations: Sequence[Reference],
    progress: Progress | None = None,
    naming: Naming = _untold,
) -> Descriptor:
    """Copy `top`, an index or a single manifest, and have the destinations name it.

    `parts` are the index's own entries, each with the source that has it; for a manifest that
    stands alone, just that. Destinations are tags of one repository, or of one layout. Returns what
    is named now: in a layout Docker's documents become OCI's, and their digests others. `naming` is
    called with each destination just before it may name something else than before. Raises
    MaidError; then no destination names something else than before, or only the last ones do.
    """
    first, *others = destinations
    if any((each.transport, each.name) != (first.transport, first.name) for each in others):
        raise ValueError("the destinations are in several places")
    if first.transport == REGISTRY:
        return _push(skopeo, parts, top, destinations, naming)
    if first.transport == LAYOUT:
        layout = Layout.create(first.directory)
        descriptor = into_layout(skopeo, parts, top, layout, progress)
        for reference in destinations:
            naming(reference)
            layout.set(descriptor, reference.tag)
        return descriptor
    raise MaidError(
        f"an index cannot be written to {first}", "to a registry or an OCI layout: oci:DIR:TAG"
    )


def parts_of(source: Source, found: Found) -> list[Part]:
    """What has to be there for a document: an index's entries, or the one image; all in one
    source."""
    if isinstance(found.document, Index):
        return [Part(source, descriptor) for descriptor in found.document.manifests]
    return [Part(source, found.descriptor)]


@dataclass(frozen=True)
class Gathered:
    """All that parts consist of, each digest once: what is copied as it is, and nested indexes,
    those before that are in others."""

    images: dict[str, Part] = field(default_factory=dict)
    indexes: dict[str, tuple[Part, Index]] = field(default_factory=dict)


def gathered(parts: Sequence[Part]) -> Gathered:
    """What the parts consist of. Raises DocumentError where indexes contain themselves, or are
    nested too deeply, or too many; and MaidError where one cannot be read."""
    found = Gathered()
    _gather(parts, (), Budget(), found)
    return found


def _gather(
    parts: Sequence[Part], within: tuple[Descriptor, ...], budget: Budget, found: Gathered
) -> None:
    for part in parts:
        descriptor = part.descriptor
        if descriptor.mediaType not in INDEX_TYPES:
            found.images.setdefault(descriptor.digest, part)
            continue
        budget.spend(part.source, descriptor, within)
        if descriptor.digest in found.indexes:
            continue
        document = part.source.find(descriptor).document
        if not isinstance(document, Index):
            raise DocumentError(f"{part.source.reference}, {descriptor.digest}: it is no index")
        inner = [Part(part.source, each) for each in document.manifests]
        _gather(inner, (*within, descriptor), budget, found)
        found.indexes[descriptor.digest] = (part, document)


# To a registry ------------------------------------------------------------------------------


def _push(
    skopeo: Skopeo,
    parts: Sequence[Part],
    top: Found,
    destinations: Sequence[Reference],
    naming: Naming,
) -> Descriptor:
    repository = destinations[0]
    if isinstance(top.document, Index):
        _push_parts(skopeo, parts, repository)
        for reference in destinations:
            naming(reference)
            _put(skopeo, top.data, reference)
    else:
        (part,) = parts
        _put_image(skopeo, part, repository.at(part.descriptor.digest))
        for reference in destinations:
            naming(reference)
            _put_image(skopeo, part, reference)
    for reference in destinations:
        _confirm(skopeo, reference, top.descriptor.digest)
    return top.descriptor


def _push_parts(skopeo: Skopeo, parts: Sequence[Part], repository: Reference) -> None:
    all_ = gathered(parts)

    def push(part: Part, go_on: Callable[[], None]) -> None:
        go_on()
        _put_image(skopeo, part, repository.at(part.descriptor.digest), go_on)

    pool.each(push, all_.images.values(), _AT_ONCE)
    for digest, (part, _) in all_.indexes.items():
        _put(skopeo, part.source.find(part.descriptor).data, repository.at(digest))


def _put_image(
    skopeo: Skopeo,
    part: Part,
    reference: Reference,
    waiting: Callable[[], None] | None = None,
) -> None:
    if _is_same(part, reference):
        return
    with part.source.place(part.descriptor) as place:
        options = ["--preserve-digests"]
        skopeo.copy(place, Place(reference.argument), reference, options, waiting)


def _is_same(part: Part, reference: Reference) -> bool:
    """Whether it is where it comes from: an index that is made of images beside it."""
    here = part.source.reference
    return (
        here.transport == REGISTRY
        and here.name == reference.name
        and reference.digest == part.descriptor.digest
    )


def _put(skopeo: Skopeo, data: bytes, reference: Reference) -> None:
    """Store an index, byte for byte; what it names is there."""
    with temporary() as stage:
        with writing(stage):
            (stage / "manifest.json").write_bytes(data)
        options = ["--multi-arch=index-only", "--preserve-digests"]
        skopeo.copy(Place(f"dir:{stage}"), Place(reference.argument), reference, options)


def _confirm(skopeo: Skopeo, reference: Reference, digest: str) -> None:
    """Read the tag back. Raises MaidError where it names something else."""
    found = digest_of(skopeo.raw(reference))
    if found != digest:
        raise MaidError(
            f"{reference} was written as {digest} and now names {found}",
            "somebody else pushed to it at the same time, or the registry changes documents",
        )


# To a layout --------------------------------------------------------------------------------


def into_layout(
    skopeo: Skopeo,
    parts: Sequence[Part],
    top: Found,
    layout: Layout,
    progress: Progress | None = None,
) -> Descriptor:
    """Copy `top` with its parts into a layout, in which nothing names it yet. Returns its
    descriptor there. Raises MaidError."""
    if not isinstance(top.document, Index):
        (part,) = parts
        return _receive(skopeo, part, layout, progress)
    all_ = gathered(parts)
    received = {
        digest: _receive(skopeo, part, layout, progress) for digest, part in all_.images.items()
    }
    for digest, (part, index) in all_.indexes.items():
        found = part.source.find(part.descriptor)
        received[digest] = _index_there(found.data, found.descriptor, index, received, layout)
    return _index_there(top.data, top.descriptor, top.document, received, layout)


def _index_there(
    data: bytes,
    descriptor: Descriptor,
    index: Index,
    received: dict[str, Descriptor],
    layout: Layout,
) -> Descriptor:
    """Store an index of what was received, as it is where all of that is."""
    if all(received[each.digest].digest == each.digest for each in index.manifests):
        return layout.write(data, descriptor.mediaType)
    new = rewritten(index, received)
    return layout.write(encode(new), new.media_type)


def _receive(skopeo: Skopeo, part: Part, layout: Layout, progress: Progress | None) -> Descriptor:
    if isinstance(part.source, LayoutSource) and part.source.layout.path == layout.path:
        return part.descriptor  # an index is made of images beside it
    # OCI's layout holds OCI's manifests; what reads one passes others over by name
    # (containers/image, oci/layout/oci_transport.go, getManifestDescriptor).
    keep = part.descriptor.mediaType != DOCKER_MANIFEST
    if keep and layout.holds(part.descriptor):
        # Also lest skopeo writes a manifest again, which it does in place, and dies half-way.
        if progress:
            progress(part.descriptor, None)
        return part.descriptor
    with part.source.place(part.descriptor) as place:
        received = layout.receive(
            skopeo,
            place,
            part.source.reference,
            keep,
            (lambda stage: progress(part.descriptor, stage)) if progress else None,
        )
    if progress:
        progress(part.descriptor, None)
    return received


def rewritten(index: Index, received: dict[str, Descriptor]) -> Index:
    """The index with the descriptors that its entries have in another place, by the digests they
    had: an OCI index, whose attestations still speak of the same images."""
    entries = []
    for entry in index.manifests:
        new = received[entry.digest]
        entry = msgspec.structs.replace(
            entry, mediaType=new.mediaType, digest=new.digest, size=new.size
        )
        about = entry.annotation(ATTESTATION_OF)
        if is_attestation(entry) and about in received:
            annotations = {**(entry.annotations or {}), ATTESTATION_OF: received[about].digest}
            entry = msgspec.structs.replace(entry, annotations=annotations)
        entries.append(entry)
    return msgspec.structs.replace(index, mediaType=OCI_INDEX, manifests=tuple(entries))
