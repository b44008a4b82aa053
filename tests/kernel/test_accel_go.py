"""Go's compiler and assembler make the same objects natively as under QEMU, for the machine that
the go command names; without that name they are not the native ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from accelerated import both, daemon
from daemons import Daemon, rootfs
from stepping import Bind

from maid.acceleration import verify

TREE = "debian-13-compilers-arm64"

SOURCE = """
package x

type Number interface{ ~int | ~float64 }

type pair[K comparable, V Number] struct { key K; value V }

func Sum[K comparable, V Number](pairs []pair[K, V], keep func(K) bool) (sum V) {
    for _, each := range pairs {
        if keep(each.key) { sum += each.value * 3 }
    }
    return
}

type shape interface{ area() float64 }
type square struct{ side float64 }
type circle struct{ radius float64 }

func (s square) area() float64 { return s.side * s.side }
func (c circle) area() float64 { return 3.14159265358979 * c.radius * c.radius }

func Largest(shapes ...shape) (found shape) {
    for _, each := range shapes {
        if found == nil || each.area() > found.area() { found = each }
    }
    return
}

func Words(text string) map[string]int {
    counts, word := map[string]int{}, []rune{}
    for _, r := range text + " " {
        if r != ' ' { word = append(word, r); continue }
        if len(word) > 0 { counts[string(word)]++ }
        word = word[:0]
    }
    return counts
}

func Total() float64 {
    pairs := []pair[string, float64]{{"a", 1.1}, {"b", 2}}
    return Sum(pairs, func(k string) bool { return k != "c" })
}
"""
ASSEMBLY = r"""
TEXT ·double(SB), 4, $0-16
    MOVD x+0(FP), R0
    LSL $1, R0, R0
    FMADDD F0, F1, F2, F3
    MOVD R0, ret+8(FP)
    RET
"""
TOOLS = "/usr/lib/go-1.24/pkg/tool/linux_arm64"
# The counters of Go's telemetry hold times and a day drawn by lot.
COMPILE = f"""
mkdir -p ~/.config/go/telemetry; echo off >~/.config/go/telemetry/mode
cd /tmp; export GOARCH=arm64 GOOS=linux GOROOT=/usr/lib/go-1.24; : >none
for flags in '' '-N -l' '-race=false -shared' '-dwarf=false'; do
    {TOOLS}/compile -o "x$flags.a" -p x -complete -pack -importcfg none $flags x.go; echo $?
done
{TOOLS}/asm -p x -o x.o x.s; echo $?
{TOOLS}/compile -o y.a -p x -importcfg none nosuch.go; echo $?
{TOOLS}/compile -V=full; {TOOLS}/link -V=full
"""


@pytest.fixture(scope="module")
def accelerated() -> Iterator[Daemon]:
    with daemon() as made:
        yield made.start()


@pytest.fixture(scope="module")
def mounts(tmp_path_factory: pytest.TempPathFactory) -> list[Bind]:
    place = tmp_path_factory.mktemp("go")
    (place / "x.go").write_text(SOURCE)
    (place / "x.s").write_text(ASSEMBLY)
    return [
        Bind(place / "x.go", "/tmp/x.go", readonly=True),
        Bind(place / "x.s", "/tmp/x.s", readonly=True),
    ]


def test_go_makes_the_same_objects(accelerated: Daemon, mounts: list[Bind], tmp_path: Path) -> None:
    tree = rootfs(TREE)
    done = both(accelerated, tree, ["/bin/sh", "-c", COMPILE], tmp_path, binds=mounts)
    assert done.plain.stdout == done.native.stdout
    assert done.plain.stderr == done.native.stderr
    assert done.plain.stdout.split()[:5] == ["0"] * 5
    one, other = (
        verify.Tree(f"{tmp_path}/{kind}/upper", str(tree)) for kind in ("plain", "native")
    )
    assert verify.compare(one, other) == []
    assert done.tools["go compile 1.24"] == 6
    assert done.tools["go asm 1.24"] == done.tools["go link 1.24"] == 1


@pytest.mark.parametrize("architecture", ["", "GOARCH=amd64 ", "GOARCH=riscv64 "])
def test_it_is_not_asked_for_another_machine(
    accelerated: Daemon, mounts: list[Bind], tmp_path: Path, architecture: str
) -> None:
    script = f"cd /tmp; : >none; {architecture}{TOOLS}/compile -o a -p x -importcfg none x.go"
    command = ["/bin/sh", "-c", f"{script}; head -c 40 a"]
    done = both(accelerated, rootfs(TREE), command, tmp_path, binds=mounts)
    assert done.plain.stdout == done.native.stdout != ""
    assert "go compile 1.24" not in done.tools
