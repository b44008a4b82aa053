"""Where builds run: for root and for others, with an OCI runtime and without, accelerated or not;
and that the machine's own table and storage have no part in it."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import places
import pytest
from building import Builds, pushing
from daemons import MAID, Daemon, environment
from places import Place
from registry import Registry

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "engines"))

from test_accelerated import PROBE, fill

NOBODY = pwd.getpwnam("nobody")

WITHOUT = """
import sys
from maid.images import surroundings
surroundings.find_runtime = lambda: surroundings.Runtime({runtime})
from maid.cli.app import main
main()
"""
"""maid on a machine that has this OCI runtime only, or none."""


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory, registry: Registry) -> Iterator[Builds]:
    """Builds with a store in which a program stands in for the foreign busybox (`fill`)."""
    state = tmp_path_factory.mktemp("state")
    fill(state / "store", state)
    with (
        Daemon(places.SETTINGS, state=str(state)) as daemon,
        places.making(daemon.start(), registry.address) as place,
    ):
        yield Builds(place, registry, place.directory / "build")


def commands(runtime: str) -> tuple[str | Path, ...]:
    """maid with an OCI runtime: "crun", the first choice, "runc" or "" for none."""
    if runtime == "crun":
        return (MAID,)
    path = {"runc": '"runc", "/usr/sbin/runc"', "": ""}[runtime]
    return sys.executable, "-c", WITHOUT.format(runtime=path)


@pytest.mark.parametrize("runtime", ["crun", "runc", ""])
def test_foreign_steps_are_accelerated_and_images_have_no_trace_of_it(
    quick: Builds, busybox: str, runtime: str
) -> None:
    """With each isolation, and the same image comes of it with and without."""
    context = quick.place.context(
        f"FROM {busybox}\nRUN {PROBE}; echo data >/file; mkdir /made; ls -A /dev >/devices\n"
    )
    made = []
    for option in ("--accelerate", "--no-accelerate"):
        done = quick.place.run(
            *(*commands(runtime), "build", "--root", quick.root, "--no-cache", option),
            *(*pushing(quick.registry, "rooms/both", "linux/arm64", "linux/amd64"), context),
        )
        natively = "NATIVE" if option == "--accelerate" else "EMULATED"
        assert f"[linux/arm64] {natively}\n" in done.stderr
        assert "[linux/amd64] EMULATED\n" in done.stderr
        assert "maid-runtime" not in done.stderr
        for platform, digest in quick.images("rooms/both").items():
            devices = quick.read("rooms/both", "devices", digest).split()
            if runtime:
                is_wanted = platform == "linux/arm64" and option == "--accelerate"
                assert (".maid" in devices) == is_wanted
            files = quick.files("rooms/both", digest)
            assert not [path for path in files if ".maid" in path]
            made.append((platform, sorted(files), quick.read("rooms/both", "file", digest)))
    assert made[:2] == made[2:]
    for below in ("/dev/.maid", "/sys/fs/cgroup/devices/buildah*"):
        assert not list(Path("/").glob(below.lstrip("/"))), below


def test_the_json_says_where_it_ran(quick: Builds, busybox: str) -> None:
    context = quick.place.context(f"FROM {busybox}\nRUN true\n")
    result = quick.push(context, "rooms/json", "linux/arm64", "linux/amd64")
    assert (result["isolation"], result["runtime"]) == ("oci", "crun")
    arm64, amd64 = result["platforms"]
    assert arm64["native"] is False and amd64["native"] is True
    assert "this machine's own" in amd64["not_accelerated"]


def test_a_room_ends_with_who_made_it(quick: Builds, busybox: str) -> None:
    """Steps are in a user namespace of their own, without the machine's processes and devices."""
    context = quick.place.context(
        f"FROM {busybox}\nRUN ps >/processes; mknod /node b 7 0 2>/refused || :;"
        " cat /proc/self/uid_map >/ids\n"
    )
    quick.push(context, "rooms/inside", "linux/arm64")
    assert len(quick.read("rooms/inside", "processes").splitlines()) <= 4
    assert "not permitted" in quick.read("rooms/inside", "refused")
    assert quick.read("rooms/inside", "ids").split()[2] == str((1 << 32) - 2)


def test_an_ordinary_user_builds(registry: Registry, busybox: str, tmp_path: Path) -> None:
    """With a private daemon of their own, and nothing of root's."""
    state = tmp_path / "state"
    state.mkdir()
    for path in (tmp_path, *tmp_path.parents[:3]):
        if path != Path("/tmp"):
            path.chmod(0o755)
    os.chown(state, NOBODY.pw_uid, NOBODY.pw_gid)
    become = (
        *("setpriv", f"--reuid={NOBODY.pw_uid}", f"--regid={NOBODY.pw_gid}"),
        *("--clear-groups", "--"),
    )
    with Daemon(places.SETTINGS, prelude=become, uid=NOBODY.pw_uid, state=str(state)) as daemon:
        daemon.start()
        home = daemon.directory / "home"
        place = home / ".config/containers"
        place.mkdir(parents=True)
        (place / "policy.json").write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
        (place / "registries.conf").write_text(
            f'[[registry]]\nlocation = "{registry.address}"\ninsecure = true\n'
        )
        (home / "auth.json").write_text("{}")
        (home / "Containerfile").write_text(f"FROM {busybox}\nRUN uname -m >/machine; id -u\n")
        subprocess.run(["chown", "-R", f"{NOBODY.pw_uid}:{NOBODY.pw_gid}", home], check=True)
        done = subprocess.run(
            [
                *(*become, MAID, "--socket", daemon.socket, "build", "."),
                *pushing(registry, "rooms/user", "linux/arm64", "linux/amd64"),
            ],
            env=environment() | {"HOME": str(home), "REGISTRY_AUTH_FILE": str(home / "auth.json")},
            cwd=home,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        assert "[linux/arm64] 0\n" in done.stderr
        builds = Builds(Place.__new__(Place), registry, home / ".local/share/maid/build")
        machines = {
            platform: builds.read("rooms/user", "machine", digest).strip()
            for platform, digest in builds.images("rooms/user").items()
        }
        assert machines == {"linux/arm64": "aarch64", "linux/amd64": "x86_64"}
        assert not (home / ".local/share/containers/storage").exists()


def test_the_machine_s_own_table_is_left_alone(quick: Builds, busybox: str) -> None:
    table = Path("/proc/sys/fs/binfmt_misc")

    def entries() -> list[tuple[str, str]]:
        return [
            (each.name, each.read_text())
            for each in sorted(table.glob("*"))
            if each.name != "register"
        ]

    before = entries()
    context = quick.place.context(f"FROM {busybox}\nRUN true\n")
    quick.push(context, "rooms/table", "linux/arm64")
    assert entries() == before
