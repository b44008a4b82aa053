"""A whole package, built by dpkg-buildpackage with and without native tools, is the same bytes.

The sample in accel_package/ is built as most packages are: autoreconf, configure, make, debhelper;
C and C++, a static library, a shared one with link-time optimization, debug symbols. `maid accel
verify` runs the build in both ways and compares what it left: the package, its debug symbols,
object files and what configure found out.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from accelerated import daemon
from daemons import MAID, Daemon, environment, rootfs

SAMPLE = Path(__file__).with_name("accel_package")
TREE = "debian-13-build-arm64"

# What varies by itself is not kept: config.log and the .buildinfo have the time of day, objects for
# link-time optimization a random number in their sections' names. What is written is compared, too:
# one job at a time keeps it in order.
BUILD = """
set -e
mkdir /build
cp -r /sample /build/sample-1.0
cd /build/sample-1.0
dpkg-buildpackage --jobs=1 --build=any --unsigned-changes --no-sign
mkdir /made
mv ../*.deb *.o *.a *.so.* sample config.h Makefile configure /made
cd /
/made/sample some words >/made/output
rm -r /build
"""

NATIVE = {
    *("perl", "gcc-14", "cc1-14", "cc1plus-14", "lto1-14", "as", "ld.bfd", "collect2-14"),
    *("ar", "make", "m4", "dash", "sed", "grep", "dpkg-deb", "strip", "objcopy"),
}
"""Some of the tools that such a build is made of."""


@pytest.fixture(scope="module")
def running() -> Iterator[Daemon]:
    with daemon() as started:
        yield started.start()


def test_a_debian_package_is_built_to_the_same_bytes(running: Daemon, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    done = subprocess.run(
        [
            *(MAID, "--socket", running.socket, "accel", "verify", "--json", "--require"),
            *("--strict", "--keep", kept, "--rootfs", rootfs(TREE), "--bind", f"{SAMPLE}:/sample"),
            *("--env", "LC_ALL=C.UTF-8", "--", "/bin/sh", "-c", BUILD),
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=900,
        env=environment(),
    )
    assert done.stdout, done.stderr
    document = json.loads(done.stdout)
    assert done.returncode == 0, document
    made = sorted(os.listdir(kept / "accelerated/upper/made"))
    assert "sample_1.0_arm64.deb" in made and "sample-dbgsym_1.0_arm64.deb" in made, made
    native = document["accelerated"]["native"]
    assert native.keys() >= NATIVE, NATIVE - native.keys()
    assert document["accelerated"]["emulated"] < sum(native.values()) / 10
