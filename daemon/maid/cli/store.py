"""`maid accel add, list, verify, prune`: what the native store has, and changing it."""

from __future__ import annotations

import os
import re
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from maid.cli import render
from maid.cli.common import show_json
from maid.client import Client
from maid.errors import MaidError, StepRefused, UsageError

DAY = 86400.0

SHOWN = 4
"""Tools of a package that are named in its row; --all has a row for each."""


def add(
    client: Client,
    release: str,
    architectures: list[str],
    rootfs: Path | None,
    keys: Path | None,
    native_root: Path | None,
    as_json: bool,
) -> int:
    """Fill the store; the exit status. Raises MaidError when something cannot be had."""
    parameters: dict[str, Any] = {}
    descriptors = []
    if keys is not None:
        parameters["keys"] = str(keys.absolute())
    if native_root is not None:
        parameters["native_root"] = str(native_root.absolute())
    if rootfs is not None:
        try:
            descriptors.append(os.open(rootfs, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        except OSError as error:
            raise UsageError(
                f"{rootfs} cannot be opened: {error.strerror}", "--rootfs DIR"
            ) from error
        parameters["rootfs"] = 0
    else:
        parameters["release"] = release
        parameters["architectures"] = architectures or [default_architecture()]
    added = []
    with client, _progress(not as_json) as say:
        for reply in client.stream("io.maid.Store.Add", parameters, descriptors):
            step = reply.get("reply")
            if step is None:
                continue
            if step["added"] is None:
                say(f"{step['architecture']}: {step['doing']}".removeprefix(": "))
                continue
            say("")
            added.append(step["added"])
            if not as_json:
                print(_added(step["added"]), flush=True)
    if as_json:
        show_json({"added": added})
    return 0


def default_architecture() -> str:
    """What most people build for besides their own machine, as Debian names it."""
    return "amd64" if os.uname().machine == "aarch64" else "arm64"


def _added(done: dict[str, Any]) -> str:
    what = "added" if done["new"] else "there already"
    emulated = f", {done['emulated']} stay emulated" if done["emulated"] else ""
    name = f"{done['architecture']}: " if done["architecture"] else ""
    return (
        f"{render.mark('ok', sys.stdout)}  {name}{done['tools']} tools{emulated},"
        f" {size(done['size'])}: {what}"
    )


@contextmanager
def _progress(wanted: bool) -> Iterator[Callable[[str], None]]:
    """A function that shows one line anew, on a terminal; each line once elsewhere."""
    terminal = render.is_terminal(sys.stderr)

    def say(words: str) -> None:
        if not wanted:
            return
        if terminal:
            columns = render.width(sys.stderr) or 80
            print(f"\r\033[K{words[: columns - 1]}", end="", file=sys.stderr, flush=True)
        elif words:
            print(words, file=sys.stderr, flush=True)

    try:
        yield say
    finally:
        if terminal:
            say("")


# Looking ----------------------------------------------------------------------------------------


def show(client: Client, wanted: str, as_json: bool, everything: bool) -> int:
    """Print what is in the store; `wanted` limits it to a tool, a package or a set.

    Raises MaidError where there is none of that name.
    """
    with client:
        store = client.call("io.maid.Store.Status")["store"]
    if as_json:
        show_json(store)
        return 0
    stream = sys.stdout
    summary = store["summary"]
    if summary["problem"]:
        print(f"{render.paint('!', 'warning', stream)} no native store: {summary['problem']}")
        return 1
    print(summary_line(summary))
    tables = [(each, _tools(each, wanted, everything)) for each in store["sets"]]
    if wanted and not any(table for _, table in tables):
        raise MaidError(f"the store has no tool, package or set {wanted}", "maid accel list --all")
    for each, table in tables:
        print()
        print(_set_head(each, stream))
        print(table or f"no {wanted} in it")
    for reason in summary["reasons"]:
        print(f"\n{render.paint('!', 'warning', stream)} {reason}")
    if not store["sets"]:
        print("maid accel add debian:trixie fills it ahead of time; a step does when it runs")
    return 0


def summary_line(summary: dict[str, Any]) -> str:
    """The store in one line."""
    words = [
        f"native store {summary['path']}",
        f"{summary['tools']} tools in {render.sets(summary['sets'])}"
        if summary["sets"]
        else "empty",
    ]
    if summary["sets"]:
        limit = f" of {size(summary['limit'])}" if summary["limit"] else ""
        words.append(f"{size(summary['size'])}{limit}")
    if summary["emulated"]:
        words.append(f"{summary['emulated']} stay emulated")
    if summary["filling"]:
        words.append(f"fetching {summary['filling']}")
    return ", ".join(words)


def _set_head(each: dict[str, Any], stream: Any) -> str:
    used = f"used {render.duration(time.time() - each['used'])} ago" if each["used"] else "unused"
    title = render.paint(f"{each['release']} {each['foreign']}", "ok", stream)
    return (
        f"{title} (set {each['name']}): {len(each['tools'])} tools, {size(each['size'])}, made"
        f" {render.duration(time.time() - each['made'])} ago from {each['mirror']}, {used}"
    )


def _tools(each: dict[str, Any], wanted: str, everything: bool) -> str:
    """The tools of a set by package; each by itself when something was asked for, and "" where
    there is none of it."""
    if not wanted and not everything:
        return _packages(each)
    rows = []
    for tool in each["tools"]:
        if wanted in ("", each["name"], tool["tool"], tool["package"], tool["path"]):
            twin = f"{tool['native_package']} {tool['native_version']}"
            package = f"{tool['package']} {tool['version']}"
            rows.append([tool["tool"], "native", package, twin, tool["why"]])
    for tool in each["left"]:
        if wanted in ("", each["name"], tool["tool"], tool["package"]):
            package = f"{tool['package']} {tool['version']}"
            rows.append([tool["tool"], "emulated", package, "-", tool["reason"]])
    if not rows and wanted:
        return ""
    return render.table(sorted(rows), ("TOOL", "RUNS", "PACKAGE", "STANDS IN", "WHY"), sys.stdout)


def _packages(each: dict[str, Any]) -> str:
    """A row for each package: what stands in for how many of its programs, or why nothing does."""
    names: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for tool in each["tools"]:
        package = f"{tool['package']} {tool['version']}"
        names["native", package, f"{tool['native_package']} {tool['native_version']}"].append(
            tool["tool"]
        )
    for tool in each["left"]:
        key = "emulated", f"{tool['package']} {tool['version']}", tool["reason"]
        names[key].append(tool["tool"])
    rows = [
        [runs, package, what, _few(tools)]
        for (runs, package, what), tools in sorted(names.items(), reverse=True)
    ]
    return render.table(rows, ("RUN", "PACKAGE", "STANDS IN, OR WHY NOT", "TOOLS"), sys.stdout)


def _few(names: list[str]) -> str:
    """The first names, each once, with how many there are of it."""
    counts = Counter(names)
    shown = [
        name if count == 1 else f"{name} ({count})" for name, count in list(counts.items())[:SHOWN]
    ]
    return ", ".join([*shown, *(["…"] if len(counts) > SHOWN else [])])


# Keeping ----------------------------------------------------------------------------------------


def verify(client: Client, as_json: bool) -> int:
    """Check the store's files; 1 when one is not as it was made."""
    with client:
        damages = client.call("io.maid.Store.Verify")["damages"]
    if as_json:
        show_json({"damages": damages})
    else:
        for damage in damages:
            print(f"{render.mark('failed', sys.stdout)}  {damage['path']}: {damage['problem']}")
        if damages:
            print("the damaged sets were removed: their programs are emulated until fetched again")
        else:
            print(f"{render.mark('ok', sys.stdout)}  every file is as it was made")
    return 1 if damages else 0


def prune(client: Client, limit: str, unused: float | None, as_json: bool) -> int:
    """Remove what is not used."""
    from maid.cli.run import parse_size

    parameters: dict[str, Any] = {}
    if limit:
        try:
            parameters["size"] = parse_size(limit)
        except StepRefused as error:  # not of a step here: no status of its own
            raise UsageError(error.message, error.hint) from error
        if parameters["size"] < 0:
            raise UsageError(f"{limit!r} is less than nothing", "0 removes everything")
    if unused is not None:
        parameters["unused"] = unused * DAY
    if not parameters:
        raise UsageError("what may go was not said", "--size 1g, or --unused DAYS")
    with client:
        removed = client.call("io.maid.Store.Prune", parameters)["removed"]
    if as_json:
        keys = ("name", "release", "foreign", "size")
        show_json({"removed": [{key: each[key] for key in keys} for each in removed]})
        return 0
    for each in removed:
        print(f"removed {each['release']} {each['foreign']} ({each['name']}, {size(each['size'])})")
    freed = sum(each["size"] for each in removed)
    print(f"removed {render.sets(len(removed))}, {size(freed)}")
    return 0


def size(number: int) -> str:
    """ "512 B", "3.4 MiB"."""
    value, units = float(number), ["B", "KiB", "MiB", "GiB", "TiB"]
    while value >= 1024 and len(units) > 1:
        value /= 1024
        units.pop(0)
    return (
        f"{value:.0f} {units[0]}" if units[0] == "B" or value >= 100 else f"{value:.1f} {units[0]}"
    )


def architecture(text: str) -> str:
    """Debian's name of "arm64", "linux/arm64" or "linux/arm/v7". Raises UsageError."""
    known = {"linux/arm/v7": "armhf", "linux/arm/v5": "armel", "linux/386": "i386",
             "linux/ppc64le": "ppc64el", "linux/mips64le": "mips64el"}  # fmt: skip
    if text in known:
        return known[text]
    name = text.removeprefix("linux/")
    if not re.fullmatch(r"[a-z0-9-]+", name):
        raise UsageError(f"{text!r} is no architecture", "for example arm64 or linux/arm64")
    return name
