"""An image's root file system as a directory: umoci unpacks it, whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import re
import select
import shutil
import subprocess
from pathlib import Path
from typing import BinaryIO

import msgspec

from maid.errors import MaidError, PlatformUnavailable
from maid.images import children, machines
from maid.images.index import (
    OCI_INDEX,
    OCI_MANIFEST,
    REF_NAME,
    Descriptor,
    DocumentError,
    ImageConfig,
    Index,
    Manifest,
    check_digest,
    describe,
    encode,
    read_config,
    read_manifest,
)
from maid.images.layout import Layout
from maid.images.references import Reference
from maid.images.staging import require_free, whole
from maid.images.stall import SECONDS, Stall
from maid.platforms import Platform

_LAYER = "application/vnd.oci.image.layer.v1.tar"

# What umoci says of what it died of: its log's sign for an error, and what comes after.
_FATAL = re.compile("\N{VECTOR OR CROSS PRODUCT} (.*)")

_HINTS: tuple[tuple[str, str], ...] = (
    (r"no space left on device|quota exceeded", "free some space, or name another directory"),
    (r"mknod: operation not permitted", "making device nodes needs the capability CAP_MKNOD"),
    (r"operation not permitted|permission denied", "does the file system allow that? try as root"),
    (
        r"diffid|digest|mismatch|gzip|flate|unexpected EOF|archive/tar",
        "what was fetched is what its makers pushed: they can push it again",
    ),
)


class WrongPrograms(PlatformUnavailable):
    """The programs in an image are of another architecture than the image."""


def unpack(
    layout: Layout,
    descriptor: Descriptor,
    about: Reference,
    directory: Path,
    platform: Platform,
    accept_any: bool = False,
) -> None:
    """Make `directory` the root file system of an image that is in the layout.

    It is not there, or empty, before and whole afterwards. `about` is what an error calls the
    image; `accept_any` takes programs of another architecture than the platform's. As root all
    owners, modes and device nodes are the image's; otherwise the files are the caller's, and
    umoci notes the owners (`--rootless`). Raises MaidError.
    """
    require_free(directory)
    manifest = read_manifest(layout.read(descriptor))
    config = read_config(layout.read(manifest.config))
    # umoci 0.4.7 takes a whiteout of ".." for an order and removes what is above its root: that has
    # to be the directory in which it grows, and nothing else.
    with whole(directory) as grown:
        stage = grown.parent / "layout"
        _stage(layout, manifest, about, stage)
        _umoci(grown, f"{about}, {descriptor.digest}")
        shutil.rmtree(stage)
        path, found = machines.stranger(grown, platform, _programs(config))
        if path and not accept_any:
            raise WrongPrograms(
                f"{about}, {descriptor.digest}: the image says that it is for {platform}, and its"
                f" {path} is a program for {found}",
                "whoever made the image can correct it; --any takes it as it is",
            )


def _programs(config: ImageConfig) -> list[str]:
    """What is started in the image, where it is said with a path."""
    try:
        started = msgspec.json.decode(config.extra.get("config", b"null"), type=_Started | None)
    except msgspec.DecodeError:
        return []
    commands = (started.Entrypoint, started.Cmd) if started else ()
    return [command[0] for command in commands if command and command[0].startswith("/")]


class _Started(msgspec.Struct):
    Entrypoint: list[str] | None = None
    Cmd: list[str] | None = None


def _stage(layout: Layout, manifest: Manifest, about: Reference, stage: Path) -> None:
    """Make a layout with this one image in it, as umoci takes it: layers are tar or gzip."""
    blobs = stage / "blobs/sha256"
    blobs.mkdir(parents=True)
    layers = tuple(_layer(layout, layer, about, blobs) for layer in manifest.layers)
    os.symlink(layout.blob(manifest.config.digest), _named(blobs, manifest.config))
    data = encode(msgspec.structs.replace(manifest, layers=layers))
    entry = describe(data, OCI_MANIFEST)
    _named(blobs, entry).write_bytes(data)
    entry = msgspec.structs.replace(entry, annotations={REF_NAME: "image"})
    index = Index(schemaVersion=2, mediaType=OCI_INDEX, manifests=(entry,))
    (stage / "index.json").write_bytes(encode(index))
    (stage / "oci-layout").write_text(json.dumps({"imageLayoutVersion": "1.0.0"}))


def _layer(layout: Layout, layer: Descriptor, about: Reference, blobs: Path) -> Descriptor:
    """Put a layer into the staged layout, and return what it is there."""
    kind = layer.mediaType
    path = layout.blob(layer.digest)
    if not path.exists():
        raise MaidError(f"{about}, {layer.digest}: this layer is not kept with the image")
    if kind.endswith(("+zstd", ".zstd")):
        return _decompressed(path, layer, about, blobs)
    if not _named(blobs, layer).is_symlink():  # an image may have a layer twice
        os.symlink(path, _named(blobs, layer))
    if kind.endswith((".gzip", "+gzip")):
        return msgspec.structs.replace(layer, mediaType=f"{_LAYER}+gzip")
    if kind.endswith(".tar"):
        return msgspec.structs.replace(layer, mediaType=_LAYER)
    raise DocumentError(
        f"{about}, {layer.digest}: it is {kind or 'of no type'}, and no layer of a file system",
        "maid pull --to oci:DIR:TAG takes it as it is",
    )


def _decompressed(path: Path, layer: Descriptor, about: Reference, blobs: Path) -> Descriptor:
    program = shutil.which("zstd")
    if program is None:
        raise MaidError(f"{about}: its layers are zstd's, and zstd is not installed", "install it")
    made = blobs / "growing"
    with children.output() as said, path.open("rb") as packed, made.open("wb") as file:
        # A window of up to 128 MiB, its default: that much memory a layer may ask for.
        command = children.bound([program, "-dcq"])
        with subprocess.Popen(
            command, stdin=packed, stdout=subprocess.PIPE, stderr=said
        ) as process:
            try:
                digest = _received(process, file, f"{about}, {layer.digest}")
            except BaseException:
                process.kill()
                raise
        said.seek(0)
        words = said.read().decode(errors="replace").strip()
    if process.returncode:
        hint = "such a window nobody else takes either" if "memory" in words else ""
        raise MaidError(f"{about}, {layer.digest}: zstd: {words or 'it was ended'}", hint)
    plain = Descriptor(mediaType=_LAYER, digest=digest, size=made.stat().st_size)
    made.rename(_named(blobs, plain))
    return plain


def _received(process: subprocess.Popen[bytes], file: BinaryIO, about: str) -> str:
    """Write what a program writes, and return its digest; half of what is free on the disk at
    most, for it is unpacked again. Raises MaidError."""
    assert process.stdout is not None
    output, sha256, stall = process.stdout.fileno(), hashlib.sha256(), Stall(process.pid)
    status = os.fstatvfs(file.fileno())
    free = status.f_bavail * status.f_frsize
    size = 0
    while True:
        ready, _, _ = select.select([output], [], [], 1.0)
        if not ready:
            if stall.has_come():
                raise MaidError(f"{about}: zstd did nothing for {SECONDS:.0f} s")
            continue
        piece = os.read(output, 1 << 20)
        if not piece:
            return f"sha256:{sha256.hexdigest()}"
        size += len(piece)
        if size > free // 2:
            raise MaidError(
                f"{about}: this layer unpacks to more than half of the {free} bytes that are free",
                "free some space, or name another directory",
            )
        sha256.update(piece)
        file.write(piece)


def _named(blobs: Path, descriptor: Descriptor) -> Path:
    _, encoded = check_digest(descriptor.digest)
    return blobs / encoded


def _umoci(rootfs: Path, about: str) -> None:
    """Unpack the image of the layout beside it."""
    program = shutil.which("umoci")
    if program is None:
        raise MaidError("umoci is not installed", "apt-get install umoci")
    # It looks for a tag behind the first colon, wherever that is: so no name but our own is shown.
    command = [program, "raw", "unpack", "--image", "layout:image"]
    if os.geteuid() != 0:
        command.append("--rootless")
    said = children.run([*command, rootfs.name], cwd=rootfs.parent)
    if said is not None:
        raise _explained(said, about)


def _explained(output: str, about: str) -> MaidError:
    found = _FATAL.findall(output)
    lines = output.strip().splitlines()
    words = found[-1].strip() if found else lines[-1].strip() if lines else "umoci was ended"
    hint = next((hint for pattern, hint in _HINTS if re.search(pattern, words)), "")
    return MaidError(f"{about} cannot be unpacked: {words}", hint)
