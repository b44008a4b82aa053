"""docs/socket.md against a running service: its examples, errors and rules of access are real."""

from __future__ import annotations

import inspect
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemons import environment, rootfs
from serving import Serving

from maid.service.describe import INTERFACES

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = (REPOSITORY / "docs/socket.md").read_text()
EXAMPLES = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def served() -> Iterator[Serving]:
    with Serving() as made:
        made.start()
        yield made


def run(example: str, served: Serving, **variables: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", example],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment() | {"MAID_SOCKET": str(served.socket)} | variables,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_plain_example_executes_a_platform(served: Serving) -> None:
    assert run(EXAMPLES[0], served) == "linux/arm64 works\n"


def test_the_plain_example_tells_what_does_not_work(served: Serving) -> None:
    """A platform that the daemon does not serve, and a method that there is not."""
    said = run(EXAMPLES[0].replace("linux/arm64", "linux/s390x"), served)
    assert said.startswith("linux/s390x ") and "works" not in said
    done = subprocess.run(
        [sys.executable, "-c", EXAMPLES[0].replace("Emulation.Ensure", "Emulation.Ensrue")],
        capture_output=True,
        text=True,
        env=environment() | {"MAID_SOCKET": str(served.socket)},
    )
    assert "org.varlink.service.MethodNotFound" in done.stderr


def test_the_example_of_a_step_runs_one(served: Serving) -> None:
    tree = str(rootfs("busybox-arm64"))
    said = run(EXAMPLES[1], served, ROOTFS=tree).splitlines()
    assert sorted(said) == ["exit status 0", "hello"]
    assert "there is no step" not in PAGE  # its own refusal is shown, not raised:
    refused = run(EXAMPLES[1].replace("/bin/echo", ""), served, ROOTFS=tree)
    assert "exit status" not in refused and refused.strip()


def varlinkctl() -> list[str]:
    """Debian 13's varlinkctl, from a tree of it: this machine's systemd may be too old for one."""
    tree = rootfs("debian-13-systemd")
    libraries = next(tree.glob("usr/lib/*-linux-gnu"))
    loader = next(libraries.glob("ld-linux-*.so.*"))
    path = f"{libraries}:{libraries}/systemd"
    return [str(loader), "--library-path", path, str(tree / "usr/bin/varlinkctl")]


def test_every_call_by_varlinkctl_is_answered(served: Serving) -> None:
    lines = re.findall(r"^    varlinkctl (.*)$", PAGE, re.MULTILINE)
    assert len(lines) >= 4
    program = varlinkctl()
    for line in lines:
        words = [
            str(served.socket) if word == "/run/maid/io.maid" else word
            for word in shlex.split(line)
        ]
        done = subprocess.run(
            [*program, *words],
            capture_output=True,
            text=True,
            timeout=60,
            env=environment() | {"SYSTEMD_PAGER": "cat"},
        )
        assert done.returncode == 0 and done.stdout.strip(), (line, done.stderr)


# Held against the code ----------------------------------------------------------------------------


def section(name: str) -> str:
    return PAGE.partition(f"\n## {name}\n")[2].partition("\n## ")[0]


def test_every_interface_and_method_is_named() -> None:
    rows = dict(re.findall(r"^\| \[(io\.maid\.\w+)\]\(.*?\) \| .*?: (.*) \|$", PAGE, re.MULTILINE))
    written = {name: set(methods.split(", ")) for name, methods in rows.items()}
    there = {
        each.name: set(re.findall(r"^method (\w+)", each.render_interface_description(), re.M))
        for each in INTERFACES
    }
    assert written == there


def test_every_error_is_named_with_its_fields() -> None:
    written = {
        name: re.findall(r"`(\w+)`", fields)
        for name, fields in re.findall(
            r"^\| `(io\.maid\.\w+\.\w+)` \| ([^|]*) \|", section("Errors"), re.MULTILINE
        )
    }
    there = {
        f"{each.name}.{name}": re.findall(r"(\w+):", fields)
        for each in INTERFACES
        for name, fields in re.findall(
            r"^error (\w+) \((.*)\)$", each.render_interface_description(), re.MULTILINE
        )
    }
    assert written == there


def test_what_is_for_root_alone_is_what_asks_for_it() -> None:
    row = re.search(r"^\| root alone \| (.*) \|$", PAGE, re.MULTILINE)
    assert row
    written = {
        f"{interface}.{method}"
        for methods, interface in re.findall(
            r"((?:`\w+`(?:, | and )?)+) of ([\w.]+\w)", row.group(1)
        )
        for method in re.findall(r"`(\w+)`", methods)
    }
    there = set()
    for each in INTERFACES:
        for name in re.findall(r"^method (\w+)", each.render_interface_description(), re.M):
            source = inspect.getsource(each)
            inner = r"(?:(?!\n    def |\n    async def ).)*?"
            asks = r"require\(self\._peer, Role\.(\w+)\)"
            role = re.search(rf"def {name}\({inner}{asks}", source, re.DOTALL)
            assert role, f"{name} asks for no role"
            if role.group(1) == "ADMIN":
                there.add(f"{each.name}.{name}")
    assert written == there
