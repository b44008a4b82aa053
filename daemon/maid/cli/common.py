"""What every command has: the options that name the daemon, the connection, JSON and the end."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import typer
from typer.core import TyperCommand, TyperOption

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
