"""The line on which a key stands."""

import time
import tomllib
from pathlib import Path

import pytest

from maid.config import ConfigError, load
from maid.config_lines import line_of

TEXT = """\
# [emulation]
[ emulation ]
ready = ["linux/arm64"]  # a = 1
"quoted" = 1

[emulation.target.arm]
cpu = "max"
[emulation.target."s390x"]
cpu = "max"
[steps]
limits = { memory = 1 }
emulation.ready = 1
"""


@pytest.mark.parametrize(
    ("key", "line"),
    [
        ("emulation", 2),
        ("emulation.ready", 3),
        ("emulation.quoted", 4),
        ("emulation.target", 6),
        ("emulation.target.arm", 6),
        ("emulation.target.arm.cpu", 7),
        ("emulation.target.s390x.cpu", 9),
        ("steps.limits.memory", 11),
        ("steps.emulation.ready", 12),
        ("log", 0),
        ("emulation.prefer", 0),
    ],
)
def test_a_key_is_found_where_it_is_set(key: str, line: int) -> None:
    assert line_of(TEXT, key) == line


TOLD = (
    """\
[log]
level = "a = \u2028 1"  # \x85
[steps]
first = '''
key = 1
[other]
'''
second = """
    + '''"""
key = 2 \\"""
key = 2 # no comment
"" """
third = "x" # [
list = [
  [1, 2],  # ]
  "key = 3 ]",
  { key = 4 },
]
"a\\"b=" = { key = """
key = 5
""" }
key = 6
'''
)


@pytest.mark.parametrize("key", ["first", "second", "third", "list", "key"])
def test_what_stands_in_a_value_is_no_key(key: str) -> None:
    assert tomllib.loads(TOLD)["steps"]["key"] == 6
    line = next(n for n, line in enumerate(TOLD.split("\n"), 1) if line.startswith(f"{key} = "))
    if key == "key":
        line = TOLD[: TOLD.index("key = 6")].count("\n") + 1
    assert line_of(TOLD, f"steps.{key}") == line


@pytest.mark.parametrize(
    "line",
    [" " * 100_000 + "a", "a" + " " * 100_000, "a" * 100_000, "a ." * 50_000, "[" + " " * 100_000],
    ids=["before", "after", "a word", "words", "a table"],
)
def test_a_line_of_any_length_is_looked_at_once(line: str) -> None:
    began = time.process_time()
    assert line_of(f"{line}\nkey = 1\n", "key") == 2
    assert time.process_time() - began < 5  # 0.01 s; the square of it would be minutes


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[emulation]\n\nplatformz = []\n", 3),
        ("[log]\nlevel = 'loud'\n", 2),
        ('[emulation]\nexclude = []\nready = ["linux/pdp11"]\n', 3),
        ("[steps]\n\n\nruntime = 'docker'\n", 4),
        ("\n[emulation.target.pdp11]\n", 2),
        ("\n[emulation]\n]\n", 3),
    ],
)
def test_an_error_names_the_line(tmp_path: Path, text: str, line: int) -> None:
    file = tmp_path / "maid.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=rf"\bline {line}\b"):
        load(file)
