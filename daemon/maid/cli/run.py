"""`maid run`: opens what is handed over, follows the step, and becomes its exit status."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from maid.cli import render
from maid.cli.follow import Follower, close
from maid.errors import MaidError, StepRefused

FAILED = 125
"""Exit status when maid itself failed, as docker has it: the command's own statuses are below."""

_UNITS = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


@dataclass(frozen=True)
class Request:
    """What the command line asked for, as it was typed. `accelerate` is None where it says
    nothing."""

    command: list[str]
    rootfs: Path
    platform: str = ""
    env: list[str] = field(default_factory=list)
    cwd: str = "/"
    user: str = "0"
    bind: list[str] = field(default_factory=list)
    tmpfs: list[str] = field(default_factory=list)
    network: str = ""
    timeout: float = 0.0
    memory: str = ""
    cpus: float = 0.0
    cpu: str = ""
    accelerate: bool | None = None
    require_acceleration: bool = False
    readonly: bool = False
    overlay: Path | None = None
    profile: Path | None = None


def run_step(socket: str, request: Request, as_json: bool) -> int:
    """Run the step and return the exit status of `maid run`; errors are shown here."""
    try:
        # A step's output goes where ours would; a document on standard output must stand there
        # alone.
        streams = standard_stream(0), standard_stream(2 if as_json else 1), standard_stream(2)
        result = submit(socket, request, streams)
    except MaidError as failure:
        render.error(failure)
        if as_json:
            document = {"outcome": "failed", "status": FAILED, "error": failure.message}
            print(json.dumps(document))
        return FAILED
    if as_json:
        print(json.dumps(result))
    elif result["error"]:
        render.error(MaidError(result["error"]))
    return int(result["status"])


def submit(socket: str, request: Request, streams: tuple[int, int, int]) -> dict[str, Any]:
    """Run the step to its end: its result, as `maid run --json` prints it.

    `streams` are descriptors of its standard streams, which stay open here. Raises MaidError.
    """
    descriptors: list[int] = []
    try:
        parameters = _parameters(request, streams, descriptors)
        return Follower(socket, parameters, descriptors).result()
    finally:
        close(descriptors)


def _parameters(
    request: Request, streams: tuple[int, int, int], descriptors: list[int]
) -> dict[str, Any]:
    """The parameters of Steps.Run; what they refer to is opened and added to `descriptors`."""

    def passed(descriptor: int) -> int:
        descriptors.append(descriptor)
        return len(descriptors) - 1

    stdin, stdout, stderr = (passed(os.dup(stream)) for stream in streams)
    root = _open_directory(request.rootfs, "root file system")
    parameters: dict[str, Any] = {
        "stdin": stdin,
        "stdout": stdout,
        "stderr": stderr,
        "rootfs": passed(root),
        "command": request.command,
        "environment": _environment(request.env),
        "cwd": request.cwd,
        "timeout": request.timeout,
        "memory": parse_size(request.memory) if request.memory else 0,
        "cpus": request.cpus,
        "readonly": request.readonly,
        "tmpfs": request.tmpfs,
        "accelerate": request.accelerate,
        "require_acceleration": request.require_acceleration,
    }
    parameters["user"], parameters["group"] = _user(request.user, root)
    if request.platform:
        parameters["platform"] = request.platform
    if request.network:
        parameters["network"] = request.network
    if request.cpu:
        parameters["cpu"] = request.cpu
    if request.overlay is not None:
        parameters["changes"] = passed(_overlay(request.overlay))
    binds = []
    for text in request.bind:
        source, destination, readonly = _split_bind(text)
        descriptor = passed(_open(source, "the bind source"))
        binds.append({"source": descriptor, "destination": destination, "readonly": readonly})
    parameters["binds"] = binds
    if request.profile is not None:
        parameters["profile"] = passed(_open(request.profile, "the file for the profile"))
    return parameters


def standard_stream(number: int) -> int:
    """The standard stream `number`, or /dev/null where it is closed."""
    try:
        os.fstat(number)
    except OSError:
        return os.open(os.devnull, os.O_RDWR)
    return number


def _open(path: Path, what: str) -> int:
    try:
        return os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError as error:
        raise StepRefused(f"{what} {path} cannot be opened: {error.strerror}") from error


def _open_directory(path: Path, what: str) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except NotADirectoryError as error:
        raise StepRefused(
            f"the {what} {path} is no directory",
            "unpack it first, for example with maid pull --unpack",
        ) from error
    except OSError as error:
        raise StepRefused(f"the {what} {path} cannot be opened: {error.strerror}") from error


def _overlay(directory: Path) -> int:
    """The overlay directory with upper/ and work/ in it, made with the caller's own rights."""
    try:
        for name in ("upper", "work"):
            os.makedirs(directory / name, exist_ok=True)
        if not os.access(directory / "upper", os.W_OK):
            raise PermissionError(13, "Permission denied")
    except OSError as error:
        raise StepRefused(
            f"the overlay directory {directory} cannot be used: {error.strerror}",
            "it must be a directory that can be written to, or not be there yet",
        ) from error
    return _open_directory(directory, "overlay directory")


def _environment(given: list[str]) -> dict[str, str]:
    found = {}
    for text in given:
        name, assigned, value = text.partition("=")
        if not name:
            raise StepRefused(f"{text!r} is no environment variable", "--env NAME=VALUE")
        if assigned:
            found[name] = value
        elif name in os.environ:
            found[name] = os.environ[name]
    return found


def _split_bind(text: str) -> tuple[Path, str, bool]:
    parts = text.split(":")
    readonly = len(parts) == 3 and parts[2] == "ro"
    if (
        len(parts) not in (2, 3)
        or (len(parts) == 3 and parts[2] not in ("ro", "rw"))
        or not parts[0]
    ):
        raise StepRefused(f"{text!r} is no bind mount", "--bind SRC:DST or --bind SRC:DST:ro")
    if not parts[1].startswith("/"):
        raise StepRefused(f"the bind destination {parts[1]!r} is not an absolute path")
    return Path(parts[0]), parts[1], readonly


def _user(text: str, root: int) -> tuple[int, int]:
    """Ids of "1000", "1000:100", "nobody", "nobody:www-data": names are those of the root file
    system `root` (a descriptor), as is the group of a user who is named without one."""
    user, _, group = text.partition(":")
    fields = _line(root, "passwd", user)
    if fields is None and not _is_number(user):
        raise StepRefused(f"the root file system has no user {user}", "give a number: --user 1000")
    uid = int(user) if _is_number(user) else int(fields[2]) if fields else 0
    if not group:
        return uid, int(fields[3]) if fields else 0
    if _is_number(group):
        return uid, int(group)
    fields = _line(root, "group", group)
    if fields is None:
        raise StepRefused(f"the root file system has no group {group}", "give a number")
    return uid, int(fields[2])


def _line(root: int, name: str, wanted: str) -> list[str] | None:
    """The line of /etc/`name` for a name or a number; one that is not well-formed is passed over.

    Looked up within `root`: a link in there leads nowhere else.
    """
    from maid.kernel import open_in_root

    enough = {"passwd": 4, "group": 3}[name]
    try:
        file = open_in_root(root, f"/etc/{name}", os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return None
    with os.fdopen(file, errors="replace") as lines:
        for line in lines:
            fields = line.rstrip("\n").split(":")
            whole = len(fields) >= enough and all(_is_number(f) for f in fields[2:enough])
            if whole and wanted in (fields[0], fields[2]):
                return fields
    return None


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def parse_size(text: str) -> int:
    """Bytes of "512m", "1.5G", "4096": powers of 1024, as docker has them. Raises StepRefused."""
    number = text.strip().lower().removesuffix("b").removesuffix("i")
    unit = number[-1:] if number[-1:] in _UNITS else ""
    try:
        return int(float(number.removesuffix(unit)) * _UNITS[unit])
    except (ValueError, OverflowError):  # OverflowError: "inf"
        raise StepRefused(f"{text!r} is no size", "for example 512m or 2g") from None
