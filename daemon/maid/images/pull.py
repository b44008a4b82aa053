"""Fetch the image that fits a platform, or all of them, to where it is wanted.

What was chosen is looked at before it is fetched: an index may say one thing of an image and the
image another, and then it is the image that runs, or does not. Nothing gets its final name before
it is whole: a tag of a layout, an archive's file, a directory.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from maid.errors import PlatformUnavailable, UsageError
from maid.images.index import Descriptor, DocumentError, Index, Manifest
from maid.images.layout import Layout, layout_reference
from maid.images.publish import Part, gathered, into_layout, parts_of, publish
from maid.images.references import LAYOUT, REGISTRY, Reference, parse_reference
from maid.images.select import Choice, Contents, choose, contents
from maid.images.skopeo import Place, Skopeo
from maid.images.sources import Found, Source
from maid.images.staging import require_makeable, whole
from maid.images.transfer import Account, Watcher, blobs_of
from maid.platforms import Matcher

STORAGE = "containers-storage"
_DESTINATIONS = (LAYOUT, REGISTRY, STORAGE, "docker-daemon", "dir", "oci-archive", "docker-archive")

_STORAGE_PROGRAMS = ("podman", "buildah")


class WrongImage(PlatformUnavailable):
    """An image is for another platform than its index says."""


@dataclass(frozen=True)
class Pulled:
    """What is there now: `destination` names it, `descriptor` is what it is there. `size` is the
    bytes of its blobs, `fetched` how many of them were not there before; None where the
    destination does not tell."""

    destination: Reference
    descriptor: Descriptor
    size: int
    fetched: int | None


def choose_image(source: Source, matcher: Matcher, accept_any: bool = False) -> Choice:
    """The image for a platform, which its own configuration confirms.

    `accept_any` takes an image that stands alone, or is not what its index says. Raises NoMatch,
    WrongImage, or MaidError where a document cannot be read.
    """
    choice = choose(source, source.top(), matcher, accept_any)
    if choice.entry is not None and not accept_any:
        confirm(source, choice, matcher)
    return choice


def confirm(source: Source, choice: Choice, matcher: Matcher) -> None:
    """Hold what an index says of an image against the image's own configuration.

    Os and architecture have to be the same. A variant counts where the configuration names one:
    most builders write none. Raises WrongImage.
    """
    own = source.config(choice.found).platform()
    said, is_ = choice.platform.normalized(), own.normalized()
    same = (said.os, said.architecture) == (is_.os, is_.architecture)
    if same and (not own.variant or said.variant == is_.variant or matcher.matches(own)):
        return
    what = f"for {own}" if own.os or own.architecture else "for no platform that it names"
    raise WrongImage(
        f"{source.reference}, {choice.found.descriptor.digest}: the index says that this image is"
        f" for {choice.platform}, and the image itself that it is {what}",
        "whoever made the index can correct it; --any takes the image as it is",
    )


# Where it goes -----------------------------------------------------------------------------------


def parse_destination(text: str, source: Reference) -> Reference:
    """What --to names, `oci:DIR[:TAG]` or another transport's; a tag that is left out is the
    source's. Raises UsageError."""
    if text.startswith(("/", "./", "../")):
        text = f"oci:{text}"
    transport, colon, _ = text.partition(":")
    if not colon or transport not in _DESTINATIONS:
        raise UsageError(
            f"--to {text}: that is no destination",
            "for example oci:DIR:TAG, containers-storage:NAME, docker-archive:FILE, docker://NAME",
        )
    reference = parse_reference(text)
    if transport == LAYOUT and not reference.tag:
        return Reference(LAYOUT, reference.name, _tag(source))
    if reference.digest:
        raise UsageError(f"--to {text}: a digest cannot be chosen", "name a tag")
    return reference


def _tag(source: Reference) -> str:
    if source.transport == REGISTRY and not source.digest:
        return source.tag or "latest"
    return source.tag


def storage_of(source: Reference, choice: Choice, has_program: Callable[[str], bool]) -> Reference:
    """Where podman and buildah keep the image, under the name that it was asked for by.

    Raises UsageError where the machine has neither, or the image is not a registry's.
    """
    if source.transport != REGISTRY:
        raise UsageError(f"{source} has no name that it could be kept under", _ELSEWHERE)
    if not any(map(has_program, _STORAGE_PROGRAMS)):
        raise UsageError(
            "this machine has no containers' storage: neither podman nor buildah is there",
            _ELSEWHERE,
        )
    if source.digest:
        return Reference(STORAGE, source.name, "", choice.found.descriptor.digest)
    return Reference(STORAGE, source.name, source.tag or "latest")


_ELSEWHERE = "say where it is to go: --to oci:DIR:TAG, or --unpack DIR"


# One image ---------------------------------------------------------------------------------------


def pull(
    skopeo: Skopeo, source: Source, choice: Choice, destination: Reference, watcher: Watcher
) -> Pulled:
    """Copy the chosen image. Raises MaidError; then the destination names what it did before."""
    part = Part(source, choice.found.descriptor)
    if destination.transport == LAYOUT:
        return _into_layout(skopeo, source, [part], choice.found, destination, watcher)
    if destination.transport == "oci-archive":
        return _into_archive(skopeo, source, [part], choice.found, destination, watcher)
    size = _size(source, [part])
    watcher.begin(part.descriptor, size)
    if destination.transport == REGISTRY:
        publish(skopeo, [part], choice.found, [destination])
    else:
        _copy(skopeo, part, destination, lambda grown: watcher.at(min(size, _bytes_in(grown))))
    watcher.end()
    return Pulled(destination, part.descriptor, size, None)


def receive(
    skopeo: Skopeo, source: Source, choice: Choice, layout: Layout, watcher: Watcher
) -> Pulled:
    """Have the chosen image in a layout in which nothing names it. Raises MaidError."""
    part = Part(source, choice.found.descriptor)
    account = Account(layout, source.find, watcher)
    descriptor = into_layout(skopeo, [part], choice.found, layout, account)
    return Pulled(layout_reference(layout), descriptor, account.size, account.fetched)


def _into_layout(
    skopeo: Skopeo,
    source: Source,
    parts: Sequence[Part],
    top: Found,
    destination: Reference,
    watcher: Watcher,
) -> Pulled:
    layout = Layout.create(destination.directory)
    account = Account(layout, source.find, watcher)
    descriptor = publish(skopeo, parts, top, [destination], account)
    return Pulled(destination, descriptor, account.size, account.fetched)


def _into_archive(
    skopeo: Skopeo,
    source: Source,
    parts: Sequence[Part],
    top: Found,
    destination: Reference,
    watcher: Watcher,
) -> Pulled:
    """Write a layout as an archive; skopeo cannot where an index is in an index."""
    path, rest = _split(destination)
    with whole(path) as grown:
        layout = Reference(LAYOUT, str(grown.parent / "layout"), rest.removeprefix(":"))
        pulled = _into_layout(skopeo, source, parts, top, layout, watcher)
        with tarfile.open(grown, "w", format=tarfile.GNU_FORMAT) as archive:
            for file in sorted(layout.directory.iterdir()):
                archive.add(file, file.name)
    return Pulled(destination, pulled.descriptor, pulled.size, pulled.fetched)


def _copy(
    skopeo: Skopeo, part: Part, destination: Reference, waiting: Callable[[Path], None]
) -> None:
    """`waiting` is called with a `dir:` that grows; of other places nobody knows how much of the
    image is there: they hold it unpacked."""
    about = part.source.reference
    with part.source.place(part.descriptor) as place:
        if destination.transport not in ("docker-archive", "dir"):
            skopeo.copy(place, Place(destination.argument), about)
            return
        path, rest = _split(destination)
        is_directory = destination.transport == "dir"
        if is_directory:
            path = Path(os.path.realpath(path))
            require_makeable(path)
        with whole(path) as grown:
            grows = (lambda: waiting(grown)) if is_directory else None
            target = Place(f"{destination.transport}:{grown}{rest}")
            skopeo.copy(place, target, about, waiting=grows)
            if is_directory:
                _check_sizes(part, grown)


def _bytes_in(directory: Path) -> int:
    try:
        return sum(each.stat().st_size for each in os.scandir(directory))
    except OSError:
        return 0  # it is not there yet, or something in it has its name by now


def _check_sizes(part: Part, directory: Path) -> None:
    """Hold the files of a `dir:` against the manifest: skopeo checks digests and no sizes."""
    manifest = part.source.find(part.descriptor).document
    assert isinstance(manifest, Manifest)
    for digest, size in blobs_of(manifest).items():
        file = directory / digest.partition(":")[2]
        if file.exists() and file.stat().st_size != size:
            raise DocumentError(
                f"{part.source.reference}, {digest}: it has {file.stat().st_size} bytes, where the"
                f" manifest {part.descriptor.digest} says {size}"
            )


def _split(destination: Reference) -> tuple[Path, str]:
    """The file or directory that a destination names, and what else is said of it."""
    if destination.transport == "dir":
        return Path(destination.name), ""
    path, colon, rest = destination.name.partition(":")
    return Path(path), colon + rest


# All of them -------------------------------------------------------------------------------------


def pull_all(
    skopeo: Skopeo, source: Source, top: Found, destination: Reference, watcher: Watcher
) -> Pulled:
    """Copy an index with everything that it names. Raises MaidError; then the destination names
    what it did before."""
    parts = parts_of(source, top)
    if destination.transport == LAYOUT:
        return _into_layout(skopeo, source, parts, top, destination, watcher)
    if destination.transport == REGISTRY:
        size = _size(source, parts)
        watcher.begin(top.descriptor, size)
        publish(skopeo, parts, top, [destination])
        watcher.end()
        return Pulled(destination, top.descriptor, size, None)
    if destination.transport == "oci-archive":
        return _into_archive(skopeo, source, parts, top, destination, watcher)
    raise UsageError(
        f"{destination} has no room for more than one image",
        "--all goes with oci:DIR:TAG, oci-archive:FILE or docker://NAME",
    )


def all_of(source: Source, top: Found) -> Contents | None:
    """What an index has; None of a single image. Raises MaidError."""
    return contents(source, top.document) if isinstance(top.document, Index) else None


def _size(source: Source, parts: Sequence[Part]) -> int:
    blobs: dict[str, int] = {}
    for part in gathered(parts).images.values():
        document = source.find(part.descriptor).document
        if isinstance(document, Manifest):
            blobs |= blobs_of(document)
    return sum(blobs.values())
