"""Real engines run native programs in foreign containers, with no word of it in what they build.

The store is a small one: its only native program stands in for the foreign busybox, where busybox
is asked for the applet `probe`, which it does not have. So whoever prints NATIVE ran natively, and
everything else is emulated as ever.
"""

import contextlib
import functools
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from engines import STORE, Contents, EngineError, Room, engine_room, rootfs

from maid import elf, native

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make the rooms")

NATIVE = '#include <stdio.h>\nint main(void) { puts("NATIVE"); return 0; }\n'
PROBE = "busybox probe || echo EMULATED"
CONTAINERFILE = f"FROM scratch\nCOPY tree /\nRUN {PROBE}; echo data >/file; mkdir /made\n"

EACH_WAY = [("buildah", "crun"), ("buildah", "runc"), ("docker", "")]
ALL = [*EACH_WAY, ("podman", "crun"), ("podman", "runc")]
PLACE = Path("/var/lib/room")


@dataclass
class Hall:
    """The room, its store as seen from here, and what a build may start from."""

    room: Room
    store: Path
    built: int = 0

    def context(self, containerfile: str, architecture: str = "arm64") -> Path:
        """A build's context with busybox of that architecture in `tree`, and a Containerfile."""
        self.built += 1
        inside = PLACE / f"context-{self.built}"
        outside = self.room.outside(inside)
        shutil.copytree(rootfs(f"busybox-{architecture}"), outside / "tree", symlinks=True)
        (outside / "Containerfile").write_text(containerfile)
        self.room.run("chmod", "-R", "a+rX", inside)  # ordinary users build it, too
        return inside

    def without_store(self) -> "Hidden":
        return Hidden(self.store)


class Hidden:
    """While it is entered the store's directory has no list of programs: there is no store."""

    def __init__(self, store: Path) -> None:
        self.ids, self.away = store / "id", store / "away"

    def __enter__(self) -> None:
        self.ids.rename(self.away)

    def __exit__(self, *_: object) -> None:
        self.away.rename(self.ids)


def fill(store: Path, place: Path) -> None:
    """Put the native program and its record into an empty directory."""
    for name in ("id", "test/bin"):
        (store / name).mkdir(parents=True)
    source = place / "native.c"
    source.write_text(NATIVE)
    target = store / "test/bin/probe"
    subprocess.run(["cc", "-static", "-o", target, source], check=True, timeout=60)
    build_id = elf.read(rootfs("busybox-arm64") / "usr/bin/busybox").build_id
    assert build_id
    record = ("maid-native 1", "1probe", "=/dev/.maid/test/bin/probe")
    (store / "id" / build_id).write_bytes(b"".join(each.encode() + b"\0" for each in record))


@pytest.fixture(scope="module")
def hall(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hall]:
    place = tmp_path_factory.mktemp("hall")
    place.parent.chmod(0o755)  # containers of ordinary users pass through
    (place / "room").mkdir()
    fill(place / "state/store", place)
    tree = rootfs("debian-13-engines")
    with engine_room(place / "room", "aarch64", state=place / "state", tree=tree) as room:
        yield Hall(room, place / "state/store")
    shutil.rmtree(place, ignore_errors=True)


@pytest.fixture
def engine(request: pytest.FixtureRequest, hall: Hall) -> Iterator[str]:
    """The name of an engine, which is ready."""
    with hall.room.docker() if request.param == "docker" else contextlib.nullcontext():
        yield request.param


@pytest.mark.parametrize(("engine", "runtime"), ALL, indirect=["engine"])
def test_a_build_is_accelerated_and_the_image_the_same(
    hall: Hall, engine: str, runtime: str
) -> None:
    context = hall.context(CONTAINERFILE)
    said = hall.room.build(engine, context, "localhost/with", runtime=runtime)
    assert "NATIVE\n" in said
    with hall.without_store():
        said = hall.room.build(engine, context, "localhost/without", runtime=runtime)
    assert "EMULATED\n" in said and "NATIVE\n" not in said
    # Silent: nothing but the build's own words, which name the place of this test.
    assert "maid" not in said.replace(str(context), "")
    made = hall.room.contents(engine, "localhost/with")
    assert made == hall.room.contents(engine, "localhost/without")
    assert {"file", "made", "bin", "usr/bin/busybox"} <= made.keys()
    assert not [name for name in made if ".maid" in name]


@pytest.mark.parametrize(("engine", "runtime"), ALL, indirect=["engine"])
def test_own_architecture_is_left_alone(hall: Hall, engine: str, runtime: str) -> None:
    containerfile = "FROM scratch\nCOPY tree /\nRUN test -c /dev/null -a ! -e /dev/.maid\n"
    context = hall.context(containerfile, "amd64" if os.uname().machine == "x86_64" else "arm64")
    platform = "linux/amd64" if os.uname().machine == "x86_64" else "linux/arm64"
    hall.room.build(engine, context, "localhost/own", runtime=runtime, platform=platform)


@pytest.mark.parametrize(("engine", "runtime"), ALL, indirect=["engine"])
def test_the_container_s_environment_switches_it_off(hall: Hall, engine: str, runtime: str) -> None:
    context = hall.context(CONTAINERFILE.replace("RUN", "ENV MAID_ACCELERATE=off\nRUN"))
    said = hall.room.build(engine, context, "localhost/off", runtime=runtime)
    assert "EMULATED\n" in said and "NATIVE\n" not in said


HOSTILE = {
    "/dev is a link": "rm -r dev; mkdir elsewhere; ln -s elsewhere dev",
    "/dev is a link out": "rm -r dev; ln -s ../../../../../../../../var/lib/maid dev",
    "/dev/.maid is a link": "ln -s /etc dev/.maid",
    "a store of its own": f"mkdir -p dev/.maid; cp -a {STORE}/. dev/.maid",
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize(("engine", "runtime"), EACH_WAY, indirect=["engine"])
def test_hostile_images_come_to_what_they_come_to_without_it(
    hall: Hall, engine: str, runtime: str, name: str
) -> None:
    context = hall.context(CONTAINERFILE)
    hall.room.run("sh", "-ec", f'cd "$1/tree"; {HOSTILE[name]}', "sh", context)
    before = sorted(os.listdir(hall.store))

    def built(tag: str) -> Contents | None:
        try:
            hall.room.build(engine, context, tag, runtime=runtime)
        except EngineError:
            return None
        return hall.room.contents(engine, tag)

    accelerated = built("localhost/hostile")
    with hall.without_store():
        assert built("localhost/hostile-without") == accelerated
    assert sorted(os.listdir(hall.store)) == before


@pytest.mark.parametrize("runtime", ["crun", "runc"])
def test_the_hook_serves_where_the_shim_does_not_stand(hall: Hall, runtime: str) -> None:
    """As CRI-O has it: the runtime itself, and hooks from a directory."""
    hooks = hall.room.outside(PLACE / "hooks")
    hooks.mkdir(exist_ok=True)
    installed = "/usr/share/containers/oci/hooks.d/50-maid.json"
    hook = json.loads(hall.room.outside(installed).read_text())
    (hooks / "50-maid.json").write_text(json.dumps(hook | {"when": {"always": True}}))
    path = hall.room.run("sh", "-c", f"command -v {runtime}")
    options = (f"--hooks-dir={PLACE / 'hooks'}",)
    context = hall.context(CONTAINERFILE)
    build = functools.partial(hall.room.build, "buildah", context, runtime=path, options=options)
    said = build("localhost/hook")
    assert "NATIVE\n" in said
    with hall.without_store():
        said = build("localhost/plain")
    assert "EMULATED\n" in said
    assert hall.room.contents("buildah", "localhost/hook") == hall.room.contents(
        "buildah", "localhost/plain"
    )


def test_kubernetes_containers_are_the_hook_s(hall: Hall) -> None:
    """What containers in CRI-O carry matches, and what buildah and podman have does not: they would
    call directories of hooks deprecated at each RUN line."""
    installed = "/usr/share/containers/oci/hooks.d/50-maid.json"
    [(key, _)] = json.loads(hall.room.outside(installed).read_text())["when"]["annotations"].items()
    grep = ("grep", "-cE", key)
    names = (
        "io.kubernetes.container.hash kubernetes.io/config.source io.container.manager run.oci.x"
    )
    told = subprocess.run(grep, input="\n".join(names.split()), stdout=subprocess.PIPE, text=True)
    assert told.stdout == "2\n"


def test_dockerd_without_the_shim_is_not_accelerated(hall: Hall) -> None:
    """The control: in Docker it is the shim's doing."""
    with hall.room.docker(shim=False):
        said = hall.room.build("docker", hall.context(CONTAINERFILE), "localhost/control")
    assert "EMULATED\n" in said and "NATIVE\n" not in said


USER = 1000


@pytest.fixture(scope="module")
def user(hall: Hall) -> list[str]:
    """How an ordinary user of the room starts something: with a home, and ids below theirs."""
    home = PLACE / "user"
    script = f"""
    useradd --uid {USER} --home-dir {home} --create-home ann
    for kind in uid gid; do echo ann:100000:65536 >/etc/sub$kind; done
    mkdir -p /run/user/{USER}; chmod 755 /run/user; chown {USER}:{USER} /run/user/{USER}
    chmod 755 {PLACE}
    """
    hall.room.run("sh", "-ec", script)
    config = hall.room.outside(home / ".config/containers")
    config.mkdir(parents=True)
    (config / "storage.conf").write_text('[storage]\ndriver = "vfs"\n')
    for directory in (config, config.parent):
        os.chown(directory, USER, USER)
    become = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "env"]
    # As Debian's login leaves it: without the directory in which runc lies.
    return [*become, f"HOME={home}", f"XDG_RUNTIME_DIR=/run/user/{USER}", "PATH=/usr/bin:/bin"]


@pytest.mark.parametrize("runtime", ["crun", "runc"])
@pytest.mark.parametrize("engine", ["buildah", "podman"])
def test_ordinary_users_builds_are_accelerated(
    hall: Hall, user: list[str], engine: str, runtime: str
) -> None:
    context = hall.context(CONTAINERFILE)
    chosen = f"--runtime={runtime}"
    build = [engine, "build", chosen] if engine == "buildah" else [engine, chosen, "build"]
    options = ("--isolation=oci", "--platform=linux/arm64", "--network=none", "--no-cache")
    command = (*user, *build, *options, "--tag=own", context)
    said = hall.room.run("sh", "-c", 'cd /; exec "$@" 2>&1', "sh", *command)
    assert "NATIVE\n" in said
    with hall.without_store():
        assert "EMULATED\n" in hall.room.run("sh", "-c", 'cd /; exec "$@" 2>&1', "sh", *command)


@pytest.mark.parametrize("runtime", ["crun", "runc"])
def test_podman_runs_accelerated_containers_which_outlive_maid(hall: Hall, runtime: str) -> None:
    hall.room.build("podman", hall.context(CONTAINERFILE), "localhost/run", runtime=runtime)
    podman = ("podman", f"--runtime={runtime}")
    options = ("--network=none", "--platform=linux/arm64")
    run = hall.room.run(*podman, "run", "--rm", *options, "localhost/run", "busybox", "probe")
    assert run == "NATIVE"
    command = ("sh", "-c", PROBE)
    hall.room.run(*podman, "create", "--name=later", *options, "localhost/run", *command)
    assert hall.room.run(*podman, "start", "--attach", "later") == "NATIVE"
    # maid is removed: podman finds the runtime itself, and the container is as it ever was.
    shims = hall.room.outside("/usr/libexec/maid")
    shims.rename(shims.with_name("away"))
    try:
        assert hall.room.run(*podman, "start", "--attach", "later") == "EMULATED"
    finally:
        shims.with_name("away").rename(shims)
    hall.room.run(*podman, "rm", "later")


def test_chroots_that_bind_the_whole_dev_are_accelerated(hall: Hall) -> None:
    """With the store at the machine's own /dev/.maid, as dev-.maid.mount has it."""
    context = hall.context(CONTAINERFILE)
    script = f'mkdir -p /dev/.maid; mount -o bind,ro,nosuid,nodev {STORE} /dev/.maid; exec "$@"'
    entered = ("unshare", "--mount", "sh", "-ec", script, "sh")
    tree = context / "tree"
    inside = f"mount --rbind /dev {tree}/dev; exec chroot {tree} sh -c '{PROBE}'"
    try:
        assert hall.room.run(*entered, "sh", "-ec", inside) == "NATIVE"
        build = ("buildah", "build", "--isolation=chroot", "--platform=linux/arm64", "--no-cache")
        said = hall.room.run(*entered, *build, "--network=host", "--tag=localhost/chroot", context)
        assert "NATIVE\n" in said
    finally:
        hall.room.run("rmdir", "/dev/.maid", check=False)
    assert not [
        name for name in hall.room.contents("buildah", "localhost/chroot") if ".maid" in name
    ]


def test_docker_run_with_the_shim_as_a_runtime_is_accelerated(hall: Hall) -> None:
    """daemon.json as docs/engines.md has it; with --init the first program is the machine's own."""
    settings = hall.room.outside("/etc/docker/daemon.json")
    settings.parent.mkdir(exist_ok=True)
    settings.write_text('{"runtimes": {"maid": {"path": "/usr/bin/maid-runtime"}}}')
    options = ("--rm", "--network=none", "--cgroupns=host", "--platform=linux/arm64")
    run = ("docker", "run", *options)
    command = ("localhost/run", "sh", "-c", PROBE)
    try:
        with hall.room.docker():
            hall.room.build("docker", hall.context(CONTAINERFILE), "localhost/run")
            assert hall.room.run(*run, "--runtime=maid", *command) == "NATIVE"
            assert hall.room.run(*run, "--runtime=maid", "--init", *command) == "NATIVE"
            off = ("--runtime=maid", "--env=MAID_ACCELERATE=no")
            assert hall.room.run(*run, *off, *command) == "EMULATED"
            assert hall.room.run(*run, *command) == "EMULATED"
    finally:
        settings.unlink()


def test_the_machine_s_own_buildah_takes_the_first_runtime_that_is_there(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Debian 12's 1.28 where this runs on that: a list whose first path is a link to the shim, and
    one whose first path is gone, as after the removal of maid."""
    if shutil.which("buildah") is None or shutil.which("crun") is None:
        pytest.skip("there is no buildah, or no crun")
    place = tmp_path_factory.mktemp("own")  # short: the kernel takes 127 bytes for an interpreter
    fill(place / "state/store", place)
    (place / "crun").symlink_to(native.path("maid-runtime"))
    (place / "room").mkdir()
    with engine_room(place / "room", "aarch64", state=place / "state") as room:
        settings = place / "room/containers.conf"
        text = settings.read_text()
        container = room.run("buildah", "from", "--arch", "arm64", "scratch")
        room.run("buildah", "copy", container, rootfs("busybox-arm64"), "/")
        run = ("buildah", "run", "--isolation=oci", "--runtime=crun", container, "sh", "-c", PROBE)
        for first, expected in ((place / "crun", "NATIVE"), (place / "gone", "EMULATED")):
            settings.write_text(f'{text}[engine.runtimes]\ncrun = ["{first}", "/usr/bin/crun"]\n')
            assert room.run(*run, env={"MAID_STORE": f"{place}/state/store"}) == expected
