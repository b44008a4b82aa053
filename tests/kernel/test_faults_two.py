"""Two daemons at once: beside each other, and on the same table.

On one table nobody wins by force: what serves is adopted by the other. Where both are told to
register before others ([emulation] prefer = "own") each shadows the other once more, until the
patience of both is used up: then the newest entry serves, and each says that there is somebody.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemons import until
from faults import FEW, Faulted, all_is_well, ledger_of, table_of, well

HOST = "/proc/sys/fs/binfmt_misc"
AS_HOST = 'arguments=("${@/#private/host}"); exec "$0" "${arguments[@]}"'
"""The scope of the command that a test's daemon is started with, changed to host."""


class Hosting(Faulted):
    """A daemon of the host scope in a user and mount namespace of its own, where another table is
    mounted at the machine's place; or in that of `beside`."""

    def __init__(self, beside: Hosting | None = None, prefer: str = "adopt") -> None:
        if beside is None:
            # Nothing goes on should the mount fail: the machine's own table lies below.
            mount = f"set -e; mount -t binfmt_misc binfmt_misc {HOST}; "
            mount += f'[ "$(ls {HOST})" = "$(printf "register\\nstatus")" ]; '
            prelude = ["unshare", "--user", "--map-root-user", "--mount", "bash", "-c"]
            prelude.append(mount + AS_HOST)
        else:
            # setsid: bash must not take the arguments of nsenter for its own.
            prelude = ["nsenter", f"--target={beside.pid}", "--user", "--mount", "--"]
            prelude += ["bash", "-c", AS_HOST]
        super().__init__(f'{FEW}prefer = "{prefer}"\n', prelude=prelude)

    @property
    def table(self) -> Path:
        return self.inside(Path(HOST))


@pytest.fixture
def first() -> Iterator[Hosting]:
    with Hosting() as daemon:
        yield daemon.start()


def test_two_private_daemons_do_not_know_of_each_other() -> None:
    with Faulted() as one, Faulted() as other:
        one.start()
        other.start()
        befores = well(one), well(other)
        for _ in range(3):
            (one.table / "status").write_text("-1")
            assert len(table_of(other.table)) == 2
            one.ensure(befores[0].platforms)
        one.kill()
        all_is_well(other, befores[1])
        one.start()
        all_is_well(one, befores[0])
        all_is_well(other, befores[1])


def owners(daemon: Hosting) -> dict[str, str]:
    """Whose entries serve, as the daemon says."""
    return {p["platform"]: p["owner"] for p in daemon.status()["platforms"] if p["entry"]}


def served(daemon: Hosting) -> bool:
    results = daemon.ensure(["linux/arm64", "linux/riscv64"], timeout=20)
    return all(each["ok"] for each in results.values())


def test_the_second_on_one_table_adopts_what_the_first_registered(first: Hosting) -> None:
    with Hosting(beside=first) as second:
        second.start()
        assert set(owners(first).values()) == {"maid"}
        assert set(owners(second).values()) == {"other"}
        assert not ledger_of(second.runtime / "ledger/host.json")
        for _ in range(5):
            (first.table / "status").write_text("-1")
            assert until(lambda: served(first) and served(second), 20)
        quiet(first, second)
        # The first goes, and takes its entries away: the second serves.
        first.call("io.maid.Manager.Release")
        assert until(lambda: served(second), 20)
        assert until(lambda: set(owners(second).values()) == {"maid"}, 20)
        second.call("io.maid.Manager.Release")
        assert until(lambda: table_of(first.table) == {}, 20)


def test_two_that_both_want_to_be_first_come_to_rest() -> None:
    with Hosting(prefer="own") as first:
        first.start()
        with Hosting(beside=first, prefer="own") as second:
            second.start()
            assert until(lambda: served(first) and served(second), 30)
            # The first of them that has had enough makes pauses, and says so.
            assert until(lambda: contended(first) or contended(second), 60)
            assert until(lambda: served(first) and served(second), 20)
            second.call("io.maid.Manager.Release")
        assert until(lambda: served(first), 20)
        assert until(lambda: set(owners(first).values()) == {"maid"}, 20)
        first.call("io.maid.Manager.Release")
        assert until(lambda: table_of(first.table) == {}, 20)


def contended(daemon: Hosting) -> bool:
    """Whether it has said that somebody undoes what it does."""
    return any(event["kind"] == "contended" for event in daemon.events())


def quiet(*daemons: Hosting) -> None:
    """Hold that they come to rest: a second in which nobody tells of anything."""

    def told() -> int:
        return sum(daemon.status()["events"] for daemon in daemons)

    end = time.monotonic() + 45
    while time.monotonic() < end:
        before = told()
        if not until(lambda: told() != before, 1.0):  # noqa: B023
            return
    raise AssertionError([daemon.events()[-10:] for daemon in daemons])
