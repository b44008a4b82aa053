"""The line on which a key stands."""

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
