"""Every fuzz target (scripts/lib/fuzz, tests/fuzz) finds nothing in a fixed number of inputs, the
same ones each time; and finds what is wrong when something is. scripts/fuzz runs them for longer.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import compiled
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts" / "lib"))
sys.path.append(str(Path(__file__).resolve().parents[1] / "unit"))

from fuzz.running import ALL, run

INPUTS = {
    "entry": 4000,
    "configuration": 3000,
    "elf": 4000,
    "logs": 4000,
    "documents": 1000,
    "varlink": 100,
    "json": 50_000,
    "runtime": 3000,
    "hook": 3000,
    "arguments": 50_000,
    "programs": 3000,
    "front-elf": 20_000,
    "front-rules": 20_000,
}
"""How many inputs each target gets here: some two seconds of them."""


@pytest.mark.parametrize("name", ALL)
def test_a_target_finds_nothing(name: str, tmp_path: Path) -> None:
    ran = run(name, runs=INPUTS[name], findings=tmp_path)
    assert not ran.failed, ran.log
    assert ran.inputs >= INPUTS[name]
    assert ran.corpus > 1
    print(f"{name}: {ran.inputs} inputs")


PLANTED_IN_C = {
    "json": ("json.c", "if (end - at < 4)", "if (end - at < 1)"),
    "front-rules": ("front_rules.c", "in_store(rule.text) && some", "some"),
    "front-elf": ("front_elf.c", "content <= ID_SIZE", "content <= 2 * ID_SIZE"),
    "runtime": ("runtime.c", "mounts.end - 1", "mounts.end"),
}


@pytest.mark.parametrize("name", PLANTED_IN_C)
def test_a_mistake_in_c_is_found_and_can_be_repeated(name: str, tmp_path: Path) -> None:
    file, right, wrong = PLANTED_IN_C[name]
    sources = tmp_path / "native"
    sources.mkdir()
    for path in compiled.NATIVE.glob("*.[ch]"):
        shutil.copy(path, sources)
    text = (sources / file).read_text()
    assert text.count(right) == 1
    (sources / file).write_text(text.replace(right, wrong))
    ran = run(name, runs=INPUTS[name], findings=tmp_path / "found", sources=sources)
    assert len(ran.findings) == 1, ran.log
    again = run(name, repeat=ran.findings[0], findings=tmp_path / "again", sources=sources)
    assert again.failed and "ERROR" in again.log
    assert not run(name, repeat=ran.findings[0], findings=tmp_path / "right").failed


PLANTED_IN_PYTHON = {
    "entry": "from maid.binfmt import entry; entry.NAME_LIMIT = 300",
    "configuration": "from maid import config; config._one_line = str",
    "elf": "from maid import elf; elf._following_build_id = lambda *_: None",
    "logs": "from maid.acceleration import profile; profile._LIMIT = 1 << 9999",
    "documents": "from maid.images import documents; documents._value = None",
}


@pytest.mark.parametrize("name", PLANTED_IN_PYTHON)
def test_a_mistake_in_python_is_found_and_can_be_repeated(name: str, tmp_path: Path) -> None:
    def drive(plant: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        code = f"{plant}\nimport sys; from fuzz.driver import main; sys.exit(main())"
        return subprocess.run(
            [sys.executable, "-c", code, name, f"-artifact_prefix={tmp_path}/", *arguments],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            timeout=300,
        )

    wrong = PLANTED_IN_PYTHON[name]
    found = drive(wrong, f"-runs={INPUTS[name]}")
    assert found.returncode == 77, found.stderr
    (finding,) = tmp_path.glob("crash-*[0-9a-f]")
    assert "Error" in finding.with_suffix(".txt").read_text()
    assert drive(wrong, finding).returncode == 77
    assert drive("", finding).returncode == 0
