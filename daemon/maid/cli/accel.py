"""`maid accel …`: the native store, and proofs of what it does. Each command asks the daemon; what
runs steps is in verify.py and profile.py."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from maid.cli.common import Command, connect, exit_with, socket_path
from maid.errors import UsageError

accel = typer.Typer(name="accel", rich_markup_mode=None)

JsonOption = Annotated[bool, typer.Option("--json", help="One JSON document (docs/json.md).")]
CommandArgument = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Argument(metavar="-- CMD [ARG]...", help="The command, in the rootfs."),
]
PlatformOption = Annotated[
    str, typer.Option(help="The platform; that of the rootfs if it is left out.", metavar="P")
]
EnvOption = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option("--env", "-e", help="K=V, or K to pass on one's own.", metavar="K[=V]"),
]
CwdOption = Annotated[str, typer.Option(help="The working directory inside.", metavar="DIR")]
UserOption = Annotated[
    str, typer.Option(help="User and group inside, ids or names.", metavar="UID[:GID]")
]
BindOption = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option(help="Mount a file or directory of the host, read-only.", metavar="SRC:DST"),
]
TmpfsOption = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option(help="Mount an empty tmpfs, for example /tmp.", metavar="DIR"),
]
NetworkOption = Annotated[
    str, typer.Option(help="The configuration's if it is left out.", metavar="none|host")
]
TimeoutOption = Annotated[
    float,
    typer.Option(min=0.0, help="End each run after S seconds.", metavar="S", show_default=False),
]


@accel.command(cls=Command, short_help="Fetch the native tools of a release.")
def add(
    release: Annotated[
        str, typer.Argument(metavar="[RELEASE]", help="For example debian:trixie.")
    ] = "",
    arch: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            help="For this architecture, arm64 or linux/arm64; may be repeated. Left out: arm64, or"
            " amd64 on an arm64 machine.",
            metavar="ARCH",
        ),
    ] = None,
    rootfs: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="The release and versions of this root file system.", metavar="DIR"),
    ] = None,
    keys: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Trust the archive keys of this root directory.", metavar="DIR"),
    ] = None,
    native_root: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            help="Fetch nothing: take the tools from this root file system, of the same release and"
            " this machine's architecture, and what they stand in for from --rootfs.",
            metavar="DIR",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Fetch the native tools of a release from its archive, ahead of time: packages of this
    machine's architecture that are of the very same versions as the release's own."""
    if bool(release) == (rootfs is not None):
        raise UsageError("a release or a root file system", "debian:trixie, or --rootfs DIR")
    if rootfs is not None and arch:
        raise UsageError("a root file system has an architecture already", "leave --arch out")
    if native_root is not None and rootfs is None:
        raise UsageError(
            "what the native programs stand in for is missing", "--native-root DIR --rootfs DIR"
        )
    from maid.cli import store

    names = [store.architecture(text) for text in arch or []]
    exit_with(store.add(connect(), release, names, rootfs, keys, native_root, as_json))


@accel.command("list", cls=Command, short_help="Show what is in the store.")
def list_store(
    wanted: Annotated[
        str, typer.Argument(metavar="[NAME]", help="Only this tool, package, path or set.")
    ] = "",
    everything: Annotated[
        bool, typer.Option("--all", "-a", help="Also why each tool may stand in.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show the tools of each release, from which package and version, and those that stay emulated
    with the reason. Exit status 1 where there is no store."""
    from maid.cli import store

    exit_with(store.show(connect(), wanted, as_json, everything))


@accel.command(cls=Command, short_help="Remove what is not used.")
def prune(
    size: Annotated[
        str,
        typer.Option(
            help="Remove the least used until this is left, for example 1g.", metavar="SIZE"
        ),
    ] = "",
    unused: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(min=0.0, help="Remove what was not used for so many days.", metavar="DAYS"),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Remove native tools that are not used; steps that run go on, with the emulator."""
    from maid.cli import store

    exit_with(store.prune(connect(), size, unused, as_json))


@accel.command(
    cls=Command,
    short_help="Prove that acceleration changes nothing.",
    context_settings={"allow_interspersed_args": False},
)
def verify(
    command: CommandArgument = None,
    rootfs: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Run CMD in it, twice; without it: check the store.", metavar="DIR"),
    ] = None,
    platform: PlatformOption = "",
    env: EnvOption = None,
    cwd: CwdOption = "/",
    user: UserOption = "0",
    bind: BindOption = None,
    tmpfs: TmpfsOption = None,
    network: NetworkOption = "",
    timeout: TimeoutOption = 0.0,
    ignore: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            help="Leave out these paths; * matches a / too. May be repeated.", metavar="GLOB"
        ),
    ] = None,
    keep: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Keep what each run made in DIR, an empty one.", metavar="DIR"),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Fail also where the step varies by itself.")
    ] = False,
    require: Annotated[
        bool, typer.Option("--require", help="Fail also where nothing ran natively.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Run CMD with and without acceleration, each from the state in which the rootfs is, and
    compare every file that was made or changed: type, content, mode, owner, links, attributes; and
    the command's exit status and output. The rootfs itself stays as it is. Exit status 0: the same;
    1: not; as maid run's when the step cannot be run.

    Without --rootfs: compare every file of the store with the digest it was made with."""
    if rootfs is None:
        if command:
            raise UsageError("a root file system is missing", "--rootfs DIR")
        from maid.cli import store

        exit_with(store.verify(connect(), as_json))
    if not command:
        raise UsageError("a command is missing", "maid accel verify --rootfs DIR -- CMD [ARG…]")
    from maid.cli.run import Request
    from maid.cli.verify import show

    request = Request(
        command=command,
        rootfs=rootfs.absolute(),
        platform=platform,
        env=env or [],
        cwd=cwd,
        user=user,
        bind=_readonly(bind or []),
        tmpfs=tmpfs or [],
        network=network,
        timeout=timeout,
        require_acceleration=require,
    )
    exit_with(
        show(
            socket_path(),
            request,
            ignored=ignore or [],
            keep=keep,
            strict=strict,
            as_json=as_json,
        )
    )


@accel.command(
    cls=Command,
    short_help="Show which programs of a step cost what.",
    context_settings={"allow_interspersed_args": False},
)
def profile(
    command: Annotated[
        list[str], typer.Argument(metavar="-- CMD [ARG]...", help="The command, in the rootfs.")
    ],
    rootfs: Annotated[Path, typer.Option(help="The root file system, a directory.", metavar="DIR")],
    platform: PlatformOption = "",
    env: EnvOption = None,
    cwd: CwdOption = "/",
    user: UserOption = "0",
    bind: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="Mount a file or directory of the host.", metavar="SRC:DST[:ro]"),
    ] = None,
    tmpfs: TmpfsOption = None,
    network: NetworkOption = "",
    timeout: TimeoutOption = 0.0,
    overlay: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Leave the rootfs alone; changes go to DIR/upper.", metavar="DIR"),
    ] = None,
    accelerate: Annotated[
        Optional[bool],  # noqa: UP045
        typer.Option("--accelerate/--no-accelerate", help="As maid run's.", show_default=False),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", "-a", help="Every program.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Run CMD as maid run does and show its programs, those with the most CPU time first: which ran
    natively and which under an emulator, how often each was started, the CPU time and the largest
    process's memory. The step's own output goes to standard error. Exit status: as maid run's."""
    from maid.cli.profile import show
    from maid.cli.run import Request

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
        overlay=overlay,
        accelerate=accelerate,
    )
    exit_with(show(socket_path(), request, everything=everything, as_json=as_json))


def _readonly(binds: list[str]) -> list[str]:
    """The bind mounts, read-only: what one run writes there the next one would find."""
    if any(bind.endswith(":rw") for bind in binds):
        raise UsageError("bind mounts are read-only here: each run starts from the same state")
    return [bind if bind.endswith(":ro") else f"{bind}:ro" for bind in binds]
