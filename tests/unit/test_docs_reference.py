"""The reference says what the code does: options, settings, exit statuses, interfaces."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from maid import errors
from maid.cli import describe
from maid.config import Config, load
from maid.service.describe import INTERFACES
from maid.service.describe import describe as interfaces

REPOSITORY = Path(__file__).resolve().parents[2]
DOCS = REPOSITORY / "docs"


def test_the_options_are_those_of_the_commands() -> None:
    assert (DOCS / "options.md").read_text() == describe.options(), (
        "run python -m maid.cli.describe docs"
    )


def test_no_command_and_no_option_is_left_out() -> None:
    """The generator itself: commands that are made late, and their options, are in it."""
    text = describe.options()
    assert {words for words, _ in describe.commands()} >= {"status", "run", "build", "accel verify"}
    for words, command in describe.commands():
        section = text.partition(f"\n## maid {words}\n")[2].partition("\n## ")[0]
        for option in describe.options_of(command):
            assert option.help, f"{words} {option.name} says nothing of itself"
            for name in (*option.opts, *option.secondary_opts):
                assert f"`{name}`" in section, f"{words} {name}"


def test_every_command_has_a_row_with_its_exit_status() -> None:
    rows = [line for line in (DOCS / "cli.md").read_text().splitlines() if line.startswith("| `")]
    for words, _ in describe.commands():
        mine = [row for row in rows if re.search(rf"`maid {words}[ `]", row)]
        assert mine, words
        for row in mine:
            status = row.rstrip(" |").rpartition(" | ")[2]
            assert re.search(r"\b(0|the command's|as `maid run`)", status), row


def test_the_settings_are_those_of_the_code() -> None:
    assert (DOCS / "configuration.md").read_text() == describe.configuration(), (
        "run python -m maid.cli.describe docs"
    )


def test_no_setting_is_left_out(tmp_path: Path) -> None:
    """Every key of the table can be set to its default, and the file is taken."""
    text = describe.configuration()
    made = ""
    for section in text.split("\n## [")[1:]:
        name, _, rest = section.partition("]\n")
        made += f"[{name.replace('NAME', 'aarch64')}]\n"
        for key, default in re.findall(r"^\| `(\w+)` \| .*? \| (unset|`.*?`) \|", rest, re.M):
            if default != "unset":
                made += f"{key} = {default.strip('`')}\n"
    path = tmp_path / "maid.toml"
    path.write_text(made)
    plain = tmp_path / "empty.toml"
    plain.write_text("")
    loaded, defaults = load(path), load(plain)
    assert {name for name in Config.__struct_fields__ if f"[{name}]" not in made} == set()
    assert loaded.steps == defaults.steps
    assert loaded.acceleration == defaults.acceleration
    assert loaded.paths == defaults.paths
    assert loaded.emulation.probe_timeout == defaults.emulation.probe_timeout


def test_the_exit_statuses_are_those_of_the_errors() -> None:
    section = (DOCS / "cli.md").read_text().partition("\n## Exit statuses\n")[2]
    section = section.partition("\n## ")[0]
    documented = {
        name: int(status)
        for status, names in re.findall(
            r"^\| (\d+) \| .* \| ([A-Z]\w+(?:, \w+)*) \|$", section, re.M
        )
        for name in names.split(", ")
    }
    classes = {
        name: kind.exit_status
        for name, kind in inspect.getmembers(errors, inspect.isclass)
        if issubclass(kind, errors.MaidError)
    }
    assert documented == classes


@pytest.mark.parametrize("interface", INTERFACES, ids=lambda each: each.name)
def test_the_interfaces_are_those_of_the_service(interface: type, tmp_path: Path) -> None:
    interfaces(tmp_path)
    name = f"{interface.name}.varlink"  # type: ignore[attr-defined]
    assert (DOCS / name).read_text() == (tmp_path / name).read_text(), (
        "run python -m maid.service.describe docs units"
    )
