"""The private scope for an ordinary user: as for root, in a namespace of one's own."""

from __future__ import annotations

import json
import os
import pwd
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemons import MAID, environment, rootfs
from serving import FEW, Serving
from stepping import copy
from test_steps_store import ID, record, writing

USER = pwd.getpwnam("daemon")
AS_USER = [
    *("env", "PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "setpriv"),
    *(f"--reuid={USER.pw_uid}", f"--regid={USER.pw_gid}", "--clear-groups"),
]


class Rootless(Serving):
    """A daemon that only its own user is somebody to: the machine's root is not mapped there."""

    def answers(self) -> bool:
        return as_user("--socket", self.socket, "status").returncode == 0


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    state = tmp_path_factory.mktemp("state")
    os.chown(state, USER.pw_uid, USER.pw_gid)
    for parent in (state, *state.parents[:3]):
        if parent != Path("/tmp"):
            parent.chmod(0o755)
    with Rootless(FEW, prelude=AS_USER, uid=USER.pw_uid, state=str(state)) as made:
        made.start()
        yield made


def as_user(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*AS_USER, MAID, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment(),
        check=False,
    )


def test_it_is_ready_and_the_user_alone_may_use_it(daemon: Serving) -> None:
    found = os.stat(daemon.socket)
    assert (found.st_uid, stat.S_IMODE(found.st_mode)) == (USER.pw_uid, 0o600)
    done = as_user("--socket", daemon.socket, "status")
    assert done.returncode == 0, done.stderr
    assert "private scope" in done.stdout
    assert as_user("--socket", daemon.socket, "reload").returncode == 0


def test_the_user_can_read_the_served_table(daemon: Serving) -> None:
    """It is mounted in the daemon's own mount namespace: the status leads there."""
    status = json.loads(as_user("--socket", daemon.socket, "status", "--json").stdout)
    done = subprocess.run(
        [*AS_USER, "cat", f"{status['instance']}/qemu-aarch64"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.startswith("enabled\n"), done.stderr


def test_it_leaves_no_helper_behind(daemon: Serving) -> None:
    """One writes the maps from outside the namespace, and ends; the table's guard stays."""
    children = Path(f"/proc/{daemon.pid}/task/{daemon.pid}/children").read_text().split()
    names = [Path(f"/proc/{child}/comm").read_text().strip() for child in children]
    assert names == ["maid-guard"]


def test_its_steps_have_the_native_store_of_the_users_own(daemon: Serving) -> None:
    """In a user namespace mounts cannot be had as freely; and what is counted is the step's."""
    tree = copy(rootfs("busybox-arm64"), daemon.directory / "tree", USER.pw_uid)
    status = json.loads(as_user("--socket", daemon.socket, "status", "--json").stdout)
    own = os.stat(status["store"]["path"])
    script = f"stat -c '%d %i' /dev/.maid; grep ' /dev/.maid ' /proc/mounts; {writing(record('n'))}"
    done = as_user(
        *("--socket", daemon.socket, "run", "--json", "--rootfs", tree),
        *("--", "/bin/sh", "-c", script),
    )
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert lines[0] == f"{own.st_dev} {own.st_ino}"
    assert {"ro", "nosuid", "nodev"} <= set(lines[1].split()[3].split(","))
    assert json.loads(done.stdout)["native"] == {ID: 1}
