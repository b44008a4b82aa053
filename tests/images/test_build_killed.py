"""A tag is the old image or the whole new one, whenever `maid build` is killed."""

from __future__ import annotations

import signal
import subprocess
import time

from building import Builds, pushing
from daemons import until
from places import Place
from registry import Registry
from test_build_ends import processes_below

POINTS = 20
TWO = ("linux/arm64", "linux/amd64")


def is_whole(registry: Registry, name: str, tag: str) -> bool:
    """Whether all that a tag's index names is in the registry."""
    for entry in registry.document(name, tag)["manifests"]:
        manifest = registry.document(name, entry["digest"])
        blobs = [manifest["config"], *manifest["layers"]]
        if any(registry.blob(name, each["digest"]) is None for each in blobs):
            return False
    return True


def wait_for_images(process: subprocess.Popen[bytes]) -> None:
    """Wait until all images are there and publishing begins."""
    assert process.stderr is not None
    said = b""
    while said.count(b"] built in ") < len(TWO):
        line = process.stderr.readline()
        assert line, said.decode()
        said += line


def test_killed_at_any_moment_the_tag_is_the_old_image_or_the_new_one(
    place: Place, registry: Registry, busybox: str
) -> None:
    builds = Builds(place, registry, place.directory / "killed")
    context = place.context(f"FROM {busybox}\nRUN echo data >/file\n")
    options = pushing(registry, "killed/app", *TWO)
    builds.run(context, *options)
    started = time.monotonic()
    builds.run(context, *options, "--label", "number=first")
    whole = time.monotonic() - started
    old = registry.digest("killed/app", "1")
    moved, kept = 0, 0
    for point in range(POINTS):
        label = f"number={point}"
        process = place.start(
            *("build", "--root", builds.root, *options, "--label", label, context),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        if point < POINTS // 2:
            time.sleep(0.1 + whole * point / POINTS)
        else:
            wait_for_images(process)
            time.sleep(whole * (point - POINTS // 2) / (POINTS // 2))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert until(lambda: not processes_below(builds.root)), processes_below(builds.root)
        now = registry.digest("killed/app", "1")
        if now != old:
            moved += 1
            assert is_whole(registry, "killed/app", "1")
            numbers = {
                int(builds.config("killed/app", digest)["config"]["Labels"]["number"])
                for digest in builds.images("killed/app").values()
            }
            # What a killed one has sent a registry may take a moment later.
            assert numbers in ({point}, {point - 1})
            old = now
        elif point >= POINTS // 2:
            kept += 1
    assert moved and kept, "it was always killed before it published, or always afterwards"
    result = builds.push(context, "killed/app", *TWO)
    assert [each["cached"] for each in result["platforms"]] == [1, 1]
    assert is_whole(registry, "killed/app", "1")
    assert builds.containers() == [] and list((builds.root / "work").iterdir()) == []
