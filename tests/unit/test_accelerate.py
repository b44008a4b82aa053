"""Whether a step gets the native store, and what is said when it does not."""

import asyncio
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from maid.config import Accelerate
from maid.errors import MaidError, StepRefused
from maid.steps import accelerate, rootfs
from maid.steps.accelerate import Accelerator
from maid.steps.step import Outcome, Result


@dataclass(frozen=True)
class Seen:
    ready: bool
    reason: str = ""


@dataclass
class Store:
    """A store that says what it is told to, and notes what it was asked."""

    answer: Seen | Exception = Seen(True)
    directory: int | None = 7
    asked: list[tuple[bool, bool, bool]] = field(default_factory=list)

    def root(self) -> int | None:
        return self.directory

    async def seen(self, rootfs: int, *, wait: bool, require: bool, trusted: bool) -> Seen:
        self.asked.append((wait, require, trusted))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def tools_of(self, ids: Iterable[bytes]) -> dict[bytes, str]:
        return {}


def store_for(
    store: Store | None,
    tmp_path: Path,
    wish: Accelerate = Accelerate.AUTO,
    *,
    front: bool = True,
    trusted: bool = True,
) -> tuple[int, list[str]]:
    told: list[str] = []
    root = os.open(tmp_path, os.O_PATH)
    try:
        made = accelerate.native_store(
            store, wish, root, front=front, trusted=trusted, tell=told.append
        )
        return asyncio.run(made), told
    finally:
        os.close(root)


def test_a_step_gets_the_store(tmp_path: Path) -> None:
    store = Store()
    assert store_for(store, tmp_path) == (7, [""])
    assert store.asked == [(True, False, True)]


def test_a_step_that_wants_none_is_not_even_looked_at(tmp_path: Path) -> None:
    store = Store()
    assert store_for(store, tmp_path, Accelerate.OFF) == (-1, [])
    assert store.asked == []


def test_a_store_that_has_nothing_yet_is_there_all_the_same(tmp_path: Path) -> None:
    """It may grow while the step runs."""
    directory, told = store_for(Store(Seen(False, "they are being fetched")), tmp_path)
    assert directory == 7
    assert told == ["no native tools for a root file system: they are being fetched"]


def test_a_store_that_is_switched_off_while_a_step_waits_is_none(tmp_path: Path) -> None:
    """Its descriptor is closed then, and may soon be somebody else's."""

    class Ending(Store):
        async def seen(self, rootfs: int, *, wait: bool, require: bool, trusted: bool) -> Seen:
            self.directory = None
            return await super().seen(rootfs, wait=wait, require=require, trusted=trusted)

    assert store_for(Ending(), tmp_path)[0] == -1
    with pytest.raises(StepRefused, match="no native store"):
        store_for(Ending(), tmp_path, Accelerate.REQUIRE)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), MaidError("odd")])
def test_what_fails_in_looking_is_told_and_no_more(tmp_path: Path, error: Exception) -> None:
    directory, told = store_for(Store(error), tmp_path)
    assert directory == 7 and len(told) == 1 and str(error) in told[0]


@pytest.mark.parametrize(
    "store, front, words",
    [
        (None, True, "switched off"),
        (Store(directory=None), True, "switched off"),
        (Store(), False, "maid's copy of QEMU"),
        (Store(Seen(False, "no such versions")), True, "no such versions"),
        (Store(OSError(5, "Input/output error")), True, "Input/output error"),
    ],
)
def test_what_is_required_is_an_error_where_it_cannot_be(
    tmp_path: Path, store: Store | None, front: bool, words: str
) -> None:
    with pytest.raises(StepRefused, match=words):
        store_for(store, tmp_path, Accelerate.REQUIRE, front=front)
    directory, _ = store_for(store, tmp_path, front=front)
    assert (directory == -1) == (words in ("switched off", "maid's copy of QEMU"))


def test_required_and_there(tmp_path: Path) -> None:
    store = Store()
    assert store_for(store, tmp_path, Accelerate.REQUIRE) == (7, [""])
    assert store.asked == [(True, True, True)]


def test_a_members_file_system_that_may_never_answer_is_not_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rootfs, "LOCAL", frozenset())
    store = Store()
    directory, told = store_for(store, tmp_path, trusted=False)
    assert directory == 7 and "may not answer" in told[0]
    assert store.asked == []
    assert store_for(store, tmp_path)[1] == [""]


def test_a_reason_is_an_event_once_and_gone_when_it_does_not_hold_any_more(tmp_path: Path) -> None:
    events: list[tuple[str, str, str]] = []
    store = Store(Seen(False, "being fetched"))
    made = Accelerator(store, lambda *event: events.append(event))
    roots = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        roots.append(os.open(tmp_path / name, os.O_PATH))

    def directory(root: int) -> int:
        return asyncio.run(
            made.directory("linux/arm64", Accelerate.AUTO, root, front=True, trusted=True)
        )

    for root in (*roots, *roots):
        assert directory(root) == 7
    told = "no native tools for a root file system: being fetched"
    assert events == [("emulated", "linux/arm64", told)]
    store.answer = Seen(True)
    directory(roots[0])
    assert made.reasons() == [told]
    directory(roots[1])
    assert made.reasons() == []
    for root in roots:
        os.close(root)


def test_what_a_step_makes_up_is_counted_under_one_name() -> None:
    """A metric has a line for each name, for good."""
    made = Accelerator(Store(), lambda *_: None)
    result = Result(Outcome.exited, 0, None, None, 0.0, 0.0, 0.0, 0, "emulated", None)
    for number in range(50):
        text = f"n {number:040x} 2\n"
        counted = made.counted("1", "linux/arm64", text, result)
        assert counted.native == {f"{number:040x}": 2}
    assert made.native == {accelerate.OTHER: 100}


def test_only_so_many_root_file_systems_are_remembered(tmp_path: Path) -> None:
    store = Store()
    made = Accelerator(store, lambda *_: None)
    for number in range(accelerate.REMEMBERED + 5):
        (tmp_path / str(number)).mkdir()
        root = os.open(tmp_path / str(number), os.O_PATH)
        store.answer = Seen(False, str(number))
        asyncio.run(made.directory("p", Accelerate.AUTO, root, front=True, trusted=True))
        os.close(root)
    assert len(made.reasons()) == accelerate.REMEMBERED
    assert made.reasons()[-1].endswith(f": {accelerate.REMEMBERED + 4}")
