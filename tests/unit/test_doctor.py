"""maid.doctor: every trouble is seen in a made-up machine, and none in a healthy one."""

import os
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import get_type_hints

import pytest
import test_doctor_binfmt
import test_doctor_kernel
import test_doctor_resources
import test_doctor_services
import test_doctor_surroundings
from doctoring import (
    HOST,
    OWN_MACHINE,
    PRIVATE,
    USER,
    Check,
    Made,
)

from maid import doctor
from maid.config import Config, Scope, load
from maid.doctor import (
    CHECKS,
    Finding,
    Level,
    Place,
    engines,
    examine,
)


@pytest.mark.parametrize("check", [c for c in CHECKS if c not in OWN_MACHINE])
def test_a_healthy_machine_has_no_trouble(made: Made, check: Check) -> None:
    for each in check(Config(), HOST, made.place()):
        assert each.level is Level.ok, each


def test_every_check_is_tested() -> None:
    modules = (
        test_doctor_kernel,
        test_doctor_binfmt,
        test_doctor_resources,
        test_doctor_surroundings,
        test_doctor_services,
    )
    tested = {trouble.check for module in modules for trouble in module.TROUBLES}
    elsewhere = {engines.engines}  # test_doctor_engines.py
    assert set(CHECKS) - tested == {*OWN_MACHINE, *elsewhere}


def test_a_check_that_fails_is_a_finding(made: Made, monkeypatch) -> None:
    def broken_check(config: Config, scope: Scope, place: Place) -> Iterator[Finding]:
        yield Finding(Level.ok, "first", "came before", "")
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(doctor, "CHECKS", (broken_check,))
    first, second = examine(Config(), HOST, made.place())
    assert first.message == "came before"
    assert (second.level, second.subject) == (Level.warning, "broken check")
    assert "ZeroDivisionError: by zero" in second.message


def test_an_unknown_machine_is_said_in_words(made: Made) -> None:
    seen = examine(Config(), HOST, made.place(machine="vax"))
    assert [each for each in seen if "check failed" in each.message] == []
    assert any(
        each.subject == "interpreters" and "no target describes" in each.message for each in seen
    )


def test_what_may_not_be_read_is_a_finding_that_says_so(made: Made, monkeypatch) -> None:
    real = os.open

    def refuse(path, *arguments, **more):
        if str(path).endswith("/limits"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *arguments, **more)

    monkeypatch.setattr(os, "open", refuse)
    seen = examine(Config(), HOST, made.place(**dict(USER)))
    [finding] = [each for each in seen if each.subject == "limits"]
    assert finding.level is Level.note
    assert "/proc/self/limits cannot be read: Permission denied" in finding.message
    assert "sudo maid doctor" in finding.hint


@pytest.mark.parametrize("scope", [HOST, PRIVATE])
@pytest.mark.parametrize("uid", [0, 1000])
def test_an_empty_machine_is_examined_to_the_end(tmp_path: Path, scope: Scope, uid: int) -> None:
    nothing = Place(tmp_path, "", "", uid, frozenset(), {})
    failed = [each for each in examine(Config(), scope, nothing) if "check failed" in each.message]
    assert failed == []


def test_files_full_of_rubbish_are_examined_to_the_end(made: Made) -> None:
    for file in [each for each in made.root.rglob("*") if each.is_file()]:
        mode = stat.S_IMODE(file.stat().st_mode)
        file.write_bytes(bytes(range(256)) * 4 + b"\n:::::::\n- - -\n")
        file.chmod(mode)
    seen = examine(Config(), HOST, made.place(**dict(USER)))
    # A number that is none, and a compressed file that is not, may end a check, never the rest.
    assert len({each.subject for each in seen}) > 10


@pytest.mark.parametrize("scope", [HOST, PRIVATE])
def test_this_machine_is_examined_quickly_and_nothing_is_written(scope: Scope, tmp_path) -> None:
    config = load(scope=scope)
    examine(config, scope)
    state = config.paths.state / "interpreters.json"
    before = (state.stat().st_mtime_ns if state.exists() else None, os.listdir("/run"))
    start = time.monotonic()
    seen = examine(config, scope)
    assert time.monotonic() - start < 2
    assert (state.stat().st_mtime_ns if state.exists() else None, os.listdir("/run")) == before
    assert [each for each in seen if "check failed" in each.message] == []
    assert {"kernel", "interpreters", "cgroups", "space"} <= {each.subject for each in seen}


def test_an_ordinary_user_is_told_and_not_failed(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("whoever runs this is one: the test above")
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)

    def nobody(program: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", program],
            user=65534,
            group=65534,
            extra_groups=[],
            cwd="/",
            env={"PATH": f"{closed}:/usr/bin"},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    if nobody("import maid").returncode:
        pytest.skip("an ordinary user cannot read this checkout")
    done = nobody(
        "from maid.config import *; from maid.doctor import *\n"
        "for each in examine(load(), Scope.HOST): print(each.subject, each.message)"
    )
    assert done.returncode == 0, done.stderr
    assert "check failed" not in done.stdout
    assert "subordinate ids" in done.stdout


@pytest.mark.skipif(
    not os.path.isdir("/sys/fs/cgroup/unified"), reason="cgroups are not hybrid here"
)
def test_hybrid_cgroups_of_this_machine_are_named() -> None:
    seen = examine(load(), HOST)
    assert any(each.subject == "cgroups" and "hybrid" in each.message for each in seen)


def test_findings_are_varlink_types() -> None:
    assert [each.value for each in Level] == [each.name for each in Level]
    assert get_type_hints(Finding)["level"] is Level
    assert not any(isinstance(kind, str) for kind in Finding.__annotations__.values())
