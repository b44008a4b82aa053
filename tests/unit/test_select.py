"""The image that a platform gets: containerd's rules R8 and R9, on whatever an index may say."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from memory import Memory

from maid.errors import MaidError
from maid.images.index import DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST, DocumentError, Index
from maid.images.pull import WrongImage, choose_image
from maid.images.select import (
    MAX_DEPTH,
    MAX_INDEXES,
    Choice,
    NoMatch,
    choose,
    contents,
    platforms,
    ranked,
)
from maid.platforms import Matcher, host, only, only_os, only_strict, parse

# facts/platforms.md: wanted, what will do, what will not.
EXAMPLES = [
    ("linux/amd64", "linux/amd64 linux/386", "linux/amd64/v2 linux/arm64 windows/amd64"),
    (
        "linux/amd64/v2",
        "linux/amd64 linux/amd64/v1 linux/amd64/v2 linux/386",
        "linux/amd64/v3 linux/amd64/v4",
    ),
    ("linux/386", "linux/386", "linux/amd64"),
    ("linux/arm/v7", "linux/arm linux/arm/v5 linux/arm/v6", "linux/arm/v8 linux/arm/v4"),
    ("linux/arm/v6", "linux/arm/v5 linux/arm/v6", "linux/arm linux/arm/v7"),
    ("linux/arm64", "linux/arm64/v8 linux/arm linux/arm/v5", "linux/arm64/v9 linux/arm/v4"),
    ("linux/arm64/v8.1", "linux/arm64/v8 linux/arm64/v8.1", "linux/arm64/v9"),
    ("linux/arm64/v9", "linux/arm64/v8.5 linux/arm64/v9.0", "linux/arm64/v8.6"),
    ("linux/arm64/v9.6", "linux/arm64/v8.9 linux/arm64/v9.5", "linux/arm64/v8.10"),
]
STRICT = [
    ("linux/arm64", "linux/arm64/v8", "linux/arm/v8 linux/arm64/v9"),
    ("linux/amd64", "linux/amd64", "linux/386"),
]


def _each(rows: list[tuple[str, str, str]]) -> list[tuple[str, str, bool]]:
    return [
        (wanted, there, fits)
        for wanted, will, will_not in rows
        for text, fits in ((will, True), (will_not, False))
        for there in text.split()
    ]


def _choose(source: Memory, *entries: dict[str, Any], matcher: Matcher) -> Choice:
    return choose(source, source.name(source.index(*entries)), matcher)


@pytest.mark.parametrize(("wanted", "there", "fits"), _each(EXAMPLES))
def test_r8_the_examples(wanted: str, there: str, fits: bool) -> None:
    _judge(only(parse(wanted)), there, fits)


@pytest.mark.parametrize(("wanted", "there", "fits"), _each(STRICT))
def test_r8_the_strict_examples(wanted: str, there: str, fits: bool) -> None:
    _judge(only_strict(parse(wanted)), there, fits)


def _judge(matcher: Matcher, there: str, fits: bool) -> None:
    source = Memory()
    image, other = source.image(there), source.image("plan9/mips")
    if fits:
        choice = _choose(source, other, image, matcher=matcher)
        assert choice.found.descriptor.digest == image["digest"]
        assert choice.platform == parse(there)
    else:
        with pytest.raises(NoMatch) as raised:
            _choose(source, other, image, matcher=matcher)
        assert raised.value.exit_status == 3
        assert there.replace("/v1", "") in raised.value.hint
        assert "plan9/mips" in raised.value.hint


@pytest.mark.parametrize(
    ("level", "chosen"),
    [("v1", ""), ("v2", "v2"), ("v3", "v3"), ("v4", "v3")],
)
def test_r10_the_hosts_level_is_chosen_for(level: str, chosen: str) -> None:
    source = Memory()
    there = ["linux/386", "linux/amd64/v3", "linux/amd64", "linux/amd64/v2", "linux/arm64"]
    choice = _choose(source, *map(source.image, there), matcher=only(parse(f"linux/amd64/{level}")))
    assert choice.platform == parse(f"linux/amd64/{chosen}" if chosen else "linux/amd64")
    assert choice.offered == tuple(map(parse, there))


def test_r10_this_machine_gets_an_image() -> None:
    source = Memory()
    choice = _choose(source, source.image(str(host())), matcher=only(host()))
    assert choice.platform == host()


def test_r8_the_first_of_equals_is_taken() -> None:
    source = Memory()
    first, second = source.image("linux/arm64"), source.image("linux/arm64/v8")
    for entries in ((first, second), (second, first)):
        choice = _choose(source, *entries, matcher=only(parse("linux/arm64")))
        assert choice.found.descriptor.digest == entries[0]["digest"]


def test_r8_no_platform_comes_last_and_is_looked_at() -> None:
    source = Memory()
    wrong, right = source.image("linux/amd64", None), source.image("linux/arm64", None)
    said = source.image("linux/arm/v5")
    matcher = only(parse("linux/arm64"))
    assert _choose(source, wrong, right, said, matcher=matcher).platform == parse("linux/arm/v5")
    choice = _choose(source, wrong, right, matcher=matcher)
    assert choice.found.descriptor.digest == right["digest"]
    with pytest.raises(NoMatch, match="it has linux/amd64"):
        _choose(source, wrong, matcher=matcher)


def test_r9_what_is_no_image_is_passed_over() -> None:
    source = Memory()
    image = source.image("linux/arm64")
    strange = source.image("linux/arm64") | {"mediaType": "application/vnd.example+json"}
    unknown = source.image({"os": "unknown", "architecture": "unknown"})
    attestation = source.attestation(image) | {"platform": image["platform"]}
    entries = [attestation, strange, unknown, image]
    choice = _choose(source, *entries, matcher=only(parse("linux/arm64")))
    assert choice.found.descriptor.digest == image["digest"]
    assert choice.entry is not None
    assert [each.digest for each in choice.entry.attestations] == [attestation["digest"]]
    there = contents(source, _index(source))
    assert {each.digest for each in there.others} == {strange["digest"], unknown["digest"]}
    assert there.stray == ()


def test_an_attestation_of_nothing_is_kept_apart() -> None:
    source = Memory()
    image = source.image("linux/arm64")
    source.name(source.index(source.attestation(image)))
    there = contents(source, _index(source))
    assert [len(each) for each in (there.images, there.stray, there.others)] == [0, 1, 0]


def _index(source: Memory) -> Index:
    document = source.top().document
    assert isinstance(document, Index)
    return document


def test_r9_nested_indexes_are_followed() -> None:
    source = Memory()
    inner = source.index(source.image("linux/arm64"))
    middle = source.index(source.image("linux/amd64"), inner)
    choice = _choose(source, middle, matcher=only(parse("linux/arm64")))
    assert choice.entry is not None
    assert [each.digest for each in choice.entry.within] == [middle["digest"], inner["digest"]]


def test_indexes_are_followed_so_deep_and_no_deeper() -> None:
    for depth, fits in ((MAX_DEPTH, True), (MAX_DEPTH + 1, False)):
        source = Memory()
        entry = source.image("linux/arm64")
        for _ in range(depth):
            entry = source.index(entry)
        if fits:
            _choose(source, entry, matcher=only(parse("linux/arm64")))
        else:
            with pytest.raises(DocumentError, match="nested too deeply"):
                _choose(source, entry, matcher=only(parse("linux/arm64")))


def test_a_few_indexes_that_multiply_are_given_up_soon() -> None:
    source = Memory()
    entry = source.image("linux/arm64")
    for _ in range(MAX_DEPTH):
        entry = source.index(*[entry] * 100)
    with pytest.raises(DocumentError, match="nested too deeply, or too many"):
        _choose(source, entry, matcher=only(parse("linux/arm64")))
    assert len(source.fetched) <= MAX_INDEXES


def test_an_index_that_contains_itself_is_refused() -> None:
    source = Memory()
    # No hash contains itself, so that only a source that lies has one.
    data = source.blobs[source.index(source.image("linux/amd64"))["digest"]]
    digest = f"sha256:{'0' * 64}"

    class Liar(Memory):
        def find(self, descriptor: Any) -> Any:
            from maid.images.index import read
            from maid.images.sources import Found

            if descriptor.digest == digest:
                entry = b'{"mediaType":"%s","digest":"%s","size":1}' % (
                    OCI_INDEX.encode(),
                    digest.encode(),
                )
                data = b'{"schemaVersion":2,"manifests":[%s]}' % entry
                return Found(descriptor, data, read(data))
            return super().find(descriptor)

    liar = Liar()
    liar.named = data
    top = liar.index({"mediaType": OCI_INDEX, "digest": digest, "size": 1})
    with pytest.raises(DocumentError, match=f"{digest} contains itself"):
        choose(liar, liar.name(top), only(parse("linux/amd64")))


@pytest.mark.parametrize("accept_any", [False, True])
def test_an_image_that_stands_alone_is_checked_too(accept_any: bool) -> None:
    source = Memory()
    top = source.name(source.image("linux/s390x"))
    assert choose(source, top, only(parse("linux/s390x"))).platform == parse("linux/s390x")
    if accept_any:
        assert choose(source, top, only(parse("linux/arm64")), True).platform.os == "linux"
        return
    with pytest.raises(NoMatch) as raised:
        choose(source, top, only(parse("linux/arm64")))
    assert "linux/s390x" in raised.value.message
    assert "--any" in raised.value.hint


def test_an_artifact_that_stands_alone_is_no_image() -> None:
    source = Memory()
    top = source.name(source.image({}, None))
    for accept_any in (False, True):
        with pytest.raises(NoMatch, match="is no image"):
            choose(source, top, only(parse("linux/arm64")), accept_any)


@pytest.mark.parametrize(
    ("said", "own", "asked", "fits"),
    [
        ("linux/arm64", "linux/arm64", "linux/arm64", True),
        ("linux/arm64", "linux/arm64/v8", "linux/arm64", True),
        ("linux/arm64", "linux/amd64", "linux/arm64", False),
        ("linux/amd64", "windows/amd64", "linux/amd64", False),
        ("linux/amd64/v3", "linux/amd64", "linux/amd64/v3", True),
        ("linux/arm/v7", "linux/arm", "linux/arm/v7", True),
        ("linux/arm/v6", "linux/arm", "linux/arm/v6", True),
        ("linux/arm/v6", "linux/arm/v7", "linux/arm/v6", False),
        ("linux/arm/v6", "linux/arm/v7", "linux/arm/v7", True),
        ("linux/arm64", "linux/arm64/v9", "linux/arm64", False),
    ],
)
def test_an_image_is_what_its_index_says(said: str, own: str, asked: str, fits: bool) -> None:
    source = Memory()
    config = dict(zip(("os", "architecture", "variant"), own.split("/"), strict=False))
    source.name(source.index(source.image(config, said)))
    if fits:
        assert choose_image(source, only(parse(asked))).platform == parse(said)
        return
    with pytest.raises(WrongImage) as raised:
        choose_image(source, only(parse(asked)))
    assert raised.value.exit_status == 3
    assert said in raised.value.message
    assert own in raised.value.message
    assert "sha256:" in raised.value.message
    choose_image(source, only(parse(asked)), accept_any=True)


def test_what_there_is_is_shortened_where_it_is_much() -> None:
    source = Memory()
    entries = [source.image(f"linux/made{number}") for number in range(50)]
    with pytest.raises(NoMatch) as raised:
        _choose(source, *entries, matcher=only(parse("linux/arm64")))
    assert "linux/made19 … (50)" in raised.value.hint
    assert "made20" not in raised.value.hint


def test_ten_thousand_entries_are_chosen_from() -> None:
    source = Memory()
    image = source.image("linux/arm64")
    strange = {**image, "platform": {"os": "linux", "architecture": "mips"}}
    choice = _choose(source, *[strange] * 9_999, image, matcher=only(parse("linux/arm64")))
    assert choice.platform == parse("linux/arm64")
    assert len(choice.offered) == 2
    assert len(source.fetched) == 1


# Anything that an index may say. ---------------------------------------------------------------

WORDS = st.sampled_from(["", "linux", "windows", "unknown", "Linux", "plan9"]) | st.text(max_size=4)
ARCHITECTURES = st.sampled_from(
    ["amd64", "arm", "arm64", "386", "x86_64", "aarch64", "armhf", "riscv64", "unknown", ""]
) | st.text(max_size=4)
VARIANTS = st.none() | st.sampled_from(["v1", "v2", "v6", "v7", "v8", "v8.9", "v9", "v9.10", "7"])
VERSIONS = st.none() | st.sampled_from(["10.0.20348", "10.0.26100.1", "", "x", "10.0"])
FEATURES = st.none() | st.lists(st.sampled_from(["win32k", "a", ""]), max_size=2)


@st.composite
def platform_objects(draw: st.DrawFn) -> dict[str, Any] | None:
    if draw(st.integers(0, 5)) == 0:
        return None
    return {
        "os": draw(WORDS),
        "architecture": draw(ARCHITECTURES),
        "variant": draw(VARIANTS),
        "os.version": draw(VERSIONS),
        "os.features": draw(FEATURES),
    }


WANTED = st.sampled_from(
    [
        "linux/amd64",
        "linux/amd64/v3",
        "linux/arm/v7",
        "linux/arm64/v9.3",
        "windows(10.0.26100)/amd64",
    ]
)
MATCHERS = st.builds(
    lambda make, wanted: make(parse(wanted)), st.sampled_from([only, only_strict, only_os]), WANTED
)


@st.composite
def sources(draw: st.DrawFn) -> Memory:
    """Any index: images that are there or not, in indexes, attested, of unknown types."""
    source = Memory()

    def entries(depth: int) -> list[dict[str, Any]]:
        made: list[dict[str, Any]] = []
        for _ in range(draw(st.integers(0, 4))):
            kind = draw(st.integers(0, 7))
            if kind == 0 and depth < 3:
                made.append(source.index(*entries(depth + 1)))
                continue
            config = draw(platform_objects()) or {"os": "linux", "architecture": "arm64"}
            entry = source.image(config, None)
            platform = draw(st.just(config) | platform_objects())
            if platform is not None:
                entry["platform"] = platform
            if kind == 1:
                entry["mediaType"] = draw(st.sampled_from(["x/y", DOCKER_MANIFEST, OCI_INDEX, ""]))
            elif kind == 2:
                del source.blobs[entry["digest"]]
            elif kind == 3 and made:
                entry = source.attestation(made[0])
            elif kind == 4:
                entry["size"] += 1
            made.append(entry)
        return made

    source.name(source.index(*entries(0)))
    return source


@given(sources(), MATCHERS)
@settings(max_examples=300)
def test_any_index_gives_an_image_or_an_error_with_words(source: Memory, matcher: Matcher) -> None:
    try:
        choice = choose(source, source.top(), matcher)
    except MaidError as error:
        assert error.message
        return
    assert matcher.matches(choice.platform)
    assert choice.entry is not None
    for entry in contents(source, _index(source)).images:
        if entry.platform is not None and matcher.matches(entry.platform):
            assert not matcher.less(entry.platform, choice.platform)


@given(sources(), MATCHERS)
def test_images_are_ranked_whole(source: Memory, matcher: Matcher) -> None:
    try:
        there = contents(source, _index(source))
    except MaidError:
        return
    best = ranked(there.images, matcher)
    assert all(each.platform is None or matcher.matches(each.platform) for each in best)
    said = [each.platform is not None for each in best]
    assert said == sorted(said, reverse=True)
    assert len(best) == sum(
        each.platform is None or matcher.matches(each.platform) for each in there.images
    )
    assert len(set(platforms(there))) == len(platforms(there))


def test_manifest_types_of_both_kinds_are_images() -> None:
    for media_type in (OCI_MANIFEST, DOCKER_MANIFEST):
        source = Memory()
        image = source.image("linux/arm64")
        data = source.blobs[image["digest"]].replace(OCI_MANIFEST.encode(), media_type.encode())
        entry = source.blob(data, media_type) | {"platform": image["platform"]}
        assert _choose(source, entry, matcher=only(parse("linux/arm64"))).entry is not None
