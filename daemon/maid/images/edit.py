"""Indexes put together and changed: documents in, documents out.

What is not touched stays as it was written, unknown fields too, and in its place. The same input
makes the same document. Attestations go where the image goes that they speak of.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from maid.errors import MaidError, UsageError
from maid.images.index import (
    ATTESTATION_OF,
    DOCKER_LIST,
    DOCKER_MANIFEST,
    OCI_INDEX,
    Descriptor,
    Index,
    PlatformObject,
    is_attestation,
)
from maid.images.select import NoMatch
from maid.platforms import Platform, PlatformError, only_strict, parse

_DOCKER = frozenset({DOCKER_LIST, DOCKER_MANIFEST})

# A digest, or enough of it that it cannot be meant for anything else.
_DIGEST = re.compile(r"sha(?:256|384|512):[0-9a-f]{8,128}")


class Duplicate(MaidError):
    """Two images are for the same platform."""


@dataclass(frozen=True)
class Group:
    """Entries that come from one place; `name` is what an error calls it."""

    name: str
    entries: tuple[Descriptor, ...]


def entry_for(descriptor: Descriptor, platform: Platform) -> Descriptor:
    """The entry of an image that stood alone: its platform is said now."""
    return Descriptor(
        mediaType=descriptor.mediaType,
        digest=descriptor.digest,
        size=descriptor.size,
        platform=PlatformObject(
            architecture=platform.architecture,
            os=platform.os,
            os_version=platform.os_version or None,
            os_features=platform.os_features or None,
            variant=platform.variant or None,
        ),
    )


def combine(groups: Sequence[Group], replace: bool = False) -> tuple[Descriptor, ...]:
    """All entries, in order, each once.

    Raises Duplicate where two groups have images for one platform; with `replace` the later one
    takes the place of the earlier, whose attestations go. What one group has twice stays so, and
    nested indexes are not looked into.
    """
    entries: list[Descriptor] = []
    there: set[tuple[str, str]] = set()
    owners: dict[str, tuple[str, str]] = {}
    for group in groups:
        fresh: dict[str, tuple[str, str]] = {}
        for entry in group.entries:
            key = _key(entry)
            if (entry.digest, key) in there:
                continue
            if key and key in owners:
                name, digest = owners.pop(key)
                if not replace:
                    raise Duplicate(
                        f"{name} and {group.name} both have an image for {key}:"
                        f" {digest} and {entry.digest}",
                        "--replace takes the later one",
                    )
                entries = _replaced(entries, key, entry)
                there = {(each.digest, _key(each)) for each in entries}
            else:
                entries.append(entry)
                there.add((entry.digest, key))
            if key:
                fresh[key] = (group.name, entry.digest)
        owners |= fresh
    return tuple(entries)


def _replaced(entries: list[Descriptor], key: str, entry: Descriptor) -> list[Descriptor]:
    """With `entry` in the place of what is there for its platform."""
    gone = [each for each in entries if _key(each) == key]
    kept = [
        entry if each is gone[0] else each
        for each in entries
        if each is gone[0] or each not in gone
    ]
    for each in gone:
        kept = _without(kept, each.digest)
    return kept


def _key(entry: Descriptor) -> str:
    """The platform that an entry is the one for; "" where it says none, or is no image."""
    if entry.platform is None or is_attestation(entry):
        return ""
    platform = entry.platform.platform().normalized()
    return "" if (platform.os, platform.architecture) == ("unknown", "unknown") else str(platform)


def _without(entries: list[Descriptor], digest: str) -> list[Descriptor]:
    """Without the attestations of an image that is no longer there."""
    if any(each.digest == digest for each in entries):
        return entries
    return [
        each
        for each in entries
        if not (is_attestation(each) and each.annotation(ATTESTATION_OF) == digest)
    ]


def index_of(
    entries: tuple[Descriptor, ...], annotations: Mapping[str, str] | None = None
) -> Index:
    """A new index; a Docker manifest list where all that it has is Docker's, which knows no
    annotations."""
    docker = bool(entries) and all(each.mediaType in _DOCKER for each in entries)
    plain = not annotations and not any(each.annotations for each in entries)
    return Index(
        schemaVersion=2,
        mediaType=DOCKER_LIST if docker and plain else OCI_INDEX,
        manifests=entries,
        annotations=dict(annotations) if annotations else None,
    )


def with_entries(index: Index, entries: tuple[Descriptor, ...]) -> Index:
    """The index with other entries. A Docker manifest list becomes an OCI index where something
    gets into it that it has no place for."""
    changed = msgspec.structs.replace(index, manifests=entries)
    if (
        index.mediaType == DOCKER_LIST
        and index_of(entries, index.annotations).mediaType == OCI_INDEX
    ):
        return msgspec.structs.replace(changed, mediaType=OCI_INDEX)
    return changed


def find(index: Index, wanted: str, about: str) -> Descriptor:
    """The entry that a platform or a digest names, all of it or its beginning.

    Raises NoMatch with what there is, UsageError where it names several, or nothing can be named
    so.
    """
    if _DIGEST.fullmatch(wanted):
        found = [each for each in index.manifests if each.digest.startswith(wanted)]
        found = list({each.digest: each for each in found}.values())
    else:
        try:
            matcher = only_strict(parse(wanted))
        except PlatformError as error:
            raise UsageError(
                f"{wanted!r} is neither a platform nor a digest",
                "for example linux/arm64, or sha256:… as maid index inspect shows it",
            ) from error
        found = [
            each
            for each in index.manifests
            if each.platform and _key(each) and matcher.matches(each.platform.platform())
        ]
    if not found:
        there = ", ".join(dict.fromkeys(filter(None, map(_key, index.manifests))))
        raise NoMatch(f"{about} has no entry for {wanted}", f"it has {there or 'no platforms'}")
    if len(found) > 1:
        raise UsageError(
            f"{about} has {len(found)} entries for {wanted}",
            f"name one by its digest: {', '.join(each.digest for each in found[:5])}",
        )
    return found[0]


def remove(index: Index, wanted: Iterable[str], about: str) -> Index:
    """Without these entries and what attests them. Raises as `find` does."""
    entries = list(index.manifests)
    for entry in [find(index, each, about) for each in wanted]:
        entries = [each for each in entries if each != entry]
        entries = _without(entries, entry.digest)
    return with_entries(index, tuple(entries))


@dataclass(frozen=True)
class Changes:
    """What becomes different: annotations to set and to take away, and members of the platform;
    None leaves one as it is, "" or () takes it away."""

    annotations: Mapping[str, str]
    removed: tuple[str, ...] = ()
    os: str | None = None
    architecture: str | None = None
    variant: str | None = None
    os_version: str | None = None
    os_features: tuple[str, ...] | None = None

    @property
    def platform(self) -> bool:
        """Whether something of the platform becomes different."""
        members = (self.os, self.architecture, self.variant, self.os_version, self.os_features)
        return any(each is not None for each in members)


def annotate(index: Index, wanted: str, changes: Changes, about: str) -> Index:
    """With changes to the entry that `wanted` names, or, where that is "", to the index itself.

    Raises as `find` does, and UsageError where an annotation is to go that is not there.
    """
    if not wanted:
        if changes.platform:
            raise UsageError(
                "an index has no platform", "name an entry: its platform or its digest"
            )
        annotations = _annotations(index.annotations, changes, about)
        changed = msgspec.structs.replace(index, annotations=annotations)
        return with_entries(changed, index.manifests)
    entry = find(index, wanted, about)
    new = msgspec.structs.replace(
        entry, annotations=_annotations(entry.annotations, changes, f"{about}, {wanted}")
    )
    if changes.platform:
        new = msgspec.structs.replace(new, platform=_platform(entry.platform, changes))
        others = {_key(each) for each in index.manifests if each != entry}
        if _key(new) in others:
            raise Duplicate(
                f"{about} has an image for {_key(new)} already", "remove that one first"
            )
    return with_entries(index, tuple(new if each == entry else each for each in index.manifests))


def _annotations(
    given: Mapping[str, str] | None, changes: Changes, about: str
) -> dict[str, str] | None:
    annotations = dict(given or {})
    for name in changes.removed:
        if name not in annotations:
            there = ", ".join(annotations)
            raise UsageError(f"{about} has no annotation {name}", f"it has {there or 'none'}")
        del annotations[name]
    annotations |= changes.annotations
    return annotations or None


def _platform(given: PlatformObject | None, changes: Changes) -> PlatformObject:
    platform = given or PlatformObject()
    for member in ("os", "architecture"):
        value = getattr(changes, member)
        if value is not None:
            platform = msgspec.structs.replace(platform, **{member: value})
    for member in ("variant", "os_version", "os_features"):
        value = getattr(changes, member)
        if value is not None:
            platform = msgspec.structs.replace(platform, **{member: value or None})
    if not platform.os or not platform.architecture:
        raise UsageError("a platform needs an os and an architecture", "--os linux --arch arm64")
    return platform
