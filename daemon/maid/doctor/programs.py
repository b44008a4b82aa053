"""Checks of the programs that maid uses: interpreters, OCI runtimes, its own compiled helpers."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence

from maid import native
from maid.config import Config, Scope
from maid.doctor.findings import Finding, Level, listed, note, ok, problem, warning
from maid.doctor.place import Place
from maid.emulation import interpreters as emulators
from maid.emulation.interpreters import IdentityCache, Interpreter
from maid.emulation.ratings import Level as Quality
from maid.emulation.targets import TARGETS, Target, for_platform, own
from maid.errors import MaidError
from maid.platforms import COMMON, Platform

GUARD = "maid-guard"
"""Without it nothing is missing but time."""

HELPERS = ("maid-step", "maid-enter", "maid-init", "front.bin", GUARD)
"""What `make -C daemon/native` builds, and the daemon uses whatever it is asked for."""

_UNIFIED = "/sys/fs/cgroup/unified"
"""Where a hybrid tree has its v2 part."""

# What brings QEMU's user mode, static, by ID and ID_LIKE of os-release(5).
_PACKAGES = {
    "debian": "apt-get install qemu-user-static",
    "ubuntu": "apt-get install qemu-user-static",
    "fedora": "dnf install qemu-user-static",
    "rhel": "dnf install epel-release && dnf install qemu-user-static",
    "arch": "pacman -S qemu-user-static",
    "suse": "zypper install qemu-linux-user",
    "alpine": "apk add qemu-aarch64 qemu-arm qemu-x86_64 and their like",
}


def install_qemu(place: Place) -> str:
    """The command that installs static QEMU user-mode programs on this distribution."""
    fields = dict(
        re.findall(r'^(ID|ID_LIKE)="?([^"\n]*)"?$', place.read("/etc/os-release") or "", re.M)
    )
    for name in (fields.get("ID", ""), *fields.get("ID_LIKE", "").split()):
        if name in _PACKAGES:
            return _PACKAGES[name]
    return "install QEMU's static user-mode programs (qemu-user-static)"


class _Unwritten(IdentityCache):
    """What the daemon knows of the files already, without adding to it: the doctor only looks."""

    def save(self) -> None:
        """Write nothing."""


def served(config: Config, machine: str) -> dict[str, list[Platform]]:
    """The common platforms that the configuration serves by emulation, by their targets' names."""
    found: dict[str, list[Platform]] = {}
    for platform in COMMON:
        target = for_platform(platform)
        if target is None or target.name == own(machine):
            continue
        if config.emulation.serves(target.name, platform):
            found.setdefault(target.name, []).append(platform)
    return found


def interpreters(config: Config, scope: Scope, place: Place) -> Iterator[Finding]:
    """Which interpreters there are for the common platforms, and what is wrong with them."""
    wanted = served(config, place.machine)
    found = emulators.identify_all(
        [TARGETS[name] for name in wanted], config, _Unwritten(config.paths.state)
    )
    yield from judge(wanted, found, install_qemu(place), place.version())


def judge(
    wanted: Mapping[str, list[Platform]],
    found: Mapping[str, Sequence[Interpreter]],
    install: str,
    kernel: tuple[int, ...],
) -> Iterator[Finding]:
    """What there is to say of the interpreters `found` for the targets `wanted`, by their names.

    `install` is the command that installs better ones, `kernel` the version they run on.
    """
    missing: list[str] = []
    dynamic: list[str] = []
    good: list[str] = []
    said: dict[tuple[Quality, str, str], list[str]] = {}
    for name, platforms in wanted.items():
        target = TARGETS[name]
        best = emulators.best(found.get(name, ()), target, kernel)
        if best is None:
            missing.extend(map(str, platforms))
            yield from _unusable(target, found.get(name, ()))
            continue
        if not best.static:
            dynamic.append(str(best.path))
        rating = emulators.rate(best, target, kernel)
        if rating.reason:
            key = (rating.level, rating.reason, rating.source)
            said.setdefault(key, []).extend(map(str, platforms))
        if best.static and rating.level is Quality.GOOD:
            good.append(f"{best.path.name} {'.'.join(map(str, best.version))}".strip())
    if missing:
        nothing = len(missing) == sum(map(len, wanted.values()))
        yield Finding(
            Level.problem if nothing else Level.warning,
            "interpreters",
            f"there is none for {listed(missing, 12)}",
            f"{install}; another place: [emulation] interpreters in {_CONFIG}; not needed:"
            " [emulation] exclude",
        )
    if dynamic:
        yield warning(
            "interpreters",
            f"{listed(dynamic)} is a dynamic program: in containers its libraries are missing, so"
            " maid does not register it",
            install,
        )
    for (level, reason, source), platforms_said in said.items():
        make = note if level is Quality.GOOD else warning
        yield make(
            "interpreters",
            f"{listed(platforms_said, 12)}: {reason}",
            f"another version, in [emulation] interpreters or [emulation.target.NAME] interpreter;"
            f" see {source}"
            if source
            else "maid check --deep shows what works",
        )
    if good:
        yield ok("interpreters", f"usable: {listed(good, 12)}")


_CONFIG = "/etc/maid/maid.toml"


def _unusable(target: Target, found: Sequence[Interpreter]) -> Iterator[Finding]:
    """Why none of the files that were found for a target can be used."""
    for each in found:
        reason = emulators.rate(each, target).reason
        if reason:
            yield warning("interpreters", reason, "reinstall it, or remove it")


def runtimes(config: Config, scope: Scope, place: Place) -> Iterator[Finding]:
    """Which OCI runtimes there are, and which of them trip over this machine's cgroups."""
    chosen = config.steps.runtime
    names = ["crun", "runc"] if chosen == "auto" else [chosen]
    paths = [path for path in (_program(place, name) for name in names) if path]
    if not paths:
        yield problem(
            "OCI runtime",
            f"there is no {' and no '.join(names)}: entries work, steps (maid run) do not",
            "install crun (apt-get install crun, dnf install crun), or set [steps] runtime",
        )
        return
    yield ok("OCI runtime", f"there is {' and '.join(paths)}")
    # Its version is not asked for: even crun --version makes a mount for a moment.
    if any(os.path.basename(path) == "crun" for path in paths) and place.exists(_UNIFIED):
        yield note(
            "OCI runtime",
            "crun before 1.9 refuses hybrid cgroups (cgroups in hybrid mode not supported): maid"
            f" hides {_UNIFIED} from it for its steps; podman and buildah fail with it",
            "a newer crun (crun --version); or use them with --runtime runc, or from: unshare -m sh"
            f" -c 'umount {_UNIFIED} && …'",
        )


def _program(place: Place, name: str) -> str:
    if not name.startswith("/"):
        return place.program(name)
    return name if os.access(place.at(name), os.X_OK) else ""


def helpers(config: Config, scope: Scope, place: Place) -> Iterator[Finding]:
    """maid's own compiled programs."""
    fine = True
    for name in HELPERS:
        make = warning if name == GUARD else problem
        try:
            path = native.path(name)
        except MaidError as error:
            fine = False
            lack = "" if make is problem else ": repairs come some milliseconds later"
            yield make("helpers", f"{error.message}{lack}", error.hint)
            continue
        if name.startswith("maid-") and not os.access(path, os.X_OK):
            fine = False
            yield make("helpers", f"{path} may not be executed", f"chmod 755 {path}")
    if fine:
        yield ok("helpers", f"{listed(list(HELPERS))} are there")
