"""The everyday tools of a build that may stand in: compressors, archivers, coreutils, text tools.

Each writes bytes that follow from its input and options alone. What they have in common: no
floating-point arithmetic beyond what IEEE 754 determines, no compiled-in machine name, no loaded
modules. Messages are translated from catalogues of the root file system, which are the same on all
machines; the locale must be one whose character set glibc knows by itself (records.UTF8_LOCALE).

Left out on purpose, emulated: uname, arch (they name the machine); printf, seq, numfmt, od
(long double: 80 bits on x86, 128 on AArch64, RISC-V and s390x, so digits differ); stdbuf (preloads
a foreign library), chroot, su, runuser, nice, timeout, env, nohup, setpriv (they only execute
something else, which would be emulated or not by itself, and cost nothing); stty, nproc, df,
uptime, who and the like (nothing to gain).
"""

from __future__ import annotations

from dataclasses import replace

from maid.acceleration import records
from maid.acceleration.model import Need, Tool
from maid.acceleration.respell import respelled

LOCALE = (records.UTF8_LOCALE,)

ARCHITECTURE = (("\0amd64\0", "\0{arch}\0"), ("(amd64)", "({arch})"))
"""Debian's name of the architecture, which dpkg and apt have by itself and in `--version`."""

_FORMAT = "the format and the algorithm are its own, in integers of fixed size"
_FILES = "it moves bytes and names between files and looks at nothing of the machine"
_TEXT = "it compares and copies characters of its input"

# Names of users and groups come from /etc/passwd and /etc/group, which glibc reads by itself; any
# other source is a module, and a foreign one cannot be loaded into a native program.
USERS = tuple(
    records.exists(f"/usr/lib/{{gnu}}/libnss_{module}.so.2")
    for module in ("systemd", "sss", "ldap", "winbind", "extrausers", "nis", "cache")
)

# Writing a compressed file: how many threads and how much memory there is decides the blocks, and
# a 32-bit xz lowers its limits (xz(1), "Memory usage"): the same only where pointers are as wide.
_COMPRESSORS = (
    Tool(
        "xz",
        "xz-utils",
        "/usr/bin/xz",
        _FORMAT,
        rules=LOCALE,
        needs=Need.WIDTH,
        decisive=("/usr/lib/{gnu}/liblzma.so.5",),
    ),
    Tool("xzdec", "xzdec", "/usr/bin/xzdec", _FORMAT, rules=LOCALE),
    Tool("gzip", "gzip", "/usr/bin/gzip", _FORMAT, rules=LOCALE),
    Tool(
        "bzip2",
        "bzip2",
        "/usr/bin/bzip2",
        _FORMAT,
        rules=LOCALE,
        decisive=("/usr/lib/{gnu}/libbz2.so.1.0",),
    ),
    Tool(
        "zstd",
        "zstd",
        "/usr/bin/zstd",
        _FORMAT,
        rules=LOCALE,
        needs=Need.WIDTH | Need.ORDER,
        decisive=("/usr/lib/{gnu}/libzstd.so.1",),
    ),
    Tool("pigz", "pigz", "/usr/bin/pigz", _FORMAT, rules=LOCALE),
    Tool("lz4", "lz4", "/usr/bin/lz4", _FORMAT, rules=LOCALE, needs=Need.WIDTH | Need.ORDER),
    Tool("brotli", "brotli", "/usr/bin/brotli", _FORMAT, needs=Need.WIDTH | Need.ORDER),
)

_ARCHIVERS = (
    # What they start (compressors, --to-command) is looked up in the root file system, as ever.
    Tool("tar", "tar", "/usr/bin/tar", _FILES, rules=(*LOCALE, *USERS)),
    Tool("cpio", "cpio", "/usr/bin/cpio", _FILES, rules=(*LOCALE, *USERS), needs=Need.ORDER),
    Tool(
        "dpkg-deb",
        "dpkg",
        "/usr/bin/dpkg-deb",
        "the archive's members are the input's, compressed by the libraries linked in",
        rules=LOCALE,
        needs=Need.WIDTH,
        decisive=("/usr/lib/{gnu}/liblzma.so.5", "/usr/lib/{gnu}/libzstd.so.1"),
        patches=(respelled("/usr/bin/dpkg-deb", ARCHITECTURE),),
    ),
    Tool(
        "dpkg-split",
        "dpkg",
        "/usr/bin/dpkg-split",
        _FILES,
        rules=LOCALE,
        patches=(respelled("/usr/bin/dpkg-split", ARCHITECTURE),),
    ),
)

_TEXT_TOOLS = (
    Tool("sed", "sed", "/usr/bin/sed", _TEXT, rules=LOCALE),
    Tool("grep", "grep", "/usr/bin/grep", _TEXT, rules=(*LOCALE, records.option_letters("P"))),
    Tool(
        "find",
        "findutils",
        "/usr/bin/find",
        _FILES,
        rules=(*LOCALE, *USERS),
        needs=Need.SIGNALS,
    ),
    Tool("xargs", "findutils", "/usr/bin/xargs", _FILES, rules=LOCALE, needs=Need.SIGNALS),
    *(
        Tool(name, "diffutils", f"/usr/bin/{name}", _TEXT, rules=LOCALE)
        for name in ("cmp", "diff", "diff3", "sdiff")
    ),
    Tool(
        "patch",
        "patch",
        "/usr/bin/patch",
        _TEXT,
        rules=LOCALE,
    ),
)

_COREUTILS = [
    "[",
    "basename",
    "cat",
    "chgrp",
    "chmod",
    "chown",
    "cksum",
    "comm",
    "cp",
    "csplit",
    "cut",
    "date",
    "dd",
    "dir",
    "dircolors",
    "dirname",
    "du",
    "echo",
    "expand",
    "expr",
    "factor",
    "false",
    "fmt",
    "fold",
    "head",
    "id",
    "install",
    "join",
    "link",
    "ln",
    "logname",
    "ls",
    "md5sum",
    "b2sum",
    "mkdir",
    "mkfifo",
    "mknod",
    "mktemp",
    "mv",
    "nl",
    "paste",
    "pathchk",
    "pr",
    "ptx",
    "pwd",
    "readlink",
    "realpath",
    "rm",
    "rmdir",
    "sha1sum",
    "sha224sum",
    "sha256sum",
    "sha384sum",
    "sha512sum",
    "shred",
    "shuf",
    "sort",
    "split",
    "stat",
    "sum",
    "sync",
    "tac",
    "tail",
    "tee",
    "test",
    "touch",
    "tr",
    "true",
    "truncate",
    "tsort",
    "tty",
    "unexpand",
    "uniq",
    "unlink",
    "vdir",
    "wc",
    "whoami",
    "yes",
    "base32",
    "base64",
    "basenc",
    "groups",
]

# Sizes in units that are no power of two are computed in long double (gnulib's human.c).
_UNITS = (
    records.option_letters("B"),
    records.argument("--block"),
    records.environment("BLOCK_SIZE"),
    records.environment("BLOCKSIZE"),
)

_SPECIAL = {
    # -g compares as long double, whose width differs; -h and -n compare texts.
    "sort": (records.option_letters("g"),),
    "du": (*_UNITS, records.environment("DU_BLOCK_SIZE")),
    **dict.fromkeys(("ls", "dir", "vdir"), (*_UNITS, records.environment("LS_BLOCK_SIZE"))),
}

_NAMES = frozenset(
    ("chgrp", "chown", "groups", "id", "install", "logname", "ls", "dir", "stat", "vdir", "whoami")
)


def _coreutils() -> tuple[Tool, ...]:
    return tuple(
        Tool(
            name,
            "coreutils",
            f"/usr/bin/{name}",
            _TEXT if name in ("sort", "tr", "uniq", "cut", "join", "comm") else _FILES,
            rules=(*LOCALE, *_SPECIAL.get(name, ()), *(USERS if name in _NAMES else ())),
            needs=Need.SIGNALS,
        )
        for name in _COREUTILS
    )


# What a program with pointers of 32 bits refuses or cuts off (dd bs=3G, sort -S 5G, a date after
# 2038), one with 64 does.
TOOLS = tuple(
    replace(tool, needs=tool.needs | Need.WIDTH)
    for tool in (*_COMPRESSORS, *_ARCHIVERS, *_TEXT_TOOLS, *_coreutils())
)
"""All of them."""
