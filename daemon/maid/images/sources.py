"""Where an image's documents come from: a registry, a layout on disk, or another transport.

Whatever is read is verified against the descriptor that named it, size and digest, and what fails
to be is an error that names reference and digest.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from maid.errors import MaidError
from maid.images import regular
from maid.images.index import (
    MAX_DOCUMENT,
    REF_NAME,
    Descriptor,
    DocumentError,
    ImageConfig,
    Index,
    Manifest,
    check_digest,
    describe,
    encode,
    read,
    read_config,
    verify,
)
from maid.images.layout import Layout
from maid.images.references import LAYOUT, REGISTRY, Reference
from maid.images.skopeo import NotFound, Place, Skopeo
from maid.images.staging import temporary, writing


@dataclass(frozen=True)
class Found:
    """A document: what names it, its bytes, and what they say."""

    descriptor: Descriptor
    data: bytes
    document: Index | Manifest


class Source(Protocol):
    """A place with images."""

    @property
    def reference(self) -> Reference:
        """What the user called it."""

    def top(self) -> Found:
        """What the reference names. Raises MaidError."""

    def find(self, descriptor: Descriptor) -> Found:
        """The index or manifest that a descriptor names, verified. Raises MaidError."""

    def config(self, found: Found) -> ImageConfig:
        """The configuration of a manifest, verified. Raises MaidError."""

    def place(self, descriptor: Descriptor) -> AbstractContextManager[Place]:
        """One manifest's image, as a source for skopeo."""


@contextmanager
def open_source(reference: Reference, skopeo: Skopeo) -> Iterator[Source]:
    """The source that holds what `reference` names. Raises MaidError.

    Transports whose single documents cannot be had are copied whole into a temporary directory.
    """
    if reference.transport == REGISTRY:
        yield RegistrySource(reference, skopeo)
    elif reference.transport == LAYOUT:
        yield LayoutSource(reference)
    elif reference.transport == "dir":
        yield DirectorySource(reference, Path(reference.name), skopeo)
    else:
        with temporary(roomy=True) as directory:
            source = Place(reference.argument)
            skopeo.copy(source, Place(f"dir:{directory}"), reference, ["--all"])
            yield DirectorySource(reference, directory, skopeo)


class _Verified:
    """What the sources have in common: each document is fetched once, and verified."""

    def __init__(self, reference: Reference) -> None:
        self.reference = reference
        self._known: dict[str, Found] = {}
        self._configs: dict[str, ImageConfig] = {}

    def _fetch(self, descriptor: Descriptor) -> bytes:
        raise NotImplementedError

    def _fetch_config(self, found: Found, manifest: Manifest) -> bytes:
        return self._fetch(manifest.config)

    def find(self, descriptor: Descriptor) -> Found:
        """See Source."""
        known = self._known.get(descriptor.digest)
        if known is None:
            with self._explained(descriptor):
                check_digest(descriptor.digest)
                data = verify(descriptor, self._fetch(descriptor))
                known = Found(descriptor, data, read(data, descriptor.mediaType))
            self._known[descriptor.digest] = known
        return known

    def config(self, found: Found) -> ImageConfig:
        """See Source."""
        if not isinstance(found.document, Manifest):
            raise TypeError("an index has no configuration")
        descriptor = found.document.config
        known = self._configs.get(descriptor.digest)
        if known is None:
            with self._explained(descriptor):
                check_digest(descriptor.digest)
                data = verify(descriptor, self._fetch_config(found, found.document))
                known = self._configs[descriptor.digest] = read_config(data)
        return known

    def _topmost(self, data: bytes, media_type: str = "") -> Found:
        """What was read by name: nobody announced its digest."""
        try:
            document = read(data, media_type)
        except DocumentError as error:
            raise DocumentError(f"{self.reference}: {error.message}", error.hint) from error
        found = Found(describe(data, media_type or document.media_type), data, document)
        if self.reference.digest and self.reference.transport == REGISTRY:
            try:
                verify(
                    Descriptor(digest=self.reference.digest, size=len(data)),
                    data,
                )
            except DocumentError as error:
                raise DocumentError(f"{self.reference}: {error.message}") from error
        self._known[found.descriptor.digest] = found
        return found

    @contextmanager
    def _explained(self, descriptor: Descriptor) -> Iterator[None]:
        try:
            yield
        except DocumentError as error:
            raise DocumentError(
                f"{self.reference}, {descriptor.digest[:160]}: {error.message}", error.hint
            ) from error


class RegistrySource(_Verified):
    """A repository in a registry."""

    def __init__(self, reference: Reference, skopeo: Skopeo) -> None:
        super().__init__(reference)
        self._skopeo = skopeo
        self._top: Found | None = None

    def top(self) -> Found:
        """See Source. What a tag names is read once: it may be moved meanwhile."""
        if self._top is None:
            self._top = self._topmost(self._skopeo.raw(self.reference))
        return self._top

    def place(self, descriptor: Descriptor) -> AbstractContextManager[Place]:
        """See Source."""
        return _constant(Place(self.reference.at(descriptor.digest).argument))

    def _fetch(self, descriptor: Descriptor) -> bytes:
        return self._skopeo.raw(self.reference.at(descriptor.digest))

    def _fetch_config(self, found: Found, manifest: Manifest) -> bytes:
        where = self.reference.at(found.descriptor.digest)
        return self._skopeo.config(Place(where.argument), where)


class LayoutSource(_Verified):
    """An OCI layout on disk."""

    def __init__(self, reference: Reference) -> None:
        super().__init__(reference)
        self.layout = Layout(reference.directory)

    def top(self) -> Found:
        """See Source. Without a tag: the only image, or index.json itself where none has a name."""
        index = self.layout.index()
        tag = self.reference.tag
        entries = [each for each in index.manifests if not tag or each.annotation(REF_NAME) == tag]
        if len(entries) == 1:
            return self.find(entries[0])
        names = sorted({each.annotation(REF_NAME) for each in index.manifests} - {""})
        there = f"it has {', '.join(names)}" if names else "it has no image with a name"
        if tag and not entries:
            raise NotFound(f"the layout {self.layout.path} has no image {tag}", there)
        if tag:
            raise DocumentError(f"the layout {self.layout.path} has {tag} {len(entries)} times")
        if not entries:
            raise NotFound(f"the layout {self.layout.path} has no image")
        if names:
            raise MaidError(
                f"the layout {self.layout.path} has {len(entries)} images: say which one",
                f"{there}: oci:{self.layout.path}:{names[0]}",
            )
        return self._topmost(encode(index))

    def place(self, descriptor: Descriptor) -> AbstractContextManager[Place]:
        """See Source."""
        document = self.find(descriptor).document
        if isinstance(document, Manifest):
            for blob in (document.config, *document.layers):
                with self._explained(blob):
                    _require_regular(self.layout.blob(blob.digest))
        return self.layout.place(descriptor)

    def _fetch(self, descriptor: Descriptor) -> bytes:
        return self.layout.read(descriptor)


class DirectorySource(_Verified):
    """skopeo's `dir:`: manifest.json, DIGEST.manifest.json for the images of an index, and blobs
    by their digests (containers/image, directory/directory_transport.go)."""

    def __init__(self, reference: Reference, directory: Path, skopeo: Skopeo) -> None:
        super().__init__(reference)
        self._directory = directory
        self._skopeo = skopeo

    def top(self) -> Found:
        """See Source."""
        return self._topmost(self._read("manifest.json"))

    @contextmanager
    def place(self, descriptor: Descriptor) -> Iterator[Place]:
        """See Source: a directory in which that image is the one that is named."""
        found = self.find(descriptor)
        try:
            files = [each for each in self._directory.iterdir() if each.name != "manifest.json"]
        except OSError as error:
            raise MaidError(f"{self.reference} cannot be read: {error.strerror}") from error
        for file in files:
            if file.is_dir():
                continue  # nothing of skopeo's
            with self._explained(Descriptor(digest=file.name, size=0)):
                _require_regular(file)
        with temporary() as stage:
            with writing(stage):
                for file in files:
                    os.symlink(os.path.abspath(file), stage / file.name)
                (stage / "manifest.json").write_bytes(found.data)
            yield Place(f"dir:{stage}")

    def _fetch(self, descriptor: Descriptor) -> bytes:
        _, encoded = check_digest(descriptor.digest)
        for name in (f"{encoded}.manifest.json", encoded):
            if (self._directory / name).exists():
                return self._read(name)
        raise DocumentError(f"{self._directory} lacks it")

    def _read(self, name: str) -> bytes:
        try:
            return regular.read(self._directory / name, MAX_DOCUMENT)
        except FileNotFoundError as error:
            raise NotFound(f"{self.reference}: it has no {name}") from error
        except OSError as error:
            raise MaidError(f"{self.reference}: {name} cannot be read: {error.strerror}") from error


def _require_regular(path: Path) -> None:
    """That skopeo does not wait for a pipe; what is not there it tells itself."""
    try:
        regular.opened(path).close()
    except FileNotFoundError:
        pass
    except OSError as error:
        raise DocumentError(f"{path} cannot be read: {error.strerror}") from error


@contextmanager
def _constant(place: Place) -> Iterator[Place]:
    yield place
