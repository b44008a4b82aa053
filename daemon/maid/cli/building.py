"""What people see of a build: a table that lives on a terminal, lines with a prefix elsewhere."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

from maid.cli import render
from maid.images.progress import Progress, State

if TYPE_CHECKING:
    from rich.table import Table

REFRESH = 5
"""Times a second that the table is drawn again."""

_MARKS = {
    State.WAITING: "absent",
    State.PREPARING: "note",
    State.BUILDING: "note",
    State.CHECKING: "note",
    State.BUILT: "ok",
    State.FAILED: "failed",
    State.ENDED: "absent",
}
_STYLES = {"absent": "dim", "note": "cyan", "ok": "green", "failed": "red"}


class Lines:
    """Every line of output with its platform before it, as it comes."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def begin(self, builds: Sequence[Progress]) -> None:
        """See Watcher."""

    def line(self, progress: Progress, text: str) -> None:
        """See Watcher."""
        with self._lock:
            print(f"[{progress.platform}] {text}", file=self._stream, flush=True)

    def changed(self, progress: Progress) -> None:
        """See Watcher. Only ends are told: the rest is in the lines."""
        if progress.state in (State.BUILT, State.FAILED, State.ENDED):
            self.line(progress, summary(progress))


class Quiet:
    """Nothing."""

    def __enter__(self) -> Quiet:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def begin(self, builds: Sequence[Progress]) -> None:
        """See Watcher."""

    def line(self, progress: Progress, text: str) -> None:
        """See Watcher."""

    def changed(self, progress: Progress) -> None:
        """See Watcher."""


class Live:
    """A table with a row for each platform: state, step, seconds, and the last line."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.live import Live as RichLive

        self._builds: list[Progress] = []
        console = Console(file=stream, no_color=not render.is_terminal(stream))
        self._live = RichLive(
            get_renderable=self._table, console=console, refresh_per_second=REFRESH
        )

    def __enter__(self) -> Live:
        self._live.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.__exit__(kind, value, trace)

    def begin(self, builds: Sequence[Progress]) -> None:
        """Show these."""
        self._builds = list(builds)

    def line(self, progress: Progress, text: str) -> None:
        """See Watcher. The table is drawn at its own pace."""

    def changed(self, progress: Progress) -> None:
        """See Watcher."""

    def _table(self) -> Table:
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, padding=(0, 2, 0, 0), expand=True, show_header=False)
        for _ in range(3):
            table.add_column(no_wrap=True)
        table.add_column(no_wrap=True, justify="right")
        table.add_column(no_wrap=True, ratio=1, overflow="ellipsis")
        for each in self._builds:
            table.add_row(
                Text(each.platform),
                Text(each.state.value, _STYLES[_MARKS[each.state]]),
                Text(_count(each)),
                Text(f"{each.seconds:.1f} s" if each.started else ""),
                Text(render.plain(_now(each)), "dim"),
            )
        return table


def _count(progress: Progress) -> str:
    step = progress.step
    if step is None:
        return ""
    stage = f"[{step.stage}/{step.stages}] " if step.stages > 1 else ""
    return f"{stage}{step.number}/{step.of}"


def _now(progress: Progress) -> str:
    if progress.state in (State.BUILT, State.FAILED, State.ENDED):
        return summary(progress)
    return progress.last


def summary(progress: Progress) -> str:
    """How a platform's build ended, in a line."""
    if progress.state is State.BUILT:
        cached = f", {progress.cached} of {progress.steps} steps cached" if progress.cached else ""
        fast = ", accelerated" if progress.accelerated else ""
        return f"built in {progress.seconds:.1f} s{cached}{fast}"
    if progress.state is State.ENDED:
        return "ended before it was done" if progress.started else "not begun"
    return f"failed: {progress.error}"


@contextmanager
def watching(stream: TextIO, quiet: bool, plain: bool) -> Iterator[Lines | Quiet | Live]:
    """What is told of a build on `stream`: `plain` wants lines even on a terminal."""
    watcher: Lines | Quiet | Live
    if quiet:
        watcher = Quiet()
    elif stream.isatty() and not plain:
        watcher = Live(stream)
    else:
        watcher = Lines(stream)
    with watcher:
        yield watcher


def show_failure(progress: Progress, hints: Sequence[str]) -> None:
    """On standard error: the platform, the step, its last lines, and where all of them are."""
    stream = sys.stderr
    head = render.paint(f"{progress.platform} failed", "failed", stream)
    step = f" at {progress.step}" if progress.step else ""
    print(f"{head}{render.plain(step)}", file=stream)
    for line in progress.tail:
        print(f"    {render.plain(line)}", file=stream)
    if progress.error and not any(progress.error in line for line in progress.tail):
        print(f"    {render.plain(progress.error)}", file=stream)
    for hint in hints:
        print(f"  {hint}", file=stream)
    print(f"  log: {progress.log}", file=stream)
