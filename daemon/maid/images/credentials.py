"""A user's name and password for one registry, as --creds on a command line gives them.

They go into a file that only this process's user may read, with the entry of that one registry
beside those the user has anyway: so no other registry is told them, and no list of processes shows
them (containers-auth.json(5)).
"""

from __future__ import annotations

import atexit
import base64
import contextlib
import getpass
import json
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from maid.errors import MaidError, UsageError


def authfile_with(
    creds: str, hosts: Iterable[str], authfile: str, environment: Mapping[str, str]
) -> str:
    """The path of a file for --authfile with `creds` (USER[:PASSWORD]) for the one registry of
    `hosts`, and what `authfile`, or else the user's own files, have; it is gone with this process.

    Raises UsageError where there is not just one registry, or no password.
    """
    named = sorted(set(hosts))
    if len(named) != 1:
        what = f"{', '.join(named)} are {len(named)}" if named else "none is named here"
        raise UsageError(
            f"--creds is for one registry, and {what}", "skopeo login REGISTRY, once for each"
        )
    user, colon, password = creds.partition(":")
    if not user:
        raise UsageError("--creds takes USER:PASSWORD, or USER to be asked for it")
    if not colon:
        if not sys.stdin.isatty():
            raise UsageError("--creds has no password, and there is no terminal to ask at")
        password = getpass.getpass(f"Password of {user} at {named[0]}: ")
    document = known(authfile, environment)
    token = base64.b64encode(f"{user}:{password}".encode()).decode()
    document["auths"][named[0]] = {"auth": token}
    document["credHelpers"].pop(named[0], None)
    return _written(document, environment)


def known(authfile: str, environment: Mapping[str, str]) -> dict[str, dict[str, object]]:
    """The entries that the user has: of `authfile` alone, or of all files that are looked into, an
    earlier one's going before a later one's. Raises UsageError where `authfile` cannot be read."""
    found: dict[str, dict[str, object]] = {"auths": {}, "credHelpers": {}}
    for path in [Path(authfile)] if authfile else _places(environment):
        try:
            document = json.loads(path.read_bytes())
            entries = {key: dict(document.get(key) or {}) for key in found}
        except (OSError, ValueError, TypeError, AttributeError) as error:
            if authfile:
                raise UsageError(f"--authfile {authfile} cannot be read: {error}") from error
            continue
        for key, values in entries.items():
            found[key] = values | found[key]
    return found


def _places(environment: Mapping[str, str]) -> Iterator[Path]:
    """Where passwords are looked for, the first before the others."""
    if environment.get("REGISTRY_AUTH_FILE"):
        yield Path(environment["REGISTRY_AUTH_FILE"])
        return
    runtime = environment.get("XDG_RUNTIME_DIR")
    if runtime:
        yield Path(runtime, "containers/auth.json")
    else:
        yield Path(f"/run/containers/{os.getuid()}/auth.json")
    home = Path(environment.get("HOME") or "/")
    yield home / ".config/containers/auth.json"
    yield home / ".docker/config.json"


def _written(document: object, environment: Mapping[str, str]) -> str:
    runtime = environment.get("XDG_RUNTIME_DIR", "")
    directory = runtime if os.access(runtime, os.W_OK) else None
    try:
        file, path = tempfile.mkstemp(prefix="maid-auth-", suffix=".json", dir=directory)  # 0600
        atexit.register(_forget, path)
        with os.fdopen(file, "w") as opened:
            json.dump(document, opened)
    except OSError as error:
        raise MaidError(f"the file for --creds cannot be written: {error.strerror}") from error
    return path


def _forget(path: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(path)
