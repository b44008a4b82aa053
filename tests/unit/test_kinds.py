"""The kinds of events are one table, and everything that is said of them comes from it."""

import ast
from pathlib import Path

from maid.service.describe import catalog, events
from maid.service.kinds import KINDS

CHECKOUT = Path(__file__).parents[2]


def emitted() -> set[str]:
    """The kinds that the code emits: the first argument of every emit, also a choice of two, and
    of what is made of it beforehand."""
    found = set()
    for path in (CHECKOUT / "daemon/maid").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else ""
            first = node.args[:1] if name in ("emit", "_emit") else []
            if isinstance(node.func, ast.Name) and node.func.id == "partial":
                made = node.args[0]
                first = (
                    node.args[1:2]
                    if isinstance(made, ast.Attribute) and made.attr == "emit"
                    else []
                )
            for each in first:
                found |= {
                    part.value
                    for part in ast.walk(each)
                    if isinstance(part, ast.Constant) and isinstance(part.value, str)
                }
    return found


def test_every_kind_that_is_emitted_is_described_and_no_other() -> None:
    assert emitted() == set(KINDS)


def test_message_ids_are_unique_and_well_formed() -> None:
    identifiers = [kind.identifier for kind in KINDS.values()]
    assert len(set(identifiers)) == len(identifiers)
    assert all(len(each) == 32 and set(each) <= set("0123456789abcdef") for each in identifiers)


def test_what_is_written_is_what_the_table_says() -> None:
    again = "python -m maid.service.describe docs units"
    assert (CHECKOUT / "docs/events.md").read_text() == events(), again
    assert (CHECKOUT / "units/maid.catalog").read_text() == catalog(), again
