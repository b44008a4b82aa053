"""One unmodified Containerfile for linux/arm64, built by buildah 1.39, podman 5.4 and Docker 26,
with plain QEMU and with all that maid brings: seconds, and whether the images are the same.

It installs a package with some thirty dependencies, compiles Lua, configures and compiles zlib, and
compresses. What the images of three plain builds have different among each other (logs with the
time of day) says nothing about the accelerated ones.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import debian
import jobs
from common import cache, daemon, heading, median, row
from engines import Contents, Room, engine_room, rootfs
from sides import ACCELERATED, Side, fill

ENGINES = ("buildah", "podman", "docker")
PLAIN, OURS = "plain QEMU", "maid"
PLACE = Path("/var/lib/room")

CONTAINERFILE = """\
FROM localhost/base
COPY work /work
RUN rm -rf /etc/apt/sources.list.d/* && echo 'deb ADDRESS trixie main' >/etc/apt/sources.list && \\
    apt-get update -o Acquire::Languages=none && \\
    apt-get install -y --no-install-recommends git && rm -rf /var/lib/apt/lists/*
RUN cd /work/lua && make -C src linux MYCFLAGS=-g && cp src/lua /usr/local/bin/
RUN cd /work/zlib && ./configure --prefix=/usr/local && make libz.a && cp libz.a /usr/local/lib/
RUN cd /work && xz -6 -T1 -k small.tar && tar --mtime=@0 -cf - -C /usr/share . | zstd -q -9 -o s.zst
"""


@contextmanager
def room_with_base(side: str, place: Path, tree: Path, address: str) -> Iterator[Room]:
    """A room whose engines have the base image, and the build's context in it. The plain one has
    QEMU's default CPU and no store; all else is the same."""
    state = cache() / "bench" / ("state" if side == OURS else "plain")
    cpu = {} if side == OURS else {"aarch64": ""}
    place.mkdir()
    engines_tree = rootfs("debian-13-engines")
    with engine_room(place, "aarch64", state=state, tree=engines_tree, cpu=cpu) as room:
        context = room.outside(PLACE / "context")
        shutil.copytree(place.parent / "work", context / "work", symlinks=True)
        (context / "Containerfile").write_text(CONTAINERFILE.replace("ADDRESS", address))
        base = PLACE / "base.tar"
        subprocess.run(
            ["tar", "--numeric-owner", "-C", tree, "-cf", room.outside(base), "."], check=True
        )
        made = room.run("buildah", "from", "--arch=arm64", "scratch")
        room.run("buildah", "add", made, base, "/", timeout=900)
        room.run("buildah", "commit", "--rm", made, "localhost/base", timeout=900)
        with room.docker(host_network=True):
            room.run("docker", "import", "--platform=linux/arm64", base, "localhost/base")
            room.outside(base).unlink()
            yield room


def differing(one: Contents, other: Contents) -> set[str]:
    """The paths at which two images differ."""
    return {path for path in one.keys() | other.keys() if one.get(path) != other.get(path)}


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench engines", description=__doc__)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--only", choices=ENGINES, action="append")
    options = parser.parse_args()
    engines = tuple(options.only or ENGINES)
    tree = Path(os.environ["BENCH_FOREIGN"]).resolve()
    heading(f"engines: an unmodified Containerfile for linux/arm64, {options.rounds} rounds")
    archive = debian.partial_archive(tree, "arm64", [*jobs.INSTALLED, *jobs.UNPACKED])
    with daemon(
        settings='[acceleration]\nfill = "wait"\n', state=cache() / "bench/state"
    ) as filling:
        fill(Side(ACCELERATED, filling.socket, "arm64", tree, ("--require-acceleration",)))
    walls: dict[tuple[str, str], list[float]] = {}
    images: dict[tuple[str, str], Contents] = {}
    with tempfile.TemporaryDirectory(prefix="engines-", dir=cache() / "bench") as temporary:
        place = Path(temporary)
        (place / "material").mkdir()
        (place / "work").mkdir()
        shared = jobs.material(place / "material", {"amd64": tree}, {}).shared
        for name in ("lua", "zlib", "small.tar"):
            (shared / name).rename(place / "work" / name)
        with debian.served(archive) as address:
            for side in (PLAIN, OURS):
                with room_with_base(side, place / side.split()[0], tree, address) as room:
                    for engine in engines * options.rounds:
                        begun = time.perf_counter()
                        room.build(engine, PLACE / "context", "localhost/built", network="host")
                        taken = time.perf_counter() - begun
                        walls.setdefault((engine, side), []).append(taken)
                        row(f"{engine}, {side}", f"{taken:.1f} s")
                        images[engine, side] = room.contents(engine, "localhost/built")
    show(engines, walls, images)


def show(
    engines: tuple[str, ...],
    walls: dict[tuple[str, str], list[float]],
    images: dict[tuple[str, str], Contents],
) -> None:
    """A line for each engine: both medians, the ratio, and how the images compare."""
    varying: set[str] = set()
    for engine in engines[1:]:
        varying |= differing(images[engines[0], PLAIN], images[engine, PLAIN])
    print()
    for engine in engines:
        plain, ours = (median(walls[engine, side]) for side in (PLAIN, OURS))
        different = differing(images[engine, PLAIN], images[engine, OURS]) - varying
        traces = [path for path in images[engine, OURS] if ".maid" in path]
        row(
            engine,
            f"{plain:.1f} s, {ours:.1f} s with maid: {plain / ours:.1f} times faster;"
            f" {len(images[engine, OURS])} paths, {len(different)} differ ({len(varying)} vary by"
            f" themselves), {len(traces)} traces of the store",
        )
        for path in sorted(different)[:10]:
            print(f"      {path}")


if __name__ == "__main__":
    main()
