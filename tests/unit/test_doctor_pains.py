"""What other tools' users complain about, one by one: the finding of `maid doctor` that detects it,
or why nothing can, and what is there instead.

The pains are those that are known of the peers of maid (docs/troubleshooting.md has their words):
each has a number here, in the order in which they were collected.
"""

from dataclasses import dataclass

import pytest
import test_doctor_binfmt as table
import test_doctor_kernel as kernel
import test_doctor_resources as resources
import test_doctor_services as services
import test_doctor_surroundings as surroundings
from doctoring import Made, Trouble, see

from maid.doctor import from_status
from maid.emulation import ratings

TROUBLES = {
    trouble.name: trouble
    for module in (kernel, table, resources, surroundings, services)
    for trouble in module.TROUBLES
}


@dataclass(frozen=True)
class Pain:
    """`troubles`: names of made-up machines that have it (test_doctor_*.py), each with its finding;
    `versions`: words of the table of QEMU's known faults, with a target and a version that has
    them (and on which host and kernel); `instead`: why nothing on the machine shows it, and what
    does."""

    number: int
    what: str
    troubles: tuple[str, ...] = ()
    versions: tuple[tuple[str, str, ratings.Version], ...] = ()
    host: str = "x86_64"
    instead: str = ""


PAINS = (
    Pain(1, "gone after a reboot", ("service not enabled", "entry by hand", "entry from an image")),
    Pain(2, "entries vanish: an automount, the last unmount", (
        "an automount that expires", "not mounted", "an unused automount")),
    Pain(3, "no F, or F with a dynamic QEMU", (
        "no F", "missing interpreter without F", "dynamic interpreter",
        "systemd-binfmt without F")),
    Pain(4, "the name is taken by a broken package's entry", (
        "missing interpreter without F", "no program", "disabled entry",
        "two entries, another's last")),
    Pain(5, "--reset deletes others' entries", ("a job that resets",)),
    Pain(6, "systemd-binfmt wipes everything", (
        "systemd-binfmt registers emulators", "binfmt-support and systemd-binfmt")),
    Pain(7, "WSL interop wiped", ("WSL 2 without interop", "WSL 2 with systemd")),
    Pain(8, "sudo needs C", ("no C",)),
    Pain(9, "libc-bin and ldconfig segfault", versions=(
        ("ldconfig segfaults", "aarch64", (8, 2, 2)),
        ("ldconfig segfaults", "x86_64", (5, 2)))),
    Pain(10, "address randomisation and the kernel", ("wide randomisation",), (
        ("randomises", "aarch64", (7, 2)),)),
    Pain(11, "latest was frozen, then jumped", ("entry from an image", "a unit that installs",
                                              "upgraded interpreter")),
    Pain(12, "Go crashes", versions=(("lfstack", "x86_64", (9, 2)),), host="aarch64"),
    Pain(13, "Node hangs, illegal instruction", versions=(
        ("Node.js", "arm", (7, 2)), ("npm hangs", "s390x", (8, 0)))),
    Pain(14, "JVM crashes", instead=(
        "no version of QEMU and no setting of a machine is known by which it could be told before."
        " With [emulation] watch_crashes the event `crashed` names the program, and"
        " maid check --deep runs real programs")),
    Pain(15, "32-bit: value too large", ("32-bit programs on ext4",)),
    Pain(16, "x86-64-v2 needed", ("old processor",), (("x86-64-v2", "x86_64", (7, 2)),),
         host="aarch64"),
    Pain(17, "argv[0]", ("no P", "kernel 5.11")),
    Pain(18, "rootless and nested containers cannot register; a private mount hides the table", (
        "in a user namespace", "root without rights", "docker without the table",
        "hidden by another table", "user namespaces for root, private user",
        "AppArmor restricts user namespaces", "/proc/sys read-only")),
    Pain(19, "SELinux labels", ("SELinux",)),
    Pain(20, "Kubernetes: privileged init containers", ("kubernetes",)),
    # Of multi-platform images
    Pain(21, "slow", ("QEMU's variables",), instead=(
        "how slow emulation is shows only while something runs: maid_step_duration_seconds by mode,"
        " maid accel profile, and each engine's finding says whether it is accelerated")),
    Pain(22, "the wrong architecture without a word", (
        "docker's old builder", "docker's default platform")),
    Pain(23, "an amd64 binary in an arm64 image", instead=(
        "it is the image's: maid build refuses it, maid index inspect shows it")),
    Pain(24, "memory runs out when all platforms build at once", ("little memory",)),
    Pain(25, "somebody keeps undoing it", instead=(
        "the daemon sees it, so the finding is made of its status (below)")),
)  # fmt: skip


def test_every_pain_has_its_row() -> None:
    assert [pain.number for pain in PAINS] == list(range(1, 26))
    for pain in PAINS:
        assert pain.troubles or pain.versions or len(pain.instead) > 40, pain


@pytest.mark.parametrize(
    ("pain", "trouble"),
    [(pain, TROUBLES[name]) for pain in PAINS for name in pain.troubles],
    ids=lambda value: str(value.number) if isinstance(value, Pain) else value.name,
)
def test_what_can_be_detected_has_a_finding_with_a_way_out(
    made: Made, pain: Pain, trouble: Trouble
) -> None:
    see(made, trouble)
    place = made.place(**dict(trouble.place))
    assert any(
        each.level.value == trouble.level and trouble.says in each.message and each.hint
        for each in trouble.check(trouble.config, trouble.scope, place)
    ), f"{pain.what}: there is no way out"


@pytest.mark.parametrize(
    ("pain", "words", "target", "version"),
    [(pain, *row) for pain in PAINS for row in pain.versions],
    ids=lambda value: str(value.number) if isinstance(value, Pain) else None,
)
def test_bad_versions_are_known_with_their_sources(
    pain: Pain, words: str, target: str, version: ratings.Version
) -> None:
    rows = ratings.known(target, version, pain.host, (6, 12), True)
    assert any(words in row.symptom and row.sources for row in rows), pain


def test_somebody_who_keeps_undoing_it_is_a_problem_and_events_say_who() -> None:
    reason = "somebody keeps removing or disabling the entry (40 times in the last minute)"
    status = {"ready": True, "runtime": "crun", "platforms": [
        {"platform": "linux/arm64", "target": "aarch64", "state": "absent", "reason": reason},
    ]}  # fmt: skip
    (finding, *_) = from_status(status)
    assert finding.level.value == "problem" and finding.subject == "linux/arm64"
    assert "maid events" in finding.hint and "who" in finding.hint
