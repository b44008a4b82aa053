"""What `maid build` reads in buildah's output, and in the layers that come of it."""

from __future__ import annotations

import io
import tarfile

import pytest

from maid.cli.building import summary
from maid.images.progress import Progress, State
from maid.images.results import Look
from maid.platforms import parse


def read(*lines: str) -> tuple[Progress, list[str]]:
    """A build that printed these lines; and what of them is shown."""
    progress = Progress("linux/arm64", ignored_arguments=frozenset({"TARGETARCH", "BUILDOS"}))
    return progress, [shown for line in lines if (shown := progress.read(line)) is not None]


def test_steps_are_counted() -> None:
    progress, shown = read(
        "[1/2] STEP 1/3: FROM a AS b",
        "[1/2] STEP 2/3: RUN x",
        "--> Using cache abc",
        "[2/2] STEP 1/1: FROM b",
    )
    step = progress.step
    assert step is not None and (step.number, step.of, step.stage, step.stages) == (1, 1, 2, 2)
    assert str(step) == "[2/2] STEP 1/1: FROM b"
    assert (progress.steps, progress.cached, len(shown)) == (3, 1, 4)


def test_the_step_that_failed_its_last_lines_and_why() -> None:
    progress, _ = read(
        "STEP 1/2: FROM a",
        "noise of an earlier step",
        'STEP 2/2: RUN echo "a": b',
        *(f"line {number}" for number in range(20)),
        'Error: building at STEP "RUN echo "a": b": while running runtime: exit status 7',
    )
    assert progress.error == "while running runtime: exit status 7"
    assert progress.tail[0] == "line 11" and len(progress.tail) == 10
    assert "noise" not in "".join(progress.tail)
    progress, _ = read("Error: no FROM statement found")
    assert progress.error == "no FROM statement found"


def test_what_maid_gave_and_nobody_asked_for_is_not_told() -> None:
    warning = "[Warning] one or more build args were not consumed: [{}]"
    _, shown = read(warning.format("BUILDOS TARGETARCH"))
    assert shown == []
    _, shown = read(warning.format("BUILDOS MINE TARGETARCH"))
    assert shown == [warning.format("MINE")]


def test_the_shim_s_word_is_taken_and_not_shown() -> None:
    progress, shown = read("maid-runtime: mounted", "maid-runtime: its programs are its own")
    assert shown == [] and progress.accelerated
    assert progress.not_accelerated == "its programs are its own"
    progress, shown = read("maid-runtime: there is no store", "maid-runtime: MAID_INIT: mounted")
    assert shown == [] and not progress.accelerated
    assert progress.not_accelerated == "there is no store"


def test_a_base_image_of_another_platform_is_noticed() -> None:
    progress, _ = read(
        "STEP 1/2: FROM a",
        "WARNING: image platform ({amd64 linux  [] }) does not match the expected platform"
        " ({arm64 linux  [] })",
    )
    assert progress.mismatch.startswith("FROM a: image platform ({amd64")


def test_how_it_ended_in_a_line() -> None:
    progress = Progress("linux/arm64", started=1.0, ended=3.5, steps=4, cached=3)
    progress.state = State.BUILT
    assert summary(progress) == "built in 2.5 s, 3 of 4 steps cached"
    progress.state, progress.error = State.FAILED, "exit status 1"
    assert summary(progress) == "failed: exit status 1"


HEADS = {
    "amd64": b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\x00\x3e\x00",
    "386": b"\x7fELF\x01\x01\x01" + bytes(9) + b"\x02\x00\x03\x00",
    "arm64": b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\x00\xb7\x00",
    "s390x": b"\x7fELF\x02\x02\x01" + bytes(9) + b"\x00\x02\x00\x16",
}


def layer(*files: tuple[str, int, bytes]) -> io.BytesIO:
    """A layer of files: path, mode and content."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        for path, mode, content in files:
            member = tarfile.TarInfo(path)
            member.mode, member.size = mode, len(content)
            archive.addfile(member, io.BytesIO(content))
    data.seek(0)
    return data


@pytest.mark.parametrize(
    ("platform", "found"),
    [
        ("linux/arm64", ["/bin/x (amd64)", "/bin/y (386)", "/lib/z.so.1 (s390x)"]),
        ("linux/amd64", ["/lib/z.so.1 (s390x)"]),
    ],
)
def test_programs_that_a_platform_does_not_execute(platform: str, found: list[str]) -> None:
    layers = [
        layer(
            ("bin/x", 0o755, HEADS["amd64"]),
            ("./bin/y", 0o755, HEADS["386"]),
            ("bin/script", 0o755, b"#!/bin/sh\n"),
            ("bin/short", 0o755, b"\x7fELF"),
            ("boot/firmware.elf", 0o644, HEADS["s390x"]),
            ("usr/s390x-linux-gnu/lib/libc.so.6", 0o755, HEADS["s390x"]),
        ),
        io.BytesIO(b"this is no tar file"),
        layer(("lib/z.so.1", 0o644, HEADS["s390x"])),
    ]
    seen = [f"{path} ({name})" for path, name in Look(parse(platform)).foreign_files(layers)]
    assert seen == found
