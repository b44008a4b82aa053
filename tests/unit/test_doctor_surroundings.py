"""maid.doctor on what surrounds it: containers, WSL, security modules, the environment."""

import pytest
from doctoring import (
    NO_TABLE,
    OWN_PROGRAMS,
    PRIVATE,
    Made,
    Trouble,
    entry,
    mounted,
    on,
    see,
    several,
)

from maid.doctor import (
    surroundings,
)

TROUBLES = [
    # Surroundings
    Trouble(
        "docker without the table",
        surroundings.container,
        "warning",
        "docker container without the machine's table",
        "run maid on the machine itself",
        several(lambda made: made.write("/.dockerenv", ""), mounted("", NO_TABLE)),
    ),
    Trouble(
        "podman with the table",
        surroundings.container,
        "note",
        "podman container: what is registered here is the machine's",
        "on the machine itself",
        lambda made: made.write("/run/.containerenv", ""),
    ),
    Trouble(
        "nspawn, table read-only",
        surroundings.container,
        "warning",
        "systemd-nspawn container with the table read-only",
        "--private-users",
        several(
            lambda made: made.write("/run/systemd/container", "systemd-nspawn\n"),
            mounted("30 22 0:40 / /proc/sys/fs/binfmt_misc ro - binfmt_misc none rw", NO_TABLE),
        ),
    ),
    Trouble(
        "kubernetes",
        surroundings.container,
        "note",
        "kubernetes container",
        "on the nodes",
        place=on(environ={"KUBERNETES_SERVICE_HOST": "10.0.0.1"}),
    ),
    Trouble(
        "lxc",
        surroundings.container,
        "note",
        "lxc container",
        "on the machine itself",
        place=on(environ={"container": "lxc"}),
    ),
    Trouble(
        "OpenVZ",
        surroundings.container,
        "note",
        "openvz container",
        "virtual machine",
        lambda made: made.write("/proc/vz/veinfo", ""),
    ),
    Trouble(
        "a private scope in docker",
        surroundings.container,
        "note",
        "private scope needs unshare and mount",
        "seccomp=unconfined",
        lambda made: made.write("/.dockerenv", ""),
        scope=PRIVATE,
    ),
    Trouble(
        "WSL 1",
        surroundings.wsl,
        "problem",
        "WSL 1",
        "wsl --set-version",
        place=on(release="4.4.0-19041-Microsoft"),
    ),
    Trouble(
        "WSL 2 without interop",
        surroundings.wsl,
        "warning",
        "WSLInterop is gone",
        ":WSLInterop:M::MZ::/init:PF",
        place=on(release="5.15.90.1-microsoft-standard-WSL2"),
    ),
    Trouble(
        "WSL 2 with systemd",
        surroundings.wsl,
        "note",
        "a restart of systemd-binfmt removes WSLInterop",
        "/etc/binfmt.d/WSLInterop.conf",
        entry("WSLInterop", interpreter="/init", flags="PF", magic="4d5a", mask=""),
        place=on(release="6.6.36.3-microsoft-standard-WSL2"),
    ),
    Trouble(
        "Rosetta serves",
        surroundings.rosetta,
        "note",
        "rosetta runs amd64 by Rosetta",
        "prefer",
        entry(
            "rosetta",
            interpreter="/mnt/lima-rosetta/rosetta",
            magic=OWN_PROGRAMS.magic.hex(),
            mask=OWN_PROGRAMS.mask.hex(),
        ),
        place=on(machine="aarch64"),
    ),
    Trouble(
        "Rosetta is there",
        surroundings.rosetta,
        "note",
        "/media/rosetta/rosetta is there",
        "",
        lambda made: made.program("/media/rosetta/rosetta"),
        place=on(machine="aarch64"),
    ),
    Trouble(
        "QEMU's variables",
        surroundings.environment,
        "warning",
        "QEMU_CPU, QEMU_STRACE is set",
        "unset QEMU_CPU QEMU_STRACE",
        place=on(environ={"QEMU_STRACE": "1", "QEMU_CPU": "max"}),
    ),
    Trouble(
        "docker's old builder",
        surroundings.environment,
        "warning",
        "wrong architecture without a word",
        "unset DOCKER_BUILDKIT",
        place=on(environ={"DOCKER_BUILDKIT": "0"}),
    ),
    Trouble(
        "docker's default platform",
        surroundings.environment,
        "note",
        "DOCKER_DEFAULT_PLATFORM is linux/amd64",
        "unset",
        place=on(environ={"DOCKER_DEFAULT_PLATFORM": "linux/amd64"}),
    ),
]


@pytest.mark.parametrize("trouble", TROUBLES, ids=lambda trouble: trouble.name)
def test_each_trouble_is_seen(made: Made, trouble: Trouble) -> None:
    see(made, trouble)
