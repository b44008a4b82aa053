"""An image's root file system as a directory: umoci unpacks it, whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import msgspec

from maid.errors import MaidError, PlatformUnavailable
from maid.images import machines
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
from maid.platforms import Platform

_LAYER = "application/vnd.oci.image.layer.v1.tar"

# What umoci says of what it died of: its log's sign for an error, and what comes after.
_FATAL = re.compile("\N{VECTOR OR CROSS PRODUCT} (.*)")

_HINTS: tuple[tuple[str, str], ...] = (
    (r"no space left on device|quota exceeded", "free some space, or name another directory"),
    (r"mknod: operation not permitted", "making device nodes needs the capability CAP_MKNOD"),
    (r"operation not permitted|permission denied", "does the file system allow that? try as root"),
    (r"diffid|digest|mismatch", "the image is damaged where it comes from"),
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
        _umoci(stage, grown, f"{about}, {descriptor.digest}")
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
    with path.open("rb") as packed, made.open("wb") as file:
        done = subprocess.run(
            _ending_with_us([program, "-dcq", "--long=31"]),
            stdin=packed,
            stdout=file,
            stderr=subprocess.PIPE,
        )
    if done.returncode:
        words = done.stderr.decode(errors="replace").strip()
        raise MaidError(f"{about}, {layer.digest}: zstd: {words or 'it was ended'}")
    with made.open("rb") as file:
        digest = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
    plain = Descriptor(mediaType=_LAYER, digest=digest, size=made.stat().st_size)
    made.rename(_named(blobs, plain))
    return plain


def _named(blobs: Path, descriptor: Descriptor) -> Path:
    _, encoded = check_digest(descriptor.digest)
    return blobs / encoded


def _umoci(stage: Path, rootfs: Path, about: str) -> None:
    program = shutil.which("umoci")
    if program is None:
        raise MaidError("umoci is not installed", "apt-get install umoci")
    command = [program, "raw", "unpack", "--image", f"{stage}:image"]
    if os.geteuid() != 0:
        command.append("--rootless")
    done = subprocess.run(
        _ending_with_us([*command, str(rootfs)]),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    if done.returncode:
        raise _explained(done.stdout.decode(errors="replace"), about)


def _ending_with_us(command: list[str]) -> list[str]:
    """A command that is killed when this process ends, however it ends."""
    return ["setpriv", "--pdeathsig=KILL", "--", *command]


def _explained(output: str, about: str) -> MaidError:
    found = _FATAL.findall(output)
    lines = output.strip().splitlines()
    words = found[-1].strip() if found else lines[-1].strip() if lines else "umoci was ended"
    hint = next((hint for pattern, hint in _HINTS if re.search(pattern, words)), "")
    return MaidError(f"{about} cannot be unpacked: {words}", hint)
