"""A real registry (docker-registry) on loopback, with its storage in a directory: for tests/images
and scripts/bench.

It is looked at and written to byte by byte over HTTP, by code that is not maid's nor skopeo's, so
that it can judge both. What a registry does wrong is tests/images/faulty.py's.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from layouts import MANIFEST_TYPES, Layout, digest_of

CHECKOUT = Path(__file__).parents[2]
START = 30.0
"""Seconds that it may take to listen on a busy machine."""

USER, PASSWORD = "ann", "secret"
_PASSWORDS = f"{USER}:$2b$05$zePeMaWvSFhe9Nb5lcAiP.PefZ/u.TQw.WIKFKGdeRC0OwDo/tQpK\n"
"""PASSWORD by bcrypt, the only form that docker-registry takes."""


@dataclass(frozen=True)
class Answer:
    """What came back for one request; header names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


class Registry:
    """A running registry. `address` is HOST:PORT, as it begins a reference; `log` its own words."""

    def __init__(self, process: subprocess.Popen[bytes], directory: Path, address: str) -> None:
        self.process = process
        self.directory = directory
        self.address = address
        self.log = directory / "log"
        self._storage = directory / "storage/docker/registry/v2"

    def __repr__(self) -> str:
        return f"<registry {self.address}>"

    def request(
        self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> Answer:
        """One request, for a path that begins with a slash."""
        connection = http.client.HTTPConnection(self.address, timeout=60)
        with contextlib.closing(connection):
            connection.request(method, path, body or None, headers or {})
            answer = connection.getresponse()
            names = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(answer.status, names, answer.read())

    def manifest(self, name: str, reference: str) -> bytes | None:
        """The bytes of a manifest or an index, by tag or digest; None where there is none."""
        accept = {"Accept": ", ".join(MANIFEST_TYPES)}
        answer = self.request("GET", f"/v2/{name}/manifests/{reference}", headers=accept)
        if answer.status == 404:
            return None
        assert answer.status == 200, answer
        return answer.body

    def document(self, name: str, reference: str) -> dict[str, Any]:
        """The manifest or index, decoded; it has to be there."""
        data = self.manifest(name, reference)
        assert data is not None, f"no {name}:{reference}"
        document = json.loads(data)
        assert isinstance(document, dict)
        return document

    def digest(self, name: str, tag: str) -> str:
        """The digest that a tag names; "" where there is no such tag."""
        data = self.manifest(name, tag)
        return "" if data is None else digest_of(data)

    def tags(self, name: str) -> list[str]:
        """The tags of a repository in order; none where there is no such repository."""
        answer = self.request("GET", f"/v2/{name}/tags/list")
        return sorted(json.loads(answer.body).get("tags") or []) if answer.status == 200 else []

    def blob(self, name: str, digest: str) -> bytes | None:
        """The bytes of a blob; None where the repository has none."""
        answer = self.request("GET", f"/v2/{name}/blobs/{digest}")
        return answer.body if answer.status == 200 else None

    def blobs(self, name: str) -> set[str]:
        """The digests of all blobs that were put into a repository: configs and layers."""
        below = self._storage / "repositories" / name / "_layers/sha256"
        return {f"sha256:{each.name}" for each in below.iterdir()} if below.is_dir() else set()

    def manifests(self, name: str) -> set[str]:
        """The digests of all manifests and indexes in a repository, tagged or not."""
        below = self._storage / "repositories" / name / "_manifests/revisions/sha256"
        kept = below.glob("*/link")
        return {f"sha256:{each.parent.name}" for each in kept}

    def put_blob(self, name: str, data: bytes) -> str:
        """Put bytes as a blob; returns their digest."""
        digest = digest_of(data)
        begun = self.request("POST", f"/v2/{name}/blobs/uploads/")
        assert begun.status == 202, begun
        path = re.sub(r"^http://[^/]*", "", begun.headers["location"])
        path += f"{'&' if '?' in path else '?'}digest={digest}"
        answer = self.request("PUT", path, data, {"Content-Type": "application/octet-stream"})
        assert answer.status == 201, answer
        return digest

    def put_manifest(self, name: str, reference: str, data: bytes, media_type: str) -> str:
        """Put the bytes of a document under a tag or its digest; returns its digest.

        The registry refuses what names blobs or manifests that it lacks.
        """
        path = f"/v2/{name}/manifests/{reference}"
        answer = self.request("PUT", path, data, {"Content-Type": media_type})
        assert answer.status == 201, answer
        return digest_of(data)

    def delete(self, name: str, digest: str, kind: str = "manifests") -> None:
        """Take a manifest (or, of the kind "blobs", a blob) away, by digest."""
        answer = self.request("DELETE", f"/v2/{name}/{kind}/{digest}")
        assert answer.status == 202, answer

    def link_blob(self, name: str, file: Path, digest: str) -> None:
        """Have the repository own the content of a file, which must not change from now on.

        What PUT would come to, without reading the file: its digest must be the one given.
        """
        algorithm, _, value = digest.partition(":")
        data = self._storage / "blobs" / algorithm / value[:2] / value / "data"
        if not data.exists():
            data.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(file, data)
            except OSError:  # another file system
                shutil.copyfile(file, data)
        link = self._storage / "repositories" / name / "_layers" / algorithm / value / "link"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.write_text(digest)

    def push(self, layout: Layout, name: str, tag: str, layout_tag: str = "") -> str:
        """Put what a tag of a layout names, children first; returns its digest."""
        top = layout.tagged(layout_tag or tag)
        self._push(layout, name, top, tag)
        digest = top["digest"]
        assert isinstance(digest, str)
        return digest

    def _push(self, layout: Layout, name: str, descriptor: dict[str, Any], reference: str) -> None:
        document = layout.document(descriptor)
        for child in document.get("manifests", []):
            self._push(layout, name, child, child["digest"])
        for blob in [document[key] for key in ("config",) if key in document]:
            self.link_blob(name, layout.path(blob["digest"]), blob["digest"])
        for blob in document.get("layers", []):
            self.link_blob(name, layout.path(blob["digest"]), blob["digest"])
        data = layout.path(descriptor["digest"]).read_bytes()
        self.put_manifest(name, reference, data, descriptor["mediaType"])


def program() -> Path:
    """docker-registry, fetched if it is not there yet."""
    command = [CHECKOUT / "scripts/lib/registry.sh"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=300)
    return Path(done.stdout.strip())


@contextlib.contextmanager
def serving(directory: Path, *, password: bool = False) -> Iterator[Registry]:
    """A registry with everything in an empty directory; gone afterwards.

    `password`: only USER with PASSWORD may read or write (basic authentication).
    """
    config = directory / "config.yml"
    secret = directory / "passwords"
    secret.write_text(_PASSWORDS)
    auth = {"auth": {"htpasswd": {"realm": "tests", "path": str(secret)}}} if password else {}
    settings = {
        "version": 0.1,
        "log": {"accesslog": {"disabled": True}, "level": "info"},
        "storage": {
            "filesystem": {"rootdirectory": str(directory / "storage")},
            "delete": {"enabled": True},
            "maintenance": {"uploadpurging": {"enabled": False}},
        },
        "http": {"addr": "127.0.0.1:0"},
        **auth,
    }
    config.write_text(json.dumps(settings))  # JSON is YAML
    with (directory / "log").open("wb") as log:
        # Ends with this process, too, when that is killed.
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig=KILL", program(), "serve", config],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={"PATH": os.environ["PATH"]},
        )
    try:
        yield Registry(process, directory, _address(process, directory / "log"))
        assert process.poll() is None, f"the registry ended with status {process.returncode}"
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    """Where it listens, from its log."""
    end = time.monotonic() + START
    while True:
        text = log.read_text(errors="replace")
        if found := re.search(r"listening on (127\.0\.0\.1:\d+)", text):
            return found[1]
        assert process.poll() is None and time.monotonic() < end, f"no registry: {text[-2000:]}"
        time.sleep(0.02)


def file_digest(file: Path) -> str:
    """The digest of a file's content."""
    with file.open("rb") as opened:
        return f"sha256:{hashlib.file_digest(opened, 'sha256').hexdigest()}"
