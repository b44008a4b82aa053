"""`maid build` makes one image a platform and one name for all, from a registry and into one."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import bases
import pytest
from building import FOUR, Builds, pushing
from places import Place
from registry import Registry


@pytest.fixture(scope="module")
def builds(place: Place, registry: Registry) -> Builds:
    """A build directory for this module."""
    return Builds(place, registry, place.directory / "build")


def test_four_platforms_are_built_and_named_together(builds: Builds, busybox: str) -> None:
    context = builds.place.context(f"FROM {busybox}\nRUN uname -m >/machine\nCOPY note /note\n")
    (context / "note").write_text("hello\n")
    result = builds.push(context, "build/four", *FOUR)
    assert [each["platform"] for each in result["platforms"]] == list(FOUR)
    assert {each["state"] for each in result["platforms"]} == {"built"}
    assert result["published"] and result["digest"] == builds.registry.digest("build/four", "1")
    images = builds.images("build/four")
    assert list(images) == list(FOUR)
    for platform, digest in images.items():
        assert builds.read("build/four", "machine", digest).strip() == bases.MACHINES[platform]
        config = builds.config("build/four", digest)
        written = [config["os"], config["architecture"], config.get("variant", "")]
        assert "/".join(filter(None, written)) == platform
        assert not [path for path in builds.files("build/four", digest) if ".maid" in path]
    states = {each["platform"]: each["native"] for each in result["platforms"]}
    assert states == {platform: platform == "linux/amd64" for platform in FOUR}


def test_what_was_built_is_not_built_again(builds: Builds, busybox: str) -> None:
    context = builds.place.context(f"FROM {busybox}\nRUN echo cached >/cached\n")
    first = builds.push(context, "build/cached", "linux/arm64", "linux/amd64")
    again = builds.push(context, "build/cached", "linux/arm64", "linux/amd64")
    assert [each["cached"] for each in first["platforms"]] == [0, 0]
    assert [each["cached"] for each in again["platforms"]] == [1, 1]
    assert first["digest"] == again["digest"]
    without = builds.json(
        context, *pushing(builds.registry, "build/cached", "linux/arm64"), "--no-cache"
    )
    assert without["platforms"][0]["cached"] == 0


def test_one_platform_is_a_plain_image_unless_an_index_is_wanted(
    builds: Builds, busybox: str
) -> None:
    context = builds.place.context(f"FROM {busybox}\nRUN true\n")
    options = pushing(builds.registry, "build/one", "linux/arm/v7")
    builds.run(context, *options)
    assert builds.config("build/one")["variant"] == "v7"
    builds.run(context, *options, "--index")
    assert list(builds.images("build/one")) == ["linux/arm/v7"]


def test_this_machine_s_platform_is_the_default(builds: Builds, busybox: str) -> None:
    context = builds.place.context(f"FROM {busybox}\nRUN true\n")
    result = builds.json(context, "--tag", f"{builds.registry.address}/build/own:1", "--push")
    assert [each["platform"] for each in result["platforms"]] == ["linux/amd64"]
    assert "variant" not in builds.config("build/own")


def test_tags_annotations_and_labels(builds: Builds, busybox: str) -> None:
    context = builds.place.context(f"FROM {busybox}\nRUN true\n")
    name = f"{builds.registry.address}/build/marked"
    builds.run(
        context,
        *("--platform", "linux/amd64", "--platform", "linux/arm64,amd64"),
        *("-t", f"{name}:1", "-t", f"{name}:1.2", "--push"),
        *("--annotation", "org.example.a=b=c", "--label", "who=ann"),
    )
    index = builds.registry.document("build/marked", "1")
    assert builds.registry.digest("build/marked", "1.2") == builds.registry.digest(
        "build/marked", "1"
    )
    assert index["annotations"] == {"org.example.a": "b=c"}
    assert list(builds.images("build/marked")) == ["linux/amd64", "linux/arm64"]
    for digest in builds.images("build/marked").values():
        manifest = builds.registry.document("build/marked", digest)
        assert manifest["annotations"]["org.example.a"] == "b=c"
        assert builds.config("build/marked", digest)["config"]["Labels"]["who"] == "ann"


def test_docker_s_documents(builds: Builds, busybox: str) -> None:
    context = builds.place.context(f"FROM {busybox}\nRUN true\n")
    options = pushing(builds.registry, "build/docker", "linux/amd64", "linux/arm64")
    builds.run(context, *options, "--format", "docker")
    index = builds.registry.document("build/docker", "1")
    assert index["mediaType"] == "application/vnd.docker.distribution.manifest.list.v2+json"
    for entry in index["manifests"]:
        manifest = builds.registry.document("build/docker", entry["digest"])
        assert manifest["mediaType"] == entry["mediaType"]
        assert entry["mediaType"] == "application/vnd.docker.distribution.manifest.v2+json"


def test_into_a_layout_that_other_programs_read(
    builds: Builds, busybox: str, tmp_path: Path
) -> None:
    context = builds.place.context(f"FROM {busybox}\nRUN uname -m >/machine\n")
    options = ("--platform", "linux/amd64,linux/arm64", "--output", f"oci:{tmp_path}/out:app")
    result = builds.json(context, *options)
    inspected = builds.place.run("skopeo", "inspect", "--raw", f"oci:{tmp_path}/out:app")
    assert [
        entry["platform"]["architecture"] for entry in json.loads(inspected.stdout)["manifests"]
    ] == ["amd64", "arm64"]
    assert result["names"] == [f"oci:{tmp_path}/out:app"]


def test_without_a_destination_it_is_there_for_podman(builds: Builds, busybox: str) -> None:
    context = builds.place.context(f"FROM {busybox}\nRUN uname -m >/machine\n")
    options = ("--platform", "linux/amd64,linux/arm64", "-t", "local/app:1", "-t", "second")
    result = builds.json(context, *options)
    assert result["names"] == ["localhost/local/app:1", "localhost/second:latest"]
    listed = builds.place.run("buildah", "manifest", "inspect", "localhost/local/app:1").stdout
    assert [entry["platform"]["architecture"] for entry in json.loads(listed)["manifests"]] == [
        "amd64",
        "arm64",
    ]
    inspected = ("skopeo", "inspect", "--raw", "containers-storage:localhost/second:latest")
    assert "manifests" in json.loads(builds.place.run(*inspected).stdout)
    names = builds.place.run("buildah", "images", "--format", "{{.Name}}:{{.Tag}}").stdout
    assert "maid-build" not in names
    for architecture, machine in (("amd64", "x86_64"), ("arm64", "aarch64")):
        made = builds.place.run(
            "buildah", "from", "--pull-never", "--arch", architecture, "localhost/local/app:1"
        ).stdout.strip()
        mounted = builds.place.run("buildah", "mount", made).stdout.strip()
        assert (Path(mounted) / "machine").read_text().strip() == machine
        builds.place.run("buildah", "rm", made)
    builds.run(context, "--platform", "linux/arm64", "-t", "local/app:1")
    one = builds.place.run(
        "skopeo", "inspect", "--raw", "containers-storage:localhost/local/app:1"
    ).stdout
    assert "layers" in json.loads(one)


def test_a_base_s_layers_stay_what_they_are_in_the_registry(builds: Builds, busybox: str) -> None:
    """Whoever has pulled the base has them already."""
    context = builds.place.context(f"FROM {busybox}\nRUN echo layers >/layers\n")
    bases_name = "base/busybox"
    for form in ("oci", "docker"):
        options = pushing(builds.registry, "build/layers", "linux/arm64")
        builds.run(context, *options, "--format", form)
        layers = builds.registry.document("build/layers", "1")["layers"]
        below = builds.registry.document(bases_name, "linux-arm64")["layers"]
        assert [each["digest"] for each in layers[:-1]] == [each["digest"] for each in below]


def test_a_base_that_has_moved_is_noticed(builds: Builds, busybox: str) -> None:
    registry = builds.registry
    base = f"{registry.address}/build/moving:1"
    context = builds.place.context(f"FROM {base}\nRUN cat /content >/copy\n")
    for content in ("one", "two"):
        made = builds.place.context(f"FROM {busybox}\nRUN echo {content} >/content\n")
        builds.push(made, "build/moving", "linux/amd64", "linux/arm64")
        builds.push(context, "build/moved", "linux/amd64", "linux/arm64")
        for digest in builds.images("build/moved").values():
            assert builds.read("build/moved", "copy", digest) == f"{content}\n"


def test_without_a_name_it_is_in_the_user_s_storage(
    builds: Builds, busybox: str, tmp_path: Path
) -> None:
    context = builds.place.context(f"FROM {busybox}\nRUN echo nameless >/file\n")
    one = builds.run(context, "--platform", "linux/arm64", "--iidfile", tmp_path / "id")
    identity = one.stdout.strip()
    assert (tmp_path / "id").read_text().strip() == identity
    raw = builds.place.run("skopeo", "inspect", "--raw", f"containers-storage:@{identity[7:]}")
    assert "layers" in json.loads(raw.stdout)
    several = builds.run(context, "--platform", "linux/amd64,linux/arm64")
    name, digest = several.stdout.split()
    raw = builds.place.run("skopeo", "inspect", "--raw", f"containers-storage:{name}")
    assert len(json.loads(raw.stdout)["manifests"]) == 2
    assert f"sha256:{hashlib.sha256(raw.stdout.encode()).hexdigest()}" == digest


def test_quiet_is_the_digest_alone(builds: Builds, busybox: str, tmp_path: Path) -> None:
    context = builds.place.context(f"FROM {busybox}\nRUN true\n")
    options = pushing(builds.registry, "build/quiet", "linux/arm64", "linux/amd64")
    done = builds.run(context, *options, "--quiet", "--iidfile", tmp_path / "id")
    digest = builds.registry.digest("build/quiet", "1")
    assert (done.stdout, done.stderr) == (f"{digest}\n", "")
    assert (tmp_path / "id").read_text() == f"{digest}\n"


def test_nothing_stays_where_temporary_files_go(builds: Builds, busybox: str) -> None:
    context = builds.place.context(f"FROM {busybox}\nRUN true\n")
    builds.push(context, "build/clean", "linux/arm64", "linux/amd64")
    assert builds.place.leftovers() == []
    assert list((builds.root / "work").iterdir()) == []
    assert builds.containers() == []
