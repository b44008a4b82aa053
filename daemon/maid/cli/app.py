"""The command line. Each command asks the daemon and shows the answer; nothing is decided here.

Modules that only one command needs are imported in it: `maid status` must not wait for the daemon's
imports, and every import that is left out is seen by whoever waits for a prompt.
"""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

from maid import __version__
from maid.cli import common, render
from maid.cli.common import (
    Command,
    Later,
    LaterCommand,
    config_path,
    connect,
    exit_with,
    show_json,
    socket_path,
)
from maid.client import DEFAULT_SOCKET
from maid.errors import MaidError

app = typer.Typer(
    name="maid",
    help="Run every platform's binaries on this machine, prove it, keep it so.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.add_typer(
    typer.Typer(
        name="accel",
        cls=Later,
        help="Native tools for emulated steps: fill the store, look at it, prove what it does.",
        short_help="Native tools in emulated steps.",
        no_args_is_help=True,
        rich_markup_mode=None,
    )
)
app.add_typer(
    typer.Typer(
        name="index",
        cls=Later,
        help="Image indexes, in registries and OCI layouts: look at them, make and change them.",
        short_help="Image indexes: inspect, create, change.",
        no_args_is_help=True,
        rich_markup_mode=None,
    )
)
for _name, _help in (
    ("pull", "Fetch the image that fits a platform."),
    ("build", "Build one image for several platforms."),
):
    app.command(_name, cls=LaterCommand, short_help=_help)(lambda: None)

JsonOption = Annotated[bool, typer.Option("--json", help="One JSON document (docs/json.md).")]


def _version(wanted: bool) -> None:
    if wanted:
        print(f"maid {__version__}")
        raise typer.Exit


@app.callback()
def options(
    socket: Annotated[
        str,
        typer.Option(
            envvar="MAID_SOCKET",
            help=f"The daemon's socket, {DEFAULT_SOCKET} if nothing is said.",
            metavar="PATH",
            show_default=False,
        ),
    ] = "",
    config: Annotated[
        str,
        typer.Option(
            envvar="MAID_CONFIG",
            help="The configuration file, /etc/maid/maid.toml if nothing is said.",
            metavar="FILE",
            show_default=False,
        ),
    ] = "",
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Options for every command."""
    common.Named.socket = socket
    common.Named.config = config


@app.command(cls=Command, short_help="Show how every platform stands.")
def status(
    as_json: JsonOption = False,
    everything: Annotated[
        bool, typer.Option("--all", "-a", help="Also CPUs without an OCI platform, and all notes.")
    ] = False,
) -> None:
    """Show how every platform stands; exit status 0 when the daemon is healthy."""
    with connect() as client:
        document = client.call("io.maid.Manager.Status")["status"]
    if as_json:
        show_json(document)
    else:
        print(render.status(document, sys.stdout, everything))
    exit_with(0 if document["ready"] else 1)


def _platforms(incomplete: str) -> list[str]:
    from maid.platforms import COMMON

    return [str(platform) for platform in COMMON if str(platform).startswith(incomplete)]


@app.command(cls=Command, short_help="Execute a program of each platform.")
def ensure(
    platforms: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Argument(metavar="PLATFORM...", autocompletion=_platforms, show_default=False),
    ] = None,
    configured: Annotated[
        bool, typer.Option("--configured", help="Also those that maid-ready.target waits for.")
    ] = False,
    timeout: Annotated[
        float,
        typer.Option(min=0.0, help="Try again for S seconds.", metavar="S", show_default=False),
    ] = 0.0,
    as_json: JsonOption = False,
) -> None:
    """Execute a program of each platform; exit status 0 only when every one really ran."""
    if not platforms and not configured:
        raise typer.BadParameter("name a platform, for example linux/arm64")
    with connect() as client:
        reply = client.call(
            "io.maid.Emulation.Ensure",
            {"platforms": platforms or [], "configured": configured, "timeout": timeout},
        )
    results = reply["results"]
    if as_json:
        show_json({"results": results})
    else:
        failed = [result for result in results if not result["ok"]]
        worked = [result for result in results if result["ok"]]
        if worked:
            print(render.ensured(worked, sys.stdout))
        if failed:
            print(render.ensured(failed, sys.stderr), file=sys.stderr)
    exit_with(max((result["exit_status"] for result in results), default=0))


@app.command(cls=Command, short_help="Run the probes now.")
def check(
    platforms: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Argument(metavar="PLATFORM...", autocompletion=_platforms, show_default=False),
    ] = None,
    deep: Annotated[
        bool, typer.Option("--deep", help="Real programs: threads, setuid, dynamic linking, …")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Run the probes now, of these platforms or of all that are served."""
    from maid.cli.check import show

    exit_with(show(connect(), platforms or [], deep, as_json))


@app.command(cls=Command, short_help="Show what happened.")
def events(
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Wait for more.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON document; with --follow, one a line.")
    ] = False,
) -> None:
    """Show what happened since the daemon started."""
    parameters = {"follow": follow, "since": 0}
    kept = []
    with connect() as client:
        for reply in client.stream("io.maid.Manager.Events", parameters):
            entry = reply.get("event")
            if entry is None:
                break
            if as_json and not follow:
                kept.append(entry)
            else:
                print(json.dumps(entry) if as_json else render.event(entry, sys.stdout), flush=True)
    if as_json and not follow:
        show_json({"events": kept})


@app.command(cls=Command, short_help="Print metrics for Prometheus.")
def metrics() -> None:
    """Print the daemon's metrics in Prometheus' text format."""
    with connect() as client:
        print(client.call("io.maid.Manager.Metrics")["text"], end="")


@app.command(cls=Command, short_help="Say what is wrong with the machine, and what to do.")
def doctor(as_json: JsonOption = False) -> None:
    """Look at the machine and say, for everything that is wrong, what to do."""
    from maid.cli.doctor import show

    exit_with(show(socket_path(), config_path(), as_json))


@app.command(cls=Command, short_help="Read the configuration again.")
def reload() -> None:
    """Have the daemon read its configuration again and look for interpreters again."""
    with connect() as client:
        client.call("io.maid.Manager.Reload")


@app.command(cls=Command, short_help="Remove what maid registered.")
def release(as_json: JsonOption = False) -> None:
    """Remove every entry that maid registered, and keep none until the next start or reload."""
    with connect() as client:
        removed = client.call("io.maid.Manager.Release")["removed"]
    if as_json:
        show_json({"removed": removed})
    else:
        print(
            f"{len(removed)} entries were removed" + (f": {', '.join(removed)}" if removed else "")
        )


@app.command(cls=Command, short_help="Run the daemon in the foreground.")
def daemon(
    scope: Annotated[
        str,
        typer.Option(
            help="host: the machine's own table; private: one that nobody else sees.",
            metavar="host|private",
            autocompletion=lambda: ["host", "private"],
        ),
    ] = "host",
) -> None:
    """Run the daemon in the foreground. systemd does: systemctl enable --now maid."""
    from maid.config import Scope
    from maid.service.daemon import main as serve

    try:
        wanted = Scope(scope)
    except ValueError:
        raise typer.BadParameter(f"{scope!r} is neither host nor private") from None
    socket = Path(os.path.abspath(common.Named.socket)) if common.Named.socket else None
    exit_with(serve(wanted, socket, config_path()))


@app.command(
    cls=Command,
    short_help="Run one build step.",
    context_settings={"allow_interspersed_args": False},
)
def run(
    command: Annotated[
        list[str], typer.Argument(metavar="-- CMD [ARG]...", help="The command, in the rootfs.")
    ],
    rootfs: Annotated[Path, typer.Option(help="The root file system, a directory.", metavar="DIR")],
    platform: Annotated[
        str,
        typer.Option(
            help="The platform; that of the rootfs if it is left out.",
            metavar="P",
            autocompletion=_platforms,
        ),
    ] = "",
    env: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--env", "-e", help="K=V, or K to pass on one's own.", metavar="K[=V]"),
    ] = None,
    cwd: Annotated[str, typer.Option(help="The working directory inside.", metavar="DIR")] = "/",
    user: Annotated[
        str, typer.Option(help="User and group inside, ids or names.", metavar="UID[:GID]")
    ] = "0",
    bind: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="Mount a file or directory of the host.", metavar="SRC:DST[:ro]"),
    ] = None,
    tmpfs: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="Mount an empty tmpfs, for example /tmp.", metavar="DIR"),
    ] = None,
    network: Annotated[
        str,
        typer.Option(
            help="The configuration's if it is left out.",
            metavar="none|host",
            autocompletion=lambda: ["none", "host"],
        ),
    ] = "",
    timeout: Annotated[
        float,
        typer.Option(
            min=0.0, help="End the step after S seconds.", metavar="S", show_default=False
        ),
    ] = 0.0,
    memory: Annotated[
        str, typer.Option(help="Memory limit, for example 512m.", metavar="SIZE")
    ] = "",
    cpus: Annotated[
        float,
        typer.Option(min=0.0, help="CPU limit, for example 1.5.", metavar="N", show_default=False),
    ] = 0.0,
    cpu: Annotated[
        str, typer.Option(help="CPU model to emulate for this step.", metavar="MODEL")
    ] = "",
    accelerate: Annotated[
        Optional[bool],  # noqa: UP045
        typer.Option(
            "--accelerate/--no-accelerate",
            help="Native tools where they are right; the configuration says what holds otherwise.",
            show_default=False,
        ),
    ] = None,
    require_acceleration: Annotated[
        bool,
        typer.Option(
            "--require-acceleration", help="Run nothing where no native tools fit the rootfs."
        ),
    ] = False,
    readonly: Annotated[
        bool, typer.Option("--readonly", help="Write nothing to the rootfs.")
    ] = False,
    overlay: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Leave the rootfs alone; changes go to DIR/upper.", metavar="DIR"),
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json",
            help="The result with its usage on standard output; the step's goes to stderr.",
        ),
    ] = False,
) -> None:
    """Run one build step. Its exit status is the command's, 128+N for signal N; 125 when maid
    failed, 126 when the command cannot be executed, 127 when it is not there."""
    from maid.cli.run import Request, run_step

    request = Request(
        command=command,
        rootfs=rootfs,
        platform=platform,
        env=env or [],
        cwd=cwd,
        user=user,
        bind=bind or [],
        tmpfs=tmpfs or [],
        network=network,
        timeout=timeout,
        memory=memory,
        cpus=cpus,
        cpu=cpu,
        accelerate=accelerate,
        require_acceleration=require_acceleration,
        readonly=readonly,
        overlay=overlay,
    )
    exit_with(run_step(socket_path(), request, as_json))


def main() -> None:
    """The entry point of the command `maid`."""
    for stream in (sys.stdout, sys.stderr):
        # What a terminal's encoding does not have, or a file name that is no text, is no reason
        # to fail.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except MaidError as failure:
        render.error(failure)
        sys.exit(failure.exit_status)
