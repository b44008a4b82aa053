"""An upgrade while steps run: scripts/install of the next version, as a user does it."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from container import Machine, booted, eventually
from trees import INSTALLER, SOURCE

STEPS = 20
FOREIGN = 12
"""So many of them are emulated, the others are native."""


def executes(number: int) -> bool:
    """Whether this step executes programs all the time; the others wait."""
    return number % 5 == 0


STEP = """\
echo before $1
echo >/gate/begun.$1
if [ $2 = True ]; then
    until [ -e /gate/open ]; do seq 9 | sha256sum >/dev/null || echo failed; sleep 0.3; done
else
    read -r word </gate/fifo.$1
fi
echo after $1 $(seq 1000 | sed "s/^/$1 /" | sha256sum)
exit $(($1 + 10))
"""

EXECUTOR = """\
import json, os, subprocess, time
tried, failed, longest, last = 0, [], 0.0, time.monotonic()
while not os.path.exists("/run/test/open"):
    tried += 1
    try:
        status = subprocess.run(["/opt/busybox-arm64/bin/busybox", "true"]).returncode
    except OSError as error:
        status = error.strerror
    now = time.monotonic()
    if status == 0:
        longest, last = max(longest, now - last), now
    else:
        failed.append(status)
    time.sleep(0.01)
print(json.dumps({"tried": tried, "failed": failed, "longest": longest}))
"""

ANOTHER_VERSION = r"""
cd /opt/maid-source
sed -i 's/^version = .*/version = "9.8.7"/' pyproject.toml
sed -i 's/^__version__ = .*/__version__ = "9.8.7"/' daemon/maid/__init__.py
sed -i '/("neoverse-n1", "max,pauth=off")/s/neoverse-n1/cortex-a72/' daemon/maid/emulation/cpus.py
grep -q '("cortex-a72", "max,pauth=off")' daemon/maid/emulation/cpus.py
"""
"""The next version chooses another CPU model, too: entries and copies have to be renewed."""


@pytest.fixture
def machine(other_tree: Path) -> Iterator[Machine]:
    with booted(other_tree) as made:
        made.output("mkdir", "-p", "/run/test")
        yield made


def start_step(machine: Machine, number: int) -> subprocess.Popen[str]:
    architecture = "arm64" if number < FOREIGN else "amd64"
    machine.output("mkfifo", f"/run/test/fifo.{number}")
    return machine.start(
        *("maid", "run", "--platform", f"linux/{architecture}"),
        *("--rootfs", f"/opt/busybox-{architecture}", "--bind", "/run/test:/gate", "--"),
        *("sh", "-c", STEP, "sh", str(number), str(executes(number))),
    )


def begun(machine: Machine) -> int:
    return len(machine.output("find", "/run/test", "-name", "begun.*").splitlines())


def expected(number: int) -> tuple[int, str]:
    text = "".join(f"{number} {line}\n" for line in range(1, 1001))
    digest = hashlib.sha256(text.encode()).hexdigest()
    return number + 10, f"before {number}\nafter {number} {digest} -\n"


def of_maid(machine: Machine) -> list[str]:
    """The command lines of all processes that run something of maid's, the daemon's included."""
    script = 'for p in /proc/[0-9]*; do tr "\\0" " " <$p/cmdline; echo; done'
    found = machine.output("sh", "-c", script)
    return sorted(line.strip() for line in found.splitlines() if "maid" in line)


def mounted(machine: Machine) -> list[str]:
    return sorted(machine.output("cut", "-d ", "-f5", "/proc/self/mountinfo").splitlines())


def test_twenty_steps_outlive_an_upgrade_and_entries_serve_all_the_time(machine: Machine) -> None:
    machine.enable(f'[emulation]\nprefer = "own"\n[steps]\nmax_per_uid = {STEPS}\n')
    machine.write("/run/test/executor.py", EXECUTOR)
    before = machine.table()["maid-aarch64"]
    processes = of_maid(machine)
    daemon = machine.show("maid", "MainPID")
    assert machine.status()["version"] != "9.8.7"

    steps = [start_step(machine, number) for number in range(STEPS)]
    eventually("all steps run", lambda: begun(machine) == STEPS, seconds=60)
    mounts = mounted(machine)
    executor = machine.start("python3", "/run/test/executor.py")
    machine.output("sh", "-ec", ANOTHER_VERSION)
    machine.output(
        *("env", f"MAID_CACHE={INSTALLER}", f"{SOURCE}/scripts/install", "--no-packages"),
        timeout=300,
    )

    status = machine.status()
    assert status["version"] == "9.8.7"
    assert status["ready"] is True
    assert machine.show("maid", "MainPID") != daemon
    eventually("the entry is renewed", lambda: machine.table().get("maid-aarch64") != before)
    assert machine.output("journalctl", "-o", "cat", "-q", "MAID_EVENT=renewed")
    assert [step.poll() for step in steps] == [None] * STEPS
    machine.output("touch", "/run/test/open")
    for number in range(STEPS):
        if not executes(number):
            machine.output("sh", "-c", f"echo go >/run/test/fifo.{number}")

    ended = [(step.communicate(timeout=60)[0], step.returncode) for step in steps]
    assert [(code, text) for text, code in ended] == [expected(number) for number in range(STEPS)]
    executed = json.loads(executor.communicate(timeout=60)[0])
    print(f"{STEPS} steps, execs through the table: {executed}")
    assert executed["failed"] == []
    assert executed["tried"] > 20
    assert executed["longest"] < 10

    assert machine.run("sh", "-c", "ls -A /run/maid/steps").stdout == ""
    assert machine.run("sh", "-c", "ls -d /usr/lib/maid.*").stdout == ""
    eventually("no other process is left", lambda: of_maid(machine) == processes)
    assert mounted(machine) == mounts
    # And the next step is as ever.
    assert (
        machine.output(
            *("maid", "run", "--platform", "linux/arm64", "--rootfs", "/opt/busybox-arm64"),
            *("--", "uname", "-m"),
        )
        == "aarch64"
    )
