"""bash, dash, make and m4 answer natively as under QEMU: arithmetic, names, printf."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from accel_cases import Cases, run_cases
from accelerated import daemon
from daemons import rootfs

PREPARE = r"""
printf 'all:\n\t@echo $(MAKE_HOST) $(MAKE_VERSION) $(word 2,a b c)\nx: -lm\n\t@echo $^\n' >Makefile
printf 'a: b c\n\tcat $^ >$@\n%%:\n\techo $@ >$@\n' >pattern.mk
"""

FLOATS = "%.20f|%e|%g|%a|%10.3f|%-10.2f|%+f|% f|%010.2f|%#g|%#.0f|%#.0e|%G|%A"

BASH = [
    "bash --version",
    "bash -c 'echo $HOSTTYPE $MACHTYPE $OSTYPE ${BASH_VERSINFO[@]}'",
    f"bash -c \"printf '{FLOATS}' 0.1 0.1 0.1 0.1 3.14159 2.5 1 1 -2.5 0.5 3 3 1e30 255\"",
    "bash -c 'printf \"%f %f %e %g %a\" inf -inf nan 1e4932 1e-4940'",
    "bash -c 'printf \"%.60f %.3000f\" 0.3 0.7'",
    "bash -c 'printf \"%*.*f %.*f\" 12 4 2.718281828459045235 30 2.718281828459045235'",
    'bash -c "printf \'%f %d %f\' \\"\'A\\" \\"\'B\\" 1x"',
    "bash -c 'printf -v x %.25f 1.1; echo $x'",
    'bash -c "printf \\"%\'f %\'.2f\\" 1234567.891 12"',
    "bash -c 'RANDOM=42; echo $RANDOM $RANDOM $RANDOM'",
    "bash -c 'a=$((-9223372036854775807-1)); echo $((a/-1)) $((a%-1)) $((1<<65)) $((a-1))'",
    "bash -c 'kill -l; ulimit -a; trap -l; type -a ls; set -o; compgen -b'",
    "bash -c 'kill -FPE $$'",
    "bash -c 'x=(a b c); declare -A m=([k]=v); echo ${x[@]^^} ${m[k]@Q} ${#x[@]} {1..5}'",
]

DASH = [
    "a=$((-9223372036854775807-1)); echo $((a/-1)) $((a%-1)) $((1<<65)) $((a-1)) $((0x7f/3))",
    "printf '%.20f %e %g %a %d' 0.1 1e300 1e-5 0.1 0x10",
    "dash -c 'trap \"echo caught\" FPE; kill -FPE $$; echo $((3/1))'",
    "echo $((1/0))",
    "trap '' FPE; dash -c 'trap; echo $((6/2)); kill -FPE $$; echo alive'",
    "dash -c 'kill -FPE $$'",
]

MAKE = [
    "make -v",
    "make",
    "make x | tr '/' '\\n' | tail -n 1; make x",
    "make -f pattern.mk; cat a",
    "make -p -f /dev/null | grep -E '^(MAKE_HOST|\\.LIBPATTERNS|MAKE_VERSION|\\.FEATURES)'",
]

M4 = [
    "m4 --version",
    "echo 'eval(-2147483648/-1) eval(1<<33) eval(-7%3) eval(2**31) eval(255,16,8)' | m4",
    "echo 'changequote([,])define(x,[$2$1])x(a,b) index(hello,l) len(abc)' | m4",
    "echo 'format(%05.2f|%a,3.14159,0.1)' | m4",
    "echo 'syscmd(exit 3)sysval esyscmd(uname -m) incr(2147483647)' | m4",
]

COMMANDS = [*BASH, *DASH, *MAKE, *M4]


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cases]:
    with daemon() as made:
        place = tmp_path_factory.mktemp("shells")
        yield run_cases(made.start(), rootfs("debian-13-build-arm64"), COMMANDS, place, PREPARE)


@pytest.mark.parametrize("command", COMMANDS)
def test_it_answers_as_under_qemu(cases: Cases, command: str) -> None:
    # QEMU says itself that a signal ended a program.
    plain = [line for line in cases.plain[command].splitlines() if not line.startswith("qemu: ")]
    assert cases.native[command].splitlines() == plain


def test_bash_shows_the_digits_of_the_foreign_long_double(cases: Cases) -> None:
    """The test would otherwise hold where both ran under QEMU, or natively on one like it."""
    assert cases.native[BASH[4]].startswith("0.299999999999999999999999999999999990370")


def test_the_names_are_the_foreign_machines(cases: Cases) -> None:
    assert cases.native[BASH[1]].startswith("aarch64 aarch64-unknown-linux-gnu linux-gnu 5")
    assert cases.native[MAKE[1]].startswith("aarch64-unknown-linux-gnu ")


@pytest.mark.parametrize("tool", ["bash", "dash", "make", "m4"])
def test_it_did_run_natively(cases: Cases, tool: str) -> None:
    assert cases.tools.get(tool, 0) > 3


def test_they_left_the_same_files(cases: Cases) -> None:
    assert cases.differences == []
