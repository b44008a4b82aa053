"""Other engines' foreign containers that crash: where MAID_INIT asks for it, or the engine has an
init of its own, they end. Without either they never do (docs/engines.md): nothing to be tested."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from engines import EngineError, Room, engine_room, rootfs

from maid import native

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make the rooms")

PLACE = Path("/var/lib/room")
INIT = "/usr/lib/maid-init"
CRASHES = ("sh", "-c", "kill -SEGV $$; sleep 1000")
LIMIT = 120
"""Seconds for what takes about one."""

ENDED = """
"$@" >LOG 2>&1 & build=$!
until grep -q '^begins' LOG; do kill -0 $build; sleep 0.1; done
kill -TERM $build
wait $build || echo "status $?"
ps -eo args >LIST; ! grep 'sleep 100[0]' LIST
"""


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Room]:
    """A room with engines whose environment names maid-init."""
    place = tmp_path_factory.mktemp("crash")
    tree = rootfs("debian-13-engines")
    with engine_room(place, "aarch64", state=place / "state", tree=tree) as made:
        shutil.copy(native.path("maid-init"), made.outside(INIT))
        made.variables["MAID_INIT"] = INIT
        yield made


def context(room: Room, name: str, *lines: str) -> Path:
    """A build's context: busybox for arm64, and these lines."""
    outside = room.outside(PLACE / name)
    shutil.copytree(rootfs("busybox-arm64"), outside / "tree", symlinks=True)
    (outside / "Containerfile").write_text("\n".join(("FROM scratch", "COPY tree /", *lines, "")))
    return PLACE / name


@pytest.mark.parametrize(
    ("engine", "runtime"),
    [("buildah", "crun"), ("buildah", "runc"), ("podman", "crun"), ("docker", "")],
)
def test_a_line_that_crashes_ends_its_build(room: Room, engine: str, runtime: str) -> None:
    made = context(room, f"{engine}-{runtime}", "RUN kill -SEGV $$; sleep 1000")
    running = room.docker() if engine == "docker" else contextlib.nullcontext()
    with running, pytest.raises(EngineError) as raised:
        room.build(engine, made, "localhost/crash", runtime=runtime, timeout=LIMIT)
    said = str(raised.value)
    assert "uncaught target signal 11" in said
    assert ("exit code: 139" if engine == "docker" else "exit status 139") in said


def test_docker_s_own_init_serves_as_well(room: Room) -> None:
    run = ("docker", "run", "--rm", "--network=none", "--cgroupns=host", "--platform=linux/arm64")
    with room.docker():
        room.build("docker", context(room, "docker-run"), "localhost/run")
        with pytest.raises(EngineError) as raised:
            room.run(*run, "--init", "localhost/run", *CRASHES, timeout=LIMIT)
    assert "exited with 139" in str(raised.value)


@pytest.mark.parametrize("runtime", ["crun", "runc"])
def test_a_build_that_is_ended_leaves_nothing_running(room: Room, runtime: str) -> None:
    """maid-init takes no signal but SIGKILL, which is what buildah sends."""
    made = context(room, f"ended-{runtime}", "RUN echo begins; sleep 1000 & sleep 1000; true")
    options = ("--isolation=oci", "--network=none", "--platform=linux/arm64", "--tag=localhost/e")
    build = ("buildah", "build", f"--runtime={runtime}", *options, made)
    script = ENDED.replace("LOG", f"{made}/log").replace("LIST", f"{made}/list")
    said = room.run("sh", "-ec", script, "sh", *build, timeout=LIMIT)
    assert said == "status 1"
