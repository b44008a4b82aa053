"""json.c, compiled with sanitizers, takes and understands the very texts that Python's json does.

The reference is made as strict as RFC 8259: no NaN. Where ours is stricter on purpose (depth, one
name twice, a 0 byte in a string) the tests say so.
"""

import json
import random
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

HERE = Path(__file__).resolve().parent
NATIVE = HERE.parent.parent / "daemon" / "native"
DEPTH = 64  # JSON_DEPTH
SANITIZERS = ("-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")


class Scanner:
    """The driver, running: asked for one text after the other."""

    def __init__(self, program: Path) -> None:
        self.process = subprocess.Popen(
            [program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    def ask(self, text: bytes) -> list[bytes | None] | None:
        """The strings found in a text; None for no JSON."""
        assert self.process.stdin and self.process.stdout and self.process.stderr
        self.process.stdin.write(struct.pack("=I", len(text)) + text)
        self.process.stdin.flush()
        line = self.process.stdout.readline().decode()
        if not line.endswith("\n"):
            pytest.fail(f"{text!r}: {self.process.stderr.read().decode()}")
        if line == "-\n":
            return None
        return [bytes.fromhex(each[1:]) if each != "-" else None for each in line.split()[1:]]


@pytest.fixture(scope="module")
def scanner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scanner]:
    program = tmp_path_factory.mktemp("json") / "driver"
    sources = (HERE / "json_driver.c", NATIVE / "json.c")
    subprocess.run(
        ["cc", "-std=gnu11", "-O1", *SANITIZERS, f"-I{NATIVE}", "-o", program, *sources],
        check=True,
        timeout=120,
    )
    running = Scanner(program)
    yield running
    assert running.process.stdin
    running.process.stdin.close()
    assert running.process.wait(10) == 0


class Pairs(tuple[tuple[str, Any], ...]):
    """An object's members in their order, those that are named twice included."""


RAW = 0xF0000
"""What bytes above 127 are shifted by, so that Python's parser takes them as they are."""


def reference(text: bytes) -> list[bytes | None] | None:
    """What the driver must answer, by Python's own parser."""

    def refuse(_: str) -> None:
        raise ValueError

    try:
        value = json.loads(
            "".join(chr(byte if byte < 0x80 else RAW + byte) for byte in text),
            parse_constant=refuse,
            parse_int=lambda _: 0,  # Python limits the digits of a number
            parse_float=lambda _: 0,
            object_pairs_hook=Pairs,
        )
    except (ValueError, RecursionError):
        return None
    if depth(value) > DEPTH:
        return None
    mounts = member(value, "mounts")
    found = [string(member(member(value, "root"), "path"))]
    return found + ([string(each) for each in mounts] if isinstance(mounts, list) else [])


def member(value: Any, name: str) -> Any:
    found = [v for k, v in value if k == name] if isinstance(value, Pairs) else []
    return found[0] if len(found) == 1 else None


def string(value: Any) -> bytes | None:
    """The bytes of a string that is one, has no 0 byte and fits."""
    if not isinstance(value, str):
        return None
    data = b"".join(map(encoded, value))
    return None if b"\0" in data or len(data) >= 4096 else data


def encoded(character: str) -> bytes:
    code = ord(character)
    if RAW + 0x80 <= code <= RAW + 0xFF:
        return bytes([code - RAW])
    if 0xD800 <= code <= 0xDFFF:  # half of a pair
        code = 0xFFFD
    return chr(code).encode()


def depth(value: Any) -> int:
    inner = [v for _, v in value] if isinstance(value, Pairs) else value
    return 1 + max(map(depth, inner), default=0) if isinstance(inner, list) else 0


SEED = json.dumps(
    {
        "ociVersion": "1.0.2",
        "root": {"path": "root\\fs/\u00e9\U0001f600", "readonly": False},
        "process": {"args": ["sh", "-c", 'a "b"'], "env": ["A=1", "B="], "rlimits": [1.5e3, -0]},
        "mounts": ["/dev", "/pr\u20acoc", {"destination": "/dev", "options": []}, None, True],
        "linux": {},
    },
    indent=1,
).encode()


def documents() -> st.SearchStrategy[bytes]:
    """Objects that have the members that are looked for, sometimes, written in several ways."""
    values = st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=8,
    )
    whole = st.fixed_dictionaries(
        {},
        optional={
            "root": st.fixed_dictionaries({}, optional={"path": values, "x": values}),
            "mounts": st.lists(st.text(max_size=20)) | values,
            "other": values,
        },
    )
    return st.builds(
        lambda value, ascii, indent: json.dumps(
            value, ensure_ascii=ascii, indent=indent, allow_nan=False
        ).encode(errors="replace"),
        whole,
        st.booleans(),
        st.sampled_from([None, 0, 2]),
    )


@given(documents())
@settings(max_examples=300, deadline=None)
def test_every_document_is_understood(scanner: Scanner, text: bytes) -> None:
    answer = scanner.ask(text)
    assert answer is not None
    assert answer == reference(text)


TOKENS = [b"{", b"}", b"[", b"]", b'"', b":", b",", b"\\", b"\\u00", b"\\ud83d", b"\\ude00", b"0"]
TOKENS += [
    b"-",
    b".",
    b"e+",
    b"true",
    b"nul",
    b" ",
    b"\n",
    b"\0",
    b"\x1f",
    b"\xff",
    b"\xef\xbb\xbf",
]


@given(st.integers(min_value=0))
@settings(max_examples=1500, deadline=None)
@example(0)
def test_changed_documents_are_taken_and_refused_as_by_python(scanner: Scanner, seed: int) -> None:
    chance = random.Random(seed)
    text = bytearray(SEED)
    for _ in range(chance.randint(0, 4)):
        at = chance.randrange(len(text) + 1)
        match chance.randrange(4):
            case 0:
                text[at:at] = chance.choice(TOKENS)
            case 1:
                text[at : at + chance.randint(1, 4)] = b""
            case 2:
                text[at : at + 1] = bytes([chance.randrange(256)])
            case _:
                del text[at:]
    assert scanner.ask(bytes(text)) == reference(bytes(text))


@given(st.lists(st.sampled_from(TOKENS), max_size=12))
@settings(max_examples=1500, deadline=None)
def test_arbitrary_tokens_are_taken_and_refused_as_by_python(
    scanner: Scanner, tokens: list[bytes]
) -> None:
    text = b"".join(tokens)
    assert scanner.ask(text) == reference(text)
    string = b'{"root": {"path": "' + text + b'"}}'
    assert scanner.ask(string) == reference(string)


NO_JSON = [
    b"01",
    b"1.",
    b".5",
    b"1e",
    b"+1",
    b"-",
    b"NaN",
    b"-Infinity",
    b"tru",
    b"nulll",
    b"",
    b" ",
]
NO_JSON += [
    b"[1,]",
    b'{"a":1,}',
    b"[,1]",
    b"{1:2}",
    b'{"a"}',
    b"{} {}",
    b"[",
    b'"a',
    b'"\\',
    b'"\t"',
]
NO_JSON += [b'"\\u12"', b'"\\x41"', b"'a'", b"[1 2]", b"/**/1", b"{}\0", b"\xef\xbb\xbf{}"]


@pytest.mark.parametrize("text", NO_JSON)
def test_what_is_no_json_is_refused(scanner: Scanner, text: bytes) -> None:
    assert reference(text) is None
    assert scanner.ask(text) is None


def test_depth_has_a_limit(scanner: Scanner) -> None:
    for levels in (DEPTH, DEPTH + 1, 1 << 20):
        for open_, close in ((b"[", b"]"), (b'{"a":', b"}")):
            inner = b"" if open_ == b"[" else b"1"
            answer = scanner.ask(open_ * levels + inner + close * levels)
            assert (answer is not None) == (levels <= DEPTH)


def test_a_member_that_is_there_twice_is_none(scanner: Scanner) -> None:
    assert scanner.ask(b'{"root": {"path": "a"}, "root": {"path": "b"}}') == [None]
    assert scanner.ask(b'{"root": {"path": "a", "p\\u0061th": "b"}}') == [None]
    assert scanner.ask(b'{"ro\\u006ft": {"path": "a"}}') == [b"a"]


def test_strings_that_no_path_can_be_are_refused(scanner: Scanner) -> None:
    assert scanner.ask(b'{"root": {"path": "a\\u0000b"}}') == [None]
    assert scanner.ask(b'{"root": {"path": "' + b"a" * 4095 + b'"}}') == [b"a" * 4095]
    assert scanner.ask(b'{"root": {"path": "' + b"a" * 4096 + b'"}}') == [None]
    assert scanner.ask(b'{"root": {"path": "' + b"a" * 4095 + b'\\u00e9"}}') == [None]
