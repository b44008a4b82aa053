"""Programs that a build calls on its own side, outside of rooms.

They have no time limit: what they do grows with the images. They end with maid, and when the build
that wants them is over.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping, Sequence

from maid.errors import MaidError
from maid.images.children import bound

_POLL_SECONDS = 0.1


def go_on() -> None:
    """What is called now and then where nothing can end the work."""


def run(
    command: Sequence[str],
    environment: Mapping[str, str],
    waiting: Callable[[], None] = go_on,
) -> subprocess.CompletedProcess[bytes]:
    """The exit status of a program, and what it wrote. `waiting` is called ten times a second; what
    it raises ends the program. Raises MaidError where it cannot be started."""
    try:
        process = subprocess.Popen(
            bound(command),
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # of a terminal's signals, those for maid are maid's
        )
    except OSError as error:
        raise MaidError(
            f"{command[0]} cannot be started: {error.filename}: {error.strerror}"
        ) from error
    try:
        while True:
            try:
                output, errors = process.communicate(timeout=_POLL_SECONDS)
                return subprocess.CompletedProcess(
                    list(command), process.returncode, output, errors
                )
            except subprocess.TimeoutExpired:
                waiting()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
