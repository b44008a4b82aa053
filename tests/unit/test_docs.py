"""What the pages of the project name is there: files, links, commands, options, settings."""

from __future__ import annotations

import functools
import glob
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pages
import pytest
import typer
from pages import PAGES, REPOSITORY, Line
from typer.core import TyperCommand

from maid.cli import common
from maid.cli.app import app
from maid.cli.describe import commands, keys, options_of

Refused = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")
"""What a command line that makes no sense raises; typer has click as a package or within itself."""

NAMES = [str(page.relative_to(REPOSITORY)) for page in PAGES]


@pytest.fixture(autouse=True)
def _unnamed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What --socket and --config of a parsed line leave behind is for nobody else."""
    monkeypatch.setattr(common.Named, "socket", "")
    monkeypatch.setattr(common.Named, "config", "")


# Links and files ----------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_link_leads_somewhere(page: Path) -> None:
    broken = []
    for link in pages.links(page):
        if re.match(r"[a-z]+://", link.text):
            continue
        path, _, anchor = link.text.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in pages.anchors(target)):
            broken.append(str(link))
    assert not broken


FOLDERS = ("daemon", "docs", "scripts", "tests", "units")
_PATH = re.compile(rf"(?<![\w/.<~-])(?:{'|'.join(FOLDERS)})/[\w.*@/-]*[\w*]")


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_file_of_the_repository_that_is_named_is_there(page: Path) -> None:
    missing = []
    for line in (*pages.split(page)[0], *pages.split(page)[1]):
        for name in _PATH.findall(line.text):
            if not glob.glob(str(REPOSITORY / name)):
                missing.append(f"{line.number}: {name}")
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_test_that_is_named_is_there(page: Path) -> None:
    files = {path.name for path in (REPOSITORY / "tests").glob("*/*.py")}
    text = page.read_text()
    assert not set(re.findall(r"\btest_\w+\.py", text)) - files
    patterns = re.findall(r"\btest_\w*\*\.py", text)
    assert all((REPOSITORY / "tests").glob(f"*/{pattern}") for pattern in patterns)


# Commands -----------------------------------------------------------------------------------------

_STAND_INS = {
    "S": "1",
    "N": "1",
    "SIZE": "1g",
    "DAYS": "1",
    "none|host": "host",
    "host|private": "host",
}
"""What the pages write where a number or one of two words is meant."""


@functools.cache
def _commands() -> dict[str, TyperCommand]:
    return dict(commands())


def _leaf(words: list[str]) -> tuple[TyperCommand | None, list[str]]:
    """The command that the words name, with what is left of them."""
    known = _commands()
    for count in (2, 1):
        if " ".join(words[:count]) in known:
            return known[" ".join(words[:count])], words[count:]
    return None, words


def _before(words: list[str]) -> list[str]:
    """The words without the options that stand before the command."""
    words = list(words)
    while words and words[0] in ("--socket", "--config"):
        del words[:2]
    return words


def _blocks(page: Path) -> Iterator[tuple[Line, list[str]]]:
    """Every command line of maid in the code blocks of a page; lines that go on are one."""
    gathered = ""
    for line in pages.split(page)[1]:
        text = gathered + line.text.strip() if gathered else line.text
        if text.endswith("\\"):
            gathered = text[:-1]
            continue
        gathered = ""
        for words in pages.commands(text):
            yield line, words


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_command_line_in_a_code_block_can_be_typed(page: Path) -> None:
    wrong = []
    for line, words in _blocks(page):
        if not words or "COMMAND" in words or re.match(r"\d", words[0]):
            continue  # not one command; or what one printed: maid 0.1.0, …
        if "|" in words[-1] and len(words) == 2:  # maid index inspect|create|…
            problem = "".join(
                "" if _leaf([words[0], name])[0] else f"no {name}" for name in words[1].split("|")
            )
        else:
            problem = _problem(_before(words))
        if problem and not (problem.startswith("Missing") and "…" in line.text):
            wrong.append(f"{line}\n  {words}: {problem}")
    assert not wrong


def _problem(words: list[str]) -> str:
    """What the command line says to these words, "" where it takes them."""
    if words in (["--help"], ["--version"], ["--install-completion"]) or words[-1:] == ["--help"]:
        return ""
    command, rest = _leaf(words)
    if command is None:
        whole = typer.main.get_command(app)
        try:  # a daemon's log, or "maid 0.1.0, host scope …" as a program prints it
            whole.resolve_command(typer.Context(whole), list(words))  # type: ignore[attr-defined]
        except Refused as error:
            return str(error)
        return "a group, without a command"
    rest = [_STAND_INS.get(word, word) for word in rest]
    try:
        command.make_context(command.name, rest)
    except Refused as error:
        return str(error)
    return ""


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_command_and_option_within_a_sentence_exists(page: Path) -> None:
    wrong = []
    for span in pages.spans(page):
        if not span.text.startswith("maid "):
            continue
        words = _before(span.text.split()[1:])
        if words[0].startswith("-"):
            continue
        if words[0].isupper() or (words[0] in ("accel", "index") and len(words) == 1):
            continue  # maid COMMAND --help
        command, rest = _leaf([word.rstrip("…,") for word in words])
        if command is None:
            wrong.append(f"{span}: no such command")
            continue
        has = {
            name
            for option in options_of(command)
            for name in (*option.opts, *option.secondary_opts)
        }
        has |= {"--socket", "--config", "--help"}
        given = re.findall(r"(?<![\w-])--[a-z][\w-]*", " ".join(rest).split(" -- ")[0])
        wrong += [f"{span}: {option}" for option in given if option not in has]
    assert not wrong


# Settings -----------------------------------------------------------------------------------------

OTHERS = ("engine.runtimes", "worker.oci")
"""Tables of other programs' files that the pages name."""


def _tables() -> dict[str, set[str]]:
    found: dict[str, set[str]] = {"emulation.target": set()}
    for table, key in keys():
        found.setdefault(table, set()).add(key)
    return found


def _table(name: str) -> str:
    return re.sub(r"^(emulation\.target)\..*", r"\1.NAME", name)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_setting_that_is_named_exists(page: Path) -> None:
    wrong = []
    tables = _tables()
    for span in pages.spans(page):
        named = re.match(r"\[([a-z][\w.]*)\](?: (\w+))?", span.text)
        if not named or named.group(1) in OTHERS:
            continue
        table, key = _table(named.group(1)), named.group(2)
        if table not in tables or (key and key not in tables[table]):
            wrong.append(str(span))
    table = ""
    for line in pages.split(page)[1]:
        text = line.text.strip()
        heading = re.fullmatch(r"\[([\w.]+)\]", text)
        if heading:
            table = heading.group(1)
            if table not in OTHERS and _table(table) not in tables:
                wrong.append(str(line))
        key = re.match(r"(\w+) = ", text)
        if key and table and table not in OTHERS and key.group(1) not in tables[_table(table)]:
            wrong.append(str(line))
        if not heading and not key and not text.startswith("#"):
            table = ""
    assert not wrong


# Of the tests themselves --------------------------------------------------------------------------


def test_commands_are_found_in_lines_of_shell() -> None:
    def found(text: str) -> list[Any]:
        return list(pages.commands(text))

    assert found("$ maid status --json | jq .") == [["status", "--json"]]
    assert found("maid ensure linux/arm64   exit status 0 when it ran") == [
        ["ensure", "linux/arm64"]
    ]
    assert found("sudo maid reload && maid check") == [["reload"], ["check"]]
    assert found("apt-get install maid") == []
    assert found("MAID_SOCKET=/x .venv/bin/maid status  # how") == [["status"]]


def test_a_command_line_that_is_wrong_is_found() -> None:
    assert _problem(["status", "--jsno"])
    assert _problem(["statsu"])
    assert _problem(["run", "--", "true"])
    assert not _problem(["run", "--rootfs", "x", "--", "true", "--jsno"])
