"""`maid build`: one image a platform, side by side, and one index that names them all.

Every platform is executed once before anything is built. Then buildah builds each in a storage of
its own; the images are looked at, gathered in a layout of their own, and what names them is
published whole or not at all. What a build has done stays in its platform's storage, so that the
next try begins there.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path

from maid.errors import MaidError
from maid.images import cache
from maid.images.build_request import Plan, available_memory, choose_jobs, pull_access
from maid.images.build_storage import opened
from maid.images.buildah import (
    Root,
    buildah_version,
    default_root,
    full_disk,
    need_programs,
)
from maid.images.containerfile import images as images_named
from maid.images.export import Layers, export, look_at
from maid.images.index import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    OCI_INDEX,
    Descriptor,
    Index,
    PlatformObject,
    describe,
    encode,
    read_manifest,
)
from maid.images.layout import Layout
from maid.images.local import LocalImages, Stored, local_images, store
from maid.images.platform_build import BuildFailed, PlatformBuild
from maid.images.progress import Progress, State, Watcher
from maid.images.publish import Part, publish
from maid.images.references import LAYOUT, Reference
from maid.images.results import check
from maid.images.skopeo import Skopeo
from maid.images.sources import DirectorySource, Found, LayoutSource, Source
from maid.images.surroundings import Surroundings, Target, prepare
from maid.images.transfer import blobs_of

LOGS_KEPT = 20
"""Builds whose logs are kept below the build directory."""

LOG_SECONDS = 86400.0
"""How long all logs are kept."""


@dataclass
class Result:
    """What came of one platform."""

    target: Target
    progress: Progress
    warnings: list[str] = field(default_factory=list)
    hints: list[str] = field(default_factory=list)
    part: Part | None = None

    @property
    def descriptor(self) -> Descriptor | None:
        """The image's manifest; None where it was not built."""
        return self.part.descriptor if self.part else None


@dataclass
class Outcome:
    """What came of a build. `descriptor` is what `names` stand for now; None where nothing was
    published. `id` is the image's in the user's storage, "" for a list and elsewhere; `warnings`
    are those that are about no platform of its own."""

    results: list[Result]
    jobs: int
    surroundings: Surroundings
    logs: Path
    descriptor: Descriptor | None = None
    names: tuple[str, ...] = ()
    id: str = ""
    warnings: tuple[str, ...] = ()

    @property
    def failed(self) -> list[Result]:
        """Those that failed."""
        return [each for each in self.results if each.progress.state is State.FAILED]


class Ended(Exception):
    """Whoever started the build wants it to end; raised in the main thread by a signal's handler.

    `status` is the exit status, 128+N.
    """

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


@dataclass
class Publishing:
    """How far publishing has come, for whoever ends it: `begun` are the names that may stand for
    the result by now, `done` says that all do."""

    begun: tuple[str, ...] = ()
    done: bool = False


def build(plan: Plan, socket: str, watcher: Watcher, publishing: Publishing) -> Outcome:
    """Build and publish. Raises MaidError where it could not begin or not publish; that a platform
    failed is in the outcome, and nothing is published then."""
    try:
        return _build(plan, socket, watcher, publishing)
    except OSError as error:
        about = f"{error.filename}: " if error.filename else ""
        words = f"{about}{error.strerror or error}"
        root = plan.request.root or default_root()
        raise MaidError(f"the build could not go on: {words}", full_disk(words, root)) from error


def _build(plan: Plan, socket: str, watcher: Watcher, publishing: Publishing) -> Outcome:
    request = plan.request
    need_programs()
    surroundings, targets = prepare(socket, list(plan.platforms), request.accelerate)
    root = Root(request.root or default_root()).create()
    logs = _logs(request.log_dir, root)
    cores = len(os.sched_getaffinity(0))
    jobs = choose_jobs(request.jobs, len(targets), cores, available_memory())
    results = [
        Result(each, Progress(str(each.platform), log=str(logs / f"{each.slug}.log")))
        for each in targets
    ]
    outcome = Outcome(results, jobs, surroundings, logs)
    with root.work(surroundings) as work, cache.opened(root.path / "layers") as kept:
        layout = Layout.create(work / "layout")
        local = local_images(os.environ)
        driver, why = root.driver(surroundings, work)
        outcome.warnings = (why,) if why else ()
        watcher.begin([each.progress for each in results])
        builder = _Builder(
            plan, surroundings, root, work, layout, Layers(kept), local, driver, watcher
        )
        builder.run(results, jobs)
        if all(each.progress.state is State.BUILT for each in results):
            stored = _publish(plan, layout, results, publishing)
            outcome.descriptor, outcome.names = stored.descriptor, stored.names
            outcome.id = stored.id
    return outcome


class _Builder:
    """The builds of all platforms."""

    def __init__(
        self,
        plan: Plan,
        surroundings: Surroundings,
        root: Root,
        work: Path,
        layout: Layout,
        layers: Layers,
        local: LocalImages,
        driver: str,
        watcher: Watcher,
    ) -> None:
        self.plan = plan
        self.surroundings = surroundings
        self.root = root
        self.work = work
        self.layout = layout
        self.layers = layers
        self.local = local
        self.driver = driver
        self.watcher = watcher
        self.version = buildah_version(surroundings)
        self._is_over = False

    def run(self, results: Sequence[Result], jobs: int) -> None:
        """Build all, `jobs` at once; unless all are to be tried, one that fails ends the others."""
        builds = {
            PlatformBuild(self.plan, each.target, each.progress, self.watcher, self.version): each
            for each in results
        }
        with ThreadPoolExecutor(jobs) as pool, _ended_with(builds):
            waiting = {pool.submit(self._one, build, builds[build]) for build in builds}
            while waiting:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                for future in done:
                    future.result()
                if self._is_over:
                    for each in builds:
                        each.kill()

    def _one(self, build: PlatformBuild, result: Result) -> None:
        """Build one platform."""
        progress = build.progress
        try:
            if build.is_ended or self._is_over:
                build.kill()
                raise BuildFailed("it was not begun")
            progress.started = time.monotonic()
            progress.state = State.PREPARING
            self._build(build, result)
            progress.state = State.BUILT
        except (MaidError, OSError, subprocess.SubprocessError) as failure:
            progress.state = State.ENDED if build.is_ended else State.FAILED
            progress.error = progress.error or getattr(failure, "message", "") or str(failure)
            if not isinstance(failure, BuildFailed):
                progress.step = None  # that one worked
                progress.tail.clear()
            if hint := getattr(failure, "hint", ""):
                result.hints.append(hint)
            if progress.state is State.FAILED and not self.plan.request.keep_going:
                self._is_over = True
        progress.ended = time.monotonic()
        self.watcher.changed(progress)

    def _build(self, build: PlatformBuild, result: Result) -> None:
        target = result.target
        needed = images_named(self.plan.text, target.arguments() | _given(self.plan))
        directory = self.work / target.slug
        with opened(
            self.root,
            target.slug,
            self.plan.request.epoch,
            directory,
            self.driver,
            self.surroundings,
        ) as storage:
            build.use(storage)
            own = self.local.provide(needed, target, storage, build.go_on)
            bases = {each.name for each in needed} - own
            build.access = pull_access(self.plan.request, bases)
            image = build.run(storage)
            self._tell_acceleration(build)
            built = look_at(storage, image)
            skopeo = Skopeo(build.access)
            exported = export(storage, image, built, self.layers, self.layout, skopeo, build.go_on)
        checked = check(exported.descriptor, built, self.layout, target.platform, build.go_on)
        result.warnings += [*exported.warnings, *checked.warnings]
        if build.progress.mismatch:
            result.warnings.append(build.progress.mismatch)
        result.part = Part(
            self._source(checked.descriptor, directory / "image"), checked.descriptor
        )

    def _tell_acceleration(self, build: PlatformBuild) -> None:
        """Settle whether native tools could stand in, where the shim's word is not enough."""
        progress, where = build.progress, self.surroundings
        if where.store and not where.runtime.name and not build.target.is_native:
            progress.accelerated = True  # the room's own /dev has it
        if progress.accelerated and not where.sets:
            progress.accelerated = False
            progress.not_accelerated = "the native store was empty"

    def _source(self, descriptor: Descriptor, directory: Path) -> Source:
        """Where the image is to be read from. skopeo does not find Docker's in a layout, so such a
        one gets a directory as its transport `dir:` has it."""
        if descriptor.mediaType != DOCKER_MANIFEST:
            return LayoutSource(Reference(LAYOUT, str(self.layout.path)))
        directory.mkdir()
        manifest = read_manifest(self.layout.read(descriptor))
        for digest in {descriptor.digest, *blobs_of(manifest)}:
            os.link(self.layout.blob(digest), directory / digest.partition(":")[2])
        return DirectorySource(Reference("dir", str(directory)), directory, Skopeo())


@contextlib.contextmanager
def _ended_with(builds: Sequence[PlatformBuild] | dict[PlatformBuild, Result]) -> Iterator[None]:
    """Whatever ends this block ends the builds."""
    try:
        yield
    except BaseException:
        for each in builds:
            each.kill()
        raise


def _given(plan: Plan) -> dict[str, str]:
    """The build arguments of the command line."""
    found = {}
    for text in plan.request.build_args:
        name, assigned, value = text.partition("=")
        if assigned or name in os.environ:
            found[name] = value if assigned else os.environ[name]
    return found


def _logs(wanted: Path | None, root: Root) -> Path:
    """The directory for this build's logs; without a wish one of its own, of which the last few
    are kept."""
    if wanted is None:
        forget_logs(root.path / "logs")
        wanted = root.path / "logs" / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    try:
        wanted.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MaidError(f"the log directory {wanted} cannot be made: {error.strerror}") from error
    return wanted.absolute()


def forget_logs(directory: Path) -> None:
    """Remove the logs of old builds, but for the last LOGS_KEPT - 1, those of the last day and
    those that are being written."""
    builds = sorted(directory.iterdir())
    for old in builds[: max(0, len(builds) - LOGS_KEPT + 1)]:
        with contextlib.suppress(OSError):
            files = list(old.glob("*.log"))
            newest = max(each.stat().st_mtime for each in (old, *files))
            process = old.name.rpartition("-")[2]
            if time.time() - newest < LOG_SECONDS or os.path.exists(f"/proc/{process}"):
                continue
            for file in files:
                file.unlink(missing_ok=True)
            old.rmdir()


def _publish(
    plan: Plan, layout: Layout, results: Sequence[Result], publishing: Publishing
) -> Stored:
    """Have the destinations name the result, all of it."""
    parts = [each.part for each in results if each.part]
    top = _index(plan, results) if plan.makes_index else parts[0].source.find(parts[0].descriptor)

    def naming(name: Reference | str) -> None:
        publishing.begun += (str(name),)

    if plan.destinations:
        skopeo = Skopeo(plan.request.access)
        descriptor = publish(skopeo, parts, top, list(plan.destinations), naming=naming)
        stored = Stored(descriptor, tuple(map(str, plan.destinations)), "")
    else:
        images = [(each.target.platform, each.descriptor) for each in results if each.descriptor]
        stored = store(layout, images, plan.names, plan.makes_index, os.environ, naming)
    publishing.done = True
    return stored


def _index(plan: Plan, results: Sequence[Result]) -> Found:
    """The index of the results, in the order of --platform."""
    is_docker = plan.request.format == "docker"
    entries = []
    for each in results:
        assert each.descriptor is not None
        platform = each.target.platform
        entries.append(
            Descriptor(
                mediaType=each.descriptor.mediaType,
                digest=each.descriptor.digest,
                size=each.descriptor.size,
                platform=PlatformObject(
                    architecture=platform.architecture,
                    os=platform.os,
                    variant=platform.variant or None,
                ),
            )
        )
    kind = DOCKER_LIST if is_docker else OCI_INDEX
    index = Index(
        schemaVersion=2,
        mediaType=kind,
        manifests=tuple(entries),
        annotations=plan.annotations or None if not is_docker else None,
    )
    data = encode(index)
    return Found(describe(data, kind), data, index)
