"""maid.doctor on services: maid's own, and those of others that use the table."""

from pathlib import Path

import pytest
from doctoring import OWN, PRIVATE, SUPPORT, USER, Made, Trouble, conf, see, several

from maid.config import Config, Socket
from maid.doctor import (
    services,
)

TROUBLES = [
    # Services
    Trouble(
        "no systemd",
        services.maid_units,
        "note",
        "systemd is not this system's init",
        "maid daemon",
        several(
            lambda made: made.remove("/run/systemd/system/.keep"),
            lambda made: made.remove("/run/systemd/system"),
        ),
    ),
    Trouble(
        "service not installed",
        services.maid_units,
        "problem",
        "not installed",
        "scripts/install",
        lambda made: made.remove("/etc/systemd/system/maid.service"),
    ),
    Trouble(
        "service masked",
        services.maid_units,
        "problem",
        "masked",
        "systemctl unmask maid",
        lambda made: made.link("/etc/systemd/system/maid.service", "/dev/null"),
    ),
    Trouble(
        "service not enabled",
        services.maid_units,
        "warning",
        "not enabled: after a reboot",
        "systemctl enable --now maid",
        lambda made: made.remove("/etc/systemd/system/multi-user.target.wants/maid.service"),
    ),
    Trouble(
        "service does not run",
        services.maid_units,
        "problem",
        "does not run",
        "journalctl -u maid",
        lambda made: made.remove("/run/systemd/units/invocation:maid.service"),
    ),
    Trouble(
        "systemd-binfmt registers emulators",
        services.systemd_binfmt,
        "note",
        "it registers 1 emulators from /usr/lib/binfmt.d at boot",
        "systemctl mask --now systemd-binfmt",
        conf,
    ),
    Trouble(
        "systemd-binfmt's are adopted",
        services.systemd_binfmt,
        "note",
        "maid adopts those that work, and its CPU models do not apply",
        "prefer",
        conf,
    ),
    Trouble(
        "systemd-binfmt's come after maid's",
        services.systemd_binfmt,
        "note",
        "maid's go before them",
        "",
        conf,
        config=OWN,
    ),
    Trouble(
        "systemd-binfmt without F",
        services.systemd_binfmt,
        "warning",
        "qemu-aarch64 is registered without flag F",
        "static package",
        lambda made: conf(made, flags="OC"),
    ),
    Trouble(
        "binfmt-support and systemd-binfmt",
        services.binfmt_support,
        "warning",
        "both register emulators",
        "systemctl disable --now binfmt-support",
        several(conf, lambda made: made.link(SUPPORT, "x")),
    ),
    Trouble(
        "binfmt-support",
        services.binfmt_support,
        "note",
        "it registers 2 emulators",
        "update-binfmts --disable",
        several(
            lambda made: made.link("/etc/rc2.d/S01binfmt-support", "x"),
            lambda made: made.write("/var/lib/binfmts/qemu-arm", ""),
            lambda made: made.write("/var/lib/binfmts/qemu-aarch64", ""),
            lambda made: made.write("/var/lib/binfmts/jar", ""),
        ),
    ),
    Trouble(
        "a job that resets",
        services.installers,
        "note",
        "/etc/cron.d/qemu runs a container that removes entries of others (--reset)",
        "not needed",
        lambda made: made.write(
            "/etc/cron.d/qemu",
            "@reboot root docker run --privileged multiarch/qemu-user-static --reset -p yes\n",
        ),
    ),
    Trouble(
        "a unit that installs",
        services.installers,
        "note",
        "/etc/systemd/system/binfmt.service runs a container that registers emulators",
        "not needed",
        lambda made: made.write(
            "/etc/systemd/system/binfmt.service",
            "[Service]\nExecStart=docker run --privileged tonistiigi/binfmt --install all\n",
        ),
    ),
    Trouble(
        "no socket",
        services.socket,
        "warning",
        "/run/maid/io.maid is not there",
        "systemctl enable --now maid",
        lambda made: made.remove("/run/maid/io.maid"),
    ),
    Trouble(
        "no private socket",
        services.socket,
        "note",
        "is not there",
        "maid daemon --scope private",
        scope=PRIVATE,
        config=Config(socket=Socket(path=Path("/run/maid/private/io.maid"))),
    ),
    Trouble(
        "no socket where one was asked",
        services.socket,
        "note",
        "/tmp/mine is not there",
        "maid daemon --scope private --socket /tmp/mine",
        scope=PRIVATE,
        config=Config(socket=Socket(path=Path("/tmp/mine"))),
    ),
    Trouble(
        "no socket but a file",
        services.socket,
        "problem",
        "is no socket",
        "remove it",
        lambda made: made.write("/run/maid/io.maid", ""),
    ),
    Trouble(
        "nobody listens",
        services.socket,
        "warning",
        "nobody listens",
        "journalctl -u maid",
        lambda made: made.write("/proc/self/net/unix", "Num\n"),
    ),
    Trouble(
        "no group",
        services.group,
        "warning",
        "there is no group maid",
        "systemd-sysusers",
        lambda made: made.write("/etc/group", "root:x:0:\n"),
    ),
    Trouble(
        "not a member",
        services.group,
        "note",
        "you are not a member",
        "usermod -aG maid ann",
        place=USER,
    ),
    Trouble(
        "an older session",
        services.group,
        "warning",
        "this session is older",
        "log in again",
        lambda made: made.write("/etc/group", "maid:x:990:ben,ann\n"),
        place=USER,
    ),
]


@pytest.mark.parametrize("trouble", TROUBLES, ids=lambda trouble: trouble.name)
def test_each_trouble_is_seen(made: Made, trouble: Trouble) -> None:
    see(made, trouble)
