"""docs/acceleration.md has the tables as they are."""

from pathlib import Path

from maid.acceleration import describe
from maid.acceleration.tools import TOOLS

PAGE = Path(__file__).parents[2] / "docs/acceleration.md"


def test_the_page_has_the_tables_of_the_code() -> None:
    text = PAGE.read_text()
    assert text == describe.rewritten(text), "python -m maid.acceleration.describe " + str(PAGE)


def test_every_tool_is_in_the_tables() -> None:
    tables = describe.markdown()
    for tool in TOOLS:
        assert describe._name(tool) in tables
