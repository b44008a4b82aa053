"""`maid build` against plain buildah, and several platforms together against one after another.

For linux/arm64 a Containerfile installs a package with some thirty dependencies, compiles Lua, and
configures and compiles zlib. Plain is this machine's `buildah build` where QEMU has its default CPU
and no store of native tools is; it only builds. maid builds, checks, and pushes to a registry.

The four platforms (amd64, arm64, arm/v7, riscv64) install a small package and compile a part of
Lua, in smaller images. Base images are in each one's storage before, from a registry on loopback.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import bases
import debian
import jobs
from common import MAID, aim, cache, daemon, end_tidily, heading, median, row
from engines import CONTAINERS, STORAGE, Room, engine_room, rootfs
from layouts import Layout
from registry import Registry, serving
from sides import ACCELERATED, Side, fill

ARM64, TOGETHER = "arm64", "together"
BASE = "debian-13-build-arm64"

CONTAINERFILE = """\
FROM BASE
COPY work /work
RUN rm -rf /etc/apt/sources.list.d/* && echo 'deb ADDRESS trixie main' >/etc/apt/sources.list && \\
    apt-get update -o Acquire::Languages=none && \\
    apt-get install -y --no-install-recommends git && rm -rf /var/lib/apt/lists/*
RUN cd /work/lua && make -C src linux MYCFLAGS=-g && cp src/lua /usr/local/bin/
RUN cd /work/zlib && ./configure --prefix=/usr/local && make libz.a && cp libz.a /usr/local/lib/
"""

FOUR = """\
FROM BASE
RUN apt-get install -y /srv/hello.deb
COPY work /work
RUN cd /work/lua/src && gcc -O2 -g -c lvm.c lparser.c ltable.c lstrlib.c
"""


@dataclass(frozen=True)
class Builds:
    """`maid build`, with storage and settings of its own in `place`."""

    socket: str
    place: Path
    registry: Registry

    def run(self, context: Path, platforms: str, *options: str) -> None:
        """Build and push. Ends the benchmark with what maid said if it fails."""
        tag = f"{self.registry.address}/bench/{context.name}:{platforms.count(',') + 1}"
        command = [MAID, "--socket", self.socket, "build", "--platform", platforms, "--tag", tag]
        command += ["--push", "--tls-verify=false", "--quiet", *options, str(context)]
        done = subprocess.run(
            command,
            env=os.environ
            | {
                "CONTAINERS_STORAGE_CONF": str(self.place / "storage.conf"),
                "CONTAINERS_CONF": str(self.place / "containers.conf"),
                "HOME": str(self.place),
                "MAID_BUILD_ROOT": str(self.place / "build"),
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise SystemExit(f"{command} failed: {done.stderr[-3000:]}")


def settings(place: Path, address: str) -> None:
    """Have containers/image's programs keep to `place`, and trust the registry."""
    place.mkdir(exist_ok=True)
    (place / "storage.conf").write_text(STORAGE.format(driver="overlay", place=place))
    (place / "containers.conf").write_text(CONTAINERS)
    configured = place / ".config/containers"
    configured.mkdir(parents=True)
    trusted = f'[[registry]]\nlocation = "{address}"\ninsecure = true\n'
    (configured / "registries.conf").write_text(trusted)
    (configured / "policy.json").write_text('{"default": [{"type": "insecureAcceptAnything"}]}')


@contextmanager
def plain_room(place: Path, address: str) -> Iterator[Room]:
    """A room with this machine's buildah, QEMU's default CPU and no store."""
    place.mkdir()
    state = cache() / "bench" / "plain"
    with engine_room(place, "aarch64", state=state, cpu={"aarch64": ""}) as room:
        settings(place, address)
        room.variables["CONTAINERS_REGISTRIES_CONF"] = str(
            place / ".config/containers/registries.conf"
        )
        yield room


def timed(what: Callable[[], object]) -> float:
    """The seconds that it takes."""
    begun = time.perf_counter()
    what()
    return time.perf_counter() - begun


def context(place: Path, name: str, containerfile: str, **replaced: str) -> Path:
    """A context with that Containerfile, and Lua and zlib below `work`."""
    made = place / name
    shutil.copytree(place / "work", made / "work", symlinks=True)
    for word, text in replaced.items():
        containerfile = containerfile.replace(word, text)
    (made / "Containerfile").write_text(containerfile)
    return made


def one_platform(place: Path, builds: Builds, rounds: int) -> None:
    """linux/arm64: plain buildah and maid in turns."""
    base = pushed(builds, "bench/base", bases.cached("bench", {"linux/arm64": BASE}))
    tree = rootfs(BASE)
    archive = debian.partial_archive(tree, "arm64", jobs.INSTALLED)
    fill(Side(ACCELERATED, builds.socket, "arm64", tree, ("--require-acceleration",)))
    walls: dict[str, list[float]] = {"plain buildah": [], "maid": []}
    with (
        debian.served(archive) as address,
        plain_room(place / "plain", builds.registry.address) as room,
    ):
        what = context(place, "one", CONTAINERFILE, BASE=base, ADDRESS=address)
        empty = context(place, "one-empty", "FROM BASE\nRUN true\n", BASE=base)

        def plain(directory: Path) -> None:
            room.build("buildah", directory, "localhost/x", runtime="crun", network="host")

        def ours(directory: Path) -> None:
            builds.run(directory, "linux/arm64", "--no-cache")

        plain(empty)
        ours(empty)
        for _ in range(rounds):
            for name, build in (("plain buildah", plain), ("maid", ours)):
                walls[name].append(timed(lambda build=build: build(what)))
                row(f"linux/arm64, {name}", f"{walls[name][-1]:.1f} s")
    aim(
        "linux/arm64: times as fast as plain buildah",
        median(walls["plain buildah"]) / median(walls["maid"]),
        5,
        at_most=False,
    )


def four_platforms(place: Path, builds: Builds, rounds: int) -> None:
    """The four platforms, side by side and one after another, in turns."""
    base = pushed(builds, "bench/four", bases.debian())
    for architecture in ("arm64", "riscv64"):
        fill(Side("", builds.socket, architecture, rootfs(f"gcc-{architecture}")))
    what = context(place, "four", FOUR, BASE=base)
    empty = context(place, "four-empty", "FROM BASE\nRUN true\n", BASE=base)
    platforms = ",".join(bases.DEBIAN)
    builds.run(empty, platforms)
    ways = {"one after another": ("--jobs", "1"), "together": ()}
    walls: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, options in ways.items():
            taken = timed(lambda o=options: builds.run(what, platforms, "--no-cache", *o))
            walls[name].append(taken)
            row(f"four platforms, {name}", f"{taken:.1f} s")
    row(
        "four platforms: together, of one after another",
        f"{median(walls['together']) / median(walls['one after another']):.2f}",
    )


def pushed(builds: Builds, name: str, layout: Layout) -> str:
    """The reference of a base image that is now in the registry."""
    builds.registry.push(layout, name, bases.TAG)
    return f"{builds.registry.address}/{name}:{bases.TAG}"


def main() -> None:
    end_tidily()
    parser = argparse.ArgumentParser(prog="scripts/bench images", description=__doc__)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--only", choices=(ARM64, TOGETHER))
    options = parser.parse_args()
    heading(f"images: {options.rounds} rounds")
    filling = daemon(settings='[acceleration]\nfill = "wait"\n', state=cache() / "bench/state")
    with tempfile.TemporaryDirectory(prefix="images-", dir=cache()) as temporary:
        place = Path(temporary)
        for name in ("work", "registry"):
            (place / name).mkdir()
        found = debian.sources(("lua5.4", "zlib"))
        for name, description in (("lua", "lua5.4"), ("zlib", "zlib")):
            jobs.unpack(found[description], place / "work" / name)
        with serving(place / "registry") as registry, filling as running:
            settings(place / "maid", registry.address)
            builds = Builds(running.socket, place / "maid", registry)
            if options.only != TOGETHER:
                one_platform(place, builds, options.rounds)
            if options.only != ARM64:
                four_platforms(place, builds, options.rounds)


if __name__ == "__main__":
    main()
