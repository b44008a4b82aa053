"""What can be said about a platform, as it goes over the socket and into `--json`.

Plain values, documented in docs/json.md; knows nothing of how they come about. Their types and the
enumerations' member names are the varlink types, so annotations stay real objects here.
"""

from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    """How a platform stands. Only `native`, `ready` and `degraded` platforms execute."""

    native = "native"
    ready = "ready"
    degraded = "degraded"
    failed = "failed"
    absent = "absent"
    disabled = "disabled"

    @property
    def executes(self) -> bool:
        """Whether programs of the platform run, as far as the last probe knows."""
        return self in (State.native, State.ready, State.degraded)


class Via(StrEnum):
    """How programs of a platform run."""

    native = "native"
    emulated = "emulated"


class Owner(StrEnum):
    """Who registered the entry that serves."""

    maid = "maid"
    other = "other"


@dataclass(frozen=True)
class ProbeStatus:
    """The last probe: its `level` (exec or deep), how long it took in milliseconds, and why it
    failed."""

    level: str
    ok: bool
    ms: float
    error: str | None


@dataclass(frozen=True)
class PlatformStatus:
    """One platform, or one target that has no OCI platform (`platform` is then null).

    `entry`, `interpreter` and `flags` are those of the entry that serves; `interpreter_version` is
    the emulator's, where maid knows the file; `cpu` is the CPU model that is baked in; `reason`
    says what is wrong or what there is to know. `required`: maid-ready.target waits for it.
    """

    platform: str | None
    target: str
    state: State
    via: Via | None
    entry: str | None
    owner: Owner | None
    interpreter: str | None
    interpreter_version: str | None
    flags: str | None
    cpu: str | None
    probe: ProbeStatus | None
    reason: str | None
    required: bool
