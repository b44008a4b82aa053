"""Troubleshooting: what people search for is there, and so is what maid itself says."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from maid import errors

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = (REPOSITORY / "docs/troubleshooting.md").read_text()
FLAT = " ".join(PAGE.split())

SEARCHED = (
    "exec format error",
    "exec /bin/sh: exec format error",
    "standard_init_linux.go:228: exec user process caused: exec format error",
    "exec user process caused: no such file or directory",
    "qemu: uncaught target signal 11 (Segmentation fault) - core dumped",
    "qemu: uncaught target signal 4 (Illegal instruction) - core dumped",
    "Could not open '/lib/ld-linux-aarch64.so.1': No such file or directory",
    "Value too large for defined data type",
    "no match for platform in manifest",
    "no matching manifest for linux/arm64/v8 in the manifest list entries",
    "multiple platforms feature is currently not supported for docker driver",
    "Multi-platform build is not supported for the docker driver",
    "Unsupported platform",
    "CPU ISA level is lower than required",
    "Fatal glibc error: CPU does not support x86-64-v2",
    "sudo: effective uid is not 0, is /usr/bin/sudo on a file system with the 'nosuid' option set",
    "Failed to initialize nft: Protocol not supported",
    "Function not implemented",
    "unable to create native thread",
    "dpkg: error processing package libc-bin (--configure)",
    "write /proc/sys/fs/binfmt_misc/register: file exists",
    "Invalid ELF image for this architecture",
    "does not match the detected host platform",
)
"""The words of other programs that stand in users' reports, as they stand there."""


@pytest.mark.parametrize("text", SEARCHED)
def test_a_message_that_people_search_for_is_found(text: str) -> None:
    assert text in FLAT


def test_every_message_leads_to_a_section_of_its_own() -> None:
    table = PAGE.partition("\n## Find your message\n")[2].partition("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| `")]
    assert len(rows) > 15
    for row in rows:
        assert re.search(r"\]\(#[\w-]+\) \|$", row), row


# What maid says -----------------------------------------------------------------------------------

HANDLED = {
    "PlatformUnavailable": 3,
    "DaemonUnreachable": 4,
    "ConnectionLost": 4,
    "AccessDenied": 1,
    "LimitReached": 1,
}
"""The classes whose every sentence a user can meet in front of any command, with exit status."""


def _sentences() -> Iterator[tuple[str, str]]:
    """The class and the words of each error of those classes in the code, without what is put into
    them."""
    for path in sorted((REPOSITORY / "daemon/maid").rglob("*.py")):
        if "images" in path.parts:
            continue  # docs/images.md is about these
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            name = getattr(node.func, "id", "")
            if name in HANDLED and (words := _longest(node.args[0])):
                yield name, words


def _longest(node: ast.expr) -> str:
    """The longest constant part of a text."""
    parts = [each.value for each in ast.walk(node) if isinstance(each, ast.Constant)]
    return max((part.strip(" :,") for part in parts if isinstance(part, str)), key=len, default="")


UNSAID = {
    "cannot be emulated as": "of a CPU model that a step asked for; the message has QEMU's words",
    "the connection to the daemon was lost": "as: closed the connection",
    "ended the connection": "as: closed the connection",
    "is excluded by the configuration": "as: disabled",
    "nothing serves": "as: absent",
}
"""What needs no row of its own, and why."""


def test_what_maid_says_is_found() -> None:
    section = " ".join(PAGE.partition("\n## What maid says\n")[2].split())
    found = list(_sentences())
    assert {name for name, _ in found} == set(HANDLED)
    missing = [
        f"{name}: {words}"
        for name, words in found
        if words not in section and not any(part in words for part in UNSAID)
    ]
    assert not missing


def test_its_exit_statuses_are_those_of_the_errors() -> None:
    assert all(
        getattr(errors, name).exit_status == status
        for name, status in HANDLED.items()
        if hasattr(errors, name)
    )
    rows = re.findall(r"^\| (`.*?) \| ([^|]*) \|", PAGE, re.MULTILINE)
    status = {message: numbers for message, numbers in rows if re.match(r"\d", numbers)}

    def of(words: str) -> str:
        return next(numbers for message, numbers in status.items() if words in message)

    for name, words in _sentences():
        if any(words in message for message in status):
            assert str(HANDLED[name]) in of(words).split(";")[0].split(), (name, words)
    assert of("this step must be accelerated") == str(errors.StepRefused.exit_status)
    assert of("there is no key") == str(errors.ConfigError.exit_status)
