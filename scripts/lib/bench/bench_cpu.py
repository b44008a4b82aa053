"""The CPU model: a Debian 13 arm64 Python through maid's entry and through the plain interpreter's.

Both run as docker would have them: chrooted, an empty environment, whatever entry the table has.
"""

import os
import shutil
from pathlib import Path

from common import cache, cpu_seconds, daemon, heading, median, row

from maid.binfmt import namespace
from maid.binfmt.entry import Entry
from maid.emulation.targets import TARGETS

LOOP = "x = 0\nfor i in range(1500000):\n    x = (x * 31 + i) & 0xffffffff"
WORK = {"start (python3 -c pass)": "pass", "loop of 1.5 million rounds": LOOP}
ROUNDS = 7


def plain_interpreter(path: str) -> str:
    """The interpreter that maid's copy was made from."""
    name = Path(path).name
    found = shutil.which(name)
    if found is None:
        raise SystemExit(f"the plain {name} is not in PATH")
    return found


def main() -> None:
    heading("cpu: Python of Debian 13 arm64, CPU seconds")
    tree = os.environ["BENCH_DEBIAN"]
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
                            *("nsenter", f"--user={user}", "chroot", tree),
                            *("/usr/bin/env", "-i", "/usr/bin/python3", "-c", code),
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


if __name__ == "__main__":
    main()
