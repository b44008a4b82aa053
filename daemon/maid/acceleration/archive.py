"""A distribution's archive: which packages it has, in which versions, and getting them.

Everything goes through apt, with directories and a configuration of its own, so that nothing of the
machine's apt changes; what the machine's apt says of proxies and the like is taken over. apt checks
the archive's signature, here against keys that this machine trusts, and every package against the
signed lists. Two architectures are asked for at once: the foreign one, whose programs are to be
replaced, and the host's.

Knows apt, packages and versions; where archives are is distributions.py's, what is taken out of the
packages making.py's.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from maid.acceleration.distributions import Distribution, Mirrors, machine_settings
from maid.acceleration.model import Machine
from maid.errors import MaidError

KEPT = 30 * 86400.0
"""Seconds that a package is kept for which nothing is made from it: making a set again, after an
upgrade of maid, then needs no network."""

_UPDATE_SECONDS = 600.0
_DOWNLOAD_SECONDS = 1800.0


# What no tool consists of: most of the files of the packages, and of the time to unpack them.
_NOT_UNPACKED = tuple(
    f"./usr/{name}"
    for name in ("share/doc", "share/info", "share/lintian", "share/locale", "share/man", "include")
)

Tell = Callable[[str], None]
"""Is told of each step, in a few words."""


class ArchiveError(MaidError):
    """The archive could not be asked, or does not have what is wanted."""


@dataclass(frozen=True)
class Package:
    """One version of one binary package. `source_version` is that of its source package."""

    name: str
    version: str
    architecture: str
    source: str
    source_version: str
    size: int
    depends: tuple[str, ...]

    @property
    def spelled(self) -> str:
        """As apt-get takes it: name:architecture=version."""
        return f"{self.name}:{self.architecture}={self.version}"


def source_version(version: str) -> str:
    """The version of the source that a binary version was built from.

    Without +bN, a rebuild without changes (Debian Policy, 5.6.12), and crossN, with which Debian's
    cross compilers (gcc-N-cross) end the version of the gcc-N source they are built from.
    """
    return re.sub(r"(\+b\d+|cross\d+)+$", "", version)


class _Version:
    """A version in dpkg's order (deb-version(7)): epoch, upstream version, revision."""

    def __init__(self, text: str) -> None:
        epoch, _, rest = text.rpartition(":")
        upstream, _, revision = rest.rpartition("-") if "-" in rest else (rest, "", "0")
        self.key = (int(epoch or 0), _order(upstream), _order(revision))

    def __lt__(self, other: _Version) -> bool:
        return self.key < other.key


def _order(text: str) -> list[tuple[list[int], int]]:
    """Parts without and with digits in turn. "~" sorts before the end, letters before the rest."""
    parts = []
    for letters, digits in re.findall(r"(\D*)(\d*)", text):
        ranks = [-1 if c == "~" else ord(c) if c.isalpha() else ord(c) + 256 for c in letters]
        parts.append(([*ranks, 0], int(digits or 0)))
    return parts


class Archive:
    """One release of a distribution for the host's and one foreign architecture.

    `directory` is apt's and belongs to this release and pair; `keyrings` are files of keys that the
    archive may be signed with. Call `update` first.
    """

    def __init__(
        self,
        directory: Path,
        distribution: Distribution,
        codename: str,
        native: Machine,
        foreign: Machine,
        keyrings: Sequence[Path],
    ) -> None:
        self.directory = directory
        self.distribution = distribution
        self.codename = codename
        self.native = native
        self.foreign = foreign
        self._keyrings = tuple(keyrings)
        self._paragraphs: dict[tuple[str, str], list[str]] = {}

    def update(self, candidates: Iterable[Mirrors]) -> Mirrors:
        """Fetch the lists from the first of the mirrors that works; returns it.

        One that lacks a pocket's list (a mirror between two states) serves with what it has: what
        is not in a list stays emulated. Raises ArchiveError with what apt said of the last one.
        """
        if shutil.which("apt-get") is None:
            raise ArchiveError(
                "this machine has no apt-get, with which packages are fetched and checked",
                "give a native root file system of the same release: maid accel add --native-root",
            )
        if not self._keyrings:
            raise ArchiveError(
                f"this machine has no keys of {self.distribution.name}'s archive",
                f"install {self.distribution.keyring_package}, or name a file of keys:"
                " [acceleration] keyrings",
            )
        said = "no mirror is known"
        for mirrors in candidates:
            self._configure(mirrors)
            done = self._apt("update", "--error-on=any", seconds=_UPDATE_SECONDS)
            if done.returncode == 0 or self._has_lists():
                self._paragraphs.clear()
                return mirrors
            said = _last_words(done.stderr or done.stdout)
        raise ArchiveError(
            f"the package lists of {self.distribution.name} {self.codename} cannot be had: {said}",
            "is the network there, and the mirror right? ([acceleration] mirrors)",
        )

    def versions(self, name: str, architecture: str) -> list[Package]:
        """All versions of a package that the archive has, the newest first as apt orders them."""
        self._load()
        found = map(parse_package, self._paragraphs.get((name, architecture), ()))
        return sorted({p for p in found if p}, key=lambda p: _Version(p.version), reverse=True)

    def download(self, packages: Iterable[Package], into: Path) -> dict[Package, Path]:
        """Fetch the packages into a directory that keeps them; the file of each. What is there and
        was not used for KEPT seconds goes. Raises ArchiveError."""
        wanted = sorted(set(packages), key=lambda each: each.spelled)
        into.mkdir(parents=True, exist_ok=True)
        files = {package: into / file_name(package) for package in wanted}
        missing = []
        for package, file in files.items():
            # A copy that did not come to its end (a full disk, a kill) is no package.
            if not file.exists() or (package.size and file.stat().st_size != package.size):
                file.unlink(missing_ok=True)
                missing.append(package)
        for start in range(0, len(missing), 100):
            part = [package.spelled for package in missing[start : start + 100]]
            done = self._apt("download", *part, seconds=_DOWNLOAD_SECONDS, cwd=into)
            if done.returncode:
                raise ArchiveError(
                    f"packages cannot be fetched: {_last_words(done.stderr)}",
                    "is the network there, and room on the disk?",
                )
        for file in files.values():
            if not file.exists():
                raise ArchiveError(f"apt-get download did not leave {file.name}")
            os.utime(file)
        for file in into.glob("*.deb"):
            if time.time() - file.stat().st_mtime > KEPT:
                file.unlink()
        return files

    def unpacked(
        self, natives: Iterable[Package], foreigns: Iterable[Package], work: Path, tell: Tell
    ) -> tuple[Path, Path]:
        """Fetch the packages and unpack them below `work`: a root of each architecture's. Raises
        ArchiveError."""
        both = ((set(natives), work / "native"), (set(foreigns), work / "foreign"))
        wanted = both[0][0] | both[1][0]
        tell(f"fetching {len(wanted)} packages")
        files = self.download(wanted, self.directory.parent / "packages")
        tell("unpacking them")
        for packages, root in both:
            for package in sorted(packages, key=lambda each: each.spelled):
                unpack(files[package], root)
        return both[0][1], both[1][1]

    # apt --------------------------------------------------------------------------------------

    def _configure(self, mirrors: Mirrors) -> None:
        root = self.directory
        for name in ("lists/partial", "cache/archives/partial", "etc/parts", "etc/preferences.d"):
            (root / name).mkdir(parents=True, exist_ok=True)
        (root / "status").touch()
        sources = root / "etc/sources.list"
        text = "".join(self._sources(mirrors))
        if not sources.exists() or sources.read_text() != text:
            # Lists of other archives, or checked with other keys, are not to be found again.
            shutil.rmtree(root / "lists", ignore_errors=True)
            (root / "lists/partial").mkdir(parents=True)
            sources.write_text(text)
        _give_to_apt(root / "lists/partial")
        architectures = f'"{self.native.debian}"; "{self.foreign.debian}";'
        (root / "apt.conf").write_text(
            f'Dir "{root}";\n'
            f'Dir::State "{root}";\n'
            'Dir::State::lists "lists";\nDir::State::status "status";\n'
            'Dir::Cache "cache";\nDir::Etc "etc";\nDir::Etc::parts "parts";\n'
            'Dir::Etc::sourcelist "sources.list";\nDir::Etc::sourceparts "none";\n'
            'Dir::Etc::preferencesparts "preferences.d";\n'
            'Dir::Etc::trustedparts "none";\n'
            'Dir::Etc::main "none";\nDir::Log "log";\n'
            f'APT::Architecture "{self.native.debian}";\n'
            f"APT::Architectures {{ {architectures} }};\n"
            'Acquire::Languages "none";\nAcquire::GzipIndexes "false";\n' + machine_settings()
        )

    def _sources(self, mirrors: Mirrors) -> Iterator[str]:
        keys = ",".join(str(path) for path in self._keyrings)
        homes: dict[str, list[str]] = {}
        for architecture in dict.fromkeys((self.native.debian, self.foreign.debian)):
            ported = mirrors.ports and architecture not in self.distribution.main_architectures
            homes.setdefault(mirrors.ports if ported else "", []).append(architecture)
        # One line for both where one archive has both: apt takes a second one for a mistake.
        for ports, architectures in homes.items():
            for pocket, kind in self.distribution.pockets:
                uri = ports or (mirrors.security if kind == "security" else mirrors.main)
                yield (
                    f"deb [arch={','.join(architectures)} signed-by={keys}] {uri}"
                    f" {pocket.format(self.codename)} {self.distribution.components}\n"
                )

    def _apt(
        self, *arguments: str, seconds: float, cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        environment = {
            name: value
            for name, value in os.environ.items()
            if name.lower().endswith("_proxy") or name == "PATH"
        }
        try:
            return subprocess.run(
                ["apt-get", "--quiet=2", *arguments],
                cwd=cwd or self.directory,
                env={**environment, "APT_CONFIG": str(self.directory / "apt.conf"), "LC_ALL": "C"},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=seconds,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ArchiveError(f"apt-get {arguments[0]} failed: {error}") from error

    def _has_lists(self) -> bool:
        """Whether apt has the release's own lists, which it has checked, for both architectures."""
        pocket = self.distribution.pockets[0][0].format(self.codename)
        return all(
            any((self.directory / "lists").glob(f"*_dists_{pocket}_main_binary-{name}_Packages"))
            for name in (self.native.debian, self.foreign.debian)
        )

    def _load(self) -> None:
        """Cut the lists, some 60 MB each, into paragraphs; only those asked for are parsed."""
        if self._paragraphs:
            return
        for file in sorted((self.directory / "lists").glob("*_Packages")):
            architecture = file.name.removesuffix("_Packages").rpartition("_binary-")[2]
            for paragraph in file.read_text(errors="replace").split("\n\n"):
                if paragraph.startswith("Package: "):
                    name = paragraph[9 : paragraph.find("\n")]
                    self._paragraphs.setdefault((name, architecture), []).append(paragraph)


def _give_to_apt(partial: Path) -> None:
    """Let apt's own user write there, as who apt talks to servers (APT::Sandbox::User): apt does it
    as root where that user cannot reach the directory."""
    if os.geteuid() == 0:
        with contextlib.suppress(LookupError, OSError):
            shutil.chown(partial, "_apt")
            partial.chmod(0o700)


def unpack(package: Path, into: Path) -> None:
    """Unpack a .deb's files, less documentation and headers; nothing of it is executed. Raises
    ArchiveError."""
    into.mkdir(parents=True, exist_ok=True)
    command = ["tar", "--extract", "--no-same-owner", f"--directory={into}"]
    try:
        with subprocess.Popen(
            ["dpkg-deb", "--fsys-tarfile", package],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ) as archive:
            done = subprocess.run(
                [*command, *(f"--exclude={path}" for path in _NOT_UNPACKED)],
                stdin=archive.stdout,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=300,
            )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ArchiveError(f"{package.name} cannot be unpacked: {error}") from error
    if done.returncode or archive.returncode:
        raise ArchiveError(
            f"{package.name} cannot be unpacked: {_last_words(done.stderr)}",
            "is there room on the disk?",
        )


def parse_package(paragraph: str) -> Package | None:
    """The package that a paragraph of a list, or of dpkg's status, is about."""
    fields = dict(
        line.split(": ", 1)
        for line in paragraph.split("\n")
        if line.startswith(
            ("Package: ", "Version: ", "Architecture: ", "Source: ", "Size: ", "Depends: ", "Pre-D")
        )
    )
    name, version = fields.get("Package", ""), fields.get("Version", "")
    if not name or not version:
        return None
    source, _, rest = fields.get("Source", name).partition(" ")
    # "Source: gcc-14-cross (9)" is another numbering: the binary's version tells the source's.
    stated = rest.strip("() ")
    relations = ", ".join(fields[key] for key in ("Pre-Depends", "Depends") if key in fields)
    return Package(
        name,
        version,
        fields.get("Architecture", ""),
        source,
        source_version(version if source.endswith("-cross") else stated or version),
        int(fields.get("Size", "0") or 0),
        tuple(
            re.split(r"[ (:|]", relation.strip(), maxsplit=1)[0]
            for relation in relations.split(",")
            if relation.strip()
        ),
    )


def file_name(package: Package) -> str:
    """What apt-get download calls it: the version's colon is escaped."""
    version = package.version.replace(":", "%3a")
    return f"{package.name}_{version}_{package.architecture}.deb"


def _last_words(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    # The last error only says that there were others.
    errors = [line for line in lines if line.startswith(("E:", "Err:"))]
    return errors[0][:500] if errors else (lines or ["nothing was said"])[-1][:500]
