"""Hands a step in and follows it to its result, whatever becomes of the daemon meanwhile.

A step that has begun does not need the daemon: the next one is asked for it. One that waited for a
place when the daemon went away is handed in again, and never twice: only where the next daemon
says that it does not know the id. It knows every step that an earlier one began, also when nobody
was told so any more (steps/record.py, `withhold`).

A daemon that is older than this program, as in the middle of an upgrade, may take no id: the step
is followed by the id that it chooses, and not handed in again.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from typing import Any

from maid.client import Client, ConnectionLost, ParameterRefused
from maid.errors import DaemonUnreachable, MaidError, StepUnknown

RECONNECT = 30.0
"""Seconds to look for the daemon again when it is restarted while the step waits or runs."""

PAUSE = 0.05
"""Seconds between two looks."""

REFUSALS = 3
"""How often a daemon may end the connection without ever having answered: it refuses this user."""


class Follower:
    """One step of the daemon at `socket`: `parameters` are those of Steps.Run but for the id, and
    `descriptors` what they refer to, which is closed and forgotten once the step has begun."""

    def __init__(self, socket: str, parameters: dict[str, Any], descriptors: list[int]) -> None:
        self._socket = socket
        # Chosen here: so a daemon that comes after one that was killed can be asked for the step.
        self._identifier = new_id()
        self._parameters = {**parameters, "id": self._identifier}
        self._descriptors = descriptors
        self._began = False
        self._asked: tuple[int, float] | None = None

    def result(self) -> dict[str, Any]:
        """The step's id and its result, as Steps.Run has it. Raises MaidError."""
        client: Client | None = Client(self._socket)
        while client is not None:
            try:
                with client:
                    result = self._run(client)
                    break
            except ConnectionLost as lost:
                client, result = self._take_up(lost)
        return {"id": self._identifier, **result}

    def _run(self, client: Client) -> dict[str, Any]:
        try:
            return self._follow(client)
        except ParameterRefused as error:
            if error.parameter != "id" or "id" not in self._parameters:
                raise
        # It is older than this program, and nothing has begun.
        del self._parameters["id"]
        return self._follow(client)

    def _follow(self, client: Client) -> dict[str, Any]:
        for reply in client.stream("io.maid.Steps.Run", self._parameters, self._descriptors):
            step = reply["step"]
            if step.get("started"):
                self._began = True
                self._identifier = step["started"]["id"]
                close(self._descriptors)
            if step.get("finished"):
                finished: dict[str, Any] = step["finished"]
                return finished
        raise MaidError("the daemon's answer had no result", "journalctl -u maid")

    def _take_up(self, lost: ConnectionLost) -> tuple[Client | None, dict[str, Any]]:
        """The daemon went away: wait for the next one and ask it for the step. Its result; or a
        connection to hand it in again, where it is certain that it has not begun."""
        if not self._began and "id" not in self._parameters:
            raise lost
        until, refusals = time.monotonic() + RECONNECT, 0
        while True:
            try:
                return self._ask_next(lost)
            except ConnectionLost:
                refusals += 1
                if not self._began and refusals == REFUSALS:
                    raise  # it is there, and does not want us
                until = time.monotonic() + RECONNECT  # it was there, and went away again
            except DaemonUnreachable:
                if time.monotonic() > until:
                    raise self._given_up() from None
            time.sleep(PAUSE)

    def _ask_next(self, lost: ConnectionLost) -> tuple[Client | None, dict[str, Any]]:
        client = Client(self._socket)
        with contextlib.ExitStack() as closing:
            closing.enter_context(client)
            try:
                result = client.call("io.maid.Steps.Wait", {"id": self._identifier})["result"]
                return None, result
            except StepUnknown:
                if self._began:
                    raise
            status = client.call("io.maid.Manager.Status")["status"]
            answering = status["pid"], status["started"]
            if answering == self._asked:  # it ends the connection because of what it is asked
                raise MaidError(lost.message, lost.hint)
            self._asked = answering
            # Another id: whatever is left of the first request can be no part of this one.
            self._identifier = self._parameters["id"] = new_id()
            closing.pop_all()
        return client, {}

    def _given_up(self) -> MaidError:
        when = "while" if self._began else "before it said whether"
        return MaidError(
            f"the daemon went away {when} the step {self._identifier} was running",
            f"{'it' if self._began else 'one that runs'} goes on; the next daemon ends it, because"
            " nobody waits for it",
        )


def new_id() -> str:
    """An id that no other step has: the time in milliseconds and 64 random bits, in hexadecimal."""
    return f"{time.time_ns() // 1_000_000:x}-{secrets.token_hex(8)}"


def close(descriptors: list[int]) -> None:
    """Close them, and forget their numbers."""
    while descriptors:
        os.close(descriptors.pop())
