"""What names an image: a repository in a registry, a tag of a layout on disk, another transport.

The spelling is skopeo's (containers-transports(5)), and a plain `repository[:tag][@digest]` is one
in a registry, as docker has it. Pure text: nothing is looked up here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from maid.errors import UsageError
from maid.images.index import DocumentError, check_digest

REGISTRY, LAYOUT = "docker", "oci"

TRANSPORTS = (
    "containers-storage",
    "dir",
    "docker",
    "docker-archive",
    "docker-daemon",
    "oci",
    "oci-archive",
    "ostree",
    "sif",
    "tarball",
)
"""The transports that skopeo 1.9 has."""

# Grammar of github.com/distribution/reference: a domain, path components, a tag.
_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
_DOMAIN = rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9a-fA-F:]+\])(?::[0-9]+)?"
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_NAME = re.compile(rf"(?:{_DOMAIN}/)?{_COMPONENT}(?:/{_COMPONENT})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")

# A reference name of a layout: annotations.md, org.opencontainers.image.ref.name. What skopeo takes
# is wider (anything after the colon), and such layouts exist.
_REF_NAME = re.compile(r"[^\s:\x00-\x1f]{1,255}(?::[^\s:\x00-\x1f]{1,255})?")

_EXAMPLES = "for example registry.example/app:1.0, oci:DIR:TAG or containers-storage:app"


@dataclass(frozen=True)
class Reference:
    """An image by its name.

    `transport` is one of TRANSPORTS; `name` is a repository, a directory, or whatever the transport
    takes; `tag` and `digest` are "" where they are not given.
    """

    transport: str
    name: str
    tag: str = ""
    digest: str = ""

    def __str__(self) -> str:
        """As people write it, and `parse_reference` reads it."""
        if self.transport == REGISTRY:
            return self._spelled()
        return f"{self.transport}:{self._spelled()}"

    def _spelled(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        return f"{self.name}{tag}" + (f"@{self.digest}" if self.digest else "")

    @property
    def argument(self) -> str:
        """As skopeo takes it. A tag beside a digest says nothing more, and skopeo refuses it."""
        if self.transport != REGISTRY:
            return f"{self.transport}:{self._spelled()}"
        if self.digest:
            return f"docker://{self.name}@{self.digest}"
        return f"docker://{self.name}:{self.tag or 'latest'}"

    @property
    def host(self) -> str:
        """The registry that the repository is in, "docker.io" where none is named."""
        first, slash, _ = self.name.partition("/")
        named = slash and ("." in first or ":" in first or first == "localhost")
        return first if named else "docker.io"

    @property
    def directory(self) -> Path:
        """The layout's directory."""
        return Path(self.name)

    def at(self, digest: str) -> Reference:
        """What has this digest in the same place."""
        return replace(self, tag="", digest=digest)


def parse_reference(text: str) -> Reference:
    """Read a reference. Raises UsageError."""
    transport, colon, rest = text.partition(":")
    if colon and transport in TRANSPORTS and not (transport == REGISTRY and rest[:2] != "//"):
        if not rest:
            raise UsageError(f"{text!r} names no image", _EXAMPLES)
        if "\0" in rest or "\n" in rest:
            raise UsageError(f"{text!r} is no image reference", _EXAMPLES)
        if transport == LAYOUT:
            return _layout(text, rest)
        if transport != REGISTRY:
            return Reference(transport, rest)
        text = rest[2:]
    return _repository(text)


def parse_layout(text: str, option: str) -> Reference:
    """`oci:DIR[:TAG]`, or a plain directory with a slash in it. Raises UsageError."""
    reference = parse_reference(f"oci:{text}" if text.startswith(("/", "./", "../")) else text)
    if reference.transport != LAYOUT:
        raise UsageError(f"{option} takes oci:DIR or oci:DIR:TAG, not {text!r}")
    return reference


def _layout(text: str, rest: str) -> Reference:
    directory, colon, tag = rest.partition(":")
    if not directory or (colon and not _REF_NAME.fullmatch(tag)):
        raise UsageError(f"{text!r} names no OCI layout", "oci:DIR or oci:DIR:TAG")
    return Reference(LAYOUT, directory, tag)


def _repository(text: str) -> Reference:
    rest, at, digest = text.partition("@")
    if at:
        try:
            check_digest(digest)
        except DocumentError as error:
            raise UsageError(
                f"{text!r} is no image reference: {error.message}", _EXAMPLES
            ) from error
    name, tag = rest, ""
    if ":" in rest.rpartition("/")[2]:
        name, _, tag = rest.rpartition(":")
        if not _TAG.fullmatch(tag):
            raise UsageError(f"{text!r} is no image reference: {tag!r} is no tag", _EXAMPLES)
    if not _NAME.fullmatch(name) or len(name) > 255:
        lower = f"names are in lower case: {name.lower()}"
        hint = lower if name != name.lower() and _NAME.fullmatch(name.lower()) else _EXAMPLES
        raise UsageError(f"{text!r} is no image reference", hint)
    return Reference(REGISTRY, name, tag, digest)
