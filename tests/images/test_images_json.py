"""What the commands for images print with --json is what docs/json.md says, key by key."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from building import Builds, pushing
from indexing import run
from json_documents import hold
from making import Maker, everything, pulled
from places import Place
from registry import Registry


@pytest.fixture(scope="module", autouse=True)
def _cleared(place: Place) -> Iterator[None]:
    yield
    assert place.leftovers() == []


def test_pulls(place: Place, maker: Maker, tmp_path: Path) -> None:
    reference, _ = everything(maker)
    layout = f"oci:{tmp_path}/out"
    for arguments in (
        ["--platform=linux/arm64", "--to", layout],
        ["--platform=linux/arm64", "--to", f"docker-archive:{tmp_path}/a.tar"],
        ["--platform=linux/arm64", "--unpack", tmp_path / "tree"],
        ["--all", "--to", f"{layout}:all"],
    ):
        hold("pull", pulled(place, reference, *arguments))


def test_inspections(place: Place, maker: Maker) -> None:
    image, gone = maker.image("linux/arm64"), maker.image("linux/s390x")
    entries = [
        image,
        maker.image("linux/amd64"),
        maker.layout.attestation(image),
        maker.layout.attestation(gone),
        maker.layout.blob(b"{}", "application/vnd.example+json"),
    ]
    maker.layout.tag("1", maker.layout.index(entries, annotations={"a": "b"}))
    reference = f"oci:{maker.layout.directory}:1"
    hold("index inspect", run(place, "inspect", reference))
    hold("index inspect", run(place, "inspect", "--platform=linux/arm64", reference))
    maker.layout.path(entries[1]["digest"]).unlink()
    document = run(place, "inspect", reference)
    assert document["images"][1]["problem"]
    hold("index inspect", document)


def test_changes(place: Place, maker: Maker, tmp_path: Path) -> None:
    one, two = (
        maker.push(maker.image("linux/arm64"), "a"),
        maker.push(maker.image("linux/386"), "b"),
    )
    target = f"oci:{tmp_path}/out:1"

    def held(*arguments: str) -> dict[str, Any]:
        document = run(place, *arguments)
        hold("index create", document)
        assert isinstance(document, dict)
        return document

    dry = held("create", "--dry-run", "-t", target, one)
    assert json.loads(dry["document"])["manifests"]
    written = held("create", "-t", target, one)
    assert (written["written"], written["document"]) == (True, None)
    assert written["references"] == dry["references"]
    assert held("add", target, two)["written"]
    again = held("add", target, two)
    assert (again["written"], again["dry_run"], again["document"]) == (False, False, None)
    assert held("add", "--dry-run", target, two)["document"] is None
    assert held("annotate", target, "a=b", "--dry-run")["document"]
    held("remove", target, "linux/386")


def test_builds(place: Place, registry: Registry, busybox: str, tmp_path: Path) -> None:
    builds = Builds(place, registry, tmp_path / "build")
    context = place.context(f"FROM {busybox}\nRUN true\n")
    hold("build", builds.json(context, *pushing(registry, "json/built", "linux/amd64")))
    context = place.context(f"FROM {busybox}\nRUN false\n")
    failed = builds.json(context, *pushing(registry, "json/failed", "linux/amd64"), status=1)
    assert failed["platforms"][0]["error"]
    hold("build", failed)
    shutil.rmtree(context)
