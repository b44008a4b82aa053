"""clang, lld and LLVM's tools do natively, byte for byte, what they do under QEMU, and step aside
where they might not.

What LLVM computes with the host's libm is folded in a file of its own, among it what a native LLVM
that nobody has changed folds otherwise: logarithms of 128 bits.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from accelerated import Both, both, daemon, differences
from daemons import Daemon, rootfs
from stepping import Bind

from maid.acceleration.llvm import TOOLS

TREE = "debian-13-compilers-arm64"

_LINES = Path(__file__).with_name("accel_llvm.cases").read_text().splitlines()
SETUP = "\n".join(line for line in _LINES if "\t" not in line and not line.startswith("#"))
_ALL = [(tool, case) for tool, tab, case in (line.partition("\t") for line in _LINES) if tab]
CASES = [(tool, case) for tool, case in _ALL if tool != "aside"]
ASIDE = [case for tool, case in _ALL if tool == "aside"]
NAMES = list(dict.fromkeys(name for name, _ in CASES))

# What libLLVM takes from libm, of one and of two arguments.
_UNARY = (
    *("acos", "asin", "atan", "cos", "sin", "tan", "cosh", "sinh", "tanh", "sqrt"),
    *("exp", "exp2", "log", "log10", "log2"),
)
_BINARY = ("atan2", "fmod", "pow")


def folded() -> str:
    """A C file of functions with constant arguments."""
    draw = random.Random(19)
    numbers = [repr(draw.uniform(-span, span)) for span in (1, 1, 9, 400)]
    lines = ["#define F(type, name, ...) type name(void) { return __builtin_##__VA_ARGS__; }"]
    for name in _UNARY:
        for i, x in enumerate((*numbers, "-0.3", "0.5", "1e-3")):
            lines.append(f"F(double, {name}_{i}, {name}({x})) F(float, {name}f_{i}, {name}f({x}f))")
    for name in _BINARY:
        for i, x in enumerate(numbers):
            lines.append(f"F(double, {name}_{i}, {name}({x}, {numbers[i - 1]}))")
    lines.append("F(long double, quad, logl(2.0L)) F(double, scaled, ldexp(0.3, -40))")
    return "\n".join(lines) + "\n"


def script(cases: list[str]) -> list[str]:
    """A step that runs each case in a fresh copy of the prepared directory."""
    body = "".join(
        f"mkdir /w/{i}; cp -a /w/src/. /w/{i}; cd /w/{i}; echo '=== {i}'\n"
        f'( {case} ) </dev/null 2>&1; echo "--- $?"\n'
        for i, case in enumerate(cases)
    )
    return ["/bin/sh", "-c", f"{SETUP}\n{body}"]


def outputs(text: str) -> list[str]:
    """What each case wrote, temporary names made alike."""
    text = re.sub(r"(/tmp/\w+-)\w{6}\b", r"\1", text)
    return re.split(r"(?m)^=== \d+\n", text)[1:]


@pytest.fixture(scope="module")
def accelerated() -> Iterator[Daemon]:
    with daemon() as made:
        yield made.start()


@pytest.fixture(scope="module")
def tree() -> Path:
    return rootfs(TREE)


@pytest.fixture(scope="module")
def ran(
    accelerated: Daemon, tree: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Both, Path]:
    place = tmp_path_factory.mktemp("llvm")
    command = script([case for _, case in CASES])
    return both(accelerated, tree, command, place, timeout=600), place


def test_every_tool_has_a_case() -> None:
    assert {tool.name for tool in TOOLS} == set(NAMES)


@pytest.mark.parametrize("tool", NAMES)
def test_it_answers_as_under_qemu(ran: tuple[Both, Path], tool: str) -> None:
    done, _ = ran
    plain, native = outputs(done.plain.stdout), outputs(done.native.stdout)
    assert len(plain) == len(native) == len(CASES)
    for (name, case), one, other in zip(CASES, plain, native, strict=True):
        assert name != tool or one == other, case


@pytest.mark.parametrize("tool", NAMES)
def test_it_did_run_natively(ran: tuple[Both, Path], tool: str) -> None:
    assert ran[0].tools.get(tool, 0) > 0


def test_it_left_the_same_files(ran: tuple[Both, Path], tree: Path) -> None:
    _, place = ran
    assert differences(place, tree) == []


def test_it_folds_as_the_foreign_machine_would(
    accelerated: Daemon, tree: Path, tmp_path: Path
) -> None:
    (tmp_path / "x.c").write_text(folded())
    flags = ("-O1", "-O1 -fno-math-errno")
    command = "; ".join(f"clang -w {each} -S /x.c -o -; echo ===" for each in flags)
    done = both(
        accelerated,
        tree,
        ["/bin/sh", "-c", command],
        tmp_path,
        binds=[Bind(tmp_path / "x.c", "/x.c", readonly=True)],
    )
    assert done.plain.stdout.count("===") == 2
    assert done.plain.stdout.splitlines() == done.native.stdout.splitlines()
    assert done.plain.stderr == done.native.stderr == ""
    assert done.tools["clang-19"] == len(flags)
    # It was folded where it can be, and of 128 bits nothing is.
    assert re.search(r"exp2_4:.*\n(?:.*\n){0,3}\s+adrp", done.native.stdout)
    assert "logl" in done.native.stdout.split("===")[1]


def test_it_steps_aside(accelerated: Daemon, tree: Path, tmp_path: Path) -> None:
    done = both(accelerated, tree, script(ASIDE), tmp_path, timeout=600)
    plain, native = outputs(done.plain.stdout), outputs(done.native.stdout)
    assert len(plain) == len(native) == len(ASIDE)
    for case, one, other in zip(ASIDE, plain, native, strict=True):
        assert one == other, case
    assert not {tool.name for tool in TOOLS} & set(done.tools)
    assert differences(tmp_path, tree) == []
