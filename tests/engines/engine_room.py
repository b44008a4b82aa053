"""A place where other people's container engines find maid's entries, and nothing of the host's.

`engine_room()` serves the targets in a private instance, as the service does in the host's, and
lets commands run as root of that namespace with their own mounts and storage.
"""

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from maid.binfmt import namespace
from maid.binfmt.namespace import Pinned
from maid.config import Scope, load
from maid.emulation import emulators
from maid.emulation.interpreters import IdentityCache
from maid.emulation.targets import TARGETS

CHECKOUT = Path(__file__).resolve().parents[2]


def rootfs(name: str) -> Path:
    """The cached root file system of that name; made if it is not there."""
    done = subprocess.run(
        [CHECKOUT / "scripts" / "rootfs", name], stdout=subprocess.PIPE, check=True, timeout=900
    )
    return Path(done.stdout.decode().strip())


@dataclass
class Room:
    """Runs commands in the namespace; `pinned` is the instance, `directory` a place for storage."""

    pinned: Pinned
    directory: Path
    holder: int

    def run(self, *command: str | os.PathLike[str], check: bool = True) -> str:
        """The standard output of a command, which must succeed."""
        enter = ["nsenter", "-t", str(self.holder), "-U", "-m"]
        done = subprocess.run(
            [*enter, *command],
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=300,
        )
        if check and done.returncode:
            pytest.fail(f"{command} exited with {done.returncode}: {done.stderr.decode()[-2000:]}")
        return done.stdout.decode().strip()

    def environment(self) -> dict[str, str]:
        """What the engines need to leave the machine's own storage alone: not a word of maid."""
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.directory),
            "CONTAINERS_STORAGE_CONF": str(self.directory / "storage.conf"),
            "CONTAINERS_CONF": str(self.directory / "containers.conf"),
            # Root of a namespace already: buildah need not make another.
            "_CONTAINERS_USERNS_CONFIGURED": "1",
        }


@contextlib.contextmanager
def engine_room(directory: Path, *names: str) -> Iterator[Room]:
    """A namespace in which the targets `names` are registered as the service would."""
    home = os.environ.get("MAID_CACHE") or os.path.expanduser("~/.cache/maid")
    config_file = directory / "maid.toml"
    config_file.write_text(f'[paths]\nstate = "{home}/state"\nruntime = "{directory}/run"\n')
    config = load(config_file, Scope.PRIVATE, directory / "io.maid")
    cache = IdentityCache(config.paths.state)
    choices = emulators.choose([TARGETS[name] for name in names], config, cache)
    (directory / "storage.conf").write_text(
        f'[storage]\ndriver = "vfs"\nrunroot = "{directory}/runroot"\n'
        f'graphroot = "{directory}/graph"\n'
    )
    (directory / "containers.conf").write_text(
        '[containers]\nnetns = "host"\ndefault_ulimits = ["nofile=1024:1024"]\n'
        '[engine]\ncgroup_manager = "cgroupfs"\nevents_logger = "none"\n'
    )
    pinned = namespace.create(str(directory / "instance"), namespace.identity())
    try:
        for name in names:
            pinned.instance.add(choices[name].offers[0].entry(f"qemu-{name}"))
        holder = subprocess.Popen(
            ["nsenter", f"--user={pinned.user}", "unshare", "-m", "sh", "-c", HOLD],
            stdout=subprocess.PIPE,
        )
        assert holder.stdout is not None
        try:
            assert holder.stdout.readline() == b"ready\n"
            yield Room(pinned, directory, holder.pid)
        finally:
            holder.kill()
            holder.wait()
            time.sleep(0.05)
    finally:
        pinned.release()


HOLD = "echo ready; exec sleep 600"
