"""`maid pull --unpack`: a root file system that runs, whole or not there, and nothing beside it."""

import io
import json
import os
import signal
import stat
import subprocess
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bases
import pytest
from faulty import Fault, Faulty
from layouts import LAYER, Layout, digest_of, files_tar
from making import (
    Maker,
    clear,
    large,
    pulled,
    refused,
    through,
    wait_for,
)
from places import Place

PLATFORM = "--platform=linux/amd64"


@pytest.fixture(scope="module", autouse=True)
def _cleared(place: Place) -> Iterator[None]:
    yield
    assert place.leftovers() == []


@pytest.mark.parametrize(
    ("platform", "says"), [("linux/arm64", "aarch64"), ("linux/arm/v7", "armv7l")]
)
def test_what_is_unpacked_runs_by_itself(
    place: Place, busybox: str, tmp_path: Path, platform: str, says: str
) -> None:
    tree = tmp_path / "tree"
    found = pulled(place, busybox, "--platform", platform, "--unpack", tree)
    assert (found["platform"], found["destination"]) == (platform, str(tree))
    assert (tree / "platform").read_text() == f"{platform}\n"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["tree"]
    done = place.maid("run", "--rootfs", tree, "--", "/bin/uname", "-m")
    assert (done.returncode, done.stdout.strip()) == (0, says), done.stderr


@pytest.mark.parametrize("platform", ["linux/amd64/v2", "linux/riscv64"])
def test_owners_modes_and_times_are_the_images(
    place: Place, maker: Maker, tmp_path: Path, platform: str
) -> None:
    data = _tar(
        ("file", {"mode": 0o640, "uid": 12, "gid": 34, "mtime": 1_000_000}, b"x"),
        ("setuid", {"mode": 0o4755}, b"y"),
        ("dir", {"type": tarfile.DIRTYPE, "mode": 0o1777}, b""),
        ("null", {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 3}, b""),
        ("fifo", {"type": tarfile.FIFOTYPE}, b""),
        ("link", {"type": tarfile.SYMTYPE, "linkname": "/file"}, b""),
        ("hard", {"type": tarfile.LNKTYPE, "linkname": "file"}, b""),
    )
    reference = maker.index(maker.layout.image(platform, [maker.layout.gzip_layer(data)]))
    tree = tmp_path / "tree"
    pulled(place, reference, "--platform", platform, "--unpack", tree)
    file = (tree / "file").stat()
    assert (file.st_mode & 0o7777, file.st_uid, file.st_gid) == (0o640, 12, 34)
    assert file.st_mtime == 1_000_000
    assert (tree / "hard").samefile(tree / "file")
    assert (tree / "setuid").stat().st_mode & 0o7777 == 0o4755
    assert (tree / "dir").stat().st_mode & 0o7777 == 0o1777
    device = (tree / "null").stat()
    assert stat.S_ISCHR(device.st_mode) and device.st_rdev == os.makedev(1, 3)
    assert stat.S_ISFIFO((tree / "fifo").stat().st_mode)
    assert os.readlink(tree / "link") == "/file"


def test_later_layers_win_and_whiteouts_remove(place: Place, maker: Maker, tmp_path: Path) -> None:
    lower = files_tar({"a": b"1", "b": b"1", "d": None, "d/x": b"1", "e": None, "e/y": b"1"})
    upper = files_tar({"a": b"2", ".wh.b": b"", "d/.wh..wh..opq": b"", "d/z": b"2"})
    layers = [maker.layout.gzip_layer(lower), maker.layout.layer(upper)]
    reference = maker.index(maker.layout.image("linux/amd64", layers))
    pulled(place, reference, PLATFORM, "--unpack", tmp_path / "tree")
    assert _files(tmp_path / "tree") == {"a": b"2", "d/z": b"2", "e/y": b"1"}


def _files(tree: Path) -> dict[str, bytes]:
    return {
        str(each.relative_to(tree)): each.read_bytes()
        for each in tree.rglob("*")
        if each.is_file() and not each.is_symlink()
    }


def _tar(*members: tuple[str, dict[str, Any], bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, values, data in members:
            member = tarfile.TarInfo(name)
            member.mode, member.size = 0o755, len(data)
            for key, value in values.items():
                setattr(member, key, value)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


SYMLINK, HARD, DIRECTORY = tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE


@pytest.mark.parametrize(
    "members",
    [
        [("../escaped", {}, b"x")],
        [("a/../../escaped", {}, b"x")],
        [("/escaped", {}, b"x")],
        [("{outside}/escaped", {}, b"x")],
        [("link", {"type": SYMLINK, "linkname": "{outside}"}, b""), ("link/escaped", {}, b"x")],
        [("link", {"type": SYMLINK, "linkname": "../.."}, b""), ("link/escaped", {}, b"x")],
        [
            ("one", {"type": SYMLINK, "linkname": "{outside}"}, b""),
            ("two", {"type": SYMLINK, "linkname": "one"}, b""),
            ("two/escaped", {}, b"x"),
        ],
        [("file", {"type": SYMLINK, "linkname": "{outside}/victim"}, b""), ("file", {}, b"x")],
        [("hard", {"type": HARD, "linkname": "{outside}/victim"}, b""), ("hard", {}, b"x")],
        [("hard", {"type": HARD, "linkname": "../../victim"}, b""), ("hard", {}, b"x")],
        [
            ("link", {"type": SYMLINK, "linkname": "{outside}"}, b""),
            ("hard", {"type": HARD, "linkname": "link/victim"}, b""),
            ("hard", {}, b"x"),
        ],
        [("../.wh.victim", {}, b"")],
        [("link", {"type": SYMLINK, "linkname": "{outside}"}, b""), ("link/.wh.victim", {}, b"")],
        [("link", {"type": SYMLINK, "linkname": "{outside}"}, b""), ("link/.wh..wh..opq", {}, b"")],
        [(".wh...", {}, b"")],
        [(".wh..", {}, b"")],
        [
            ("link", {"type": SYMLINK, "linkname": "{outside}"}, b""),
            ("link", {"type": DIRECTORY, "mode": 0o777}, b""),
        ],
        [("link", {"type": SYMLINK, "linkname": "{outside}", "mode": 0o777, "uid": 5}, b"")],
        [("x", {"type": HARD, "linkname": "{outside}/victim", "uid": 5, "mode": 0o777}, b"")],
    ],
    ids=range(19),
)
@pytest.mark.parametrize("apart", [False, True], ids=["one layer", "a layer each"])
def test_no_layer_reaches_outside(
    place: Place, maker: Maker, tmp_path: Path, members: list[Any], apart: bool
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    outside.chmod(0o755)
    (outside / "victim").write_bytes(b"untouched")
    (outside / "victim").chmod(0o600)
    (tmp_path / "victim").write_bytes(b"untouched")
    named = [
        (
            name.format(outside=outside),
            {
                key: value.format(outside=outside) if isinstance(value, str) else value
                for key, value in values.items()
            },
            data,
        )
        for name, values, data in members
    ]
    archives = [_tar(each) for each in named] if apart else [_tar(*named)]
    layers = [maker.layout.gzip_layer(data) for data in archives]
    reference = maker.index(maker.layout.image("linux/amd64", layers))
    before = _outside(tmp_path)
    done = place.maid("pull", reference, PLATFORM, "--unpack", tmp_path / "x/tree")
    assert "Traceback" not in done.stderr
    assert _outside(tmp_path) == before
    assert not Path("/escaped").exists()
    if done.returncode:
        assert reference in done.stderr
        assert "cannot be unpacked" in done.stderr
        assert list((tmp_path / "x").iterdir()) == []


def _outside(directory: Path) -> dict[str, tuple[int, int, bytes]]:
    found = {}
    for path in [directory, *directory.rglob("*")]:
        name = str(path.relative_to(directory))
        if name == "." or name.split("/")[0] in ("x", "made"):
            continue
        status = path.lstat()
        data = path.read_bytes() if path.is_file() else b""
        found[name] = (status.st_mode, status.st_uid, data)
    return found


@pytest.mark.parametrize(
    "media_type", [f"{LAYER}+zstd", "application/vnd.docker.image.rootfs.diff.tar.gzip"]
)
def test_layers_of_other_types(place: Place, maker: Maker, tmp_path: Path, media_type: str) -> None:
    data = files_tar({"a": b"1"})
    if media_type.endswith("zstd"):
        packed = subprocess.run(
            ["zstd", "-cq"], input=data, stdout=subprocess.PIPE, check=True
        ).stdout
        pair = (maker.layout.blob(packed, media_type), digest_of(data))
    else:
        descriptor, diff = maker.layout.gzip_layer(data)
        pair = (descriptor | {"mediaType": media_type}, diff)
    reference = maker.index(maker.layout.image("linux/amd64", [pair, pair]))
    pulled(place, reference, PLATFORM, "--unpack", tmp_path / "tree")
    assert _files(tmp_path / "tree") == {"a": b"1"}


def test_what_is_no_file_system_is_not_unpacked(place: Place, maker: Maker, tmp_path: Path) -> None:
    strange = maker.layout.blob(b"{}", "application/vnd.example+json")
    image = maker.layout.image("linux/amd64", [(strange, strange["digest"])])
    reference = maker.index(image)
    said = refused(place, reference, PLATFORM, "--unpack", tmp_path / "tree")
    assert strange["digest"] in said
    assert "no layer of a file system" in said
    damaged = maker.layout.gzip_layer(b"no archive at all" * 100)
    reference = maker.index(maker.layout.image("linux/amd64", [damaged]), tag="2")
    said = refused(place, reference, PLATFORM, "--unpack", tmp_path / "tree")
    assert reference in said
    wrong = (maker.layout.gzip_layer(files_tar({"a": b""}))[0], digest_of(b"another"))
    reference = maker.index(maker.layout.image("linux/amd64", [wrong]), tag="3")
    said = refused(place, reference, PLATFORM, "--unpack", tmp_path / "tree")
    assert reference in said
    assert sorted(each.name for each in tmp_path.iterdir()) == ["made"]


def test_programs_of_another_architecture_are_told(
    place: Place, maker: Maker, tmp_path: Path
) -> None:
    source = Layout(bases.busybox().directory)
    entry = source.tagged("linux-riscv64")
    document = source.document(entry)
    layers = [
        maker.layout.blob(source.path(each["digest"]).read_bytes(), each["mediaType"])
        for each in document["layers"]
    ]
    diffs = source.document(document["config"])["rootfs"]["diff_ids"]
    image = maker.layout.image("linux/arm64", list(zip(layers, diffs, strict=True)))
    reference = maker.index(image)
    arguments = [reference, "--platform=linux/arm64", "--unpack", tmp_path / "tree"]
    said = refused(place, *arguments, status=3)
    assert "/bin/sh is a program for riscv64" in said
    assert image["digest"] in said
    assert not (tmp_path / "tree").exists()
    pulled(place, *arguments, "--any")
    assert (tmp_path / "tree/bin/sh").exists()


def test_a_directory_with_something_in_it_stays_as_it_is(
    place: Place, busybox: str, tmp_path: Path
) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    pulled(place, busybox, PLATFORM, "--unpack", tree)
    assert (tree / "bin").is_dir()
    for target, words in ((tree, "is not empty"), (tree / "platform", "no directory")):
        assert words in refused(place, busybox, PLATFORM, "--unpack", target, status=2)
    above = tmp_path / "new/and/newer"
    pulled(place, busybox, PLATFORM, "--unpack", above)
    assert (above / "bin").is_dir()


def test_what_was_fetched_once_is_not_fetched_again(
    place: Place, maker: Maker, faulty: Faulty, tmp_path: Path
) -> None:
    image = maker.image("linux/amd64", "cached")
    reference = through(faulty, maker.index(image))
    assert pulled(place, reference, PLATFORM, "--unpack", tmp_path / "one")["bytes_fetched"]
    cached = place.directory / "images/blobs/sha256"
    layer = cached / maker.layout.document(image)["layers"][0]["digest"][7:]
    month_ago = time.time() - 40 * 86400
    os.utime(layer, (month_ago, month_ago))
    with faulty.having():
        again = pulled(place, reference, PLATFORM, "--unpack", tmp_path / "two")
        fetched = {each.rpartition("/")[2] for each in faulty.matching("GET .*/blobs/")}
    assert again["bytes_fetched"] == 0
    assert layer.exists()  # it was just used, and stays
    # It is looked at before, to be sure of the image.
    assert fetched == {maker.layout.document(image)["config"]["digest"]}
    assert _files(tmp_path / "one") == _files(tmp_path / "two")


def test_killed_while_unpacking_nothing_has_the_name(
    place: Place, maker: Maker, tmp_path: Path
) -> None:
    many = files_tar({f"f{number}": b"x" * 100 for number in range(20_000)})
    reference = maker.index(maker.layout.image("linux/amd64", [maker.layout.gzip_layer(many)]))
    tree = tmp_path / "tree"
    arguments = [reference, PLATFORM, "--unpack", tree]
    for sign in (signal.SIGINT, signal.SIGKILL):
        process = place.start("pull", *arguments, stdout=-3, stderr=-3)
        wait_for(lambda: any(tmp_path.glob("tree.partial-*/whole/f1*")))
        process.send_signal(sign)
        assert process.wait(20) != 0
        assert not tree.exists()
        assert len(list(tmp_path.glob("tree.partial-*"))) == (sign == signal.SIGKILL)
    pulled(place, *arguments)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["made", "tree"]
    assert len(list(tree.iterdir())) == 20_000
    clear(place)


def test_a_fetch_that_was_killed_goes_on(
    place: Place, maker: Maker, faulty: Faulty, tmp_path: Path
) -> None:
    image = large(maker, layers=2)
    reference = through(faulty, maker.index(image))
    layers = maker.layout.document(image)["layers"]
    arguments = [reference, "--platform=linux/arm64", "--unpack", tmp_path / "tree"]
    with faulty.having(Fault(f"GET .*/blobs/{layers[1]['digest']}", pace=10_000)):
        process = place.start("pull", *arguments, stdout=-3, stderr=-3)
        cached = place.directory / "images/blobs/sha256" / layers[0]["digest"][7:]
        wait_for(cached.exists)
        time.sleep(0.3)
        process.kill()
        process.wait()
    assert not (tmp_path / "tree").exists()
    with faulty.having():
        pulled(place, *arguments)
        assert not faulty.matching(f"GET .*/blobs/{layers[0]['digest']}")
    clear(place)


@pytest.fixture
def readable(place: Place, tmp_path: Path) -> Iterator[dict[str, str]]:
    """What lets another user use the place and the directory for the test."""
    changed = []
    for path in (place.directory, *tmp_path.parents[:3], tmp_path):
        mode = path.stat().st_mode & 0o7777
        if mode & 0o005 != 0o005 and str(path).startswith("/tmp/"):
            changed.append((path, mode))
            path.chmod(mode | 0o055)
    home = tmp_path / "home"
    home.mkdir()
    os.chown(home, 65534, 65534)
    os.chown(tmp_path, 65534, 65534)
    config = place.directory / "home/.config"
    subprocess.run(["cp", "-r", config, home / ".config"], check=True)
    yield {"HOME": str(home), "TMPDIR": str(home), "MAID_IMAGES": "", "XDG_CACHE_HOME": ""}
    for path, mode in changed:
        path.chmod(mode)


def test_a_user_unpacks_what_is_theirs(
    place: Place, busybox: str, maker: Maker, tmp_path: Path, readable: dict[str, str]
) -> None:
    from daemons import MAID

    data = _tar(
        ("dev/null", {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 3}, b""),
        ("file", {"uid": 12, "gid": 34}, b"x"),
        ("closed", {"type": DIRECTORY, "mode": 0o000}, b""),
    )
    reference = maker.index(maker.layout.image("linux/amd64", [maker.layout.gzip_layer(data)]))
    done = place.run(
        *("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", MAID, "pull", "--json"),
        *(reference, PLATFORM, "--unpack", str(tmp_path / "tree")),
        check=False,
        env=readable,
        cwd=tmp_path,
    )
    if "Permission denied" in done.stderr and str(MAID) in done.stderr:
        pytest.skip("another user cannot read the checkout")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["platform"] == "linux/amd64"
    tree = tmp_path / "tree"
    assert (tree / "file").stat().st_uid == 65534
    assert stat.S_ISREG((tree / "dev/null").stat().st_mode)
    assert (tmp_path / "home/.cache/maid/images/oci-layout").exists()
    assert (tmp_path / "home/.cache/maid/images").stat().st_mode & 0o777 == 0o700


def test_root_without_the_right_to_make_devices(place: Place, maker: Maker, tmp_path: Path) -> None:
    from daemons import MAID

    data = _tar(("null", {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 3}, b""))
    reference = maker.index(maker.layout.image("linux/amd64", [maker.layout.gzip_layer(data)]))
    command = [MAID, "pull", reference, PLATFORM, "--unpack", tmp_path / "tree"]
    done = place.run("setpriv", "--bounding-set=-mknod", *command, check=False)
    assert done.returncode == 1
    assert "CAP_MKNOD" in done.stderr
    assert not (tmp_path / "tree").exists()
    done = place.run("unshare", "--user", "--map-root-user", *command, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "tree/null").is_file()
