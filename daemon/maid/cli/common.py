"""What every command has: the options that name the daemon, the connection, JSON and the end."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption

from maid.client import DEFAULT_SOCKET, Client


class Named:
    """The options that may stand before the command or after it; "" is the default."""

    socket = ""
    config = ""


def _remember(name: str) -> Callable[[Any, Any, str | None], None]:
    def callback(_context: Any, _parameter: Any, value: str | None) -> None:
        if value:
            setattr(Named, name, value)

    return callback


class Command(TyperCommand):
    """A command that takes --socket and --config too: people type them where they come to mind."""

    def __init__(self, name: str | None, *, params: list[Any] | None = None, **more: Any) -> None:
        named = {
            "socket": ("PATH", "The daemon's socket."),
            "config": ("FILE", "The configuration file."),
        }
        common = [
            TyperOption(
                param_decls=[f"--{option}"],
                metavar=metavar,
                help=text,
                callback=_remember(option),
                expose_value=False,
            )
            for option, (metavar, text) in named.items()
        ]
        super().__init__(name, params=[*(params or []), *common], **more)


class Later(TyperGroup):
    """A group of commands that are made when one of them is wanted: making them takes longer than
    all that `maid status` has to do here. The commands of group NAME are maid.cli.NAME.NAME."""

    def _made(self) -> TyperGroup:
        assert self.name is not None
        module = importlib.import_module(f"maid.cli.{self.name}")
        made = typer.main.get_command(getattr(module, self.name))
        assert isinstance(made, TyperGroup)
        return made

    def list_commands(self, ctx: Any) -> list[str]:
        """The names of the commands."""
        return self._made().list_commands(ctx)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of that name."""
        return self._made().get_command(ctx, cmd_name)


class LaterCommand(TyperCommand):
    """A command of which `maid --help` knows a line, and which is made when it is wanted: the
    function maid.cli.NAME.NAME, with its options."""

    def made(self) -> TyperCommand:
        """The real command, with its options."""
        assert self.name is not None
        module = importlib.import_module(f"maid.cli.{self.name}")
        made = typer.Typer(add_completion=False, rich_markup_mode=None)
        made.command(self.name, cls=Command)(getattr(module, self.name))
        command = typer.main.get_command(made)
        assert isinstance(command, TyperCommand)
        return command

    def make_context(self, info_name: str | None, args: list[str], *rest: Any, **more: Any) -> Any:
        """What click asks a command for first, also to complete a line: the real one answers."""
        return self.made().make_context(info_name, args, *rest, **more)


def connect() -> Client:
    """A connection to the daemon that the options name."""
    return Client(socket_path())


def socket_path() -> str:
    """The socket that the options name, or the service's."""
    return Named.socket or DEFAULT_SOCKET


def config_path() -> Path | None:
    """The configuration file that the options name, if they do."""
    return Path(Named.config) if Named.config else None


def show_json(document: Any) -> None:
    """One JSON document on standard output, indented for people on a terminal."""
    print(json.dumps(document, indent=2 if sys.stdout.isatty() else None))


def exit_with(status: int) -> NoReturn:
    """End with this exit status."""
    sys.stdout.flush()
    raise typer.Exit(status)
