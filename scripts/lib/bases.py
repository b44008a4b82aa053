"""Base images for tests and benchmarks, of Debian's packages (scripts/rootfs).

busybox:   one small image for many platforms, levels and variants among them
debian:    apt, gcc, libc and a package to install offline, for the four platforms of issue 4

Made once for each state of the trees and of this code, and kept in the cache as OCI layouts. Each
image says what it is in the file /platform and in its variable PLATFORM.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import layouts
from engines import rootfs
from layouts import Descriptor, Layout, files_tar

BUSYBOX = {
    "linux/amd64": "busybox-amd64",
    "linux/amd64/v2": "busybox-amd64",
    "linux/amd64/v3": "busybox-amd64",
    "linux/386": "busybox-386",
    "linux/arm/v5": "busybox-arm",
    "linux/arm/v6": "busybox-arm",
    "linux/arm/v7": "busybox-arm",
    "linux/arm64": "busybox-arm64",
    "linux/riscv64": "busybox-riscv64",
    "linux/s390x": "busybox-s390x",
}
"""The platforms of the index, in its order, and whose tree each has."""

DEBIAN = {
    "linux/amd64": "gcc-amd64",
    "linux/arm64": "gcc-arm64",
    "linux/arm/v7": "gcc-arm",
    "linux/riscv64": "gcc-riscv64",
}

MACHINES = {
    "linux/amd64": "x86_64",
    "linux/arm64": "aarch64",
    "linux/arm/v7": "armv7l",
    "linux/riscv64": "riscv64",
}
"""What `uname -m` says in a container of each of DEBIAN's platforms."""

TAG = "1"


def cache() -> Path:
    """Where they are kept."""
    home = os.environ.get("MAID_CACHE") or os.path.expanduser("~/.cache/maid")
    return Path(home) / "images"


def busybox() -> Layout:
    """The layout whose tag TAG is the index of BUSYBOX, and whose other tags are its images: as
    the platform is spelt, with dashes."""
    return cached("busybox", BUSYBOX)


def debian() -> Layout:
    """The same for DEBIAN."""
    return cached("debian", DEBIAN)


def cached(name: str, platforms: Mapping[str, str]) -> Layout:
    """A layout of that name whose tag TAG is an index of images of these platforms, each from the
    root file system that is named for it."""
    trees = {tree: rootfs(tree) for tree in dict.fromkeys(platforms.values())}
    key = hashlib.sha256(repr((platforms, [tree.name for tree in trees.values()])).encode())
    for source in (__file__, layouts.__file__):
        key.update(Path(source).read_bytes())
    place = cache() / f"{name}-{key.hexdigest()[:12]}"

    def make(layout: Layout) -> None:
        layers = {tree: layout.tree_layer(path) for tree, path in trees.items()}
        images = []
        for platform, tree in platforms.items():
            image = add_image(layout, platform, layers[tree])
            layout.tag(tag_of(platform), image)
            images.append(image)
        layout.tag(TAG, layout.index(images))

    with _locked(place.with_suffix(".lock")):
        if not place.is_dir():
            _make_whole(place, make)
            for older in cache().glob(f"{name}-*/"):
                if older != place:
                    shutil.rmtree(older, ignore_errors=True)
    return Layout(place)


def tag_of(platform: str) -> str:
    """The tag of the image of one platform."""
    return platform.replace("/", "-")


def add_image(layout: Layout, platform: str, tree: tuple[Descriptor, str]) -> Descriptor:
    """Add the image of a platform: the tree, and what says which it is."""
    mark = layout.gzip_layer(files_tar({"platform": f"{platform}\n".encode()}, 0o644))
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    environment = [f"PATH={path}", f"PLATFORM={platform}", "DEBIAN_FRONTEND=noninteractive"]
    return layout.image(platform, [tree, mark], config={"Env": environment})


def _make_whole(place: Path, make: Callable[[Layout], None]) -> None:
    """Make a layout that appears when it is complete."""
    with tempfile.TemporaryDirectory(prefix=".new-", dir=place.parent) as temporary:
        layout = Layout(Path(temporary) / "layout")
        make(layout)
        layout.directory.rename(place)


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Only one maker at a time."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w") as opened:
        fcntl.flock(opened, fcntl.LOCK_EX)
        yield
