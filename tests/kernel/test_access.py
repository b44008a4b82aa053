"""Who may do what over the socket (design.md, Access).

Root everything; members of the group ask and run steps; nobody else anything.
"""

from __future__ import annotations

import contextlib
import grp
import json
import os
import pwd
import socket
import stat
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from daemons import until
from serving import FEW, Serving, message, read_message

from maid.service.access import Role, identify

GROUP = "users"
GID = grp.getgrnam(GROUP).gr_gid
SOMEBODY = pwd.getpwnam("daemon")
CONFIG = f'{FEW}\n[socket]\ngroup = "{GROUP}"\nmax_connections_per_uid = 8\n'
ADMIN_ONLY = ["io.maid.Manager.Release", "io.maid.Manager.Reload", "io.maid.Manager.Diagnose"]


@pytest.fixture(scope="module")
def daemon() -> Iterator[Serving]:
    with Serving(CONFIG) as made:
        made.start()
        yield made


def as_user(
    work: Callable[[], Any],
    *,
    uid: int = SOMEBODY.pw_uid,
    gid: int = SOMEBODY.pw_gid,
    groups: Any = (),
) -> Any:
    """What `work` returns (JSON) in a process of another user; its OSError's name if it fails."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        result: Any = None
        with contextlib.suppress(BaseException):
            try:
                os.setgroups(list(groups))
                os.setresgid(gid, gid, gid)
                os.setresuid(uid, uid, uid)
                result = work()
            except OSError as error:
                result = type(error).__name__
            except EOFError:
                result = "closed"
            os.write(writing, json.dumps(result).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as file:
        text = file.read()
    os.waitpid(child, 0)
    return json.loads(text)


def test_the_socket_is_the_groups(daemon: Serving) -> None:
    found = os.stat(daemon.socket)
    assert (found.st_uid, found.st_gid) == (0, GID)
    assert stat.S_IMODE(found.st_mode) == 0o660


def test_without_the_group_the_socket_is_its_owners_alone() -> None:
    with Serving(f'{FEW}\n[socket]\ngroup = "no-such-group"\n') as daemon:
        daemon.start()
        assert stat.S_IMODE(os.stat(daemon.socket).st_mode) == 0o600
        assert "there is no group no-such-group" in daemon.text()


@pytest.mark.parametrize(
    ("gid", "groups"),
    [(GID, ()), (SOMEBODY.pw_gid, (GID,)), (SOMEBODY.pw_gid, (*range(30_000, 30_400), GID))],
    ids=["by their own group", "by a supplementary group", "by one of very many"],
)
def test_members_may_ask(daemon: Serving, gid: int, groups: tuple[int, ...]) -> None:
    def work() -> Any:
        return [
            daemon.call("io.maid.Manager.Status"),
            daemon.call("io.maid.Emulation.Ensure", platforms=["linux/arm64"]),
            daemon.call("io.maid.Emulation.List"),
            daemon.call("io.maid.Manager.Metrics"),
            daemon.call("io.maid.Steps.List"),
        ]

    replies = as_user(work, gid=gid, groups=groups)
    assert [sorted(reply) for reply in replies] == [["parameters"]] * 5
    assert replies[1]["parameters"]["results"][0]["ok"]


@pytest.mark.parametrize("method", ADMIN_ONLY)
def test_members_may_not_change_the_daemon(daemon: Serving, method: str) -> None:
    reply = as_user(lambda: daemon.call(method), groups=[GID])
    assert reply == {"error": "org.varlink.service.PermissionDenied"}


@pytest.mark.parametrize("method", ADMIN_ONLY)
def test_root_may(method: str) -> None:
    with Serving() as daemon:
        daemon.start()
        assert "error" not in daemon.call(method)


def test_others_cannot_connect(daemon: Serving) -> None:
    assert as_user(lambda: daemon.call("io.maid.Manager.Status")) == "PermissionError"


def test_others_who_got_a_connection_all_the_same_are_refused(daemon: Serving) -> None:
    """The mode of the file is not all there is: who passes it is looked at."""
    os.chmod(daemon.socket, 0o666)
    try:
        found = as_user(lambda: daemon.call("io.maid.Manager.Status"))
    finally:
        os.chmod(daemon.socket, 0o660)
    assert found in ("closed", "ConnectionResetError", "BrokenPipeError")
    assert until(lambda: f"user {SOMEBODY.pw_uid} " in daemon.text())
    assert f"not in the group {GROUP}" in daemon.text()


def test_a_connection_counts_for_who_made_it(daemon: Serving) -> None:
    """Credentials are those of connect(2): who is handed a connection of root's is root there."""
    with daemon.connect() as connection:

        def work() -> Any:
            connection.sendall(message("io.maid.Manager.Reload"))
            return read_message(connection)

        assert as_user(work) == {}


def test_every_user_has_connections_of_ones_own(daemon: Serving) -> None:
    with contextlib.ExitStack() as held:
        for _ in range(8):
            held.enter_context(daemon.connect())
        assert until(lambda: daemon.descriptors() > 8)

        def work() -> Any:
            mine = [daemon.connect() for _ in range(8)]
            for connection in mine:
                connection.sendall(message("io.maid.Manager.Status"))
                assert "parameters" in read_message(connection)
            return daemon.call("io.maid.Manager.Status")  # the ninth

        assert as_user(work, groups=[GID]) in ("closed", "ConnectionResetError", "BrokenPipeError")


def test_a_member_is_told_what_to_be(daemon: Serving) -> None:
    """As the command line says it."""
    from maid.client import Client
    from maid.errors import MaidError

    def release() -> Any:
        try:
            with Client(str(daemon.socket)) as client:
                client.call("io.maid.Manager.Release")
        except MaidError as error:
            return [error.exit_status, str(error)]

    status, text = as_user(release, groups=[GID])
    assert (status, "does not allow" in text) == (1, True)
    status, text = as_user(release)
    assert (status, "group maid" in text) == (4, True)


def test_who_runs_the_daemon_may_do_everything() -> None:
    one, other = socket.socketpair()
    with one, other:
        peer = identify(one, "no-such-group")
        assert (peer.pid, peer.uid, peer.role) == (os.getpid(), os.geteuid(), Role.ADMIN)
