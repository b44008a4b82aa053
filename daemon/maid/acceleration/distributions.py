"""Distributions: where their archives are, how they are divided, and which keys sign them.

What this machine knows of that (its own mirrors, keyrings, proxies) is asked of its apt. Nothing is
fetched here: that is archive.py's.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_SETTINGS = re.compile(r"^(Acquire::(http|https|ftp|Check-|Retries|By-Hash)\S* .*;)$", re.M)


@dataclass(frozen=True)
class Distribution:
    """Where a distribution keeps what: `pockets` are suites as a pattern with {} for the release,
    the second field says which of the archives; `keyrings` are files in /usr/share/keyrings of a
    machine that has the distribution's keys, from the Debian package `keyring_package`."""

    name: str
    main: str
    security: str
    ports: str
    pockets: tuple[tuple[str, str], ...]
    components: str
    keyrings: tuple[str, ...]
    keyring_package: str
    main_architectures: tuple[str, ...]


DISTRIBUTIONS = {
    "debian": Distribution(
        "debian",
        "http://deb.debian.org/debian",
        "http://deb.debian.org/debian-security",
        "",
        (("{}", "main"), ("{}-updates", "main"), ("{}-security", "security")),
        "main",
        ("debian-archive-keyring.gpg", "debian-archive-keyring.pgp"),
        "debian-archive-keyring",
        ("amd64", "arm64", "armhf", "armel", "i386", "ppc64el", "riscv64", "s390x", "mips64el"),
    ),
    "ubuntu": Distribution(
        "ubuntu",
        "http://archive.ubuntu.com/ubuntu",
        "http://archive.ubuntu.com/ubuntu",
        "http://ports.ubuntu.com/ubuntu-ports",
        (("{}", "main"), ("{}-updates", "main"), ("{}-security", "security")),
        "main universe",
        ("ubuntu-archive-keyring.gpg",),
        "ubuntu-keyring",
        ("amd64", "i386"),
    ),
}
"""The distributions that native tools are taken from; `ports` has the architectures that the main
archive has not (Ubuntu: all but amd64 and i386)."""


@dataclass(frozen=True)
class Mirrors:
    """The addresses of a distribution's archives."""

    main: str
    security: str
    ports: str = ""


def keyrings(distribution: Distribution, configured: Iterable[Path], root: Path) -> list[Path]:
    """The files of keys for a distribution: those configured, and those below `root`, which is the
    machine's "/" or a root file system whose keys somebody trusts."""
    directory = root / "usr/share/keyrings"
    own = (directory / name for name in distribution.keyrings)
    found = [path for path in (*configured, *own) if path.is_file()]
    # Debian 13 has the same keys under both names.
    return found[:1] if not configured else found


def mirrors(distribution: Distribution, lists: Iterable[Iterable[str]]) -> list[Mirrors]:
    """The mirrors to try: what each of the lists of addresses has for the distribution, by how they
    end, then its own. What a list does not have is taken from the distribution's own."""
    usual = Mirrors(distribution.main, distribution.security, distribution.ports)
    found = []
    for addresses in map(tuple, lists):

        def ending(text: str, otherwise: str, addresses: tuple[str, ...] = addresses) -> str:
            return next((each for each in addresses if each.endswith(text)), otherwise)

        main = ending(f"/{distribution.name}", "")
        if main:
            # Where there is no archive of its own for security (Ubuntu), the main one has it.
            own = usual.security if usual.security != usual.main else main
            secure = ending(f"/{distribution.name}-security", own)
            ports = usual.ports and ending(f"/{distribution.name}-ports", usual.ports)
            found.append(Mirrors(main, secure, ports))
    return list(dict.fromkeys([*found, usual]))


def machine_settings() -> str:
    """What the machine's apt knows of the network (proxies, dates), as configuration."""
    try:
        done = subprocess.run(
            ["apt-config", "dump"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return "".join(f"{line[0]}\n" for line in _SETTINGS.findall(done.stdout))


def machine_mirrors() -> list[str]:
    """The archives that this machine's own package lists are from, each once."""
    command = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return list(dict.fromkeys(uri.rstrip("/") for uri in done.stdout.split()))
