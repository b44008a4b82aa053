"""Which image of an index is the one that a platform gets (facts/platforms.md, R8 and R9).

The rules are containerd's (images.Manifest), and one more: an image that stands alone is checked
against its configuration too. containerd does not, and its users get the wrong architecture without
a word.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cmp_to_key

from maid.errors import PlatformUnavailable
from maid.images.index import (
    ATTESTATION_OF,
    INDEX_TYPES,
    MANIFEST_TYPES,
    Descriptor,
    DocumentError,
    Index,
    is_attestation,
)
from maid.images.sources import Found, Source
from maid.platforms import Matcher, Platform

MAX_DEPTH = 8
"""Indexes in indexes that are followed. Nobody publishes more than two."""

MAX_INDEXES = 256
"""Indexes read for one choice: with MAX_DEPTH, what bounds a document made to be endless."""

_UNKNOWN = Platform("unknown", "unknown")


class NoMatch(PlatformUnavailable):
    """There is no image for the platform."""


@dataclass(frozen=True)
class Entry:
    """An image that an index has.

    `platform` is what the index says of it, None where it says nothing; `within` the indexes on the
    way to it, outermost first, without the one that was asked for; `attestations` what speaks of
    it.
    """

    descriptor: Descriptor
    platform: Platform | None = None
    within: tuple[Descriptor, ...] = ()
    attestations: tuple[Descriptor, ...] = ()


@dataclass(frozen=True)
class Contents:
    """All that an index has: images, attestations of none of them, and entries of other kinds."""

    images: tuple[Entry, ...]
    stray: tuple[Descriptor, ...] = ()
    others: tuple[Descriptor, ...] = ()


@dataclass(frozen=True)
class Choice:
    """The image that was chosen: its manifest, the platform its index (or else its configuration)
    says it is for, the entry it came from (None: it stood alone), and why in a few words."""

    found: Found
    platform: Platform
    entry: Entry | None
    why: str
    offered: tuple[Platform, ...] = field(default=())


def contents(source: Source, index: Index) -> Contents:
    """What an index has, nested indexes followed, in the order it is written in.

    Entries that no rule knows are kept apart and are never an error (image-index.md). Raises
    MaidError where a nested index cannot be read, or is nested too deeply.
    """
    images: list[Entry] = []
    attestations: dict[str, list[Descriptor]] = {}
    others: list[Descriptor] = []
    for descriptor, within in _walk(source, index, (), Budget()):
        platform = descriptor.platform.platform() if descriptor.platform else None
        if is_attestation(descriptor):
            about = descriptor.annotation(ATTESTATION_OF)
            attestations.setdefault(about, []).append(descriptor)
        elif descriptor.mediaType not in MANIFEST_TYPES or platform == _UNKNOWN:
            others.append(descriptor)
        else:
            images.append(Entry(descriptor, platform, within))
    known = {entry.descriptor.digest for entry in images}
    return Contents(
        tuple(
            Entry(
                entry.descriptor,
                entry.platform,
                entry.within,
                tuple(attestations.get(entry.descriptor.digest, ())),
            )
            for entry in images
        ),
        tuple(each for about, all_ in attestations.items() if about not in known for each in all_),
        tuple(others),
    )


@dataclass
class Budget:
    """How many indexes may still be read of one document."""

    indexes: int = MAX_INDEXES

    def spend(self, source: Source, index: Descriptor, within: tuple[Descriptor, ...]) -> None:
        """Another one is read, inside of these. Raises DocumentError where that is too much."""
        self.indexes -= 1
        if any(each.digest == index.digest for each in within):
            raise DocumentError(f"{source.reference}: {index.digest} contains itself")
        if len(within) >= MAX_DEPTH or self.indexes < 0:
            raise DocumentError(
                f"{source.reference}: its indexes are nested too deeply, or too many"
                f" ({MAX_DEPTH} levels and {MAX_INDEXES} indexes are followed)"
            )


def _walk(
    source: Source, index: Index, within: tuple[Descriptor, ...], budget: Budget
) -> Iterator[tuple[Descriptor, tuple[Descriptor, ...]]]:
    for descriptor in index.manifests:
        if descriptor.mediaType not in INDEX_TYPES or is_attestation(descriptor):
            yield descriptor, within
            continue
        budget.spend(source, descriptor, within)
        found = source.find(descriptor)
        if isinstance(found.document, Index):
            yield from _walk(source, found.document, (*within, descriptor), budget)


def ranked(images: tuple[Entry, ...], matcher: Matcher) -> list[Entry]:
    """The images that may do, best first (R8): those that match, in R7's order and else in the
    index's, then those whose platform is not said."""

    def order(a: Entry, b: Entry) -> int:
        if a.platform is None or b.platform is None:
            return (a.platform is None) - (b.platform is None)
        return matcher.less(b.platform, a.platform) - matcher.less(a.platform, b.platform)

    fitting = [each for each in images if each.platform is None or matcher.matches(each.platform)]
    return sorted(fitting, key=cmp_to_key(order))


def choose(source: Source, found: Found, matcher: Matcher, accept_any: bool = False) -> Choice:
    """The image for the platform that `matcher` was made for.

    `accept_any` takes an image that stands alone whatever it is for. Raises NoMatch with what there
    is, or MaidError where a document cannot be read.
    """
    wanted = str(matcher.wanted[0]) if matcher.wanted else "this platform"
    if not isinstance(found.document, Index):
        return _alone(source, found, matcher, wanted, accept_any)
    all_ = contents(source, found.document)
    offered = []
    for entry in ranked(all_.images, matcher):
        platform = entry.platform
        manifest = source.find(entry.descriptor)
        if platform is None:
            platform = source.config(manifest).platform()
            if not matcher.matches(platform):
                offered.append(platform)
                continue
        return Choice(manifest, platform, entry, _why(platform, wanted), platforms(all_))
    there = [*platforms(all_), *offered]
    raise NoMatch(
        f"{source.reference} has no image for {wanted}",
        f"it has {_list(there)}" if there else "it has no images at all",
    )


def platforms(all_: Contents) -> tuple[Platform, ...]:
    """The platforms that an index says it has images for, each once, in its order."""
    return tuple(dict.fromkeys(each.platform for each in all_.images if each.platform))


def _alone(source: Source, found: Found, matcher: Matcher, wanted: str, accept_any: bool) -> Choice:
    platform = source.config(found).platform()
    if not platform.os and not platform.architecture:
        raise NoMatch(f"{source.reference} is no image: its configuration names no platform")
    if matcher.matches(platform):
        return Choice(
            found, platform, None, f"the only image, and {_why(platform, wanted)}", (platform,)
        )
    if accept_any:
        return Choice(
            found, platform, None, f"the only image, though {wanted} was asked for", (platform,)
        )
    raise NoMatch(
        f"{source.reference} is a single image for {platform}, and {wanted} was asked for",
        f"--platform {platform} asks for it; --any takes it as it is",
    )


def _why(platform: Platform, wanted: str) -> str:
    if str(platform.normalized()) == wanted:
        return f"it is for {wanted}"
    return f"the best there is for {wanted}, which runs {platform}"


def _list(there: list[Platform]) -> str:
    names = [str(each) for each in dict.fromkeys(there)]
    return ", ".join(names) if len(names) <= 20 else f"{', '.join(names[:20])} … ({len(names)})"
