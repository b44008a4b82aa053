"""Places for tests of images: a daemon of one's own, and storage and settings of one's own.

What runs in a place finds no other storage, configuration, home or binfmt table than its own. One
thing it shares: what containers/image knows of which blob is where, which root's programs always
keep in /var/lib/containers/cache.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from daemons import MAID, Daemon, environment

SETTINGS = """
[emulation]
platforms = ["linux/arm64", "linux/arm/v7", "linux/riscv64", "linux/s390x"]
"""
"""What the daemon of a place serves."""

# As facts/engines.md has it, for machines that may not raise their limits.
CONTAINERS = """
[containers]
netns = "host"
default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "none"
"""

CONFIG = "home/.config/containers"
"""Where programs look that know no variable for it: skopeo."""


@dataclass
class Place:
    """A directory for everything, and the environment in which programs run."""

    daemon: Daemon
    directory: Path
    variables: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in (CONFIG, "tmp", "storage"):
            (self.directory / name).mkdir(parents=True)
        storage = self.directory / "storage"
        self._write(
            "storage.conf",
            f'[storage]\ndriver = "overlay"\nrunroot = "{storage}/run"\n'
            f'graphroot = "{storage}/graph"\n',
        )
        self._write("containers.conf", CONTAINERS)
        self._write(
            f"{CONFIG}/policy.json",
            json.dumps({"default": [{"type": "insecureAcceptAnything"}]}),
        )
        self._write("auth.json", "{}")
        self.trust()
        self.variables = environment() | {
            "HOME": str(self.directory / "home"),
            "TMPDIR": str(self.directory / "tmp"),
            "CONTAINERS_STORAGE_CONF": str(self.directory / "storage.conf"),
            "CONTAINERS_CONF": str(self.directory / "containers.conf"),
            "CONTAINERS_REGISTRIES_CONF": str(self.directory / CONFIG / "registries.conf"),
            "REGISTRY_AUTH_FILE": str(self.directory / "auth.json"),
            "MAID_SOCKET": str(self.daemon.socket),
            "MAID_CONFIG": str(self.daemon.directory / "maid.toml"),
            "MAID_BUILD_ROOT": str(self.directory / "build"),
            "MAID_IMAGES": str(self.directory / "images"),
            "COLUMNS": "120",
        }

    def _write(self, name: str, text: str) -> None:
        (self.directory / name).write_text(text)

    def trust(self, *addresses: str) -> None:
        """Registries at these addresses, and no others, are spoken to without TLS."""
        registries = "".join(
            f'[[registry]]\nlocation = "{address}"\ninsecure = true\n' for address in addresses
        )
        self._write(
            f"{CONFIG}/registries.conf", f"unqualified-search-registries = []\n{registries}"
        )

    def maid(self, *arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run `maid ARGUMENTS`; whatever its status is."""
        return self.run(MAID, *arguments, check=False, **options)

    def run(
        self,
        *command: str | Path,
        check: bool = True,
        timeout: float = 600,
        env: dict[str, str] | None = None,
        **options: Any,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program of this machine's. Raises AssertionError, with what it wrote, when it fails
        and is not to."""
        done = subprocess.run(
            command,
            env=self.variables | (env or {}),
            **{"stdin": subprocess.DEVNULL, "cwd": self.directory} | options,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        assert not check or done.returncode == 0, (
            f"{command} exited with {done.returncode}: {(done.stdout + done.stderr)[-3000:]}"
        )
        return done

    def start(self, *arguments: str | Path, **options: Any) -> subprocess.Popen[bytes]:
        """Start `maid ARGUMENTS`, to be watched or killed, in a session of its own."""
        return subprocess.Popen(
            [MAID, *arguments],
            env=self.variables,
            start_new_session=True,
            **{"stdin": subprocess.DEVNULL, "cwd": self.directory} | options,
        )

    def context(self, containerfile: str, **files: str) -> Path:
        """A new directory with a Containerfile and other files."""
        directory = Path(tempfile.mkdtemp(prefix="context-", dir=self.directory))
        for name, text in (("Containerfile", containerfile), *files.items()):
            (directory / name).write_text(text)
        return directory

    def leftovers(self) -> list[str]:
        """What programs have left where temporary files go."""
        return sorted(os.listdir(self.directory / "tmp"))


@contextlib.contextmanager
def making(daemon: Daemon, *registries: str) -> Iterator[Place]:
    """A place with this daemon, which trusts the registries at these addresses."""
    directory = Path(tempfile.mkdtemp(prefix="maid-test-place-"))
    try:
        place = Place(daemon, directory)
        place.trust(*registries)
        yield place
    finally:
        _remove(directory)


def _remove(directory: Path) -> None:
    """Remove a place: what engines have mounted in its storage first."""
    with open("/proc/self/mountinfo") as file:
        points = [line.split()[4] for line in file]
    for point in reversed(points):
        if point.startswith(f"{directory}/"):
            subprocess.run(["umount", "--lazy", point], check=False, timeout=30)
    subprocess.run(["rm", "-rf", "--one-file-system", directory], check=True, timeout=120)
