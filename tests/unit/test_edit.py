"""Indexes put together and changed: what is not touched stays as it was."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from maid.errors import UsageError
from maid.images.edit import (
    Changes,
    Duplicate,
    Group,
    annotate,
    combine,
    entry_for,
    find,
    index_of,
    remove,
    with_entries,
)
from maid.images.index import (
    ATTESTATION_OF,
    ATTESTATION_TYPE,
    DOCKER_LIST,
    DOCKER_MANIFEST,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    Index,
    encode,
    read_index,
)
from maid.images.select import NoMatch
from maid.platforms import parse


def digest(number: int) -> str:
    return f"sha256:{number:064x}"


def entry(number: int, platform: str | None = None, **more: Any) -> dict[str, Any]:
    made: dict[str, Any] = {"mediaType": OCI_MANIFEST, "digest": digest(number), "size": 5}
    if platform:
        names = ("os", "architecture", "variant")
        made["platform"] = dict(zip(names, platform.split("/"), strict=False))
    return made | more


def attestation(number: int, about: int) -> dict[str, Any]:
    said = {ATTESTATION_TYPE: "attestation-manifest", ATTESTATION_OF: digest(about)}
    return entry(number, "unknown/unknown", annotations=said)


def index(*entries: dict[str, Any], **more: Any) -> Index:
    document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": list(entries), **more}
    return read_index(json.dumps(document).encode())


def group(name: str, *entries: dict[str, Any]) -> Group:
    return Group(name, index(*entries).manifests)


def numbers(entries: tuple[Descriptor, ...]) -> list[int]:
    return [int(each.digest.removeprefix("sha256:"), 16) for each in entries]


def test_sources_stay_in_their_order_with_what_attests_them() -> None:
    first = group("a", entry(1, "linux/amd64"), attestation(2, 1))
    second = group("b", entry(3, "linux/arm64"), attestation(4, 3))
    assert numbers(combine([first, second])) == [1, 2, 3, 4]
    assert numbers(combine([second, first])) == [3, 4, 1, 2]


def test_the_same_entry_is_there_once() -> None:
    first = group("a", entry(1, "linux/amd64"), attestation(2, 1))
    assert numbers(combine([first, first])) == [1, 2]


def test_one_image_may_be_for_two_platforms() -> None:
    first, second = group("a", entry(1, "linux/arm/v6")), group("b", entry(1, "linux/arm/v7"))
    assert numbers(combine([first, second])) == [1, 1]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("linux/amd64", "linux/amd64"),
        ("linux/arm64", "linux/arm64/v8"),
        ("linux/arm", "linux/arm/v7"),
        ("linux/x86_64", "Linux/amd64"),
    ],
)
def test_two_images_for_a_platform_are_named(one: str, other: str) -> None:
    groups = [group("left", entry(1, one)), group("right", entry(2, other))]
    with pytest.raises(Duplicate) as raised:
        combine(groups)
    for words in ("left", "right", digest(1), digest(2), str(parse(other).normalized())):
        assert words in raised.value.message
    assert "--replace" in raised.value.hint


@pytest.mark.parametrize(
    ("one", "other"), [("linux/amd64", "linux/amd64/v2"), ("linux/arm/v6", "linux/arm")]
)
def test_levels_are_platforms_of_their_own(one: str, other: str) -> None:
    assert numbers(combine([group("a", entry(1, one)), group("b", entry(2, other))])) == [1, 2]


def test_what_one_source_has_twice_stays_so() -> None:
    assert numbers(combine([group("a", entry(1, "linux/386"), entry(2, "linux/386"))])) == [1, 2]


def test_the_later_one_takes_the_place_of_the_earlier() -> None:
    first = group(
        "a", entry(1, "linux/amd64"), entry(2, "linux/arm64"), attestation(3, 1), attestation(4, 2)
    )
    second = group("b", entry(5, "linux/amd64"), attestation(6, 5))
    assert numbers(combine([first, second], replace=True)) == [5, 2, 4, 6]


def test_windows_versions_are_platforms_of_their_own() -> None:
    old, new = (
        entry(number, platform=None)
        | {"platform": {"os": "windows", "architecture": "amd64", "os.version": version}}
        for number, version in ((1, "10.0.17763.1"), (2, "10.0.20348.1"))
    )
    both = index(*map(dict, (old, new)))
    assert numbers(combine([Group("a", both.manifests[:1]), Group("b", both.manifests[1:])])) == [
        1,
        2,
    ]
    with pytest.raises(UsageError, match="2 entries"):
        find(both, "windows/amd64", "it")
    assert find(both, "windows(10.0.20348.1)/amd64", "it").digest == digest(2)


def test_an_image_that_stood_alone_gets_its_platform() -> None:
    descriptor = Descriptor(mediaType=OCI_MANIFEST, digest=digest(1), size=5)
    made = entry_for(descriptor, parse("windows(10.0.20348+win32k)/amd64"))
    assert json.loads(encode(index_of((made,))))["manifests"] == [
        {
            "mediaType": OCI_MANIFEST,
            "digest": digest(1),
            "size": 5,
            "platform": {
                "architecture": "amd64",
                "os": "windows",
                "os.version": "10.0.20348",
                "os.features": ["win32k"],
            },
        }
    ]


def test_dockers_images_make_dockers_list_until_it_says_more() -> None:
    docker = index(entry(1, "linux/amd64", mediaType=DOCKER_MANIFEST)).manifests
    mixed = (*docker, *index(entry(2, "linux/arm64")).manifests)
    assert index_of(docker).mediaType == DOCKER_LIST
    assert index_of(docker, {"a": "b"}).mediaType == OCI_INDEX
    assert index_of(mixed).mediaType == OCI_INDEX
    assert index_of(()).mediaType == OCI_INDEX
    assert with_entries(index_of(docker), mixed).mediaType == OCI_INDEX
    assert with_entries(index_of(docker), docker).mediaType == DOCKER_LIST
    changed = annotate(index_of(docker), "linux/amd64", Changes({"a": "b"}), "it")
    assert changed.mediaType == OCI_INDEX


BOTH = index(
    entry(1, "linux/amd64", **{"x-kept": [1.50, {"a": None}]}),
    entry(2, "linux/arm64"),
    attestation(3, 1),
    attestation(4, 2),
    entry(5),
    **{"x-top": {"z": 1}},
)


@pytest.mark.parametrize(
    ("wanted", "left"),
    [
        (["linux/arm64"], [1, 3, 5]),
        (["arm64"], [1, 3, 5]),
        ([digest(1)], [2, 4, 5]),
        ([digest(5)], [1, 2, 3, 4]),
        ([digest(4)], [1, 2, 3, 5]),
        (["linux/amd64", "linux/arm64/v8"], [5]),
    ],
)
def test_what_is_removed_takes_its_attestations_along(wanted: list[str], left: list[int]) -> None:
    assert numbers(remove(BOTH, wanted, "it").manifests) == left
    assert b'"x-top":{"z": 1}' in encode(remove(BOTH, wanted, "it"))


@pytest.mark.parametrize("wanted", ["linux/arm/v7", "linux/386", "unknown/unknown", digest(9)])
def test_what_is_not_there_is_told_with_what_is(wanted: str) -> None:
    with pytest.raises(NoMatch) as raised:
        remove(BOTH, [wanted], "the index")
    assert raised.value.exit_status == 3
    assert wanted in raised.value.message
    assert "linux/amd64, linux/arm64" in raised.value.hint


def test_a_digest_may_be_shortened_as_long_as_it_is_one() -> None:
    one, other = f"sha256:{'a' * 63}1", f"sha256:{'a' * 63}2"
    both = index(entry(1) | {"digest": one}, entry(1) | {"digest": other})
    assert find(both, one, "it").digest == one
    with pytest.raises(UsageError, match="2 entries"):
        find(both, f"sha256:{'a' * 20}", "it")
    with pytest.raises(UsageError, match="neither a platform nor a digest"):
        find(both, "sha256:aaa", "it")


def test_annotations_of_the_index_and_of_an_entry() -> None:
    changed = annotate(BOTH, "", Changes({"a": "1", "b": "2"}), "it")
    assert changed.annotations == {"a": "1", "b": "2"}
    changed = annotate(changed, "", Changes({"b": "3"}, ("a",)), "it")
    assert changed.annotations == {"b": "3"}
    assert annotate(changed, "", Changes({}, ("b",)), "it") == BOTH
    changed = annotate(BOTH, "linux/arm64", Changes({"a": "1"}), "it")
    assert changed.manifests[1].annotations == {"a": "1"}
    assert changed.manifests[0] == BOTH.manifests[0]
    with pytest.raises(UsageError, match="no annotation a"):
        annotate(BOTH, "", Changes({}, ("a",)), "it")


def test_the_platform_of_an_entry() -> None:
    changed = annotate(BOTH, digest(2), Changes({}, variant="v9", os_version="1"), "it")
    assert str(find(changed, digest(2), "it").platform.platform()) == "linux(1)/arm64/v9"  # type: ignore[union-attr]
    back = annotate(changed, digest(2), Changes({}, variant="", os_version=""), "it")
    assert back == BOTH
    with pytest.raises(UsageError, match="needs an os and an architecture"):
        annotate(BOTH, digest(5), Changes({}, variant="v7"), "it")
    named = annotate(BOTH, digest(5), Changes({}, os="linux", architecture="386"), "it")
    assert numbers((find(named, "linux/386", "it"),)) == [5]
    with pytest.raises(Duplicate, match="linux/amd64"):
        annotate(BOTH, digest(5), Changes({}, os="linux", architecture="amd64"), "it")
    with pytest.raises(UsageError, match="an index has no platform"):
        annotate(BOTH, "", Changes({}, variant="v7"), "it")


def test_what_is_not_touched_is_the_same_letter_by_letter() -> None:
    strange = b'{"mediaType":"","digest":"%s","size":1,"x":  1.0e5 }' % digest(7).encode()
    data = b'{"schemaVersion":2,"manifests":[%s],"y":[1 ,2]}' % strange
    changed = with_entries(read_index(data), combine([Group("a", read_index(data).manifests)]))
    assert b'"x":1.0e5' in encode(changed).replace(b" ", b"")
    assert encode(changed) == encode(read_index(data))


def test_ten_thousand_entries_are_put_together() -> None:
    many = group("a", *(entry(number, f"linux/made{number}") for number in range(10_000)))
    start = time.process_time()
    assert len(combine([many, many, group("b", entry(10_001, "linux/amd64"))])) == 10_001
    assert time.process_time() - start < 2


PLATFORMS = st.sampled_from(["linux/amd64", "linux/arm64", "linux/arm/v7", "linux/386", None])


@st.composite
def groups(draw: st.DrawFn) -> list[Group]:
    made = []
    for name in ("a", "b", "c"):
        entries = []
        for _ in range(draw(st.integers(0, 3))):
            number = draw(st.integers(1, 9))
            entries.append(entry(number, draw(PLATFORMS)))
            if draw(st.booleans()):
                entries.append(attestation(100 + number, number))
        made.append(group(name, *entries))
    return made


@given(groups())
def test_replacing_always_works_and_leaves_no_stray_attestation(made: list[Group]) -> None:
    entries = combine(made, replace=True)
    assert entries == combine(made, replace=True)
    assert combine([Group("all", entries)]) == entries
    there = {each.digest for each in entries}
    for each in entries:
        if about := each.annotation(ATTESTATION_OF):
            assert about in there


@given(groups())
def test_what_is_added_and_removed_again_leaves_nothing(made: list[Group]) -> None:
    before = with_entries(index(**{"x-top": 1}), combine(made, replace=True))
    assume(all(each.digest != digest(50) for each in before.manifests))
    new = group("new", entry(50, "linux/s390x"), attestation(51, 50))
    after = with_entries(before, combine([Group("it", before.manifests), new]))
    assert numbers(after.manifests)[-2:] == [50, 51]
    assert remove(after, ["linux/s390x"], "it") == before
