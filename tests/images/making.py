"""What tests of `maid pull` and `maid index` have in common: images of their own, and maid run."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import pty
import random
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from daemons import MAID
from faulty import Faulty
from layouts import (
    Descriptor,
    Layout,
    files_tar,
    without,
)
from places import Place
from registry import Registry


class Maker:
    """Images and indexes for one test: made in a layout, pushed to a repository of its own."""

    _numbers = itertools.count()

    def __init__(self, registry: Registry, directory: Path) -> None:
        self.registry = registry
        self.layout = Layout(directory / "made")
        self.name = f"pull/{next(self._numbers)}"

    def image(self, platform: str, content: str = "", **more: Any) -> Descriptor:
        """A small image that says its platform in a file."""
        data = files_tar({"platform": platform.encode(), "content": content.encode()})
        return self.layout.image(platform, [self.layout.gzip_layer(data)], **more)

    def push(self, descriptor: Descriptor, tag: str = "1") -> str:
        """Have a tag of the repository name it; returns the reference."""
        self.layout.tag(tag, descriptor)
        self.registry.push(self.layout, self.name, tag)
        return f"{self.registry.address}/{self.name}:{tag}"

    def index(self, *entries: Descriptor, tag: str = "1", **more: Any) -> str:
        """Push an index of these entries."""
        return self.push(self.layout.index(entries, **more), tag)


def pulled(place: Place, *arguments: str | Path, **options: Any) -> dict[str, Any]:
    done = place.maid("pull", "--json", *arguments, **options)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert isinstance(document, dict)
    return document


def refused(place: Place, *arguments: str | Path, status: int = 1, **options: Any) -> str:
    """What was said when it did not work: one sentence, a hint, and never a traceback."""
    done = place.maid("pull", *arguments, **options)
    assert done.returncode == status, (done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    return done.stderr


def terminal(place: Place, columns: int, *arguments: str) -> list[str]:
    """What maid writes on a terminal that is so wide."""
    primary, secondary = pty.openpty()
    process = subprocess.Popen(
        [MAID, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=secondary,
        stderr=secondary,
        env=place.variables | {"COLUMNS": str(columns), "TERM": "xterm"},
    )
    os.close(secondary)
    output = b""
    with contextlib.suppress(OSError):  # how a terminal ends
        while piece := os.read(primary, 4096):
            output += piece
    os.close(primary)
    assert process.wait(20) == 0
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output.decode()).splitlines()


def everything(maker: Maker) -> tuple[str, list[Descriptor]]:
    """An index with attestations, an index in it, and an image that it names no platform of."""
    images = [maker.image("linux/amd64"), maker.image("linux/arm64"), maker.image("linux/s390x")]
    nested = maker.layout.index([images[2], maker.layout.attestation(images[2])])
    unnamed = without(maker.image("linux/riscv64"), "platform")
    attested = [maker.layout.attestation(each) for each in images[:2]]
    reference = maker.index(*images[:2], *attested, nested, unnamed, **{"x-unknown": [1, {}]})
    return reference, [*images, unnamed, nested, *attested]


def large(maker: Maker, layers: int = 1, size: int = 3_000_000) -> Descriptor:
    """An image with layers that take a while: what they hold cannot be compressed."""
    made = [
        maker.layout.layer(files_tar({f"large{n}": random.Random(n).randbytes(size)}))
        for n in range(layers)
    ]
    return maker.layout.image("linux/arm64", made)


def through(faulty: Faulty, reference: str) -> str:
    """The same repository, by way of what misbehaves."""
    return f"{faulty.address}/{reference.partition('/')[2]}"


def is_whole(layout: Layout, descriptor: Descriptor) -> bool:
    """Whether all that a manifest names is there, with the right bytes."""
    document = layout.document(descriptor)
    blobs = [document["config"], *document["layers"]]
    sizes = [layout.path(each["digest"]).stat().st_size == each["size"] for each in blobs]
    done = subprocess.run(
        ["sha256sum", "--quiet", "--check"],
        input="".join(
            f"{each['digest'].removeprefix('sha256:')}  {layout.path(each['digest'])}\n"
            for each in blobs
        ),
        text=True,
        check=False,
    )
    return all(sizes) and done.returncode == 0


def tags(directory: Path) -> list[str]:
    """The names in a layout that may not be there."""
    try:
        entries = json.loads((directory / "index.json").read_bytes())["manifests"]
    except FileNotFoundError:
        return []
    return [each["annotations"]["org.opencontainers.image.ref.name"] for each in entries]


def wait_for(condition: Callable[[], object], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def clear(place: Place) -> None:
    """What killed programs have left where temporary files go."""
    for name in place.leftovers():
        subprocess.run(["rm", "-rf", place.directory / "tmp" / name], check=True)


def staged(directory: Path) -> list[str]:
    return sorted(each.name for each in directory.glob(".maid-*"))
