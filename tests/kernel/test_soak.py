"""Everything at once: steps of several platforms, and at random whatever can go wrong.

MAID_SOAK_SECONDS is how long (25 without it), MAID_SOAK_SEED the seed of what happens, which is
printed. In the end all must be well, the daemon no larger, and no step with a wrong result.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from daemons import MAID, environment, rootfs, until
from faults import Faulted, all_is_well, filled, small_disk, well
from keeping import qemu
from stepping import copy

SECONDS = float(os.environ.get("MAID_SOAK_SECONDS", "25"))
SEED = int(os.environ.get("MAID_SOAK_SEED") or random.randrange(10**6))
ARCHITECTURES = ("arm64", "riscv64", "amd64")
GROWTH = 24 << 20
"""Bytes that the daemon may have more than at first: what an allocator keeps."""


@dataclass
class Steps:
    """Steps of one platform, one after another, until `end`; how they ended."""

    daemon: Faulted
    tree: Path
    number: int
    end: threading.Event
    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def run(self) -> None:
        choice = random.Random(SEED + self.number)
        while not self.end.is_set():
            self.one(choice.randrange(1000, 10**6), choice.random() < 0.3)

    def one(self, number: int, slow: bool) -> None:
        """One step, with a result of its own."""
        status, pause = 1 + number % 90, "sleep 0.3; " if slow else ""
        script = f"echo {number}; {pause}/bin/expr {number} + 1; exit {status}"
        command = [MAID, "--socket", self.daemon.socket, "run", "--rootfs", self.tree]
        done = subprocess.run(
            [*command, "--readonly", "--", "/bin/sh", "-c", script],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=90,
            env=environment(),
            check=False,
        )
        if (done.returncode, done.stdout) == (status, b"%d\n%d\n" % (number, number + 1)):
            self.counts["right"] += 1
        elif done.returncode == 125 and not done.stdout and b"maid: " in done.stderr:
            self.counts["refused in words"] += 1
        else:
            self.wrong.append(f"{script}: {done}")


class Misfortune:
    """What goes wrong, each by its name."""

    def __init__(self, daemon: Faulted, interpreter: Path, choice: random.Random) -> None:
        self.daemon = daemon
        self.interpreter = interpreter
        self.choice = choice
        self.kinds = [
            name.removeprefix("do_") for name in sorted(vars(type(self))) if name.startswith("do_")
        ]

    def strike(self) -> str:
        kind = self.choice.choice(self.kinds)
        getattr(self, f"do_{kind}")()
        return kind

    def write(self, name: str, text: str) -> None:
        with contextlib.suppress(OSError):
            file = os.open(self.daemon.table / name, os.O_WRONLY)
            try:
                os.write(file, text.encode())
            finally:
                os.close(file)

    def do_kill(self) -> None:
        self.daemon.kill()
        self.daemon.start()

    def do_stop(self) -> None:
        self.daemon.restart()

    def do_remove_an_entry(self) -> None:
        self.write(self.choice.choice(["qemu-aarch64", "qemu-riscv64"]), "-1")

    def do_disable_an_entry(self) -> None:
        self.write("qemu-riscv64", "0")

    def do_flush(self) -> None:
        self.write("status", "-1")

    def do_switch_off(self) -> None:
        self.write("status", "0")

    def do_unmount(self) -> None:
        for pin in self.choice.choice([["binfmt"], ["user"], ["binfmt", "user"]]):
            place = self.daemon.runtime / "instances/root" / pin
            subprocess.run(["umount", "--lazy", place], check=False, stderr=subprocess.DEVNULL)

    def do_reload(self) -> None:
        self.daemon.call("io.maid.Manager.Reload")

    def do_delete_the_interpreter(self) -> None:
        self.interpreter.unlink(missing_ok=True)
        self.restore()

    def do_truncate_the_interpreter(self) -> None:
        os.truncate(self.interpreter, 4096)
        time.sleep(0.2 * self.choice.random())
        self.restore()

    def do_fill_the_runtime_directory(self) -> None:
        with filled(self.daemon.runtime):
            time.sleep(0.5 * self.choice.random())

    def do_leave_a_client(self) -> None:
        """Killed in the middle of its step."""
        command = [MAID, "--socket", self.daemon.socket, "run", "--rootfs", "/"]
        client = subprocess.Popen(
            [*command, "--readonly", "--", "sleep", "1000"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment(),
        )
        time.sleep(self.choice.random())
        client.kill()
        client.wait()

    def restore(self) -> None:
        new = self.interpreter.with_suffix(".new")
        shutil.copy(qemu("aarch64"), new)
        new.rename(self.interpreter)


def test_nothing_is_lost_whatever_happens(tmp_path: Path) -> None:
    print(f"MAID_SOAK_SEED={SEED} MAID_SOAK_SECONDS={SECONDS:g}")
    interpreter = tmp_path / "qemu-aarch64-static"
    shutil.copy(qemu("aarch64"), interpreter)
    trees = {}
    for name in ARCHITECTURES:
        (tmp_path / name).mkdir()
        trees[name] = copy(rootfs(f"busybox-{name}"), tmp_path / name)
    daemon = Faulted(
        '[emulation]\nplatforms = ["linux/arm64", "linux/riscv64"]\n'
        f'[emulation.target.aarch64]\ninterpreter = "{interpreter}"\n'
    )
    with daemon, small_disk(daemon.runtime, "16m"):
        daemon.start()
        before = well(daemon)
        end = threading.Event()
        steps = [Steps(daemon, tree, n, end) for n, tree in enumerate(trees.values())]
        threads = [threading.Thread(target=each.run) for each in steps]
        for thread in threads:
            thread.start()
        struck: Counter[str] = Counter()
        misfortune = Misfortune(daemon, interpreter, random.Random(SEED))
        until_then = time.monotonic() + SECONDS
        try:
            while time.monotonic() < until_then:
                time.sleep(0.3 * misfortune.choice.random())
                struck[misfortune.strike()] += 1
        finally:
            end.set()
            for thread in threads:
                thread.join(120)
        misfortune.restore()
        daemon.restart()
        daemon.call("io.maid.Manager.Reload")
        memory = daemon.memory()
        counts = sum((each.counts for each in steps), Counter[str]())
        print(f"{sum(struck.values())} faults: {dict(struck)}; steps: {dict(counts)}")
        wrong = [text for each in steps for text in each.wrong]
        assert not wrong, "\n".join(wrong[:5])
        assert counts["right"] > SECONDS / 5
        for _ in range(50):
            steps[0].one(4711, False)
        assert until(lambda: daemon.memory() < memory + GROWTH, 10)
        all_is_well(daemon, before, remembered=True)  # a minute long, for clients that were killed
        daemon.call("io.maid.Manager.Release")
        daemon.stop()
