"""What the daemon has fetched for whom, how much of it at once, and what it remembers."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from maid.acceleration import manager, worker
from maid.acceleration.fill import Done, Request
from maid.acceleration.manager import Acceleration
from maid.acceleration.worker import FillFailed
from maid.config import Accelerate, Config, Fill
from maid.settings import Acceleration as Settings
from maid.settings import Paths


class Fetching:
    """Stands in for the process that fills the store: notes what it is asked, and answers when the
    gate is open."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.gate = asyncio.Event()
        self.asked: list[Request] = []
        self.answer: Done | Exception = Done(set="abcde", new=False, tools=0, size=0, left=[])
        monkeypatch.setattr(worker, "run", self.run)

    async def run(self, request: Request, _: Callable[[str], None]) -> Done:
        self.asked.append(request)
        await self.gate.wait()
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def config(tmp_path: Path, accelerate: Accelerate = Accelerate.AUTO) -> Config:
    return Config(
        acceleration=Settings(accelerate=accelerate, fill=Fill.AUTO),
        paths=Paths(runtime=tmp_path / "run", state=tmp_path / "state"),
    )


def tree(tmp_path: Path, version: str, mirror: str = "") -> int:
    """A descriptor of a root file system that has xz of this version."""
    root = tmp_path / f"tree-{version}{len(mirror)}"
    (root / "etc/apt").mkdir(parents=True)
    (root / "var/lib/dpkg").mkdir(parents=True)
    (root / "etc/os-release").write_text("ID=debian\nVERSION_CODENAME=trixie\n")
    (root / "etc/apt/sources.list").write_text(f"deb {mirror} trixie main\n" if mirror else "")
    (root / "var/lib/dpkg/status").write_text(
        "\n\n".join(
            f"Package: {name}\nStatus: install ok installed\nVersion: {each}\nArchitecture: arm64"
            for name, each in (("dpkg", "1"), ("xz-utils", version))
        )
    )
    return os.open(root, os.O_PATH | os.O_DIRECTORY)


def run(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    scenario: Callable[[Acceleration, Fetching], Awaitable[None]],
) -> list[tuple[str, str, str]]:
    """Run a scenario; what was emitted."""
    events: list[tuple[str, str, str]] = []

    async def main() -> None:
        fetching = Fetching(monkeypatch)
        made = Acceleration(config(tmp_path), lambda *event: events.append(event))
        await scenario(made, fetching)
        await made.close()

    asyncio.run(main())
    return events


async def settled(made: Acceleration) -> None:
    while made._filling:
        await asyncio.sleep(0.001)


def test_only_so_many_wait_for_their_tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(made: Acceleration, fetching: Fetching) -> None:
        roots = [tree(tmp_path, str(number)) for number in range(manager.QUEUE + 3)]
        seen = [await made.seen(root, wait=False) for root in roots]
        assert all("they are being fetched" in each.reason for each in seen[: manager.QUEUE])
        assert all("others are being fetched first" in s.reason for s in seen[manager.QUEUE :])
        fetching.gate.set()
        await settled(made)
        assert len(fetching.asked) == manager.QUEUE

    run(tmp_path, monkeypatch, scenario)


def test_what_was_not_to_be_had_is_not_asked_for_again_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(made: Acceleration, fetching: Fetching) -> None:
        fetching.gate.set()
        fetching.answer = FillFailed("no network")
        for number in range(manager.FAILURES + 3):
            root = tree(tmp_path, str(number))
            await made.seen(root, wait=False)
            await settled(made)
        assert (await made.seen(root, wait=False)).reason == "no network"
        assert len(fetching.asked) == manager.FAILURES + 3
        assert len(made.status().failures) == manager.FAILURES

    run(tmp_path, monkeypatch, scenario)


def test_what_a_member_cannot_have_root_may(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A member's root file system may not say where to ask; root's own, with the same packages,
    must not fail for that."""

    async def scenario(made: Acceleration, fetching: Fetching) -> None:
        fetching.gate.set()
        fetching.answer = FillFailed("no network")
        root = tree(tmp_path, "1", "http://mirror.example/debian")
        await made.seen(root, wait=False, trusted=False)
        await settled(made)
        await made.seen(root, wait=False, trusted=True)
        await settled(made)
        assert [each.named for each in fetching.asked] == [[], ["http://mirror.example/debian"]]

    run(tmp_path, monkeypatch, scenario)


def test_switched_off_while_tools_are_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(made: Acceleration, fetching: Fetching) -> None:
        for version in ("1", "2"):
            await made.seen(tree(tmp_path, version), wait=False)
        while not fetching.asked:
            await asyncio.sleep(0)
        made.configure(config(tmp_path, Accelerate.OFF))
        assert made.root() is None
        fetching.gate.set()
        await settled(made)
        assert len(fetching.asked) == 1

    events = run(tmp_path, monkeypatch, scenario)
    (refused,) = [words for kind, _, words in events if kind == "refused"]
    assert "switched off" in refused


def test_a_store_that_was_replaced_is_not_handed_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(made: Acceleration, _: Fetching) -> None:
        assert made.root() is not None
        (tmp_path / "state/store").rename(tmp_path / "state/old")
        assert (made.root(), made.root()) == (None, None)
        shutil.copytree(tmp_path / "state/old", tmp_path / "state/store", symlinks=True)
        assert made.root() is None and made.status().sets == []
        assert not (await made.seen(tree(tmp_path, "1"), wait=False)).ready
        made.configure(config(tmp_path))
        root = made.root()
        assert root is not None
        assert os.path.samestat(os.fstat(root), os.stat(tmp_path / "state/store"))
        assert made.status().problem == ""

    events = run(tmp_path, monkeypatch, scenario)
    assert [kind for kind, _, words in events if "removed or replaced" in words] == ["refused"]
