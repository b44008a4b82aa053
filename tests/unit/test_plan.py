"""emulation/plan.py: what to do about one target, for every situation that the rules speak of."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from maid.binfmt.entry import Entry
from maid.config import Prefer
from maid.emulation.emulators import Offer
from maid.emulation.interpreters import Interpreter
from maid.emulation.plan import (
    Action,
    Register,
    Remove,
    Renew,
    Situation,
    SwitchOn,
    Verdict,
    name_for,
    plan,
)
from maid.emulation.ratings import Rating
from maid.emulation.targets import TARGETS

TARGET = TARGETS["aarch64"]
OFFER = Offer(TARGET, "/q", "POCF", 1, 2, "abc", Interpreter(Path("/q")), Rating())
UPGRADED = replace(OFFER, inode=3, sha256="def")
MINE = OFFER.record("qemu-aarch64")
OTHER = Entry("qemu-aarch64", "/other", TARGET.magic, TARGET.mask, "F")


def actions(**changed: Any) -> list[Action]:
    values: dict[str, Any] = {
        "target": "aarch64",
        "wanted": True,
        "offers": (OFFER,),
        "mine": (),
        "lost": (),
        "others": (),
        "newer": (),
        "taken": frozenset(),
        "avoided": frozenset(),
        "verdict": Verdict.UNKNOWN,
        "prefer": Prefer.ADOPT,
    }
    return plan(Situation(**{**values, **changed}))


def mine(offer: Offer = OFFER, name: str = "qemu-aarch64", enabled: bool = True) -> Any:
    record = offer.record(name)
    return (record, replace(record.entry(), enabled=enabled))


def test_nothing_there_registers_under_the_name_others_look_for() -> None:
    assert actions() == [Register(OFFER, "qemu-aarch64")]


def test_nothing_to_register_does_nothing() -> None:
    assert actions(offers=()) == []


def test_as_it_should_be_does_nothing() -> None:
    assert actions(mine=(mine(),), verdict=Verdict.WORKS) == []


def test_rule_1_a_working_foreign_entry_is_adopted() -> None:
    assert actions(others=(OTHER,), verdict=Verdict.WORKS, taken=frozenset({OTHER.name})) == []


def test_a_foreign_entry_is_probed_before_anything_is_decided() -> None:
    assert actions(others=(OTHER,), verdict=Verdict.UNKNOWN, taken=frozenset({OTHER.name})) == []


def test_rule_1_a_broken_foreign_entry_is_shadowed_and_stays() -> None:
    done = actions(others=(OTHER,), verdict=Verdict.FAILS, taken=frozenset({OTHER.name}))
    assert done == [Register(OFFER, "maid-aarch64")]


def test_prefer_own_shadows_a_working_foreign_entry() -> None:
    done = actions(others=(OTHER,), verdict=Verdict.WORKS, prefer=Prefer.OWN,
                   taken=frozenset({OTHER.name}))  # fmt: skip
    assert done == [Register(OFFER, "maid-aarch64")]


@pytest.mark.parametrize("verdict", list(Verdict))
def test_rule_1_a_foreign_entry_is_never_touched(verdict: Verdict) -> None:
    for prefer in Prefer:
        for ours in ((), (mine(name="maid-aarch64"),)):
            done = actions(others=(OTHER,), newer=(OTHER,), mine=ours, verdict=verdict,
                           prefer=prefer, taken=frozenset({OTHER.name}))  # fmt: skip
            for action in done:
                named = action.name if isinstance(action, Register) else action.record.name
                assert named != OTHER.name


def test_a_removed_entry_comes_back_under_its_name() -> None:
    assert actions(lost=("maid-aarch64",)) == [Register(OFFER, "maid-aarch64", healing=True)]


def test_a_disabled_entry_is_enabled() -> None:
    assert actions(mine=(mine(enabled=False),)) == [SwitchOn(MINE)]


def test_an_upgraded_interpreter_is_renewed() -> None:
    (done,) = actions(mine=(mine(),), offers=(UPGRADED,))
    assert isinstance(done, Renew) and done.offer == UPGRADED and done.record == MINE


def test_an_interpreter_that_is_gone_keeps_serving() -> None:
    assert actions(mine=(mine(),), offers=(), verdict=Verdict.WORKS) == []


def test_excluded_by_the_configuration_is_removed() -> None:
    (done,) = actions(mine=(mine(),), wanted=False)
    assert isinstance(done, Remove)


def test_an_interrupted_renewal_is_finished_without_a_gap() -> None:
    between = mine(name="qemu-aarch64.next")
    done = actions(mine=(between,), taken=frozenset({"qemu-aarch64.next"}))
    assert [type(action) for action in done] == [Register, Remove]
    assert isinstance(done[0], Register) and done[0].name == "qemu-aarch64"


def test_what_a_renewal_left_over_is_removed_after_the_proper_one_is_there() -> None:
    done = actions(mine=(mine(), mine(name="qemu-aarch64.next")))
    assert [type(action) for action in done] == [Remove]
    done = actions(mine=(mine(), mine(name="qemu-aarch64.next")), offers=(UPGRADED,))
    assert [type(action) for action in done] == [Renew, Remove]


def test_a_newer_broken_foreign_entry_is_outranked() -> None:
    ours = (mine(name="maid-aarch64"),)
    there = {"mine": ours, "others": (OTHER,), "newer": (OTHER,), "taken": frozenset({OTHER.name})}
    (done,) = actions(verdict=Verdict.FAILS, **there)
    assert isinstance(done, Renew) and done.for_rank
    assert actions(verdict=Verdict.WORKS, **there) == []
    assert actions(verdict=Verdict.UNKNOWN, **there) == []


def test_a_name_that_somebody_may_come_back_to_is_left_free() -> None:
    done = actions(avoided=frozenset({"qemu-aarch64"}))
    assert done == [Register(OFFER, "maid-aarch64")]


def test_names_never_run_out() -> None:
    assert name_for("arm", frozenset()) == "qemu-arm"
    taken = frozenset({"qemu-arm", "maid-arm", "maid-arm-2"})
    assert name_for("arm", taken) == "maid-arm-3"


STANDIN = mine(name="qemu-aarch64.next")


def test_a_stand_in_gives_the_name_back_to_ours() -> None:
    done = actions(mine=(STANDIN,), taken=frozenset({STANDIN[0].name}), verdict=Verdict.WORKS)
    assert done == [
        Register(OFFER, "qemu-aarch64"),
        Remove(STANDIN[0], "its renewal is finished"),
    ]


def test_a_stand_in_gives_way_to_a_newer_entry_of_somebody_elses_once_that_is_proven() -> None:
    there = {
        "mine": (STANDIN,),
        "others": (OTHER,),
        "newer": (OTHER,),
        "taken": frozenset({OTHER.name, STANDIN[0].name}),
    }
    assert actions(**there, verdict=Verdict.UNKNOWN) == []
    assert actions(**there, verdict=Verdict.WORKS) == [
        Remove(STANDIN[0], "qemu-aarch64 serves"),
    ]
    shadowing = [
        Register(OFFER, "maid-aarch64"),
        Remove(STANDIN[0], "its renewal is finished"),
    ]
    assert actions(**there, verdict=Verdict.FAILS) == shadowing
    assert actions(**there, verdict=Verdict.WORKS, prefer=Prefer.OWN) == shadowing


def test_a_stand_in_that_came_after_somebody_elses_entry_serves_on_beside_it() -> None:
    done = actions(
        mine=(STANDIN,),
        others=(OTHER,),
        taken=frozenset({OTHER.name, STANDIN[0].name}),
        verdict=Verdict.WORKS,
    )
    assert done == [
        Register(OFFER, "maid-aarch64"),
        Remove(STANDIN[0], "its renewal is finished"),
    ]
