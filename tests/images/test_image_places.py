"""The places for tests of images do what the tests rely on: the registry keeps its rules, what
stands before it misbehaves as it is told, and nothing else."""

import base64
import hashlib
import http.client
import json
from pathlib import Path

import bases
import layouts
import pytest
import registry as registries
from faulty import Fault, Faulty, broken, missing, too_many, unauthorized
from layouts import INDEX, MANIFEST, Layout, digest_of, files_tar
from places import Place
from registry import Answer, Registry


def get(address: str, path: str) -> Answer:
    """A GET request; raises HTTPException where the connection ends before the answer does."""
    connection = http.client.HTTPConnection(address, timeout=10)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        headers = {name.lower(): value for name, value in answer.getheaders()}
        return Answer(answer.status, headers, answer.read())
    finally:
        connection.close()


def test_a_registry_refuses_an_index_whose_children_it_lacks(
    registry: Registry, tmp_path: Path
) -> None:
    layout = Layout(tmp_path / "layout")
    image = layout.image("linux/arm64", [layout.layer(files_tar({"a": b"1"}))])
    index = layout.index([image])
    data = layout.path(index["digest"]).read_bytes()
    headers = {"Content-Type": INDEX}
    refused = registry.request("PUT", "/v2/places/early/manifests/1", data, headers)
    assert refused.status == 400 and b"MANIFEST_BLOB_UNKNOWN" in refused.body
    assert registry.tags("places/early") == []
    layout.tag("1", index)
    assert registry.push(layout, "places/early", "1") == index["digest"]
    assert registry.tags("places/early") == ["1"]
    assert registry.manifest("places/early", "1") == data
    assert registry.manifests("places/early") == {index["digest"], image["digest"]}


def test_what_is_put_is_what_is_there_and_what_is_deleted_is_not(registry: Registry) -> None:
    digest = registry.put_blob("places/blobs", b"some bytes")
    assert registry.blob("places/blobs", digest) == b"some bytes"
    assert registry.blobs("places/blobs") == {digest}
    registry.delete("places/blobs", digest, "blobs")
    assert registry.blob("places/blobs", digest) is None


def test_a_registry_that_wants_a_password(tmp_path: Path) -> None:
    with registries.serving(tmp_path, password=True) as closed:
        refused = closed.request("GET", "/v2/")
        assert refused.status == 401 and refused.headers["www-authenticate"].startswith("Basic")
        credentials = f"{registries.USER}:{registries.PASSWORD}".encode()
        headers = {"Authorization": f"Basic {base64.b64encode(credentials).decode()}"}
        assert closed.request("GET", "/v2/", headers=headers).status == 200


def test_base_images_are_what_they_are_called(registry: Registry, busybox: str) -> None:
    name = busybox.removeprefix(f"{registry.address}/").removesuffix(f":{bases.TAG}")
    entries = registry.document(name, bases.TAG)["manifests"]
    assert [entry["platform"] for entry in entries] == [
        layouts.platform_of(platform) for platform in bases.BUSYBOX
    ]
    for entry, platform in zip(entries, bases.BUSYBOX, strict=True):
        assert registry.digest(name, bases.tag_of(platform)) == entry["digest"]
        data = registry.manifest(name, entry["digest"])
        assert data is not None and len(data) == entry["size"]
        config = json.loads(registry.blob(name, json.loads(data)["config"]["digest"]) or b"")
        wanted = layouts.platform_of(platform)
        assert {member: config[member] for member in wanted} == wanted
        assert f"PLATFORM={platform}" in config["config"]["Env"]


def test_layouts_are_the_same_whenever_they_are_made(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "etc").mkdir(parents=True)
    (tree / "etc/file").write_text("data")
    made = []
    for name in ("one", "two"):
        layout = Layout(tmp_path / name)
        descriptor, diff = layout.tree_layer(tree)
        data = layout.path(descriptor["digest"]).read_bytes()
        assert digest_of(data) == descriptor["digest"] and len(data) == descriptor["size"]
        made.append((layout.index([layout.image("linux/arm64", [(descriptor, diff)])]), diff))
    assert made[0] == made[1]


BLOB = b"x" * 100_000


@pytest.fixture(scope="module")
def blob(registry: Registry) -> str:
    """The path of a blob."""
    return f"/v2/places/faulty/blobs/{registry.put_blob('places/faulty', BLOB)}"


def test_without_a_fault_everything_is_passed_on(faulty: Faulty, blob: str) -> None:
    with faulty.having():
        assert get(faulty.address, blob).body == BLOB
        assert faulty.requests == [f"GET {blob}"]


def test_answers_by_plan(faulty: Faulty, blob: str) -> None:
    with faulty.having(unauthorized("GET /v2/places")):
        answer = get(faulty.address, blob)
        assert answer.status == 401 and "basic" in answer.headers["www-authenticate"].lower()
        assert get(faulty.address, "/v2/").status == 200
    with faulty.having(missing("GET")):
        assert get(faulty.address, blob).status == 404
    with faulty.having(too_many("GET", 2, retry_after=3)):
        answers = [get(faulty.address, blob) for _ in range(3)]
        assert [answer.status for answer in answers] == [429, 429, 200]
        assert answers[0].headers["retry-after"] == "3"
    with faulty.having(broken("GET", 1, after=1)):
        assert [get(faulty.address, blob).status for _ in range(3)] == [200, 500, 200]
    with faulty.having(broken("GET", None)):
        assert {get(faulty.address, blob).status for _ in range(5)} == {500}


def test_bodies_by_plan(faulty: Faulty, blob: str) -> None:
    with faulty.having(Fault("GET", cut=70_000)), pytest.raises(http.client.IncompleteRead) as cut:
        get(faulty.address, blob)
    assert len(cut.value.partial) == 70_000
    with faulty.having(Fault("GET", replace=b"lies")):
        assert get(faulty.address, blob).body == b"lies"
    with faulty.having(Fault("GET", append=b"more")):
        assert get(faulty.address, blob).body == BLOB + b"more"
    with faulty.having(Fault("GET", claim=10)):
        assert get(faulty.address, blob).body == BLOB[:10]


def test_pushes_pass_and_end_by_plan(
    registry: Registry, faulty: Faulty, place: Place, tmp_path: Path
) -> None:
    layout = Layout(tmp_path / "layout")
    for tag in ("1", "2"):  # of their own: skopeo remembers which repository has which blob
        data = hashlib.sha256(tag.encode()).digest() * 20_000
        image = layout.image("linux/arm64", [layout.layer(files_tar({"data": data}))])
        layout.tag(tag, image)
    copy = ("skopeo", "copy", "--preserve-digests")
    one, two = (f"oci:{layout.directory}:{tag}" for tag in ("1", "2"))
    target = f"docker://{faulty.address}/places"
    with faulty.having():
        place.run(*copy, one, f"{target}/pushed:1")
        pushes = faulty.matching("(PUT|PATCH|POST) ")
        assert pushes[-1] == "PUT /v2/places/pushed/manifests/1"
    assert registry.digest("places/pushed", "1") == layout.tagged("1")["digest"]
    with faulty.having(Fault("PATCH", cut_sent=1000)):
        done = place.run(*copy, two, f"{target}/cut:1", check=False)
        assert done.returncode != 0 and registry.tags("places/cut") == []
    with faulty.having(broken("PUT /v2/places/denied/manifests", None)):
        done = place.run(*copy, one, f"{target}/denied:1", check=False)
        assert done.returncode != 0 and registry.tags("places/denied") == []
    assert len(registry.blobs("places/denied")) == 2
    assert layout.tagged("1")["mediaType"] == MANIFEST


def test_a_place_s_programs_keep_to_it(place: Place, busybox: str) -> None:
    info = json.loads(place.run("buildah", "info").stdout)
    assert info["store"]["GraphRoot"] == str(place.directory / "storage/graph")
    place.run("buildah", "pull", "--quiet", busybox)
    assert busybox.rpartition(":")[0] in place.run("buildah", "images").stdout
    assert place.maid("ensure", "linux/arm64").returncode == 0
