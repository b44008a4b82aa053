"""maid.doctor on what only the daemon knows: its status."""

from pathlib import Path

import pytest

from maid import elf
from maid.doctor import (
    Level,
    from_status,
)


def platform(**changes: object) -> dict[str, object]:
    return {
        "platform": "linux/arm64",
        "target": "aarch64",
        "state": "ready",
        "via": "emulated",
        "entry": "qemu-aarch64",
        "owner": "maid",
        "reason": None,
        "required": True,
    } | changes


def said(*platforms: dict[str, object], **changes: object) -> str:
    status = {"ready": True, "runtime": "crun", "platforms": list(platforms)}
    return "\n".join(
        f"{each.level} {each.subject}: {each.message} -> {each.hint}"
        for each in from_status(status | changes)
    )


def test_a_healthy_status_is_one_line() -> None:
    assert said(platform()) == ("ok platforms: 1 execute, every required one among them -> ")


def test_a_required_platform_that_fails_is_a_problem_another_a_warning() -> None:
    failed = platform(state="failed", reason="killed by SIGSEGV")
    assert "problem linux/arm64: failed: killed by SIGSEGV" in said(failed)
    assert "warning linux/arm64: failed" in said(failed | {"required": False})
    assert "check --deep linux/arm64" in said(failed)
    assert 'prefer = "own"' in said(failed | {"owner": "other"})


def test_required_and_absent_or_disabled_is_a_problem() -> None:
    assert "problem linux/arm64: absent" in said(platform(state="absent"))
    assert "change [emulation] exclude" in said(platform(state="disabled"))


def test_absent_platforms_that_nobody_requires_are_one_note() -> None:
    lines = said(
        platform(state="absent", required=False),
        platform(state="absent", required=False, platform="linux/mips"),
        platform(state="absent", required=False, platform=None, target="hppa"),
    )
    assert (
        "note platforms: not served, for want of an interpreter: linux/arm64, linux/mips" in lines
    )
    assert "hppa" not in lines


def test_a_degraded_platform_is_a_warning_with_its_reason() -> None:
    lines = said(platform(state="degraded", reason="its interpreter is no longer on disk"))
    assert "warning linux/arm64: degraded: its interpreter is no longer on disk" in lines


def test_a_contended_entry_is_a_problem_with_a_way_to_find_who() -> None:
    reason = "somebody keeps removing the entry (9 times in the last minute); the next repair"
    assert "problem linux/arm64: somebody keeps" in said(platform(state="failed", reason=reason))
    lines = said(platform(reason=reason))
    assert "warning linux/arm64: somebody keeps" in lines, "it is repaired each time"
    assert "maid events says who" in lines


@pytest.mark.parametrize("module", ["keeper", "patience"])
def test_the_daemon_s_words_for_contention_are_the_ones_looked_for(module: str) -> None:
    from maid.doctor import reported

    source = Path(elf.__file__).parent / "emulation" / f"{module}.py"
    assert f'f"{reported.CONTENDED} ' in source.read_text()


def test_no_runtime_and_not_ready_are_problems() -> None:
    lines = said(platform(), runtime=None, ready=False, runtime_problem="crun: no cgroups")
    assert "problem OCI runtime: steps (maid run) cannot be started: crun: no cgroups" in lines
    assert "problem platforms: not ready" in lines


def test_what_the_daemon_could_not_have_is_told() -> None:
    lines = said(platform(), namespaces_problem="Linux 6.1", limits_problem="no controller")
    assert "warning namespaces: steps use the machine's own table: Linux 6.1" in lines
    assert "note limits: maid run --memory and --cpus are refused: no controller" in lines
    assert "namespaces" not in said(platform()) and "limits" not in said(platform())


def test_a_status_of_another_shape_is_a_finding() -> None:
    [finding] = from_status({"platforms": 3})
    assert finding.level is Level.warning
    assert "platforms" in finding.message
