"""What a reference stands for, looked at: an index's images, sizes and attestations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from maid.errors import MaidError
from maid.images import pool
from maid.images.index import Descriptor, Index, Manifest
from maid.images.pull import choose_image
from maid.images.select import Choice, Contents, Entry, contents
from maid.images.sources import Found, LayoutSource, Source
from maid.images.transfer import blobs_of
from maid.platforms import Matcher, Platform

FEW = 32
"""Images whose sizes are looked up without being asked for: each takes a request or two."""

_AT_ONCE = 8


@dataclass(frozen=True)
class Image:
    """An image: its entry; the platform, its configuration's where the index says none; the bytes
    and number of its layers, None where they were not asked for or cannot be had; and why not."""

    entry: Entry
    platform: Platform | None
    size: int | None = None
    layers: int | None = None
    problem: str = ""


@dataclass(frozen=True)
class Look:
    """What was seen. `stray` are attestations of nothing that is there, `others` entries that no
    rule knows; `choice` is what `maid pull` would take, None where nobody asked."""

    top: Found
    images: tuple[Image, ...]
    stray: tuple[Descriptor, ...]
    others: tuple[Descriptor, ...]
    choice: Choice | None


def look(
    source: Source,
    matcher: Matcher | None = None,
    sizes: bool | None = None,
    accept_any: bool = False,
) -> Look:
    """Look at what the source's reference stands for.

    With a `matcher`: also which image is chosen; raises NoMatch with what there is. `sizes`: look
    up how large images are; None: where that is quick. Raises MaidError where a document cannot be
    read, but for a single image's.
    """
    top = source.top()
    choice = choose_image(source, matcher, accept_any) if matcher else None
    if isinstance(top.document, Index):
        there = contents(source, top.document)
    else:
        there = Contents((Entry(top.descriptor),))
    if sizes is None:
        sizes = len(there.images) <= FEW or isinstance(source, LayoutSource)
    single = not isinstance(top.document, Index)

    def known(entry: Entry, go_on: Callable[[], None]) -> Image:
        go_on()
        if not sizes and not single and entry.platform:
            return Image(entry, entry.platform)
        return _image(source, entry)

    images = tuple(pool.each(known, there.images, _AT_ONCE))
    return Look(top, images, there.stray, there.others, choice)


def _image(source: Source, entry: Entry) -> Image:
    try:
        found = source.find(entry.descriptor)
        platform = entry.platform or source.config(found).platform()
    except MaidError as error:
        return Image(entry, entry.platform, problem=error.message)
    if not isinstance(found.document, Manifest):
        return Image(entry, platform, problem="it says that it is an image, and is an index")
    size = sum(blobs_of(found.document).values())
    return Image(entry, platform, size, len(found.document.layers))
