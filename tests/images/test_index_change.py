"""`maid index add`, `remove` and `annotate`, anywhere: what is not touched stays as it is."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from faulty import Fault, Faulty, broken
from indexing import lines, refused, run
from layouts import (
    Descriptor,
    Layout,
    digest_of,
    encoded,
    files_tar,
    without,
)
from making import (
    Maker,
    through,
)
from places import Place


@pytest.fixture(scope="module", autouse=True)
def _cleared(place: Place) -> Iterator[None]:
    yield
    assert place.leftovers() == []


@pytest.fixture(params=["registry", "layout"])
def home(request: pytest.FixtureRequest, maker: Maker, tmp_path: Path) -> Home:
    return Home(maker, request.param == "layout", tmp_path / "home")


class Home:
    """An index in a registry or in a layout, with fields that nobody knows."""

    def __init__(self, maker: Maker, in_layout: bool, directory: Path) -> None:
        self.maker = maker
        self.amd64, self.arm64 = maker.image("linux/amd64"), maker.image("linux/arm64")
        self.amd64["x-entry"] = {"kept": [1, None]}
        self.attestation = maker.layout.attestation(self.arm64)
        index = maker.layout.index(
            [self.amd64, self.arm64, self.attestation], **{"x-index": {"kept": 1}}
        )
        self.reference = maker.push(index)
        self.layout = maker.layout if in_layout else None
        if in_layout:
            self.reference = f"oci:{maker.layout.directory}:1"

    def document(self) -> dict[str, Any]:
        if self.layout is None:
            return self.maker.registry.document(self.maker.name, "1")
        return self.layout.document(self.layout.tagged("1"))

    def digests(self) -> list[str]:
        return [each["digest"] for each in self.document()["manifests"]]


def test_an_image_is_added_and_removed_again(place: Place, home: Home) -> None:
    before = home.document()
    new = home.maker.image("linux/riscv64")
    source = home.maker.push(new, "new")
    run(place, "add", home.reference, source)
    after = home.document()
    assert after["manifests"] == [*before["manifests"], new]
    assert after["x-index"] == {"kept": 1}
    assert after["manifests"][0]["x-entry"] == {"kept": [1, None]}
    assert run(place, "add", home.reference, source)["written"] is False
    run(place, "remove", home.reference, "linux/riscv64")
    assert home.document() == before


def test_removing_takes_the_attestations_along(place: Place, home: Home) -> None:
    run(place, "remove", home.reference, "linux/arm64/v8")
    assert home.digests() == [home.amd64["digest"]]
    said = refused(place, "remove", home.reference, "linux/arm64", status=3)
    assert "it has linux/amd64" in said
    said = refused(place, "remove", home.reference, "linux/386", status=3)
    assert home.reference in said
    run(place, "remove", home.reference, home.amd64["digest"][:19])
    assert home.digests() == []


def test_what_an_index_says_is_changed(place: Place, home: Home) -> None:
    run(place, "annotate", home.reference, "a=b", "c=d=e")
    run(place, "annotate", home.reference, "linux/arm64", "x=y", "--variant=v9", "--os-version=1")
    document = home.document()
    assert document["annotations"] == {"a": "b", "c": "d=e"}
    entry = document["manifests"][1]
    assert entry["annotations"] == {"x": "y"}
    assert entry["platform"] == {
        "os": "linux",
        "architecture": "arm64",
        "variant": "v9",
        "os.version": "1",
    }
    assert document["x-index"] == {"kept": 1}
    run(place, "annotate", home.reference, "a-", "c-")
    arguments = [entry["digest"], "x-", "--variant=", "--os-version="]
    run(place, "annotate", home.reference, *arguments)
    document = home.document()
    assert document["manifests"] == [home.amd64, home.arm64, home.attestation]
    assert "annotations" not in document
    said = refused(place, "annotate", home.reference, "a-", status=2)
    assert "no annotation a" in said
    assert "nothing is to be changed" in refused(place, "annotate", home.reference, status=2)


def test_a_dry_change_changes_nothing(place: Place, home: Home) -> None:
    before = home.document()
    for arguments in (
        ["remove", home.reference, "linux/arm64"],
        ["annotate", home.reference, "a=b"],
    ):
        done = place.maid("index", *arguments, "--dry-run")
        assert done.returncode == 0, done.stderr
        assert digest_of(done.stdout.rstrip("\n").encode()) in done.stderr
        assert json.loads(done.stdout) != before
    assert home.document() == before


def test_what_was_pushed_meanwhile_is_not_overwritten(
    place: Place, maker: Maker, faulty: Faulty
) -> None:
    reference = through(faulty, maker.index(maker.image("linux/amd64"), tag="1"))
    source = maker.push(maker.image("linux/arm64"), "new")
    # The new image's manifest is slow to come; somebody pushes meanwhile.
    with faulty.having(Fault("GET .*/manifests/new", times=1, delay=1.5)):
        source = through(faulty, source)
        process = place.start("index", "add", reference, source, stderr=subprocess.PIPE)
        time.sleep(1.0)
        other = maker.index(maker.image("linux/s390x"), tag="1")
        said = (process.communicate(timeout=30)[1] or b"").decode()
    assert process.returncode == 1
    assert "was read" in said and reference in said
    (entry,) = maker.registry.document(maker.name, "1")["manifests"]
    assert entry["platform"]["architecture"] == "s390x"
    assert other


def test_a_change_that_fails_changes_nothing(place: Place, maker: Maker, faulty: Faulty) -> None:
    reference = through(faulty, maker.index(maker.image("linux/amd64"), tag="1"))
    before = maker.registry.digest(maker.name, "1")
    other = Maker(maker.registry, maker.layout.directory.parent / "other")
    source = other.push(other.image("linux/arm64"))
    for request in ("POST .*/blobs/uploads", "PUT .*/manifests/sha256", "PUT .*/manifests/1"):
        with faulty.having(broken(request, None)):
            said = refused(place, "add", reference, source)
        assert reference.rpartition(":")[0] in said
        assert maker.registry.digest(maker.name, "1") == before
    run(place, "add", reference, source)
    assert maker.registry.digest(maker.name, "1") != before


def test_an_image_is_no_index(place: Place, maker: Maker, tmp_path: Path) -> None:
    reference = maker.push(without(maker.image("linux/amd64"), "platform"))
    for command in (["remove", reference, "linux/amd64"], ["add", reference, reference]):
        said = refused(place, *command)
        assert "is a single image, and no index" in said
        assert "maid index create" in said
    layout = Layout(tmp_path / "several")
    for tag in ("a", "b"):
        layout.tag(tag, layout.index([layout.image("linux/386", [_layer(layout)])]))
    said = refused(place, "annotate", f"oci:{layout.directory}", "x=y", status=2)
    assert "has 2 images" in said


def _layer(layout: Layout) -> tuple[Descriptor, str]:
    return layout.gzip_layer(files_tar({"a": b""}))


def test_entries_of_unknown_types_are_kept(place: Place, maker: Maker, tmp_path: Path) -> None:
    strange = maker.layout.blob(encoded({"strange": 1}), "application/vnd.example+json")
    index = maker.layout.index([maker.image("linux/amd64"), strange])
    maker.layout.tag("odd", index)
    reference = f"oci:{maker.layout.directory}:odd"
    run(place, "add", reference, maker.push(maker.image("linux/arm64"), "new"))
    document = maker.layout.document(maker.layout.tagged("odd"))
    assert document["manifests"][1] == strange
    assert "1 entry is no image" in "\n".join(lines(place, "inspect", reference))
    assert run(place, "inspect", reference)["others"][0]["digest"] == strange["digest"]
