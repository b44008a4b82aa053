"""Make indexes out of images that are there, and change those that are: read, edit, publish.

A registry has no way to replace a tag only if it still is what was read (distribution-spec): it is
read again right before it is written, and what somebody else writes in that instant is lost. A
layout has a lock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import groupby

from maid.errors import MaidError, UsageError
from maid.images import edit
from maid.images.index import (
    REF_NAME,
    Descriptor,
    DocumentError,
    Index,
    describe,
    digest_of,
    encode,
)
from maid.images.layout import Layout
from maid.images.publish import Part, into_layout, publish
from maid.images.references import LAYOUT, REGISTRY, Reference
from maid.images.skopeo import NotFound, Skopeo
from maid.images.sources import Found, Source, open_source


@dataclass(frozen=True)
class Prepared:
    """An index as it is to be written, and where its parts are. `before` is the digest of what the
    name has to stand for until then, None where that does not matter."""

    top: Found
    parts: tuple[Part, ...]
    before: str | None = None


@contextmanager
def created(
    skopeo: Skopeo,
    sources: Sequence[Reference],
    annotations: Mapping[str, Mapping[str, str]],
    *,
    onto: Reference | None = None,
    replacing: bool = False,
) -> Iterator[Prepared]:
    """An index of all that the sources have.

    `annotations` are the index's own under "", an entry's under its platform. With `onto` the
    entries go after those that are there, if any are. One index alone is taken as it is, to the
    byte. Raises MaidError, Duplicate among them.
    """
    with ExitStack() as stack:
        opened = [stack.enter_context(open_source(each, skopeo)) for each in sources]
        before = None
        if onto is not None:
            there = stack.enter_context(open_source(onto, skopeo))
            try:
                before = there.top().descriptor.digest
                opened.insert(0, there)
            except NotFound:
                pass
        if len(opened) == 1 and not annotations:
            top = opened[0].top()
            if isinstance(top.document, Index):
                yield _prepared(top, opened, before)
                return
        groups = [_group(each) for each in opened]
        index = edit.index_of(edit.combine(groups, replacing), annotations.get("", {}))
        for wanted, values in annotations.items():
            if wanted:
                index = edit.annotate(index, wanted, edit.Changes(values), "the new index")
        yield _prepared(_found(index), opened, before)


@contextmanager
def changed(
    skopeo: Skopeo,
    reference: Reference,
    change: Callable[[Index, Sequence[edit.Group]], Index],
    sources: Sequence[Reference] = (),
) -> Iterator[Prepared | None]:
    """The index that a name stands for, changed; None where the change changes nothing.

    `change` gets the index, and the entries of each of the `sources`. Raises MaidError.
    """
    with ExitStack() as stack:
        source = stack.enter_context(open_source(reference, skopeo))
        index = index_in(source)
        others = [stack.enter_context(open_source(each, skopeo)) for each in sources]
        new = change(index, [_group(each) for each in others])
        if new == index:
            yield None
            return
        yield _prepared(_found(new), [source, *others], source.top().descriptor.digest)


def index_in(source: Source) -> Index:
    """The index that a reference names. Raises DocumentError where it is an image."""
    document = source.top().document
    if not isinstance(document, Index):
        raise DocumentError(
            f"{source.reference} is a single image, and no index",
            f"maid index create -t {source.reference} {source.reference} … makes one of it",
        )
    return document


def named(reference: Reference) -> Reference:
    """The reference with the tag that is to be written: what is changed needs a name.

    A layout's only image needs none. Raises UsageError.
    """
    if reference.transport == REGISTRY:
        if reference.digest:
            raise UsageError(
                f"{reference} names a digest, which cannot be changed",
                f"maid index create -t {reference.name}:TAG {reference} gives it a name",
            )
        return reference
    if reference.transport != LAYOUT:
        raise UsageError(
            f"{reference}: indexes are written to registries and OCI layouts", "oci:DIR:TAG"
        )
    if reference.tag:
        return reference
    entries = Layout(reference.directory).index().manifests
    if len(entries) != 1:
        raise UsageError(f"{reference} has {len(entries)} images", f"name one: {reference}:TAG")
    return replace(reference, tag=entries[0].annotation(REF_NAME))


def write(skopeo: Skopeo, prepared: Prepared, targets: Sequence[Reference]) -> list[Descriptor]:
    """Publish an index under these names; returns what each of them stands for now.

    Raises MaidError, also where a name stands for something else than it has to; then it still
    does.
    """
    written = []
    for _, group in groupby(targets, lambda each: (each.transport, each.name)):
        places = list(group)
        if places[0].transport == LAYOUT:
            layout = Layout.create(places[0].directory)
            descriptor = into_layout(skopeo, prepared.parts, prepared.top, layout)
            for place in places:
                layout.set(descriptor, place.tag, prepared.before)
        else:
            for place in places:
                _require(skopeo, place, prepared.before)
            descriptor = publish(skopeo, prepared.parts, prepared.top, places)
        written += [descriptor] * len(places)
    return written


def _require(skopeo: Skopeo, reference: Reference, before: str | None) -> None:
    if before is None:
        return
    now = digest_of(skopeo.raw(reference))
    if now != before:
        raise MaidError(
            f"{reference} names {now} by now, where {before} was read", "somebody pushed: try again"
        )


def _group(source: Source) -> edit.Group:
    top = source.top()
    if isinstance(top.document, Index):
        return edit.Group(str(source.reference), top.document.manifests)
    platform = source.config(top).platform()
    if not platform.os or not platform.architecture:
        raise DocumentError(
            f"{source.reference} is no image: its configuration names no platform",
            "only images can be entries of an index",
        )
    return edit.Group(str(source.reference), (edit.entry_for(top.descriptor, platform),))


def _prepared(top: Found, sources: Sequence[Source], before: str | None) -> Prepared:
    owners: dict[str, Source] = {}
    for source in sources:
        found = source.top()
        entries = found.document.manifests if isinstance(found.document, Index) else ()
        for entry in (*entries, found.descriptor):
            owners.setdefault(entry.digest, source)
    assert isinstance(top.document, Index)
    parts = tuple(Part(owners[each.digest], each) for each in top.document.manifests)
    return Prepared(top, parts, before)


def _found(index: Index) -> Found:
    data = encode(index)
    return Found(describe(data, index.media_type), data, index)
