"""`maid pull` from a real registry: containerd's choice, said and checked, to wherever it goes."""

import base64
import contextlib
import itertools
import json
import os
import platform as machine
import pty
import random
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bases
import pytest
import registry as registries
from daemons import MAID
from faulty import Fault, Faulty
from layouts import CONFIG, INDEX, MANIFEST, Descriptor, Layout, encoded, files_tar, without
from places import Place
from registry import Registry

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


class Maker:
    """Images and indexes for one test: made in a layout, pushed to a repository of its own."""

    _numbers = itertools.count()

    def __init__(self, registry: Registry, directory: Path) -> None:
        self.registry = registry
        self.layout = Layout(directory / "made")
        self.name = f"pull/{next(self._numbers)}"

    def image(self, platform: str, content: str = "", **more: Any) -> Descriptor:
        """A small image that says its platform in a file."""
        data = files_tar({"platform": platform.encode(), "content": content.encode()})
        return self.layout.image(platform, [self.layout.gzip_layer(data)], **more)

    def push(self, descriptor: Descriptor, tag: str = "1") -> str:
        """Have a tag of the repository name it; returns the reference."""
        self.layout.tag(tag, descriptor)
        self.registry.push(self.layout, self.name, tag)
        return f"{self.registry.address}/{self.name}:{tag}"

    def index(self, *entries: Descriptor, tag: str = "1", **more: Any) -> str:
        """Push an index of these entries."""
        return self.push(self.layout.index(entries, **more), tag)


@pytest.fixture
def maker(registry: Registry, tmp_path: Path) -> Maker:
    return Maker(registry, tmp_path)


def pulled(place: Place, *arguments: str | Path, **options: Any) -> dict[str, Any]:
    done = place.maid("pull", "--json", *arguments, **options)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert isinstance(document, dict)
    return document


def refused(place: Place, *arguments: str | Path, status: int = 1, **options: Any) -> str:
    """What was said when it did not work: one sentence, a hint, and never a traceback."""
    done = place.maid("pull", *arguments, **options)
    assert done.returncode == status, (done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    return done.stderr


def terminal(place: Place, columns: int, *arguments: str) -> list[str]:
    """What maid writes on a terminal that is so wide."""
    primary, secondary = pty.openpty()
    process = subprocess.Popen(
        [MAID, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=secondary,
        stderr=secondary,
        env=place.variables | {"COLUMNS": str(columns), "TERM": "xterm"},
    )
    os.close(secondary)
    output = b""
    with contextlib.suppress(OSError):  # how a terminal ends
        while piece := os.read(primary, 4096):
            output += piece
    os.close(primary)
    assert process.wait(20) == 0
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output.decode()).splitlines()


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


def everything(maker: Maker) -> tuple[str, list[Descriptor]]:
    """An index with attestations, an index in it, and an image that it names no platform of."""
    images = [maker.image("linux/amd64"), maker.image("linux/arm64"), maker.image("linux/s390x")]
    nested = maker.layout.index([images[2], maker.layout.attestation(images[2])])
    unnamed = without(maker.image("linux/riscv64"), "platform")
    attested = [maker.layout.attestation(each) for each in images[:2]]
    reference = maker.index(*images[:2], *attested, nested, unnamed, **{"x-unknown": [1, {}]})
    return reference, [*images, unnamed, nested, *attested]


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
