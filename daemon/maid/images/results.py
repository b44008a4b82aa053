"""Whether a built image is what was asked for: its platform, and the programs in its new layers.

The platform that an image claims is the one it was built for, whatever is in it; so the ELF files
that the build added are looked at as well. One of another architecture is a warning and no error:
firmware and cross compilers have good reasons to be there.
"""

from __future__ import annotations

import gzip
import struct
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import msgspec

from maid.errors import MaidError
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
from maid.platforms import Platform, only

NAMED = 5
"""Files that a warning names."""

READ_LIMIT = 4 << 30
"""Bytes of layers, uncompressed, that are looked through in one image."""

_HEAD = 20
"""Bytes up to and with e_machine (gABI, figure 4-3)."""

_LITTLE, _BIG = 1, 2

# Class (32 or 64 bits: 1, 2), byte order and e_machine of each architecture: Go's names, and the
# numbers of include/uapi/linux/elf-em.h.
_MACHINES: dict[tuple[int, int, int], str] = {
    (1, _LITTLE, 3): "386",
    (2, _LITTLE, 62): "amd64",
    (1, _LITTLE, 40): "arm",
    (2, _LITTLE, 183): "arm64",
    (2, _LITTLE, 258): "loong64",
    (2, _LITTLE, 8): "mips64le",
    (2, _BIG, 8): "mips64",
    (1, _LITTLE, 8): "mipsle",
    (1, _BIG, 8): "mips",
    (2, _LITTLE, 21): "ppc64le",
    (2, _BIG, 21): "ppc64",
    (2, _LITTLE, 243): "riscv64",
    (2, _BIG, 22): "s390x",
}


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
    """The image that the index.json in a directory names, with its blobs in `layout`. Raises
    MaidError."""
    (entry,) = read_index((directory / "index.json").read_bytes()).manifests
    manifest = read_manifest(layout.read(entry))
    config = read_config(layout.read(manifest.config))
    descriptor = Descriptor(mediaType=entry.mediaType, digest=entry.digest, size=entry.size)
    return Image(descriptor, manifest, config)


def check(image: Image, layout: Layout, platform: Platform, base_layers: int) -> Checked:
    """Look at an image, of which the first `base_layers` layers were there before the build.
    Raises WrongPlatform, MaidError."""
    descriptor = image.descriptor
    if image.config.platform().normalized() != platform:
        descriptor = _marked(layout, image.manifest, image.config, platform)
    found = list(foreign_files(_layers(layout, image.manifest.layers[base_layers:]), platform))
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
    acceptable = {each.architecture for each in only(platform).wanted} | {platform.architecture}
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
                    architecture = architecture_of(file.read(_HEAD)) if file else ""
                    if architecture and architecture not in acceptable:
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


def architecture_of(head: bytes) -> str:
    """The architecture that an ELF file is for by its first 20 bytes; "" for what is no ELF file
    and for machines that no platform has."""
    if len(head) < _HEAD or head[:4] != b"\x7fELF":
        return ""
    order = head[5]
    (machine,) = struct.unpack("<H" if order == _LITTLE else ">H", head[18:20])
    return _MACHINES.get((head[4], order, machine), "")


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
