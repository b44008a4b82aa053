"""What is no varlink ends the connection; a wrong call is answered in words."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from serving import Serving, closed, message, read_message, unharmed, warm_up

LIMIT = 1 << 20
"""[socket] max_message_bytes, the default."""

MANAGER, EMULATION, STEPS = "io.maid.Manager", "io.maid.Emulation", "io.maid.Steps"


@pytest.fixture(scope="module")
def daemon() -> Iterator[Serving]:
    with Serving() as made:
        made.start()
        warm_up(made)
        yield made


@pytest.fixture(autouse=True)
def leave_as_it_was(daemon: Serving) -> Iterator[None]:
    with unharmed(daemon):
        yield


# What is no varlink -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"\0",
        b"{\0",
        b"[]\0",
        b"null\0",
        b'"text"\0',
        b"GET / HTTP/1.1\r\n\r\n\0",
        b"\xff\xfe\0",
        b'{"method":"\xc3\x28"}\0',
        b"[" * 200_000 + b"\0",
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"\0",
        b'{"method":' + b"9" * 10_000 + b"}\0",
        bytes(range(256)),
        b"x" * (LIMIT + 1),
        b'{"method":"' + b"a" * LIMIT + b'"}\0',
        json.dumps({"method": f"{MANAGER}.{'A' * 300}"}).encode() + b"\0",
        json.dumps({"method": f"{MANAGER}.Status", "parameters": {"é" * 300: 1}}).encode() + b"\0",
    ],
    ids=lambda data: repr(data[:12]),
)
def test_what_is_no_message_ends_the_connection(daemon: Serving, data: bytes) -> None:
    with daemon.connect() as connection:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(data)
        assert closed(connection)


@pytest.mark.parametrize(
    ("call", "error"),
    [
        ({"method": "Status"}, "invalid.asyncvarlink.ProtocolViolation"),
        ({"method": 1}, "invalid.asyncvarlink.ProtocolViolation"),
        ({}, "invalid.asyncvarlink.ProtocolViolation"),
        (
            {"method": f"{MANAGER}.Status", "parameters": []},
            "invalid.asyncvarlink.ProtocolViolation",
        ),
        ({"method": f"{MANAGER}.Status", "more": 1}, "invalid.asyncvarlink.ProtocolViolation"),
        ({"method": "io.maid.Nothing.Status"}, "org.varlink.service.InterfaceNotFound"),
        ({"method": f"{MANAGER}.Nothing"}, "org.varlink.service.MethodNotFound"),
        ({"method": f"{MANAGER}.Errors"}, "org.varlink.service.MethodNotFound"),
        ({"method": f"{MANAGER}.Events"}, "org.varlink.service.ExpectedMore"),
        (
            {"method": f"{MANAGER}.Status", "parameters": {"x": 1}},
            "org.varlink.service.InvalidParameter",
        ),
        ({"method": f"{EMULATION}.Ensure"}, "org.varlink.service.InvalidParameter"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_wrong_call_is_answered_and_the_next_one_too(
    daemon: Serving, call: dict[str, object], error: str
) -> None:
    with daemon.connect() as connection:
        connection.sendall(json.dumps(call).encode() + b"\0")
        assert read_message(connection)["error"] == error
        connection.sendall(message(f"{MANAGER}.Status"))
        assert "status" in read_message(connection)["parameters"]


@pytest.mark.parametrize(
    ("parameters", "wrong"),
    [
        ({"platforms": "linux/arm64"}, "platforms"),
        ({"platforms": [1]}, "platforms"),
        ({"platforms": [None]}, "platforms"),
        ({"platforms": ["linux/arm64"], "configured": "yes"}, "configured"),
        ({"platforms": ["linux/arm64"], "timeout": "1"}, "timeout"),
        ({"platforms": ["linux/arm64"], "timeout": float("nan")}, "timeout"),
        ({"platforms": ["linux/arm64"], "timeout": float("inf")}, "timeout"),
        ({"platforms": ["linux/arm64"], "timeout": -1}, "timeout"),
        ({"platforms": ["linux/arm64"], "timeout": 10**400}, "timeout"),
        ({"platforms": ["\ud800"]}, "platforms"),
        ({"platforms": ["linux/\0"]}, "platforms"),
    ],
    ids=str,
)
def test_a_wrong_parameter_is_named(
    daemon: Serving, parameters: dict[str, object], wrong: str
) -> None:
    reply = daemon.call(f"{EMULATION}.Ensure", **parameters)
    assert reply["error"] == "org.varlink.service.InvalidParameter"
    assert reply["parameters"] == {"parameter": wrong}


@pytest.mark.parametrize(
    "names", [["linux/arm64"] * 101, ["x" * 256], []], ids=["many", "long", "none"]
)
def test_a_request_for_too_much_is_refused_in_words(daemon: Serving, names: list[str]) -> None:
    reply = daemon.call(f"{EMULATION}.Ensure", platforms=names)
    assert reply["error"] == f"{MANAGER}.Failed"
    assert reply["parameters"]["status"] == 2
    assert reply["parameters"]["message"]


def test_an_endless_message_is_cut_off_and_the_others_are_served(daemon: Serving) -> None:
    with daemon.connect() as endless:
        sent = 0
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            while sent < 64 * LIMIT:
                sent += endless.send(b"x" * 65536)
        assert sent < 4 * LIMIT  # what the kernel keeps, and what was read


@pytest.mark.parametrize(
    "wrong",
    [
        {"stdin": 0},
        {"stdin": 99},
        {"stdin": -1},
        {"stdin": "0"},
        {"stdin": True},
        {"command": []},
        {"command": ["a\0b"]},
        {"command": ["\udcff"]},
        {"environment": {"\ud800": "x"}},
        {"environment": {"A": "x\0"}},
        {"cwd": "/\0"},
        {"cwd": "x" * 500_000},
        {"platform": "linux/\ud800"},
        {"platform": "a/b/c/d"},
        {"user": -1},
        {"user": 2**64},
        {"memory": 10**30},
        {"memory": -1},
        {"cpus": float("nan")},
        {"timeout": float("inf")},
        {"network": "bridge"},
        {"cpu": "x\0"},
        {"tmpfs": ["relative"]},
        {"binds": [{"source": 0, "destination": "/x\0"}]},
        {"binds": [{"source": 99, "destination": "/x"}]},
        {"binds": [{"destination": "/x"}]},
        {"changes": 0},
    ],
    ids=lambda value: str(value)[:50],
)
def test_a_step_that_makes_no_sense_is_refused(
    daemon: Serving, wrong: dict[str, object], tmp_path: Path
) -> None:
    parameters: dict[str, object] = {
        "stdin": 0,
        "stdout": 0,
        "stderr": 0,
        "rootfs": 1,
        "command": ["/bin/true"],
        "platform": "linux/arm64",
        **wrong,
    }
    null = os.open(os.devnull, os.O_RDWR)
    rootfs = os.open(tmp_path, os.O_RDONLY)
    with daemon.connect() as connection:
        call = message(f"{STEPS}.Run", more=True, **parameters)
        sent = socket.send_fds(connection, [call], [null, rootfs])
        connection.sendall(call[sent:])
        os.close(null)
        os.close(rootfs)
        reply = read_message(connection)
        while reply.get("continues"):
            reply = read_message(connection)
    if "error" in reply:
        assert reply["error"].startswith(("io.maid.", "org.varlink.service.InvalidParameter"))
    else:
        assert reply["parameters"]["step"]["finished"]["status"] in (125, 126, 127)
