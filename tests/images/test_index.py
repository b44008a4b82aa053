"""`maid index inspect`: what an index has, to people, programs, and to the byte."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from faulty import Faulty, missing
from indexing import lines, refused, run
from layouts import (
    INDEX,
    MANIFEST,
    digest_of,
)
from making import (
    Maker,
    everything,
    pulled,
    terminal,
    through,
)
from places import Place


@pytest.fixture(scope="module", autouse=True)
def _cleared(place: Place) -> Iterator[None]:
    yield
    assert place.leftovers() == []


def test_an_index_is_shown_with_what_it_has(place: Place, maker: Maker) -> None:
    reference, entries = everything(maker)
    first, second, empty, header, *rows = lines(place, "inspect", reference)
    digest = maker.registry.digest(maker.name, "1")
    assert first == f"{reference}: an index with 4 images, {INDEX}"
    assert second.startswith(f"{digest}, ")
    assert empty == ""
    assert header.split() == ["PLATFORM", "DIGEST", "SIZE", "LAYERS", "ATTESTATIONS", "NOTES"]
    images = {each["digest"]: each for each in entries[:4]}
    assert [row.split()[:2] for row in rows] == [
        ["linux/amd64", entries[0]["digest"]],
        ["linux/arm64", entries[1]["digest"]],
        ["linux/s390x", entries[2]["digest"]],
        ["linux/riscv64", entries[3]["digest"]],
    ]
    assert len(images) == 4
    assert rows[0].split()[5] == "1"
    assert f"in the index {entries[4]['digest'][:19]}" in rows[2]
    assert "the index names no platform" in rows[3]
    everything_ = lines(place, "inspect", "--all", reference)
    assert [line for line in everything_ if "attestation-manifest of sha256:" in line]
    assert len(everything_) == 4 + 4 + 3


def test_programs_get_the_same_in_json(place: Place, maker: Maker) -> None:
    reference, entries = everything(maker)
    document = run(place, "inspect", reference)
    assert {name: document[name] for name in ("reference", "kind", "media_type", "why")} == {
        "reference": reference,
        "kind": "index",
        "media_type": INDEX,
        "why": None,
    }
    assert document["digest"] == maker.registry.digest(maker.name, "1")
    images = document["images"]
    assert [each["digest"] for each in images] == [each["digest"] for each in entries[:4]]
    assert [each["within"] for each in images] == [[], [], [entries[4]["digest"]], []]
    assert [each["attestations"][0]["digest"] for each in images[:2]] == [
        each["digest"] for each in entries[5:]
    ]
    manifest = maker.layout.document(entries[0])
    size = sum(each["size"] for each in (manifest["config"], *manifest["layers"]))
    assert (images[0]["bytes"], images[0]["layers"]) == (size, 1)
    assert images[0]["size"] == entries[0]["size"]
    assert {each["chosen"] for each in images} == {None}


def test_the_one_that_pull_would_choose_is_marked(
    place: Place, maker: Maker, tmp_path: Path
) -> None:
    reference, _ = everything(maker)
    for wanted in ("linux/arm64/v9.2", "linux/amd64/v4", "linux/s390x", "linux/riscv64"):
        document = run(place, "inspect", reference, "--platform", wanted)
        (chosen,) = [each for each in document["images"] if each["chosen"]]
        found = pulled(place, reference, "--platform", wanted, "--to", f"oci:{tmp_path}/out")
        assert chosen["digest"] == found["digest"]
        assert document["why"] == found["why"]
        shown = lines(place, "inspect", reference, "--platform", wanted)
        (marked,) = [line for line in shown if line.startswith("*")]
        assert chosen["digest"] in marked
        assert shown[-1] == f"chosen: {found['platform']}, {found['why']}"
    said = refused(place, "inspect", reference, "--platform", "linux/ppc64le", status=3)
    assert "it has linux/amd64, linux/arm64, linux/s390x, linux/riscv64" in said
    said = refused(
        place, "inspect", reference, "--platform", "linux/arm64/v9", "--strict", status=3
    )
    assert reference in said


def test_raw_is_what_is_stored_to_the_byte(place: Place, maker: Maker) -> None:
    spaced = json.dumps(
        {"schemaVersion": 2, "mediaType": INDEX, "manifests": [], "x": {"ü": 1.0}}, indent=3
    ).encode()
    maker.registry.put_manifest(maker.name, "odd", spaced, INDEX)
    reference = f"{maker.registry.address}/{maker.name}:odd"
    assert place.maid("index", "inspect", "--raw", reference).stdout.encode() == spaced
    image = maker.image("linux/arm64")
    reference = maker.index(maker.image("linux/amd64"), image)
    raw = place.maid("index", "inspect", "--raw", "--platform=linux/arm64", reference).stdout
    assert digest_of(raw.encode()) == image["digest"]


def test_nothing_that_a_terminal_obeys_is_shown(place: Place, maker: Maker, tmp_path: Path) -> None:
    hostile = "\x1b]0;title\x07\x9b2J\x00\r"
    image = maker.image("linux/amd64")
    platform = {"os": "linux", "architecture": f"amd64{hostile}\nmaid: fine"}
    strange = maker.layout.blob(b"{}", f"x/y{hostile}")
    index = maker.layout.index(
        [image, image | {"platform": platform}, strange], annotations={f"a{hostile}": hostile}
    )
    maker.layout.tag("hostile", index)
    reference = f"oci:{maker.layout.directory}:hostile"
    for arguments in (
        ["index", "inspect", "--all", reference],
        ["index", "inspect", reference, "--platform=linux/386"],
        ["pull", reference, "--platform=linux/386", "--to", f"oci:{tmp_path}/out"],
        ["pull", reference, "--platform=linux/amd64", "--to", f"oci:{tmp_path}/out"],
        ["pull", reference, "--all", "--to", f"oci:{tmp_path}/out"],
        ["index", "remove", reference, "linux/386"],
    ):
        done = place.maid(*arguments)
        shown = done.stdout + done.stderr
        assert not set(shown) & {"\x1b", "\x07", "\x9b", "\x00", "\r"}, arguments
        assert "\nmaid: fine" not in done.stderr
    assert "\\x1b]0;title\\x07" in place.maid("index", "inspect", reference).stdout


def test_a_single_image_is_a_line(place: Place, maker: Maker) -> None:
    image = maker.image("linux/s390x")
    reference = maker.push(image)
    first, _, _, _, row = lines(place, "inspect", reference)
    assert first == f"{reference}: a single image, {MANIFEST}"
    assert row.split()[:2] == ["linux/s390x", image["digest"]]
    document = run(place, "inspect", reference)
    assert (document["kind"], document["images"][0]["platform"]) == ("image", "linux/s390x")


def test_an_index_that_lacks_an_image_is_shown(place: Place, maker: Maker, faulty: Faulty) -> None:
    image = maker.image("linux/arm64")
    reference = through(faulty, maker.index(maker.image("linux/amd64"), image))
    with faulty.having(missing(f"GET .*/manifests/{image['digest']}")):
        document = run(place, "inspect", reference)
        shown = lines(place, "inspect", reference)
    assert [each["problem"] is None for each in document["images"]] == [True, False]
    assert "cannot be read" in next(line for line in shown if image["digest"] in line)
    assert [line for line in shown if line.startswith("! ") and image["digest"] in line]
    with faulty.having():
        document = run(place, "inspect", "--no-size", reference)
        assert not faulty.matching(f"GET .*/manifests/{image['digest']}")
    assert document["images"][1]["bytes"] is None


@pytest.mark.parametrize(("columns", "length"), [(80, 12), (120, 64)])
def test_digests_are_as_long_as_a_terminal_has_room(
    place: Place, maker: Maker, columns: int, length: int
) -> None:
    reference = maker.index(maker.image("linux/amd64"), maker.image("linux/arm64"))
    rows = [
        line
        for line in terminal(place, columns, "index", "inspect", reference)
        if "linux/a" in line
    ]
    assert len(rows) == 2
    assert all(len(row) <= columns for row in rows)
    assert all(len(row.split()[1]) == len("sha256:") + length for row in rows)
