"""Whether a built image is what was asked for: its platform, and the programs in its new layers.

The platform that an image claims is the one it was built for, whatever is in it; so the ELF files
that the build added are looked at as well. One of another architecture is a warning and no error:
firmware and cross compilers have good reasons to be there.
"""

from __future__ import annotations

import contextlib
import gzip
import os
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import msgspec

from maid.errors import MaidError
from maid.images.buildah import Base
from maid.images.index import (
    Descriptor,
    ImageConfig,
    Manifest,
    encode,
    read_config,
    read_index,
    read_manifest,
)
from maid.images.layout import Layout
from maid.images.machines import HEAD, acceptable, architecture_of
from maid.platforms import Platform, only

NAMED = 5
"""Files that a warning names."""

READ_LIMIT = 4 << 30
"""Bytes of layers, uncompressed, that are looked through in one image."""


@dataclass(frozen=True)
class Checked:
    """An image that was looked at: its manifest, and what there is to say about it."""

    descriptor: Descriptor
    warnings: tuple[str, ...]


class WrongPlatform(MaidError):
    """The image is for another platform than the one asked for."""


@dataclass(frozen=True)
class Image:
    """An image as a build has left it: its descriptor, and the documents that it names."""

    descriptor: Descriptor
    manifest: Manifest
    config: ImageConfig


def read_image(directory: Path, layout: Layout) -> Image:
    """The image that a build has put into `directory`: a layout's index.json with the blobs in
    `layout`, or skopeo's `dir:`, whose blobs get there now. Raises MaidError."""
    documents = directory / "manifest.json"
    if documents.exists():
        data = documents.read_bytes()
        manifest = read_manifest(data)
        for each in (manifest.config, *manifest.layers):
            with contextlib.suppress(FileExistsError):
                os.link(directory / each.digest.partition(":")[2], layout.blob(each.digest))
        descriptor = layout.write(data, manifest.media_type)
    else:
        (entry,) = read_index((directory / "index.json").read_bytes()).manifests
        manifest = read_manifest(layout.read(entry))
        descriptor = Descriptor(mediaType=entry.mediaType, digest=entry.digest, size=entry.size)
    return Image(descriptor, manifest, read_config(layout.read(manifest.config)))


def check(image: Image, layout: Layout, platform: Platform, base: Base) -> Checked:
    """Look at an image that was built for a platform on `base`. Raises WrongPlatform, MaidError."""
    if base.platform is not None and not only(platform).matches(base.platform):
        raise WrongPlatform(
            f"the image begins with one for {base.platform.normalized()}, so it is none for"
            f" {platform}",
            "the last FROM names a platform of its own, or an image that has no other: "
            "maid index inspect shows what there is",
        )
    descriptor = image.descriptor
    if image.config.platform().normalized() != platform:
        descriptor = _marked(layout, image.manifest, image.config, platform)
    layers = _layers(layout, image.manifest.layers[base.layers :])
    found = list(foreign_files(layers, platform))
    return Checked(descriptor, tuple(_warning(found, platform)))


def _marked(
    layout: Layout, manifest: Manifest, config: ImageConfig, platform: Platform
) -> Descriptor:
    """The image with the variant that it was built for, where buildah was not asked for it
    (surroundings.target). Raises WrongPlatform where more than that differs."""
    found = config.platform().normalized()
    if (found.os, found.architecture) != (platform.os, platform.architecture):
        raise WrongPlatform(
            f"the image says that it is for {found}, and {platform} was asked for",
            "the Containerfile's last FROM names a platform of its own",
        )
    config = msgspec.structs.replace(config, variant=platform.variant or None)
    stored = layout.write(encode(config), manifest.config.mediaType)
    return layout.write(
        encode(msgspec.structs.replace(manifest, config=stored)), manifest.media_type
    )


def _layers(layout: Layout, layers: Iterable[Descriptor]) -> Iterator[IO[bytes]]:
    for each in layers:
        with open(layout.blob(each.digest), "rb") as file:
            is_gzip = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            if is_gzip:
                with gzip.open(file) as unpacked:
                    yield unpacked  # type: ignore[misc]
            else:
                yield file


def foreign_files(layers: Iterable[IO[bytes]], platform: Platform) -> Iterator[tuple[str, str]]:
    """Path and architecture of each program and library in the layers (tar files) that the
    platform does not execute. A layer that cannot be read is passed over: others judge it."""
    right = acceptable(platform)
    left = READ_LIMIT
    for layer in layers:
        try:
            with tarfile.open(fileobj=layer, mode="r|") as archive:
                for member in archive:
                    left -= member.size
                    if left < 0:
                        return
                    if not member.isreg() or not _is_program(member):
                        continue
                    file = archive.extractfile(member)
                    architecture = architecture_of(file.read(HEAD)) if file else ""
                    if architecture and architecture not in right:
                        yield f"/{member.name.removeprefix('./')}", architecture
        except (tarfile.TarError, OSError, EOFError, zlib.error):
            continue


def _is_program(member: tarfile.TarInfo) -> bool:
    """Something to execute or to load: executable, or named like a library. What cross compilers
    keep for their targets (`/usr/aarch64-linux-gnu`) is neither here."""
    first, _, rest = member.name.removeprefix("./").partition("/")
    if first == "usr" and "-linux-" in rest.partition("/")[0]:
        return False
    name = member.name.rpartition("/")[2]
    return bool(member.mode & 0o111) or name.endswith(".so") or ".so." in name


def _warning(found: list[tuple[str, str]], platform: Platform) -> Iterator[str]:
    if not found:
        return
    named = ", ".join(f"{path} ({architecture})" for path, architecture in found[:NAMED])
    more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
    yield (
        f"the build added programs that {platform} does not execute: {named}{more}; was one "
        "copied from the context or from a stage with --platform=$BUILDPLATFORM that was not "
        "cross-compiled for $TARGETARCH?"
    )
