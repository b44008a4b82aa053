"""binfmt/entry.py: what the kernel shows and what it takes, both ways without loss."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maid.binfmt.entry import Entry, EntryError, ordered_flags, parse
from maid.emulation.targets import TARGETS

AARCH64 = TARGETS["aarch64"]
SHOWN = f"""enabled
interpreter /usr/bin/qemu-aarch64-static
flags: POCF
offset 0
magic {AARCH64.magic.hex()}
mask {AARCH64.mask.hex()}
"""


def entry(**changed: object) -> Entry:
    values: dict[str, object] = {
        "name": "qemu-aarch64",
        "interpreter": "/usr/bin/qemu-aarch64-static",
        "magic": AARCH64.magic,
        "mask": AARCH64.mask,
        "flags": "POCF",
    }
    return Entry(**{**values, **changed})  # type: ignore[arg-type]


def shown(entry: Entry) -> str:
    """As fs/binfmt_misc.c, entry_status(), prints it: written here anew to judge parse()."""
    lines = ["enabled" if entry.enabled else "disabled", f"interpreter {entry.interpreter}"]
    lines.append(f"flags: {entry.flags}")
    if entry.kind == "E":
        lines.append(f"extension .{entry.magic.decode()}")
    else:
        lines += [f"offset {entry.offset}", f"magic {entry.magic.hex()}"]
        if entry.mask:
            lines.append(f"mask {entry.mask.hex()}")
    return "\n".join(lines) + "\n"


def test_what_the_kernel_shows_is_read() -> None:
    assert parse("qemu-aarch64", SHOWN) == entry()


def test_disabled_is_no_other_registration() -> None:
    disabled = parse("qemu-aarch64", SHOWN.replace("enabled", "disabled"))
    assert not disabled.enabled
    assert disabled.same_registration(entry())
    assert disabled != entry()


def test_flags_of_newer_kernels_are_kept() -> None:
    assert parse("x", SHOWN.replace("POCF", "POCFD")).flags == "POCFD"


@pytest.mark.parametrize("text", ["", "enabled\n", "interpreter /x\n", "enabled\ninterpreter /x\n",
                                  SHOWN.replace("offset 0", "offset x"),
                                  SHOWN.replace("magic 7f", "magic 7")])  # fmt: skip
def test_what_is_no_entry_is_an_error(text: str) -> None:
    with pytest.raises(EntryError, match="cannot be read"):
        parse("x", text)


EXTENSION = "enabled\ninterpreter /x\nflags: \nextension .exe\n"


@pytest.mark.parametrize("more", ["enabled", "flags: C", "offset 1", "extension .x", "anything"])
@pytest.mark.parametrize(
    ("text", "after"), [(SHOWN, "-static"), (EXTENSION, "/x"), (EXTENSION, ".exe")]
)
def test_no_line_break_is_taken_for_more_of_the_entry(text: str, after: str, more: str) -> None:
    assert parse("x", text)
    with pytest.raises(EntryError, match="cannot be read"):
        parse("x", text.replace(after, f"{after}\n{more}"))


def test_other_ends_of_lines_are_part_of_a_path() -> None:
    for letter in "\r\x0b\x0c\x1c\x85\u2028":
        path = f"/a{letter}b"
        assert parse("x", SHOWN.replace("/usr/bin/qemu-aarch64-static", path)).interpreter == path


def test_the_line_escapes_every_byte() -> None:
    line = entry(magic=b":\\\n\0", mask=b"").register_line()
    assert line == rb":qemu-aarch64:M::\x3a\x5c\x0a\x00::/usr/bin/qemu-aarch64-static:POCF"


def test_a_colon_in_the_interpreter_takes_another_delimiter() -> None:
    line = entry(interpreter="/opt/a:b/qemu").register_line()
    assert line.startswith(b";qemu-aarch64;M;;") and line.endswith(b";/opt/a:b/qemu;POCF")


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"name": "register"}, "cannot be the name"),
        ({"name": "status"}, "cannot be the name"),
        ({"name": "a/b"}, "cannot be the name"),
        ({"name": ".."}, "cannot be the name"),
        ({"magic": b""}, "first 128 bytes"),
        ({"offset": 120}, "first 128 bytes"),
        ({"mask": b"\xff"}, "differ in length"),
        ({"interpreter": "/" + "x" * 127}, "1 to 127 bytes"),
        ({"interpreter": ""}, "1 to 127 bytes"),
        ({"interpreter": "/a\nb"}, "line break"),
        ({"flags": "PZ"}, "unknown flags Z"),
        ({"flags": "FP"}, "shows the flags FP as PF"),
        ({"flags": "C"}, "shows the flags C as OC"),
        ({"name": "a\0b"}, "cannot be the name"),
        ({"name": "é" * 128}, "cannot be the name"),
        ({"name": "\udcff"}, "cannot be the name"),
        ({"interpreter": "/a\0b"}, "zero byte"),
        ({"interpreter": "/\udcff"}, "no UTF-8"),
        ({"kind": "E", "magic": b"a/b", "mask": b""}, "cannot be an extension"),
        ({"kind": "E", "magic": b"\xff", "mask": b""}, "cannot be an extension"),
        ({"kind": "E", "magic": b"exe", "mask": b"\xff" * 3}, "cannot be an extension"),
    ],
)
def test_what_the_kernel_would_refuse_has_words(changed: dict[str, object], words: str) -> None:
    with pytest.raises(EntryError, match=words):
        entry(**changed).register_line()


@given(
    magic=st.binary(min_size=1, max_size=40),
    flags=st.sets(st.sampled_from("POCF")),
    offset=st.integers(0, 80),
    enabled=st.booleans(),
    masked=st.booleans(),
)
def test_both_ways_without_loss(
    magic: bytes, flags: set[str], offset: int, enabled: bool, masked: bool
) -> None:
    made = Entry("x", "/i", magic, b"\xf0" * len(magic) if masked else b"",
                 ordered_flags("".join(flags)), offset, "M", enabled)  # fmt: skip
    assert parse("x", shown(made)) == made


def test_credentials_imply_open() -> None:
    assert ordered_flags("FC") == "OCF"
    assert ordered_flags("FPF") == "PF"


def test_catching_is_by_mask_and_only_while_enabled() -> None:
    other = bytearray(AARCH64.probe or b"")
    assert entry().catches(bytes(other))
    other[7] = 3  # OSABI is masked out
    assert entry().catches(bytes(other))
    other[18] = 0x3E  # another machine
    assert not entry().catches(bytes(other))
    assert not entry(enabled=False).catches(AARCH64.probe or b"")
    assert not entry().catches(b"\x7fELF")
