"""What the doctor says: findings, and how a check comes to one.

`Level` and `Finding` are the varlink types too, so annotations stay real objects here, and member
names are what goes over the wire.
"""

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How much a finding matters."""

    ok = "ok"
    """Looked at, and as it should be."""
    note = "note"
    """Good to know: something works differently here, or could not be looked at."""
    warning = "warning"
    """Something will fail for somebody, though not for everybody."""
    problem = "problem"
    """maid, or a platform, cannot work until this is mended."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    `subject` is what it is about, one or two words that stay the same from version to version;
    `message` is one sentence without a full stop; `hint` is what to do, or "" where there is
    nothing to do.
    """

    level: Level
    subject: str
    message: str
    hint: str


def ok(subject: str, message: str) -> Finding:
    """All is well."""
    return Finding(Level.ok, subject, message, "")


def note(subject: str, message: str, hint: str = "") -> Finding:
    """Something to know."""
    return Finding(Level.note, subject, message, hint)


def warning(subject: str, message: str, hint: str) -> Finding:
    """Something that will fail for somebody."""
    return Finding(Level.warning, subject, message, hint)


def problem(subject: str, message: str, hint: str) -> Finding:
    """Something that must be mended."""
    return Finding(Level.problem, subject, message, hint)


def listed(names: list[str], most: int = 8) -> str:
    """Names as part of a sentence, each once, sorted; from the ninth on they are only counted."""
    each = sorted(set(names))
    shown = each if len(each) <= most else each[: most - 1]
    rest = len(each) - len(shown)
    return ", ".join(shown) + (f" and {rest} more" if rest else "")
