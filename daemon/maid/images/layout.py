"""An OCI layout: a directory of blobs by digest, and an index.json that names images in it.

Several may read and write one at once: blobs appear under their digest whole or not at all, and
index.json is replaced in one step by whoever holds its lock. What is interrupted leaves blobs that
nothing names, which the next attempt uses, and no image that looks complete.

Rules: github.com/opencontainers/image-spec, image-layout.md.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec

from maid.errors import MaidError
from maid.files import locked, sync_directory
from maid.images.index import (
    MAX_DOCUMENT,
    OCI_INDEX,
    REF_NAME,
    Descriptor,
    DocumentError,
    Index,
    check_digest,
    describe,
    encode,
    read_index,
    read_manifest,
    verify,
)
from maid.images.references import LAYOUT, Reference
from maid.images.skopeo import Place, Skopeo
from maid.images.staging import staging

_VERSION = {"imageLayoutVersion": "1.0.0"}
_STAGING = ".maid-"
_LOCK_SECONDS = 60.0


class Layout:
    """The layout in the directory `path`."""

    def __init__(self, path: Path) -> None:
        """Open it. Raises MaidError where it is none."""
        self.path = Path(os.path.abspath(path))
        try:
            version = json.loads((self.path / "oci-layout").read_bytes())["imageLayoutVersion"]
        except FileNotFoundError as error:
            what = "has no file oci-layout" if self.path.is_dir() else "is not there"
            raise MaidError(f"{self.path} is no OCI layout: it {what}") from error
        except OSError as error:
            raise MaidError(f"{self.path} cannot be read: {error.strerror}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise MaidError(f"{self.path} is no OCI layout: oci-layout cannot be read") from error
        if not str(version).startswith("1."):
            raise MaidError(f"the OCI layout {self.path} is of version {version}, which is unknown")

    @classmethod
    def create(cls, path: Path) -> Layout:
        """The layout in `path`, made where there is nothing or an empty directory. It has no
        images yet. Raises MaidError, also for a directory that holds something else."""
        try:
            path.mkdir(parents=True, exist_ok=True)
            if not (path / "oci-layout").exists():
                others = [
                    each.name for each in path.iterdir() if not each.name.startswith(_STAGING)
                ]
                if set(others) - {"blobs", "index.json"}:
                    raise MaidError(
                        f"{path} is no OCI layout and not empty", "name another directory"
                    )
                _replace(path / "oci-layout", json.dumps(_VERSION).encode())
            (path / "blobs/sha256").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _failed(path, error) from error
        return cls(path)

    def blob(self, digest: str) -> Path:
        """Where the blob of that digest is, or would be. Raises DocumentError for no digest."""
        algorithm, encoded = check_digest(digest)
        return self.path / "blobs" / algorithm / encoded

    def read(self, descriptor: Descriptor) -> bytes:
        """A document's bytes, verified. Raises DocumentError."""
        if descriptor.size > MAX_DOCUMENT:
            raise DocumentError(
                f"{descriptor.digest} has {descriptor.size} bytes: too much for a document"
            )
        try:
            with self.blob(descriptor.digest).open("rb") as file:
                return verify(descriptor, file.read(descriptor.size + 1))
        except FileNotFoundError as error:
            raise DocumentError(f"the layout {self.path} lacks {descriptor.digest}") from error
        except OSError as error:
            raise MaidError(
                f"{descriptor.digest} in {self.path} cannot be read: {error.strerror}"
            ) from error

    def write(self, data: bytes, media_type: str) -> Descriptor:
        """Store a document. Raises MaidError where it cannot be written."""
        descriptor = describe(data, media_type)
        path = self.blob(descriptor.digest)
        try:
            if not path.exists() or path.read_bytes() != data:
                _replace(path, data)
        except OSError as error:
            raise _failed(self.path, error) from error
        return descriptor

    def index(self) -> Index:
        """index.json; one without entries where there is none yet. Raises DocumentError."""
        try:
            return read_index((self.path / "index.json").read_bytes())
        except FileNotFoundError:
            return Index(schemaVersion=2, mediaType=OCI_INDEX, manifests=())
        except OSError as error:
            raise MaidError(f"{self.path} cannot be read: {error.strerror}") from error
        except DocumentError as error:
            raise DocumentError(f"{self.path}/index.json: {error.message}") from error

    def blobs(self) -> set[str]:
        """The digests of the blobs that are there, whether anything names them or not."""
        return {f"{file.parent.name}:{file.name}" for file in self.path.glob("blobs/*/[!.]*")}

    def tags(self) -> list[str]:
        """The names that index.json has for its entries."""
        return [each.annotation(REF_NAME) for each in self.index().manifests]

    def set(self, descriptor: Descriptor, tag: str, instead_of: str | None = None) -> None:
        """Have `tag` name a blob that is there; "": have it be the one image without a name.

        All at once: whoever reads index.json meanwhile sees what was or what is. `instead_of` is
        the digest that the tag has to name until now. Raises MaidError, also where it names
        another.
        """
        annotations = dict(descriptor.annotations or {})
        annotations.pop(REF_NAME, None)
        if tag:
            annotations[REF_NAME] = tag
        entry = msgspec.structs.replace(descriptor, annotations=annotations or None)
        with self._locked():
            index = self.index()
            others = tuple(each for each in index.manifests if each.annotation(REF_NAME) != tag)
            now = {each.digest for each in index.manifests if each not in others}
            if instead_of is not None and now != {instead_of}:
                raise MaidError(
                    f"the layout {self.path} has another {tag or 'image'} by now than was read:"
                    f" {', '.join(now) or 'none'}",
                    "try again",
                )
            self._publish(msgspec.structs.replace(index, manifests=(*others, entry)))

    def remove(self, tag: str) -> None:
        """Have `tag` name nothing; blobs stay. Raises MaidError where it names nothing now."""
        with self._locked():
            index = self.index()
            others = tuple(each for each in index.manifests if each.annotation(REF_NAME) != tag)
            if len(others) == len(index.manifests):
                raise MaidError(f"the layout {self.path} has no image {tag}")
            self._publish(msgspec.structs.replace(index, manifests=others))

    def _publish(self, index: Index) -> None:
        try:
            sync_directory(self.path / "blobs/sha256")
            _replace(self.path / "index.json", encode(index))
        except OSError as error:
            raise _failed(self.path, error) from error

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            # A file that every layout has, and that never changes.
            with locked(self.path / "oci-layout", _LOCK_SECONDS):
                yield
        except TimeoutError as error:
            raise MaidError(f"{self.path} is being written by another maid: {error}") from error
        except OSError as error:
            raise _failed(self.path, error) from error

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """A directory of its own on the layout's file system, gone afterwards; what a killed
        process left behind goes as well."""
        with ExitStack() as stack:
            try:
                path = stack.enter_context(staging(self.path, _STAGING))
            except OSError as error:
                raise _failed(self.path, error) from error
            yield path

    def holds(self, descriptor: Descriptor) -> bool:
        """Whether an image is there: its manifest, and all that it names, of the right size."""
        try:
            manifest = read_manifest(self.read(descriptor))
            blobs = (manifest.config, *manifest.layers)
            return all(self.blob(each.digest).stat().st_size == each.size for each in blobs)
        except (MaidError, OSError):
            return False

    def receive(
        self,
        skopeo: Skopeo,
        source: Place,
        about: Reference,
        preserve: bool,
        waiting: Callable[[Path], None] | None = None,
    ) -> Descriptor:
        """Copy one image's blobs and manifest into the layout; no tag names it yet.

        Blobs that are there are not fetched again. `preserve`: fail where the manifest cannot stay
        as it is; a Docker manifest becomes OCI's otherwise. `waiting` is called meanwhile with the
        directory in which files grow. Raises SkopeoError, and DocumentError where a blob has
        another size than the manifest says.
        """
        received = self._copied(skopeo, source, about, preserve, waiting)
        if self._settle(received, about):
            received = self._copied(skopeo, source, about, preserve, waiting)
            self._settle(received, about)
        return received

    def _copied(
        self,
        skopeo: Skopeo,
        source: Place,
        about: Reference,
        preserve: bool,
        waiting: Callable[[Path], None] | None,
    ) -> Descriptor:
        with self.staging() as stage:
            blobs = f"--{{side}}-shared-blob-dir={self.path / 'blobs'}"
            accept = "--{side}-oci-accept-uncompressed-layers"
            skopeo.copy(
                source,
                Place(f"oci:{stage}:image", (blobs, accept)),
                about,
                ["--preserve-digests"] if preserve else [],
                (lambda: waiting(stage)) if waiting else None,
            )
            (entry,) = read_index((stage / "index.json").read_bytes()).manifests
        return Descriptor(mediaType=entry.mediaType, digest=entry.digest, size=entry.size)

    def _settle(self, received: Descriptor, about: Reference) -> bool:
        """Have the blobs of a manifest on the disk, each of the size that the manifest says.

        skopeo takes a file that has a blob's name for the blob, and does not wait for the disk: a
        power failure leaves files that are too short. Such are removed, and then this is True.
        Raises DocumentError where it is the manifest that is wrong.
        """
        manifest = read_manifest(self.read(received))
        damaged = False
        for blob in (manifest.config, *manifest.layers):
            path = self.blob(blob.digest)
            try:
                with path.open("rb") as file:
                    os.fsync(file.fileno())
                    size = os.fstat(file.fileno()).st_size
                    if size == blob.size:
                        continue
                    algorithm, encoded = check_digest(blob.digest)
                    if hashlib.file_digest(file, algorithm).hexdigest() == encoded:
                        raise DocumentError(
                            f"{about}, {blob.digest}: it has {size} bytes, where the manifest"
                            f" {received.digest} says {blob.size}",
                            "the image was made wrongly: whoever made it can push it again",
                        )
                path.unlink()
                damaged = True
            except FileNotFoundError as error:
                if not blob.urls:  # which stays where it is said to be (descriptor.md)
                    raise DocumentError(f"{about}, {blob.digest}: it did not come") from error
            except OSError as error:
                raise _failed(self.path, error) from error
        return damaged

    @contextmanager
    def place(self, descriptor: Descriptor) -> Iterator[Place]:
        """One image of the layout, tagged or not, as a source for skopeo."""
        with tempfile.TemporaryDirectory(prefix="maid-image-") as temporary:
            stage = Path(temporary)
            (stage / "oci-layout").write_text(json.dumps(_VERSION))
            entry = Descriptor(
                mediaType=descriptor.mediaType, digest=descriptor.digest, size=descriptor.size
            )
            index = Index(schemaVersion=2, mediaType=OCI_INDEX, manifests=(entry,))
            (stage / "index.json").write_bytes(encode(index))
            yield Place(f"oci:{stage}", (f"--{{side}}-shared-blob-dir={self.path / 'blobs'}",))


def _replace(path: Path, data: bytes) -> None:
    """Have the file hold `data`, whole or not at all, also after a power failure."""
    file, name = tempfile.mkstemp(prefix=_STAGING, dir=path.parent)
    try:
        with os.fdopen(file, "wb") as opened:
            opened.write(data)
            opened.flush()
            os.fchmod(opened.fileno(), 0o644)
            os.fsync(opened.fileno())
        os.rename(name, path)
    except BaseException:
        os.unlink(name)
        raise
    sync_directory(path.parent)


def _failed(path: Path, error: OSError) -> MaidError:
    hint = "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
    return MaidError(f"{path} cannot be written: {error.strerror}", hint)


def layout_reference(layout: Layout, tag: str = "") -> Reference:
    """What names an image of the layout."""
    return Reference(LAYOUT, str(layout.path), tag)
