"""maid.doctor reads real tables: what the kernel shows of entries, their time and their mounts.

Everything happens in a user namespace with a table of its own: should that fail to be mounted, the
program that makes it registers nothing and stops.
"""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from maid.emulation.targets import TARGETS, own

PRIVATE_BINFMT = Path(__file__).parents[2] / "scripts" / "lib" / "private-binfmt.py"

# Runs where the table holds an entry for arm64. Arguments: a static interpreter, a dynamic one.
INSIDE = r"""
import json, os, sys, time
from maid.binfmt.entry import Entry
from maid.binfmt.instance import HOST_PATH, Instance
from maid.config import Config, Scope
from maid.doctor import Place, table
from maid.emulation.targets import TARGETS

instance = Instance(HOST_PATH)
static, dynamic = sys.argv[1:]
there = [entry.interpreter for entry in instance.entries().values()]
assert there == [static], "this is not the table of the test"

def add(name, target, interpreter, flags):
    chosen = TARGETS[target]
    instance.add(Entry(name, interpreter, chosen.magic, chosen.mask, flags))

time.sleep(0.05)  # the clock of files ticks every few milliseconds
add("later", "aarch64", static, "POCF")
add("bare", "riscv64", static, "OC")
add("loads", "s390x", dynamic, "F")
add("nothing", "arm", "/usr/bin/there-is-none", "OC")
found = [
    (each.level.value, each.message)
    for check in (table.mounts, table.switched_on, table.entries)
    for each in check(Config(), Scope.HOST, Place())
]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def findings(tmp_path_factory) -> list[tuple[str, str]]:
    release = tuple(int(part) for part in platform.release().split(".")[:2])
    if release < (6, 7):
        pytest.skip(f"Linux {platform.release()}: instances of user namespaces came with 6.7")
    if os.geteuid() != 0:
        pytest.skip("the namespace of the test maps all ids, which only root may")
    interpreter = tmp_path_factory.mktemp("doctor") / "static"
    # Any static program will do: nothing is executed through the table.
    interpreter.write_bytes(TARGETS[own()].probe or b"")
    interpreter.chmod(0o755)
    done = subprocess.run(
        [
            *(sys.executable, PRIVATE_BINFMT, interpreter),
            *(sys.executable, "-c", INSIDE, interpreter, "/bin/sh"),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [(level, message) for level, message in json.loads(done.stdout)]


def said(findings: list[tuple[str, str]], level: str, *words: str) -> bool:
    return any(
        grade == level and all(word in message for word in words) for grade, message in findings
    )


def test_the_table_is_found_and_on(findings) -> None:
    assert not any("switched off" in message for _, message in findings)
    assert not any("not mounted" in message for _, message in findings)


def test_the_one_that_was_registered_last_is_told_by_its_time(findings) -> None:
    assert said(findings, "warning", "catch the same programs (aarch64)", "last, later")


def test_no_f_dynamic_and_missing_interpreters_are_told_apart(findings) -> None:
    assert said(findings, "warning", "bare (somebody unknown) has no flag F")
    assert said(findings, "warning", "loads (somebody unknown) has a dynamic interpreter")
    assert said(findings, "problem", "nothing (somebody unknown)", "interpreter is not there")


def test_an_interpreter_that_is_older_than_its_entry_is_not_called_upgraded(findings) -> None:
    assert not any("before its interpreter was last changed" in message for _, message in findings)
