"""`maid pull` when something is wrong: an error with words, a retry where one helps, and nothing
that looks complete and is not."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from faulty import Fault, Faulty, broken, missing, too_many, unauthorized
from layouts import INDEX, MANIFEST, Layout, encoded, without
from making import (
    Maker,
    clear,
    is_whole,
    large,
    pulled,
    refused,
    staged,
    tags,
    through,
    wait_for,
)
from places import Place

from maid.cli.transfers import Silence
from maid.images.layout import Layout as OwnLayout
from maid.images.pull import choose_image, receive
from maid.images.references import parse_reference
from maid.images.skopeo import Access, Skopeo
from maid.images.sources import open_source
from maid.platforms import only, parse

PLATFORM = "--platform=linux/arm64"


@pytest.fixture(scope="module", autouse=True)
def _cleared(place: Place) -> Iterator[None]:
    yield
    assert place.leftovers() == []


@pytest.mark.parametrize(
    ("fault", "words", "hint"),
    [
        (unauthorized("GET /v2/"), "unauthorized|authentication|401", "skopeo login {}"),
        (missing("GET .*/manifests/"), "manifest unknown|404", "skopeo list-tags docker://"),
        (missing("GET .*/blobs/", "BLOB_UNKNOWN"), "blob unknown|404", ""),
        (too_many("GET .*/manifests/", None), "toomanyrequests|429", "try again later"),
        (broken("GET .*/manifests/", None), "500|unknown", "try again later"),
        (Fault("GET .*/blobs/", cut=1000), "EOF|reset", "try again later"),
        (Fault("GET .*/manifests/", cut=10), "EOF|reset", "try again later"),
        (Fault("GET .*/manifests/", replace=b"nonsense"), "cannot be read|malformed|invalid", ""),
        (Fault("GET .*/manifests/", replace=b"{}"), "neither an image index nor a manifest", ""),
    ],
    ids=["401", "404", "404-blob", "429", "500", "cut", "cut-manifest", "nonsense", "empty"],
)
def test_what_a_registry_does_wrong_is_said(
    place: Place,
    maker: Maker,
    faulty: Faulty,
    tmp_path: Path,
    fault: Fault,
    words: str,
    hint: str,
) -> None:
    reference = through(faulty, maker.index(large(maker)))
    with faulty.having(fault):
        said = refused(place, reference, PLATFORM, "--to", f"oci:{tmp_path}/out")
    assert fault.happened
    assert reference.rpartition(":")[0] in said
    assert any(each.lower() in said.lower() for each in words.split("|")), said
    assert hint.format(faulty.address) in said
    assert tags(tmp_path / "out") == []
    assert pulled(place, reference, PLATFORM, "--to", f"oci:{tmp_path}/out")["platform"]
    assert tags(tmp_path / "out") == ["1"]


@pytest.mark.parametrize(
    "fault",
    [
        too_many("GET .*/manifests/", 1),
        broken("GET .*/manifests/", 1),
        broken("GET .*/blobs/", 1),
        Fault("GET .*/blobs/", times=1, cut=1_500_000),
    ],
    ids=["429", "500", "500-blob", "cut"],
)
def test_what_passes_is_tried_again(
    place: Place, maker: Maker, faulty: Faulty, tmp_path: Path, fault: Fault
) -> None:
    image = large(maker)
    reference = through(faulty, maker.index(image))
    with faulty.having(fault):
        pulled(place, reference, PLATFORM, "--to", f"oci:{tmp_path}/out")
    assert fault.happened == 1
    assert is_whole(Layout(tmp_path / "out"), image)


def test_a_registry_that_says_nothing_more_is_given_up(
    maker: Maker, faulty: Faulty, tmp_path: Path
) -> None:
    image = large(maker)
    reference = parse_reference(through(faulty, maker.index(image)))
    skopeo = Skopeo(Access(tls_verify=False), patience=2.0)
    layout = OwnLayout.create(tmp_path / "out")
    layer = maker.layout.document(image)["layers"][0]["digest"]
    with faulty.having(Fault(f"GET .*/blobs/{layer}", times=1, delay=30)):
        start = time.monotonic()
        with open_source(reference, skopeo) as source:
            choice = choose_image(source, only(parse("linux/arm64")))
            receive(skopeo, source, choice, layout, Silence())
        assert 2 < time.monotonic() - start < 20
    assert is_whole(Layout(tmp_path / "out"), image)


def test_a_manifest_that_is_not_the_one_named(
    place: Place, maker: Maker, faulty: Faulty, tmp_path: Path
) -> None:
    image, other = maker.image("linux/arm64"), maker.image("linux/arm64", "another")
    reference = through(faulty, maker.index(image))
    data = maker.layout.path(other["digest"]).read_bytes()
    with faulty.having(Fault(f"GET .*/manifests/{image['digest']}", replace=data)):
        said = refused(place, reference, PLATFORM, "--to", f"oci:{tmp_path}/out")
    assert reference.partition(":1")[0] in said
    assert image["digest"] in said
    assert tags(tmp_path / "out") == []


def test_a_layer_that_is_not_the_one_named(
    place: Place, maker: Maker, faulty: Faulty, tmp_path: Path
) -> None:
    image = large(maker)
    layer = maker.layout.document(image)["layers"][0]["digest"]
    reference = through(faulty, maker.index(image))
    with faulty.having(Fault(f"GET .*/blobs/{layer}", replace=b"something else")):
        said = refused(place, reference, PLATFORM, "--to", f"oci:{tmp_path}/out")
    assert layer in said
    assert tags(tmp_path / "out") == []
    assert not Layout(tmp_path / "out").path(layer).exists()


@pytest.mark.parametrize("difference", [-1, 1, 1 << 40])
@pytest.mark.parametrize("which", ["layer", "config", "manifest"])
def test_a_size_that_lies(
    place: Place, maker: Maker, tmp_path: Path, which: str, difference: int
) -> None:
    image = maker.image("linux/arm64")
    document = maker.layout.document(image)
    lie = {"layer": document["layers"][0], "config": document["config"], "manifest": image}[which]
    lie["size"] += difference
    if which != "manifest":
        image = maker.layout.blob(encoded(document), MANIFEST) | {"platform": image["platform"]}
    reference = f"oci:{maker.layout.directory}:lie"
    maker.layout.tag("lie", maker.layout.index([image]))
    said = refused(place, reference, PLATFORM, "--to", f"oci:{tmp_path}/out")
    assert reference in said
    assert lie["digest"] in said
    assert str(lie["size"]) in said
    assert tags(tmp_path / "out") == []
    for destination in ("dir", "oci-archive"):
        said = refused(place, reference, PLATFORM, "--to", f"{destination}:{tmp_path}/tree")
        assert lie["digest"] in said
        assert str(lie["size"]) in said
        assert not (tmp_path / "tree").exists()
    said = refused(place, reference, PLATFORM, "--unpack", tmp_path / "tree")
    assert lie["digest"] in said
    assert not (tmp_path / "tree").exists()


def test_a_layer_that_is_missing(place: Place, maker: Maker, tmp_path: Path) -> None:
    image = maker.image("linux/arm64")
    layer = maker.layout.document(image)["layers"][0]["digest"]
    maker.layout.tag("lacking", maker.layout.index([image]))
    maker.layout.path(layer).unlink()
    reference = f"oci:{maker.layout.directory}:lacking"
    said = refused(place, reference, PLATFORM, "--to", f"oci:{tmp_path}/out")
    assert reference in said
    assert layer.removeprefix("sha256:") in said
    assert tags(tmp_path / "out") == []


def test_an_image_that_is_missing(place: Place, maker: Maker, tmp_path: Path) -> None:
    image = maker.image("linux/arm64")
    maker.layout.tag("lacking", maker.layout.index([maker.image("linux/amd64"), image]))
    maker.layout.path(image["digest"]).unlink()
    reference = f"oci:{maker.layout.directory}:lacking"
    said = refused(place, reference, PLATFORM, "--to", f"oci:{tmp_path}/out")
    assert reference in said
    assert image["digest"] in said
    pulled(place, reference, "--platform=linux/amd64", "--to", f"oci:{tmp_path}/out")
    said = refused(place, reference, "--all", "--to", f"oci:{tmp_path}/out:all")
    assert image["digest"].removeprefix("sha256:") in said
    assert tags(tmp_path / "out") == ["lacking"]


def test_an_index_that_contains_itself(place: Place, maker: Maker, tmp_path: Path) -> None:
    # A layout that lies: what is under the digest is something else.
    digest = f"sha256:{'0' * 64}"
    entry = {"mediaType": INDEX, "digest": digest, "size": 0}
    data = encoded({"schemaVersion": 2, "manifests": [entry]})
    maker.layout.path(digest).write_bytes(data)
    maker.layout.tag("self", entry | {"size": len(data)})
    reference = f"oci:{maker.layout.directory}:self"
    for arguments in ([PLATFORM], ["--all"]):
        said = refused(place, reference, *arguments, "--to", f"oci:{tmp_path}/out")
        assert reference in said
        assert digest in said


def test_indexes_that_multiply(place: Place, maker: Maker, tmp_path: Path) -> None:
    entry = maker.image("linux/arm64")
    for _ in range(8):
        entry = maker.layout.index([without(entry, "platform")] * 50)
    maker.layout.tag("many", entry)
    reference = f"oci:{maker.layout.directory}:many"
    for arguments in ([PLATFORM], ["--all"]):
        start = time.monotonic()
        said = refused(place, reference, *arguments, "--to", f"oci:{tmp_path}/out")
        assert "nested too deeply, or too many" in said
        assert time.monotonic() - start < 20


@pytest.mark.parametrize("kind", ["killed", "interrupted"])
def test_an_interrupted_pull_goes_on_where_it_was(
    place: Place, maker: Maker, faulty: Faulty, tmp_path: Path, kind: str
) -> None:
    image = large(maker, layers=3)
    reference = through(faulty, maker.index(image))
    arguments = [reference, PLATFORM, "--to", f"oci:{tmp_path}/out"]
    layers = maker.layout.document(image)["layers"]
    with faulty.having(Fault(f"GET .*/blobs/{layers[2]['digest']}", pace=10_000)):
        process = place.start("pull", *arguments, stdout=subprocess.DEVNULL)
        wait_for(lambda: _growing(tmp_path / "out"))
        assert tags(tmp_path / "out") == []
        process.send_signal(signal.SIGKILL if kind == "killed" else signal.SIGINT)
        assert process.wait(20) != 0
        wait_for(lambda: not _programs(tmp_path))
    assert tags(tmp_path / "out") == []
    if kind == "interrupted":
        assert staged(tmp_path / "out") == []
    with faulty.having():
        found = pulled(place, *arguments)
        fetched = {each.rpartition("/")[2] for each in faulty.matching("GET .*/blobs/")}
    assert layers[2]["digest"] in fetched
    assert not fetched & {layers[0]["digest"], layers[1]["digest"]}
    assert found["bytes_fetched"] < found["bytes"] / 2
    assert is_whole(Layout(tmp_path / "out"), image)
    assert staged(tmp_path / "out") == []
    clear(place)


def test_killed_at_any_moment_a_name_is_whole_or_not_there(
    place: Place, maker: Maker, faulty: Faulty, tmp_path: Path
) -> None:
    image = large(maker, layers=3, size=300_000)
    reference = through(faulty, maker.index(image))
    out = tmp_path / "out"
    arguments = [reference, PLATFORM, "--to", f"oci:{out}"]
    start = time.monotonic()
    pulled(place, reference, PLATFORM, "--to", f"oci:{tmp_path}/whole")
    took = time.monotonic() - start
    seen: set[str] = set()
    for number in range(60):
        if number > 11 and {"named", "begun"} <= seen:
            break
        process = place.start("pull", *arguments, stdout=-3, stderr=-3)
        try:
            process.wait(took * (number + 1) / 11)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        named = tags(out)
        seen.add("named" if named else "begun" if list(out.glob("blobs/sha256/*")) else "nothing")
        if named:
            assert is_whole(Layout(out), Layout(out).tagged("1"))
            for each in out.iterdir():
                if each.name != "blobs":
                    subprocess.run(["rm", "-rf", each], check=True)
    assert {"named", "begun"} <= seen  # it was caught half-way
    pulled(place, *arguments)
    assert is_whole(Layout(out), image)
    assert staged(out) == []
    clear(place)


def test_a_blob_that_a_power_failure_cut_short_is_fetched_again(
    place: Place, maker: Maker, tmp_path: Path
) -> None:
    image = large(maker)
    reference = maker.index(image)
    arguments = [reference, PLATFORM, "--to", f"oci:{tmp_path}/out"]
    pulled(place, *arguments)
    out = Layout(tmp_path / "out")
    layer = maker.layout.document(image)["layers"][0]["digest"]
    os.truncate(out.path(layer), 1000)
    pulled(place, *arguments)
    assert is_whole(out, image)


@pytest.mark.parametrize("destination", ["oci:{}/disk/out", "oci-archive:{}/disk/a.tar"])
def test_a_full_disk(place: Place, maker: Maker, tmp_path: Path, destination: str) -> None:
    reference = maker.index(large(maker))
    (tmp_path / "disk").mkdir()
    done = _on_small_disk(
        place, tmp_path / "disk", "pull", reference, PLATFORM, "--to", destination.format(tmp_path)
    )
    assert done.returncode == 1, done.stdout
    assert "no space left" in done.stderr.lower()
    assert "free some space" in done.stderr
    assert "Traceback" not in done.stderr
    assert "MANIFESTS=0" in done.stdout
    assert "a.tar" not in done.stdout


def test_a_full_disk_under_what_is_unpacked(place: Place, maker: Maker, tmp_path: Path) -> None:
    reference = maker.index(large(maker))
    disk = tmp_path / "disk"
    disk.mkdir()
    done = _on_small_disk(place, disk, "pull", reference, PLATFORM, "--unpack", disk / "tree")
    assert done.returncode == 1, done.stdout
    assert "no space left" in done.stderr.lower()
    assert "tree" not in done.stdout


def _on_small_disk(place: Place, disk: Path, *arguments: Any) -> subprocess.CompletedProcess[str]:
    """Run maid with a file system of 2 MB at `disk`, and list what is left there."""
    script = (
        'mount -t tmpfs -o size=2m none "$0" || exit 99; "$@"; status=$?; cd "$0"; find .;'
        " echo MANIFESTS=$(grep -c manifests out/index.json 2>/dev/null || echo 0) | tr -d '\\n';"
        " exit $status"
    )
    command = [str(place_maid()), *map(str, arguments)]
    return place.run("unshare", "--mount", "sh", "-c", script, str(disk), *command, check=False)


def place_maid() -> Path:
    from daemons import MAID

    return Path(MAID)


def _growing(directory: Path) -> bool:
    return (
        any(
            file.stat().st_size > 20_000
            for file in directory.glob(".maid-*/*")
            if file.name != "index.json"
        )
        and len(list(directory.glob("blobs/sha256/*"))) >= 2
    )


def _programs(directory: Path) -> list[str]:
    """Programs that still run with this directory in their arguments."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(directory) in words and str(os.getpid()) != path.parent.name:
            found.append(words)
    return found
