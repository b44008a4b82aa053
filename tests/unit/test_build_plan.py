"""What `maid build` makes of its command line and of a Containerfile, before anything is done."""

from __future__ import annotations

from pathlib import Path

import pytest

from maid.errors import MaidError, UsageError
from maid.images.build_request import MEMORY_PER_BUILD, Request, choose_jobs, plan
from maid.images.containerfile import Needed, expand, images, instructions, with_platforms
from maid.images.surroundings import target
from maid.platforms import parse


@pytest.fixture
def context(tmp_path: Path) -> Path:
    """A directory with a Containerfile."""
    (tmp_path / "Containerfile").write_text("FROM base\n")
    return tmp_path


def test_platforms_are_normalised_and_each_built_once(context: Path) -> None:
    names = ("linux/arm64,linux/amd64", "aarch64", "linux/arm", "linux/x86_64", "linux/arm/v7")
    made = plan(Request(context, platforms=names))
    assert list(map(str, made.platforms)) == ["linux/arm64", "linux/amd64", "linux/arm/v7"]
    assert made.makes_index


def test_one_platform_makes_no_index_but_where_one_is_wanted(context: Path) -> None:
    assert not plan(Request(context, platforms=("linux/arm64",))).makes_index
    assert plan(Request(context, platforms=("linux/arm64",), index=True)).makes_index


def test_names_of_this_machine(context: Path) -> None:
    names = plan(
        Request(context, tags=("app", "team/app:2", "one.example/app", "localhost:5000/a"))
    )
    assert names.names == (
        "localhost/app:latest",
        "localhost/team/app:2",
        "one.example/app:latest",
        "localhost:5000/a:latest",
    )
    assert names.destinations == ()


def test_the_containerfile_comes_before_the_dockerfile(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM docker\n")
    assert plan(Request(tmp_path)).text == "FROM docker\n"
    (tmp_path / "Containerfile").write_text("FROM container\n")
    assert plan(Request(tmp_path)).text == "FROM container\n"
    assert plan(Request(tmp_path, file="Dockerfile")).text == "FROM docker\n"


def test_a_full_layout_is_refused_before_anything_is_built(context: Path) -> None:
    (context / "full").mkdir()
    (context / "full/file").write_text("")
    with pytest.raises(UsageError, match="not empty"):
        plan(Request(context, output=f"oci:{context}/full:1"))
    with pytest.raises(MaidError, match="oci-layout"):
        (context / "full/oci-layout").write_text("{")
        plan(Request(context, output=f"oci:{context}/full:1"))


@pytest.mark.parametrize(
    ("wanted", "platforms", "cores", "memory", "jobs"),
    [
        (0, 4, 2, 64, 2),
        (0, 4, 16, 64, 4),
        (0, 4, 16, 5, 2),
        (0, 4, 16, 1, 1),
        (3, 4, 1, 1, 3),
        (9, 4, 1, 1, 4),
    ],
)
def test_jobs_by_cores_and_memory(
    wanted: int, platforms: int, cores: int, memory: int, jobs: int
) -> None:
    gibibytes = memory << 30
    assert choose_jobs(wanted, platforms, cores, gibibytes) == jobs
    assert MEMORY_PER_BUILD == 2 << 30


@pytest.mark.parametrize(
    ("platform", "spelled"),
    [
        ("linux/arm", "linux/arm/v7"),
        ("linux/arm/v6", "linux/arm/v6"),
        ("linux/arm64/v8", "linux/arm64"),
        ("linux/arm64/v9", "linux/arm64"),
        ("linux/amd64/v3", "linux/amd64"),
        ("linux/s390x", "linux/s390x"),
    ],
)
def test_buildah_is_asked_for_platforms_that_it_knows(platform: str, spelled: str) -> None:
    assert target(parse(platform), False).spelled == spelled


FILE = r"""# syntax=docker/dockerfile:1
ARG BASE=debian
ARG TAG="13"
ARG NONE
FROM --platform=$BUILDPLATFORM ${BASE}:${TAG} AS Builder
# comment
RUN make \
  # comment within
    all
RUN <<EOF cat
FROM not/an/image
EOF
FROM scratch AS empty
COPY --from=builder /x /y
COPY --from=0 / /
COPY --chown=1:1 --from=other/image:${V:-1} / /
RUN --mount=type=bind,from=tool,target=/x --network=none true
from builder as last
FROM $NONE
"""


def test_images_that_a_containerfile_names() -> None:
    found = images(FILE, {"BUILDPLATFORM": "linux/amd64", "BASE": "ubuntu"})
    assert found == [
        Needed("ubuntu:13", "linux/amd64"),
        Needed("other/image:1"),
        Needed("tool"),
    ]


def test_instructions_over_several_lines() -> None:
    found = [(each.name, each.line) for each in instructions(FILE)]
    assert found[4:8] == [("RUN", 6), ("RUN", 9), ("FROM", 12), ("COPY", 13)]
    run = next(each for each in instructions(FILE) if each.name == "RUN")
    assert run.words == ("make", "all")
    (windows,) = instructions("# escape=`\nFROM a`\n  b\n")
    assert windows.words == ("a", "b")


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("$A/${B}", "1/"),
        ("${B:-two}-${A:-two}", "two-1"),
        ("${A:+set}${B:+set}", "set"),
        ("${EMPTY-x}${EMPTY:-y}", "y"),
        (r"\$A", "$A"),
        ("plain:1", "plain:1"),
    ],
)
def test_arguments_in_names(text: str, expanded: str) -> None:
    assert expand(text, {"A": "1", "EMPTY": ""}) == expanded


def test_one_stage_s_platform_is_kept_from_the_others() -> None:
    text = (
        "FROM --platform=$BUILDPLATFORM a AS b\nRUN <<E\nFROM x\nE\n  from c\nCOPY --from=b / /\n"
    )
    assert with_platforms(text, "linux/arm/v7") == text.replace(
        "  from c", "  from --platform=linux/arm/v7 c"
    )
    without = "FROM a\nFROM b\n"
    assert with_platforms(without, "linux/arm64") == without
