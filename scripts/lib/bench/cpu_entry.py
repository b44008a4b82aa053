"""The CPU model in use: a Debian arm64 Python through maid's entry and through the plain
interpreter's.

Both run as docker would have them: chrooted, an empty environment, whatever entry the table has.
"""

import os
import shutil
from pathlib import Path

from common import cache, cpu_seconds, daemon, heading, median, row
from cpu_jobs import LOOP

from maid.binfmt import namespace
from maid.binfmt.entry import Entry
from maid.emulation.targets import TARGETS

WORK = {"start (python3 -c pass)": "pass", "loop": LOOP.format(rounds=500000)}
ROUNDS = 5


def plain_interpreter(path: str) -> str:
    """The interpreter that maid's copy was made from."""
    name = Path(path).name
    found = shutil.which(name)
    if found is None:
        raise SystemExit(f"the plain {name} is not in PATH")
    return found


def measure(tree: str) -> None:
    """Time Python of the tree, an arm64 one, through both entries, and print the ratios."""
    heading("cpu: Python for arm64 through maid's entry, CPU seconds")
    target = TARGETS["aarch64"]
    with daemon() as running:
        status = running.status()
        ours = next(p for p in status["platforms"] if p["platform"] == "linux/arm64")
        users = {"maid": f"{Path(status['instance']).parent}/user"}
        directory = cache() / f"bench-plain-{os.getpid()}"
        pinned = namespace.create(str(directory), namespace.identity())
        try:
            plain = plain_interpreter(ours["interpreter"])
            entry = Entry("qemu-aarch64", plain, target.magic, target.mask, ours["flags"])
            pinned.instance.add(entry)
            users["plain"] = pinned.user
            row(
                "interpreter", f"QEMU {ours['interpreter_version']}, maid's with -cpu {ours['cpu']}"
            )
            for name, code in WORK.items():
                seconds: dict[str, list[float]] = {"maid": [], "plain": []}
                for _ in range(ROUNDS):
                    for which, user in users.items():
                        command = [
                            *("env", "-i", f"PATH={os.environ['PATH']}"),
                            *("nsenter", f"--user={user}", "chroot", tree),
                            *("/usr/bin/python3", "-c", code),
                        ]
                        seconds[which].append(cpu_seconds(command)[1])
                ratio = median(seconds["plain"]) / median(seconds["maid"])
                row(
                    name,
                    f"plain {median(seconds['plain']):.2f} s, maid {median(seconds['maid']):.2f} s:"
                    f" {ratio:.1f} times as fast",
                )
        finally:
            pinned.release()
