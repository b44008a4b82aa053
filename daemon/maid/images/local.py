"""The user's own containers storage: base images that exist only there, and results that go there.

It is used from outside of the room, as podman and buildah of that user use it.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from maid.errors import MaidError
from maid.images import programs
from maid.images.build_storage import Storage
from maid.images.buildah import Image, full_disk, read_images
from maid.images.containerfile import Needed
from maid.images.index import (
    Descriptor,
    Manifest,
    describe,
    read,
    read_config,
    read_index,
    read_manifest,
)
from maid.images.layout import Layout
from maid.images.surroundings import Target
from maid.platforms import Platform, only, parse

_OWN = "localhost/"
"""Names that no registry knows: they are made here."""


@dataclass(frozen=True)
class LocalImages:
    """What the user's storage has. `environment` is the caller's: it says where that is."""

    images: tuple[Image, ...]
    environment: Mapping[str, str]

    def provide(
        self,
        needed: Sequence[Needed],
        target: Target,
        storage: Storage,
        waiting: Callable[[], None] = programs.go_on,
    ) -> set[str]:
        """Have the images that a build needs, and that are here, in its storage; what is there
        already is not copied again. Returns the names, as they are needed, that only this machine
        has: those of `localhost/`.

        What has a registry's name is handed over where the storage has nothing under it, or
        something older: then buildah asks the registry, and takes what is here where there is no
        answer, as its own `--pull=newer` does. `waiting` is called now and then; what it raises
        ends this. Raises MaidError.
        """
        wanted: dict[str, dict[str, Platform]] = {}
        own = set()
        by_id = {each.id: each for each in self.images}
        for each in needed:
            platform = parse(each.platform) if each.platform else parse(target.spelled)
            for image, name in self._find(each.name):
                waiting()
                chosen = self._choose(image, platform)
                if chosen:
                    wanted.setdefault(name, {})[chosen] = platform
                    if name.startswith(_OWN):
                        own.add(each.name)
                    break
        if not wanted:
            return own
        there = storage.images()
        for name, images in wanted.items():
            has = [each for each in there if name in each.names]
            newest = max((by_id[each].created for each in images), default=0)
            if name.startswith(_OWN) or all(each.created < newest for each in has):
                self._provide_one(name, images, storage, there, waiting)
        return own

    def _provide_one(
        self,
        name: str,
        images: Mapping[str, Platform],
        storage: Storage,
        there: Sequence[Image],
        waiting: Callable[[], None],
    ) -> None:
        known = {each.id for each in there}
        for image in images:
            if image not in known:
                self._copy(image, storage, waiting)
        if len(images) == 1:
            (image,) = images
            if not any(each.id == image and name in each.names for each in there):
                storage.run(*storage.buildah, "tag", image, name)
            return
        # One name for several platforms, as for `FROM --platform=$BUILDPLATFORM`: a list.
        listed = f"{name.rpartition(':')[0]}:maid-{os.getpid()}"
        storage.run(*storage.buildah, "manifest", "create", listed)
        for image, platform in images.items():
            options = platform_options(platform)
            storage.run(*storage.buildah, "manifest", "add", *options, listed, image)
        storage.run(*storage.buildah, "tag", listed, name)
        storage.run(*storage.buildah, "manifest", "rm", listed)

    def _copy(self, image: str, storage: Storage, waiting: Callable[[], None]) -> None:
        """Copy an image, by way of a directory: each side reads and writes its own storage."""
        with tempfile.TemporaryDirectory(dir=storage.work) as between:
            copy = ["skopeo", "copy", "--quiet", f"containers-storage:@{image}", f"dir:{between}"]
            call(copy, self.environment, storage.work, waiting)
            storage.run("skopeo", "copy", "--quiet", f"dir:{between}", storage.reference(image))

    def _find(self, name: str) -> list[tuple[Image, str]]:
        """The images that a Containerfile's name may mean, those of `localhost/` first, each with
        the name that it has for that."""
        if "@" in name or "://" in name:
            return []
        repository, colon, tag = name.rpartition(":")
        if not colon or "/" in tag:
            repository, tag = name, "latest"
        spellings = [f"{repository}:{tag}"]
        if "/" not in repository:
            spellings = [f"localhost/{repository}:{tag}", f"docker.io/library/{repository}:{tag}"]
        return [
            (image, spelling)
            for spelling in spellings
            for image in self.images
            if spelling in image.names
        ]

    def _choose(self, image: Image, platform: Platform) -> str:
        """The id of the image for a platform: the image itself, or one of a list; "" for none."""
        matcher = only(platform)
        document = read(self._inspect("--raw", image))
        if isinstance(document, Manifest):
            own = read_config(self._inspect("--config", "--raw", image)).platform()
            return image.id if matcher.matches(own) else ""
        best, chosen = None, ""
        for entry in document.manifests:
            candidate = entry.platform.platform() if entry.platform else None
            here = next((each for each in self.images if each.digest == entry.digest), None)
            if here is None or candidate is None or not matcher.matches(candidate):
                continue
            if best is None or matcher.less(candidate, best):
                best, chosen = candidate, here.id
        return chosen

    def _inspect(self, *arguments: str | Image) -> bytes:
        words = [f"containers-storage:@{x.id}" if isinstance(x, Image) else x for x in arguments]
        return call(["skopeo", "inspect", *words], self.environment).encode()


def local_images(environment: Mapping[str, str]) -> LocalImages:
    """What the user's storage has; nothing where it cannot be read: then nothing is taken from
    there. Asking for it would make one where there is none."""
    if not _has_storage(environment):
        return LocalImages((), dict(environment))
    try:
        text = call(["buildah", "images", "--no-trunc", "--json"], environment)
        return LocalImages(tuple(read_images(text)), dict(environment))
    except MaidError:
        return LocalImages((), dict(environment))


def _has_storage(environment: Mapping[str, str]) -> bool:
    """Whether there may be a storage (containers-storage.conf(5)): where a file says which, or in
    the usual place."""
    home = environment.get("HOME") or os.path.expanduser("~")
    config = environment.get("XDG_CONFIG_HOME") or f"{home}/.config"
    data = environment.get("XDG_DATA_HOME") or f"{home}/.local/share"
    usual = "/var/lib" if os.geteuid() == 0 else data
    places = ("/etc/containers/storage.conf", f"{config}/containers/storage.conf")
    return (
        bool(environment.get("CONTAINERS_STORAGE_CONF"))
        or any(map(os.path.exists, places))
        or os.path.exists(f"{usual}/containers/storage")
    )


@dataclass(frozen=True)
class Stored:
    """A result in the user's storage: what its names stand for (buildah writes lists in a form of
    its own), the names, and the id of an image, "" for a list."""

    descriptor: Descriptor
    names: tuple[str, ...]
    id: str


def store(
    layout: Layout,
    images: Sequence[tuple[Platform, Descriptor]],
    names: Sequence[str],
    as_list: bool,
    environment: Mapping[str, str],
    naming: Callable[[str], None] = lambda _: None,
) -> Stored:
    """Put a result into the user's storage under its names: an image, or a list of several, which
    `podman run` chooses from. The names are set last, and each is told to `naming` before that.

    Without names an image is found by its id, as docker's and buildah's; a list has no id that they
    find, so it is called after its digest. Raises MaidError.
    """
    stored = []
    for _, descriptor in images:
        # The storage calls an image by the digest of its configuration.
        config = read_manifest(layout.read(descriptor)).config
        image = config.digest.partition(":")[2]
        with layout.place(descriptor) as place:
            copy = ["skopeo", "copy", "--quiet", *place.spelled("src"), place.argument]
            call([*copy, f"containers-storage:@{image}"], environment)
        stored.append(image)
    if not as_list:
        if names:
            for name in names:
                naming(name)
            call(["buildah", "tag", stored[0], *names], environment)
        return Stored(images[0][1], tuple(names), f"sha256:{stored[0]}")
    # A list is changed by many calls: it grows under a name that nobody else has.
    growing = f"localhost/maid-build:{os.getpid()}"
    call(["buildah", "manifest", "create", growing], environment)
    try:
        for image, (platform, _) in zip(stored, images, strict=True):
            options = platform_options(platform)
            call(["buildah", "manifest", "add", *options, growing, image], environment)
        raw = call(["skopeo", "inspect", "--raw", f"containers-storage:{growing}"], environment)
        descriptor = describe(raw.encode(), read_index(raw.encode()).media_type)
        named = tuple(names) or (f"localhost/maid-build:{descriptor.digest[7:19]}",)
        for name in named:
            naming(name)
        call(["buildah", "tag", growing, *named], environment)
    finally:
        # By now the result is there, or why it is not is being told: this changes neither.
        with contextlib.suppress(MaidError):
            call(["buildah", "manifest", "rm", growing], environment)
    return Stored(descriptor, named, "")


def platform_options(platform: Platform) -> list[str]:
    """A platform as `buildah manifest add` takes it."""
    options = [f"--os={platform.os}", f"--arch={platform.architecture}"]
    return [*options, f"--variant={platform.variant}"] if platform.variant else options


def call(
    command: list[str],
    environment: Mapping[str, str],
    about: Path | None = None,
    waiting: Callable[[], None] = programs.go_on,
) -> str:
    """The standard output of a program that works on the user's storage. Raises MaidError."""
    done = programs.run(command, environment, waiting)
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()
        raise MaidError(
            f"{command[0]} {command[1]} failed in your containers storage: "
            f"{said[-500:] or f'exit status {done.returncode}'}",
            full_disk(said, about or Path("/var/lib/containers"))
            or "podman info shows where it is",
        )
    return done.stdout.decode(errors="replace")
