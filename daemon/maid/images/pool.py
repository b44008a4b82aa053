"""Several things at once, ended at once: what is interrupted does not go on with what waits."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import TypeVar

_T = TypeVar("_T")
_R = TypeVar("_R")


class Ended(Exception):
    """Another one failed, or the user has had enough."""


def each(
    function: Callable[[_T, Callable[[], None]], _R], items: Iterable[_T], at_once: int
) -> list[_R]:
    """What `function` makes of every item, in their order, `at_once` of them at a time.

    It gets something to call now and then besides, which raises Ended where it is to end. Raises
    what the first of them raises that does not work; none is running then.
    """
    over = Event()

    def go_on() -> None:
        if over.is_set():
            raise Ended

    pool = ThreadPoolExecutor(at_once)
    try:
        return [done.result() for done in [pool.submit(function, item, go_on) for item in items]]
    finally:
        over.set()
        pool.shutdown(wait=True, cancel_futures=True)
