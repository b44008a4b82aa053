"""The exceptions, each with what to do about it.

Every error a user can meet is a `MaidError`: one sentence that says what failed, and a hint that
says what to do next. A class of its own exists only where somebody handles it differently: here
that is the exit status (design.md, "The command line") and the varlink error it becomes.
"""

from __future__ import annotations


class MaidError(Exception):
    """Something failed and the user can be told why.

    `message` is one sentence without a trailing period; `hint` is the next thing to do, or "".
    """

    exit_status = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class UsageError(MaidError):
    """The request itself makes no sense: exit status 2."""

    exit_status = 2


class ConfigError(UsageError):
    """The configuration file cannot be used."""


class PlatformUnavailable(MaidError):
    """A platform cannot be executed on this machine now: exit status 3."""

    exit_status = 3


class DaemonUnreachable(MaidError):
    """No daemon answers at the socket: exit status 4."""

    exit_status = 4


class AccessDenied(MaidError):
    """The caller may not do this."""


class LimitReached(MaidError):
    """The caller has as many of these at once as it may have."""


class StepUnknown(MaidError):
    """There is no step of that id that the caller may see."""


class StepRefused(MaidError):
    """A step could not be started for a reason of maid's own: `maid run` exits with 125, as docker
    does."""

    exit_status = 125
