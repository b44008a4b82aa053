"""Every probe is executed: by QEMU itself, by the kernel through its own row, and natively."""

import shutil
import subprocess
from pathlib import Path

import pytest
from own_instance import Job, Outcome, line, require, run

from maid.emulation.targets import PROBE_STATUS, TARGETS, Target, family_of_host, for_header, own

# On the host's own architecture misc would catch the interpreter itself: no entry, no probe by
# QEMU.
FOREIGN = [name for name in TARGETS if name != own()]


def interpreter(target: Target) -> str:
    """The static QEMU of the target, or a skip that says what is missing."""
    for name in (f"qemu-{target.emulator}-static", f"qemu-{target.emulator}"):
        if found := shutil.which(name):
            return found
    pytest.skip(f"no qemu-{target.emulator}-static and no qemu-{target.emulator} in PATH")


def write(directory: Path, program: bytes) -> Path:
    path = directory / "probe"
    path.write_bytes(program)
    path.chmod(0o755)
    return path


def probe_of(name: str) -> bytes:
    program = TARGETS[name].probe
    assert program is not None
    return program


@pytest.mark.parametrize("name", FOREIGN)
def test_qemu_runs_the_probe(name: str, tmp_path: Path) -> None:
    target = TARGETS[name]
    path = write(tmp_path, probe_of(name))
    done = subprocess.run([interpreter(target), path], capture_output=True, timeout=20)
    assert (done.returncode, done.stdout) == (PROBE_STATUS, target.probe_output), done.stderr


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    """Every probe in an empty root directory, all rows registered at once, each with its QEMU."""
    require()
    lines, jobs = [], {}
    for name in FOREIGN:
        target = TARGETS[name]
        found = shutil.which(f"qemu-{target.emulator}-static")
        if found is None:
            continue
        lines.append(line(f"qemu-{name}", target.magic, target.mask, found, "F"))
        root = tmp_path_factory.mktemp(name)
        write(root, probe_of(name))
        jobs[name] = Job(root, "/probe", ["/probe"])
    return dict(zip(jobs, run(lines, list(jobs.values())), strict=True))


@pytest.mark.parametrize("name", [name for name in FOREIGN if TARGETS[name].reachable])
def test_the_kernel_gives_the_probe_to_its_rows_interpreter(
    name: str, outcomes: dict[str, Outcome]
) -> None:
    target = TARGETS[name]
    if name not in outcomes:
        pytest.skip(f"no qemu-{target.emulator}-static in PATH")
    outcome = outcomes[name]
    assert (outcome.status, outcome.stdout) == (PROBE_STATUS, target.probe_output), outcome


@pytest.mark.parametrize("name", family_of_host())
def test_a_probe_of_the_hosts_family_runs_natively(name: str, tmp_path: Path) -> None:
    target = TARGETS[name]
    path = write(tmp_path, probe_of(name))
    try:
        done = subprocess.run([path], capture_output=True, timeout=20)
    except OSError as error:
        if name == own():
            raise
        pytest.skip(f"this machine runs no {name} programs itself: {error}")
    assert (done.returncode, done.stdout) == (PROBE_STATUS, target.probe_output)


def test_without_an_entry_a_probe_is_refused(tmp_path: Path) -> None:
    require()
    name = "s390x" if own() != "s390x" else "aarch64"
    write(tmp_path, probe_of(name))
    [outcome] = run([], [Job(tmp_path, "/probe", ["/probe"])])
    assert outcome.error == "Exec format error"


@pytest.mark.skipif(own() == "microblaze", reason="this machine is a microblaze")
def test_qemus_row_of_microblaze_is_dead(tmp_path: Path) -> None:
    """What the row matches QEMU refuses, and what QEMU runs the row does not match."""
    target = TARGETS["microblaze"]
    program = probe_of("microblaze")
    matched = program[:16] + b"\x02\x00" + program[18:]
    new_number = program[:18] + (189).to_bytes(2, "big") + program[20:]
    assert for_header(matched) is target
    refused = subprocess.run(
        [interpreter(target), write(tmp_path, matched)], capture_output=True, timeout=20
    )
    assert b"Invalid ELF image" in refused.stderr
    for accepted in (program, new_number):
        assert for_header(accepted) is None
        done = subprocess.run(
            [interpreter(target), write(tmp_path, accepted)], capture_output=True, timeout=20
        )
        assert (done.returncode, done.stdout) == (PROBE_STATUS, target.probe_output)


@pytest.mark.skipif(own() == "microblazeel", reason="this machine is a microblazeel")
def test_qemus_row_of_microblazeel_misses_todays_programs(tmp_path: Path) -> None:
    target = TARGETS["microblazeel"]
    program = probe_of("microblazeel")
    today = program[:18] + (189).to_bytes(2, "little") + program[20:]
    assert for_header(today) is None
    done = subprocess.run(
        [interpreter(target), write(tmp_path, today)], capture_output=True, timeout=20
    )
    assert (done.returncode, done.stdout) == (PROBE_STATUS, target.probe_output)
