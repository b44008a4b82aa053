"""Whatever comes over the socket is answered or ends the connection."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving import Serving, closed, flood, unharmed, warm_up

MANAGER, EMULATION, STEPS = "io.maid.Manager", "io.maid.Emulation", "io.maid.Steps"
STORE = "io.maid.Store"


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


METHODS = [
    f"{MANAGER}.{name}" for name in ("Status", "Events", "Metrics", "Diagnosis", "_core", "errors")
]
METHODS += [f"{EMULATION}.List", f"{EMULATION}.Ensure"]
METHODS += [f"{STEPS}.Run", f"{STEPS}.Wait", f"{STEPS}.Cancel"]
METHODS += [f"{STORE}.Status", f"{STORE}.Seen", f"{STORE}.Add"]  # what removes is for real stores

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(), max_size=20)
    | st.sampled_from(["linux/arm64", "\ud800", "\0", "/", -1, 2**63]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)
NAMES = st.sampled_from(
    [
        "platforms",
        "timeout",
        "configured",
        "since",
        "id",
        "stdin",
        "stdout",
        "stderr",
        "rootfs",
        "command",
        "environment",
        "cwd",
        "user",
        "binds",
        "memory",
        "cpus",
        "accelerate",
        "require_acceleration",
        "profile",
        "release",
        "architectures",
        "keys",
        "native_root",
    ]
)
CALLS = st.fixed_dictionaries(
    {"method": st.sampled_from(METHODS) | st.text(max_size=30)},
    optional={
        "parameters": st.dictionaries(NAMES | st.text(max_size=5), VALUES, max_size=9) | VALUES,
        "more": st.booleans() | VALUES,
        "oneway": st.booleans(),
        "upgrade": st.booleans(),
        "other": VALUES,
    },
)


@given(
    pieces=st.lists(
        CALLS.map(lambda call: json.dumps(call).encode() + b"\0") | st.binary(max_size=40),
        min_size=1,
        max_size=4,
    ),
    descriptors=st.integers(0, 3),
)
@settings(
    max_examples=250,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_anything_is_answered_or_ends_the_connection(
    daemon: Serving, pieces: list[bytes], descriptors: int
) -> None:
    with daemon.connect() as connection:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for piece in pieces:
                if descriptors:
                    flood(connection, piece or b"\0", descriptors)
                else:
                    connection.sendall(piece)
            connection.shutdown(socket.SHUT_WR)
        connection.settimeout(0.5)
        closed(connection)
    assert daemon.answers()
