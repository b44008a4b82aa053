"""The errors that go over the socket, and how maid's own become them. Knows no method.

Their parameters are typed; annotations stay real objects here, because asyncvarlink reads them.
"""

import contextlib
from collections.abc import Iterable, Iterator

from asyncvarlink.error import TypedVarlinkErrorReply
from asyncvarlink.serviceinterface import InvalidParameter, PermissionDenied

from maid.errors import (
    AccessDenied,
    LimitReached,
    MaidError,
    PlatformUnavailable,
    StepRefused,
    StepUnknown,
)
from maid.service.access import Peer, Role
from maid.steps.exhausted import refused


class Failed(TypedVarlinkErrorReply, interface="io.maid.Manager"):
    """It did not work; the message says what failed and the hint what to do. `status` is the exit
    status that `maid` gives it."""

    class Parameters:
        message: str
        hint: str
        status: int


class PlatformNotAvailable(TypedVarlinkErrorReply, interface="io.maid.Emulation"):
    """The platform cannot be executed; the hint names those that there are, or what to do."""

    class Parameters:
        message: str
        hint: str


class Refused(TypedVarlinkErrorReply, interface="io.maid.Steps"):
    """The step was not started: it makes no sense, or cannot run here."""

    class Parameters:
        message: str
        hint: str


class LimitExceeded(TypedVarlinkErrorReply, interface="io.maid.Steps"):
    """The caller has as many steps running and waiting as it may have."""

    class Parameters:
        message: str
        hint: str


class NoSuchStep(TypedVarlinkErrorReply, interface="io.maid.Steps"):
    """There is no step of that id, or it ended more than a minute ago."""

    class Parameters:
        message: str
        hint: str


@contextlib.contextmanager
def as_varlink() -> Iterator[None]:
    """Turn maid's errors into varlink's."""
    try:
        yield
    except AccessDenied:
        raise PermissionDenied() from None
    except StepUnknown as error:
        raise NoSuchStep(message=error.message, hint=error.hint) from error
    except PlatformUnavailable as error:
        raise PlatformNotAvailable(message=error.message, hint=error.hint) from error
    except LimitReached as error:
        raise LimitExceeded(message=error.message, hint=error.hint) from error
    except StepRefused as error:
        raise Refused(message=error.message, hint=error.hint) from error
    except (OSError, RuntimeError) as error:
        words = refused(error, "the machine refused it")
        raise Failed(message=words.message, hint=words.hint, status=1) from error
    except MaidError as error:
        raise Failed(message=error.message, hint=error.hint, status=error.exit_status) from error


def require(peer: Peer, role: Role) -> None:
    """Raise PermissionDenied unless the peer has the role, or a higher one."""
    allowed = {Role.ADMIN: (Role.ADMIN,), Role.MEMBER: (Role.ADMIN, Role.MEMBER)}
    if peer.role not in allowed[role]:
        raise PermissionDenied()


def number(name: str, value: float | None, most: float) -> float:
    """The parameter `name`, 0 where it is null. Raises InvalidParameter unless it is between 0 and
    `most`: JSON as Python reads it has NaN and infinities, and integers without end."""
    if value is None:
        return 0.0
    if not 0 <= value <= most:
        raise InvalidParameter(parameter=name)
    return value


def texts(name: str, values: Iterable[str]) -> None:
    """Raise InvalidParameter for the parameter `name` if one of the texts can be no argument and no
    path: with a NUL in it, or halves of surrogate pairs, which are no UTF-8."""
    for value in values:
        try:
            value.encode()
        except UnicodeEncodeError:
            raise InvalidParameter(parameter=name) from None
        if "\0" in value:
            raise InvalidParameter(parameter=name)
