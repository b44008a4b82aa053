"""The catalogue's CPU models: QEMU knows them, and current programs run and compute under each."""

import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest
from daemons import rootfs

from maid.emulation.bake import model_known
from maid.emulation.cpus import CHOICES
from maid.emulation.targets import TARGETS, Target

CHOSEN = [(name, model) for name, choice in CHOICES.items() for model in choice.models]
USED = [(name, model) for name, choice in CHOICES.items() for model in choice.models or ("",)]
DATA = bytes(range(256)) * 4096


def qemu(target: Target) -> Path:
    """The plain static emulator of a target."""
    for name in (f"qemu-{target.emulator}-static", f"qemu-{target.emulator}"):
        if found := shutil.which(name):
            return Path(found)
    pytest.skip(f"there is no emulator for {target.name}")


def run(target: Target, model: str, *command: str, stdin: bytes = b"") -> bytes:
    """What a program of the target writes under a model; it has to succeed."""
    cpu = ("-cpu", model) if model else ()
    done = subprocess.run(
        [qemu(target), *cpu, *command], input=stdin, capture_output=True, env={}, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(("name", "model"), CHOSEN)
def test_qemu_knows_every_model_of_the_catalogue(name: str, model: str) -> None:
    assert model_known(qemu(TARGETS[name]), model)


@pytest.mark.parametrize(("name", "model"), USED)
def test_a_current_program_computes_the_same_under_the_chosen_model(name: str, model: str) -> None:
    target = TARGETS[name]
    if name == "loongarch64":
        pytest.skip("Debian has no busybox for it that QEMU before 8.2, without LSX, could run")
    architecture = target.platforms[0].architecture
    busybox = str(rootfs(f"busybox-{architecture}") / "bin/busybox")
    digest = run(target, model, busybox, "sha512sum", stdin=DATA).split()[0].decode()
    assert digest == hashlib.sha512(DATA).hexdigest()
    computed = run(target, model, busybox, "awk", 'BEGIN { printf "%.15f", 2 / 3 * 1.1 }')
    assert computed.decode() == f"{2 / 3 * 1.1:.15f}"


@pytest.mark.parametrize("model", CHOICES["aarch64"].models)
def test_debians_python_for_arm64_runs_under_each_model(model: str) -> None:
    tree = rootfs("debian-13-arm64")
    code = "import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest(), 2**0.5)"
    python = ("-L", str(tree), str(tree / "usr/bin/python3"), "-I", "-B", "-c", code)
    said = run(TARGETS["aarch64"], model, *python, stdin=DATA)
    assert said.decode().split() == [hashlib.sha256(DATA).hexdigest(), repr(2**0.5)]
