"""Whether a built image is what was asked for: its platform, and the programs in its new layers.

The platform that an image claims is the one it was built for, whatever is in it; so the ELF files
that the build added are looked at as well. One of another architecture is a warning and no error:
firmware and cross compilers have good reasons to be there.
"""

from __future__ import annotations

import gzip
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import IO

import msgspec

from maid.errors import MaidError
from maid.images.export import Built
from maid.images.index import (
    Descriptor,
    ImageConfig,
    Manifest,
    encode,
    read_manifest,
)
from maid.images.layout import Layout
from maid.images.machines import HEAD, acceptable, architecture_of
from maid.images.programs import go_on
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


def check(
    descriptor: Descriptor,
    built: Built,
    layout: Layout,
    platform: Platform,
    waiting: Callable[[], None] = go_on,
) -> Checked:
    """Look at the image `built`, which `descriptor` names in `layout`, and was built for a
    platform. `waiting` is called now and then; what it raises ends this. Raises WrongPlatform,
    MaidError."""
    base = built.base
    if base is not None and not only(platform).matches(base.platform):
        raise WrongPlatform(
            f"the image begins with one for {base.platform.normalized()}, so it is none for"
            f" {platform}",
            "the last FROM names a platform of its own, or an image that has no other: "
            "maid index inspect shows what there is",
        )
    warnings = []
    if base is None and (name := built.base_name):
        warnings.append(
            f"it begins with {name}, of which nothing says whether it is for {platform}"
        )
    manifest = read_manifest(layout.read(descriptor))
    if built.config.platform().normalized() != platform:
        descriptor = _marked(layout, manifest, built.config, platform)
    new = manifest.layers[len(base.diff_ids) if base else 0 :]
    look = Look(platform)
    found = list(look.foreign_files(_layers(layout, new), waiting))
    warnings += _warning(found, platform)
    if not look.is_whole:
        warnings.append(
            f"only the first {look.limit >> 20} MiB of what the build added were looked through for"
            " programs of another architecture"
        )
    return Checked(descriptor, tuple(warnings))


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
        with gzip.open(layout.blob(each.digest)) as unpacked:
            yield unpacked  # type: ignore[misc]


class Look:
    """A look through layers, for programs that a platform does not execute; `is_whole` says whether
    it came to their end within `limit` bytes."""

    def __init__(self, platform: Platform, limit: int = READ_LIMIT) -> None:
        self._right = acceptable(platform)
        self.limit = limit
        self.is_whole = True

    def foreign_files(
        self, layers: Iterable[IO[bytes]], waiting: Callable[[], None] = go_on
    ) -> Iterator[tuple[str, str]]:
        """Path and architecture of each program and library in the layers (tar files) that the
        platform does not execute. A layer that cannot be read is passed over: others judge it."""
        left = self.limit
        for layer in layers:
            try:
                with tarfile.open(fileobj=layer, mode="r|") as archive:
                    for member in archive:
                        waiting()
                        left -= member.size
                        if left < 0:
                            self.is_whole = False
                            return
                        if not member.isreg() or not _is_program(member):
                            continue
                        file = archive.extractfile(member)
                        architecture = architecture_of(file.read(HEAD)) if file else ""
                        if architecture and architecture not in self._right:
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
