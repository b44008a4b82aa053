"""OCI bundles for the tests: as engines write them, with a root file system that says little."""

import json
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maid import native
from maid.emulation.targets import TARGETS

HOOK, RUNTIME = native.path("maid-hook"), native.path("maid-runtime")
OWN = os.uname().machine
FOREIGN = "s390x"

MOUNTS: list[dict[str, Any]] = [
    {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid"]},
    {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
    {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["nosuid"]},
    {"destination": "/etc/hosts", "type": "bind", "source": "/etc/hosts", "options": ["rbind"]},
]


def program(target: str) -> bytes:
    """A tiny program of this CPU."""
    data = TARGETS[target].probe
    assert data is not None
    return data


def make_store(directory: Path) -> Path:
    """A store that holds nothing but a file by which it is known."""
    (directory / "id").mkdir(parents=True)
    (directory / "here").write_text("store\n")
    return directory


@dataclass
class Bundle:
    """A bundle's directory, its root file system, and config.json as it stands."""

    path: Path

    @property
    def root(self) -> Path:
        return self.path / "rootfs"

    @property
    def file(self) -> Path:
        return self.path / "config.json"

    @property
    def config(self) -> Any:
        return json.loads(self.file.read_bytes())

    def write(self, config: object) -> None:
        self.file.write_text(json.dumps(config))

    def change(self, **process: object) -> None:
        """Other members of `process`."""
        self.write(self.config | {"process": self.config["process"] | process})

    def install(self, path: str, data: bytes, mode: int = 0o755) -> None:
        """A file in the root file system."""
        file = self.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.unlink(missing_ok=True)
        file.write_bytes(data)
        file.chmod(mode)

    def state(self) -> bytes:
        """What a runtime writes to a hook."""
        return json.dumps(
            {"ociVersion": "1.0.2", "id": "x", "status": "created", "bundle": str(self.path)}
        ).encode()

    def files(self) -> Mapping[str, tuple[int, bytes]]:
        """Everything in the bundle's directory itself: mode and content."""
        return {
            each.name: (stat.S_IMODE(each.lstat().st_mode), each.read_bytes())
            for each in self.path.iterdir()
            if not each.is_dir()
        }


def make_bundle(path: Path, target: str = FOREIGN) -> Bundle:
    """A bundle whose shell is a program of `target`."""
    bundle = Bundle(path)
    for name in ("bin", "dev", "proc"):
        (bundle.root / name).mkdir(parents=True)
    bundle.install("/bin/sh", program(target))
    bundle.write(
        {
            "ociVersion": "1.0.2",
            "process": {
                "args": ["/bin/sh", "-c", "true"],
                "env": ["PATH=/usr/bin:/bin", "HOME=/root"],
                "cwd": "/",
            },
            "root": {"path": "rootfs"},
            "mounts": MOUNTS,
            "linux": {"namespaces": [{"type": "mount"}]},
        }
    )
    return bundle
