"""Builds for tests: `maid build` in a place, with a build directory of its own, and what came of it
read back from the registry."""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from places import Place
from registry import Registry

FOUR = ("linux/amd64", "linux/arm64", "linux/arm/v7", "linux/riscv64")
"""The platforms of issue 4."""


@dataclass
class Builds:
    """`maid build` with the build directory `root`, which is as good as empty at first."""

    place: Place
    registry: Registry
    root: Path

    def run(
        self, context: Path, *options: str | Path, check: bool = True, **more: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run it. Raises AssertionError when it fails and is not to."""
        done = self.place.maid("build", "--root", self.root, *options, context, **more)
        assert not check or done.returncode == 0, (done.stdout + done.stderr)[-4000:]
        return done

    def json(
        self, context: Path, *options: str | Path, status: int = 0, **more: Any
    ) -> dict[str, Any]:
        """Run it with --json; its document, once it has ended with this exit status."""
        done = self.run(context, *options, "--json", check=False, **more)
        assert done.returncode == status, (done.stdout + done.stderr)[-4000:]
        document = json.loads(done.stdout)
        assert isinstance(document, dict)
        return document

    def push(self, context: Path, name: str, *platforms: str, **more: Any) -> dict[str, Any]:
        """Build for the platforms and push as NAME:1; the document of --json."""
        return self.json(context, *pushing(self.registry, name, *platforms), **more)

    def config(self, name: str, reference: str = "1") -> dict[str, Any]:
        """The configuration of an image in the registry."""
        manifest = self.registry.document(name, reference)
        return self.decoded(name, manifest["config"]["digest"])

    def decoded(self, name: str, digest: str) -> dict[str, Any]:
        """A blob that is JSON."""
        document = json.loads(self.registry.blob(name, digest) or b"")
        assert isinstance(document, dict)
        return document

    def images(self, name: str, tag: str = "1") -> dict[str, str]:
        """The digests of an index's images, by platform as it is written."""
        return {
            "/".join(entry["platform"].get(key, "") for key in ("os", "architecture", "variant"))
            .rstrip("/"): entry["digest"]
            for entry in self.registry.document(name, tag)["manifests"]
        }  # fmt: skip

    def files(self, name: str, reference: str = "1") -> dict[str, tarfile.TarInfo]:
        """What an image's layers hold, the upper ones over the lower ones, by path."""
        found: dict[str, tarfile.TarInfo] = {}
        for layer in self.registry.document(name, reference)["layers"]:
            data = self.registry.blob(name, layer["digest"]) or b""
            with tarfile.open(fileobj=io.BytesIO(data)) as archive:
                found |= {member.name: member for member in archive}
        return found

    def read(self, name: str, path: str, reference: str = "1") -> str:
        """The text of a file in an image."""
        for layer in reversed(self.registry.document(name, reference)["layers"]):
            data = self.registry.blob(name, layer["digest"]) or b""
            with tarfile.open(fileobj=io.BytesIO(data)) as archive:
                if path in archive.getnames():
                    file = archive.extractfile(path)
                    assert file is not None
                    return file.read().decode()
        raise AssertionError(f"{name}:{reference} has no {path}")

    def containers(self) -> list[Any]:
        """The working containers that the storages hold.

        Not among them is one of which a killed buildah had made the empty layer and not yet
        written what it is: nothing that Debian has removes it, and it is in nobody's way.
        """
        found = []
        for record in self.root.glob("storage/*/graph/*-containers/*containers.json"):
            for each in json.loads(record.read_text() or "[]") or []:
                state = record.parent / each["id"] / "userdata/buildah.json"
                found += [each] if state.exists() else []
        return found


def pushing(registry: Registry, name: str, *platforms: str) -> list[str]:
    """The options that build for the platforms and push as NAME:1."""
    return [f"--platform={','.join(platforms)}", f"--tag={registry.address}/{name}:1", "--push"]
