"""`maid index` on a real registry and on layouts: seen, made, changed, and never half."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from faulty import Fault, Faulty, broken, missing
from layouts import (
    DOCKER_LIST,
    INDEX,
    MANIFEST,
    Descriptor,
    Layout,
    digest_of,
    encoded,
    files_tar,
    without,
)
from places import Place
from registry import Registry
from test_pull import Maker, everything, pulled, terminal
from test_pull_faults import through


@pytest.fixture
def maker(registry: Registry, tmp_path: Path) -> Maker:
    return Maker(registry, tmp_path)


@pytest.fixture(scope="module", autouse=True)
def _cleared(place: Place) -> Iterator[None]:
    yield
    assert place.leftovers() == []


def run(place: Place, *arguments: str | Path, **options: Any) -> Any:
    """The JSON document of a command that has to work."""
    done = place.maid("index", *arguments, "--json", **options)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def refused(place: Place, *arguments: str | Path, status: int = 1) -> str:
    done = place.maid("index", *arguments)
    assert done.returncode == status, (done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    return done.stderr


def lines(place: Place, *arguments: str | Path, **options: Any) -> list[str]:
    done = place.maid("index", *arguments, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


# inspect ---------------------------------------------------------------------------------------


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


# create ----------------------------------------------------------------------------------------


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


# add, remove, annotate --------------------------------------------------------------------------


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
    place: Place, maker: Maker, registry: Registry, tmp_path: Path
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
