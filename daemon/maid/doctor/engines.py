"""Checks of other people's engines: whether native programs run in their foreign containers.

What has them do so is scripts/install's: settings for podman and buildah, a drop-in for Docker, a
hook for CRI-O, a mount for chroots (docs/engines.md). An engine that is not installed is not spoken
of, and where acceleration is off none is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from maid.config import Config, Scope
from maid.doctor.findings import Finding, listed, note, ok, warning
from maid.doctor.place import Place
from maid.doctor.services import systemd_runs
from maid.settings import Accelerate, Paths

_INSTALL = "scripts/install"
_CONF = "/etc/containers/containers.conf"
_OWN_CONF = f"{_CONF}.d/50-maid.conf"
_HOOKS = ("/usr/share/containers/oci/hooks.d", "/etc/containers/oci/hooks.d")
_VARIABLE = "DOCKER_BUILDKIT_RUNC_COMMAND"
_SHIM = "maid-runtime"
MOUNT = "/dev/.maid"


def engines(config: Config, scope: Scope, place: Place) -> Iterator[Finding]:
    """Every engine that is installed here, and the machine's own /dev/.maid."""
    if scope is Scope.PRIVATE or config.acceleration.accelerate is Accelerate.OFF:
        return
    if config.paths.state != Paths().state:
        yield warning(
            "engines",
            f"hook and shim look for the store in {Paths().state}, and it is in"
            f" {config.paths.state}: containers of other engines are not accelerated",
            f"leave [paths] state as it is, or: mount --bind {config.paths.state} {Paths().state}",
        )
    yield from _podman(place)
    yield from _docker(place)
    yield from _configured(
        place, "containerd", "/etc/containerd/config.toml", "its runtime's options: BinaryName ="
    )
    yield from _configured(
        place, "buildkitd", "/etc/buildkit/buildkitd.toml", "[worker.oci] binary ="
    )
    yield from _crio(place)
    yield from _chroots(config, place)


def _executable(place: Place, path: str) -> bool:
    found = place.status(path)
    return found is not None and bool(found.st_mode & 0o111)


def _podman(place: Place) -> Iterator[Finding]:
    """podman and buildah: the shim comes first in containers.conf's lists of runtimes."""
    there = [name for name in ("podman", "buildah") if place.program(name)]
    if not there:
        return
    names = " and ".join(there)
    text = place.read(_OWN_CONF)
    first = re.findall(r'^(?:crun|runc) = \[\s*"([^"]+)"', text or "", re.MULTILINE)
    own = [
        file
        for file in (_CONF, *(f"{_CONF}.d/{each}" for each in place.names(f"{_CONF}.d")))
        if file != _OWN_CONF
        and re.search(r"^\s*\[engine\.runtimes\]", place.read(file) or "", re.MULTILINE)
    ]
    shims = [
        each for file in own for each in re.findall(r'"([^"]*/maid/crun)"', place.read(file) or "")
    ]
    if shims or (first and not own):
        broken = [each for each in shims or first if not _executable(place, each)]
        if broken:
            yield warning(
                names, f"{listed(broken)} is not there: foreign containers are emulated", _INSTALL
            )
        else:
            yield ok(names, "foreign containers are accelerated, those of ordinary users, too")
    elif own:
        yield note(
            names,
            f"{listed(own)} names the runtimes: foreign containers are emulated",
            "put /usr/libexec/maid/crun first into its list for crun",
        )
    else:
        yield note(names, f"{_OWN_CONF} is not there: foreign containers are emulated", _INSTALL)


def _docker(place: Place) -> Iterator[Finding]:
    """Docker: whether the dockerd that runs, or the one that will, has the variable."""
    program = place.program("dockerd")
    if not program:
        return
    name = "docker"
    if not place.contains(program, _VARIABLE.encode()):
        yield note(
            name,
            f"{program} does not know {_VARIABLE} (Docker before 23.0): its builds are emulated",
            "a newer Docker, or buildah",
        )
        return
    running, told = _dockerd(place)
    if told is not None and told.rpartition("/")[2] == _SHIM:
        if _executable(place, told):
            yield ok(name, "foreign builds are accelerated (docker run is not: docs/engines.md)")
        else:
            yield warning(name, f"dockerd starts {told}, which is not there: builds fail", _INSTALL)
    elif told:
        yield note(
            name,
            f"dockerd was told to start {told} for builds: they are emulated",
            f"have it start {_SHIM}, with MAID_RUNTIME={told} in dockerd's environment",
        )
    elif not _drop_in(place):
        hint = _INSTALL
        if not systemd_runs(place):
            hint = f"start dockerd with {_VARIABLE}=/usr/bin/{_SHIM}"
        yield note(name, f"dockerd is not told to start {_SHIM}: builds are emulated", hint)
    elif running:
        yield note(
            name,
            f"dockerd was started before {_SHIM} was there: builds are emulated until it restarts",
            "systemctl restart docker",
        )
    else:
        yield ok(name, "foreign builds will be accelerated when it runs")


def _dockerd(place: Place) -> tuple[bool, str | None]:
    """Whether dockerd runs, and what the variable is in its environment. Raises CannotLook."""
    pid = place.number("/run/docker.pid")
    environment = None if pid is None else place.read(f"/proc/{pid}/environ")
    if environment is None:
        return False, None
    found = re.findall(rf"(?:^|\0){_VARIABLE}=([^\0]*)", environment)
    return True, found[0] if found else None


def _drop_in(place: Place) -> bool:
    directories = ("/usr/lib", "/usr/local/lib", "/etc")
    names = [f"{each}/systemd/system/docker.service.d/10-maid.conf" for each in directories]
    return any(_SHIM in (place.read(each) or "") for each in names)


def _configured(place: Place, program: str, file: str, setting: str) -> Iterator[Finding]:
    """An engine that names its runtime in a file of its own, which is the administrator's."""
    # Docker brings a containerd that it alone uses: without settings it is not spoken of.
    if not place.program(program) or (program == "containerd" and not place.exists(file)):
        return
    text = place.read(file) or ""
    paths = re.findall(rf'"(/[^"]*{_SHIM})"', text)
    broken = [each for each in paths if not _executable(place, each)]
    if broken:
        yield warning(
            program, f"{file} names {listed(broken)}, which is not there: it fails", _INSTALL
        )
    elif paths:
        yield ok(program, "foreign containers are accelerated")
    else:
        yield note(
            program,
            f"{file} does not name {_SHIM}: foreign containers are emulated",
            f'{setting} "/usr/bin/{_SHIM}", and restart it',
        )


def _crio(place: Place) -> Iterator[Finding]:
    """CRI-O: the hook lies in one of its directories."""
    if not place.program("crio"):
        return
    text = next((t for each in _HOOKS if (t := place.read(f"{each}/50-maid.json"))), "")
    path = re.search(r'"path":\s*"([^"]+)"', text)
    if path is None:
        yield note("cri-o", "its hook is not there: foreign containers are emulated", _INSTALL)
    elif not _executable(place, path[1]):
        yield warning("cri-o", f"its hook {path[1]} is not there: containers fail", _INSTALL)
    else:
        yield ok("cri-o", "foreign containers are accelerated")


def _chroots(config: Config, place: Place) -> Iterator[Finding]:
    """The store at the machine's own /dev/.maid, which chroots see that bind /dev as a whole."""
    store = place.status(config.paths.state / "store")
    if store is None:
        return
    mounted = place.status(MOUNT)
    if mounted is not None and (mounted.st_dev, mounted.st_ino) == (store.st_dev, store.st_ino):
        yield ok(
            "chroots", f"{MOUNT} is the store: chroots with mount --rbind /dev are accelerated"
        )
        return
    hint = "systemctl start dev-.maid.mount"
    if not systemd_runs(place):
        hint = f"mkdir {MOUNT}; mount -o bind,ro,nosuid,nodev {config.paths.state}/store {MOUNT}"
    yield note("chroots", f"{MOUNT} is not the store: programs in chroots are emulated", hint)
