"""`maid index` run by tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from places import Place


def run(place: Place, *arguments: str | Path, **options: Any) -> Any:
    """The JSON document of a command that has to work."""
    done = place.maid("index", *arguments, "--json", **options)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def refused(place: Place, *arguments: str | Path, status: int = 1) -> str:
    done = place.maid("index", *arguments)
    assert done.returncode == status, (done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    return done.stderr


def lines(place: Place, *arguments: str | Path, **options: Any) -> list[str]:
    done = place.maid("index", *arguments, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()
