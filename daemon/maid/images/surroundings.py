"""Where a build runs: the room, the OCI runtime in it, and the native store.

A build's surroundings are the same for root and for everybody else, in host scope and in a private
one: a room (room.py) below the namespace whose binfmt_misc maid serves, and in it buildah with crun
or runc, or, where there is neither, with chroot isolation. The store of native tools is mounted at
/dev/.maid of the containers: by maid-runtime, which stands before the runtime, or for chroot
isolation in the room's own /dev. maid-runtime also has foreign RUN lines started by maid-init, or
one that crashes would never end; chroot isolation needs no such thing, as it makes no process
namespace. An image has no trace of any of it.

It knows nothing of Containerfiles, storage or registries.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from maid import native
from maid.client import Client, Parameters
from maid.errors import DaemonUnreachable, MaidError, PlatformUnavailable
from maid.images import room
from maid.platforms import Platform, host, only

_SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_NOT_PASSED = ("BUILDAH_", "CONTAINERS_", "STORAGE_", "MAID_", "_CONTAINERS_", "XDG_RUNTIME_DIR")
"""Variables that would lead buildah elsewhere than maid means it to go."""

_PASSED = ("CONTAINERS_REGISTRIES_CONF",)
"""The exceptions: which registries there are is the user's to say."""


@dataclass(frozen=True)
class Target:
    """A platform to build for.

    `platform` is normalised and is what the result says it is; `spelled` is how buildah is asked
    for it; `is_native` says that the machine executes it itself.
    """

    platform: Platform
    spelled: str
    is_native: bool

    @property
    def slug(self) -> str:
        """The platform as part of a file name."""
        return str(self.platform).replace("/", "-")

    def arguments(self) -> dict[str, str]:
        """The build arguments that BuildKit sets by itself (docs.docker.com, "Automatic platform
        ARGs in the global scope")."""
        here = build_platform()
        found = {}
        for word, platform in (("TARGET", self.platform), ("BUILD", here)):
            found[f"{word}PLATFORM"] = str(platform)
            found[f"{word}OS"] = platform.os
            found[f"{word}ARCH"] = platform.architecture
            found[f"{word}VARIANT"] = platform.variant
        return found


def build_platform() -> Platform:
    """This machine as images are made for it: an amd64 without its level, which an image has only
    when somebody asks for it."""
    here = host().normalized()
    variant = here.variant if here.architecture == "arm" else ""
    return Platform(here.os, here.architecture, variant)


def target(platform: Platform, is_native: bool) -> Target:
    """How buildah is asked for a platform.

    Of the variants it knows arm's alone: base images of another (`amd64/v2`) would have to carry
    exactly it. So it builds on the architecture's own images, and the result is marked.
    """
    normal = platform.normalized()
    parts = [normal.os, normal.architecture]
    if normal.architecture == "arm" and normal.variant:
        parts.append(normal.variant)
    return Target(normal, "/".join(parts), is_native)


@dataclass(frozen=True)
class Runtime:
    """What executes a RUN line: an OCI runtime, or chroot where `name` is ""."""

    name: str = ""
    path: str = ""

    @property
    def isolation(self) -> str:
        """As buildah calls it."""
        return "oci" if self.name else "chroot"


def find_runtime() -> Runtime:
    """The OCI runtime to use. crun comes first, as for steps: it is the quicker one, and it can be
    told to make no control groups, of which nothing is left when a build is killed."""
    for name in ("crun", "runc"):
        path = shutil.which(name, path=f"{os.environ.get('PATH', '')}:{_SYSTEM_PATH}")
        if path:
            return Runtime(name, path)
    return Runtime()


@dataclass(frozen=True)
class Surroundings:
    """Where builds run. `join` is the user namespace whose entries are used, "" for the machine's
    own; `store` the native store, "" where there is none or none is wanted, and `sets` how many
    sets of tools it has at the start; `socket` the daemon's, which is told of the root file systems
    that are started, and may add sets."""

    join: str
    runtime: Runtime
    store: str = ""
    sets: int = 0
    socket: str = ""

    def argv(self, command: list[str], devices: Path | None = None) -> list[str]:
        """A command in a room. `devices` is an empty directory for a /dev of the room's own, which
        chroot isolation needs."""
        options = [str(os.getpid()), *(["--join", self.join] if self.join else [])]
        if devices is not None and not self.runtime.name:
            options += ["--devices", str(devices), self.store]
        init = native.path("maid-init")
        return [sys.executable, "-I", room.__file__, *options, "--", init, *command]

    def runtime_options(self, state: Path) -> list[str]:
        """buildah's options for the isolation; the runtime keeps its records in `state`."""
        options = [f"--isolation={self.runtime.isolation}"]
        if not self.runtime.name:
            return options
        options += [f"--runtime={native.path('maid-runtime')}", f"--runtime-flag=root={state}"]
        if self.runtime.name == "crun":
            options.append("--runtime-flag=cgroup-manager=disabled")
        return options

    def environment(self, given: Mapping[str, str]) -> dict[str, str]:
        """The environment of what runs in the room: the caller's, but for what would lead it
        elsewhere."""
        found = {
            name: value
            for name, value in given.items()
            if name in _PASSED or not name.startswith(_NOT_PASSED)
        }
        found["PATH"] = f"{given.get('PATH', '')}:{_SYSTEM_PATH}"
        # Root of a namespace already: buildah and skopeo need not make another. Whose root, says
        # where they keep and look for what is the user's own (containers/image, rootless.go).
        found["_CONTAINERS_USERNS_CONFIGURED"] = "1"
        found["_CONTAINERS_ROOTLESS_UID"] = str(os.getuid())
        found["_CONTAINERS_ROOTLESS_GID"] = str(os.getgid())
        if authfile := _authfile(given):
            found["REGISTRY_AUTH_FILE"] = authfile
        if self.runtime.name:
            found["MAID_RUNTIME"] = self.runtime.path
            found["MAID_INIT"] = native.path("maid-init")
            found["MAID_STORE"] = self.store  # none where it is empty
        if self.store:
            found["MAID_SOCKET"] = self.socket
            found["MAID_VERBOSE"] = "1"
        return found


def _authfile(given: Mapping[str, str]) -> str:
    """Where `login` has put passwords: in the room buildah would look for another user's
    (containers-auth.json(5))."""
    if given.get("REGISTRY_AUTH_FILE"):
        return given["REGISTRY_AUTH_FILE"]
    runtime = given.get("XDG_RUNTIME_DIR", "")
    places = [f"{runtime}/containers/auth.json"] if runtime else []
    places.append(f"/run/containers/{os.getuid()}/auth.json")
    return next((place for place in places if os.access(place, os.R_OK)), "")


def prepare(
    socket: str, platforms: list[Platform], accelerate: bool
) -> tuple[Surroundings, list[Target]]:
    """Have every platform executed once, and say where builds run.

    Without a daemon only the machine's own platforms can be built. Raises PlatformUnavailable with
    each platform that is not, DaemonUnreachable.
    """
    runtime = find_runtime()
    here = only(host())
    all_own = all(
        here.matches(each) and each.architecture == host().architecture for each in platforms
    )
    try:
        with Client(socket) as client:
            names = [str(each) for each in platforms]
            results = client.call(
                "io.maid.Emulation.Ensure", {"platforms": names, "configured": False, "timeout": 0}
            )["results"]
            status = client.call("io.maid.Manager.Status")["status"]
    except DaemonUnreachable:
        if not all_own:
            raise
        return Surroundings("", runtime), [target(each, True) for each in platforms]
    missing = [each for each in results if not each["ok"]]
    if missing:
        raise _unavailable(missing)
    targets = [
        target(platform, result["status"]["via"] == "native")
        for platform, result in zip(platforms, results, strict=True)
    ]
    store = _store(status) if accelerate else ""
    sets = status["store"]["sets"] if store else 0
    where = Surroundings(_namespace(status), runtime, store, sets, os.path.abspath(socket))
    return where, targets


def _unavailable(missing: list[Parameters]) -> PlatformUnavailable:
    said = "; ".join(f"{each['platform']}: {each['message']}" for each in missing)
    hints = dict.fromkeys(each["hint"] for each in missing if each["hint"])
    names = ", ".join(each["platform"] for each in missing)
    return PlatformUnavailable(f"nothing was built, {names} cannot be: {said}", "; ".join(hints))


def _namespace(status: Parameters) -> str:
    """The user namespace of a private scope, pinned beside the table that the status names."""
    if status["scope"] == "host":
        return ""
    path = os.path.join(os.path.dirname(status["instance"]), "user")
    if not os.path.exists(path):
        raise MaidError(
            f"the daemon serves a private scope, and its user namespace is not at {path}",
            "the daemon must run on this machine, outside of containers",
        )
    return path


def _store(status: Parameters) -> str:
    """The store's directory, "" where there is none that can be used."""
    store = status["store"]
    path = "" if store["problem"] else store["path"] or ""
    return path if path and os.path.isdir(path) else ""
