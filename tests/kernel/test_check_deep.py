"""emulation/checks.py: `maid check --deep` runs real programs in the served instance."""

import asyncio
from pathlib import Path

from keeping import cache_directory, configuration

from maid.config import Scope
from maid.emulation.checks import CheckResult, deep_checks, exec_check
from maid.emulation.machine import Machine
from maid.emulation.targets import TARGETS


def checked(tmp_path: Path, *names: str) -> dict[str, dict[str, CheckResult]]:
    """The results of every test, by target."""

    async def scenario() -> dict[str, dict[str, CheckResult]]:
        machine = Machine(configuration(tmp_path), Scope.PRIVATE, lambda *_: None)
        await machine.start()
        try:
            found: dict[str, dict[str, CheckResult]] = {}
            for name in names:
                target = TARGETS[name]
                results = [await exec_check(machine, target)]
                results += [result async for result in deep_checks(machine, target)]
                found[name] = {result.test: result for result in results}
            return found
        finally:
            machine.release()
            machine.stop()

    return asyncio.run(scenario())


def test_real_programs_pass_for_arm64_and_a_32_bit_platform(tmp_path: Path) -> None:
    for results in checked(tmp_path, "aarch64", "arm").values():
        failed = {r.test: r.error for r in results.values() if not r.ok and not r.skipped}
        assert not failed
        passed = {result.test for result in results.values() if result.ok}
        assert passed >= {
            *("exec", "dynamic", "forkexec", "threads", "signals", "setuid", "argv0", "script"),
            "largefile",
        }
    assert not list(cache_directory().glob("deep-*"))  # the chroot directories are gone


def test_what_no_compiler_makes_is_skipped_and_says_so(tmp_path: Path) -> None:
    results = checked(tmp_path, "hppa")["hppa"]
    assert results["exec"].ok
    assert "no compiler" in results["deep"].skipped


def test_private_scope_leaves_nothing_after_release(tmp_path: Path) -> None:
    checked(tmp_path)
    mounts = Path("/proc/self/mountinfo").read_text()
    assert str(tmp_path) not in mounts
    assert not (tmp_path / "runtime" / "instances").exists()
