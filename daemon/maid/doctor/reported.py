"""What the daemon's own status says is wrong: the document of `maid status --json`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec

from maid.doctor.findings import Finding, listed, note, ok, problem, warning

# The daemon's words for an entry that somebody else keeps removing, or a table that somebody keeps
# switching off (maid.emulation.keeper).
CONTENDED = "somebody keeps"


class _Platform(msgspec.Struct):
    target: str
    state: str
    platform: str | None = None
    owner: str | None = None
    entry: str | None = None
    reason: str | None = None
    required: bool = False

    @property
    def shown(self) -> str:
        return self.platform or self.target


class _Status(msgspec.Struct):
    platforms: list[_Platform]
    ready: bool = True
    runtime: str | None = None
    runtime_problem: str | None = None
    namespaces_problem: str | None = None
    limits_problem: str | None = None


def from_status(status: Mapping[str, object]) -> list[Finding]:
    """Findings of a parsed `maid status --json`: platforms that do not work, contended entries, no
    OCI runtime. Keys that it does not know are ignored; a document without platforms is a finding.
    """
    try:
        known = msgspec.convert(dict(status), type=_Status)
    except msgspec.ValidationError as error:
        return [
            warning(
                "daemon",
                f"its status cannot be understood: {error}",
                "the daemon may be of another version: systemctl restart maid",
            )
        ]
    return list(_findings(known))


def _findings(status: _Status) -> Iterator[Finding]:
    absent: list[str] = []
    executes = 0
    for each in status.platforms:
        reason = each.reason or "the daemon gives no reason"
        if CONTENDED in reason:
            # While the guard repairs, next to nothing fails.
            make = warning if each.state == "ready" else problem
            yield make(
                each.shown,
                reason,
                "maid events says who, where the kernel tells; else journalctl --since shows what"
                " happened then: often a job with --reset, or binfmt-support beside systemd-binfmt",
            )
        elif each.state == "failed" or (each.required and each.state in ("absent", "disabled")):
            make = problem if each.required else warning
            yield make(each.shown, f"{each.state}: {reason}", _way_out(each))
        elif each.state == "degraded":
            yield warning(each.shown, f"degraded: {reason}", _way_out(each))
        elif each.state == "absent" and each.platform:
            absent.append(each.shown)
        executes += each.state in ("native", "ready", "degraded")
    if absent:
        yield note(
            "platforms",
            f"not served, for want of an interpreter: {listed(absent, 16)}",
            "install QEMU's static user-mode programs, if they are wanted",
        )
    if not status.runtime:
        yield problem(
            "OCI runtime",
            f"steps (maid run) cannot be started: {status.runtime_problem or 'none was found'}",
            "install crun or runc, then: systemctl reload maid; entries work without",
        )
    if status.namespaces_problem:
        yield warning(
            "namespaces",
            f"steps use the machine's own table: {status.namespaces_problem}",
            "Linux 6.7 or newer, with user namespaces allowed, gives each kind of step its own",
        )
    if status.limits_problem:
        yield note(
            "limits",
            f"maid run --memory and --cpus are refused: {status.limits_problem}",
            "leave them out, or give the service Delegate=yes",
        )
    if status.ready:
        yield ok("platforms", f"{executes} execute, every required one among them")
    else:
        yield problem(
            "platforms",
            "not ready: a required platform does not execute",
            "maid check probes again; [emulation] ready says which are required",
        )


def _way_out(platform: _Platform) -> str:
    if platform.state == "disabled":
        return "it is excluded and required at once: change [emulation] exclude or ready"
    if platform.state == "absent":
        return "install its interpreter (Debian: qemu-user-static), or change [emulation] ready"
    if platform.owner == "other":
        return (
            f'{platform.entry} is somebody else\'s; with [emulation] prefer = "own" maid registers'
            " its own before it"
        )
    return f"maid check --deep {platform.shown} shows what fails"
