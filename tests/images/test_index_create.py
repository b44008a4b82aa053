"""`maid index create`: indexes of images from anywhere, never half."""

from __future__ import annotations

import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from faulty import Fault, Faulty
from indexing import refused, run
from layouts import (
    DOCKER_LIST,
    INDEX,
    Layout,
    digest_of,
)
from making import (
    Maker,
    everything,
    pulled,
    through,
    wait_for,
)
from places import Place
from registry import Registry


@pytest.fixture(scope="module", autouse=True)
def _cleared(place: Place) -> Iterator[None]:
    yield
    assert place.leftovers() == []


def test_an_index_is_made_of_images_and_indexes_from_anywhere(
    place: Place, maker: Maker, registry: Registry, tmp_path: Path
) -> None:
    other = Maker(registry, tmp_path / "other")
    attested = other.image("linux/arm64")
    attestation = other.layout.attestation(attested)
    away = other.index(attested, attestation)
    single = maker.image("linux/arm/v6")
    maker.layout.tag("here", single)
    target = f"{registry.address}/{maker.name}"
    sources = [away, f"oci:{maker.layout.directory}:here"]
    digests = set()
    for tag in ("one", "two"):
        written = run(place, "create", "-t", f"{target}:{tag}", "-t", f"{target}:x{tag}", *sources)
        assert [each["reference"] for each in written["references"]] == [
            f"{target}:{tag}",
            f"{target}:x{tag}",
        ]
        digests |= {each["digest"] for each in written["references"]}
        digests |= {registry.digest(maker.name, tag), registry.digest(maker.name, f"x{tag}")}
    assert len(digests) == 1
    document = registry.document(maker.name, "one")
    assert document["manifests"] == [attested, attestation, single]
    for entry in document["manifests"]:
        assert registry.manifest(maker.name, entry["digest"]) is not None
    found = pulled(place, f"{target}:one", "--platform=linux/arm/v7", "--to", f"oci:{tmp_path}/o")
    assert found["platform"] == "linux/arm/v6"


def test_what_skopeo_reads_may_be_a_source(place: Place, maker: Maker, tmp_path: Path) -> None:
    reference = maker.push(maker.image("linux/arm64"))
    place.run("skopeo", "copy", "-q", f"docker://{reference}", f"docker-archive:{tmp_path}/a.tar")
    amd64 = maker.push(maker.image("linux/amd64"), "2")
    target = f"oci:{tmp_path}/out:made"
    run(place, "create", "-t", target, amd64, f"docker-archive:{tmp_path}/a.tar")
    document = run(place, "inspect", target)
    assert [each["platform"] for each in document["images"]] == ["linux/amd64", "linux/arm64"]
    assert all(each["problem"] is None for each in document["images"])
    place.run("skopeo", "copy", "-q", "--all", target, f"oci:{tmp_path}/again:made")


def test_an_index_alone_is_copied_as_it_is(place: Place, maker: Maker, registry: Registry) -> None:
    reference, _ = everything(maker)
    digest = registry.digest(maker.name, "1")
    target = f"{registry.address}/{maker.name}-copy:1"
    assert run(place, "create", "-t", target, reference)["references"][0]["digest"] == digest
    assert registry.digest(f"{maker.name}-copy", "1") == digest


def test_two_images_for_a_platform_are_refused(place: Place, maker: Maker) -> None:
    one = maker.push(maker.image("linux/arm64", "one"), "one")
    two = maker.push(maker.image("linux/arm64", "two"), "two")
    target = f"{maker.registry.address}/{maker.name}:both"
    said = refused(place, "create", "-t", target, one, two)
    assert one in said and two in said and "linux/arm64" in said and "--replace" in said
    assert "both" not in maker.registry.tags(maker.name)
    run(place, "create", "-t", target, one, two, "--replace")
    (entry,) = maker.registry.document(maker.name, "both")["manifests"]
    assert entry["digest"] == maker.registry.digest(maker.name, "two")


def test_annotations_and_appending(place: Place, maker: Maker) -> None:
    images = [maker.push(maker.image(f"linux/{each}"), each) for each in ("amd64", "arm64")]
    target = f"{maker.registry.address}/{maker.name}:1"
    annotations = ["--annotation=a.b/c=d=e", "--annotation=linux/amd64:f=g"]
    run(place, "create", "--append", "-t", target, images[0], *annotations)
    run(place, "create", "--append", "-t", target, images[1])
    document = maker.registry.document(maker.name, "1")
    assert [each["platform"]["architecture"] for each in document["manifests"]] == [
        "amd64",
        "arm64",
    ]
    assert document["manifests"][0]["annotations"] == {"f": "g"}
    said = refused(place, "create", "-t", target, images[0], "--annotation=linux/386:a=b", status=3)
    assert "no entry for linux/386" in said
    said = refused(place, "create", "-t", target, images[0], "--annotation=nothing", status=2)
    assert "is no annotation" in said


def test_a_dry_run_shows_and_writes_nothing(place: Place, maker: Maker, faulty: Faulty) -> None:
    images = [maker.push(maker.image(f"linux/{each}"), each) for each in ("amd64", "arm64")]
    target = f"{faulty.address}/{maker.name}:dry"
    with faulty.having():
        done = place.maid("index", "create", "--dry-run", "-t", target, *images)
        assert not faulty.matching("(PUT|POST|PATCH|DELETE)")
    assert done.returncode == 0, done.stderr
    data = done.stdout.rstrip("\n").encode()
    assert done.stderr == f"{target} would be {digest_of(data)}\n"
    document = run(place, "create", "--dry-run", "-t", target, *images)
    assert (document["dry_run"], document["written"]) == (True, False)
    assert digest_of(document["document"].encode()) == document["references"][0]["digest"]
    run(place, "create", "-t", target, *images)
    assert maker.registry.digest(maker.name, "dry") == digest_of(data)


def test_dockers_images_make_dockers_list(place: Place, maker: Maker, tmp_path: Path) -> None:
    images = [
        maker.push(maker.image(f"linux/{each}", docker=True), each) for each in ("amd64", "arm64")
    ]
    target = f"{maker.registry.address}/{maker.name}:1"
    run(place, "create", "-t", target, *images)
    assert maker.registry.document(maker.name, "1")["mediaType"] == DOCKER_LIST
    run(place, "annotate", target, "a=b")
    document = maker.registry.document(maker.name, "1")
    assert (document["mediaType"], document["annotations"]) == (INDEX, {"a": "b"})
    done = place.maid("index", "create", "--dry-run", "-t", f"oci:{tmp_path}/o:1", *images)
    assert "Docker's documents become OCI's" in done.stderr


def test_many_change_a_layout_at_once_and_nothing_is_lost(
    place: Place, maker: Maker, tmp_path: Path
) -> None:
    images = {
        tag: maker.push(maker.image(f"linux/{tag}"), tag)
        for tag in ("amd64", "arm64", "riscv64", "s390x")
    }
    out = tmp_path / "out"

    def create(tag: str) -> None:
        run(place, "create", "-t", f"oci:{out}:{tag}", images[tag])

    threads = [threading.Thread(target=create, args=(tag,)) for tag in images]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(Layout(out).tags()) == sorted(images)
    for tag in images:
        (entry,) = Layout(out).document(Layout(out).tagged(tag))["manifests"]
        assert entry["platform"]["architecture"] == tag


def test_what_a_registry_made_of_it_is_read_again(
    place: Place, maker: Maker, faulty: Faulty
) -> None:
    source = maker.push(maker.image("linux/arm64"), "image")
    another = maker.layout.index([maker.image("linux/amd64")])
    data = maker.layout.path(another["digest"]).read_bytes()
    target = f"{faulty.address}/{maker.name}:read"
    with faulty.having(Fault("GET .*/manifests/read", replace=data)):
        said = refused(place, "create", "-t", target, source)
    assert maker.registry.digest(maker.name, "read") in said
    assert f"now names {another['digest']}" in said


def test_killed_while_publishing_the_tag_is_old_or_new(
    place: Place, maker: Maker, registry: Registry, faulty: Faulty, tmp_path: Path
) -> None:
    old = maker.index(maker.image("linux/amd64"), tag="1")
    before = registry.digest(maker.name, "1")
    other = Maker(registry, tmp_path / "other")
    sources = [other.push(other.image(f"linux/{a}"), a) for a in ("arm64", "s390x")]
    start = time.monotonic()
    dry = run(place, "create", "--dry-run", "-t", old, *sources)
    run(place, "create", "-t", f"{registry.address}/{maker.name}-try:1", *sources)
    took = time.monotonic() - start
    new = dry["references"][0]["digest"]
    images = [other.registry.digest(other.name, a) for a in ("arm64", "s390x")]
    with faulty.having(Fault(f"PUT .*/manifests/{images[1]}", delay=3)):  # and half-way for sure
        target = through(faulty, old)
        process = place.start("index", "create", "-t", target, *sources, stdout=-3, stderr=-3)
        wait_for(lambda: registry.manifest(maker.name, images[0]) is not None)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert registry.digest(maker.name, "1") == before
    for number in range(10):
        process = place.start("index", "create", "-t", old, *sources, stdout=-3, stderr=-3)
        try:
            process.wait(took * (number + 1) / 10)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
        now = registry.digest(maker.name, "1")
        assert now in (before, new)
        if now == new:
            for entry in registry.document(maker.name, "1")["manifests"]:
                document = registry.document(maker.name, entry["digest"])
                for blob in (document["config"], *document["layers"]):
                    assert registry.blob(maker.name, blob["digest"]) is not None
    run(place, "create", "-t", old, *sources)
    assert registry.digest(maker.name, "1") == new
    for name in place.leftovers():
        subprocess.run(["rm", "-rf", place.directory / "tmp" / name], check=True)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["create", "-t", "app@sha256:" + "0" * 64, "x"], "written under a tag"),
        (["create", "-t", "dir:x", "y"], "written under a tag"),
        (["create", "--append", "-t", "a", "-t", "b", "c"], "goes with one name"),
        (["remove", "app@sha256:" + "0" * 64, "linux/386"], "which cannot be changed"),
        (["remove", "dir:x", "linux/386"], "registries and OCI layouts"),
        (["annotate", "app", "=x"], "is no annotation"),
        (["annotate", "app", "linux/386", "a"], "is no annotation"),
        (["inspect", "App"], "lower case"),
        (["inspect", "app", "--raw", "--json"], "two things"),
        (["inspect", "app", "--strict"], "--platform P"),
        (["inspect", "app", "--platform", "linux/a/b/c"], "is not a platform"),
    ],
)
def test_what_makes_no_sense_is_said(place: Place, arguments: list[str], words: str) -> None:
    assert words in refused(place, *arguments, status=2)
