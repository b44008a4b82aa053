"""`maid check`: shows each result as it comes, with a progress bar for the deep tests."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from maid.cli import render
from maid.cli.common import show_json
from maid.client import Client


def show(client: Client, platforms: list[str], deep: bool, as_json: bool) -> int:
    """Run the checks; the exit status: 0, 1 when a deep test failed, 3 when a platform does not
    run."""
    results = []
    with client:
        for result in _with_progress(_results(client, platforms, deep), deep and not as_json):
            results.append(result)
            if not as_json:
                print(_line(result), flush=True)
    if as_json:
        show_json({"results": results})
    failed = [result for result in results if not result["ok"] and not result["skipped"]]
    if any(result["test"] == "exec" for result in failed):
        return 3
    return 1 if failed else 0


def _results(client: Client, platforms: list[str], deep: bool) -> Iterator[dict[str, Any]]:
    parameters = {"platforms": platforms, "deep": deep}
    for reply in client.stream("io.maid.Emulation.Check", parameters):
        if reply.get("result") is not None:
            yield reply["result"]


def _with_progress(results: Iterator[dict[str, Any]], wanted: bool) -> Iterator[dict[str, Any]]:
    if not wanted or not render.is_terminal(sys.stderr):
        yield from results
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("running real programs")
        for number, result in enumerate(results, 1):
            progress.update(
                task, description=f"{number} tests, last {result['target']} {result['test']}"
            )
            yield result


def _line(result: dict[str, Any]) -> str:
    name = result["platform"] or result["target"]
    kind = "skipped" if result["skipped"] else "ok" if result["ok"] else "failed"
    detail = result["skipped"] or result["error"] or f"{result['ms']:.0f} ms"
    return f"{render.mark(kind, sys.stdout)}  {name} {result['test']}: {detail}"
