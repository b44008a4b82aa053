"""Documents of images: whatever a registry says, it is chosen from, looked at and changed, or it is
an error of one line (tests/unit/test_hostile_documents.py, whose judge this is)."""

from __future__ import annotations

import contextlib
import json

from memory import Memory
from test_hostile_documents import judge, survives

from fuzz.inputs import Choices
from maid.errors import MaidError
from maid.images.index import OCI_CONFIG, OCI_MANIFEST, read, read_config, read_index, read_manifest
from maid.images.look import look
from maid.images.pull import choose_image
from maid.platforms import only, parse

WHOLE = 16
"""One in so many is judged in all ways: adding up sizes is done by threads, and takes a while."""


class Documents:
    """The target: the first byte says which document the rest is."""

    # fmt: off
    words = (
        b'"platform":', b'"os":', b'"variant":', b'"digest":', b'"sha256:', b"null", b"{}",
        b"[]", b'"manifests":[', b'"size":-1', b"1e999", b"\\ud800", b'9' * 5000,
        b'"annotations":{', b'"architecture":"arm64"', b'[' * 2000, b'"os.features":["x"]',
        b"NaN",
    )
    # fmt: on

    def __enter__(self) -> Documents:
        self.matcher = only(parse("linux/arm64"))
        self.count = 0
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def seeds(self) -> list[bytes]:
        source = Memory()
        images = [
            source.image("linux/arm64/v8"),
            source.image("linux/amd64"),
            source.image("linux/386"),
        ]
        index = source.index(*images, annotations={"a": "b"})
        texts = [source.blobs[index["digest"]], source.blobs[images[0]["digest"]]]
        texts.append(json.dumps({"os": "linux", "architecture": "arm64", "rootfs": {}}).encode())
        return [bytes([kind]) + text for kind in range(3) for text in texts]

    def one(self, data: bytes) -> object:
        choices = Choices(data)
        kind, text = choices.number(3), choices.rest()
        source = Memory()
        if kind == 0:
            source.named = text
        elif kind == 1:
            entry = source.blob(text, OCI_MANIFEST)
            source.name(
                source.index(entry | {"platform": {"os": "linux", "architecture": "arm64"}})
            )
        else:
            manifest = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "layers": []}
            source.name(
                source.blob(manifest | {"config": source.blob(text, OCI_CONFIG)}, OCI_MANIFEST)
            )
        self.count += 1
        if self.count % WHOLE == 0:
            judge(source, self.matcher)
        else:
            survives(lambda: choose_image(source, self.matcher))
            survives(lambda: choose_image(source, self.matcher, accept_any=True))
            survives(lambda: look(source, self.matcher))
        shapes: list[object] = [kind]
        for reader in (read_config, read_index, read_manifest, lambda data: read(data, "")):
            with contextlib.suppress(MaidError):
                shapes.append(type(reader(text)).__name__)  # type: ignore[operator]
                continue
            shapes.append("")
        return tuple(shapes)
