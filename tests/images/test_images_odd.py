"""Images against what others did to a disk, a directory or a layer, and maid ended half-way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from faulty import Fault, Faulty
from indexing import run
from layouts import LAYER, MANIFEST, Descriptor, Layout, digest_of, files_tar
from making import Maker, clear, is_whole, pulled, refused, through, wait_for
from places import Place

PLATFORM = "--platform=linux/arm64"


@pytest.fixture(scope="module", autouse=True)
def _cleared(place: Place) -> Iterator[None]:
    yield
    assert place.leftovers() == []


def spoil(path: Path) -> None:
    """Change a byte in the middle; the size stays."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


def layer_of(layout: Layout, image: Descriptor) -> str:
    digest = layout.document(image)["layers"][0]["digest"]
    assert isinstance(digest, str)
    return digest


@pytest.mark.parametrize("docker", [False, True])
def test_a_damaged_blob_in_a_layout_is_fetched_again(
    place: Place, maker: Maker, tmp_path: Path, docker: bool
) -> None:
    image = maker.image("linux/arm64", "damaged", docker=docker)
    reference = maker.index(image)
    arguments = [reference, PLATFORM, "--to", f"oci:{tmp_path}/out"]
    stored = pulled(place, *arguments)["stored"]
    out = Layout(tmp_path / "out")
    digest = layer_of(maker.layout, image)
    spoil(out.path(digest))
    assert pulled(place, *arguments)["stored"] == stored
    assert digest_of(out.path(digest).read_bytes()) == digest
    assert is_whole(out, {"digest": stored, "mediaType": MANIFEST})


def test_a_damaged_blob_in_the_cache_is_fetched_again(
    place: Place, maker: Maker, tmp_path: Path
) -> None:
    image = maker.image("linux/arm64", "damaged in the cache")
    reference = maker.index(image)
    pulled(place, reference, PLATFORM, "--unpack", tmp_path / "one")
    spoil(Layout(place.directory / "images").path(layer_of(maker.layout, image)))
    pulled(place, reference, PLATFORM, "--unpack", tmp_path / "two")
    assert (tmp_path / "two/content").read_text() == "damaged in the cache"


def test_a_layer_that_was_made_wrongly_is_told_with_the_way_out(
    place: Place, maker: Maker, tmp_path: Path
) -> None:
    packed, diff = maker.layout.gzip_layer(files_tar({"a": os.urandom(100_000)}))
    cut = maker.layout.path(packed["digest"]).read_bytes()[:50_000]
    layer = maker.layout.blob(cut, packed["mediaType"])
    reference = maker.index(maker.layout.image("linux/arm64", [(layer, diff)]))
    said = refused(place, reference, PLATFORM, "--unpack", tmp_path / "tree")
    assert "they can push it again" in said


def zstd(maker: Maker, data: bytes, *options: str) -> tuple[Descriptor, str]:
    packed = subprocess.run(
        ["zstd", "-cq", *options], input=data, stdout=subprocess.PIPE, check=True
    ).stdout
    return maker.layout.blob(packed, f"{LAYER}+zstd"), digest_of(data)


def test_a_layer_that_wants_gigabytes_of_memory_is_refused(
    place: Place, maker: Maker, tmp_path: Path
) -> None:
    # Only what is as large as the window has it in its header.
    header = bytes([0x28, 0xB5, 0x2F, 0xFD, 0x00, (31 - 10) << 3]) + bytes([0x01, 0x00, 0x00])
    layer = maker.layout.blob(header, f"{LAYER}+zstd")
    image = maker.layout.image("linux/arm64", [(layer, digest_of(b""))])
    reference = maker.index(image)
    said = refused(place, reference, PLATFORM, "--unpack", tmp_path / "tree")
    assert layer["digest"] in said
    assert "too much memory" in said


def test_a_layer_that_fills_the_disk_is_given_up_before(
    place: Place, maker: Maker, tmp_path: Path
) -> None:
    layer = zstd(maker, files_tar({"zeros": bytes(40 << 20)}), "-19")
    reference = maker.index(maker.layout.image("linux/arm64", [layer]))
    disk = tmp_path / "disk"
    disk.mkdir()
    command = 'mount -t tmpfs -o size=60m none "$0" || exit 99; "$@"; s=$?; ls "$0"; exit $s'
    from daemons import MAID

    arguments = ["pull", reference, PLATFORM, "--unpack", disk / "tree"]
    done = place.run(
        *("unshare", "--mount", "sh", "-c", command, disk, MAID, *arguments), check=False
    )
    assert done.returncode == 1, done.stderr
    assert "more than half of the" in done.stderr
    assert "free some space" in done.stderr
    assert "tree" not in done.stdout


@pytest.mark.parametrize("name", ["a:b", "c++", "layout", "-x", "with blank", "a:b/c:d"])
def test_any_name_can_be_unpacked_to(place: Place, maker: Maker, tmp_path: Path, name: str) -> None:
    reference = maker.index(maker.image("linux/arm64", name))
    pulled(place, reference, PLATFORM, "--unpack", tmp_path / name)
    assert (tmp_path / name / "content").read_text() == name
    assert not list((tmp_path / name).parent.glob("*.partial-*"))


def test_a_layout_with_a_colon_in_its_path_is_told(
    place: Place, maker: Maker, tmp_path: Path
) -> None:
    reference = maker.index(maker.image("linux/arm64"))
    arguments = [reference, PLATFORM, "--unpack", tmp_path / "tree"]
    said = refused(place, *arguments, env={"MAID_IMAGES": f"{tmp_path}/a:b"})
    assert "has a colon" in said


def test_what_cannot_be_made_is_told_before_anything_is_fetched(
    place: Place, maker: Maker, faulty: Faulty, tmp_path: Path
) -> None:
    image = maker.image("linux/arm64", "unfetched")
    reference = through(faulty, maker.index(image))
    from daemons import MAID

    here, point = tmp_path / "here", tmp_path / "a point"
    here.mkdir()
    point.mkdir()
    with faulty.having():
        for name in (".", here, "../here"):
            said = refused(place, reference, PLATFORM, "--unpack", name, status=2, cwd=here)
            assert "is the current directory" in said
        said = refused(place, reference, PLATFORM, "--to", "dir:.", status=2, cwd=here)
        assert "is the current directory" in said
        script = 'mount --bind "$0" "$0" || exit 99; exec "$@"'
        arguments = ["pull", reference, PLATFORM, "--unpack", point]
        done = place.run(
            *("unshare", "--mount", "sh", "-c", script, point, MAID, *arguments), check=False
        )
        assert (done.returncode, "is a mount point" in done.stderr) == (2, True), done.stderr
        said = refused(place, reference, PLATFORM, "--unpack", "/proc/tree")
        assert "/proc cannot be written" in said
        assert not faulty.matching(f"GET .*/blobs/{layer_of(maker.layout, image)}")
    (tmp_path / "link").symlink_to(here)
    pulled(place, reference, PLATFORM, "--unpack", tmp_path / "link")
    assert (here / "content").read_text() == "unfetched"


# Ending ------------------------------------------------------------------------------------------


def test_an_interrupt_ends_a_create_at_once(place: Place, maker: Maker, faulty: Faulty) -> None:
    entries = [maker.image("linux/arm64", str(n)) | {"platform": _variant(n)} for n in range(12)]
    maker.layout.tag("1", maker.layout.index(entries))
    target = f"{faulty.address}/{maker.name}:1"
    with faulty.having(Fault("POST .*/blobs/uploads", delay=3)):
        source = f"oci:{maker.layout.directory}:1"
        process = place.start("index", "create", "-t", target, source, stderr=subprocess.PIPE)
        wait_for(lambda: faulty.matching("POST .*/blobs/uploads"))
        start = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        took = time.monotonic() - start
    assert process.returncode != 0
    assert b"Traceback" not in errors
    assert took < 3
    assert place.leftovers() == []


def _variant(number: int) -> dict[str, Any]:
    return {"os": "linux", "architecture": "arm64", "variant": f"v8.{number}"}


def test_what_a_killed_one_left_is_cleared_by_the_next(
    place: Place, maker: Maker, faulty: Faulty, tmp_path: Path
) -> None:
    reference = maker.push(maker.image("linux/arm64", "left"))
    source = f"docker-archive:{tmp_path}/a.tar"
    place.run("skopeo", "copy", "-q", f"docker://{reference}", source)
    target = f"{faulty.address}/{maker.name}:left"
    with faulty.having(Fault("POST .*/blobs/uploads", delay=20)):
        process = place.start("index", "create", "-t", target, source, stderr=subprocess.PIPE)
        wait_for(lambda: faulty.matching("POST .*/blobs/uploads"))
        process.kill()
        process.communicate(timeout=20)
    assert [each for each in place.leftovers() if each.startswith("maid-image-")]
    run(place, "create", "-t", target, source)
    assert [each for each in place.leftovers() if each.startswith("maid-image-")] == []
    clear(place)


# Entries of a layout's index.json -----------------------------------------------------------------


def test_a_change_keeps_what_others_noted_of_a_name(
    place: Place, maker: Maker, tmp_path: Path
) -> None:
    layout = maker.layout
    for tag in ("1", "2"):
        layout.tag(tag, layout.index([maker.image("linux/amd64"), maker.image("linux/arm64")]))
    path = layout.directory / "index.json"
    document = json.loads(path.read_bytes())
    noted = {"io.containerd.image.name": "example.test/app:1", "x": "y"}
    document["manifests"][0]["annotations"] |= noted
    document["manifests"][0]["x-unknown"] = [1, {}]
    unnamed = layout.index([maker.image("linux/s390x")])
    document["manifests"].append(unnamed)
    path.write_text(json.dumps(document))
    reference = f"oci:{layout.directory}:1"
    added = f"oci:{layout.directory}:2"
    run(place, "annotate", reference, "a=b")
    run(place, "remove", reference, "linux/arm64")
    run(place, "add", reference, added, "--replace")
    first, second, third = json.loads(path.read_bytes())["manifests"]
    assert noted.items() <= first["annotations"].items()
    assert first["x-unknown"] == [1, {}]
    assert first["digest"] != document["manifests"][0]["digest"]
    assert (second, third) == (document["manifests"][1], unnamed)
