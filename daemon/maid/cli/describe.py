"""Writes the reference of the command line and of the configuration from the code:
python -m maid.cli.describe docs.

docs/options.md has every option of every command, as its help says it; docs/configuration.md every
key of maid.toml, as maid.settings documents it. tests/unit/test_docs_reference.py holds both.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import msgspec
import typer
from typer.core import TyperCommand, TyperGroup, TyperOption

from maid.cli.app import app
from maid.cli.common import LaterCommand
from maid.settings import Config

_OPTIONS = """\
# Every option of every command

What `maid COMMAND --help` says, written from the code by `python -m maid.cli.describe docs`.
[cli.md](cli.md) says what the commands are for and their exit statuses. An option with … may be
repeated. Every command also takes `--socket PATH`, `--config FILE` and `--help`; both may stand
before the command, too.
"""

_CONFIGURATION = """\
# The configuration: /etc/maid/maid.toml

Every key with its type, default and meaning, written from the code by
`python -m maid.cli.describe docs`; [maid.toml.example](maid.toml.example) has the same as a file to
start from. maid needs none of them, and the file may be missing. What is there must be right: with
an unknown key, or a value that cannot be, the daemon does not start, and says which key on which
line (exit status 2); `maid reload` says the same, and the old configuration stays.

`systemctl reload maid`, or `maid reload`, reads the file again: everything but `[paths]` holds from
then on, and running steps keep what they were started with. `--config` and `MAID_CONFIG` name
another file. A private daemon (`maid daemon --scope private`) takes its directories and its socket
from a file only when one was named.
"""

_HEAD = "| key | type | default | meaning |\n|---|---|---|---|\n"


def commands() -> Iterator[tuple[str, TyperCommand]]:
    """Every command that does something, in the order of `maid --help`: its words, "accel list",
    and itself."""
    yield from _below(typer.main.get_command(app), "")


def _below(command: Any, words: str) -> Iterator[tuple[str, TyperCommand]]:
    if isinstance(command, LaterCommand):
        command = command.made()
    if not isinstance(command, TyperGroup):
        yield words, command
        return
    with typer.Context(command) as context:
        for name in command.list_commands(context):
            yield from _below(command.get_command(context, name), f"{words} {name}".strip())


def options_of(command: TyperCommand) -> list[TyperOption]:
    """The options of a command, but for those that every command has."""
    return [
        each
        for each in command.params
        if isinstance(each, TyperOption) and each.name not in ("socket", "config", "help")
    ]


def options() -> str:
    """docs/options.md."""
    return _OPTIONS + "".join(_section(words, command) for words, command in commands())


def _section(words: str, command: TyperCommand) -> str:
    rows = []
    for each in command.params:
        if isinstance(each, TyperOption):
            continue
        shown = f"`{each.metavar or (each.name or '').upper()}`"
        rows.append((shown, "", getattr(each, "help", None) or ""))
    for option in options_of(command):
        rows.append((_spelled(option), _default(option), option.help or ""))
    about = " ".join((command.help or "").split("\n\n")[0].split())
    table = "".join(f"| {' | '.join(map(_cell, row))} |\n" for row in rows)
    head = "\n| | default | |\n|---|---|---|\n" if rows else ""
    return f"\n## maid {words}\n\n{about}\n{head}{table}"


def _spelled(option: TyperOption) -> str:
    names = ", ".join(f"`{name}`" for name in [*option.opts, *option.secondary_opts])
    if not option.is_flag and option.metavar:
        names += f" `{option.metavar}`"
    return names + (" …" if option.multiple else "")


def _default(option: TyperOption) -> str:
    variable = f", or `{option.envvar}`" if option.envvar else ""
    if option.required:
        return "required" + variable
    value = option.default
    if option.is_flag and option.secondary_opts and value is not None:
        value = (option.opts if value else option.secondary_opts)[0]
    elif value in (None, False, "") or (option.show_default is False and not value):
        return variable.removeprefix(", or ")
    return f"`{value}`" + variable


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def configuration() -> str:
    """docs/configuration.md."""
    return _CONFIGURATION + "".join(_tables(Config, ""))


def keys(kind: type[Any] = Config, where: str = "") -> Iterator[tuple[str, str]]:
    """Every key: its table, "emulation.target.NAME", and its name."""
    for field in msgspec.structs.fields(kind):
        table = _table_of(field, where)
        if table is None:
            yield where, field.name
        else:
            yield from keys(table[1], table[0])


def _table_of(field: msgspec.structs.FieldInfo, where: str) -> tuple[str, type[Any]] | None:
    """The name and structure of the table that a field is, None for a value."""
    plain, _ = _unannotated(field.type)
    name = f"{where}.{field.name}".lstrip(".")
    if get_origin(plain) is dict:
        return f"{name}.NAME", get_args(plain)[1]
    if isinstance(plain, type) and issubclass(plain, msgspec.Struct):
        return name, plain
    return None


def _tables(kind: type[Any], where: str) -> Iterator[str]:
    default = kind()
    below = []
    rows = ""
    for field in msgspec.structs.fields(kind):
        table = _table_of(field, where)
        plain, meta = _unannotated(field.type)
        if table is not None:
            below.append(table)
            continue
        value = getattr(default, field.name)
        shown = "unset" if value is None else f"`{_toml(value)}`"
        description = meta.description if meta else ""
        rows += (
            f"| `{field.name}` | {_type(plain, meta)} | {shown} | {_cell(description or '')} |\n"
        )
    if rows:
        about = f"{_about(kind)}\n\n" if _about(kind) else ""
        yield f"\n## [{where}]\n\n{about}{_HEAD}{rows}"
    for name, table_kind in below:
        yield from _tables(table_kind, name)


def _about(kind: type[Any]) -> str:
    """The sentence of a structure's docstring that says what its table is for."""
    after = " ".join((kind.__doc__ or "").split()).partition("]")[2].lstrip(":, ")
    return after[:1].upper() + after[1:]


def _unannotated(kind: Any) -> tuple[Any, msgspec.Meta | None]:
    if get_origin(kind) is Annotated:
        plain, *rest = get_args(kind)
        return plain, next((each for each in rest if isinstance(each, msgspec.Meta)), None)
    return kind, None


def _type(plain: Any, meta: msgspec.Meta | None) -> str:
    """What may stand there, in TOML's words."""
    if get_origin(plain) in (Union, UnionType):
        plain = next(each for each in get_args(plain) if each is not type(None))
    if get_origin(plain) is tuple:
        return f"list of {_type(get_args(plain)[0], None)}s"
    bounds = [
        f"{sign} {bound:g}" if isinstance(bound, float) else f"{sign} {bound}"
        for sign, bound in (
            (">", meta and meta.gt),
            ("≥", meta and meta.ge),
            ("≤", meta and meta.le),
        )
        if bound is not None
    ]
    if issubclass(plain, str) and hasattr(plain, "__members__"):
        return ", ".join(f'`"{each}"`' for each in plain)
    names = {bool: "boolean", int: "integer", float: "number", str: "string", Path: "path"}
    return ", ".join([names[plain], *bounds])


def _toml(value: object) -> str:
    match value:
        case bool():
            return str(value).lower()
        case tuple():
            return f"[{', '.join(_toml(each) for each in value)}]"
        case str() | Path():
            return f'"{value}"'
    return str(value)


if __name__ == "__main__":
    docs = Path(sys.argv[1])
    (docs / "options.md").write_text(options())
    (docs / "configuration.md").write_text(configuration())
