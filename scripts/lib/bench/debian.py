"""Debian's packages for the benchmarks: sources to build, and an archive to install from.

An apt with a state of its own fetches and checks them (maid.acceleration.distributions says how
this machine reaches the archive and whose keys it trusts). What was fetched is kept in the cache.
"""

import functools
import hashlib
import http.server
import os
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote

from common import cache

from maid.acceleration import distributions

RELEASE = "trixie"
_DEBIAN = distributions.DISTRIBUTIONS["debian"]


class Apt:
    """apt-get with the directory `place` for everything it keeps; `status` is the dpkg status of
    the root file system it resolves for. Raises SystemExit with apt's words where it fails."""

    def __init__(self, place: Path, architecture: str, status: Path | None = None) -> None:
        self.place = place
        self.mirror = distributions.mirrors(_DEBIAN, [distributions.machine_mirrors()])[0].main
        for name in ("lists/partial", "cache/archives/partial", "etc/parts", "etc/preferences.d"):
            (place / name).mkdir(parents=True, exist_ok=True)
        if status is None:
            status = place / "status"
            status.touch()
        keys = ",".join(map(str, distributions.keyrings(_DEBIAN, (), Path("/"))))
        (place / "etc/sources.list").write_text(
            f"deb [signed-by={keys}] {self.mirror} {RELEASE} main\n"
            f"deb-src [signed-by={keys}] {self.mirror} {RELEASE} main\n"
        )
        (place / "apt.conf").write_text(
            f'Dir "{place}";\nDir::State "{place}";\nDir::State::lists "lists";\n'
            f'Dir::State::status "{status}";\nDir::Cache "cache";\nDir::Log "log";\n'
            'Dir::Etc "etc";\nDir::Etc::parts "parts";\nDir::Etc::main "none";\n'
            'Dir::Etc::sourcelist "sources.list";\nDir::Etc::sourceparts "none";\n'
            'Dir::Etc::preferencesparts "preferences.d";\nDir::Etc::trustedparts "none";\n'
            f'APT::Architecture "{architecture}";\nAPT::Architectures {{ "{architecture}"; }};\n'
            'Acquire::Languages "none";\n\n'
            f'APT::Sandbox::User "root";\nAPT::Install-Recommends "false";\n'
            + distributions.machine_settings()
        )

    def get(self, *arguments: str, directory: Path | None = None) -> str:
        """The output of `apt-get ARGUMENTS`."""
        done = self._run("apt-get", "--quiet=2", *arguments, directory=directory or self.place)
        if done.returncode:
            raise SystemExit(f"apt-get {arguments[0]} failed: {done.stderr.strip()[-500:]}")
        return done.stdout

    def source(self, name: str, directory: Path) -> None:
        """Fetch a source package into a directory: the newest version that the mirror has. (Lists
        may name a version before, or after, a mirror that caches has its files.)"""
        shown = self._run("apt-cache", "showsrc", "--only-source", name, directory=self.place)
        versions = re.findall(r"^Version: (.+)$", shown.stdout, re.M)
        for version in reversed(versions):
            command = ("apt-get", "--quiet=2", "source", "--download-only", f"{name}={version}")
            done = self._run(*command, directory=directory)
            if done.returncode == 0:
                return
            for file in directory.glob(f"{name}_*.dsc"):
                file.unlink()
        raise SystemExit(f"the source package {name} cannot be fetched: versions {versions}")

    def fetch(self, path: str, file: Path, digest: str) -> None:
        """Fetch a file of the archive by its path there; `digest` as in SHA256:…"""
        command = ("/usr/lib/apt/apt-helper", "download-file", f"{self.mirror}/{path}", str(file))
        done = self._run(*command, digest, directory=self.place)
        if done.returncode:
            raise SystemExit(f"{path} cannot be fetched: {done.stderr.strip()[-500:]}")

    def _run(self, *command: str, directory: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            env={**os.environ, "APT_CONFIG": str(self.place / "apt.conf"), "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            cwd=directory,
        )


def sources(names: Sequence[str]) -> dict[str, Path]:
    """The .dsc file of each source package, with the files it names beside it."""
    place = cache() / "bench" / "sources"
    place.mkdir(parents=True, exist_ok=True)

    def there() -> dict[str, Path]:
        return {name: file for name in names for file in place.glob(f"{name}_*.dsc")}

    missing = [name for name in names if name not in there()]
    if missing:
        with tempfile.TemporaryDirectory(prefix="sources-", dir=place.parent) as temporary:
            apt, fetched = Apt(Path(temporary) / "apt", "amd64"), Path(temporary) / "fetched"
            fetched.mkdir()
            apt.get("update")
            for name in missing:
                apt.source(name, fetched)
            # The .dsc last: it says that the others are there.
            for file in sorted(fetched.iterdir(), key=lambda each: each.suffix == ".dsc"):
                file.rename(place / file.name)
    return there()


def version(description: Path) -> str:
    """The version that a .dsc file is of."""
    match = re.search(r"^Version: (.+)$", description.read_text(), re.M)
    assert match is not None, description
    return match[1]


def partial_archive(tree: Path, architecture: str, packages: Sequence[str]) -> Path:
    """A directory with the release's own signed lists for an architecture and the packages that the
    root file system `tree` lacks for `packages`, laid out as the archive is.

    Made once for the state of the tree's package database. `pool/` has the packages.
    """
    status = tree / "var/lib/dpkg/status"
    key = hashlib.sha256(status.read_bytes() + " ".join(packages).encode()).hexdigest()[:12]
    place = cache() / "bench" / f"archive-{architecture}-{key}"
    if place.is_dir():
        return place
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="archive-", dir=place.parent) as temporary:
        apt, new = Apt(Path(temporary) / "apt", architecture, status), Path(temporary) / "new"
        apt.get("update")
        suite = new / "dists" / RELEASE
        binary = f"main/binary-{architecture}"
        release = next((apt.place / "lists").glob(f"*_{RELEASE}_InRelease"))
        match = re.search(
            rf"^ ([0-9a-f]{{64}}) +\d+ {binary}/Packages\.xz$", release.read_text(), re.M
        )
        assert match is not None, release
        by_hash = suite / binary / "by-hash/SHA256" / match[1]
        by_hash.parent.mkdir(parents=True)
        shutil.copy(release, suite / "InRelease")
        apt.fetch(f"dists/{RELEASE}/{by_hash.relative_to(suite)}", by_hash, f"SHA256:{match[1]}")
        os.link(by_hash, suite / binary / "Packages.xz")
        install = ("install", "--yes", *packages)
        uris = re.findall(r"^'(\S+)' (\S+) \d+", apt.get(*install, "--print-uris"), re.M)
        apt.get(*install, "--download-only")
        for uri, name in uris:
            path = new / "pool" / unquote(uri).rpartition("/pool/")[2]
            path.parent.mkdir(parents=True, exist_ok=True)
            (apt.place / "cache/archives" / name).rename(path)
        new.chmod(0o755)
        new.rename(place)
    return place


@contextmanager
def served(root: Path) -> Iterator[str]:
    """Serve the directory by HTTP on loopback; yields its address."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

    handler = functools.partial(Handler, directory=str(root))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()
