"""`maid doctor`: what is found here, and what the daemon's status adds where one answers."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

from maid import doctor
from maid.cli import render
from maid.cli.common import show_json
from maid.client import Client
from maid.config import Config, Scope, Socket, load
from maid.doctor import Finding, Level
from maid.errors import MaidError

PATIENCE = 30.0
"""Seconds to wait for a daemon that hangs: whoever asks what is wrong is to be told."""


def show(socket: str, config_file: Path | None, as_json: bool) -> int:
    """Print the findings for the daemon at `socket`; exit status 1 when one is a problem."""
    scope, status = Scope.HOST, None
    findings: list[Finding] = []
    try:
        with Client(socket, PATIENCE) as client:
            status = client.call("io.maid.Manager.Status")["status"]
        scope = Scope(status["scope"])
    except MaidError as error:
        findings.append(Finding(Level.warning, "daemon", error.message, error.hint))
    # What was asked is what is looked at, whatever the configuration names.
    asked = Path(socket).absolute()
    try:
        config = load(config_file, scope, asked)
    except MaidError as error:
        hint = error.hint or "mend it: docs/configuration.md has every key"
        hint = f"{hint} (everything else was looked at with the defaults)"
        findings.append(Finding(Level.problem, "configuration", error.message, hint))
        config = Config(socket=Socket(path=asked))
    findings = [*doctor.examine(config, scope), *findings]
    if status is not None:
        findings += doctor.from_status(status)
    if as_json:
        show_json({"findings": [dataclasses.asdict(finding) for finding in findings]})
    else:
        _print(findings)
    return 1 if any(finding.level is Level.problem for finding in findings) else 0


def _print(findings: list[Finding]) -> None:
    stream = sys.stdout
    for finding in findings:
        print(f"{render.mark(finding.level.value, stream)}  {finding.subject}: {finding.message}")
        if finding.hint and finding.level is not Level.ok:
            print(f"      {finding.hint}")
    counts = {level: sum(1 for f in findings if f.level is level) for level in Level}
    words = [f"{count} {level.value}" for level, count in counts.items() if count]
    print(f"\n{', '.join(words)}")
