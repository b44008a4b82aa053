"""From what is known of a target to what is said about its platforms. Pure functions."""

from __future__ import annotations

from maid.emulation.kept import Kept
from maid.emulation.probes import ProbeResult
from maid.emulation.ratings import Level
from maid.emulation.status import Owner, PlatformStatus, ProbeStatus, State, Via
from maid.emulation.targets import Target
from maid.platforms import Platform


def native(
    target: Target, platform: Platform | None, probe: ProbeResult | None, level: str, required: bool
) -> PlatformStatus:
    """A platform that the machine runs by itself; `level` is the machine's, as x86-64 has them."""
    return PlatformStatus(
        platform=str(platform) if platform else None,
        target=target.name,
        state=State.native if probe is None or probe.ok else State.failed,
        via=Via.native,
        entry=None,
        owner=None,
        interpreter=None,
        interpreter_version=None,
        flags=None,
        cpu=level or None,
        probe=_probe_status(probe),
        reason=probe.error or None if probe else None,
        required=required,
    )


def emulated(platform: Platform | None, kept: Kept, wanted: bool, required: bool) -> PlatformStatus:
    """A platform that needs an interpreter; `wanted` by the configuration or not."""
    serving, offer = kept.serving, kept.offer
    state, reason = judge(kept, wanted)
    version = ".".join(map(str, offer.interpreter.version)) if offer else None
    return PlatformStatus(
        platform=str(platform) if platform else None,
        target=kept.target.name,
        state=state,
        via=Via.emulated if serving else None,
        entry=serving.name if serving else None,
        owner=Owner(kept.owner) if kept.owner else None,
        interpreter=serving.interpreter if serving else None,
        interpreter_version=version or None,
        flags=serving.flags if serving else None,
        cpu=offer.cpu or None if offer else None,
        probe=_probe_status(kept.result) if serving else None,
        reason=reason or None,
        required=required,
    )


def _probe_status(result: ProbeResult | None) -> ProbeStatus | None:
    if result is None:
        return None
    return ProbeStatus(result.level, result.ok, result.ms, result.error or None)


def judge(kept: Kept, wanted: bool) -> tuple[State, str]:
    """State of an emulated target, and why or what there is to know of it ("": nothing)."""
    if kept.serving is None:
        if not wanted:
            return State.disabled, "excluded by the configuration"
        if kept.choice.offers:
            return State.failed, kept.reason or "its entry is gone: maid reload registers it"
        return State.absent, kept.choice.problem
    if not kept.current:
        return State.failed, kept.reason or "its probe has not answered yet"
    if not kept.ready:
        return State.failed, kept.reason
    if not wanted:
        return State.disabled, f"excluded by the configuration, but {kept.serving.name} serves it"
    if kept.failed:
        return State.degraded, kept.reason
    if kept.offer is not None and kept.offer.rating.level is Level.BAD:
        return State.degraded, kept.offer.rating.reason
    if kept.owner == "maid" and kept.offer is None:
        return (
            State.degraded,
            "its interpreter is no longer on disk; the entry keeps the old file open",
        )
    return State.ready, kept.contended or kept.reason
