"""JSON objects with types, of which nothing is lost: what a type has no field for is kept.

An object's fields are taken as they were written, and only those that a type names are looked into.
What the documents mean is not known here (index.py).
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple, TypeVar, get_args, get_origin

import msgspec

from maid.errors import MaidError

MAX_DOCUMENT = 4 << 20
"""Bytes of a document: what registries must take (distribution-spec, "Pushing Manifests") and all
that skopeo reads (containers/image, iolimits.MaxManifestBodySize)."""

_INT64 = (1 << 63) - 1

_OBJECTS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_LISTS = msgspec.json.Decoder(list[msgspec.Raw])


class DocumentError(MaidError):
    """A document is not what it should be: malformed, of another kind, or not the one named."""


class Document(msgspec.Struct, frozen=True, kw_only=True):
    """A JSON object; `extra` holds, as it was written, what the type has no field for."""

    extra: dict[str, msgspec.Raw] = {}


_D = TypeVar("_D", bound=Document)


def encode(document: Document) -> bytes:
    """The document as JSON: known fields in the specification's order, then the others in theirs.
    The same document is the same bytes, always."""
    return msgspec.json.encode(_plain(document))


def object_in(data: bytes | msgspec.Raw, where: str = "") -> dict[str, msgspec.Raw]:
    """The fields of the JSON object in `data`, as they were written; `where` it is part of another
    one, for the error. Raises DocumentError."""
    if isinstance(data, bytes) and len(data) > MAX_DOCUMENT:
        raise DocumentError(f"the document has {len(data)} bytes, and {MAX_DOCUMENT} are taken")
    try:
        return _OBJECTS.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        at = f"{where}: " if where else ""
        raise DocumentError(f"the document cannot be read: {at}{_words(error)}") from error


def text_in(raw: msgspec.Raw | None) -> str:
    """The text that a field is, "" for what is none."""
    if raw is None:
        return ""
    try:
        return msgspec.json.decode(raw, type=str)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return ""


def read_as(kind: type[_D], data: bytes | msgspec.Raw, where: str = "") -> _D:
    """The document in `data`; `where` as for object_in. Raises DocumentError."""
    given = object_in(data, where)
    values: dict[str, Any] = {}
    for field in _fields(kind):
        raw = given.pop(field.key, None)
        path = f"{where}.{field.key}" if where else field.key
        # Go's encoders write null for what is not there, and for an empty list.
        value = None if raw is None or bytes(raw) == b"null" else _value(field, raw, path)
        if value is None and field.required:
            if raw is None or not field.is_list:
                raise DocumentError(f"the document cannot be read: {path} is missing")
            value = ()
        if value is not None:
            values[field.name] = value
    return kind(**values, extra=given)


class _Field(NamedTuple):
    """A field of a document: how it is named in the type and in JSON; the class of document that
    it, or each item of it, is, or else a decoder for it."""

    name: str
    key: str
    required: bool
    is_list: bool
    document: type[Document] | None
    decoder: msgspec.json.Decoder[Any]


@cache
def _fields(kind: type[Document]) -> list[_Field]:
    found = []
    for field in msgspec.structs.fields(kind):
        if field.name == "extra":
            continue
        documents = [
            each
            for each in (field.type, *get_args(field.type))
            if isinstance(each, type) and issubclass(each, Document)
        ]
        is_list = get_origin(field.type) is tuple
        found.append(
            _Field(
                field.name,
                field.encode_name,
                field.required,
                is_list,
                documents[0] if documents else None,
                _LISTS if documents else msgspec.json.Decoder(field.type),
            )
        )
    return found


def _value(field: _Field, raw: msgspec.Raw, path: str) -> Any:
    if field.document and not field.is_list:
        return read_as(field.document, raw, path)
    try:
        value = field.decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DocumentError(f"the document cannot be read: {path}: {_words(error)}") from error
    if field.document:
        return tuple(
            read_as(field.document, item, f"{path}[{number}]") for number, item in enumerate(value)
        )
    if isinstance(value, int) and not 0 <= value <= _INT64:
        raise DocumentError(f"the document cannot be read: {path} is {value}")
    return value


def _words(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return str(error).splitlines()[0]


def _plain(document: Document) -> dict[str, object]:
    written: dict[str, object] = {}
    for field in _fields(type(document)):
        value = getattr(document, field.name)
        if value is None:
            continue
        if field.document:
            value = [_plain(item) for item in value] if field.is_list else _plain(value)
        written[field.key] = value
    return written | document.extra
