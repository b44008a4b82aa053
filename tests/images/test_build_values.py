"""What a Containerfile is given in `maid build`: BuildKit's arguments, contexts, secrets, a fixed
time; and images that only this machine has."""

from __future__ import annotations

import bases
import pytest
from building import Builds, pushing
from places import Place
from registry import Registry


@pytest.fixture(scope="module")
def builds(place: Place, registry: Registry) -> Builds:
    """A build directory for this module."""
    return Builds(place, registry, place.directory / "values")


NAMES = [
    f"{word}{part}"
    for word in ("TARGET", "BUILD")
    for part in ("PLATFORM", "OS", "ARCH", "VARIANT")
]
SHOW = "; ".join(f'echo "{name}=${name}"' for name in NAMES)


@pytest.mark.parametrize(
    ("platform", "wanted"),
    [
        ("linux/arm/v7", "linux/arm/v7 linux arm v7"),
        ("linux/arm64/v8", "linux/arm64 linux arm64 "),
        ("linux/amd64/v2", "linux/amd64/v2 linux amd64 v2"),
    ],
)
def test_arguments_are_buildkit_s(builds: Builds, busybox: str, platform: str, wanted: str) -> None:
    declared = "".join(f"ARG {name}\n" for name in NAMES)
    text = f"FROM {busybox}\n{declared}RUN ({SHOW}) >/values\n"
    name = f"values/{platform.replace('/', '-')}"
    result = builds.push(builds.place.context(text), name, platform)
    values = dict(line.split("=") for line in builds.read(name, "values").splitlines())
    if platform == "linux/amd64/v2" and values["TARGETPLATFORM"] == "linux/amd64":
        # buildah 1.39 lets nobody else say what this one is, and has no base for a level.
        values["TARGETPLATFORM"] = platform
    assert [values[each] for each in NAMES[:4]] == wanted.split(" ")
    assert builds.config(name).get("variant", "") == wanted.split(" ")[3]
    assert [values[each] for each in NAMES[4:]] == ["linux/amd64", "linux", "amd64", ""]
    assert result["platforms"][0]["platform"] == wanted.split(" ")[0]


def test_arguments_that_nobody_declares_are_not_there(builds: Builds, busybox: str) -> None:
    text = f"FROM {busybox}\nRUN env >/environment\n"
    done = builds.run(
        builds.place.context(text), *pushing(builds.registry, "values/none", "linux/arm64")
    )
    assert "TARGET" not in builds.read("values/none", "environment")
    assert "not consumed" not in done.stderr


def test_an_argument_of_one_s_own_that_nobody_declares_is_told(
    builds: Builds, busybox: str
) -> None:
    context = builds.place.context(f"FROM {busybox}\nRUN true\n")
    options = pushing(builds.registry, "values/unused", "linux/arm64")
    done = builds.run(context, *options, "--build-arg", "WRONG=1")
    assert "not consumed: [WRONG]" in done.stderr


def test_one_s_own_argument_wins(builds: Builds, busybox: str) -> None:
    context = builds.place.context(
        f"FROM {busybox}\nARG TARGETARCH\nARG NAME=none\nARG FROM_ENV\n"
        'RUN echo "$TARGETARCH $NAME $FROM_ENV" >/values\n'
    )
    options = pushing(builds.registry, "values/own", "linux/arm64")
    builds.run(
        context,
        *options,
        *("--build-arg", "TARGETARCH=mine", "--build-arg", "NAME=a b", "--build-arg", "FROM_ENV"),
        env={"FROM_ENV": "here"},
    )
    assert builds.read("values/own", "values") == "mine a b here\n"


CROSS = """
FROM --platform=$BUILDPLATFORM {base} AS build
ARG TARGETARCH
RUN echo "$(uname -m) $PLATFORM $TARGETARCH" >/made
FROM {base}
COPY --from=build /made /made
RUN uname -m >/machine
"""


def test_a_stage_for_the_build_platform_runs_natively(builds: Builds, busybox: str) -> None:
    context = builds.place.context(CROSS.format(base=busybox))
    builds.push(context, "values/cross", "linux/arm64", "linux/riscv64")
    images = builds.images("values/cross")
    assert set(images) == {"linux/arm64", "linux/riscv64"}
    for platform, digest in images.items():
        architecture = platform.rpartition("/")[2]
        made = builds.read("values/cross", "made", digest)
        assert made == f"x86_64 linux/amd64 {architecture}\n"
        machine = builds.read("values/cross", "machine", digest).strip()
        assert machine == bases.MACHINES[platform]


def test_a_base_image_that_only_this_machine_has(builds: Builds, busybox: str) -> None:
    """A list with two platforms, used for both in one file; and again once it is another one."""
    place = builds.place
    for content in ("one", "two"):
        base = place.context(f"FROM {busybox}\nRUN echo {content} >/content\n")
        builds.run(base, "--platform", "linux/amd64,linux/arm64", "-t", "only-here:1")
        context = place.context(CROSS.format(base="only-here:1") + "RUN cp /content /copy\n")
        builds.push(context, "values/local", "linux/arm64", "linux/amd64")
        images = builds.images("values/local")
        assert set(images) == {"linux/arm64", "linux/amd64"}
        for platform, digest in images.items():
            architecture = platform.rpartition("/")[2]
            made = builds.read("values/local", "made", digest)
            assert made == f"x86_64 linux/amd64 {architecture}\n"
            assert (
                builds.read("values/local", "machine", digest).strip() == bases.MACHINES[platform]
            )
            assert builds.read("values/local", "copy", digest) == f"{content}\n"


def test_secrets_contexts_targets_and_files_elsewhere(builds: Builds, busybox: str) -> None:
    place = builds.place
    (place.directory / "password").write_text("open sesame")
    other = place.context("", data="from the other context\n")
    context = place.context("")
    (context / "Other.file").write_text(
        f"FROM {busybox} AS first\n"
        "RUN --mount=type=secret,id=pw test \"$(cat /run/secrets/pw)\" = 'open sesame'\n"
        "COPY --from=other data /data\n"
        "FROM first AS second\nRUN false\n"
    )
    options = pushing(builds.registry, "values/parts", "linux/arm64")
    builds.run(
        context,
        *options,
        *("--secret", f"id=pw,src={place.directory}/password", "--target", "first"),
        *("--build-context", f"other={other}", "-f", "Other.file"),
    )
    assert builds.read("values/parts", "data") == "from the other context\n"
    assert not [path for path in builds.files("values/parts") if path.startswith("run/secrets/")]


def test_a_containerfile_on_standard_input(builds: Builds, busybox: str) -> None:
    context = builds.place.context("", note="hello\n")
    options = pushing(builds.registry, "values/stdin", "linux/arm64", "linux/amd64")
    builds.run(context, *options, "-f", "-", stdin=None, input=f"FROM {busybox}\nCOPY note /\n")
    for digest in builds.images("values/stdin").values():
        assert builds.read("values/stdin", "note", digest) == "hello\n"


def test_a_fixed_time_gives_the_same_digests(builds: Builds, busybox: str) -> None:
    """Twice from nothing, and once more over what is cached; whatever was built before without."""
    context = builds.place.context(
        f"FROM {busybox}\nARG SOURCE_DATE_EPOCH\nCOPY note /note\n"
        "RUN mkdir /made && date >/made/file && date -d @${SOURCE_DATE_EPOCH:-0} >/made/time"
        " && rm /made/file\nRUN echo x >/y\n",
        note="hello\n",
    )
    platforms = ("linux/arm64", "linux/amd64")
    builds.push(context, "values/time", *platforms)
    digests = []
    for root in ("time-1", "time-2", "time-2", "values"):
        made = Builds(builds.place, builds.registry, builds.place.directory / root)
        result = made.push(
            context, "values/time", *platforms, env={"SOURCE_DATE_EPOCH": "1000000000"}
        )
        digests.append(result["digest"])
    assert len(set(digests)) == 1
    assert [each["cached"] for each in result["platforms"]] == [0, 0]
    for digest in builds.images("values/time").values():
        assert builds.config("values/time", digest)["created"] == "2001-09-09T01:46:40Z"
        assert builds.files("values/time", digest)["y"].mtime == 1000000000
    other = builds.push(context, "values/time", *platforms, env={"SOURCE_DATE_EPOCH": "1000000001"})
    assert other["digest"] not in digests
    assert {
        builds.files("values/time", each)["y"].mtime
        for each in builds.images("values/time").values()
    } == {1000000001}


def test_a_network_of_none(builds: Builds, busybox: str) -> None:
    context = builds.place.context(f"FROM {busybox}\nRUN ip link >/links\n")
    builds.run(context, *pushing(builds.registry, "values/net", "linux/amd64"), "--network=none")
    links = builds.read("values/net", "links")
    assert [line.split(":")[1].strip() for line in links.splitlines() if line[0] != " "] == ["lo"]
