"""The varlink endpoint of a real daemon: random bytes, damaged calls, and calls of every method
with odd values, made from what the service describes of itself.

Each input is one connection. The daemon answers in varlink (a result, or an error that it
describes) or ends the connection; another client, whose connection stays, is served meanwhile.
Every `LOOK` inputs, and at the end, it has no more descriptors and memory than it had and no
exception in its log.
"""

from __future__ import annotations

import array
import contextlib
import json
import os
import select
import socket
import tempfile
import time
from pathlib import Path
from typing import Any

from introspecting import SERVICE, Method, described
from serving import FEW, Serving, message, read_message, unharmed, warm_up

from fuzz.inputs import Choices
from maid.platforms import host

LOOK = 100
PATIENCE = 0.05
"""Seconds that an answer is waited for on a connection that may have none (a stream, a step)."""

ANSWER = 10.0
"""Seconds in which another client is served, on a machine that does much else."""

TEXTS = [
    "",
    "linux/arm64",
    "linux/riscv64",
    "x",
    "/",
    "/bin/true",
    "é",
    "\ud800",
    "a\0b",
    "x" * 300,
]
TEXTS += [
    "../..",
    "-1",
    "NaN",
    "\n",
    "none",
    "host",
    "debian:nonsense",
    "linux",
    "*",
    "%s%n",
    "/dev/null",
]
TEXTS += ["x" * 300, f"linux/{host().architecture}"]
NUMBERS = [0, 1, -1, 2**31, 2**63, -(2**63), 10**30, 3, 64, 65534]
FLOATS = [0.0, -1.0, 1e-9, 1e308, float("nan"), float("inf"), 0.2, 10**400]
ODD: list[Any] = [None, True, 0, -1, 1.5, "", "x", [], {}, [None], {"": 1}, [[]], "\ud800"]
SLOW = ("io.maid.Emulation.Check", "io.maid.Store.Add")
"""Methods that take long when they are called rightly: deep checks, fillings."""


class Calls:
    """The target."""

    # fmt: off
    words = (
        b'{"method":"', b'","parameters":{', b"}}\0", b"\0", b'"more":true,', b'"oneway":true,',
        b"\xff\xff", b"\0\0\0\0",
    )
    # fmt: on

    def __enter__(self) -> Calls:
        self.state = tempfile.TemporaryDirectory(prefix="maid-fuzz-")
        self.daemon = Serving(f"{FEW}\n[steps]\ntimeout = 2\n", state=f"{self.state.name}/state")
        self.daemon.start()
        warm_up(self.daemon)
        told = described(self.daemon)
        # The second is the library's own, for a call that is no varlink.
        self.types, self.errors = (
            told.types,
            told.errors | {"invalid.asyncvarlink.ProtocolViolation"},
        )
        # Those of steps have most parameters: they come three times as often as the others.
        self.methods = [m for m in told.methods if not m.name.endswith((".Release", ".Reload"))]
        self.methods += [m for m in self.methods if m.name.startswith("io.maid.Steps.")] * 2
        self.other = self.daemon.connect()
        self.other.settimeout(ANSWER)
        self.rootfs = Path(self.state.name) / "rootfs"
        self.rootfs.mkdir()
        self.held: contextlib.ExitStack | None = None
        for number in range(0, 256, 5):  # what is done on first use is done
            self.connection(Choices(bytes([number, 255 - number] * 40)))
        self.look()
        self.count = 0
        return self

    def look(self) -> None:
        """Hold that the daemon was not harmed since the last look."""
        if self.held is not None:
            self.held.close()
        self.held = contextlib.ExitStack()
        self.held.enter_context(unharmed(self.daemon))

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if self.held is not None and kind is None:
                self.held.close()
        finally:
            self.other.close()
            self.daemon.remove()
            self.state.cleanup()

    def seeds(self) -> list[bytes]:
        return [bytes([number, 255 - number] * 40) for number in range(0, 256, 3)]

    def one(self, data: bytes) -> object:
        outcome = self.connection(Choices(data))
        begun = time.monotonic()
        self.other.sendall(message(f"{SERVICE}.GetInfo"))
        assert "parameters" in read_message(self.other)
        assert time.monotonic() - begun < ANSWER
        self.count += 1
        if self.count % LOOK == 0:
            self.look()
        return outcome

    def connection(self, choices: Choices) -> object:
        """One connection with a few messages on it; the errors and results that came."""
        came = []
        with contextlib.ExitStack() as stack, self.daemon.connect() as connection:
            try:
                for _ in range(1 + choices.number(3)):
                    files: list[int] = []
                    data = self.message(choices, files, stack)
                    send(connection, data, files)
                    came += self.answers(connection, data)
            except (BrokenPipeError, ConnectionResetError):
                came.append("closed")
        return tuple(sorted(set(came)))

    def answers(self, connection: socket.socket, data: bytes) -> list[str]:
        """What comes, until nothing does for a moment; raises AssertionError for what is no
        answer."""
        came, text = [], b""
        while select.select([connection], [], [], PATIENCE)[0]:
            piece = connection.recv(65536)
            if not piece:
                assert not text, f"half an answer to {data[:200]!r}: {text[-200:]!r}"
                raise ConnectionResetError
            text += piece
            *whole, text = text.split(b"\0")
            for each in whole:
                reply = json.loads(each)
                assert isinstance(reply, dict) and set(reply) <= {
                    "parameters",
                    "error",
                    "continues",
                }
                assert isinstance(reply.get("parameters", {}), dict), reply
                error = reply.get("error", "")
                assert not error or error in self.errors, f"{data[:300]!r}: {reply}"
                came.append(error or "result")
                if not reply.get("continues") or len(came) > 20:
                    return came
        return came

    def message(self, choices: Choices, files: list[int], stack: contextlib.ExitStack) -> bytes:
        """One message: mostly a call of a method that there is, now and then anything."""
        kind = choices.number(12)
        if kind == 0:
            return choices.some(200)
        method = choices.choice(self.methods)
        call: dict[str, Any] = {"method": method.name, "parameters": {}}
        for name, wanted in method.parameters.items():
            value = self.value(wanted, choices, files, stack)
            if value is not None or choices.number(2):
                call["parameters"][name] = value
        self.spare(method, call["parameters"])
        for option in ("more", "oneway", "upgrade"):
            if choices.chance(2 if option == "more" else 8):
                call[option] = choices.choice([True, True, False, None, 1, "x"])
        if kind == 1:
            call[choices.choice(["method", "parameters", "more", "x"])] = choices.choice(ODD)
        if kind == 2:
            call["parameters"][choices.choice(["x", "", "é" * 300, *method.parameters])] = (
                choices.choice(ODD)
            )
        data = json.dumps(call).encode()
        if kind == 3:
            at = choices.number(len(data))
            data = data[:at] + choices.some(4) + data[at + choices.number(4) :]
        return data + (b"" if choices.chance(32) else b"\0")

    def spare(self, method: Method, parameters: dict[str, Any]) -> None:
        """Keep what would take minutes, or the machine's own processor for long, out."""
        if method.name in SLOW:
            parameters.pop("deep", None)
            parameters.pop("native_root", None)
        if "command" in parameters and isinstance(
            parameters.get("timeout"), (int, float, type(None))
        ):
            parameters["timeout"] = 1.0
        if method.name.endswith(".Ensure") and parameters.get("timeout"):
            parameters["timeout"] = 0.1

    def value(
        self, kind: str, choices: Choices, files: list[int], stack: contextlib.ExitStack
    ) -> Any:
        """A value of a type as an interface description writes it; now and then of another."""
        if choices.chance(24):
            return choices.choice(ODD)
        if kind.startswith("?"):
            return self.value(kind[1:], choices, files, stack) if choices.number(2) else None
        if kind.startswith("[]"):
            count = choices.choice([0, 1, 1, 2, 3, 130])
            return [self.value(kind[2:], choices, files, stack) for _ in range(count)]
        if kind.startswith("[string]"):
            names = [choices.choice(TEXTS) for _ in range(choices.number(4))]
            return {name: self.value(kind[8:], choices, files, stack) for name in names}
        if kind in self.types:
            fields = self.types[kind].items()
            return {name: self.value(each, choices, files, stack) for name, each in fields}
        match kind:
            case "bool":
                return bool(choices.number(2))
            case "int":  # a number, or the index of a descriptor
                if choices.number(3) == 0 or len(files) > 200:
                    return choices.choice(NUMBERS)
                files.append(self.descriptor(choices, stack))
                return len(files) - 1
            case "float":
                return choices.choice(FLOATS)
        return choices.choice(TEXTS) if choices.number(4) else choices.some(20).decode("latin-1")

    def descriptor(self, choices: Choices, stack: contextlib.ExitStack) -> int:
        """A descriptor of some kind, mostly of the wrong one."""
        match choices.number(12):
            case 0:
                opened = os.open(os.devnull, os.O_RDWR)
            case 1 | 2 | 3:
                opened = os.open(self.rootfs, os.O_PATH)
            case 4:
                opened, other = os.pipe()
                stack.callback(os.close, other)
            case 5:
                one, two = socket.socketpair()
                opened, other = one.detach(), two.detach()
                stack.callback(os.close, other)
            case 6:
                opened = os.memfd_create("input")
            case 7:
                opened = os.eventfd(0)
            case 8:
                opened = os.pidfd_open(os.getpid())
            case 9:
                opened = os.open("/proc/self/ns/mnt", os.O_RDONLY)
            case 10:
                opened = os.open("/proc/self/mem", os.O_RDONLY)
            case _:
                opened = os.open("/", os.O_PATH)
        stack.callback(os.close, opened)
        return opened


def send(connection: socket.socket, data: bytes, files: list[int]) -> None:
    """Send a message with these descriptors, as many as the kernel lets one bring."""
    rights = (
        [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", files[:250]))] if files else []
    )
    sent = connection.sendmsg([data or b"\0"], rights)
    connection.sendall(data[sent:])
