"""perl answers natively as under QEMU, and goes back to QEMU for modules that have no twin."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from accel_cases import Cases, run_cases
from accelerated import daemon
from daemons import rootfs

# A compiled module that nobody knows: perl's own Fcntl with another build-id.
PREPARE = r"""
mkdir -p own/auto/Fcntl && cp /usr/lib/*/perl-base/Fcntl.pm own/
perl -0777pe 's/(\x04\0\0\0\x14\0\0\0\x03\0\0\0GNU\0).{20}/$1 . "x" x 20/se' \
    /usr/lib/*/perl-base/auto/Fcntl/Fcntl.so >own/auto/Fcntl/Fcntl.so
echo 'use lib "/root/own"; use Fcntl; print O_EXCL, " $0 @ARGV $INC{q(Fcntl.pm)}\n"' >own.pl
"""

WHERE = 'open F, "/proc/self/maps"; print scalar grep(m(/dev/.maid/), <F>) ? "native" : "emulated"'

_CASES = Path(__file__).with_name("accel_perl.cases")
COMMANDS = _CASES.read_text().splitlines()

UNKNOWN = {
    "a directory in PERL5LIB": f"PERL5LIB=/root/own perl -e '{WHERE}'",
    "loaded before anything was written": f"perl -e 'use lib q(own); use Fcntl; {WHERE}'",
    "another name of the program": f"perl5.40.1 -e '{WHERE}'",
    "switched off": f"MAID_ACCELERATE=off perl -e '{WHERE}'",
}
"""What has to be emulated."""

# Nothing of it is written, but a second start would see the directory.
CHANGED = (
    "perl -e 'print q(again ) if !mkdir q(made); unshift @INC, q(own);"
    " print eval { require Fcntl; 1 } ? q(loaded) : q(refused)'"
)


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cases]:
    with daemon() as made:
        commands = [*COMMANDS, f"perl -e '{WHERE}'", *UNKNOWN.values(), CHANGED]
        tree, place = rootfs("debian-13-build-arm64"), tmp_path_factory.mktemp("perl")
        yield run_cases(made.start(), tree, commands, place, PREPARE)


@pytest.mark.parametrize("command", COMMANDS)
def test_it_answers_as_under_qemu(cases: Cases, command: str) -> None:
    plain = [line for line in cases.plain[command].splitlines() if not line.startswith("qemu: ")]
    assert cases.native[command].splitlines() == plain


def test_it_did_run_natively(cases: Cases) -> None:
    assert cases.native[f"perl -e '{WHERE}'"].startswith("native")
    assert cases.plain[f"perl -e '{WHERE}'"].startswith("emulated")


@pytest.mark.parametrize("why", UNKNOWN)
def test_what_it_cannot_answer_is_emulated(cases: Cases, why: str) -> None:
    assert cases.native[UNKNOWN[why]].startswith("emulated--- 0")


def test_what_has_changed_something_is_not_started_again(cases: Cases) -> None:
    assert cases.plain[CHANGED] == "loaded--- 0\n"
    assert cases.native[CHANGED] == "refused--- 0\n"


def test_it_left_the_same_files(cases: Cases) -> None:
    assert cases.differences == []
