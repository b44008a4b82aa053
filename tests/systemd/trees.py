"""Root file systems with maid installed in them, each made once in a session.

Of the release that this machine runs: maid is installed from here, by `scripts/install --root`. Of
the other one, which has another Python: by scripts/install in the tree itself, as its user would;
that tree has what it takes to install another version there, too.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent.parent
SCRIPTS = CHECKOUT / "scripts"
CACHE = Path(os.environ.get("MAID_CACHE", Path.home() / ".cache/maid"))

SOURCE = "/opt/maid-source"
"""Where a tree has the sources: `scripts/install` can be run there."""
INSTALLER = "/opt/maid-cache"
"""Where the other release's tree has, as MAID_CACHE, what scripts/install prepared: maid can be
installed again without a network."""

# What systemd would have mounted on a machine, but leaves alone in a container.
OWN_TABLE = {
    "systemd-binfmt.service.d/container.conf": "[Unit]\nConditionPathIsReadWrite=\n",
    "proc-sys-fs-binfmt_misc.mount.d/container.conf": "[Unit]\nConditionPathIsReadWrite=\n",
}


def this_release() -> str:
    """The Debian release of this machine, of those that maid is made for."""
    return "12" if 'VERSION_ID="12"' in Path("/etc/os-release").read_text() else "13"


def other_release() -> str:
    """The other one."""
    return {"12": "13", "13": "12"}[this_release()]


@contextmanager
def installed_here() -> Iterator[Path]:
    """A bootable tree of this machine's release, with maid installed from here."""
    # What is compiled for maid is compiled here, so both need the same version of Python.
    with _copy(f"debian-{this_release()}-systemd") as tree:
        _run(SCRIPTS / "install", "--no-packages", "--root", tree)
        _complete(tree)
        yield tree


@contextmanager
def installed_there() -> Iterator[Path]:
    """A bootable tree of the other release, with maid installed in the tree itself."""
    release = other_release()
    with _copy(f"debian-{release}-runner") as tree:
        _complete(tree)
        kept = CACHE / "tests" / f"installer-{release}"
        kept.mkdir(parents=True, exist_ok=True)
        _enter(
            tree,
            *(f"--bind={kept}:{INSTALLER}", f"--setenv=MAID_CACHE={INSTALLER}", *_pip_settings()),
            *(f"{SOURCE}/scripts/install", "--no-packages"),
        )
        newest = max((kept / "installer").glob("*/complete"), key=lambda path: path.stat().st_mtime)
        key = newest.parent.name
        shutil.copytree(newest.parent, tree / INSTALLER[1:] / "installer" / key, symlinks=True)
        yield tree


@contextmanager
def _copy(name: str) -> Iterator[Path]:
    base = rootfs(name)
    with tempfile.TemporaryDirectory(prefix=".systemd-test.", dir=base.parent) as directory:
        tree = Path(directory) / "machine"
        _run("cp", "--archive", "--reflink=auto", base, tree)
        yield tree


def rootfs(name: str) -> Path:
    """The directory of a root file system of scripts/rootfs."""
    made = subprocess.run([SCRIPTS / "rootfs", name], check=True, stdout=subprocess.PIPE, text=True)
    return Path(made.stdout.strip())


def _complete(tree: Path) -> None:
    """What a container lacks that a machine has, the sources, and something to run steps in."""
    for name, text in OWN_TABLE.items():
        file = tree / "etc/systemd/system" / name
        file.parent.mkdir(parents=True)
        file.write_text(text)
    wants = tree / "etc/systemd/system/sysinit.target.wants"
    wants.mkdir(exist_ok=True)
    mount_unit = "proc-sys-fs-binfmt_misc.mount"
    (wants / mount_unit).symlink_to(f"/usr/lib/systemd/system/{mount_unit}")
    source = tree / SOURCE[1:]
    made_here = shutil.ignore_patterns("__pycache__", "*.egg-info", "build")
    for part in ("daemon", "docs", "scripts", "units"):
        shutil.copytree(CHECKOUT / part, source / part, ignore=made_here)
    for file in ("LICENSE", "README.md", "pyproject.toml"):
        shutil.copy(CHECKOUT / file, source)
    for architecture in ("amd64", "arm64"):
        target = tree / "opt" / f"busybox-{architecture}"
        shutil.copytree(rootfs(f"busybox-{architecture}"), target, symlinks=True)


def shift_owners(tree: Path) -> None:
    """Give the tree to a free range of ids, once; a container then boots from it without a copy."""
    _enter(tree, "--private-users=pick", "--private-users-ownership=chown", "/bin/true")


def _enter(tree: Path, *arguments: str) -> None:
    """Run a program in the tree by systemd-nspawn, with options of nspawn's before it."""
    nspawn = ["systemd-nspawn", "--quiet", f"--directory={tree}", "--register=no", "--keep-unit"]
    isolated = ["unshare", "--mount", "--propagation=private", *nspawn, "--link-journal=no"]
    _run(*isolated, *arguments)


def _run(*command: str | Path) -> None:
    ended = subprocess.run(
        command,
        check=False,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    assert ended.returncode == 0, f"{' '.join(map(str, command))}\n{ended.stdout}"


def _pip_settings() -> list[str]:
    """nspawn's options that let pip in the tree find packages where pip finds them here: the
    variables, the files of settings, and the directories and certificates that both name."""
    settings = [f"--setenv={k}={v}" for k, v in os.environ.items() if _concerns_pip(k)]
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    # The packages of an index lie beside it.
    indexes = [Path(name).parent for name in re.findall(r"file://(/[^\s'\"]+)", listed.stdout)]
    named = re.findall(r"(?<![\w:/])/[^\s'\"]+", listed.stdout)
    files = ["/etc/pip.conf", "/etc/xdg/pip", Path.home() / ".config/pip", "/etc/ssl/certs"]
    places = {place for place in map(Path, (*named, *files, *indexes)) if place.exists()}
    within = {place for place in places if not places.isdisjoint(place.parents)}
    return settings + [f"--bind-ro={place}" for place in sorted(places - within)]


def _concerns_pip(variable: str) -> bool:
    return variable.startswith(("PIP_", "SSL_CERT_")) or variable.lower().endswith("_proxy")
