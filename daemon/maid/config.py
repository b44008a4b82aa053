"""The configuration: /etc/maid/maid.toml, read and validated.

Every key has a default, so that the file may be missing or empty. What is there must be right: an
unknown key, a wrong type or a platform nobody knows is a ConfigError that names the file, the key
and what is expected, because a typing error that is silently ignored shows only much later, as a
platform that does not work.

The keys are defined and documented in maid.settings and can be imported from here. `example` writes
them all out; docs/maid.toml.example is its output.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import msgspec
from msgspec import Struct

from maid.config_lines import at
from maid.errors import ConfigError
from maid.platforms import PlatformError, host, parse
from maid.settings import (
    Accelerate,
    Acceleration,
    Config,
    Emulation,
    Fill,
    Level,
    Log,
    Network,
    Paths,
    Prefer,
    Scope,
    Socket,
    Steps,
    TargetSettings,
    same_platform,
)

__all__ = [
    "DEFAULT",
    "Accelerate",
    "Acceleration",
    "Config",
    "Emulation",
    "Fill",
    "Level",
    "Log",
    "Network",
    "Paths",
    "Prefer",
    "Scope",
    "Socket",
    "Steps",
    "TargetSettings",
    "example",
    "load",
]

DEFAULT = Path("/etc/maid/maid.toml")
"""Where the configuration is when nobody says otherwise."""


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
    /run/maid/private/io.maid, /run/maid/private/<hash of the socket path> and
    /var/lib/maid/private, anybody else the same below $XDG_RUNTIME_DIR/maid
    and $XDG_STATE_HOME/maid.

    Raises ConfigError.
    """
    source = path or DEFAULT
    try:
        raw = _read(source, must_exist=path is not None)
        config: Config = _struct(raw, Config, source, "")
        _check(config, source)
    except ConfigError as error:
        raise ConfigError(_one_line(error.message), _one_line(error.hint)) from error
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
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{path}: this is not TOML: line {line} is not UTF-8", "save the file as UTF-8"
        ) from error
    except (ValueError, RecursionError) as error:
        # tomllib lets through what int() says of endless digits, and that there was no end of "[".
        where = "" if isinstance(error, tomllib.TOMLDecodeError) else _last_line(error)
        raise ConfigError(
            f"{path}: this is not TOML: {error}{where}",
            "strings are quoted, and lists are in brackets",
        ) from error


def _last_line(error: BaseException) -> str:
    """Where tomllib had arrived: what its innermost function reads from, and at which place."""
    found = ""
    trace = error.__traceback__
    while trace is not None:
        values = trace.tb_frame.f_locals
        text, at = values.get("src"), values.get("pos")
        if isinstance(text, str) and isinstance(at, int):
            found = f" (line {text.count(chr(10), 0, at) + 1})"
        trace = trace.tb_next
    return found


def _one_line(text: str) -> str:
    """The text without what does not print: keys and values may have anything in them."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in text
    )


def _struct(raw: object, kind: type[Any], source: Path, where: str) -> Any:
    """Make a `kind` of a table, key by key, so that an error can name the key."""
    if not isinstance(raw, dict):
        raise ConfigError(f"{at(source, where)}: {where} must be a table, [{where}]")
    fields = {field.encode_name: field for field in msgspec.structs.fields(kind)}
    values = {}
    for key, value in raw.items():
        full = f"{where}.{key}" if where else key
        if key not in fields:
            raise ConfigError(f"{at(source, full)}: there is no key {full}", _near(key, fields))
        values[key] = _value(value, fields[key].type, source, full)
    return kind(**values)


def _value(raw: object, kind: Any, source: Path, where: str) -> Any:
    plain = get_args(kind)[0] if get_origin(kind) is Annotated else kind
    if isinstance(plain, type) and issubclass(plain, Struct):
        return _struct(raw, plain, source, where)
    if get_origin(plain) is dict:
        if not isinstance(raw, dict):
            raise ConfigError(f"{at(source, where)}: {where} must be a table, [{where}.NAME]")
        each = get_args(plain)[1]
        return {key: _value(value, each, source, f"{where}.{key}") for key, value in raw.items()}
    try:
        value = msgspec.convert(raw, kind, dec_hook=_path)
        parts = raw if isinstance(raw, list) else [raw]
        if any(isinstance(part, str) and "\0" in part for part in parts):
            raise msgspec.ValidationError("Expected no zero byte")
        return value
    except msgspec.ValidationError as error:
        shown = raw if isinstance(raw, (dict, list)) else repr(raw)
        choice = plain if isinstance(plain, type) and issubclass(plain, StrEnum) else ()
        raise ConfigError(
            f"{at(source, where)}: {where} cannot be {shown}: {_plain(str(error))}",
            _near(str(raw), choice),
        ) from None


_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "a text",
    "array": "a list",
    "object": "a table",
}
"""What msgspec calls the kinds of values, in words."""


def _plain(message: str) -> str:
    """What msgspec says of a value of the wrong kind, in words; anything else as it is."""
    said = re.fullmatch(r"Expected `([^`]+)`, got `([^`]+)`(?: - at `\$\[(\d+)\]`)?", message)
    if said is None:
        return message
    wanted = " or ".join(_KINDS.get(k, k) for k in said[1].split(" | ") if k != "null")
    where = f" (item {int(said[3]) + 1})" if said[3] else ""
    return f"it must be {wanted}, not {_KINDS.get(said[2], said[2])}{where}"


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
                _check_platform(name, source, f"emulation.{key}")
    if emulation.target:
        from maid.emulation.targets import TARGETS

        for name, settings in emulation.target.items():
            where = f"emulation.target.{name}"
            where = f"{at(source, where)}: {where}"
            if name not in TARGETS:
                raise ConfigError(f"{where}: there is no such target", _near(name, TARGETS))
            # It becomes one argument of QEMU's: what is not in a CPU's name cannot be meant.
            if settings.cpu and not (settings.cpu.isascii() and settings.cpu.isprintable()):
                raise ConfigError(f"{where}.cpu cannot be {settings.cpu!r}")
            if settings.cpu is not None and (" " in settings.cpu or settings.cpu[:1] == "-"):
                raise ConfigError(
                    f"{where}.cpu cannot be {settings.cpu!r}", "write the model alone, without -cpu"
                )
    for mirror in config.acceleration.mirrors:
        if not re.fullmatch(r"(https?|file)://[^\s\"\\\[\]]+", mirror):
            raise ConfigError(
                f"{at(source, 'acceleration.mirrors')}: acceleration.mirrors cannot be {mirror!r}",
                "http://HOST/debian",
            )
    runtime = config.steps.runtime
    if runtime not in ("auto", "crun", "runc") and not runtime.startswith("/"):
        raise ConfigError(
            f"{at(source, 'steps.runtime')}: steps.runtime cannot be {runtime!r}",
            "auto, crun, runc or an absolute path",
        )


def _check_platform(name: str, source: Path, where: str) -> None:
    from maid.emulation.targets import TARGETS

    if name in TARGETS:
        return
    try:
        platform = parse(name)
    except PlatformError as error:
        raise ConfigError(f"{at(source, where)}: {where}: {error.message}", error.hint) from None
    known = [host(), *(each for target in TARGETS.values() for each in target.platforms)]
    if not any(same_platform(platform, each) for each in known):
        names = [*map(str, known), *TARGETS]
        raise ConfigError(
            f"{at(source, where)}: {where}: {name!r} is no platform that maid knows",
            _near(name, names),
        )


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
        return Paths().runtime / "private", Paths().state / "private"

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
