"""Where `maid pull` takes images: layouts, archives, podman's storage, and nothing twice."""

from __future__ import annotations

import base64
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import bases
import pytest
import registry as registries
from faulty import Faulty
from layouts import (
    CONFIG,
    INDEX,
    MANIFEST,
    Layout,
    files_tar,
)
from making import (
    Maker,
    everything,
    pulled,
    refused,
)
from places import Place


def test_all_of_an_index_stays_what_it_is(place: Place, maker: Maker, tmp_path: Path) -> None:
    reference, entries = everything(maker)
    found = pulled(place, reference, "--all", "--to", f"oci:{tmp_path}/out:all")
    digest = maker.registry.digest(maker.name, "1")
    assert (found["digest"], found["stored"], found["platform"]) == (digest, digest, None)
    out = Layout(tmp_path / "out")
    assert out.tagged("all")["digest"] == digest
    assert out.path(digest).read_bytes() == maker.registry.manifest(maker.name, "1")
    for entry in entries:
        document = out.document(entry)
        for blob in [document.get("config"), *document.get("layers", [])]:
            assert blob is None or out.path(blob["digest"]).stat().st_size == blob["size"]
    # What came from a registry goes back into one as it was.
    copied = pulled(
        place,
        f"oci:{tmp_path}/out:all",
        "--all",
        "--to",
        f"docker://{maker.registry.address}/{maker.name}-copy:2",
    )
    assert copied["digest"] == digest == maker.registry.digest(f"{maker.name}-copy", "2")


def test_an_archive_of_all_is_read_by_skopeo(place: Place, maker: Maker, tmp_path: Path) -> None:
    reference, _ = everything(maker)
    pulled(place, reference, "--all", "--to", f"oci-archive:{tmp_path}/all.tar:x")
    raw = place.run("skopeo", "inspect", "--raw", f"oci-archive:{tmp_path}/all.tar").stdout
    assert raw.encode() == maker.registry.manifest(maker.name, "1")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["all.tar", "made"]
    flat = maker.index(maker.image("linux/amd64"), maker.image("linux/s390x"), tag="flat")
    pulled(place, flat, "--all", "--to", f"oci-archive:{tmp_path}/flat.tar")
    arguments = ["--platform=linux/s390x", "--to", f"oci:{tmp_path}/one"]
    assert (
        pulled(place, f"oci-archive:{tmp_path}/flat.tar", *arguments)["platform"] == "linux/s390x"
    )


@pytest.mark.parametrize(
    ("destination", "inspected"),
    [
        ("oci-archive:{}/a.tar:x", ["oci-archive:{}/a.tar"]),
        ("docker-archive:{}/b.tar:some/app:x", ["docker-archive:{}/b.tar"]),
        ("dir:{}/c", ["dir:{}/c"]),
        ("containers-storage:some/app:x", ["containers-storage:some/app:x"]),
    ],
)
def test_other_destinations_get_the_chosen_image(
    place: Place, busybox: str, tmp_path: Path, destination: str, inspected: list[str]
) -> None:
    destination = destination.format(tmp_path)
    arguments = ["--platform", "linux/arm/v6", "--to", destination]
    found = pulled(place, busybox, *arguments)
    assert found["destination"].startswith(destination)
    assert (found["bytes_fetched"] is None) == (not destination.startswith("oci"))
    config = place.run(
        "skopeo",
        "--override-arch=arm",
        "--override-variant=v6",
        "inspect",
        "--config",
        *(each.format(tmp_path) for each in inspected),
    ).stdout
    assert "PLATFORM=linux/arm/v6" in config
    assert not list(tmp_path.glob("*partial*"))


def test_without_a_destination_podman_has_it(place: Place, busybox: str) -> None:
    found = pulled(place, busybox, "--platform", "linux/riscv64")
    assert found["destination"] == f"containers-storage:{busybox}"
    shown = place.run("podman", "image", "inspect", busybox).stdout
    (image,) = json.loads(shown)
    assert (image["Os"], image["Architecture"]) == ("linux", "riscv64")
    name = busybox.rpartition(":")[0]
    by_digest = f"{name}@{json_digest(place, busybox)}"
    found = pulled(place, by_digest, "--platform", "linux/s390x")
    assert found["destination"] == f"containers-storage:{name}@{found['digest']}"


def json_digest(place: Place, reference: str) -> str:
    done = place.maid("index", "inspect", "--json", reference)
    digest = json.loads(done.stdout)["digest"]
    assert isinstance(digest, str)
    return digest


def test_without_podman_a_destination_is_asked_for(
    place: Place, busybox: str, tmp_path: Path
) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("skopeo", "setpriv"):
        (programs / name).symlink_to(f"/usr/bin/{name}")
    environment = {"PATH": str(programs)}
    words = refused(place, busybox, status=2, env=environment)
    assert "neither podman nor buildah" in words
    assert "--to oci:DIR:TAG, or --unpack DIR" in words
    words = refused(place, "--platform=linux/386", f"oci:{tmp_path}/none:1", status=1)
    assert "is no OCI layout" in words


def test_a_second_pull_fetches_what_is_missing_and_nothing_else(
    place: Place, maker: Maker, faulty: Faulty, tmp_path: Path
) -> None:
    shared = maker.layout.gzip_layer(files_tar({"shared": b"1" * 100_000}))
    old = maker.layout.image("linux/arm64", [shared])
    new = maker.layout.image(
        "linux/arm64", [shared, maker.layout.gzip_layer(files_tar({"n": b""}))]
    )
    maker.index(old, tag="old")
    maker.index(new, tag="new")
    arguments = ["--platform", "linux/arm64", "--to", f"oci:{tmp_path}/out"]
    name = f"{faulty.address}/{maker.name}"
    first = pulled(place, f"{name}:old", *arguments)
    assert first["bytes"] == first["bytes_fetched"]
    with faulty.having():
        second = pulled(place, f"{name}:new", *arguments)
        fetched = [each.rpartition("/")[2] for each in faulty.matching("GET .*/blobs/")]
    document = maker.layout.document(new)
    missing = [document["config"], document["layers"][1]]
    assert second["bytes_fetched"] == sum(each["size"] for each in missing)
    assert set(fetched) == {each["digest"] for each in missing}
    out = Layout(tmp_path / "out")
    assert out.tagged("old")["digest"] == old["digest"]
    with faulty.having():
        assert pulled(place, f"{name}:new", *arguments)["bytes_fetched"] == 0
        layers = [each for each in faulty.matching("GET .*/blobs/") if shared[0]["digest"] in each]
        assert layers == []


def test_a_docker_list_becomes_oci_in_a_layout(place: Place, maker: Maker, tmp_path: Path) -> None:
    image = maker.image("linux/arm64", docker=True)
    reference = maker.index(maker.image("linux/amd64", docker=True), image, docker=True)
    found = pulled(place, reference, "--platform=linux/arm64", "--to", f"oci:{tmp_path}/out")
    assert found["digest"] == image["digest"]
    assert found["stored"] == Layout(tmp_path / "out").tagged("1")["digest"]
    document = Layout(tmp_path / "out").document({"digest": found["stored"]})
    assert (document["mediaType"], document["config"]["mediaType"]) == (MANIFEST, CONFIG)
    pulled(place, reference, "--all", "--to", f"oci:{tmp_path}/all")
    entry = Layout(tmp_path / "all").tagged("1")
    assert entry["mediaType"] == INDEX
    inner = Layout(tmp_path / "all").document(entry)["manifests"]
    assert [each["platform"]["architecture"] for each in inner] == ["amd64", "arm64"]
    again = pulled(
        place, f"oci:{tmp_path}/all", "--platform=linux/arm64", "--to", f"oci:{tmp_path}/three"
    )
    assert again["platform"] == "linux/arm64"


def test_a_registry_that_asks_who_it_is(
    place: Place, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    with registries.serving(tmp_path_factory.mktemp("closed"), password=True) as closed:
        place.run(
            "skopeo",
            "copy",
            "--quiet",
            "--all",
            "--dest-tls-verify=false",
            f"--dest-creds={registries.USER}:{registries.PASSWORD}",
            f"oci:{bases.busybox().directory}:{bases.TAG}",
            f"docker://{closed.address}/closed/busybox:1",
        )
        reference = f"{closed.address}/closed/busybox:1"
        arguments = [reference, "--tls-verify=false", "--platform=linux/arm64"]
        to = ["--to", f"oci:{tmp_path}/out"]
        said = refused(place, *arguments, *to)
        assert f"skopeo login {closed.address}" in said
        said = refused(place, *arguments, *to, "--creds=ann:wrong")
        assert f"skopeo login {closed.address}" in said
        creds = f"--creds={registries.USER}:{registries.PASSWORD}"
        found = pulled(place, *arguments, *to, creds)
        words = base64.b64encode(f"{registries.USER}:{registries.PASSWORD}".encode()).decode()
        authfile = tmp_path / "auth.json"
        authfile.write_text(json.dumps({"auths": {closed.address: {"auth": words}}}))
        again = pulled(place, *arguments, "--unpack", tmp_path / "tree", "--authfile", authfile)
        assert again["digest"] == found["digest"]
        copy = f"{closed.address}/closed/other:1"
        options = ["--tls-verify=false", creds, "--json"]
        done = place.maid("index", "create", "-t", copy, reference, *options)
        assert done.returncode == 0, done.stderr
        done = place.maid("index", "remove", copy, "linux/arm64", *options)
        assert done.returncode == 0, done.stderr
        done = place.maid("index", "inspect", copy, *options)
        assert len(json.loads(done.stdout)["images"]) == len(bases.BUSYBOX) - 1


def test_many_pull_into_one_layout_at_once(place: Place, busybox: str, tmp_path: Path) -> None:
    wanted = ["linux/amd64", "linux/arm64", "linux/arm64", "linux/arm/v7", "linux/riscv64"]
    started = [
        place.start(
            *("pull", busybox, "--quiet", "--platform", platform),
            *("--to", f"oci:{tmp_path}/out:{number}"),
            stdout=subprocess.PIPE,
        )
        for number, platform in enumerate(wanted)
    ]
    digests = [process.communicate(timeout=60)[0].decode().strip() for process in started]
    assert [process.returncode for process in started] == [0] * len(wanted)
    out = Layout(tmp_path / "out")
    assert [out.tagged(str(number))["digest"] for number in range(len(wanted))] == digests
    for digest in digests:
        document = out.document({"digest": digest})
        for blob in (document["config"], *document["layers"]):
            assert registries.file_digest(out.path(blob["digest"])) == blob["digest"]
    assert sorted(os.listdir(out.directory)) == ["blobs", "index.json", "oci-layout"]


@pytest.fixture(scope="module", autouse=True)
def _cleared(place: Place) -> Iterator[None]:
    """Nothing stays where temporary files go."""
    yield
    assert place.leftovers() == []
