"""A machine under systemd, with maid installed, in a container of its own.

The container has a user namespace and with it a binfmt_misc table of its own: nothing of what runs
in it reaches this machine's. What it boots from is made once in a session (trees.py).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent

BOOT_SECONDS = 30
"""Far above the second that it takes on an idle machine."""


class Machine:
    """A booted container; commands are run in it as root."""

    def __init__(self, leader: int) -> None:
        self.leader = leader

    def argv(self, *command: str) -> list[str]:
        """How to start a command in the container from outside."""
        environment = ["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C.UTF-8"]
        enter = ["nsenter", f"--target={self.leader}", "--all"]
        return [*enter, "env", "--ignore-environment", *environment, *command]

    def run(self, *command: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """Run a command and return how it ended; output is text."""
        return subprocess.run(
            self.argv(*command),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def output(self, *command: str, timeout: float = 60) -> str:
        """Run a command that must succeed and return what it printed, without the last newline."""
        ended = self.run(*command, timeout=timeout)
        if ended.returncode != 0:
            journal = self.run("journalctl", "--no-pager", "-q", "-n", "40").stdout
            pytest.fail(
                f"{' '.join(command)}: status {ended.returncode}\n"
                f"{ended.stdout}{ended.stderr}\njournal:\n{journal}"
            )
        return ended.stdout.rstrip("\n")

    def start(self, *command: str) -> subprocess.Popen[str]:
        """Start a command and leave it running."""
        return subprocess.Popen(
            self.argv(*command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def kill(self, started: subprocess.Popen[str]) -> None:
        """End what `start` started; the process here only waits for the one in the container."""
        for pid in _children(started.pid):
            os.kill(pid, signal.SIGKILL)

    def write(self, path: str, text: str) -> None:
        """Write a file in the container."""
        subprocess.run(
            self.argv("sh", "-c", 'mkdir -p "${1%/*}" && cat >"$1"', "sh", path),
            input=text,
            text=True,
            check=True,
            timeout=30,
        )

    def show(self, unit: str, name: str) -> str:
        """One property of a unit."""
        return self.output("systemctl", "show", "--value", f"--property={name}", unit)

    def table(self) -> dict[str, str]:
        """The entries of the container's binfmt_misc table and what the kernel shows of each."""
        script = (
            "cd /proc/sys/fs/binfmt_misc || exit; for entry in *; do case $entry in"
            ' register|status) ;; *) echo "== $entry"; cat "$entry";; esac; done'
        )
        entries: dict[str, str] = {}
        for block in self.output("sh", "-c", script).split("== ")[1:]:
            name, _, text = block.partition("\n")
            entries[name] = text.strip()
        return entries

    def status(self) -> Any:
        """What `maid status --json` says; its exit status is 1 while a required platform fails."""
        ended = self.run("maid", "status", "--json")
        assert ended.returncode in (0, 1), ended.stderr
        return json.loads(ended.stdout)

    def enable(self, configuration: str = "") -> None:
        """What a person types, with this /etc/maid/maid.toml; back when the platforms have run."""
        if configuration:
            self.write("/etc/maid/maid.toml", configuration)
        self.output("systemctl", "enable", "--now", "maid")
        self.output("systemctl", "start", "maid-ready.target")


def eventually(what: str, condition: Callable[[], bool], seconds: float = 15) -> None:
    """Wait until the condition holds; fail when it does not within so many seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"not within {seconds} s: {what}")
        time.sleep(0.05)


@contextmanager
def booted(
    tree: Path,
    files: Mapping[str, str] | None = None,
    enabled: Sequence[str] = (),
    state: str = "running",
) -> Iterator[Machine]:
    """Boot the tree, with these files in it (absolute paths) and these units enabled; wait until
    systemd has started everything and is in this state; kill it in the end."""
    with tempfile.TemporaryDirectory() as directory:
        for path, text in (files or {}).items():
            file = Path(directory + path)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        with _container([HERE / "boot-container", tree, directory, *enabled], state) as machine:
            yield machine


@contextmanager
def _container(command: list[str | Path], expected: str) -> Iterator[Machine]:
    container = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        machine = Machine(_leader(container))
        state = machine.run("systemctl", "is-system-running", "--wait", timeout=BOOT_SECONDS)
        failed = machine.run("systemctl", "--failed", "--no-legend", "--plain").stdout
        assert state.stdout.strip() == expected, f"{state.stdout}{failed}"
        yield machine
    finally:
        # Nothing in it is worth an orderly shutdown: its files are in memory. When its PID 1 dies,
        # so does all else, and nspawn cleans up.
        for nspawn in _children(container.pid):
            for leader in _children(nspawn):
                os.kill(leader, signal.SIGKILL)
        try:
            container.communicate(timeout=BOOT_SECONDS)
        except subprocess.TimeoutExpired:
            container.kill()
            raise


def _children(pid: int) -> list[int]:
    try:
        return [int(n) for n in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _leader(container: subprocess.Popen[str]) -> int:
    """The container's PID 1 as seen from here: systemd, below nspawn, below boot-container."""
    deadline = time.monotonic() + BOOT_SECONDS
    while container.poll() is None and time.monotonic() < deadline:
        for nspawn in _children(container.pid):
            for pid in _children(nspawn):
                try:
                    # nspawn's own helper becomes systemd; before that it cannot be entered.
                    if Path(f"/proc/{pid}/comm").read_text().strip() == "systemd":
                        ready = ["nsenter", f"--target={pid}", "--all", "test", "-S"]
                        if not subprocess.run([*ready, "/run/systemd/private"]).returncode:
                            return pid
                except OSError:
                    continue
        time.sleep(0.02)
    container.kill()
    output, _ = container.communicate()
    pytest.fail(f"the container did not boot:\n{output}")
