"""What names an image: docker's spelling and skopeo's, and nothing that is neither."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maid.errors import UsageError
from maid.images.pull import parse_destination
from maid.images.references import Reference, parse_layout, parse_reference

DIGEST = f"sha256:{'0f' * 32}"


@pytest.mark.parametrize(
    ("text", "expected", "argument"),
    [
        ("busybox", Reference("docker", "busybox"), "docker://busybox:latest"),
        ("app:1.0", Reference("docker", "app", "1.0"), "docker://app:1.0"),
        ("docker://app:1.0", Reference("docker", "app", "1.0"), "docker://app:1.0"),
        ("a.example/b/c", Reference("docker", "a.example/b/c"), "docker://a.example/b/c:latest"),
        ("h:5000/b", Reference("docker", "h:5000/b"), "docker://h:5000/b:latest"),
        ("h:5000/b:1", Reference("docker", "h:5000/b", "1"), "docker://h:5000/b:1"),
        ("[::1]:5000/b:1", Reference("docker", "[::1]:5000/b", "1"), "docker://[::1]:5000/b:1"),
        (f"b@{DIGEST}", Reference("docker", "b", "", DIGEST), f"docker://b@{DIGEST}"),
        (f"b:1@{DIGEST}", Reference("docker", "b", "1", DIGEST), f"docker://b@{DIGEST}"),
        ("docker:1", Reference("docker", "docker", "1"), "docker://docker:1"),
        ("oci:dir", Reference("oci", "dir"), "oci:dir"),
        ("oci:/a/b:tag", Reference("oci", "/a/b", "tag"), "oci:/a/b:tag"),
        ("oci:d:a.example/b:1", Reference("oci", "d", "a.example/b:1"), "oci:d:a.example/b:1"),
        ("dir:/a", Reference("dir", "/a"), "dir:/a"),
        (
            "containers-storage:a:1",
            Reference("containers-storage", "a:1"),
            "containers-storage:a:1",
        ),
        ("oci-archive:f:1", Reference("oci-archive", "f:1"), "oci-archive:f:1"),
    ],
)
def test_what_is_read(text: str, expected: Reference, argument: str) -> None:
    assert parse_reference(text) == expected
    assert expected.argument == argument
    assert parse_reference(str(expected)) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "docker://",
        "App",
        "app:",
        "app:-x",
        "app@sha256:12",
        f"app@sha256:{'0' * 63}",
        "a b",
        "a/",
        "/a",
        "a//b",
        "-a",
        f"a:{'t' * 129}",
        f"{'a' * 256}",
        "oci:",
        "oci::tag",
        "oci:dir:",
        "oci:dir:a b",
        "dir:",
        "dir:a\0b",
        "dir:a\nb",
        "a\n",
        "docker:///a",
        "unknown-transport:a:b",
    ],
)
def test_what_is_refused(text: str) -> None:
    with pytest.raises(UsageError) as raised:
        parse_reference(text)
    assert raised.value.exit_status == 2
    assert "\n" not in raised.value.message


def test_capitals_are_told() -> None:
    with pytest.raises(UsageError, match="names are in lower case: app"):
        parse_reference("App")


@given(st.text(max_size=40) | st.from_regex(r"[a-z0-9./:@_-]{1,40}", fullmatch=True))
def test_any_text_is_a_reference_or_a_usage_error(text: str) -> None:
    try:
        reference = parse_reference(text)
    except UsageError:
        return
    assert parse_reference(str(reference)) == reference
    assert not reference.argument.startswith("-")


def test_the_registry_of_a_name() -> None:
    hosts = {
        "a": "docker.io",
        "a/b": "docker.io",
        "localhost/b": "localhost",
        "a.b/c": "a.b",
        "a:1/c": "a:1",
    }
    for name, host in hosts.items():
        assert parse_reference(name).host == host


def test_a_layout_may_be_a_plain_directory() -> None:
    assert parse_layout("./d:1", "--output") == Reference("oci", "./d", "1")
    assert parse_layout("/d", "--output") == Reference("oci", "/d")
    with pytest.raises(UsageError, match="--output"):
        parse_layout("d:1", "--output")


@pytest.mark.parametrize(
    ("to", "source", "expected"),
    [
        ("oci:d", "a:1", Reference("oci", "d", "1")),
        ("oci:d", "a", Reference("oci", "d", "latest")),
        ("oci:d", f"a@{DIGEST}", Reference("oci", "d", "")),
        ("oci:d", "oci:e:2", Reference("oci", "d", "2")),
        ("oci:d:3", "a:1", Reference("oci", "d", "3")),
        ("./d", "a:1", Reference("oci", "./d", "1")),
        ("/d:3", "a:1", Reference("oci", "/d", "3")),
        ("docker-archive:f", "a:1", Reference("docker-archive", "f")),
        ("containers-storage:a:2", "a:1", Reference("containers-storage", "a:2")),
        ("docker://b/c:2", "a:1", Reference("docker", "b/c", "2")),
    ],
)
def test_where_a_pull_goes(to: str, source: str, expected: Reference) -> None:
    assert parse_destination(to, parse_reference(source)) == expected


@pytest.mark.parametrize("to", ["d", "b/c:2", "tarball:x", "sif:x", f"docker://a@{DIGEST}", "oci:"])
def test_where_no_pull_goes(to: str) -> None:
    with pytest.raises(UsageError) as raised:
        parse_destination(to, parse_reference("a:1"))
    assert raised.value.hint
