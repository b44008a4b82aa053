"""How `maid build` ends when it does not end well: what is told, what is published (nothing), and
what stays behind (what was built, and else nothing)."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from building import Builds, pushing
from daemons import MAID, until
from places import Place
from registry import Registry

TWO = ("linux/amd64", "linux/arm64")


@pytest.fixture(scope="module")
def builds(place: Place, registry: Registry) -> Builds:
    """A build directory for this module."""
    return Builds(place, registry, place.directory / "ends")


def processes_below(root: Path) -> list[str]:
    """The processes with something of a build directory in their command line or environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            texts = [(process / name).read_bytes() for name in ("cmdline", "environ")]
        except OSError:
            continue
        if any(bytes(root) in text for text in texts):
            found.append(f"{process.name} {texts[0].decode()}")
    return found


def mounts_below(root: Path) -> list[str]:
    """The mounts below a directory that this process sees."""
    return [
        line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(root) in line
    ]


FAILS = """FROM {base}
RUN echo done >/done
RUN echo begins; test $(uname -m) != aarch64 || exit 7
RUN echo later >/later
"""


def test_one_platform_that_fails_leaves_the_tag_as_it_was(builds: Builds, busybox: str) -> None:
    good = builds.place.context(f"FROM {busybox}\nRUN true\n")
    before = builds.push(good, "ends/tag", *TWO)["digest"]
    images = builds.registry.manifests("ends/tag")
    context = builds.place.context(FAILS.format(base=busybox))
    done = builds.run(context, *pushing(builds.registry, "ends/tag", *TWO), check=False)
    assert done.returncode == 1 and done.stdout == ""
    assert builds.registry.digest("ends/tag", "1") == before
    assert builds.registry.manifests("ends/tag") == images
    summary = done.stderr[done.stderr.index("linux/arm64 failed at STEP") :]
    assert summary.startswith("linux/arm64 failed at STEP 3/4: RUN echo begins; test")
    assert "    begins\n" in summary and "exit status 7" in summary
    log = re.search(r"log: (.*)", summary)
    assert log is not None and "STEP 2/4: RUN echo done" in Path(log[1]).read_text()
    assert "nothing was published: linux/arm64 failed" in summary
    fixed = builds.place.context(FAILS.format(base=busybox).replace("exit 7", "true"))
    cached = {
        each["platform"]: each["cached"]
        for each in builds.push(fixed, "ends/tag", *TWO)["platforms"]
    }
    assert cached["linux/arm64"] == 1
    assert builds.registry.digest("ends/tag", "1") != before


def test_the_others_are_ended_or_built_on(builds: Builds, busybox: str) -> None:
    context = builds.place.context(
        f"FROM {busybox}\nRUN test $(uname -m) != aarch64 || exit 7\nRUN sleep 2; echo slow\n"
    )
    three = ("linux/arm64", "linux/amd64", "linux/riscv64")
    options = (*pushing(builds.registry, "ends/others", *three), "--jobs", "2")
    result = builds.json(context, *options, status=1)
    states = {each["platform"]: each["state"] for each in result["platforms"]}
    assert states == dict(zip(three, ("failed", "ended", "ended"), strict=True))
    assert result["platforms"][2]["seconds"] == 0
    assert not result["published"] and result["digest"] is None
    assert builds.containers() == []
    result = builds.json(context, *options, "--keep-going", status=1)
    states = {each["platform"]: each["state"] for each in result["platforms"]}
    assert states == dict(zip(three, ("failed", "built", "built"), strict=True))
    assert result["platforms"][0]["step"].startswith("STEP 2/3: RUN test")
    assert builds.registry.tags("ends/others") == []


def test_a_platform_that_cannot_be_executed_ends_it_before_it_begins(
    builds: Builds, busybox: str
) -> None:
    context = builds.place.context(f"FROM {busybox}\nRUN true\n")
    options = pushing(builds.registry, "ends/never", "linux/amd64", "linux/ppc64le")
    done = builds.run(context, *options, check=False)
    assert done.returncode == 3
    assert "nothing was built" in done.stderr and "linux/ppc64le" in done.stderr
    assert "STEP" not in done.stderr and builds.registry.tags("ends/never") == []


def test_without_a_daemon_this_machine_s_platforms_can_be_built(
    builds: Builds, busybox: str
) -> None:
    context = builds.place.context(f"FROM {busybox}\nRUN true\n")
    nobody = {"MAID_SOCKET": str(builds.place.directory / "nobody")}
    options = pushing(builds.registry, "ends/alone", *TWO)
    done = builds.run(context, *options, check=False, env=nobody)
    assert done.returncode == 4 and "no maid daemon answers" in done.stderr
    builds.run(context, *pushing(builds.registry, "ends/alone", "linux/amd64"), env=nobody)
    assert builds.config("ends/alone")["architecture"] == "amd64"


WRONG: list[tuple[list[str], str]] = [
    (["--platform", "linux/arm64,nonsense", "-t", "x"], "neither an operating system"),
    (["--platform", "linux/arm64,", "-t", "x"], "is not a platform"),
    (["--platform", "windows/amd64", "-t", "x"], "maid builds for linux"),
    (["-f", "missing", "-t", "x"], "no Containerfile missing"),
    (["--push"], "--tag REPOSITORY:TAG"),
    (["--push", "-t", "oci:there"], "not a repository's"),
    (["--push", "-t", "one.example/a:1", "-t", "one.example/b:1"], "2 repositories"),
    (["--push", "-t", "one.example/a:1", "--output", "oci:out"], "two destinations"),
    (["--output", "docker://one.example/a:1"], "--output"),
    (["-t", "Upper:1"], "lower case"),
    (["-t", "x", "--network", "bridge"], "--network"),
    (["-t", "x", "--format", "zip"], "--format"),
    (["-t", "x", "--annotation", "novalue"], "--annotation"),
    (["-t", "x", "--build-arg", "=v"], "--build-arg"),
    (["-t", "x", "--tls-verify", "perhaps"], "--tls-verify"),
]


@pytest.mark.parametrize(("options", "said"), WRONG)
def test_what_makes_no_sense_is_told_at_once(builds: Builds, options: list[str], said: str) -> None:
    context = builds.place.context("FROM nowhere.example/x\n")
    done = builds.run(context, *options, check=False)
    assert done.returncode == 2 and said in done.stderr, done.stderr
    assert "Traceback" not in done.stderr


def test_a_context_that_is_none(builds: Builds) -> None:
    place = builds.place
    empty = place.directory / "empty"
    empty.mkdir()
    for context, said in (
        (empty, "neither a Containerfile nor a Dockerfile"),
        (empty / "missing", "No such file or directory"),
        (place.directory / "storage.conf", "is no directory"),
    ):
        done = builds.run(context, "-t", "x", check=False)
        assert done.returncode == 2 and said in done.stderr, done.stderr
    done = builds.run(empty, "-t", "x", "-f", "-", check=False)
    assert done.returncode == 2 and "standard input is empty" in done.stderr


def test_a_time_that_is_none(builds: Builds, busybox: str) -> None:
    context = builds.place.context(f"FROM {busybox}\n")
    done = builds.run(context, "-t", "x", check=False, env={"SOURCE_DATE_EPOCH": "yesterday"})
    assert done.returncode == 2 and "SOURCE_DATE_EPOCH" in done.stderr


def test_a_program_that_is_not_installed(builds: Builds, busybox: str) -> None:
    context = builds.place.context(f"FROM {busybox}\n")
    done = builds.run(context, "-t", "x", check=False, env={"PATH": str(builds.place.directory)})
    assert done.returncode == 1 and "apt-get install buildah" in done.stderr


def test_an_output_that_cannot_be_written(builds: Builds, busybox: str, tmp_path: Path) -> None:
    context = builds.place.context(f"FROM {busybox}\nRUN true\n")
    (tmp_path / "file").write_text("")
    for output, said in (
        ("/proc/layout", "--output: /proc cannot be written to"),
        (f"{tmp_path}/file", "no directory"),
        (f"{tmp_path}", "is not empty"),
    ):
        done = builds.run(context, "-o", f"oci:{output}:1", check=False)
        assert done.returncode in (1, 2) and said in done.stderr, done.stderr
        assert "STEP" not in done.stderr


def test_a_full_disk_is_named(builds: Builds, busybox: str) -> None:
    context = builds.place.context(f"FROM {busybox}\nRUN dd if=/dev/zero of=/big bs=1M count=40\n")
    small = builds.place.directory / "small"
    small.mkdir()
    script = 'mount -t tmpfs -o size=24m none "$1" && shift && exec "$@"'
    inside = ("unshare", "--mount", "sh", "-c", script, "sh", small)
    done = builds.place.run(
        *inside, MAID, "build", "--root", small, "-t", "x", context, check=False
    )
    assert done.returncode == 1
    assert "No space left on device" in done.stderr or "no space left" in done.stderr
    assert f"free some space: {small}" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_base_of_another_platform_is_refused(builds: Builds, busybox: str) -> None:
    one = f"{busybox.rpartition(':')[0]}:linux-amd64"
    for first in (f"FROM {one}", f"FROM --platform=linux/amd64 {busybox}"):
        context = builds.place.context(f"{first}\nRUN true\n")
        options = pushing(builds.registry, "ends/base", "linux/arm64")
        done = builds.run(context, *options, check=False)
        assert done.returncode == 1
        assert "begins with one for linux/amd64, so it is none for linux/arm64" in done.stderr
        done = builds.run(context, *options, "--format", "docker", check=False)
        assert done.returncode == 1 and "begins with one for linux/amd64" in done.stderr
    assert builds.registry.tags("ends/base") == []


def test_programs_of_another_architecture_are_named(builds: Builds, busybox: str) -> None:
    context = builds.place.context(
        f"FROM --platform=$BUILDPLATFORM {busybox} AS tools\n"
        f"FROM {busybox}\nCOPY --from=tools /usr/bin/busybox /opt/tool\nRUN cp /bin/busybox /own\n"
    )
    for form in ("oci", "docker"):
        options = (*pushing(builds.registry, "ends/elf", *TWO), f"--format={form}")
        warnings = {
            each["platform"]: each["warnings"]
            for each in builds.json(context, *options)["platforms"]
        }
        assert warnings["linux/amd64"] == []
        (warning,) = warnings["linux/arm64"]
        assert "/opt/tool (amd64)" in warning and "/own" not in warning and "/usr" not in warning


SLOW = "FROM {base}\nRUN echo {name} >/name\nRUN sleep 300 & sleep 1000\n"


@pytest.fixture
def slow(builds: Builds, busybox: str) -> Iterator[subprocess.Popen[bytes]]:
    """A build of two platforms that is in the middle of a long step."""
    context = builds.place.context(SLOW.format(base=busybox, name="slow"))
    process = builds.place.start(
        *("build", "--root", builds.root, *pushing(builds.registry, "ends/slow", *TWO), context),
        stderr=subprocess.PIPE,
    )
    assert process.stderr is not None
    seen = 0
    while seen < 2:
        line = process.stderr.readline()
        assert line, "it ended"
        seen += b"RUN sleep" in line
    time.sleep(0.3)
    yield process
    process.kill()
    process.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_goes_on_when_it_is_ended(
    builds: Builds, busybox: str, slow: subprocess.Popen[bytes], number: signal.Signals
) -> None:
    assert processes_below(builds.root)
    slow.send_signal(number)
    _, said = slow.communicate(timeout=20)
    assert until(lambda: not processes_below(builds.root)), processes_below(builds.root)
    assert mounts_below(builds.root) == []
    assert builds.registry.tags("ends/slow") == []
    assert builds.place.leftovers() == []
    if number != signal.SIGKILL:
        assert slow.returncode == 128 + number
        assert b"ended; nothing was published" in said and b"Traceback" not in said
        assert list((builds.root / "work").iterdir()) == []
        assert builds.containers() == []
    # What was done is not done again, and what was left is cleared.
    context = builds.place.context(f"FROM {busybox}\nRUN echo slow >/name\n")
    result = builds.push(context, "ends/after", *TWO)
    assert [each["cached"] for each in result["platforms"]] == [1, 1]
    assert list((builds.root / "work").iterdir()) == [] and builds.containers() == []


def test_two_builds_of_one_platform_at_once(builds: Builds, busybox: str) -> None:
    running = []
    for name in ("first", "second"):
        text = f"FROM {busybox}\nRUN echo {name} >/name\nRUN sleep 1\n"
        options = pushing(builds.registry, f"ends/{name}", "linux/arm64")
        running.append(
            builds.place.start(
                *("build", "--root", builds.root, *options, builds.place.context(text)),
                stderr=subprocess.PIPE,
            )
        )
    for process in running:
        _, said = process.communicate(timeout=60)
        assert process.returncode == 0, said
    assert [builds.read(f"ends/{name}", "name") for name in ("first", "second")] == [
        "first\n",
        "second\n",
    ]
    assert builds.containers() == []
