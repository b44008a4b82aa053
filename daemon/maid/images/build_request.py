"""What is asked of `maid build`, checked as far as it can be before anything is done."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from pathlib import Path

from maid.errors import MaidError, UsageError
from maid.images import regular
from maid.images.layout import Layout
from maid.images.references import REGISTRY, Reference, parse_layout, parse_reference
from maid.images.skopeo import Access
from maid.images.staging import require_free
from maid.images.surroundings import build_platform
from maid.platforms import Platform, parse

CONTAINERFILES = ("Containerfile", "Dockerfile")
"""Looked for in the context in this order, as buildah does."""

MEMORY_PER_BUILD = 2 << 30
"""Bytes that a build is taken to need: what compilers' projects ask for each job (LLVM, "Getting
Started": 2 GiB of RAM for each job). More at once than that ends in the kernel killing one
(facts/peers.md: docker/build-push-action#654)."""

NETWORKS = {"": "host", "default": "host", "host": "host", "none": "none"}
"""What --network takes, as buildah is told: docker's words. The default is that of `maid run`."""

FORMATS = ("oci", "docker")

MAX_CONTAINERFILE = 4 << 20
"""Bytes of a Containerfile: far more than any has."""


@dataclass(frozen=True)
class Request:
    """The command line, as it was typed. `epoch` is SOURCE_DATE_EPOCH, "" where it is not set;
    `jobs` 0 has maid choose."""

    context: Path
    platforms: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    file: str = ""
    build_args: tuple[str, ...] = ()
    target: str = ""
    labels: tuple[str, ...] = ()
    annotations: tuple[str, ...] = ()
    secrets: tuple[str, ...] = ()
    ssh: tuple[str, ...] = ()
    build_contexts: tuple[str, ...] = ()
    no_cache: bool = False
    pull: bool = False
    network: str = ""
    output: str = ""
    push: bool = False
    jobs: int = 0
    keep_going: bool = False
    format: str = "oci"
    index: bool = False
    accelerate: bool = True
    access: Access = field(default_factory=Access)
    root: Path | None = None
    log_dir: Path | None = None
    epoch: str = ""


@dataclass(frozen=True)
class Plan:
    """A request that makes sense: the platforms, normalised and each once, in order; the
    Containerfile's text and where it is; where the result goes (`destinations` empty: the user's
    own storage, under `names`)."""

    request: Request
    platforms: tuple[Platform, ...]
    context: Path
    containerfile: Path | None
    text: str
    destinations: tuple[Reference, ...]
    names: tuple[str, ...]
    annotations: dict[str, str]
    network: str

    @property
    def makes_index(self) -> bool:
        """Whether the result is an index: for one platform some consumers refuse one."""
        return len(self.platforms) > 1 or self.request.index


def plan(request: Request, stdin: str = "") -> Plan:
    """Check a request. `stdin` is the Containerfile of `-f -`. Raises UsageError, MaidError."""
    platforms = _platforms(request.platforms)
    context = _context(request.context)
    containerfile, text = _containerfile(request, context, stdin)
    destinations = _destinations(request)
    if request.format not in FORMATS:
        raise UsageError(f"--format is oci or docker, not {request.format!r}")
    if request.network not in NETWORKS:
        raise UsageError(
            f"--network is host or none, not {request.network!r}",
            "RUN lines have the machine's network if nothing is said, as steps of maid run",
        )
    if request.epoch and not (request.epoch.isascii() and request.epoch.isdigit()):
        raise UsageError(
            f"SOURCE_DATE_EPOCH is {request.epoch!r}, which is no number of seconds since 1970"
        )
    if request.jobs < 0:
        raise UsageError(f"--jobs is a number of builds, not {request.jobs}")
    for text_of, option in ((request.labels, "--label"), (request.build_args, "--build-arg")):
        for each in text_of:
            if not each.partition("=")[0].strip():
                raise UsageError(f"{option} takes NAME=VALUE, not {each!r}")
    return Plan(
        request,
        platforms,
        context,
        containerfile,
        text,
        destinations,
        () if destinations else tuple(_local(tag) for tag in request.tags),
        _annotations(request.annotations),
        NETWORKS[request.network],
    )


def _platforms(given: tuple[str, ...]) -> tuple[Platform, ...]:
    names = [name.strip() for text in given for name in text.split(",")]
    if not names:
        return (build_platform(),)
    found: dict[Platform, None] = {}
    for name in names:
        platform = parse(name)
        if platform.os != "linux":
            raise UsageError(
                f"{platform} cannot be built here: RUN lines need {platform.os}",
                "maid builds for linux",
            )
        if platform.os_version or platform.os_features:
            raise UsageError(f"{platform} has a version or features, which linux images have not")
        found[platform.normalized()] = None
    return tuple(found)


def _context(path: Path) -> Path:
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        raise UsageError(f"the build context {path} cannot be read: {error.strerror}") from error
    if not stat.S_ISDIR(mode):
        raise UsageError(
            f"the build context {path} is no directory",
            "unpack it first, or name the Containerfile with --file",
        )
    return Path(os.path.abspath(path))


def _containerfile(request: Request, context: Path, stdin: str) -> tuple[Path | None, str]:
    if request.file == "-":
        if not stdin.strip():
            raise UsageError("the Containerfile on standard input is empty")
        return None, stdin
    if request.file:
        # As docker and buildah have it: from where one is, else from the context.
        places = [Path(request.file), context / request.file]
    else:
        places = [context / name for name in CONTAINERFILES]
    for place in places:
        if place.exists():
            try:
                data = regular.read(place, MAX_CONTAINERFILE)
            except OSError as error:
                hint = "--file - reads standard input" if error.errno == errno.EINVAL else ""
                raise UsageError(f"{place} cannot be read: {error.strerror}", hint) from error
            return Path(os.path.abspath(place)), containerfile_text(data, str(place))
    if request.file:
        raise UsageError(f"there is no Containerfile {request.file}")
    raise UsageError(
        f"{context} has neither a Containerfile nor a Dockerfile", "--file names another one"
    )


def containerfile_text(data: bytes, about: str) -> str:
    """A Containerfile's text, from which the same bytes can be had again: os.fsencode does not care
    which encoding they are in. Raises UsageError where there is too much of it."""
    if len(data) > MAX_CONTAINERFILE:
        raise UsageError(
            f"{about} has more than {MAX_CONTAINERFILE >> 20} MiB, which is no Containerfile"
        )
    return data.decode(errors="surrogateescape")


def _destinations(request: Request) -> tuple[Reference, ...]:
    tags = [(text, parse_reference(text)) for text in request.tags]
    if request.push and request.output:
        raise UsageError("--push and --output are two destinations", "give one of them")
    for text, reference in tags:
        if reference.transport != REGISTRY:
            raise UsageError(
                f"the tag {text} is not a repository's",
                f"--output {text}" if reference.transport == "oci" else "for example app:1.0",
            )
        if reference.digest:
            raise UsageError(f"the tag {text} has a digest, which the result may not have")
    if request.output:
        layout = parse_layout(request.output, "--output")
        _check_layout(layout.directory)
        if layout.tag or not tags:
            return (layout,)
        named = dict.fromkeys(reference.tag or "latest" for _, reference in tags)
        return tuple(replace(layout, tag=tag) for tag in named)
    if not request.push:
        return ()
    if not tags:
        raise UsageError("--push needs to know where to", "--tag REPOSITORY:TAG")
    repositories = {reference.name for _, reference in tags}
    if len(repositories) > 1:
        raise UsageError(
            f"the tags are in {len(repositories)} repositories: {', '.join(sorted(repositories))}",
            "push to one, then maid index create copies it to others",
        )
    return tuple(reference for _, reference in tags)


def _check_layout(directory: Path) -> None:
    """That a layout can be written there: found out now, and not when all is built."""
    if (directory / "oci-layout").exists():
        Layout(directory)
    else:
        require_free(directory)
    place = directory
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise MaidError(
            f"--output: {place} cannot be written to: {error.strerror}", "name another directory"
        ) from error


def _local(tag: str) -> str:
    """A tag's name in the local storage, where what has no registry is in `localhost/`."""
    reference = parse_reference(tag)
    first, slash, _ = reference.name.partition("/")
    named = slash and ("." in first or ":" in first or first == "localhost")
    name = reference.name if named else f"localhost/{reference.name}"
    return f"{name}:{reference.tag or 'latest'}"


def pull_access(request: Request, bases: Collection[str]) -> Access:
    """How base images are fetched, whose names are `bases` but for those of this machine.

    With --push, --tls-verify and --cert-dir speak of the tags' registry: they are no word about
    another one, from which a base may come. Passwords are by registry anyway.
    """
    given = request.access
    if not request.push:
        return given
    there = {parse_reference(tag).host for tag in request.tags}
    if all(_host(each) in there for each in bases):
        return given
    return replace(given, cert_dir="", tls_verify=None)


def _host(name: str) -> str:
    try:
        return parse_reference(name).host
    except MaidError:
        return ""  # nothing that options speak of


def _annotations(given: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for text in given:
        name, assigned, value = text.partition("=")
        if not assigned or not name:
            raise UsageError(f"--annotation takes NAME=VALUE, not {text!r}")
        found[name] = value
    return found


def choose_jobs(wanted: int, platforms: int, cores: int, memory: int) -> int:
    """How many platforms are built at once: what is wanted, else as many as there are, at most one
    for each core and one for each MEMORY_PER_BUILD of the memory (bytes) that is available."""
    if wanted:
        return min(wanted, platforms)
    return max(1, min(platforms, cores, memory // MEMORY_PER_BUILD))


def available_memory() -> int:
    """Bytes of memory that could be used now without swapping (proc(5), MemAvailable)."""
    with open("/proc/meminfo") as file:
        for line in file:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    return MEMORY_PER_BUILD
