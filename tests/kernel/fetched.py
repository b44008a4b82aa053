"""QEMU from Debian 13, whatever this machine runs: fetched once, nothing of this machine changed.

apt downloads the package with a configuration, lists and cache of its own, from the archive that
the machine itself uses; the archive's keys are checked.
"""

import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from compiled import cache_directory

RELEASE = "trixie"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


def debian_13_qemu(name: str) -> Path:
    """`name` ("qemu-aarch64") of Debian 13's qemu-user; skips the test where it cannot be had."""
    directory = cache_directory() / f"qemu-user-{RELEASE}"
    found = directory / name
    if not found.exists():
        package = next(iter(directory.glob("*.deb")), None) or _fetch(_archive(), directory)
        _unpack(package, name, found)
    return found


def _archive() -> str:
    """The address of the Debian archive in the machine's own sources."""
    if shutil.which("apt-get") is None or not KEYRING.exists():
        pytest.skip("Debian 13's QEMU is fetched by apt with Debian's keyring: not here")
    known = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI) $(LABEL)", "Created-By: Packages"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    for line in known.stdout.splitlines():
        address, _, label = line.partition(" ")
        if label == "Debian":
            return address
    pytest.skip("apt knows no Debian archive to fetch Debian 13's QEMU from")


def _fetch(archive: str, directory: Path) -> Path:
    """The package, downloaded into `directory`."""
    directory.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory) as name:
        apt = Path(name)
        for part in ("lists/partial", "cache/archives/partial"):
            (apt / part).mkdir(parents=True)
        sources = apt / "sources.list"
        sources.write_text(f"deb [signed-by={KEYRING}] {archive} {RELEASE} main\n")
        options = [
            f"-oDir::Etc::SourceList={sources}",
            "-oDir::Etc::SourceParts=/dev/null",
            "-oDir::State::status=/dev/null",
            f"-oDir::State::Lists={apt}/lists",
            f"-oDir::Cache={apt}/cache",
            # The unprivileged user that apt changes to could not write here.
            "-oAPT::Sandbox::User=",
        ]
        for command in (["update"], ["download", "qemu-user"]):
            done = subprocess.run(
                ["apt-get", *options, *command],
                cwd=apt,
                capture_output=True,
                text=True,
                timeout=300,
            )
            if done.returncode != 0:
                pytest.skip(f"Debian 13's QEMU cannot be fetched: {done.stderr.strip()}")
        (package,) = apt.glob("qemu-user_*.deb")
        return package.replace(directory / package.name)


def _unpack(package: Path, name: str, target: Path) -> None:
    """One program out of the package, which holds all of QEMU's."""
    with tempfile.TemporaryDirectory(dir=target.parent) as directory:
        archive = subprocess.Popen(["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE)
        subprocess.run(
            ["tar", "-x", "-C", directory, f"./usr/bin/{name}"],
            stdin=archive.stdout,
            check=True,
            timeout=300,
        )
        assert archive.wait(timeout=60) == 0
        (Path(directory) / "usr" / "bin" / name).replace(target)
