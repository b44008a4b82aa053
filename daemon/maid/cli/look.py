"""What `maid index inspect` shows: a table for people, a document for programs, the bytes."""

from __future__ import annotations

import sys
from typing import Any

from maid.cli import render
from maid.cli.common import show_json
from maid.cli.transfers import amount
from maid.images.index import ATTESTATION_OF, ATTESTATION_TYPE, Descriptor, Index
from maid.images.look import Image, Look, look
from maid.images.pull import choose_image
from maid.images.sources import Source
from maid.platforms import Matcher

_HEADER = ("", "PLATFORM", "DIGEST", "SIZE", "LAYERS", "ATTESTATIONS", "NOTES")
_EXPENDABLE = ("LAYERS", "ATTESTATIONS", "SIZE")
_ROOM = 100
"""Columns in which whole digests have room beside the rest."""


def raw(source: Source, matcher: Matcher | None) -> None:
    """The document as it is stored, on standard output."""
    found = choose_image(source, matcher).found if matcher else source.top()
    sys.stdout.flush()
    sys.stdout.buffer.write(found.data)
    sys.stdout.buffer.flush()


def show(
    source: Source, matcher: Matcher | None, sizes: bool | None, everything: bool, as_json: bool
) -> None:
    """The table, or the document."""
    seen = look(source, matcher, sizes)
    if as_json:
        show_json(_document(source, seen, matcher is not None))
        return
    top = seen.top.descriptor
    print(render.plain(f"{source.reference}: {_kind(seen)}, {top.mediaType}"))
    print(f"{top.digest}, {amount(top.size)}")
    annotations = seen.top.document.annotations or {}
    for name, value in annotations.items():
        print(render.plain(f"  {name}={value}"))
    rows = [_row(image, seen) for image in seen.images]
    if everything:
        rows += [_other(each) for each in _attestations(seen)]
        rows += [_other(each) for each in (*seen.stray, *seen.others)]
    if rows:
        print()
        print(_table(rows))
    problems = [image for image in seen.images if image.problem]
    for image in problems:
        print(f"{render.paint('!', 'warning', sys.stdout)} {render.plain(image.problem)}")
    hidden = len(seen.stray) + len(seen.others)
    if hidden and not everything:
        words = "1 entry is no image" if hidden == 1 else f"{hidden} entries are no images"
        print(f"{words}: maid index inspect --all")
    if seen.choice is not None:
        print(render.plain(f"chosen: {seen.choice.platform}, {seen.choice.why}"))


def _kind(seen: Look) -> str:
    if not isinstance(seen.top.document, Index):
        return "a single image"
    count = len(seen.images)
    return "an index with 1 image" if count == 1 else f"an index with {count} images"


def _table(rows: list[list[str]]) -> str:
    """Without the columns in which nothing stands, and with short digests on a narrow terminal."""
    if 0 < render.width(sys.stdout) < _ROOM + max(len(row[1]) for row in rows):
        for row in rows:
            row[2] = row[2][:19]
    used = [i for i, _ in enumerate(_HEADER) if any(row[i] for row in rows)]
    header = [_HEADER[i] for i in used]
    expendable = [name for name in _EXPENDABLE if name in header]
    return render.table([[row[i] for i in used] for row in rows], header, sys.stdout, expendable)


def _row(image: Image, seen: Look) -> list[str]:
    entry = image.entry
    notes = []
    if entry.platform is None and isinstance(seen.top.document, Index):
        notes.append("the index names no platform")
    if entry.within:
        notes.append(render.plain(f"in the index {entry.within[-1].digest[:19]}"))
    if image.problem:
        notes.append("cannot be read")
    return [
        render.paint("*", "ok", sys.stdout) if _is_chosen(image, seen) else "",
        render.plain(str(image.platform or "unknown")),
        render.plain(entry.descriptor.digest),
        "" if image.size is None else amount(image.size),
        "" if image.layers is None else str(image.layers),
        str(len(entry.attestations)) if entry.attestations else "",
        ", ".join(notes),
    ]


def _other(descriptor: Descriptor) -> list[str]:
    kind = descriptor.annotation(ATTESTATION_TYPE) or descriptor.mediaType or "of no type"
    about = descriptor.annotation(ATTESTATION_OF)
    note = f"{kind} of {about[:19]}" if about else kind
    return [
        "",
        "-",
        render.plain(descriptor.digest),
        amount(descriptor.size),
        "",
        "",
        render.plain(note),
    ]


def _attestations(seen: Look) -> list[Descriptor]:
    return [each for image in seen.images for each in image.entry.attestations]


def _is_chosen(image: Image, seen: Look) -> bool:
    if seen.choice is None:
        return False
    return seen.choice.entry is None or seen.choice.entry == image.entry


def _document(source: Source, seen: Look, asked: bool) -> dict[str, Any]:
    top = seen.top.descriptor
    return {
        "reference": str(source.reference),
        "kind": "index" if isinstance(seen.top.document, Index) else "image",
        "media_type": top.mediaType,
        "digest": top.digest,
        "size": top.size,
        "annotations": seen.top.document.annotations or {},
        "images": [
            {
                "platform": str(image.platform) if image.platform else None,
                "digest": image.entry.descriptor.digest,
                "media_type": image.entry.descriptor.mediaType,
                "size": image.entry.descriptor.size,
                "bytes": image.size,
                "layers": image.layers,
                "annotations": image.entry.descriptor.annotations or {},
                "within": [each.digest for each in image.entry.within],
                "attestations": [_said(each) for each in image.entry.attestations],
                "chosen": _is_chosen(image, seen) if asked else None,
                "problem": image.problem or None,
            }
            for image in seen.images
        ],
        "attestations": [_said(each) for each in seen.stray],
        "others": [_said(each) for each in seen.others],
        "why": seen.choice.why if seen.choice else None,
    }


def _said(descriptor: Descriptor) -> dict[str, Any]:
    return {
        "digest": descriptor.digest,
        "media_type": descriptor.mediaType,
        "size": descriptor.size,
        "annotations": descriptor.annotations or {},
    }
