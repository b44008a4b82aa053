"""OCI platforms: read, normalise, write, match and order them, and say what this machine is.

A platform is what an image says it runs on: operating system, architecture and perhaps a variant
(`linux/arm64`, `linux/arm/v7`). Users know docker's behaviour, which is containerd's, so the rules
are containerd's (github.com/containerd/platforms) in our own words; they are numbered R1 to R7 and
R10 here, and tests/unit/test_platforms.py is named for them:

R1  parse        one to three parts between slashes
R2  normalise    one spelling for each platform
R3  same         when one platform is the other
R4  Windows      which builds run on which
R5  only         what else will do for a platform, best first
R6  only_strict, only_os
R7  less         which of two candidates is better
R10 host         what this machine is, with the level it was detected to have

The module knows nothing of emulation, images or registries. It is imported by every command, so it
imports nothing that is slow to import: `dataclasses`, `re` and `typing` cost 10 ms and more
(Python 3.11, `-X importtime`), ten times the rest of it.
"""

from __future__ import annotations

import io
import os as _os
import sys

from maid.errors import UsageError

# Go's list of operating systems and architectures (go/build/syslist.go), which a single part of R1
# is looked up in.
_SYSTEMS = (
    "aix android darwin dragonfly freebsd hurd illumos ios js linux nacl netbsd openbsd plan9"
    " solaris wasip1 windows zos"
)
_ARCHITECTURES = (
    "386 amd64 amd64p32 arm armbe arm64 arm64be loong64 mips mipsle mips64 mips64le mips64p32"
    " mips64p32le ppc ppc64 ppc64le riscv riscv64 s390 s390x sparc sparc64 wasm"
)

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
_IN_SYSTEM = frozenset(_LETTERS + "_-")
_IN_PART = frozenset(_LETTERS + "_.-")

# Long-term builds of Windows Server, oldest first: 2022 and 2025. From the first on, a container
# runs on hosts of its own build and newer (hcsshim, osversion/platform_compat_windows.go).
_LONG_TERM_BUILDS = (20348, 26100)

# Flags of /proc/cpuinfo that each level adds to the one before: System V ABI, AMD64 Architecture
# Processor Supplement, table 3.1 "Micro-Architecture Levels" (gitlab.com/x86-psABIs/x86-64-ABI).
# Linux calls SSE3 `pni` and LZCNT `abm`; OSXSAVE shows as `xsave`, which Linux hides when it has
# not enabled it.
_AMD64_LEVELS = (
    ("v2", "cx16 lahf_lm popcnt pni sse4_1 sse4_2 ssse3"),
    ("v3", "avx avx2 bmi1 bmi2 f16c fma abm movbe xsave"),
    ("v4", "avx512f avx512bw avx512cd avx512dq avx512vl"),
)

# uname's machine where it is not simply a name that R2 knows (linux, arch/*/Makefile UTS_MACHINE).
_MACHINES = {
    "i486": "386",
    "i586": "386",
    "i686": "386",
    "loongarch64": "loong64",
}


class PlatformError(UsageError):
    """The text is not a platform."""


class Platform:
    """One platform, as the OCI image index describes it. Immutable, comparable, hashable.

    `os` and `architecture` are Go's names (`linux`, `arm64`), `variant` the CPU's (`v7`) or "",
    `os_version` a version such as Windows' `10.0.20348` or "", `os_features` a tuple of names.
    Two are equal when every field is: compare `normalized()` ones, or use a `Matcher`.
    """

    __slots__ = ("architecture", "os", "os_features", "os_version", "variant")

    os: str
    architecture: str
    variant: str
    os_version: str
    os_features: tuple[str, ...]

    def __init__(
        self,
        os: str,
        architecture: str,
        variant: str = "",
        os_version: str = "",
        os_features: tuple[str, ...] = (),
    ) -> None:
        for name, value in (
            ("os", os),
            ("architecture", architecture),
            ("variant", variant),
            ("os_version", os_version),
            ("os_features", tuple(os_features)),
        ):
            object.__setattr__(self, name, value)

    def _fields(self) -> tuple[str, str, str, str, tuple[str, ...]]:
        return self.os, self.architecture, self.variant, self.os_version, self.os_features

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a Platform cannot be changed ({name})")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"a Platform cannot be changed ({name})")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Platform):
            return NotImplemented
        return self._fields() == other._fields()

    def __hash__(self) -> int:
        return hash(self._fields())

    def __reduce__(self) -> tuple[type[Platform], tuple[str, str, str, str, tuple[str, ...]]]:
        return Platform, self._fields()

    def __repr__(self) -> str:
        return f"Platform({str(self)!r})"

    def __str__(self) -> str:
        """What `parse` reads: `linux/arm/v7`, `windows(10.0.20348+win32k)/amd64`.

        Whatever the syntax has no room for in a version or feature is written %XX. A platform
        without an os is `unknown`, which is what containerd shows.
        """
        if not self.os:
            return "unknown"
        features = sorted(feature for feature in self.os_features if feature)
        options = "+".join([_escape(self.os_version), *map(_escape, features)])
        system = f"{self.os}({options})" if options else self.os
        return "/".join(filter(None, (system, self.architecture, self.variant)))

    def normalized(self) -> Platform:
        """The same platform in the one spelling that R2 gives it."""
        architecture, variant = _normalize_architecture(self.architecture, self.variant)
        return Platform(
            _normalize_system(self.os),
            architecture,
            variant,
            self.os_version,
            tuple(sorted({feature for feature in self.os_features if feature})),
        )


def parse(text: str) -> Platform:
    """Read `os`, `architecture`, `os/architecture` or `os/architecture/variant` (R1).

    The os may carry a version and features, `os(version+feature+feature)`, in which %XX stands for
    a byte of UTF-8. Names are normalised (R2), but a variant that was written is kept where it can
    be told from one that was not: `linux/arm` and `linux/arm/v7` are the same platform and show as
    they were written. Whether the platform exists is not asked, save where one part alone must be
    recognised. Raises PlatformError.
    """
    parts = text.split("/", 3)
    if "*" in text:
        raise PlatformError(f"{text!r} is not a platform: there are no wildcards", _EXAMPLES)
    if len(parts) > 3:
        raise PlatformError(f"{text!r} is not a platform: more than three parts", _EXAMPLES)
    if not all(parts):
        what = "it is empty" if not text else "a part is empty"
        raise PlatformError(f"{text!r} is not a platform: {what}", _EXAMPLES)
    system, version, features = _parse_system(text, parts[0])
    for part in parts[1:]:
        if not _IN_PART.issuperset(part):
            raise PlatformError(
                f"{text!r} is not a platform: {part!r} has other characters than A-Z a-z 0-9 _ . -",
                _EXAMPLES,
            )
    if len(parts) == 1:
        return _parse_single(text, system, version, features)
    architecture, variant = _normalize_architecture(parts[1], parts[2] if len(parts) == 3 else "")
    if len(parts) == 2 and (architecture, variant) == ("arm", "v7"):
        variant = ""
    if len(parts) == 3 and (architecture, variant) == ("arm64", ""):
        variant = "v8"
    return Platform(system, architecture, variant, version, features)


_EXAMPLES = "a platform is os/architecture or os/architecture/variant, such as linux/arm64"


def _parse_single(text: str, system: str, version: str, features: tuple[str, ...]) -> Platform:
    if system in _SYSTEMS.split():
        here = host()
        variant = here.variant if here.architecture == "arm" and here.variant != "v7" else ""
        return Platform(system, here.architecture, variant, version, features)
    architecture, variant = _normalize_architecture(text, "")
    if architecture in _ARCHITECTURES.split():
        return Platform(_own_system(), architecture, "" if variant == "v7" else variant)
    from difflib import get_close_matches

    near = get_close_matches(text.lower(), f"{_SYSTEMS} {_ARCHITECTURES}".split(), n=1)
    raise PlatformError(
        f"{text!r} is neither an operating system nor an architecture",
        f"did you mean {near[0]}?" if near else _EXAMPLES,
    )


def _parse_system(text: str, part: str) -> tuple[str, str, tuple[str, ...]]:
    name, opened, options = part.partition("(")
    if not name or not _IN_SYSTEM.issuperset(name):
        raise PlatformError(
            f"{text!r} is not a platform: {name!r} has other characters than A-Z a-z 0-9 _ -",
            _EXAMPLES,
        )
    if not opened:
        return _normalize_system(name), "", ()
    hint = "an os with a version and features is written os(version+feature), with %XX escapes"
    if not options.endswith(")"):
        raise PlatformError(f"{text!r} is not a platform: {part!r} lacks its closing ')'", hint)
    version, *features = (_unescape(text, option) for option in options[:-1].split("+"))
    if not all(features):
        raise PlatformError(f"{text!r} is not a platform: it has a feature without a name", hint)
    return _normalize_system(name), version, tuple(features)


def _escape(option: str) -> str:
    return "".join(
        character
        if character in _IN_PART
        else "".join(f"%{byte:02X}" for byte in character.encode("utf-8", "surrogatepass"))
        for character in option
    )


def _unescape(text: str, option: str) -> str:
    first, *escaped = option.split("%")
    decoded = first.encode()
    try:
        if not all(_IN_PART.issuperset(piece) for piece in (first, *escaped)):
            raise ValueError
        for piece in escaped:
            # int() alone would also take "+1" and " 1".
            if len(piece) < 2 or not piece[:2].isalnum():
                raise ValueError
            decoded += bytes([int(piece[:2], 16)]) + piece[2:].encode()
        return decoded.decode("utf-8", "surrogatepass")
    except ValueError:
        raise PlatformError(
            f"{text!r} is not a platform: {option!r} is not a version or feature",
            "write other characters than A-Z a-z 0-9 _ . - as %XX, two hexadecimal digits",
        ) from None


def _normalize_system(system: str) -> str:
    system = system.lower()
    return "darwin" if system == "macos" else system


def _normalize_architecture(architecture: str, variant: str) -> tuple[str, str]:
    architecture, variant = architecture.lower(), variant.lower()
    match architecture:
        case "i386" | "386":
            return "386", "" if architecture == "i386" else variant
        case "x86_64" | "x86-64" | "amd64":
            return "amd64", "" if variant == "v1" else variant
        case "aarch64" | "arm64":
            if variant in ("8", "v8", "v8.0"):
                variant = ""
            elif variant in ("9", "9.0", "v9.0"):
                variant = "v9"
            return "arm64", variant
        case "armhf":
            return "arm", "v7"
        case "armel":
            return "arm", "v6"
        case "arm":
            if variant in ("", "7"):
                variant = "v7"
            elif variant in ("5", "6", "8"):
                variant = "v" + variant
            return "arm", variant
    return architecture, variant


class Matcher:
    """Which candidates will do for a platform, and which of two is the better one.

    Made by `only`, `only_strict` and `only_os`. `wanted` is the list of acceptable platforms,
    normalised, best first.
    """

    __slots__ = ("any_architecture", "wanted")

    def __init__(self, wanted: tuple[Platform, ...], any_architecture: bool = False) -> None:
        self.wanted = wanted
        self.any_architecture = any_architecture

    def matches(self, candidate: Platform) -> bool:
        """Whether an image for `candidate` will do."""
        candidate = candidate.normalized()
        return any(
            _same(wanted, candidate, any_architecture=self.any_architecture)
            for wanted in self.wanted
        )

    def less(self, a: Platform, b: Platform) -> bool:
        """Whether `a` comes before `b`, being the better of the two (R7)."""
        a, b = a.normalized(), b.normalized()
        for features in (True, False):
            for wanted in self.wanted:
                a_fits, b_fits = (_same(wanted, each, features=features) for each in (a, b))
                if a_fits != b_fits:
                    return a_fits
                if a_fits:
                    return _shared(wanted, a) > _shared(wanted, b)
        return False


def only(platform: Platform) -> Matcher:
    """`platform` and what else will do for it, best first (R5): what docker pulls by."""
    return Matcher(_acceptable(platform.normalized()))


def only_strict(platform: Platform) -> Matcher:
    """`platform` alone (R6)."""
    return Matcher((platform.normalized(),))


def only_os(platform: Platform) -> Matcher:
    """Any architecture of `platform`'s os, its own and what else will do first (R6)."""
    platform = platform.normalized()
    # An arm64 variant nobody knows accepts nothing by R5, but still has an os.
    return Matcher(_acceptable(platform) or (platform,), any_architecture=True)


def _same(
    wanted: Platform,
    candidate: Platform,
    features: bool = True,
    any_architecture: bool = False,
) -> bool:
    """R3, of two normalised platforms."""
    if wanted.os != candidate.os:
        return False
    if not any_architecture and (
        wanted.architecture != candidate.architecture or wanted.variant != candidate.variant
    ):
        return False
    if wanted.os == "windows" and not _windows_runs(wanted.os_version, candidate.os_version):
        return False
    return not features or _features(candidate) <= _features(wanted)


def _features(platform: Platform) -> frozenset[str]:
    features = frozenset(platform.os_features)
    # Server images carry it or not for the same content (R4).
    return features - {"win32k"} if platform.os == "windows" else features


def _shared(wanted: Platform, candidate: Platform) -> int:
    return len(_features(wanted) & _features(candidate))


def _windows_runs(host_version: str, version: str) -> bool:
    """R4: whether a Windows of `host_version` runs containers of `version`."""
    ours, theirs = _windows_version(host_version), _windows_version(version)
    if ours is None or theirs is None:
        return True
    if ours[:2] != theirs[:2]:
        return False
    build = ours[2]
    if build < _LONG_TERM_BUILDS[0]:
        return theirs[2] == build
    oldest = max((each for each in _LONG_TERM_BUILDS if each < build), default=_LONG_TERM_BUILDS[0])
    return oldest <= theirs[2] <= build


def _windows_version(text: str) -> tuple[int, int, int] | None:
    """Major, minor and build of `10.0.20348` or `10.0.20348.1`; None when it is not that."""
    parts = text.split(".")
    # No real number is longer than five digits (the build is 16 bits wide).
    if len(parts) < 3 or not all(_is_number(part) and len(part) <= 5 for part in parts[:3]):
        return None
    return int(parts[0]), int(parts[1]), int(parts[2])


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _acceptable(platform: Platform) -> tuple[Platform, ...]:
    """R5: what will do for a normalised platform, best first."""

    def others(architecture: str, *variants: str) -> list[Platform]:
        return [
            Platform(
                platform.os, architecture, variant, platform.os_version, platform.os_features
            ).normalized()
            for variant in variants
        ]

    match platform.architecture:
        case "amd64":
            lower = [f"v{level}" for level in range(_level(platform.variant) - 1, 0, -1)]
            return (platform, *others("amd64", *lower), *others("386", ""))
        case "arm":
            lower = [f"v{level}" for level in range(_level(platform.variant) - 1, 4, -1)]
            return (platform, *others("arm", *lower))
        case "arm64":
            return (
                *others("arm64", *_arm64_variants(platform.variant)),
                # A64 cores of either version may run A32 code; v8 is the last there is of it.
                *(
                    others("arm", "v8", "v7", "v6", "v5")
                    if _arm64_variants(platform.variant)
                    else ()
                ),
            )
    return (platform,)


def _level(variant: str) -> int:
    """The N of vN, one digit; 0 for anything else, which has no lower levels."""
    return (
        int(variant[1])
        if len(variant) == 2 and variant[0] == "v" and variant[1:].isdecimal()
        else 0
    )


def _arm64_variants(variant: str) -> list[str]:
    """What runs on an arm64 of a normalised variant, best first; [] when it is unknown.

    Arm defines v9.m to have what v8.(m+5) has, and ends the v8 line with v8.9 (Arm Architecture
    Reference Manual DDI 0487, "Armv9 architecture extensions").
    """

    def line(major: str, minor: int) -> list[str]:
        return [f"{major}.{each}" if each else major for each in range(minor, -1, -1)]

    major, dot, minor = (variant or "v8").partition(".")
    if major not in ("v8", "v9") or (dot and not (len(minor) == 1 and _is_number(minor))):
        return []
    newest = int(minor or 0)
    if major == "v8":
        return line("v8", newest)
    return line("v9", newest) + line("v8", min(newest + 5, 9))


def host(machine: str | None = None, cpuinfo: str | None = None) -> Platform:
    """The platform of this machine, normalised, with its level (R10).

    `machine` is what uname calls the architecture, `cpuinfo` the text of /proc/cpuinfo; both are
    read from the machine when None. amd64 gets the highest level whose features the CPU has, arm
    its version; arm64 stays without a variant, as images for its minor versions do not exist.
    """
    if machine is None:
        machine = _os.uname().machine
    architecture = _MACHINES.get(machine, machine)
    if architecture in ("mips", "mips64") and sys.byteorder == "little":
        # The kernel has one name for both byte orders.
        architecture += "le"
    variant = ""
    if architecture.startswith("arm") and architecture != "arm64":
        # armv5tejl, armv6l, armv7l, armv8l (a 32-bit process on an arm64 kernel).
        variant = _arm_version(architecture[3:], cpuinfo)
        architecture = "arm"
    architecture, variant = _normalize_architecture(architecture, variant)
    if architecture == "amd64":
        variant = _amd64_level(_cpuinfo_value("flags", cpuinfo))
    return Platform(_own_system(), architecture, variant).normalized()


def _own_system() -> str:
    return "linux" if sys.platform.startswith("linux") else _normalize_system(sys.platform)


def _amd64_level(flags: str) -> str:
    have = frozenset(flags.split())
    level = ""
    for name, needed in _AMD64_LEVELS:
        if not have.issuperset(needed.split()):
            break
        level = name
    return level


def _arm_version(machine: str, cpuinfo: str | None) -> str:
    """`v7` from the CPU's own words, or from uname's `v7l` where it does not say.

    An ARMv6 Raspberry Pi reports "CPU architecture: 7", for its memory management is v7's; its
    model name is right (containerd/platforms, cpuinfo_linux.go, has the same exception).
    """
    version = _cpuinfo_value("CPU architecture", cpuinfo)[:1]
    if version == "7" and _cpuinfo_value("model name", cpuinfo).lower().startswith("armv6-"):
        version = "6"
    if version not in ("5", "6", "7", "8"):
        version = machine[1:2]
    return "v" + version if version in ("5", "6", "7", "8") else ""


def _cpuinfo_value(key: str, cpuinfo: str | None) -> str:
    """The value of the first line `key : value`, "" without one.

    The first processor speaks for all. Line by line, since the kernel makes the text while it is
    read and a machine with many processors takes long to write it all.
    """
    if cpuinfo is not None:
        return _first_value(key, io.StringIO(cpuinfo))
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            return _first_value(key, lines)
    except OSError:
        return ""


def _first_value(key: str, lines: io.TextIOBase) -> str:
    for line in lines:
        name, colon, value = line.partition(":")
        if colon and name.strip().lower() == key.lower():
            return value.strip()
    return ""


COMMON: tuple[Platform, ...] = tuple(
    Platform("linux", architecture, variant)
    for architecture, variant in (
        ("386", ""),
        ("amd64", ""),
        ("arm", "v5"),
        ("arm", "v6"),
        ("arm", "v7"),
        ("arm64", ""),
        ("loong64", ""),
        ("mips64le", ""),
        ("ppc64le", ""),
        ("riscv64", ""),
        ("s390x", ""),
    )
)
"""The platforms people publish images for, normalised: each always gets a probe."""
