"""maid.doctor on interpreters and helpers, as a judgement of what was found."""

from dataclasses import replace
from pathlib import Path

import pytest
from doctoring import Made, found

from maid.config import Config, Emulation
from maid.doctor import (
    programs,
)
from maid.emulation.identity import Interpreter, Kind
from maid.emulation.ratings import Level as Quality
from maid.emulation.ratings import Rating
from maid.emulation.targets import TARGETS
from maid.platforms import parse


def identity(name: str, **how: object) -> Interpreter:
    plain = Interpreter(
        Path(f"/usr/bin/qemu-{name}"), Kind.QEMU, (name,), (10, 1), static=True, machine="x86_64"
    )
    return replace(plain, **how)  # type: ignore[arg-type]


def judged(found: dict[str, list[Interpreter]], *platforms: str) -> str:
    wanted: dict[str, list] = {}
    for each in platforms or ("linux/arm64", "linux/s390x"):
        name = next(n for n, t in TARGETS.items() if parse(each).normalized() in t.platforms)
        wanted.setdefault(name, []).append(parse(each).normalized())
    return "\n".join(
        f"{each.level} {each.message} -> {each.hint}"
        for each in programs.judge(wanted, found, "apt-get install it", (6, 12))
    )


def test_good_interpreters_are_only_named() -> None:
    said = judged({name: [identity(name)] for name in ("aarch64", "s390x")})
    assert said == "ok usable: qemu-aarch64 10.1, qemu-s390x 10.1 -> "


def test_a_missing_interpreter_is_a_warning_and_none_at_all_a_problem() -> None:
    some = judged({"aarch64": [identity("aarch64")], "s390x": []})
    assert "warning there is none for linux/s390x -> apt-get install it" in some
    assert judged({}).startswith("problem there is none for linux/arm64, linux/s390x")


def test_a_dynamic_interpreter_is_not_enough() -> None:
    said = judged({"aarch64": [identity("aarch64", static=False)]}, "linux/arm64")
    assert "warning /usr/bin/qemu-aarch64 is a dynamic program" in said
    assert "usable" not in said


def test_a_known_bad_version_is_named_with_its_source() -> None:
    said = judged({"aarch64": [identity("aarch64", version=(8, 2, 2))]}, "linux/arm64")
    assert said.startswith("warning linux/arm64: QEMU 8.2.2: ldconfig segfaults")
    assert "https://gitlab.com/qemu-project/qemu/-/issues/" in said


def test_what_a_good_version_lacks_is_a_note() -> None:
    said = judged({"s390x": [identity("s390x", version=(9, 1))]}, "linux/s390x")
    assert said.startswith("note linux/s390x: QEMU 9.1: it lacks openat2")
    assert "ok usable: qemu-s390x 9.1" in said


def test_an_unusable_file_is_named_with_the_reason() -> None:
    bad = identity("aarch64", rating=Rating(Quality.UNUSABLE, "/usr/bin/qemu-aarch64 is a script"))
    said = judged({"aarch64": [bad]}, "linux/arm64")
    assert "warning /usr/bin/qemu-aarch64 is a script -> reinstall it" in said


def test_the_platforms_that_are_excluded_are_not_missed() -> None:
    config = Config(emulation=Emulation(exclude=("s390x", "linux/arm/v5")))
    wanted = programs.served(config, "x86_64")
    assert "s390x" not in wanted and "x86_64" not in wanted
    assert [str(each) for each in wanted["arm"]] == ["linux/arm/v6", "linux/arm/v7"]


@pytest.mark.parametrize(
    ("release", "command"),
    [
        ("ID=fedora\n", "dnf install qemu-user-static"),
        ('ID="opensuse-leap"\nID_LIKE="suse opensuse"\n', "zypper"),
        ("ID=linuxmint\nID_LIKE=ubuntu\n", "apt-get"),
        ("ID=nixos\n", "qemu-user-static"),
    ],
)
def test_the_package_is_the_distribution_s(made: Made, release: str, command: str) -> None:
    made.write("/etc/os-release", release)
    assert command in programs.install_qemu(made.place())


def test_missing_helpers_are_a_problem_with_the_command_that_builds_them(
    made: Made, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setenv("MAID_LIBEXEC", str(tmp_path / "libexec"))
    monkeypatch.setattr("sys.prefix", str(tmp_path))
    said = found(programs.helpers, made.place())
    assert said.count("problem helpers") == 4
    assert said.count("warning helpers") == 1 and "maid-guard" in said
    assert "make -C daemon/native" in said
    for name in programs.HELPERS:
        made.write(f"libexec/{name}", "", 0o644)
    assert f"chmod 755 {tmp_path}/libexec/maid-step" in found(programs.helpers, made.place())
    for name in programs.HELPERS:
        made.write(f"libexec/{name}", "", 0o755)
    assert found(programs.helpers, made.place()).startswith("ok helpers")
