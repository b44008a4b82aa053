"""`maid pull` from a real registry: containerd's choice, said and checked."""

from __future__ import annotations

import json
import platform as machine
import random
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import bases
import pytest
from faulty import Fault, Faulty
from layouts import (
    INDEX,
    Layout,
    encoded,
    files_tar,
    without,
)
from making import (
    Maker,
    pulled,
    refused,
    terminal,
)
from places import Place

# facts/platforms.md: wanted, what will do, what will not.
EXAMPLES = [
    ("linux/amd64", "linux/amd64 linux/386", "linux/amd64/v2 linux/arm64 windows/amd64"),
    ("linux/amd64/v2", "linux/amd64 linux/amd64/v1 linux/amd64/v2 linux/386", "linux/amd64/v3"),
    ("linux/386", "linux/386", "linux/amd64"),
    ("linux/arm/v7", "linux/arm linux/arm/v5 linux/arm/v6", "linux/arm/v8 linux/arm/v4"),
    ("linux/arm/v6", "linux/arm/v5 linux/arm/v6", "linux/arm linux/arm/v7"),
    ("linux/arm64", "linux/arm64/v8 linux/arm linux/arm/v5", "linux/arm64/v9 linux/arm/v4"),
    ("linux/arm64/v8.1", "linux/arm64/v8 linux/arm64/v8.1", "linux/arm64/v9"),
    ("linux/arm64/v9", "linux/arm64/v8.5 linux/arm64/v9.0", "linux/arm64/v8.6"),
    ("linux/arm64/v9.6", "linux/arm64/v8.9 linux/arm64/v9.5", "linux/arm64/v8.10"),
    ("strict linux/arm64", "linux/arm64/v8", "linux/arm/v8 linux/arm64/v9"),
    ("strict linux/amd64", "linux/amd64", "linux/386"),
]
FITTING = [(wanted, each) for wanted, will, _ in EXAMPLES for each in will.split()]
OTHERS = [(wanted, each) for wanted, _, will_not in EXAMPLES for each in will_not.split()]


def wanted_options(wanted: str) -> list[str]:
    strict, _, platform = wanted.rpartition(" ")
    return ["--platform", platform, *(["--strict"] if strict else [])]


@pytest.mark.parametrize(("wanted", "there"), FITTING)
def test_the_examples_of_what_will_do(
    place: Place, maker: Maker, tmp_path: Path, wanted: str, there: str
) -> None:
    image = maker.image(there)
    reference = maker.index(maker.image("plan9/mips"), image)
    found = pulled(place, reference, *wanted_options(wanted), "--to", f"oci:{tmp_path}/out")
    assert found["digest"] == image["digest"]
    assert Layout(tmp_path / "out").tagged("1")["digest"] == image["digest"]


@pytest.mark.parametrize(("wanted", "there"), OTHERS)
def test_the_examples_of_what_will_not(
    place: Place, maker: Maker, tmp_path: Path, wanted: str, there: str
) -> None:
    reference = maker.index(maker.image("plan9/mips"), maker.image(there))
    words = refused(
        place, reference, *wanted_options(wanted), "--to", f"oci:{tmp_path}/out", status=3
    )
    assert reference in words
    assert f"plan9/mips, {there}" in words
    assert not (tmp_path / "out").exists()


def test_this_machine_gets_its_level(place: Place, busybox: str, tmp_path: Path) -> None:
    if machine.machine() != "x86_64":
        pytest.skip("levels are amd64's")
    # The C library's own word on it.
    loader = subprocess.run(
        ["/lib64/ld-linux-x86-64.so.2", "--help"], capture_output=True, text=True, check=True
    )
    levels = re.findall(r"x86-64-(v\d) \(supported", loader.stdout)
    best = next((level for level in ("v3", "v2") if level in levels), "")
    found = pulled(place, busybox, "--to", f"oci:{tmp_path}/out")
    assert found["platform"] == f"linux/amd64/{best}".rstrip("/")
    for level in ("v1", "v2", "v3", "v4"):
        chosen = pulled(
            place, busybox, "--platform", f"linux/amd64/{level}", "--to", f"oci:{tmp_path}/out"
        )
        named = {"v1": "linux/amd64", "v4": "linux/amd64/v3"}.get(level, f"linux/amd64/{level}")
        assert chosen["platform"] == named


def test_what_was_chosen_is_said_and_why(place: Place, busybox: str, tmp_path: Path) -> None:
    arguments = [busybox, "--platform", "linux/arm64/v9", "--to", f"oci:{tmp_path}/out:x"]
    done = place.maid("pull", *arguments)
    assert done.returncode == 0, done.stderr
    first, second, third = done.stdout.splitlines()
    assert first == (
        f"linux/arm64 of {', '.join(bases.BUSYBOX)}:"
        " the best there is for linux/arm64/v9, which runs linux/arm64"
    )
    entry = Layout(tmp_path / "out").tagged("x")
    assert second == entry["digest"]
    assert third.startswith(f"oci:{tmp_path}/out:x: ")
    quiet = place.maid("pull", "--quiet", *arguments)
    assert (quiet.stdout, quiet.stderr) == (f"{second}\n", "")
    document = pulled(place, *arguments)
    assert document == {
        "reference": busybox,
        "platform": "linux/arm64",
        "digest": second,
        "why": "the best there is for linux/arm64/v9, which runs linux/arm64",
        "offered": list(bases.BUSYBOX),
        "destination": f"oci:{tmp_path}/out:x",
        "stored": second,
        "bytes": document["bytes"],
        "bytes_fetched": 0,
    }


def test_a_terminal_gets_a_bar_in_bytes(
    place: Place, maker: Maker, faulty: Faulty, tmp_path: Path
) -> None:
    layer = maker.layout.layer(files_tar({"large": random.Random(1).randbytes(1_000_000)}))
    maker.index(maker.layout.image("linux/arm64", [layer]))
    reference = f"{faulty.address}/{maker.name}:1"
    arguments = ["pull", reference, "--platform=linux/arm64", "--unpack", str(tmp_path / "tree")]
    with faulty.having(Fault(f"GET .*/blobs/{layer[0]['digest']}", pace=100_000)):
        shown = "\n".join(terminal(place, 100, *arguments))
    assert re.search(r"linux/arm64 \S+ [1-9]\d\d kB of 1\.0 MB", shown)
    assert re.search(r"linux/arm64 \S+ 1\.0 MB", shown)
    assert "unpacking" in shown


def test_a_single_image_of_another_platform_is_refused(
    place: Place, maker: Maker, tmp_path: Path
) -> None:
    reference = maker.push(without(maker.image("linux/s390x"), "platform"))
    arguments = [reference, "--platform", "linux/arm64", "--to", f"oci:{tmp_path}/out"]
    words = refused(place, *arguments, status=3)
    assert "single image for linux/s390x" in words
    assert "--any" in words
    assert not (tmp_path / "out").exists()
    assert pulled(place, *arguments, "--any")["platform"] == "linux/s390x"
    found = pulled(place, reference, "--platform", "linux/s390x", "--to", f"oci:{tmp_path}/two")
    assert found["why"].startswith("the only image")


@pytest.mark.parametrize(("own", "status"), [("linux/amd64", 3), ("linux/arm64/v8", 0)])
def test_an_image_that_is_not_what_its_index_says_is_refused(
    place: Place, maker: Maker, tmp_path: Path, own: str, status: int
) -> None:
    image = maker.image(own) | {"platform": {"os": "linux", "architecture": "arm64"}}
    reference = maker.index(image)
    arguments = [reference, "--platform", "linux/arm64", "--to", f"oci:{tmp_path}/out"]
    done = place.maid("pull", *arguments)
    assert done.returncode == status
    if status:
        assert "the index says that this image is for linux/arm64" in done.stderr
        assert f"the image itself that it is for {own}" in done.stderr
        assert image["digest"] in done.stderr
        assert not (tmp_path / "out").exists()
        assert pulled(place, *arguments, "--any")["digest"] == image["digest"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--to", "oci:x", "--unpack", "y"], "two things"),
        (["--all"], "--all needs a place"),
        (["--all", "--unpack", "x"], "--all takes every platform"),
        (["--all", "--platform", "linux/386", "--to", "oci:x"], "--all takes every platform"),
        (["--all", "--to", "docker-archive:x"], "no room for more than one image"),
        (["--to", "somewhere"], "no destination"),
        (["--platform", "linux/&arm"], "is not a platform"),
        (["--tls-verify", "perhaps", "--to", "oci:x"], "true or false"),
        (["--unpack", "/usr"], "is not empty"),
        (["--to", "dir:/usr"], "is not empty"),
    ],
)
def test_what_makes_no_sense_is_said(
    place: Place, busybox: str, arguments: list[str], words: str
) -> None:
    assert words in refused(place, busybox, *arguments, status=2)
    assert not (place.directory / "x").exists()


def test_ten_thousand_entries(place: Place, maker: Maker, tmp_path: Path) -> None:
    image, wanted = maker.image("linux/amd64"), maker.image("linux/arm64")
    many = [image | {"platform": {"os": "linux", "architecture": f"a{n}"}} for n in range(9_999)]
    maker.index(image, wanted, tag="small")
    document = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [*many, wanted]}
    data = encoded(document)
    for file in (maker.layout.directory / "blobs/sha256").iterdir():
        if file.stat().st_size < 4 << 20:
            maker.registry.link_blob(maker.name, file, f"sha256:{file.name}")
    top = maker.registry.put_manifest(maker.name, "many", data, INDEX)
    reference = f"{maker.registry.address}/{maker.name}:many"
    found = pulled(place, reference, "--platform=linux/arm64", "--to", f"oci:{tmp_path}/out")
    assert found["digest"] == wanted["digest"]
    assert len(found["offered"]) == 10_000
    words = refused(place, reference, "--platform=linux/386", "--to", f"oci:{tmp_path}/o", status=3)
    assert "… (10000)" in words or "\\u2026 (10000)" in words
    assert len(words) < 1000
    done = place.maid("index", "inspect", "--json", reference)
    assert json.loads(done.stdout)["digest"] == top
    assert len(json.loads(done.stdout)["images"]) == 10_000


@pytest.fixture(scope="module", autouse=True)
def _cleared(place: Place) -> Iterator[None]:
    """Nothing stays where temporary files go."""
    yield
    assert place.leftovers() == []
