"""apt, dpkg and what they start when packages are installed."""

from __future__ import annotations

from maid.acceleration.basics import ARCHITECTURE, LOCALE, USERS
from maid.acceleration.model import Need, Tool
from maid.acceleration.respell import respelled
from maid.acceleration.shells import HOSTS

_DPKG = "its database and the packages are text and archives; its architecture is put right"
_BYTES = "it moves bytes between a server or a file and the disk, and computes digests of them"
_APT_ITSELF = "it reads lists of packages and decides in integers; its architecture is put right"
_SIGNATURES = "a signature is valid or not"

_APT = ("/usr/lib/{gnu}/libapt-pkg.so.6.0", "/usr/lib/{gnu}/libapt-pkg.so.7.0")

_APT_LIBRARIES = tuple(
    (name, respelled("", ARCHITECTURE)) for name in ("libapt-pkg.so.*", "libapt-private.so.*")
)

TOOLS = (
    *(
        Tool(
            name,
            "dpkg",
            f"/usr/bin/{name}",
            _DPKG,
            rules=(*LOCALE, *USERS),
            needs=Need.ALL,
            patches=(respelled(f"/usr/bin/{name}", ARCHITECTURE),),
        )
        for name in (
            "dpkg",
            "dpkg-query",
            "dpkg-divert",
            "dpkg-statoverride",
            "dpkg-trigger",
            "update-alternatives",
            "dpkg-realpath",
        )
    ),
    *(
        Tool(
            f"apt's method {name}",
            "apt",
            f"/usr/lib/apt/methods/{name}",
            _BYTES,
            rules=(*LOCALE, *USERS, *HOSTS),
            needs=Need.ALL,
            decisive=_APT,
            libraries=_APT_LIBRARIES,
            patches=(respelled(f"/usr/lib/apt/methods/{name}", ARCHITECTURE),),
        )
        for name in (
            "http",
            "https",
            "file",
            "copy",
            "store",
            "gpgv",
            "sqv",
            "rred",
            "cdrom",
            "mirror",
        )
    ),
    *(
        Tool(
            name,
            "apt",
            f"/usr/bin/{name}",
            _APT_ITSELF,
            rules=(*LOCALE, *USERS, *HOSTS),
            needs=Need.ALL,
            decisive=_APT,
            libraries=_APT_LIBRARIES,
        )
        for name in ("apt-get", "apt-cache", "apt-config", "apt-mark", "apt", "apt-cdrom")
    ),
    Tool("sqv", "sqv", "/usr/bin/sqv", _SIGNATURES, rules=LOCALE),
    Tool("gpgv", "gpgv", "/usr/bin/gpgv", _SIGNATURES, rules=(*LOCALE, *USERS)),
    Tool(
        "file",
        "file",
        "/usr/bin/file",
        "it compares bytes with the root file system's own table, in integers of fixed size",
        rules=LOCALE,
        needs=Need.WIDTH | Need.ORDER,
        decisive=("/usr/lib/{gnu}/libmagic.so.1",),
    ),
)
