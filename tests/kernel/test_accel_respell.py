"""A native program that was given longer texts has their lengths right, too."""

import platform
import subprocess
from pathlib import Path

import pytest

from maid.acceleration.respell import respell

pytestmark = pytest.mark.skipif(
    platform.machine() != "x86_64", reason="what is respelled is x86-64 code"
)

# As apt 3 has its architecture, in a string_view; without vector registers, which would take both
# halves at once.
SOURCE = """\
#include <unistd.h>

struct view { long length; const char *text; };

__attribute__((noinline)) int show(const struct view *view, int other)
{
	return write(1, view->text, view->length) == view->length ? other : 1;
}

int main(void)
{
	struct view views[] = { { 0, 0 }, { sizeof("amd64") - 1, "amd64" } };

	return show(views + 1, 5) - 5;
}
"""


@pytest.mark.parametrize("name", ["arm64", "riscv64", "ppc64el"])
def test_a_string_view_is_as_long_as_its_text(tmp_path: Path, name: str) -> None:
    source, program = tmp_path / "view.c", tmp_path / "view"
    source.write_text(SOURCE)
    flags = ["-O2", "-mno-sse", "-fcf-protection=none"]
    subprocess.run(["gcc", *flags, "-o", program, source], check=True, timeout=60)
    changed = respell(program.read_bytes(), [(b"\0amd64\0", name.encode())], {})
    program.write_bytes(changed)
    assert subprocess.run([program], capture_output=True, timeout=10).stdout == name.encode()
