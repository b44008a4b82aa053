"""What can be configured: the keys of maid.toml, their types, bounds, defaults and meaning.

Each key is documented where it is defined, in its `Meta(description=…)`, from which
maid.config.example writes the documented file. What a target's own defaults are (CPU model,
credentials) is maid.emulation.targets' to know. Reading a file is maid.config's.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

from msgspec import Meta, Struct

from maid.platforms import COMMON, Platform, parse


class Scope(StrEnum):
    """Which binfmt_misc instance the daemon serves (design.md, "Words")."""

    HOST = "host"
    PRIVATE = "private"


class Prefer(StrEnum):
    """What to do with a working entry that somebody else registered."""

    ADOPT = "adopt"
    OWN = "own"


class Network(StrEnum):
    """A step's network: one of its own with loopback alone, or the machine's."""

    NONE = "none"
    HOST = "host"


class Level(StrEnum):
    """The least important messages that are logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class TargetSettings(Struct, frozen=True, kw_only=True):
    """One target of maid's: [emulation.target.NAME], where NAME is QEMU's name of the CPU."""

    enabled: Annotated[
        bool,
        Meta(description="Whether to serve the target at all."),
    ] = True
    cpu: Annotated[
        str | None,
        Meta(
            description="The CPU model to emulate, as QEMU's option -cpu takes it; \"\" is QEMU's"
            " own default. Unset: maid's choice, which is neoverse-n1 for aarch64 (ARMv8.2, without"
            " the pointer authentication that is slow to emulate; where QEMU lacks it,"
            " max,pauth=off), and QEMU's default for the others, of which none was faster.",
            examples=["max,pauth-impdef=on"],
        ),
    ] = None
    interpreter: Annotated[
        Path | None,
        Meta(
            description="The interpreter to use, an absolute path. Unset: the best one found.",
            examples=["/usr/local/bin/qemu-aarch64"],
        ),
    ] = None
    credentials: Annotated[
        bool | None,
        Meta(
            description="Whether setuid programs of this target get their owner's identity (flags O"
            " and C of binfmt_misc), so that sudo and ping work. Unset: yes for the targets that"
            " have an OCI platform.",
            examples=[True],
        ),
    ] = None


class Emulation(Struct, frozen=True, kw_only=True):
    """[emulation]: which platforms to serve and with what."""

    platforms: Annotated[
        tuple[str, ...],
        Meta(
            description="The platforms to serve: OCI platforms (linux/arm64), names of targets"
            " (aarch64), or * for everything there is an interpreter for."
        ),
    ] = ("*",)
    exclude: Annotated[
        tuple[str, ...],
        Meta(description="Platforms and targets to leave alone, whatever `platforms` says."),
    ] = ()
    interpreters: Annotated[
        tuple[Path, ...],
        Meta(
            description="More places to look for interpreters in, before all others: absolute"
            " paths of directories and programs."
        ),
    ] = ()
    prefer: Annotated[
        Prefer,
        Meta(
            description="What to do with a working entry that somebody else registered. adopt:"
            " leave it in charge. own: register maid's before it, so that the CPU model and"
            " acceleration apply; the other one stays and serves again when maid's is gone."
        ),
    ] = Prefer.ADOPT
    ready: Annotated[
        tuple[str, ...] | None,
        Meta(
            description="The platforms that must have been executed before maid-ready.target is"
            " reached. Unset: of the common platforms, those that are native or have an"
            " interpreter.",
            examples=[["linux/amd64", "linux/arm64"]],
        ),
    ] = None
    probe_timeout: Annotated[
        float,
        Meta(gt=0, le=3600, description="How long one probe may take, in seconds."),
    ] = 10.0
    watch_crashes: Annotated[
        bool,
        Meta(
            description="Whether to tell, as events, of emulated programs anywhere on the machine"
            " that die of a signal such as SIGSEGV. It needs root, and wakes for every process that"
            " starts or ends."
        ),
    ] = False
    target: Annotated[
        dict[str, TargetSettings],
        Meta(description="What is different for one target: a table for each, here for aarch64."),
    ] = {}

    def settings(self, target: str) -> TargetSettings:
        """The settings of the target of that name, defaults where the file has none."""
        return self.target.get(target, TargetSettings())

    def serves(self, target: str, platform: Platform | None = None) -> bool:
        """Whether to serve `platform` through the target of that name.

        None stands for the programs of a target that has no OCI platform. A target is wanted when
        it is for one of its platforms: excluding linux/arm/v5 does not take linux/arm/v7 away.
        """

        def named(names: tuple[str, ...]) -> bool:
            return any(_names(each, target, platform) for each in names)

        return self.settings(target).enabled and named(self.platforms) and not named(self.exclude)

    def must_be_ready(self, target: str, platform: Platform | None = None) -> bool:
        """Whether maid-ready.target waits for `platform` by the file, or being common without one.

        Whether the platform is native or has an interpreter at all is for the caller to know.
        """
        if not self.serves(target, platform):
            return False
        if self.ready is not None:
            return any(_names(each, target, platform) for each in self.ready)
        return platform is not None and platform.normalized() in COMMON


class Steps(Struct, frozen=True, kw_only=True):
    """[steps]: build steps (`maid run`, io.maid.Steps)."""

    runtime: Annotated[
        str,
        Meta(
            description="The OCI runtime: crun, runc, an absolute path, or auto for the first of"
            " crun and runc that works here."
        ),
    ] = "auto"
    network: Annotated[
        Network,
        Meta(
            description="The network of a step that does not say: host (the machine's) or none"
            " (loopback alone)."
        ),
    ] = Network.HOST
    max_per_uid: Annotated[
        int,
        Meta(ge=1, le=4096, description="How many steps one user may run at once."),
    ] = 16
    max_queued_per_uid: Annotated[
        int,
        Meta(
            ge=0,
            le=4096,
            description="How many further steps of one user may wait for a place; the next is"
            " refused.",
        ),
    ] = 64
    timeout: Annotated[
        float,
        Meta(
            ge=0,
            le=31_536_000,
            description="How long a step that does not say may take, in seconds; 0 is for ever.",
        ),
    ] = 0.0


class Socket(Struct, frozen=True, kw_only=True):
    """[socket]: the varlink socket, and what one user may ask of it."""

    path: Annotated[
        Path,
        Meta(
            description="Where the socket is, an absolute path. Under systemd maid.socket makes"
            " it: change both. --socket and MAID_SOCKET go before."
        ),
    ] = Path("/run/maid/io.maid")
    group: Annotated[
        str,
        Meta(min_length=1, description="The group that may use the socket besides root."),
    ] = "maid"
    max_message_bytes: Annotated[
        int,
        Meta(
            ge=4096,
            le=64 * 1024 * 1024,
            description="The largest message that is read, in bytes; a longer one ends the"
            " connection.",
        ),
    ] = 1024 * 1024
    max_connections_per_uid: Annotated[
        int,
        Meta(ge=1, le=65536, description="How many connections one user may have open."),
    ] = 64
    max_requests_per_connection: Annotated[
        int,
        Meta(
            ge=1,
            le=65536,
            description="How many requests of one connection may be unanswered at a time.",
        ),
    ] = 16


class Paths(Struct, frozen=True, kw_only=True):
    """[paths]: the directories maid writes to, absolute paths."""

    runtime: Annotated[
        Path,
        Meta(
            description="What does not outlive a reboot: instances, bundles, the list of what maid"
            " registered."
        ),
    ] = Path("/run/maid")
    state: Annotated[
        Path,
        Meta(description="What does: copies of interpreters and what is known of them."),
    ] = Path("/var/lib/maid")


class Accelerate(StrEnum):
    """Whether native tools stand in for a step's programs that does not say."""

    OFF = "off"
    AUTO = "auto"
    REQUIRE = "require"


class Fill(StrEnum):
    """What to do for a root file system that the native store has no tools for."""

    OFF = "off"
    AUTO = "auto"
    WAIT = "wait"


class Acceleration(Struct, frozen=True, kw_only=True):
    """[acceleration]: native tools in foreign steps and containers (docs/acceleration.md)."""

    accelerate: Annotated[
        Accelerate,
        Meta(
            description="Whether a step that does not say uses native tools. off: no store is"
            " made, for other engines' containers neither. require: a step whose root file system"
            " has none is refused."
        ),
    ] = Accelerate.AUTO
    fill: Annotated[
        Fill,
        Meta(
            description="What to do when a root file system is seen that the store has no tools"
            " for. off: nothing (maid accel add). auto: fetch them in the background; a running"
            " step profits from then on. wait: the step waits for them."
        ),
    ] = Fill.AUTO
    tools: Annotated[
        tuple[str, ...],
        Meta(
            description="Which tools may stand in (maid accel list): names, with * and ?, and with"
            " - before a name those that may not. The last one that matches decides.",
            examples=[["*", "-perl*"]],
        ),
    ] = ("*",)
    max_bytes: Annotated[
        int,
        Meta(
            ge=0,
            description="How large the store may grow, in bytes: after each filling the least used"
            " tools go, those of the last six hours only where there is twice as much. 0 is no"
            " limit.",
        ),
    ] = 4 << 30
    keyrings: Annotated[
        tuple[Path, ...],
        Meta(
            description="Files with the keys that archives may be signed with. Unset: the"
            " distribution's in /usr/share/keyrings, from its keyring package.",
        ),
    ] = ()
    mirrors: Annotated[
        tuple[str, ...],
        Meta(
            description="Addresses of the archives to fetch packages from, known by how they end:"
            " /debian, /debian-security, /ubuntu, /ubuntu-ports. Unset: those that this machine"
            " itself installs from, then the distribution's own."
        ),
    ] = ()


class Log(Struct, frozen=True, kw_only=True):
    """[log]"""

    level: Annotated[
        Level,
        Meta(description="What is logged: debug, info, warning or error, and what is graver."),
    ] = Level.INFO


class Config(Struct, frozen=True, kw_only=True):
    """The whole configuration, complete: every default is filled in."""

    emulation: Emulation = Emulation()
    steps: Steps = Steps()
    acceleration: Acceleration = Acceleration()
    socket: Socket = Socket()
    paths: Paths = Paths()
    log: Log = Log()


def _names(name: str, target: str, platform: Platform | None) -> bool:
    """Whether `name` of the configuration means this target or platform.

    A name that is both (arm) means the target, hence all its platforms.
    """
    if name in ("*", target):
        return True
    if platform is None or _is_target(name):
        return False
    return same_platform(parse(name), platform)


def same_platform(named: Platform, platform: Platform) -> bool:
    """Whether `named`, from the configuration, means `platform`.

    The variant counts where one architecture has several platforms of its own, which is arm; one
    emulated CPU has every level of the others.
    """
    named, platform = named.normalized(), platform.normalized()
    if named.architecture == "arm":
        return named == platform
    return (named.os, named.architecture) == (platform.os, platform.architecture)


def _is_target(name: str) -> bool:
    from maid.emulation.targets import TARGETS

    return name in TARGETS
