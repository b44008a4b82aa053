"""The picture in docs/architecture.md is the code's: its packages exist, its arrows are imports,
and there are no others."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGE = REPOSITORY / "daemon/maid"
PAGE = (REPOSITORY / "docs/architecture.md").read_text()
PICTURE = PAGE.partition("```mermaid\n")[2].partition("```")[0]

BACK = {("settings", "emulation"), ("config", "emulation")}
"""Imports that run upwards, within functions: the names of targets are the catalogue's to know, and
a configuration that names none does not read it."""


def groups() -> dict[str, set[str]]:
    """The boxes of the picture, each with the packages and modules in it."""
    return {
        name: set(body.split())
        for name, body in re.findall(r"subgraph (\w+) \[.*?\]\n(.*?)\n    end", PICTURE, re.DOTALL)
    }


def arrows() -> set[tuple[str, str]]:
    """The whole arrows: who may import whom, boxes resolved to what is in them."""
    boxes = groups()
    found = set()
    for left, right in re.findall(r"^    (\w+) --> (\w+)$", PICTURE, re.MULTILINE):
        for source in boxes.get(left, {left}):
            found |= {(source, target) for target in boxes.get(right, {right})}
    return found


def part(path: Path) -> str:
    """The package or module of maid that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports() -> Iterator[tuple[str, str, str, bool]]:
    """Every import of one part by another: who, whom, where, and whether in a function."""
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text())
        top = set(map(id, tree.body))
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
                names = [node.module, *(f"{node.module}.{each.name}" for each in node.names)]
            elif isinstance(node, ast.Import):
                names = [each.name for each in node.names]
            else:
                continue
            for name in names:
                words = name.split(".")
                if words[0] != "maid" or len(words) < 2:
                    continue
                if not (PACKAGE / words[1]).is_dir() and not (PACKAGE / f"{words[1]}.py").exists():
                    continue  # __version__
                if words[1] != part(path):
                    where = f"{path.relative_to(REPOSITORY)}:{node.lineno}"
                    yield part(path), words[1], where, id(node) not in top


def test_every_package_in_the_picture_exists_and_none_is_missing() -> None:
    drawn = set().union(*groups().values())
    there = {part(path) for path in PACKAGE.rglob("*.py")} - {"__init__"}
    assert drawn == there


def test_every_import_is_an_arrow() -> None:
    boxes, drawn = groups(), arrows()
    wrong = sorted(
        f"{where}: {source} imports {target}"
        for source, target, where, late in imports()
        if (source, target) not in drawn
        and not {source, target} <= boxes["below"]  # in order, below
        and not ((source, target) in BACK and late)
    )
    assert not wrong


def test_every_arrow_is_an_import() -> None:
    drawn = set(re.findall(r"^    (\w+) --> (\w+)$", PICTURE, re.MULTILINE))
    there = {(source, target) for source, target, _, _ in imports()}
    boxes = groups()
    for left, right in drawn:
        assert any(
            (source, target) in there
            for source in boxes.get(left, {left})
            for target in boxes.get(right, {right})
        ), f"nothing in {left} imports {right}"


def test_arrows_run_downwards_alone() -> None:
    """What the picture allows has no circle, nor have the modules that are known to all."""
    edges = arrows() | {
        (source, target)
        for source, target, _, _ in imports()
        if source in groups()["below"] and (source, target) not in BACK
    }
    left = {each for edge in edges for each in edge}
    while left:
        free = {each for each in left if not any(a == each and b in left for a, b in edges)}
        assert free, f"a circle among {', '.join(sorted(left))}"
        left -= free


def test_every_file_that_the_page_lists_is_there() -> None:
    """The parts: each name in the list of a package is a module of it."""
    listing = PAGE.partition("\n## The parts\n")[2].partition("\n        cli/")[0]
    package, missing = "", []
    for line in listing.splitlines():
        head = re.match(r"        (\w+)/ +(.*)", line)
        text = line.strip()
        if head:
            package, text = head.groups()
        elif not package:
            continue
        bare = re.sub(r"\([^()]*\)", "", text)
        for name in re.findall(r"[a-z_]+", bare):
            if not (PACKAGE / package / f"{name}.py").exists():
                missing.append(f"{package}/{name}")
    assert not missing


def test_every_module_is_in_the_list_of_the_parts() -> None:
    listing = PAGE.partition("\n## The parts\n")[2].partition("\n    daemon/native/")[0]
    missing = [
        str(path.relative_to(PACKAGE))
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.name != "__init__.py"
        and part(path) not in ("cli", "doctor")  # commands and findings: said as a whole
        and not re.search(rf"\b{path.stem}\b", listing)
    ]
    assert not missing
