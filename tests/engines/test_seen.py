"""What the shim tells is understood by a real daemon: the packages of the very root file system."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from bundles import RUNTIME, make_bundle
from engines import rootfs

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="copies of mounts are root's to make")

DAEMON = """
import sys
from maid.acceleration import facts, manager
from maid.cli.app import main

told = sys.argv.pop()


async def seen(self, rootfs, **how):
    with open(told, "a") as file:
        found = facts.read(rootfs)
        print(found.distribution, found.architecture, found.packages["gcc"], file=file)


manager.Acceleration.seen = seen
main()
"""
"""maid's daemon, but that it only writes down what it would look for in the store."""


def until(what: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while not what.exists():
        assert process.poll() is None and time.monotonic() < deadline, f"no {what}"
        time.sleep(0.05)


def test_a_daemon_is_told_which_packages_there_are(tmp_path: Path) -> None:
    socket, told, config = tmp_path / "io.maid", tmp_path / "told", tmp_path / "maid.toml"
    config.write_text(
        f'[paths]\nruntime = "{tmp_path}/run"\nstate = "{tmp_path}/state"\n'
        '[emulation]\nplatforms = ["linux/arm64"]\n'
    )
    arguments = ["daemon", "--scope=private", f"--socket={socket}", f"--config={config}", told]
    with subprocess.Popen(
        [sys.executable, "-c", DAEMON, *arguments], stderr=subprocess.DEVNULL
    ) as daemon:
        try:
            until(socket, daemon)
            until(tmp_path / "state/store/id", daemon)
            bundle = make_bundle(tmp_path / "bundle")
            bundle.write(bundle.config | {"root": {"path": str(rootfs("debian-13-arm64"))}})
            environment = {
                "PATH": "/usr/bin:/bin",
                "MAID_RUNTIME": "/bin/true",
                "MAID_STORE": f"{tmp_path}/state/store",
                "MAID_SOCKET": str(socket),
            }
            create = [RUNTIME, "create", "--bundle", bundle.path, "name"]
            subprocess.run(create, env=environment, check=True)
            until(told, daemon)
        finally:
            release = [Path(sys.executable).with_name("maid"), "--socket", socket, "release"]
            subprocess.run(release, stdout=subprocess.DEVNULL, check=False)
            daemon.send_signal(signal.SIGTERM)
    distribution, architecture, version = told.read_text().split()
    assert (distribution, architecture) == ("debian", "arm64")
    assert version.startswith("4:14.")
