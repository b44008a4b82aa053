"""An OCI layout: a directory of blobs by digest, and an index.json that names images in it.

Several may read and write one at once: blobs appear under their digest whole or not at all, and
index.json is replaced in one step by whoever holds its lock. What is interrupted leaves blobs that
nothing names, which the next attempt uses, and no image that looks complete.

Rules: github.com/opencontainers/image-spec, image-layout.md.
"""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec

from maid.errors import MaidError
from maid.files import locked, sync_directory
from maid.images import regular
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
from maid.images.staging import staging, sweep_files, temporary, writing

_VERSION = {"imageLayoutVersion": "1.0.0"}
_STAGING = ".maid-"
_LOCK_SECONDS = 60.0


class Layout:
    """The layout in the directory `path`."""

    def __init__(self, path: Path) -> None:
        """Open it. Raises MaidError where it is none."""
        self.path = Path(os.path.abspath(path))
        try:
            data = regular.read(self.path / "oci-layout", MAX_DOCUMENT)
            version = json.loads(data)["imageLayoutVersion"]
        except FileNotFoundError as error:
            what = "has no file oci-layout" if self.path.is_dir() else "is not there"
            raise MaidError(f"{self.path} is no OCI layout: it {what}") from error
        except OSError as error:
            raise MaidError(f"{self.path} cannot be read: {error.strerror}") from error
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise MaidError(f"{self.path} is no OCI layout: oci-layout cannot be read") from error
        if not str(version).startswith("1."):
            raise MaidError(
                f"the OCI layout {self.path} is of version {str(version)[:20]}, which is unknown"
            )

    @classmethod
    def create(cls, path: Path) -> Layout:
        """The layout in `path`, made where there is nothing or an empty directory. It has no
        images yet. Raises MaidError, also for a directory that holds something else."""
        with writing(path):
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
            return verify(descriptor, regular.read(self.blob(descriptor.digest), descriptor.size))
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
        with writing(self.path):
            if not path.exists() or regular.read(path, len(data)) != data:
                _replace(path, data)
        return descriptor

    def index(self) -> Index:
        """index.json; one without entries where there is none yet. Raises DocumentError."""
        try:
            return read_index(regular.read(self.path / "index.json", MAX_DOCUMENT))
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
        """Have `tag` name a blob that is there; "": have an entry without a name name it.

        All at once: whoever reads index.json meanwhile sees what was or what is. What the tag's
        entry had stays, but for what is said of another blob: its place, annotations, and fields
        that nobody knows. Entries without a name are other images, and stay (as with skopeo), but
        for one of the same digest. `instead_of` is the digest that the tag has to name until now,
        or the entry without a name that is replaced. Raises MaidError, also where there is another.
        """
        with self._locked():
            index = self.index()
            old = [each for each in index.manifests if each.annotation(REF_NAME) == tag]
            if not tag:
                named = {descriptor.digest} if instead_of is None else {instead_of}
                old = [each for each in old if each.digest in named]
            now = {each.digest for each in old}
            if instead_of is not None and now != {instead_of}:
                raise MaidError(
                    f"the layout {self.path} has another {tag or 'image'} by now than was read:"
                    f" {', '.join(now) or 'none'}",
                    "try again",
                )
            entry = _entry(descriptor, tag, old[0] if old else None)
            entries = [
                entry if old and each is old[0] else each
                for each in index.manifests
                if each not in old[1:]
            ]
            if not old:
                entries.append(entry)
            self._publish(msgspec.structs.replace(index, manifests=tuple(entries)))

    def remove(self, tag: str) -> None:
        """Have `tag` name nothing; blobs stay. Raises MaidError where it names nothing now."""
        with self._locked():
            index = self.index()
            others = tuple(each for each in index.manifests if each.annotation(REF_NAME) != tag)
            if len(others) == len(index.manifests):
                raise MaidError(f"the layout {self.path} has no image {tag}")
            self._publish(msgspec.structs.replace(index, manifests=others))

    def _publish(self, index: Index) -> None:
        with writing(self.path):
            sync_directory(self.path / "blobs/sha256")
            _replace(self.path / "index.json", encode(index))

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with writing(self.path):
            try:
                # A file that every layout has, and that never changes.
                with locked(self.path / "oci-layout", _LOCK_SECONDS):
                    yield
            except TimeoutError as error:
                raise MaidError(f"{self.path} is being written by another maid: {error}") from error

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """A directory of its own on the layout's file system, gone afterwards; what a killed
        process left behind goes as well."""
        with ExitStack() as stack:
            with writing(self.path):
                for directory in (self.path, self.path / "blobs/sha256"):
                    sweep_files(directory, _STAGING)
                path = stack.enter_context(staging(self.path, _STAGING))
            yield path

    def holds(self, descriptor: Descriptor) -> bool:
        """Whether an image is there: its manifest, and all that it names, byte for byte."""
        try:
            manifest = read_manifest(self.read(descriptor))
            blobs = {each.digest: each.size for each in (manifest.config, *manifest.layers)}
            if any(self.blob(digest).stat().st_size != size for digest, size in blobs.items()):
                return False
            return all(map(self._is_right, blobs))
        except (MaidError, OSError):
            return False

    def _is_right(self, digest: str) -> bool:
        with regular.opened(self.blob(digest)) as file:
            return regular.has_digest(file, digest)

    def receive(
        self,
        skopeo: Skopeo,
        source: Place,
        about: Reference,
        preserve: bool,
        waiting: Callable[[Path], None] | None = None,
    ) -> Descriptor:
        """Copy one image's blobs and manifest into the layout; no tag names it yet.

        Blobs that are there, and whole, are not fetched again. `preserve`: fail where the manifest
        cannot stay as it is; a Docker manifest becomes OCI's otherwise. `waiting` is called
        meanwhile with the directory in which files grow. Raises SkopeoError, and DocumentError
        where a blob has another size than the manifest says.
        """
        before = self.blobs()
        received = self._copied(skopeo, source, about, preserve, waiting)
        if self._settle(received, about, before):
            received = self._copied(skopeo, source, about, preserve, waiting)
            self._settle(received, about, ())
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
                Place(f"oci:{without_colon(stage)}:image", (blobs, accept)),
                about,
                ["--preserve-digests"] if preserve else [],
                (lambda: waiting(stage)) if waiting else None,
            )
            with writing(stage):
                (entry,) = read_index((stage / "index.json").read_bytes()).manifests
        return Descriptor(mediaType=entry.mediaType, digest=entry.digest, size=entry.size)

    def _settle(self, received: Descriptor, about: Reference, before: Collection[str]) -> bool:
        """Have the blobs of a manifest on the disk, each of the size that the manifest says, and
        those that were there `before` with the right bytes: skopeo has looked at the others'.

        It takes a file that has a blob's name for the blob, and does not wait for the disk: a power
        failure leaves files that are too short, or zeros. Such are removed, and then this is True.
        Raises DocumentError where it is the manifest that is wrong.
        """
        manifest = read_manifest(self.read(received))
        damaged = False
        for blob in {each.digest: each for each in (manifest.config, *manifest.layers)}.values():
            path = self.blob(blob.digest)
            with writing(self.path):
                try:
                    right = self._is_settled(path, blob, blob.digest in before)
                except FileNotFoundError as error:
                    if not blob.urls:  # which stays where it is said to be (descriptor.md)
                        raise DocumentError(f"{about}, {blob.digest}: it did not come") from error
                    continue
                except DocumentError as error:
                    raise DocumentError(
                        f"{about}, {blob.digest}: {error.message} the manifest {received.digest}"
                        f" says {blob.size}",
                        error.hint,
                    ) from error
                if not right:
                    path.unlink()
                    damaged = True
        return damaged

    def _is_settled(self, path: Path, blob: Descriptor, doubted: bool) -> bool:
        try:
            with regular.opened(path) as file:
                os.fsync(file.fileno())
                size = os.fstat(file.fileno()).st_size
                if size == blob.size:
                    return not doubted or regular.has_digest(file, blob.digest)
                if not regular.has_digest(file, blob.digest):
                    return False
        except regular.Irregular:
            return False
        raise DocumentError(
            f"it has {size} bytes, where",
            "the image was made wrongly: whoever made it can push it again",
        )

    @contextmanager
    def place(self, descriptor: Descriptor) -> Iterator[Place]:
        """One image of the layout, tagged or not, as a source for skopeo."""
        with temporary() as stage:
            entry = Descriptor(
                mediaType=descriptor.mediaType, digest=descriptor.digest, size=descriptor.size
            )
            index = Index(schemaVersion=2, mediaType=OCI_INDEX, manifests=(entry,))
            with writing(stage):
                (stage / "oci-layout").write_text(json.dumps(_VERSION))
                (stage / "index.json").write_bytes(encode(index))
            argument = f"oci:{without_colon(stage)}"
            yield Place(argument, (f"--{{side}}-shared-blob-dir={self.path / 'blobs'}",))


def _entry(descriptor: Descriptor, tag: str, old: Descriptor | None) -> Descriptor:
    """An entry of index.json, with what the one in whose place it comes has beside."""
    if old is None:
        old = Descriptor(digest=descriptor.digest, size=descriptor.size)
    annotations = {**(old.annotations or {}), **(descriptor.annotations or {})}
    annotations.pop(REF_NAME, None)
    if tag:
        annotations[REF_NAME] = tag
    new = msgspec.structs.replace(
        descriptor, annotations=annotations or None, extra={**old.extra, **descriptor.extra}
    )
    if old.digest == descriptor.digest and new.platform is None:
        # What else it says is of the blob, not of the name.
        return msgspec.structs.replace(new, platform=old.platform)
    return new


def without_colon(path: Path) -> Path:
    """The path, in which skopeo must not see a tag. Raises MaidError where it would."""
    if ":" in str(path):
        raise MaidError(
            f"{path} has a colon, behind which a layout's tag is looked for",
            "name a directory without: --to, MAID_IMAGES, or TMPDIR for what is temporary",
        )
    return path


def _replace(path: Path, data: bytes) -> None:
    """Have the file hold `data`, whole or not at all, also after a power failure."""
    while True:
        file, name = tempfile.mkstemp(prefix=_STAGING, dir=path.parent)
        fcntl.flock(file, fcntl.LOCK_EX)
        if os.path.exists(name):
            break
        os.close(file)  # another one's sweep was here before the lock was
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


def layout_reference(layout: Layout, tag: str = "") -> Reference:
    """What names an image of the layout."""
    return Reference(LAYOUT, str(layout.path), tag)
