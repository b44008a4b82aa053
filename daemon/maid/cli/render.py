"""What people see: tables, colours and symbols, the latter two on a terminal only.

Plain string work: rich takes longer to import than a whole `maid status` may take.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any, TextIO

from maid.errors import MaidError

_COLOURS = {
    "native": "32",
    "ready": "32",
    "ok": "32",
    "degraded": "33",
    "warning": "33",
    "note": "36",
    "failed": "31",
    "problem": "31",
    "absent": "2",
    "disabled": "2",
    "skipped": "2",
}
_SYMBOLS = {
    "native": "●",
    "ready": "●",
    "ok": "✓",
    "degraded": "◐",
    "warning": "!",
    "note": "·",
    "failed": "✗",
    "problem": "✗",
    "absent": "○",
    "disabled": "○",
    "skipped": "○",
}


_ESCAPES = re.compile(r"\033\[[0-9;]*m")

_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f]")
"""The control characters of ISO 646 and ISO 8859."""


def is_terminal(stream: TextIO) -> bool:
    """Whether colours and symbols are wanted: on a terminal that is not dumb, unless NO_COLOR is
    set and not empty (no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def width(stream: TextIO) -> int:
    """The columns of the terminal, or 0 where there is no limit."""
    if not stream.isatty():
        return 0
    if (given := os.environ.get("COLUMNS", "")).isdecimal():
        return int(given)
    try:
        return os.get_terminal_size(stream.fileno()).columns
    except OSError:
        return 0


def paint(text: str, kind: str, stream: TextIO) -> str:
    """`text` in the colour of `kind` (a state or a level)."""
    colour = _COLOURS.get(kind)
    return f"\033[{colour}m{text}\033[0m" if colour and is_terminal(stream) else text


def mark(kind: str, stream: TextIO) -> str:
    """`kind` with its symbol and colour on a terminal, the bare word elsewhere."""
    if not is_terminal(stream):
        return kind
    symbol = _SYMBOLS.get(kind, " ") if _has_symbols(stream) else ""
    return paint(f"{symbol} {kind}".strip(), kind, stream)


def _has_symbols(stream: TextIO) -> bool:
    return (stream.encoding or "").lower().replace("-", "") == "utf8"


def table(
    rows: Sequence[Sequence[str]],
    header: Sequence[str],
    stream: TextIO,
    expendable: Sequence[str] = (),
) -> str:
    """Aligned columns; widths are counted without the escapes of colours.

    On a terminal that is too narrow the columns of the names `expendable` are left out, the first
    of them first.
    """
    shown = list(range(len(header)))
    everything = [list(header), *(list(row) for row in rows)]
    widths = [max(_width(row[i]) for row in everything) for i in shown]
    limit = width(stream)
    for name in expendable:
        if not limit or sum(widths[i] for i in shown) + 2 * (len(shown) - 1) <= limit:
            break
        shown.remove(header.index(name))
    lines = []
    for number, row in enumerate(everything):
        cells = [row[i] + " " * (widths[i] - _width(row[i])) for i in shown]
        line = "  ".join(cells).rstrip()
        lines.append(paint(line, "absent", stream) if number == 0 else line)
    return "\n".join(lines)


def _width(text: str) -> int:
    return len(_ESCAPES.sub("", text))


def plain(text: str) -> str:
    """`text` without anything that a terminal obeys, all of it one line: what comes from elsewhere
    may be made to hide or to fake what is shown."""
    return _CONTROLS.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def error(failure: MaidError) -> None:
    """One error on standard error: the sentence, then the way out, which stands below it."""
    stream = sys.stderr
    message, hint = (
        "\n      ".join(map(plain, text.split("\n"))) for text in (failure.message, failure.hint)
    )
    print(f"{paint('maid:', 'problem', stream)} {message}", file=stream)
    if hint:
        print(f"      {hint}", file=stream)


def status(document: dict[str, Any], stream: TextIO, everything: bool) -> str:
    """The status as one screen: two lines about the daemon, then a row for each platform.

    Without `everything`: no targets that have no platform, none that nobody asked for, and notes on
    those platforms only that do not run as they should.
    """
    rows, notes, hidden, noted = [], _Notes(), 0, 0
    for platform in document["platforms"]:
        quiet = platform["platform"] is None or (
            platform["state"] in ("absent", "disabled") and not platform["required"]
        )
        if quiet and not everything:
            hidden += 1
            continue
        rows.append(_platform_row(platform, stream))
        if platform["reason"]:
            if everything or platform["state"] not in ("ready", "native"):
                notes.add(platform["platform"] or platform["target"], platform["reason"])
            else:
                noted += 1
    text = [*_head(document, stream), "", table(rows, HEADER, stream, EXPENDABLE)]
    if notes.lines():
        text += ["", *notes.lines()]
    more = [f"notes on {_count(noted, 'platform')}"] if noted else []
    more += [_count(hidden, "more CPU")] if hidden else []
    if more:
        text += ["", paint(f"{' and '.join(more)}: maid status --all", "absent", stream)]
    return "\n".join(text)


def _head(document: dict[str, Any], stream: TextIO) -> list[str]:
    runtime = document["runtime"]
    steps = f"{runtime} {document['runtime_version'] or ''}".strip() if runtime else "none works"
    verdict = "ready" if document["ready"] else "failed"
    words = mark(verdict, stream).replace("failed", "not ready")
    facts = [f"table {document['instance']}", f"steps by {steps}"]
    if document["steps_running"]:
        facts.append(f"{document['steps_running']} running")
    if document["heals"]:
        facts.append(f"healed {document['heals']} times")
    return [
        f"{paint('maid', 'ok', stream)} {document['version']}, {document['scope']} scope,"
        f" Linux {document['kernel']}, up {duration(time.time() - document['started'])}: {words}",
        ", ".join(facts),
        *_store(document["store"], stream),
        *(
            f"{paint('!', 'warning', stream)} {document[key]}"
            for key in ("namespaces_problem", "runtime_problem", "limits_problem")
            if document[key]
        ),
    ]


def sets(number: int) -> str:
    """So many sets of the store, in words."""
    return "1 set" if number == 1 else f"{number} sets"


def _store(store: dict[str, Any], stream: TextIO) -> list[str]:
    """The native store: a line, and the newest reason why something was not accelerated."""
    if store["problem"]:
        return [f"no native store: {store['problem']}"]
    size = f"{store['size'] >> 20} MiB"
    line = f"native store: {store['tools']} tools in {sets(store['sets'])}, {size}"
    if store["filling"]:
        line += f"; fetching {store['filling']}"
    notes = [f"{paint('!', 'note', stream)} {reason}" for reason in store["reasons"][-1:]]
    return [line, *notes]


class _Notes:
    """What there is to say about platforms, once for all that it is true of."""

    def __init__(self) -> None:
        self._names: dict[str, list[str]] = {}

    def add(self, name: str, reason: str) -> None:
        self._names.setdefault(reason, []).append(name)

    def lines(self) -> list[str]:
        return [f"  {', '.join(names)}: {reason}" for reason, names in self._names.items()]


EXPENDABLE = ("FLAGS", "CPU", "PROBE", "VERSION", "BY")

HEADER = ("PLATFORM", "STATE", "BY", "VERSION", "FLAGS", "CPU", "PROBE")


def _platform_row(platform: dict[str, Any], stream: TextIO) -> list[str]:
    by = "this machine" if platform["via"] == "native" else platform["entry"] or "-"
    if platform["owner"] == "other":
        by += " (adopted)"
    probe = platform["probe"]
    return [
        platform["platform"] or f"({platform['target']})",
        mark(platform["state"], stream),
        by,
        platform["interpreter_version"] or "-",
        platform["flags"] or "-",
        platform["cpu"] or "-",
        f"{probe['ms']:.0f} ms" if probe and probe["ok"] else "failed" if probe else "-",
    ]


def ensured(results: Iterable[dict[str, Any]], stream: TextIO) -> str:
    """One line for each platform of `maid ensure`; a hint for several comes after the last."""
    lines = []
    results = list(results)
    for number, result in enumerate(results):
        found = result["status"]
        if found is None:
            lines.append(f"{mark('failed', stream)}  {result['platform']}: {result['message']}")
            hint = result["hint"]
            if hint and hint not in (later["hint"] for later in results[number + 1 :]):
                lines.append(f"      {hint}")
            continue
        by = "this machine" if found["via"] == "native" else found["interpreter"]
        took = f", {found['probe']['ms']:.0f} ms" if found["probe"] else ""
        lines.append(f"{mark(found['state'], stream)}  {result['platform']} ({by}{took})")
    return "\n".join(lines)


def event(entry: dict[str, Any], stream: TextIO) -> str:
    """One event as a line; with the date when it is not of the last twelve hours."""
    form = "%H:%M:%S" if time.time() - entry["time"] < 12 * 3600 else "%Y-%m-%d %H:%M:%S"
    moment = time.strftime(form, time.localtime(entry["time"]))
    grave = {"failed": "failed", "refused": "failed", "contended": "warning", "ready": "ok"}
    kind = paint(entry["kind"], grave.get(entry["kind"], "note"), stream)
    return " ".join(part for part in (moment, kind, entry["subject"], entry["message"]) if part)


def duration(seconds: float) -> str:
    """ "42 s", "3 min", "5 h", "2 days"."""
    for limit, unit, size in ((120, "s", 1), (7200, "min", 60), (172800, "h", 3600)):
        if seconds < limit:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86400:.0f} days"


def _count(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"
