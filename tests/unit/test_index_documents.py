"""OCI and Docker documents: kept whole, written the same way always, and never believed."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maid.errors import MaidError
from maid.images import index as documents
from maid.images.index import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    MAX_DOCUMENT,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    DocumentError,
    Index,
    Manifest,
    check_digest,
    digest_of,
    encode,
    read,
    read_config,
    read_index,
    read_manifest,
    verify,
)

DIGEST = f"sha256:{'ab' * 32}"

# What a document may have that nobody here knows: any JSON.
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)
UNKNOWN = st.dictionaries(st.text(max_size=6).map(lambda name: f"x-{name}"), JSON, max_size=3)
TEXTS = st.dictionaries(st.text(max_size=8), st.text(max_size=8), max_size=3)
DIGESTS = st.binary(min_size=32, max_size=32).map(lambda data: f"sha256:{data.hex()}")


@st.composite
def joined(draw: st.DrawFn, known: dict[str, Any], **optional: Any) -> dict[str, Any]:
    """An object with the known members, some of the optional ones, and unknown ones."""
    document = {name: draw(value) for name, value in known.items()}
    for name, value in optional.items():
        if draw(st.booleans()):
            document[name.replace("__", ".")] = draw(value)
    return document | draw(UNKNOWN)


PLATFORMS = joined(
    {"architecture": st.text(max_size=8), "os": st.text(max_size=8)},
    variant=st.text(max_size=4),
    os__version=st.text(max_size=8),
    os__features=st.lists(st.text(max_size=4), max_size=2),
)
MEDIA_TYPES = st.sampled_from([OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST, "x/y", ""])
DESCRIPTORS = joined(
    {"mediaType": MEDIA_TYPES, "digest": DIGESTS, "size": st.integers(0, (1 << 63) - 1)},
    annotations=TEXTS,
    platform=PLATFORMS,
    urls=st.lists(st.text(max_size=5), max_size=2),
    data=st.text(max_size=5),
    artifactType=st.text(max_size=5),
)
INDEXES = joined(
    {
        "schemaVersion": st.just(2),
        "mediaType": st.sampled_from([OCI_INDEX, DOCKER_LIST]),
        "manifests": st.lists(DESCRIPTORS, max_size=4),
    },
    annotations=TEXTS,
    subject=DESCRIPTORS,
    artifactType=st.text(max_size=5),
)
MANIFESTS = joined(
    {
        "schemaVersion": st.just(2),
        "mediaType": st.sampled_from([OCI_MANIFEST, DOCKER_MANIFEST]),
        "config": DESCRIPTORS,
        "layers": st.lists(DESCRIPTORS, max_size=3),
    },
    annotations=TEXTS,
    subject=DESCRIPTORS,
)


@given(INDEXES | MANIFESTS, st.booleans())
def test_a_document_is_written_as_it_was_read(document: dict[str, Any], ascii_only: bool) -> None:
    written = encode(read(json.dumps(document, ensure_ascii=ascii_only).encode()))
    assert json.loads(written) == document
    assert encode(read(written)) == written


@given(INDEXES)
def test_the_same_content_is_the_same_bytes(document: dict[str, Any]) -> None:
    known = ("schemaVersion", "mediaType", "artifactType", "manifests", "subject", "annotations")
    turned = {name: document[name] for name in reversed(known) if name in document}
    turned |= {name: value for name, value in document.items() if name not in known}
    assert encode(read(json.dumps(document).encode())) == encode(read(json.dumps(turned).encode()))


def test_what_is_not_known_is_kept_letter_by_letter() -> None:
    strange = b'{"a": 1.50e+3, "b" : 123456789012345678901234567890, "c":"\\u00e9\\/" , "d":[ ]}'
    data = b'{"schemaVersion":2,"manifests":[{"digest":"%s","size":1,"x":%s}],"y":%s}' % (
        DIGEST.encode(),
        strange,
        strange,
    )
    assert encode(read(data)).count(strange) == 2


def test_null_is_what_is_not_there() -> None:
    data = b'{"schemaVersion":2,"mediaType":null,"manifests":null,"annotations":null}'
    assert read_index(data) == Index(schemaVersion=2, manifests=())


@given(INDEXES | MANIFESTS, st.data())
@settings(max_examples=150)
def test_a_damaged_document_is_an_error_with_words(document: dict[str, Any], data: Any) -> None:
    written = bytearray(json.dumps(document).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(written) - 1))
        length = data.draw(st.integers(0, 6))
        written[at : at + length] = data.draw(st.binary(max_size=6))
        if not written:
            break
    _read_all(bytes(written))


@given(INDEXES | MANIFESTS, JSON, st.data())
@settings(max_examples=150)
def test_a_value_of_another_kind_is_an_error_with_words(
    document: dict[str, Any], value: object, data: Any
) -> None:
    where: Any = document
    while True:
        keys = list(where) if isinstance(where, dict) else list(range(len(where)))
        key = data.draw(st.sampled_from(keys))
        if isinstance(where[key], dict | list) and where[key] and data.draw(st.booleans()):
            where = where[key]
            continue
        where[key] = value
        break
    _read_all(json.dumps(document).encode())


@given(st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_a_document_or_an_error_with_words(data: bytes) -> None:
    _read_all(data)


def _read_all(data: bytes) -> None:
    for reading in (read, read_index, read_manifest, read_config):
        try:
            encode(reading(data))  # type: ignore[operator]
        except DocumentError as error:
            assert error.message
            assert "\n" not in error.message


@pytest.mark.parametrize(
    ("document", "words"),
    [
        (b"", "cannot be read"),
        (b"[]", "cannot be read"),
        (b"nonsense", "cannot be read"),
        (b'{"schemaVersion":2}', "neither an image index nor a manifest"),
        (b'{"schemaVersion":1,"fsLayers":[]}', "schema 1"),
        (b'{"schemaVersion":3,"manifests":[]}', "must be 2"),
        (b'{"manifests":[]}', "schemaVersion is missing"),
        (b'{"schemaVersion":2,"manifests":[{"size":1}]}', "manifests[0].digest is missing"),
        (b'{"schemaVersion":2,"manifests":[{"digest":"a","size":-1}]}', "size is -1"),
        (b'{"schemaVersion":2,"manifests":{}}', "manifests"),
        (b'{"schemaVersion":2,"manifests":[],"config":{}}', "two kinds of document"),
        (b'{"schemaVersion":2,"manifests":[],"layers":[]}', "two kinds of document"),
        (
            b'{"schemaVersion":2,"mediaType":"%s","manifests":[]}' % OCI_MANIFEST.encode(),
            "config is missing",
        ),
        (b'{"schemaVersion":2,"manifests":' + b"[" * 100_000, "nested too deeply"),
        (b'{"x":' + b'{"x":' * 100_000, "nested too deeply"),
    ],
)
def test_what_is_wrong_is_said(document: bytes, words: str) -> None:
    with pytest.raises(DocumentError) as raised:
        read(document)
    assert words in raised.value.message


def test_a_document_is_what_was_announced() -> None:
    data = b'{"schemaVersion":2,"mediaType":"%s","manifests":[]}' % OCI_INDEX.encode()
    assert isinstance(read(data, OCI_INDEX), Index)
    with pytest.raises(DocumentError, match="was announced"):
        read(data, OCI_MANIFEST)


def test_the_largest_document_that_is_taken() -> None:
    entry = json.dumps({"digest": DIGEST, "size": 1, "mediaType": OCI_MANIFEST})
    frame = '{"schemaVersion":2,"manifests":[%s]}'
    space = MAX_DOCUMENT - len(frame % entry)
    assert isinstance(read((frame % (entry + " " * (space - 2) + "  ")).encode()), Index)
    with pytest.raises(DocumentError, match=f"and {MAX_DOCUMENT} are taken"):
        read((frame % (entry + " " * (space + 2))).encode())


def test_ten_thousand_entries_take_less_than_a_second() -> None:
    entries = [
        {"mediaType": OCI_MANIFEST, "digest": DIGEST, "size": 1, "platform": {"os": "linux"}}
        for _ in range(10_000)
    ]
    data = json.dumps({"schemaVersion": 2, "manifests": entries}).encode()
    start = time.process_time()
    found = read(data)
    assert isinstance(found, Index)
    assert len(found.manifests) == 10_000
    encode(found)
    assert time.process_time() - start < 1


@pytest.mark.parametrize(
    "digest",
    [
        "",
        "sha256:",
        "sha256:abc",
        f"sha256:{'A' * 64}",
        f"sha256:{'a' * 63}",
        f"sha256:{'a' * 65}",
        f"md5:{'a' * 32}",
        "sha256:../../../../etc/passwd",
        f"sha256:{'a' * 60}/../",
        f"../{'a' * 64}",
        f"sha256:{'a' * 64}\n",
        f"sha256:{'é' * 64}",
    ],
)
def test_what_is_no_digest_never_becomes_a_path(digest: str) -> None:
    with pytest.raises(DocumentError):
        check_digest(digest)


def test_data_has_the_size_and_the_digest_that_were_announced() -> None:
    data = b"data"
    right = Descriptor(digest=digest_of(data), size=4)
    assert verify(right, data) == data
    for wrong in (
        Descriptor(digest=digest_of(data), size=5),
        Descriptor(digest=digest_of(data), size=3),
        Descriptor(digest=digest_of(b"other"), size=4),
    ):
        with pytest.raises(DocumentError) as raised:
            verify(wrong, data)
        assert wrong.digest in raised.value.message


def test_a_configuration_says_its_platform() -> None:
    config = read_config(
        b'{"os":"windows","architecture":"amd64","os.version":"10.0.20348","os.features":["win32k"],'
        b'"config":{"Cmd":["cmd"]}}'
    )
    assert str(config.platform()) == "windows(10.0.20348+win32k)/amd64"
    assert encode(config).endswith(b'"config":{"Cmd":["cmd"]}}')


def test_types_that_are_not_said() -> None:
    index = read(b'{"schemaVersion":2,"manifests":[]}')
    manifest = read(b'{"schemaVersion":2,"config":{"digest":"d","size":1},"layers":[]}')
    assert isinstance(index, Index)
    assert index.media_type == OCI_INDEX
    assert isinstance(manifest, Manifest)
    assert manifest.media_type == OCI_MANIFEST
    assert documents.describe(b"x", OCI_CONFIG).size == 1


def test_every_error_is_maids() -> None:
    assert issubclass(DocumentError, MaidError)
