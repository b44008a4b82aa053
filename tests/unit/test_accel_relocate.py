"""Native programs are changed in place: their loader, its directories, texts and pointers."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maid.acceleration import relocate
from maid.acceleration.manager import host_machine
from maid.acceleration.model import MACHINES, Place
from maid.acceleration.relocate import Image, RelocationError

NATIVE = host_machine()
assert NATIVE is not None
PLACE = Place("abcde", Path("/nowhere"), NATIVE, MACHINES["riscv64"])
LOADER = "/dev/.maid/abcde/ld.so"

SOURCE = """
#include <stdio.h>
static const char *answers[] = { "one and only", "another" };
const char *other = "other text";
int main(int argc, char **argv)
{
    printf("%s, %s, %s\\n", answers[argc > 3], "a text of its own", other);
    return 0;
}
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A position-independent program with a RUNPATH."""
    program = tmp_path_factory.mktemp("relocate") / "program"
    command = ["cc", "-O0", "-fPIE", "-pie", "-Wl,--enable-new-dtags,-rpath,/usr/lib/own", "-xc"]
    subprocess.run([*command, "-", "-o", program], input=SOURCE, text=True, check=True)
    return program


def run(data: bytes, directory: Path) -> str:
    path = directory / "changed"
    path.write_bytes(data)
    path.chmod(0o755)
    return subprocess.run([path], capture_output=True, text=True, check=True).stdout


def test_a_program_gets_the_store_s_loader_and_nothing_else_changes(compiled: Path) -> None:
    before = compiled.read_bytes()
    after = relocate.program(before, PLACE.native, LOADER)
    image = Image(after)
    assert image.interpreter == LOADER.encode()
    assert Image(before).search_paths == ["/usr/lib/own"]
    assert image.search_paths == []
    assert image.needed == Image(before).needed == ["libc.so.6"]
    assert len(after) == len(before)
    changed = [i for i, (a, b) in enumerate(zip(before, after, strict=True)) if a != b]
    # The loader's name and the tag of the directories.
    assert len(changed) < 40


def test_it_runs_with_that_loader(compiled: Path, tmp_path: Path) -> None:
    usual = Path(relocate.LOADERS[PLACE.native.debian].decode()).resolve()
    short = Path(f"/tmp/ld-{os.getpid()}")  # must fit where the usual one's name was
    short.symlink_to(usual)
    try:
        data = relocate.program(compiled.read_bytes(), PLACE.native, str(short))
        assert run(data, tmp_path) == "one and only, a text of its own, other text\n"
    finally:
        short.unlink()


def test_a_program_with_another_loader_is_refused(compiled: Path) -> None:
    once = relocate.program(compiled.read_bytes(), PLACE.native, LOADER)
    with pytest.raises(RelocationError, match=r"its loader is /dev/\.maid"):
        relocate.program(once, PLACE.native, LOADER)


def test_a_loader_s_name_that_does_not_fit_is_refused(compiled: Path) -> None:
    with pytest.raises(RelocationError, match="no room"):
        relocate.program(compiled.read_bytes(), PLACE.native, f"{LOADER}-that-is-far-too-long")


def test_a_program_for_another_machine_is_refused(compiled: Path) -> None:
    with pytest.raises(RelocationError, match="ELF machine"):
        relocate.program(compiled.read_bytes(), MACHINES["riscv64"], LOADER)


def test_a_static_program_stays_as_it_is(tmp_path: Path) -> None:
    program = tmp_path / "static"
    subprocess.run(
        ["cc", "-static", "-xc", "-", "-o", program],
        input="int main(void) { return 0; }",
        text=True,
        check=True,
    )
    data = program.read_bytes()
    assert relocate.program(data, PLACE.native, LOADER) == data


def test_the_loader_looks_in_the_set_alone() -> None:
    usual = Path(relocate.LOADERS[PLACE.native.debian].decode())
    data = relocate.loader(usual.read_bytes(), PLACE, "/dev/.maid/abcde/p")
    directory = f"/lib/{PLACE.native.gnu}/".encode()
    # What glibc substitutes for $LIB has no slash before it.
    assert directory not in data
    assert data.count(b"/dev/.maid/abcde/lib/") >= 2
    assert b"\0/etc/ld.so.cache\0" not in data
    assert b"\0/etc/ld.so.preload\0" not in data
    assert b"\0/dev/.maid/abcde/p\0" in data
    assert len(data) == usual.stat().st_size


def test_a_text_is_overwritten_by_one_that_fits(compiled: Path, tmp_path: Path) -> None:
    patch = relocate.text("a text of its own", "for {gnu}")
    assert "for riscv64-linux" not in compiled.read_bytes().decode(errors="replace")
    with pytest.raises(RelocationError, match="does not fit"):
        relocate.text("a text of its own", "for {gnu} and more")(compiled.read_bytes(), PLACE)
    with pytest.raises(RelocationError, match="does not hold"):
        relocate.text("text of its own", "x")(compiled.read_bytes(), PLACE)
    short = Place("abcde", Path("/nowhere"), PLACE.native, MACHINES["s390x"])
    with pytest.raises(RelocationError, match="does not fit"):
        patch(compiled.read_bytes(), short)
    changed = relocate.overwrite(compiled.read_bytes(), b"a text of its own", b"a text")
    assert run(changed, tmp_path) == "one and only, a text, other text\n"


def test_pointers_to_a_text_are_changed_where_the_text_is_not(
    compiled: Path, tmp_path: Path
) -> None:
    data = relocate.repoint(compiled.read_bytes(), b"one and only", b"another")
    assert run(data, tmp_path) == "another, a text of its own, other text\n"
    # A text that code points to by itself has no relocation.
    with pytest.raises(RelocationError, match="nothing points"):
        relocate.repoint(compiled.read_bytes(), b"a text of its own", b"another")


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 700), st.integers(0, 255)), max_size=8),
    st.integers(0, 4096),
)
def test_a_damaged_file_is_an_error_of_ours_and_nothing_else(
    changes: list[tuple[int, int]], cut: int
) -> None:
    true = shutil.which("true")
    assert true is not None
    data = bytearray(Path(true).read_bytes())
    for at, value in changes:
        data[at] = value
    damaged = bytes(data[: len(data) - cut])
    try:
        relocate.program(damaged, PLACE.native, LOADER)
    except RelocationError:
        return
