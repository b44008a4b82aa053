"""`maid accel profile --rootfs DIR -- CMD…`: which programs of a step ran natively, and what the
others cost."""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from pathlib import Path
from typing import Any

from maid.acceleration import profile
from maid.acceleration.profile import Kind, Usage
from maid.cli import render
from maid.cli.common import show_json
from maid.cli.run import Request, standard_stream, submit

SHOWN = 30
"""Programs that people are shown; --all and --json have the rest."""

LIMIT = 1 << 30
"""Bytes of records that are read."""


def show(socket: str, request: Request, *, everything: bool, as_json: bool) -> int:
    """Run the step and print the table; its exit status. Raises MaidError when it cannot be run."""
    # Its directory keeps others out; in the step, whoever runs there writes to the file.
    with tempfile.TemporaryDirectory(prefix="maid-profile-") as directory:
        log = Path(directory) / "log"
        log.touch()
        log.chmod(0o666)
        # Standard output is the table's.
        streams = standard_stream(0), standard_stream(2), standard_stream(2)
        result = submit(socket, dataclasses.replace(request, profile=log), streams)
        with open(log, "rb") as file:
            programs = profile.parse(file.read(LIMIT))
    if as_json:
        show_json(_document(result, programs))
    else:
        _print(result, programs, everything)
    return int(result["status"])


def _document(result: dict[str, Any], programs: list[Usage]) -> dict[str, Any]:
    def numbers(usage: Usage) -> dict[str, Any]:
        found = dataclasses.asdict(usage)
        del found["name"], found["kind"]
        return found

    return {
        "result": result,
        "totals": {kind.value: numbers(profile.total(programs, kind)) for kind in Kind},
        "programs": [
            {"name": usage.name, "kind": usage.kind.value, **numbers(usage)} for usage in programs
        ],
    }


def _print(result: dict[str, Any], programs: list[Usage], everything: bool) -> None:
    stream = sys.stdout
    if result["error"]:
        print(f"{render.paint('maid:', 'problem', sys.stderr)} {result['error']}", file=sys.stderr)
    whole = profile.total(programs).cpu
    shown = programs if everything else programs[:SHOWN]
    rows = [[*_row(usage, whole, stream), usage.name] for usage in shown]
    header = ("CPU", "SHARE", "USER", "SYSTEM", "STARTS", "PEAK", "RAN", "PROGRAM")
    print(render.table(rows, header, stream, ("PEAK", "SYSTEM", "USER")))
    if len(programs) > len(shown):
        print(f"… and {len(programs) - len(shown)} more programs: --all")
    print()
    for kind in Kind:
        usage = profile.total(programs, kind)
        if usage.starts or usage.cpu:
            cpu, share = (cell.strip() for cell in _row(usage, whole, stream)[:2])
            print(
                f"{render.mark(kind.value, stream)}: {cpu} of CPU time ({share}),"
                f" {usage.starts} program starts"
            )
    if unfinished := profile.total(programs).unfinished:
        print(
            f"{unfinished} processes had not ended with the step: their times are from its last"
            " second"
        )


def _row(usage: Usage, whole: float, stream: Any) -> list[str]:
    share = f"{100 * usage.cpu / whole:.0f} %" if whole else "-"
    return [
        f"{usage.cpu:.3f} s".rjust(10),
        share.rjust(5),
        f"{usage.user:.3f}".rjust(8),
        f"{usage.system:.3f}".rjust(7),
        f"{usage.starts}".rjust(6),
        f"{usage.peak / (1 << 20):.0f} MiB".rjust(8) if usage.peak else "-".rjust(8),
        render.paint(usage.kind.value, "ok" if usage.kind is Kind.NATIVE else "note", stream),
    ]
