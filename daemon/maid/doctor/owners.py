"""Who registered an entry, as far as files tell.

The kernel does not say. Names, interpreters and the configuration files of those who register at
boot do, mostly: where they leave it open, the answer is that nobody is known.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import PurePosixPath

from maid.binfmt.entry import Entry
from maid.config import Config, Scope
from maid.doctor.place import CannotLook, Place
from maid.emulation.ledger import Ledger

# binfmt.d(5): a file in an earlier directory hides one of the same name in a later.
DIRECTORIES = ("/etc/binfmt.d", "/run/binfmt.d", "/usr/local/lib/binfmt.d", "/usr/lib/binfmt.d")

MAID, SYSTEMD, SUPPORT, WSL = "maid", "systemd-binfmt", "binfmt-support", "WSL"
IMAGE, ROSETTA, UNKNOWN = "a container image", "Rosetta", "somebody unknown"

LASTING = frozenset({MAID, SYSTEMD, SUPPORT, WSL, ROSETTA})
"""Those who register again after a reboot by themselves."""


@dataclass(frozen=True)
class Configured:
    """A line of binfmt.d(5): the entry's `name`, its `interpreter` and the `file` it is in."""

    name: str
    interpreter: str
    flags: str
    file: str


def configured(place: Place) -> dict[str, Configured]:
    """What systemd-binfmt registers at boot, by the entries' names; the last of a name counts.

    Raises CannotLook.
    """
    files: dict[str, str] = {}
    for directory in DIRECTORIES:
        for name in place.names(directory):
            if name.endswith(".conf"):
                files.setdefault(name, f"{directory}/{name}")
    found = {}
    for name in sorted(files):
        # A link to /dev/null, the way to hide a file, has no lines.
        hidden = place.link(files[name]) == "/dev/null"
        for line in "" if hidden else (place.read(files[name]) or "").splitlines():
            line = line.strip()
            if not line or line[0] in "#;":
                continue
            fields = line[1:].split(line[0])
            if len(fields) >= 6:
                flags = fields[6] if len(fields) > 6 else ""
                found[fields[0]] = Configured(fields[0], fields[5], flags, files[name])
    return found


def supported(place: Place) -> list[str]:
    """The names that binfmt-support registers at boot (update-binfmts --display)."""
    try:
        return place.names("/var/lib/binfmts")
    except CannotLook:
        return []


class Owners:
    """Tells who registered an entry, with every file read once."""

    def __init__(self, config: Config, scope: Scope, place: Place) -> None:
        self._place = place
        key = "host" if scope is Scope.HOST else "root"
        path = place.at(config.paths.runtime / "ledger" / f"{key}.json")
        self._ledger = Ledger(str(path)) if os.access(path, os.R_OK) else None
        self._copies = f"{config.paths.state}/"
        self._configured = configured(place)
        self._supported = frozenset(supported(place))

    def of(self, entry: Entry) -> str:
        """MAID, SYSTEMD, SUPPORT, WSL, IMAGE, ROSETTA or UNKNOWN."""
        if self._ledger is not None and self._ledger.owns(entry):
            return MAID
        # An ordinary user may not be able to read the ledger; but these copies are maid's alone.
        if self._ledger is None and entry.interpreter.startswith(self._copies):
            return MAID
        if entry.name.startswith("WSLInterop"):
            return WSL
        line = self._configured.get(entry.name)
        if line is not None and line.interpreter == entry.interpreter:
            return SYSTEMD
        if entry.name in self._supported:
            return SUPPORT
        program = PurePosixPath(entry.interpreter)
        if program.name == "rosetta":
            return ROSETTA
        # Installed by a container, the interpreter is in that container's image alone, and flag F
        # keeps it open: docker's installer, multiarch's, BuildKit's.
        if "F" in entry.flags and not self._place.exists(entry.interpreter):
            return IMAGE
        return UNKNOWN
