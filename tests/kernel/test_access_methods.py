"""Every method of the running service, by whoever may call, is as docs/security.md has it.

The methods are those that the service itself describes, so a new one must get a row there, and a
way to be called here. Callers are processes of real users, on a socket as the service has it.
"""

from __future__ import annotations

import array
import contextlib
import os
import re
import socket
import stat
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from daemons import REPOSITORY, as_user
from introspecting import described
from serving import FEW, Serving, message, read_message
from stepping import request, running

MEMBER, STRANGER = 47112, 47113
USERS = 100
CONFIG = f'{FEW}\n[socket]\ngroup = "users"\n'

YES, OWN, NO = "yes", "their own", "no"
ROW = re.compile(r"^\| `([\w.]+\.[A-Z]\w+)` \| ([\w ]+) \| ([\w ]+) \| ([\w ]+) \|$", re.MULTILINE)


def table() -> dict[str, tuple[str, str, str]]:
    """What docs/security.md says of each method: root, a member, anybody else."""
    text = (REPOSITORY / "docs" / "security.md").read_text()
    return {method: (root, member, other) for method, root, member, other in ROW.findall(text)}


@pytest.fixture(scope="module")
def serving() -> Iterator[Serving]:
    with tempfile.TemporaryDirectory() as state, Serving(CONFIG, state=f"{state}/state") as made:
        yield made.start()  # type: ignore[misc]


@dataclass
class Caller:
    """Somebody who calls, and what there is to be called with."""

    daemon: Serving
    rootfs: Path
    steps: dict[str, str]
    """The ids of running steps by whose they are."""

    def call(
        self,
        method: str,
        parameters: dict[str, Any] | None = None,
        files: Sequence[int] = (),
        more: bool = False,
    ) -> dict[str, Any]:
        """The first reply to a call; {"error": …} also where there is no connection to be had."""
        try:
            with self.daemon.connect() as connection:
                data = message(method, more=more, **(parameters or {}))
                rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", files))
                connection.sendmsg([data], [rights] if files else [])
                return read_message(connection)
        except (PermissionError, EOFError, ConnectionResetError, BrokenPipeError) as error:
            return {"error": type(error).__name__}

    def plainly(self, method: str, **parameters: Any) -> str:
        """The verdict on a call that is either allowed or not."""
        return verdict(self.call(method, parameters))

    def streaming(self, method: str, **parameters: Any) -> str:
        """The same for a method that answers more than once."""
        return verdict(self.call(method, parameters, more=True))

    def rooted(self, method: str) -> str:
        """The same with a root file system."""
        root = os.open(self.rootfs, os.O_PATH)
        try:
            return verdict(self.call(method, {"rootfs": 0}, [root]))
        finally:
            os.close(root)

    def run(self, method: str) -> str:
        """A step, from its start to its end."""
        streams = [os.memfd_create("stream") for _ in range(3)]
        parameters, files, opened = request(self.rootfs, ["/bin/true"], streams)
        try:
            reply = self.call(method, parameters, files, more=True)
            assert verdict(reply) == NO or reply["parameters"]["step"]["started"], reply
            return verdict(reply)
        finally:
            for descriptor in (*streams, *opened):
                os.close(descriptor)

    def of_a_step(self, method: str) -> str:
        """A method about one step: what root's is answered with, and what the caller's own is."""
        theirs = verdict(self.call(method, {"id": self.steps["root"]}))
        own = verdict(self.call(method, {"id": self.steps["member"]}))
        return OWN if (theirs, own) == (NO, YES) else theirs if theirs == own else "others' alone"

    def listed(self, method: str) -> str:
        """Which steps are listed."""
        reply = self.call(method)
        if verdict(reply) == NO:
            return NO
        ids = {each["id"] for each in reply["parameters"]["steps"]}
        assert self.steps["member"] in ids
        return YES if self.steps["root"] in ids else OWN


def verdict(reply: dict[str, Any]) -> str:
    """Whether a caller was let in: a failure of another kind is an answer."""
    error = reply.get("error", "")
    if error in ("PermissionError", "EOFError", "ConnectionResetError", "BrokenPipeError"):
        return NO
    assert error != "org.varlink.service.InvalidParameter", reply
    assert not error.startswith("invalid."), reply
    return NO if error == "org.varlink.service.PermissionDenied" else YES


MANAGER, EMULATION, STEPS = "io.maid.Manager", "io.maid.Emulation", "io.maid.Steps"
STORE, SERVICE = "io.maid.Store", "org.varlink.service"
ONE = ["linux/arm64"]

CALLS: dict[str, Callable[[Caller, str], str]] = {
    f"{SERVICE}.GetInfo": Caller.plainly,
    f"{SERVICE}.GetInterfaceDescription": lambda c, m: c.plainly(m, interface=MANAGER),
    f"{MANAGER}.Status": Caller.plainly,
    f"{MANAGER}.Events": Caller.streaming,
    f"{MANAGER}.Metrics": Caller.plainly,
    f"{MANAGER}.Diagnose": Caller.plainly,
    f"{EMULATION}.List": Caller.plainly,
    f"{EMULATION}.Ensure": lambda c, m: c.plainly(m, platforms=ONE),
    f"{EMULATION}.Check": lambda c, m: c.streaming(m, platforms=ONE),
    f"{EMULATION}.Watch": Caller.streaming,
    f"{STEPS}.Run": Caller.run,
    f"{STEPS}.List": Caller.listed,
    f"{STEPS}.Cancel": Caller.of_a_step,
    f"{STEPS}.Wait": Caller.of_a_step,
    f"{STORE}.Status": Caller.plainly,
    f"{STORE}.Seen": Caller.rooted,
    f"{STORE}.Verify": Caller.plainly,
    f"{STORE}.Prune": Caller.plainly,
    f"{STORE}.Add": lambda c, m: c.streaming(m, release="none:such", architectures=["arm64"]),
    f"{MANAGER}.Release": Caller.plainly,
    f"{MANAGER}.Reload": Caller.plainly,
}
"""How each method is called, in this order: a step is cancelled before it is waited for, and what
was released is kept again."""


def all_of(caller: Caller) -> dict[str, str]:
    """The verdict on every method, for whoever this is called by."""
    return {method: call(caller, method) for method, call in CALLS.items()}


def test_the_page_has_a_row_for_every_method_of_the_service(serving: Serving) -> None:
    methods = {method.name for method in described(serving).methods}
    assert set(table()) == methods, 'docs/security.md, "Who may call what"'
    assert set(CALLS) == methods, "say here how the new method is called"


@pytest.mark.parametrize("column", [0, 1], ids=["root", "a member"])
def test_who_may_call_what_is_as_the_page_says(serving: Serving, native: Path, column: int) -> None:
    found = os.stat(serving.socket)
    assert stat.S_IMODE(found.st_mode) == 0o660 and (found.st_uid, found.st_gid) == (0, USERS)
    with contextlib.ExitStack() as stack:
        ids = {"root": stack.enter_context(running(serving, native, "sleep 600"))[1]}
        ids["member"] = stack.enter_context(of_a_member(serving, native))
        caller = Caller(serving, native, ids)
        uid, groups = ((0, []), (MEMBER, [USERS]))[column]
        got = as_user(uid, groups, lambda: all_of(caller))
    assert got == {method: row[column] for method, row in table().items()}


@contextlib.contextmanager
def of_a_member(serving: Serving, rootfs: Path) -> Iterator[str]:
    """A step that a member has running, in a process of the member's; its id."""
    reader, writer = os.pipe()
    end, ended = os.pipe()
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            os.close(ended)
            os.setgroups([USERS])
            os.setresgid(MEMBER, MEMBER, MEMBER)
            os.setresuid(MEMBER, MEMBER, MEMBER)
            with running(serving, rootfs, "sleep 600") as (_, identifier, _):
                os.write(writer, identifier.encode())
                os.read(end, 1)
        os._exit(0)
    os.close(writer)
    os.close(end)
    try:
        yield os.read(reader, 1000).decode()
    finally:
        os.close(ended)
        os.close(reader)
        os.waitpid(child, 0)


def test_a_stranger_may_call_nothing_on_the_socket_as_it_is(serving: Serving, native: Path) -> None:
    caller = Caller(serving, native, {"root": "none", "member": "none"})
    got = as_user(STRANGER, [], lambda: all_of(caller))
    assert got == {method: row[2] for method, row in table().items()}
    assert set(got.values()) == {NO}


def test_a_stranger_may_call_nothing_where_the_socket_is_open_to_all(
    serving: Serving, native: Path
) -> None:
    """As where somebody has changed its mode, or passed a connection on."""
    caller = Caller(serving, native, {"root": "none", "member": "none"})
    os.chmod(serving.socket, 0o666)
    try:
        got = as_user(STRANGER, [], lambda: all_of(caller))
    finally:
        os.chmod(serving.socket, 0o660)
    assert set(got.values()) == {NO}
