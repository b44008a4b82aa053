"""A daemon in private scope for tests that need a whole one: start it, stop it, kill it, start it
again.

Each has a directory of its own with the socket, the configuration and the runtime directory.
Nothing of it is left behind, whatever happens: a watcher process cleans up once this one is gone,
also when it was killed.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from maid.client import Client
from maid.errors import DaemonUnreachable

MAID = Path(sys.executable).with_name("maid")
REPOSITORY = Path(__file__).parents[2]
START = 30.0
"""Seconds that a daemon may take to answer on a busy machine."""


def environment() -> dict[str, str]:
    """The environment of what tests start: none of the caller's settings of maid."""
    dropped = ("MAID_", "_MAID", "NOTIFY_", "WATCHDOG_", "LISTEN_", "XDG_")
    return {name: value for name, value in os.environ.items() if not name.startswith(dropped)}


def rootfs(name: str) -> Path:
    """The cached root file system of that name (scripts/rootfs). Never write to it: copy it."""
    done = subprocess.run(
        [REPOSITORY / "scripts/rootfs", name], capture_output=True, text=True, check=True
    )
    return Path(done.stdout.strip())


def until(holds: Callable[[], bool], seconds: float = 5.0) -> bool:
    """Whether `holds` becomes true within so many seconds."""
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True


def as_user(uid: int, groups: Sequence[int], call: Callable[[], Any]) -> Any:
    """What `call` returns when it is called in a process of this user, with these groups."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reader)
            os.setgroups(groups)
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            answer: object = (True, call())
        except BaseException:
            answer = (False, traceback.format_exc())
        with os.fdopen(writer, "wb") as file:
            pickle.dump(answer, file)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        worked, value = pickle.load(file)
    os.waitpid(child, 0)
    assert worked, value
    return value


class Daemon:
    """A daemon's directory and, between `start` and `stop`, its process.

    `config` is added to the configuration file; `prelude` is a command that executes the daemon as
    its last arguments (setpriv, unshare, …); `uid` is the user that this runs it as; `state` is a
    directory for its state, by default the one that all private daemons of root share.
    """

    def __init__(
        self, config: str = "", *, prelude: Sequence[str] = (), state: str = "", uid: int = 0
    ) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="maid-test-"))
        # A step's root, which is the caller outside, must reach the bundle in it.
        self.directory.chmod(0o755)
        os.chown(self.directory, uid, uid)
        self._watcher = subprocess.Popen(
            [sys.executable, __file__, self.directory],
            stdin=subprocess.PIPE,
            # What ends the tests, by a signal to all of their process group, must not end it.
            start_new_session=True,
        )
        self.socket = self.directory / "io.maid"
        self.runtime = self.directory / "run"
        self.log = self.directory / "log"
        self.prelude = prelude
        self.uid = uid
        if "[acceleration]" not in config:  # no test fetches packages that does not mean to
            config += '\n[acceleration]\nfill = "off"\n'
        paths = f'[paths]\nruntime = "{self.runtime}"\n'
        if state:
            paths += f'state = "{state}"\n'
        (self.directory / "maid.toml").write_text(f"{config}\n{paths}")
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Daemon:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def start(self) -> Daemon:
        """Start it and wait until it answers."""
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [
                    *self.prelude,
                    *(MAID, "daemon", "--scope", "private", "--socket", self.socket),
                    *("--config", self.directory / "maid.toml"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment(),
            )
        end = time.monotonic() + START
        while not self.answers():
            assert self.process.poll() is None, self.text()
            assert time.monotonic() < end, self.text()
            time.sleep(0.02)
        return self

    def answers(self) -> bool:
        """Whether it serves a new connection."""
        return bool(self._call("io.maid.Manager.Status"))

    def _call(self, method: str) -> dict[str, Any]:
        """The reply to a call of whoever runs the daemon; nothing when it does not answer."""

        def call() -> dict[str, Any]:
            with contextlib.suppress(DaemonUnreachable), self.client() as client:
                return client.call(method)
            return {}

        reply = as_user(self.uid, [], call) if self.uid else call()
        assert isinstance(reply, dict)
        return reply

    @property
    def pid(self) -> int:
        """The process of the daemon."""
        assert self.process is not None
        return self.process.pid

    def stop(self) -> int:
        """End it as systemd does; its exit status."""
        return self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it as the kernel's memory killer does."""
        self._end(signal.SIGKILL)

    def restart(self) -> Daemon:
        """Stop it and start it again."""
        self.stop()
        return self.start()

    def _end(self, number: int) -> int:
        if self.process is None:
            return 0
        process, self.process = self.process, None
        process.send_signal(number)
        return process.wait(20)

    def client(self) -> Client:
        """A new connection to it."""
        return Client(str(self.socket))

    def maid(self, *arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run the command line against it."""
        options = {"stdin": subprocess.DEVNULL, **options}
        return subprocess.run(
            [MAID, "--socket", self.socket, *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            env=environment(),
            check=False,
            **options,
        )

    def text(self) -> str:
        """What it has logged."""
        return self.log.read_text(errors="replace")

    def descriptors(self) -> int:
        """How many descriptors it has open."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def steps(self) -> list[str]:
        """The names of the directories of its steps."""
        with contextlib.suppress(FileNotFoundError):
            return sorted(os.listdir(self.runtime / "steps"))
        return []

    def remove(self) -> None:
        """End it and everything of it."""
        if self.process is not None:
            with contextlib.suppress(Exception):
                self._call("io.maid.Manager.Release")
            self.stop()
        assert self._watcher.stdin is not None
        self._watcher.stdin.close()
        self._watcher.wait(30)


def mounts_below(directory: Path) -> list[str]:
    """The mount points below a directory that this process sees, the last one first."""
    with open("/proc/self/mountinfo") as file:
        points = [line.split()[4] for line in file]
    return [point for point in reversed(points) if point.startswith(f"{directory}/")]


def processes_of(directory: Path) -> Iterator[int]:
    """Processes whose command line names something below a directory: daemon, supervisors,
    runtimes."""
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{name}/cmdline").read_bytes().split(b"\0")
            if any(word.startswith(os.fsencode(f"{directory}/")) for word in words):
                yield int(name)


def clean_up(directory: Path) -> None:
    """Whatever is left of a daemon: its processes, its mounts, its directory."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        for pid in processes_of(directory):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        if until(lambda: not list(processes_of(directory)), 5):
            break
    for point in mounts_below(directory):
        subprocess.run(["umount", "--lazy", point], check=False)
    if not mounts_below(directory):
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    sys.stdin.read()  # ends when the test process does
    clean_up(Path(sys.argv[1]))
