"""What could have gone wrong in `maid build` without a word: names of images, here-documents, what
is kept and what is removed, and what is remembered."""

from __future__ import annotations

import fcntl
import io
import json
import os
import signal
import subprocess
import tarfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from maid.cli.build import _end, _ended_by_signals
from maid.errors import MaidError, UsageError
from maid.images import build_storage, local, programs
from maid.images.build import LOG_SECONDS, LOGS_KEPT, Ended, Publishing, forget_logs
from maid.images.build_request import MAX_CONTAINERFILE, Request, plan, pull_access
from maid.images.build_storage import EPOCHS, forget_epochs
from maid.images.buildah import Image, Root, buildah_version, read_images
from maid.images.containerfile import Needed, heredocs, images, instructions, with_platforms
from maid.images.export import Built, Known, Layers
from maid.images.index import Descriptor, DocumentError, read_config, read_manifest
from maid.images.layout import Layout
from maid.images.local import LocalImages, Stored, store
from maid.images.results import Look, check
from maid.images.skopeo import Access
from maid.images.surroundings import Runtime, Surroundings, target
from maid.platforms import parse

WHERE = Surroundings("", Runtime())
DIGEST = "sha256:" + "1" * 64


# Images of this machine -----------------------------------------------------------------------


@dataclass
class Provided:
    """What LocalImages does to a build's storage, in which `there` is at first."""

    there: list[Image] = field(default_factory=list)
    copied: list[str] = field(default_factory=list)
    ran: list[tuple[str, ...]] = field(default_factory=list)
    buildah: tuple[str, ...] = ("buildah",)

    def images(self) -> list[Image]:
        return self.there

    def run(self, *command: str) -> str:
        self.ran.append(command)
        return ""


class Here(LocalImages):
    """Images that are for every platform."""

    def _choose(self, image: Image, platform: Any) -> str:
        return image.id

    def _copy(self, image: str, storage: Any, waiting: Any) -> None:
        storage.copied.append(image)


def provide(storage: Provided, here: tuple[Image, ...], *names: str) -> set[str]:
    needed = [Needed(each) for each in names]
    made = target(parse("linux/arm64"), False)
    return Here(here, {}).provide(needed, made, storage)  # type: ignore[arg-type]


def test_an_image_with_several_names_gets_the_one_that_is_asked_for() -> None:
    image = Image("a" * 64, DIGEST, ("localhost/app:1", "localhost/app:2", "localhost/other:1"))
    storage = Provided()
    assert provide(storage, (image,), "app:2") == {"app:2"}
    assert storage.ran == [("buildah", "tag", image.id, "localhost/app:2")]


def test_what_is_older_here_does_not_replace_what_came_from_the_registry() -> None:
    name = "docker.io/library/base:latest"
    here = Image("a" * 64, DIGEST, (name,), created=100)
    newer = Provided([Image("b" * 64, "", (name,), created=200)])
    assert provide(newer, (here,), "base") == set()
    assert newer.copied == [] and newer.ran == []
    older = Provided([Image("b" * 64, "", (name,), created=50)])
    provide(older, (here,), "base")
    assert older.copied == [here.id]
    none = Provided()
    provide(none, (here,), "base")
    assert none.copied == [here.id]


def test_what_was_made_here_is_handed_over_whenever_it_was_made() -> None:
    name = "localhost/base:latest"
    storage = Provided([Image("b" * 64, "", (name,), created=200)])
    provide(storage, (Image("a" * 64, DIGEST, (name,), created=100),), "base")
    assert storage.copied == ["a" * 64]


def test_what_is_no_list_of_images_is_said() -> None:
    for text in ("{", '[{"names": []}]', "3", '[{"id": 3}]'):
        with pytest.raises(MaidError, match="which images"):
            read_images(text)


class Calls:
    """buildah and skopeo on the user's storage; what begins with `failing` fails."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *failing: str) -> None:
        self.made: list[str] = []
        self.failing = failing
        monkeypatch.setattr(local, "call", self)

    def __call__(self, command: list[str], *_: object) -> str:
        text = " ".join(command)
        self.made.append(text)
        if any(text.startswith(each) for each in self.failing):
            raise MaidError(f"{text} failed")
        return '{"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", ' \
            '"manifests": []}'  # fmt: skip


def stored(tmp_path: Path, as_list: bool, *names: str) -> Stored:
    layout = Layout.create(tmp_path / "layout")
    config = layout.write(b"{}", "application/vnd.oci.image.config.v1+json")
    manifest = (
        '{"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": '
        f'{{"mediaType": "{config.mediaType}", "digest": "{config.digest}", "size": 2}},'
        '"layers": []}'
    )
    image = layout.write(manifest.encode(), "application/vnd.oci.image.manifest.v1+json")
    return store(layout, [(parse("linux/arm64"), image)], names, as_list, {})


def test_a_list_that_is_named_is_no_failure_where_tidying_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Calls(monkeypatch, "buildah manifest rm")
    assert stored(tmp_path, True, "localhost/a:1").names == ("localhost/a:1",)
    Calls(monkeypatch, "buildah manifest rm", "buildah manifest add")
    with pytest.raises(MaidError, match="manifest add"):
        stored(tmp_path, True, "localhost/a:1")


def test_a_result_without_a_name_can_be_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = Calls(monkeypatch)
    one = stored(tmp_path, False)
    assert one.names == () and len(one.id) == 71
    assert calls.made[-1].endswith(f"containers-storage:@{one.id[7:]}")
    several = stored(tmp_path, True)
    (name,) = several.names
    assert name == f"localhost/maid-build:{several.descriptor.digest[7:19]}"
    assert any(call.startswith("buildah tag") and call.endswith(name) for call in calls.made)


def test_a_program_ends_when_the_build_does() -> None:
    def over() -> None:
        raise MaidError("over")

    began = time.monotonic()
    with pytest.raises(MaidError, match="over"):
        programs.run(["sleep", "60"], os.environ, over)
    assert time.monotonic() - began < 10


def test_a_program_that_cannot_be_started_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(MaidError, match="cannot be started: setpriv"):
        programs.run(["true"], os.environ)


# The Containerfile ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("RUN cat <<EOF >/file", [("", "EOF")]),
        ("RUN cat 3<<-'EOF' <<\"B\"", [("-", "EOF"), ("", "B")]),
        ("COPY <<a <<b /", [("", "a"), ("", "b")]),
        ("RUN x=$((1<<20)) && echo $x", []),
        ("RUN read z <<<word", []),
        ("RUN read z <<< word", []),
        ("RUN sh -c 'cat <<EOF'", []),
        ("RUN echo 1 << 2", []),
    ],
)
def test_what_begins_a_here_document(line: str, found: list[tuple[str, str]]) -> None:
    assert heredocs(line) == found


def test_a_shift_does_not_hide_the_stages_behind_it() -> None:
    text = "FROM a\nRUN x=$((1<<word))\nRUN read z <<<word\nFROM b\n"
    assert images(text, {}) == [Needed("a"), Needed("b")]


def test_lines_end_at_newlines_alone() -> None:
    text = "FROM a\nRUN echo x\x0cFROM hidden\u2028FROM too\r\nFROM --platform=linux/amd64 b\r\n"
    assert [each.name for each in instructions(text)] == ["FROM", "RUN", "FROM"]
    assert with_platforms(text, "linux/arm64") == text.replace(
        "FROM a", "FROM --platform=linux/arm64 a"
    )


def test_its_bytes_stay_what_they_are(tmp_path: Path) -> None:
    data = "FROM a\r\nRUN echo é ".encode("latin-1") + b"\xff\n"
    (tmp_path / "Containerfile").write_bytes(data)
    assert plan(Request(tmp_path)).text.encode(errors="surrogateescape") == data


def test_what_is_no_file_is_no_containerfile(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "Containerfile")
    for file in ("", "/dev/zero"):
        with pytest.raises(UsageError, match="no regular file"):
            plan(Request(tmp_path, file=file))
    (tmp_path / "big").write_bytes(b"#" * (MAX_CONTAINERFILE + 1))
    with pytest.raises(UsageError, match="4 MiB"):
        plan(Request(tmp_path, file="big"))


# The command line -----------------------------------------------------------------------------


@pytest.fixture
def context(tmp_path: Path) -> Path:
    """A directory with a Containerfile."""
    (tmp_path / "Containerfile").write_text("FROM base\n")
    return tmp_path


@pytest.mark.parametrize(
    ("output", "tags", "wanted"),
    [
        ("out", ("app:1", "app:2", "lib:1"), ["1", "2"]),
        ("out", ("app",), ["latest"]),
        ("out:own", ("app:1",), ["own"]),
        ("out", (), [""]),
    ],
)
def test_a_layout_gets_the_tags(
    context: Path, output: str, tags: tuple[str, ...], wanted: list[str]
) -> None:
    made = plan(Request(context, tags=tags, output=f"oci:{context}/{output}"))
    assert [each.tag for each in made.destinations] == wanted
    assert {each.name for each in made.destinations} == {f"{context}/out"}


def test_options_for_the_tags_registry_do_not_weaken_another_one(context: Path) -> None:
    access = Access("/auth.json", "/certificates", False)
    tags = ("one.example:5000/app:1",)
    push = Request(context, tags=tags, push=True, access=access)
    assert pull_access(push, {"one.example:5000/base", "one.example:5000/b@" + DIGEST}) == access
    assert pull_access(push, set()) == access
    for other in ("debian", "two.example/base", "one.example:5001/base", "What?"):
        found = pull_access(push, {"one.example:5000/base", other})
        assert found == Access("/auth.json"), other
    assert pull_access(Request(context, tags=tags, access=access), {"debian"}) == access


# The build directory --------------------------------------------------------------------------


def test_a_directory_whose_name_would_be_misread_is_refused(tmp_path: Path) -> None:
    for name in ("a+b", "a:b", "a[1]", "a@b", "a,b"):
        with pytest.raises(MaidError, match="in its path"):
            Root(tmp_path / name).create()
        assert not (tmp_path / name).exists()


def test_a_directory_that_another_one_sweeps_away_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Root(tmp_path).create()
    flock = fcntl.flock
    swept: list[Path] = []

    def sweeping(file: int, kind: int) -> None:
        """Another maid's sweep, just before the lock."""
        if not swept:
            swept.extend((tmp_path / "work").iterdir())
            for each in swept:
                each.rmdir()
        flock(file, kind)

    monkeypatch.setattr(fcntl, "flock", sweeping)
    with root.work(WHERE) as work:
        assert swept and work.is_dir() and work not in swept
        (work / "file").touch()
    assert list((tmp_path / "work").iterdir()) == []


def test_what_a_killed_one_left_goes_and_what_is_used_stays(tmp_path: Path) -> None:
    root = Root(tmp_path).create()
    (tmp_path / "work/left/deep").mkdir(parents=True)
    with root.work(WHERE) as first, root.work(WHERE) as second:
        assert first.is_dir() and second.is_dir()
        assert set((tmp_path / "work").iterdir()) == {first, second}


@pytest.fixture
def trial(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The exit status of the next trials of overlay."""
    statuses: list[int] = []

    def run(argv: list[str], **_: Any) -> subprocess.CompletedProcess[bytes]:
        return subprocess.CompletedProcess(argv, statuses.pop(0), b"", b"mount: not permitted")

    monkeypatch.setattr(subprocess, "run", run)
    return statuses


def test_one_failed_trial_is_told_and_tried_again(tmp_path: Path, trial: list[int]) -> None:
    root = Root(tmp_path).create()
    trial += [1, 0]
    driver, why = root.driver(WHERE, tmp_path)
    assert driver == "vfs" and "mount: not permitted" in why
    assert root.driver(WHERE, tmp_path) == ("overlay", "")
    assert root.driver(WHERE, tmp_path) == ("overlay", "")  # remembered: no trial is left


def test_a_record_that_says_nothing_is_not_believed(tmp_path: Path, trial: list[int]) -> None:
    root = Root(tmp_path).create()
    for nonsense in (b"", b"vfs\n", b"\xff", b"--help"):
        (tmp_path / "driver").write_bytes(nonsense)
        trial.append(0)
        assert root.driver(WHERE, tmp_path) == ("overlay", "")
        assert trial == []


def test_programs_that_do_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failures: list[Exception] = [
        subprocess.TimeoutExpired("buildah", 60),
        FileNotFoundError(2, "x"),
    ]

    def run(argv: list[str], **_: Any) -> subprocess.CompletedProcess[bytes]:
        raise failures.pop()

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(MaidError, match="cannot be started"):
        buildah_version(WHERE)
    with pytest.raises(MaidError, match="has not ended"):
        Root(tmp_path).create().driver(WHERE, tmp_path)


def test_each_time_has_a_storage_of_its_own_and_the_last_ones_are_kept(tmp_path: Path) -> None:
    root = Root(tmp_path).create()
    storages = tmp_path / "storage"
    with build_storage.opened(root, "linux-arm64", "", tmp_path / "a", "vfs", WHERE) as none:
        pass
    held = build_storage.opened(root, "linux-arm64", "0", tmp_path / "w0", "vfs", WHERE)
    used = held.__enter__()
    os.utime(storages / "linux-arm64-epoch-0/lock", (0, 0))
    for number in range(1, 5):
        work = tmp_path / f"w{number}"
        with build_storage.opened(root, "linux-arm64", str(number), work, "vfs", WHERE) as now:
            assert now.graph not in (used.graph, none.graph)
        os.utime(storages / f"linux-arm64-epoch-{number}/lock", (number, number))
    assert {each.name for each in storages.iterdir()} == {
        *("linux-arm64", "linux-arm64-epoch-0"),  # which is in use
        *(f"linux-arm64-epoch-{number}" for number in (3, 4)),
    }
    held.__exit__(None, None, None)
    forget_epochs(root, "linux-arm64", WHERE)
    assert len(list(storages.glob("*-epoch-*"))) == EPOCHS


def test_logs_of_running_builds_and_of_today_stay(tmp_path: Path) -> None:
    running, now = subprocess.Popen(["sleep", "60"]), time.time()
    gone = subprocess.Popen(["true"])
    gone.wait()
    try:
        for number in range(LOGS_KEPT + 5):
            process = running if number == 0 else gone
            directory = tmp_path / f"20200101-0000{number:02}-{process.pid}"
            directory.mkdir()
            (directory / "linux-arm64.log").touch()
            age = 0 if number == 1 else LOG_SECONDS + 60
            for each in (directory / "linux-arm64.log", directory):
                os.utime(each, (now - age, now - age))
        forget_logs(tmp_path)
        kept = sorted(int(each.name.split("-")[1]) for each in tmp_path.iterdir())
        assert kept == [0, 1, *range(6, LOGS_KEPT + 5)]
    finally:
        running.kill()
        running.wait()


# What is remembered, and what is looked at ----------------------------------------------------


def test_a_diff_id_that_is_none_becomes_no_path(tmp_path: Path) -> None:
    layers = Layers(Layout.create(tmp_path / "layers"))
    for wrong in ("sha256:../../../outside", "/etc/passwd", ""):
        assert layers.find(wrong) is None
        with pytest.raises(DocumentError):
            layers.note(wrong, Known(DIGEST, 1))
    assert not list(tmp_path.glob("**/outside"))


def test_what_is_compressed_here_is_found_again(tmp_path: Path) -> None:
    layers = Layers(Layout.create(tmp_path / "layers"))
    (tmp_path / "file").write_bytes(b"x")
    known = layers.take(Descriptor(mediaType="", digest=DIGEST, size=1), tmp_path / "file")
    assert layers.find(DIGEST) is None
    layers.note(DIGEST, known)
    assert layers.find(DIGEST) == known


def test_what_is_not_looked_through_is_known(tmp_path: Path) -> None:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        for name in ("a", "b"):
            member = tarfile.TarInfo(name)
            member.size = 600
            archive.addfile(member, io.BytesIO(bytes(600)))
    for limit, is_whole in ((1000, False), (2000, True)):
        data.seek(0)
        look = Look(parse("linux/arm64"), limit)
        assert list(look.foreign_files([data])) == [] and look.is_whole is is_whole


def test_a_base_that_is_not_found_is_told(tmp_path: Path) -> None:
    layout = Layout.create(tmp_path / "layout")
    config_data = b'{"architecture": "arm64", "os": "linux"}'
    config = layout.write(config_data, "application/vnd.oci.image.config.v1+json")
    for noted, said in (
        ({"org.opencontainers.image.base.name": "one.example/base:1"}, ["one.example/base:1"]),
        ({}, []),
    ):
        document = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {"mediaType": config.mediaType, "digest": config.digest, "size": config.size},
            "layers": [],
            "annotations": noted,
        }
        image = layout.write(json.dumps(document).encode(), str(document["mediaType"]))
        manifest = read_manifest(layout.read(image))
        built = Built(manifest, read_config(config_data), config_data, None)
        warnings = check(image, built, layout, parse("linux/arm64")).warnings
        assert len(warnings) == len(said)
        assert all(name in warning for name, warning in zip(said, warnings, strict=True))


# Signals --------------------------------------------------------------------------------------


def test_a_second_signal_ends_what_the_first_one_takes() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Ended) as first, _ended_by_signals():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            with pytest.raises(Ended):
                os.kill(os.getpid(), signal.SIGTERM)
            assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL  # a third one
    assert first.value.status == 143
    assert signal.getsignal(signal.SIGTERM) == before


def test_what_is_said_of_an_end_is_true() -> None:
    assert _end(Publishing()) == "ended; nothing was published"
    assert "shows what one.example/a:1 is now" in _end(Publishing(("one.example/a:1",)))
    assert "it was published" in _end(Publishing(("one.example/a:1",), done=True))
