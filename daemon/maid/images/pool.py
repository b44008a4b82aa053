"""Several things at once, ended at once: what is interrupted does not go on with what waits.

concurrent.futures cannot be interrupted everywhere: where an interrupt meets it between taking a
lock and noting that, nobody gets that lock again (seen with Python 3.11, once in a hundred times).
So nothing here takes one in the main thread: lists are appended to, and looked at.
"""

from __future__ import annotations

import _thread
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import TypeVar

_T = TypeVar("_T")
_R = TypeVar("_R")

_POLL_SECONDS = 0.02


class Ended(Exception):
    """Another one failed, or the user has had enough."""


def each(
    function: Callable[[_T, Callable[[], None]], _R], items: Iterable[_T], at_once: int
) -> list[_R]:
    """What `function` makes of every item, in their order, `at_once` of them at a time.

    It gets something to call now and then besides, which raises Ended where it is to end. Raises
    what the first of them raises that does not work; none is running then.
    """
    todo = deque(enumerate(items))
    made: dict[int, _R] = {}
    failed: list[BaseException] = []
    over: list[bool] = []
    finished: list[bool] = []

    def go_on() -> None:
        if over:
            raise Ended

    def take() -> tuple[int, _T] | None:
        try:
            return todo.popleft()
        except IndexError:
            return None

    def work() -> None:
        try:
            while not over and (taken := take()):
                number, item = taken
                made[number] = function(item, go_on)
        except BaseException as error:
            failed.append(error)
            over.append(True)
        finally:
            finished.append(True)

    started = 0
    try:
        for _ in range(at_once):
            _thread.start_new_thread(work, ())
            started += 1
        while len(finished) < started:
            time.sleep(_POLL_SECONDS)
    finally:
        over.append(True)
        while len(finished) < started:
            time.sleep(_POLL_SECONDS)
    if failed:
        raise failed[0]
    return [made[number] for number in sorted(made)]
