"""OCI layouts, documents and layers for tests and benchmarks, written straight in Python.

No code of maid's or of any tool's makes them, so that they can judge both. The same input makes
the same bytes, to the digest.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import shutil
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"
MANIFEST_TYPES = (INDEX, MANIFEST, DOCKER_LIST, DOCKER_MANIFEST)

REF_NAME = "org.opencontainers.image.ref.name"
CREATED = "2020-01-01T00:00:00Z"

Descriptor = dict[str, Any]


def digest_of(data: bytes) -> str:
    """The digest of bytes, as documents spell it."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def encoded(document: object) -> bytes:
    """A document as JSON, always the same for the same content."""
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def platform_of(text: str) -> dict[str, str]:
    """linux/arm/v7 as documents have it."""
    return dict(zip(("os", "architecture", "variant"), text.split("/"), strict=False))


def files_tar(files: Mapping[str, bytes | None], mode: int = 0o755) -> bytes:
    """A layer with these files, by path; None is a directory. Nothing is corrected: a path may
    lead out of the root."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for path, data in files.items():
            member = tarfile.TarInfo(path)
            member.mode = mode
            if data is None:
                member.type = tarfile.DIRTYPE
            else:
                member.size = len(data)
            archive.addfile(member, io.BytesIO(data) if data else None)
    return buffer.getvalue()


def tree_tar(tree: Path, output: BinaryIO) -> None:
    """Write a root file system as a layer; all times are the epoch, owners have no names."""

    def settled(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.mtime = 0
        member.uname = member.gname = ""
        return member

    with tarfile.open(fileobj=output, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name in sorted(os.listdir(tree)):
            archive.add(tree / name, name, filter=settled)


class _Digesting:
    """A file that is written, and its digest."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.sha256 = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        self.size += len(data)
        return self.file.write(data)

    def tell(self) -> int:
        return self.size


class Layout:
    """A directory with blobs and an index.json that names some of them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._blobs = directory / "blobs/sha256"
        if not directory.exists():
            self._blobs.mkdir(parents=True)
            (directory / "oci-layout").write_bytes(encoded({"imageLayoutVersion": "1.0.0"}))
            self._write([])

    def path(self, digest: str) -> Path:
        """The file of a blob, whether it is there or not."""
        return self._blobs / digest.removeprefix("sha256:")

    def entries(self) -> list[Descriptor]:
        """What index.json names."""
        document = json.loads((self.directory / "index.json").read_bytes())
        entries = document["manifests"]
        assert isinstance(entries, list)
        return entries

    def tags(self) -> list[str]:
        """The tags in index.json, in its order."""
        named = (each.get("annotations", {}).get(REF_NAME) for each in self.entries())
        return [tag for tag in named if tag]

    def tagged(self, tag: str) -> Descriptor:
        """What a tag names, without the annotation that says so."""
        [entry] = [
            each for each in self.entries() if each.get("annotations", {}).get(REF_NAME) == tag
        ]
        rest = {
            key: value for key, value in entry.get("annotations", {}).items() if key != REF_NAME
        }
        return entry | {"annotations": rest} if rest else without(entry, "annotations")

    def document(self, descriptor: Descriptor) -> dict[str, Any]:
        """The document that a descriptor is of."""
        document = json.loads(self.path(descriptor["digest"]).read_bytes())
        assert isinstance(document, dict)
        return document

    def tag(self, tag: str, descriptor: Descriptor) -> None:
        """Have index.json name it so."""
        others = [
            each for each in self.entries() if each.get("annotations", {}).get(REF_NAME) != tag
        ]
        annotations = descriptor.get("annotations", {}) | {REF_NAME: tag}
        self._write([*others, descriptor | {"annotations": annotations}])

    def _write(self, entries: list[Descriptor]) -> None:
        document = {"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}
        (self.directory / "index.json").write_bytes(encoded(document))

    def blob(self, data: bytes, media_type: str) -> Descriptor:
        """Add bytes as a blob; what names them."""
        digest = digest_of(data)
        self.path(digest).write_bytes(data)
        return {"mediaType": media_type, "digest": digest, "size": len(data)}

    def layer(self, data: bytes) -> tuple[Descriptor, str]:
        """Add an archive as it is; what names it, and its diff id."""
        descriptor = self.blob(data, LAYER)
        return descriptor, descriptor["digest"]

    def gzip_layer(self, data: bytes) -> tuple[Descriptor, str]:
        """Add an archive compressed; what names it, and its diff id."""
        packed = gzip.compress(data, 1, mtime=0)
        return self.blob(packed, f"{LAYER}+gzip"), digest_of(data)

    def tree_layer(self, tree: Path) -> tuple[Descriptor, str]:
        """Add a root file system, compressed lightly; what names it, and its diff id."""
        new = self.directory / "new"
        with new.open("wb") as file:
            packed = _Digesting(file)
            with gzip.GzipFile("", "wb", 1, packed, mtime=0) as compressing:  # type: ignore[arg-type]
                plain = _Digesting(compressing)  # type: ignore[arg-type]
                tree_tar(tree, plain)  # type: ignore[arg-type]
        digest = f"sha256:{packed.sha256.hexdigest()}"
        shutil.move(new, self.path(digest))
        descriptor = {"mediaType": f"{LAYER}+gzip", "digest": digest, "size": packed.size}
        return descriptor, f"sha256:{plain.sha256.hexdigest()}"

    def image(
        self,
        platform: str,
        layers: Iterable[tuple[Descriptor, str]],
        *,
        config: Mapping[str, object] | None = None,
        docker: bool = False,
        named: bool = True,
        **changed: object,
    ) -> Descriptor:
        """Add an image; what names it in an index, with its platform if `named`.

        `config`: more members of the image configuration's `config`. `changed`: other members of
        the manifest. `docker`: Docker's media types instead of OCI's.
        """
        pairs = list(layers)
        document = {
            **platform_of(platform),
            "created": CREATED,
            "config": {"Cmd": ["/bin/sh"], "Env": ["PATH=/usr/bin:/bin"], **(config or {})},
            "rootfs": {"type": "layers", "diff_ids": [diff for _, diff in pairs]},
            "history": [{"created": CREATED, "created_by": "tests"} for _ in pairs],
        }
        types = (DOCKER_MANIFEST, DOCKER_CONFIG) if docker else (MANIFEST, CONFIG)
        named_layers = [layer for layer, _ in pairs]
        if docker:
            named_layers = [layer | {"mediaType": DOCKER_LAYER} for layer in named_layers]
        manifest = {
            "schemaVersion": 2,
            "mediaType": types[0],
            "config": self.blob(encoded(document), types[1]),
            "layers": named_layers,
            **changed,
        }
        descriptor = self.blob(encoded(manifest), types[0])
        return descriptor | ({"platform": platform_of(platform)} if named else {})

    def index(
        self, entries: Iterable[Descriptor], *, docker: bool = False, **changed: object
    ) -> Descriptor:
        """Add an index (a manifest list) of these entries; what names it."""
        media_type = DOCKER_LIST if docker else INDEX
        document = {"schemaVersion": 2, "mediaType": media_type, "manifests": list(entries)}
        return self.blob(encoded(document | changed), media_type)

    def attestation(self, image: Descriptor) -> Descriptor:
        """Add what BuildKit says of an image; its entry in the image's index."""
        statement = self.blob(b'{"_type":"https://in-toto.io/Statement/v0.1"}', "application/json")
        entry = self.image("unknown/unknown", [(statement, statement["digest"])])
        about = {
            "vnd.docker.reference.digest": image["digest"],
            "vnd.docker.reference.type": "attestation-manifest",
        }
        return entry | {"annotations": about}


def without(descriptor: Descriptor, *names: str) -> Descriptor:
    """A descriptor without some of its members."""
    return {name: value for name, value in descriptor.items() if name not in names}
