"""The configuration: any bytes are a Config in which every value is one that can be used, or a
ConfigError of one line that names the file, and the line where it is no TOML."""

from __future__ import annotations

import math
import os
import tempfile
from pathlib import Path

import msgspec

from fuzz.driver import shape
from maid.config import example, load
from maid.emulation.targets import TARGETS
from maid.errors import ConfigError
from maid.settings import Config, Scope


class Configuration:
    """The target."""

    # fmt: off
    words = (
        b"nan", b"inf", b"-1", b"true", b"[[", b"]]", b'"""', b"\\u0000", b"\\n", b"1979-05-27",
        b'"*"', b'"linux/arm64"', b"{}", b"= ", b"\n", b"''", b'""', b"\xff", b"0x10", b"1e400",
        b"[emulation]", b"[emulation.target.aarch64]", b"[steps]", b"[socket]", b"[paths]",
        b'9' * 5000, b'"/\\u0000"', b'"\\ud800"', b"\\n = 1", b"\xef\xbb\xbf", b"\r\n",
    )
    # fmt: on

    def __enter__(self) -> Configuration:
        memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        self.place = tempfile.TemporaryDirectory(prefix="maid-fuzz-", dir=memory)
        self.file = Path(self.place.name) / "maid.toml"
        return self

    def __exit__(self, *_: object) -> None:
        self.place.cleanup()

    def seeds(self) -> list[bytes]:
        text = example()
        lines = [
            line[1:] if line[:1] == "#" and line[1:2] != " " else line for line in text.split("\n")
        ]
        whole = "\n".join(line for line in lines if not line.startswith("# "))
        tables = [f"[{part}" for part in whole.split("\n[")[1:]]
        odd = ["a = " + "[" * 3000, "a = " + "{a=" * 3000, '"a\\nb" = 1', "[socket]\n\n\x00"]
        odd += [
            "[steps]\nruntime = '/x\\u0000'",
            "[emulation]\nprobe_timeout = nan",
            f"a = {'9' * 5000}",
        ]
        odd += ['[steps]\nruntime = "/\\u0000"', "[emulation]\nplatforms = ['\\n']", "a.b.c.d = 1"]
        odd += ["[emulation.target.aarch64]\nenabled = false\ncpu = 'x'\n", "a = 2000-99-99"]
        odd += ['[socket]\ngroup = "a\\u0000"', '[acceleration]\ntools = ["\\u0000", "a\\nb"]']
        return [text.encode(), *(each.encode() for each in (*tables, *odd)), b"a = '\xff'"]

    def one(self, data: bytes) -> object:
        self.file.write_bytes(data)
        try:
            config = load(self.file, Scope.PRIVATE, uid=0)
        except ConfigError as error:
            words = error.message
            assert words.startswith(f"{self.file}:"), words
            assert words.isprintable() and error.hint.isprintable(), (words, error.hint)
            assert len(words) < len(data) + 500
            if "not TOML" in words:
                assert "line " in words or "end of document" in words, words
            return shape(raiser(error), ConfigError)
        usable(config)
        for name, target in TARGETS.items():
            for platform in (None, *target.platforms):
                config.emulation.serves(name, platform)
                config.emulation.must_be_ready(name, platform)
        return "taken"


def raiser(error: Exception) -> object:
    """What raises it."""

    def call() -> None:
        raise error

    return call


def usable(value: object) -> None:
    """Hold that numbers are numbers, and that no text has what no path and no argument can have."""
    match value:
        case float():
            assert math.isfinite(value), value
        case str() | Path():
            assert "\0" not in str(value), value
            str(value).encode()
        case tuple():
            for each in value:
                usable(each)
        case dict():
            for key, each in value.items():
                usable(key)
                usable(each)
        case Config() | msgspec.Struct():
            for field in msgspec.structs.fields(value):
                usable(getattr(value, field.name))
