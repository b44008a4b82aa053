"""One platform's build: buildah's call, its output and log, and the image out of its storage."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from pathlib import Path

from maid.errors import MaidError
from maid.images.build_request import Plan
from maid.images.build_storage import Storage
from maid.images.buildah import Process, full_disk
from maid.images.containerfile import with_platforms
from maid.images.progress import Progress, State, Watcher
from maid.images.surroundings import Target

_LINE_LIMIT = 16384
"""Characters of a line of output that are shown and kept; the log has all."""


class BuildFailed(MaidError):
    """A platform's build failed; how is in its Progress."""


@dataclass(eq=False)
class PlatformBuild:
    """A platform that is built. `kill` may be called from another thread at any time. `access` is
    for the registries of base images."""

    plan: Plan
    target: Target
    progress: Progress
    watcher: Watcher
    version: tuple[int, int]

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._process: Process | None = None
        self._storage: Storage | None = None
        self._is_ended = False
        self.access = self.plan.request.access

    def use(self, storage: Storage) -> None:
        """Work in this storage from now on: `kill` ends what is done there."""
        with self._lock:
            self._storage = storage
            if self._is_ended:
                storage.end()

    def run(self, storage: Storage) -> str:
        """Build. Returns the image's id in the storage. Raises BuildFailed, MaidError."""
        iid = storage.work / "iid"
        self._enter(State.BUILDING)
        with open(self.progress.log, "wb") as log:
            status = self._follow(storage.start(self.command(storage, iid)), log.fileno())
        if status:
            said = "\n".join(self.progress.tail)
            hint = full_disk(f"{said}\n{self.progress.error}", storage.graph)
            raise BuildFailed(self.progress.error or f"buildah exited with {status}", hint)
        self._enter(State.CHECKING)
        return iid.read_text().strip().removeprefix("sha256:")

    def command(self, storage: Storage, iid: Path) -> list[str]:
        """buildah's arguments."""
        request, target = self.plan.request, self.target
        options = [
            f"--platform={target.spelled}",
            f"--iidfile={iid}",
            f"--network={self.plan.network}",
            f"--format={request.format}",
            "--layers",
            "--force-rm",
            f"--pull={self._pull()}",
            *storage.surroundings.runtime_options(storage.work / "state"),
        ]
        given = {text.partition("=")[0] for text in request.build_args}
        arguments = target.arguments()
        if request.epoch:
            options.append(f"--timestamp={request.epoch}")
            arguments["SOURCE_DATE_EPOCH"] = request.epoch
        arguments = {name: value for name, value in arguments.items() if name not in given}
        self.progress.ignored_arguments = frozenset(arguments)
        options += [f"--build-arg={name}={value}" for name, value in arguments.items()]
        for option, values in (
            ("build-arg", request.build_args),
            ("label", request.labels),
            ("annotation", request.annotations),
            ("secret", request.secrets),
            ("ssh", request.ssh),
            ("build-context", request.build_contexts),
        ):
            options += [f"--{option}={value}" for value in values]
        if request.target:
            options.append(f"--target={request.target}")
        if request.no_cache:
            options.append("--no-cache")
        options += self.access.options()
        return [
            *storage.buildah,
            "build",
            *options,
            *self._file(storage.work),
            str(self.plan.context),
        ]

    def _file(self, work: Path) -> list[str]:
        """The Containerfile, as it is or, where buildah would read it wrongly, as it is meant."""
        text = with_platforms(self.plan.text, self.target.spelled)
        original = self.plan.containerfile
        options = []
        if original is not None:
            for ending in ("containerignore", "dockerignore"):
                ignored = original.with_name(f"{original.name}.{ending}")
                if ignored.exists():
                    options = [f"--ignorefile={ignored}"]
                    break
            if text == self.plan.text:
                return [*options, f"--file={original}"]
        written = work / "Containerfile"
        written.write_bytes(text.encode(errors="surrogateescape"))
        return [*options, f"--file={written}"]

    def _pull(self) -> str:
        """Base images are looked up in their registry each time, as BuildKit does: nothing else
        would ever bring a newer one into this storage."""
        if self.plan.request.pull:
            return "always"
        return "newer" if self.version >= (1, 33) else "true"

    def kill(self) -> None:
        """End it, or have it not begin."""
        with self._lock:
            self._is_ended = True
            if self._process:
                self._process.kill()
            if self._storage:
                self._storage.end()

    def go_on(self) -> None:
        """Raise BuildFailed where it is to end: called now and then by what takes long."""
        if self._is_ended:
            raise BuildFailed("it was ended")

    @property
    def is_ended(self) -> bool:
        """Whether `kill` was called."""
        return self._is_ended

    def _follow(self, process: Process, log: int) -> int:
        with self._lock:
            self._process = process
            if self._is_ended:
                process.kill()
        pending = b""
        try:
            while piece := os.read(process.output.fileno(), 65536):
                os.write(log, piece)
                *lines, pending = (pending + piece).split(b"\n")
                for line in lines:
                    self._line(line)
                pending = pending[-_LINE_LIMIT:]
        except BaseException:
            process.kill()  # the disk with the log is full, for one
            raise
        finally:
            status = process.wait()
        if pending:
            self._line(pending)
        return status

    def _line(self, data: bytes) -> None:
        # A progress bar writes over its line: what is seen last of it counts.
        text = data.decode(errors="replace").rstrip("\r").rpartition("\r")[2][:_LINE_LIMIT]
        shown = self.progress.read(text)
        if shown is not None:
            self.watcher.line(self.progress, shown)

    def _enter(self, state: State) -> None:
        self.progress.state = state
        self.watcher.changed(self.progress)
