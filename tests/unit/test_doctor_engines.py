"""maid.doctor on other people's engines: which one is covered, and what to do where it is not."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from doctoring import Made, found

from maid.config import Acceleration, Config, Paths, Scope
from maid.doctor import engines
from maid.settings import Accelerate

UNITS = Path(__file__).resolve().parents[2] / "units"
DROP_IN = "/usr/lib/systemd/system/docker.service.d/10-maid.conf"
ENVIRON = "/proc/77/environ"
SHIM = b"PATH=/bin\0DOCKER_BUILDKIT_RUNC_COMMAND=/usr/bin/maid-runtime\0"


@pytest.fixture
def made(tmp_path: Path) -> Made:
    """A machine with every engine, as scripts/install leaves it, and Docker running."""
    made = Made(tmp_path)
    for name in ("podman", "buildah", "containerd", "buildkitd", "crio"):
        made.program(f"/usr/bin/{name}")
    made.write("/usr/sbin/dockerd", "…DOCKER_BUILDKIT_RUNC_COMMAND…", 0o755)
    for name in ("bin/maid-runtime", "libexec/maid/crun", "libexec/maid/runc"):
        made.program(f"/usr/{name}")
    made.program("/usr/libexec/maid/maid-hook")
    for source, target in {
        "containers.conf.d/50-maid.conf": "/etc/containers/containers.conf.d/50-maid.conf",
        "hooks.d/50-maid.json": "/usr/share/containers/oci/hooks.d/50-maid.json",
        "docker.service.d/10-maid.conf": DROP_IN,
    }.items():
        made.write(target, (UNITS / source).read_text())
    made.write("/run/systemd/system/.keep", "")
    made.write("/run/docker.pid", "77")
    made.write(ENVIRON, SHIM)
    made.write("/etc/containerd/config.toml", 'BinaryName = "/usr/bin/maid-runtime"\n')
    made.write("/etc/buildkit/buildkitd.toml", '[worker.oci]\nbinary = "/usr/bin/maid-runtime"\n')
    (made.root / "var/lib/maid").mkdir(parents=True)
    (made.root / "dev/.maid").mkdir(parents=True)
    # A link stands in for the bind mount: the same device and inode.
    (made.root / "var/lib/maid/store").symlink_to(made.root / "dev/.maid")
    return made


def said(made: Made, config: Config | None = None, scope: Scope = Scope.HOST) -> str:
    return found(engines.engines, made.place(), scope, config)


def test_all_are_covered_as_installed(made: Made) -> None:
    lines = said(made).splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "ok podman and buildah",
        "ok docker",
        "ok containerd",
        "ok buildkitd",
        "ok cri-o",
        "ok chroots",
    ]


@dataclass(frozen=True)
class Lack:
    name: str
    says: str
    todo: str
    change: Callable[[Made], object]


OWN = "/etc/containers/containers.conf"
LACKS = [
    Lack(
        "no settings for podman",
        "note podman and buildah: /etc/containers/containers.conf.d/50-maid.conf is not there",
        "scripts/install",
        lambda made: made.remove(f"{OWN}.d/50-maid.conf"),
    ),
    Lack(
        "the shim for podman is gone",
        "warning podman and buildah: /usr/libexec/maid/crun is not there",
        "scripts/install",
        lambda made: made.remove("/usr/libexec/maid/crun"),
    ),
    Lack(
        "an administrator's runtimes",
        "note podman and buildah: /etc/containers/containers.conf names the runtimes",
        "put /usr/libexec/maid/crun first",
        lambda made: made.write(OWN, '[engine.runtimes]\ncrun = ["/opt/crun"]\n'),
    ),
    Lack(
        "an old Docker",
        "note docker: /usr/sbin/dockerd does not know DOCKER_BUILDKIT_RUNC_COMMAND",
        "a newer Docker",
        lambda made: made.write("/usr/sbin/dockerd", "20.10", 0o755),
    ),
    Lack(
        "an empty dockerd",
        "note docker: /usr/sbin/dockerd does not know",
        "a newer Docker",
        lambda made: made.write("/usr/sbin/dockerd", "", 0o755),
    ),
    Lack(
        "Docker not restarted",
        "note docker: dockerd was started before maid-runtime was there",
        "systemctl restart docker",
        lambda made: made.write(ENVIRON, b"PATH=/bin\0"),
    ),
    Lack(
        "no drop-in",
        "note docker: dockerd is not told to start maid-runtime",
        "scripts/install",
        lambda made: (made.remove("/run/docker.pid"), made.remove(DROP_IN)),
    ),
    Lack(
        "no drop-in and no systemd",
        "note docker: dockerd is not told to start maid-runtime",
        "start dockerd with DOCKER_BUILDKIT_RUNC_COMMAND=/usr/bin/maid-runtime",
        lambda made: (
            made.remove("/run/docker.pid"),
            made.remove(DROP_IN),
            made.remove("/run/systemd/system/.keep"),
            made.remove("/run/systemd/system"),
        ),
    ),
    Lack(
        "another runtime for Docker",
        "note docker: dockerd was told to start /opt/runc",
        "MAID_RUNTIME=/opt/runc",
        lambda made: made.write(ENVIRON, b"DOCKER_BUILDKIT_RUNC_COMMAND=/opt/runc\0"),
    ),
    Lack(
        "Docker's shim is gone",
        "warning docker: dockerd starts /usr/bin/maid-runtime, which is not there: builds fail",
        "scripts/install",
        lambda made: made.remove("/usr/bin/maid-runtime"),
    ),
    Lack(
        "containerd as it comes",
        "note containerd: /etc/containerd/config.toml does not name maid-runtime",
        'BinaryName = "/usr/bin/maid-runtime"',
        lambda made: made.write("/etc/containerd/config.toml", "version = 2\n"),
    ),
    Lack(
        "buildkitd as it comes",
        "note buildkitd: /etc/buildkit/buildkitd.toml does not name maid-runtime",
        '[worker.oci] binary = "/usr/bin/maid-runtime"',
        lambda made: made.remove("/etc/buildkit/buildkitd.toml"),
    ),
    Lack(
        "no hook for CRI-O",
        "note cri-o: its hook is not there",
        "scripts/install",
        lambda made: made.remove("/usr/share/containers/oci/hooks.d/50-maid.json"),
    ),
    Lack(
        "the hook's program is gone",
        "warning cri-o: its hook /usr/libexec/maid/maid-hook is not there: containers fail",
        "scripts/install",
        lambda made: made.remove("/usr/libexec/maid/maid-hook"),
    ),
    Lack(
        "the store is not mounted",
        "note chroots: /dev/.maid is not the store",
        "systemctl start dev-.maid.mount",
        lambda made: (made.remove("/var/lib/maid/store"), made.write("/var/lib/maid/store/x", "")),
    ),
]


@pytest.mark.parametrize("lack", LACKS, ids=lambda each: each.name)
def test_what_is_lacking_is_said_with_what_to_do(made: Made, lack: Lack) -> None:
    lack.change(made)
    [line] = [each for each in said(made).splitlines() if each.startswith(lack.says)]
    assert lack.todo in line.split(" -> ")[1]


def test_an_administrator_s_list_may_have_the_shim(made: Made) -> None:
    made.write(OWN, '[engine.runtimes]\ncrun = ["/usr/libexec/maid/crun", "/opt/crun"]\n')
    assert "ok podman and buildah" in said(made)


def test_docker_s_own_containerd_is_not_spoken_of(made: Made) -> None:
    made.remove("/etc/containerd/config.toml")
    assert "containerd" not in said(made)


def test_a_docker_that_does_not_run_will_be_covered(made: Made) -> None:
    made.remove("/run/docker.pid")
    assert "ok docker: foreign builds will be accelerated" in said(made)


def test_engines_that_are_not_there_are_not_spoken_of(tmp_path: Path) -> None:
    assert said(Made(tmp_path)) == ""


def test_nothing_is_said_where_acceleration_is_off(made: Made) -> None:
    off = Config(acceleration=Acceleration(accelerate=Accelerate.OFF))
    assert said(made, off) == said(made, scope=Scope.PRIVATE) == ""


def test_a_store_elsewhere_is_not_found_by_hook_and_shim(made: Made) -> None:
    lines = said(made, Config(paths=Paths(state=Path("/srv/maid"))))
    assert "warning engines: hook and shim look for the store in /var/lib/maid" in lines
