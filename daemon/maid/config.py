"""The configuration: /etc/maid/maid.toml, typed and validated.

Every key has a default, so that the file may be missing or empty. What is there must be right: an
unknown key, a wrong type or a platform nobody knows is a ConfigError that names the file, the key
and what is expected, because a typing error that is silently ignored shows only much later, as a
platform that does not work.

The keys are documented where they are defined, in their `Meta(description=…)`; `example` writes
them all out, and docs/maid.toml.example is its output. What a target's own defaults are (CPU model,
credentials) is maid.emulation.targets' to know.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import msgspec
from msgspec import Meta, Struct

from maid.errors import ConfigError
from maid.platforms import COMMON, Platform, PlatformError, host, parse

DEFAULT = Path("/etc/maid/maid.toml")
"""Where the configuration is when nobody says otherwise."""


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
            " own default. Unset: maid's choice, which is neoverse-n1 for aarch64, without the"
            " pointer authentication that is slow to emulate, and QEMU's for the others.",
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
    socket: Socket = Socket()
    paths: Paths = Paths()
    log: Log = Log()


def load(
    path: Path | None = None,
    scope: Scope = Scope.HOST,
    socket: Path | None = None,
    *,
    environ: Mapping[str, str] = os.environ,
    uid: int | None = None,
) -> Config:
    """Read the configuration for a daemon of `scope`.

    `path` is the file that was asked for; None is /etc/maid/maid.toml, which may be missing.
    `socket` goes before the file's. `environ` and `uid` say who asks, by default this process.

    In private scope [paths] and the socket's path come from a file only when it was asked for: the
    default file's are the service's, which a private daemon must not touch. Without them root gets
    /run/maid/private/io.maid, /run/maid/private/<hash of the socket path> and /var/lib/maid
    (which holds caches keyed by content only), anybody else the same below $XDG_RUNTIME_DIR/maid
    and $XDG_STATE_HOME/maid.

    Raises ConfigError.
    """
    source = path or DEFAULT
    raw = _read(source, must_exist=path is not None)
    config: Config = _struct(raw, Config, source, "")
    _check(config, source)
    named = raw if path is not None or scope is Scope.HOST else {}
    return msgspec.structs.replace(
        config,
        **_places(config, named, scope, socket, environ, os.getuid() if uid is None else uid),
    )


def example() -> str:
    """A maid.toml that documents every key: `#key = value` is a default, `# key = value` is not."""
    return "\n".join(
        [
            "# /etc/maid/maid.toml: every key of maid's configuration, with its default.",
            "# maid needs none of them; uncomment what is to be different.",
            *_document(Config, Config(), ""),
            "",
        ]
    )


def _read(path: Path, must_exist: bool) -> dict[str, Any]:
    import tomllib

    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except FileNotFoundError:
        if not must_exist:
            return {}
        raise ConfigError(
            f"{path}: the configuration file does not exist",
            "leave --config and MAID_CONFIG out to run with the defaults",
        ) from None
    except OSError as error:
        raise ConfigError(
            f"{path}: the configuration file cannot be read: {error.strerror}"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path}: this is not TOML: {error}", "strings are quoted, and lists are in brackets"
        ) from error


def _struct(raw: object, kind: type[Any], source: Path, where: str) -> Any:
    """Make a `kind` of a table, key by key, so that an error can name the key."""
    if not isinstance(raw, dict):
        raise ConfigError(f"{source}: {where} must be a table, [{where}]")
    fields = {field.encode_name: field for field in msgspec.structs.fields(kind)}
    values = {}
    for key, value in raw.items():
        full = f"{where}.{key}" if where else key
        if key not in fields:
            raise ConfigError(f"{source}: there is no key {full}", _near(key, fields))
        values[key] = _value(value, fields[key].type, source, full)
    return kind(**values)


def _value(raw: object, kind: Any, source: Path, where: str) -> Any:
    plain = get_args(kind)[0] if get_origin(kind) is Annotated else kind
    if isinstance(plain, type) and issubclass(plain, Struct):
        return _struct(raw, plain, source, where)
    if get_origin(plain) is dict:
        if not isinstance(raw, dict):
            raise ConfigError(f"{source}: {where} must be a table, [{where}.NAME]")
        each = get_args(plain)[1]
        return {key: _value(value, each, source, f"{where}.{key}") for key, value in raw.items()}
    try:
        return msgspec.convert(raw, kind, dec_hook=_path)
    except msgspec.ValidationError as error:
        shown = raw if isinstance(raw, (dict, list)) else repr(raw)
        choice = plain if isinstance(plain, type) and issubclass(plain, StrEnum) else ()
        raise ConfigError(
            f"{source}: {where} cannot be {shown}: {error}", _near(str(raw), choice)
        ) from None


def _path(kind: type, raw: object) -> Path:
    if kind is not Path:
        raise NotImplementedError(kind)
    if not isinstance(raw, str) or not raw.startswith("/") or "\0" in raw:
        raise ValueError("Expected an absolute path")
    return Path(raw)


def _near(word: str, known: Iterable[str]) -> str:
    """A hint: the known word that `word` was probably meant to be, or all that there are."""
    from difflib import get_close_matches

    words = [str(each) for each in known]
    near = get_close_matches(word.lower(), words, n=1)
    if near:
        return f"did you mean {near[0]}?"
    return f"one of {', '.join(words)}" if words else ""


def _check(config: Config, source: Path) -> None:
    """What a type cannot say: names of platforms, targets and runtimes. Raises ConfigError."""
    emulation = config.emulation
    for key in ("platforms", "exclude", "ready"):
        for name in getattr(emulation, key) or ():
            if not (name == "*" and key == "platforms"):
                _check_platform(name, f"{source}: emulation.{key}")
    if emulation.target:
        from maid.emulation.targets import TARGETS

        for name, settings in emulation.target.items():
            where = f"{source}: emulation.target.{name}"
            if name not in TARGETS:
                raise ConfigError(f"{where}: there is no such target", _near(name, TARGETS))
            # It becomes one argument of QEMU's: what is not in a CPU's name cannot be meant.
            if settings.cpu and not (settings.cpu.isascii() and settings.cpu.isprintable()):
                raise ConfigError(f"{where}.cpu cannot be {settings.cpu!r}")
            if settings.cpu is not None and (" " in settings.cpu or settings.cpu[:1] == "-"):
                raise ConfigError(
                    f"{where}.cpu cannot be {settings.cpu!r}", "write the model alone, without -cpu"
                )
    runtime = config.steps.runtime
    if runtime not in ("auto", "crun", "runc") and not runtime.startswith("/"):
        raise ConfigError(
            f"{source}: steps.runtime cannot be {runtime!r}",
            "auto, crun, runc or an absolute path",
        )


def _check_platform(name: str, where: str) -> None:
    from maid.emulation.targets import TARGETS

    if name in TARGETS:
        return
    try:
        platform = parse(name)
    except PlatformError as error:
        raise ConfigError(f"{where}: {error.message}", error.hint) from None
    known = [host(), *(each for target in TARGETS.values() for each in target.platforms)]
    if not any(_same(platform, each) for each in known):
        names = [*map(str, known), *TARGETS]
        raise ConfigError(f"{where}: {name!r} is no platform that maid knows", _near(name, names))


def _names(name: str, target: str, platform: Platform | None) -> bool:
    """Whether `name` of the configuration means this target or platform.

    A name that is both (arm) means the target, hence all its platforms.
    """
    if name in ("*", target):
        return True
    if platform is None or _is_target(name):
        return False
    return _same(parse(name), platform)


def _same(named: Platform, platform: Platform) -> bool:
    """Whether a platform that the file names is `platform`.

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


def _places(
    config: Config,
    named: Mapping[str, Any],
    scope: Scope,
    socket: Path | None,
    environ: Mapping[str, str],
    uid: int,
) -> dict[str, Struct]:
    """The socket and the directories: `socket` first, then what is `named`, then the scope's."""
    paths = named.get("paths", {})
    if socket is None and "path" in named.get("socket", {}):
        socket = config.socket.path
    if scope is Scope.HOST:
        runtime, state = Paths().runtime, Paths().state
        socket = socket or Socket().path
    else:
        base, state = _private_places(environ, uid)
        socket = socket or base / "io.maid"
        key = hashlib.sha256(os.path.abspath(socket).encode()).hexdigest()[:16]
        runtime = base / key
    return {
        "socket": msgspec.structs.replace(config.socket, path=Path(os.path.abspath(socket))),
        "paths": Paths(
            runtime=config.paths.runtime if "runtime" in paths else runtime,
            state=config.paths.state if "state" in paths else state,
        ),
    }


def _private_places(environ: Mapping[str, str], uid: int) -> tuple[Path, Path]:
    """Where private daemons of `uid` keep their sockets and runtime directories, and their state.

    The variables are those of the XDG Base Directory Specification, by which relative paths are
    ignored, and something else must be found where there is no runtime directory.
    """
    if uid == 0:
        return Paths().runtime / "private", Paths().state

    def directory(variable: str) -> Path | None:
        value = environ.get(variable, "")
        return Path(value) if value.startswith("/") else None

    state = directory("XDG_STATE_HOME")
    if state is None:
        home = directory("HOME")
        if home is None:
            raise ConfigError(
                "there is no place for maid's state: neither XDG_STATE_HOME nor HOME is set",
                "set one of them, or [paths] in a file named with --config",
            )
        state = home / ".local/state"
    runtime = directory("XDG_RUNTIME_DIR")
    return (runtime / "maid" if runtime else state / "maid/run"), state / "maid"


def _document(kind: type[Any], default: Any, where: str) -> Iterator[str]:
    from textwrap import fill

    def prose(text: str) -> str:
        return fill(text, 96, initial_indent="# ", subsequent_indent="# ")

    tables = []
    for field in msgspec.structs.fields(kind):
        plain, *rest = (
            get_args(field.type) if get_origin(field.type) is Annotated else (field.type,)
        )
        if get_origin(plain) is dict:
            tables.append(
                (f"{where}.{field.name}.aarch64", get_args(plain)[1], rest[0].description)
            )
        elif isinstance(plain, type) and issubclass(plain, Struct):
            tables.append((f"{where}.{field.name}".lstrip("."), plain, ""))
        else:
            value = getattr(default, field.name)
            yield ""
            yield prose(rest[0].description)
            if value is None:
                yield f"# {field.name} = {_toml(rest[0].examples[0])}"
            else:
                yield f"#{field.name} = {_toml(value)}"
    for name, table, description in tables:
        yield ""
        if description:
            yield prose(description)
        yield f"[{name}]"
        yield from _document(table, table(), name)


def _toml(value: object) -> str:
    match value:
        case bool():
            return str(value).lower()
        case tuple() | list():
            return f"[{', '.join(_toml(each) for each in value)}]"
        case str() | Path():
            return f'"{value}"'
    return str(value)
