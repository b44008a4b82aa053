"""Images in memory, for tests of what is decided about them."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from typing import Any

from maid.images.index import (
    OCI_CONFIG,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    Manifest,
    digest_of,
)
from maid.images.references import Reference
from maid.images.skopeo import Place
from maid.images.sources import Found, _Verified
from maid.platforms import parse

Entry = dict[str, Any]


def encoded(document: object) -> bytes:
    return json.dumps(document).encode()


def platform_object(text: str) -> dict[str, Any]:
    platform = parse(text)
    found: dict[str, Any] = {"os": platform.os, "architecture": platform.architecture}
    if platform.variant:
        found["variant"] = platform.variant
    if platform.os_version:
        found["os.version"] = platform.os_version
    if platform.os_features:
        found["os.features"] = list(platform.os_features)
    return found


class Memory(_Verified):
    """A source whose blobs are in a dictionary; what is read is verified as everywhere."""

    def __init__(self) -> None:
        super().__init__(Reference("docker", "test.example/app", "1"))
        self.blobs: dict[str, bytes] = {}
        self.named = b""
        self.fetched: list[str] = []

    def blob(self, document: object, media_type: str) -> Entry:
        """Store a document (bytes as they are); the entry that names it."""
        data = document if isinstance(document, bytes) else encoded(document)
        self.blobs[digest_of(data)] = data
        return {"mediaType": media_type, "digest": digest_of(data), "size": len(data)}

    def image(self, config: str | dict[str, Any], named: str | None = "", **more: Any) -> Entry:
        """An image for a platform. `named` is what the index says of it: the same where "", nothing
        where None."""
        document = platform_object(config) if isinstance(config, str) else config
        layers = [self.blob(b"layer", "application/vnd.oci.image.layer.v1.tar")]
        manifest = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": self.blob(document, OCI_CONFIG),
            "layers": layers,
            "annotations": {"unique": str(len(self.blobs))},
        }
        entry = self.blob(manifest, OCI_MANIFEST)
        if named is not None:
            entry["platform"] = platform_object(named) if named else document
        return entry | more

    def index(self, *entries: Entry, **more: Any) -> Entry:
        """An index of these entries; the entry that names it."""
        document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": list(entries), **more}
        return self.blob(document, OCI_INDEX)

    def attestation(self, about: Entry) -> Entry:
        """An attestation of an image, as BuildKit makes them."""
        return self.image({"os": "unknown", "architecture": "unknown"}) | {
            "annotations": {
                "vnd.docker.reference.type": "attestation-manifest",
                "vnd.docker.reference.digest": about["digest"],
            }
        }

    def name(self, entry: Entry) -> Found:
        """Have the reference name it."""
        self.named = self.blobs[entry["digest"]]
        return self.top()

    def top(self) -> Found:
        return self._topmost(self.named)

    def _fetch(self, descriptor: Descriptor) -> bytes:
        self.fetched.append(descriptor.digest)
        try:
            return self.blobs[descriptor.digest]
        except KeyError:
            from maid.images.index import DocumentError

            raise DocumentError("it is not there") from None

    def _fetch_config(self, found: Found, manifest: Manifest) -> bytes:
        return self._fetch(manifest.config)

    def place(self, descriptor: Descriptor) -> AbstractContextManager[Place]:
        raise NotImplementedError
