"""The units on both releases: without a mistake, and as hardened as their comments say."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from container import Machine, booted
from trees import CHECKOUT

UNITS = "/usr/lib/systemd/system"
EXAMPLES = "/usr/share/doc/maid/examples"
STAND_IN = "[Service]\nExecStart=/bin/sleep infinity\n"
DESCRIPTION = (CHECKOUT / "units/maid.service").read_text()

EXPOSURE = {
    "maid.service": 8.9,  # docs/security.md says so, too
    "maid-ready.service": 1.7,
    "maid-steps.service": 1.9,
}
"""The most that `systemd-analyze security` may find, 10 being without any protection."""


@pytest.fixture(scope="module", params=["tree", "other_tree"])
def either(request: pytest.FixtureRequest) -> Iterator[Machine]:
    """A booted machine of each release: nothing here changes what runs in it."""
    with booted(request.getfixturevalue(request.param)) as machine:
        yield machine


def test_units_have_no_mistake(either: Machine) -> None:
    names = either.output("sh", "-c", f"cd {UNITS} && ls -d maid* dev-.maid.mount").split()
    assert len(names) == 6
    paths = [f"{UNITS}/{name}" for name in names]
    verified = either.run("systemd-analyze", "verify", "--man=no", *paths)
    assert (verified.returncode, verified.stdout + verified.stderr) == (0, "")


def test_examples_have_no_mistake(either: Machine) -> None:
    """Each drop-in in its place, beside a unit of the name that it is for."""
    found = either.output("sh", "-c", f"cd {EXAMPLES} && find . -name '*.conf' -path '*.d/*'")
    dropins = sorted(name.removeprefix("./") for name in found.splitlines())
    assert len(dropins) >= 5
    for dropin in [*dropins, "docker.service.d/10-maid.conf"]:
        unit = dropin.partition(".d/")[0]
        if unit.endswith("-.service"):
            unit = unit.replace("OWNER", "me").removesuffix(".service") + "repository.one.service"
        place = f"/run/test-units/{unit}"
        source = f"{EXAMPLES}/{dropin}" if dropin in dropins else f"{UNITS}/{dropin}"
        either.write(place, STAND_IN)
        either.output("mkdir", "-p", f"{place}.d")
        either.output("cp", source, f"{place}.d/{dropin.rpartition('/')[2]}")
        verified = either.run("systemd-analyze", "verify", "--man=no", place)
        assert (verified.returncode, verified.stdout + verified.stderr) == (0, ""), dropin
    services = either.output("sh", "-c", f"cd {EXAMPLES} && find . -name '*.service'").splitlines()
    for service in services:
        verified = either.run("systemd-analyze", "verify", "--man=no", f"{EXAMPLES}/{service}")
        assert (verified.returncode, verified.stdout + verified.stderr) == (0, ""), service


def security(machine: Machine, unit: str) -> list[dict[str, object]]:
    check = ["systemd-analyze", "security", "--offline=true", "--no-pager", "--json=short"]
    told: list[dict[str, object]] = json.loads(machine.output(*check, f"{UNITS}/{unit}"))
    return told


def test_units_are_as_hardened_as_they_say(either: Machine) -> None:
    check = ["systemd-analyze", "security", "--offline=true", "--no-pager"]
    for unit, most in EXPOSURE.items():
        told = either.output(*check, f"{UNITS}/{unit}").splitlines()[-1]
        level = re.search(rf"exposure level for {unit}: ([\d.]+)", told)
        assert level and float(level[1]) <= most, told
        print(either.output("systemctl", "--version").split()[1], level[0])
    assert (
        f"security maid.service` says {EXPOSURE['maid.service']}"
        in Path(CHECKOUT / "docs/security.md").read_text()
    )


def test_every_protection_that_is_left_out_is_explained(either: Machine) -> None:
    """What systemd-analyze of this version knows of and does not find is in the unit's comment."""
    comment = "".join(
        line for line in DESCRIPTION.splitlines(keepends=True) if line.startswith("#")
    )
    explained = set(re.findall(r"\b([A-Z]\w+)=", comment))
    kept = set(re.findall(r"\bCAP_(\w+)", comment))
    without: set[str] = set()
    for each in security(either, "maid.service"):
        if not float(str(each.get("exposure") or 0)):
            continue
        name = str(each["name"])
        if name.startswith("CapabilityBoundingSet="):
            # "CapabilityBoundingSet=~CAP_SET(UID|GID|PCAP)": one of these is not taken away.
            wanted = capabilities(name.partition("~CAP_")[2])
            given = set(re.findall(r"\bCAP_(\w+)", SETTINGS))
            without |= {f"CAP_{cap}" for cap in wanted - given - kept}
            continue
        # "User=/DynamicUser=", "SystemCallFilter=~@clock"
        without |= {f"{part}=" for part in re.findall(r"\b([A-Z]\w+)=", name)} - {
            f"{part}=" for part in explained
        }
    assert without == set()


SETTINGS = "\n".join(line for line in DESCRIPTION.splitlines() if not line.startswith("#"))


def capabilities(pattern: str) -> set[str]:
    """The names that a pattern of systemd-analyze's stands for: SET(UID|GID), MAC_*."""
    words = {"SETPCAP" if word == "PCAP" else word for word in [pattern]}
    if found := re.fullmatch(r"(\w*)\((.*)\)", pattern):
        words = {found[1] + word for word in found[2].split("|")}
    every = {"DAC_*": {"DAC_OVERRIDE", "DAC_READ_SEARCH"}, "MAC_*": {"MAC_ADMIN", "MAC_OVERRIDE"}}
    every["AUDIT_*"] = {"AUDIT_CONTROL", "AUDIT_READ", "AUDIT_WRITE"}
    return set().union(*(every.get(word, {word}) for word in words))
