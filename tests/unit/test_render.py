"""What people see: aligned, one screen, coloured on a terminal only."""

from __future__ import annotations

import io
import re
import time
from typing import Any

import pytest

from maid.cli import render
from maid.errors import MaidError


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


class OldTerminal(Terminal):
    """One that has no symbols."""

    encoding = "iso-8859-1"


@pytest.fixture(autouse=True)
def plain_surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")


def platform(name: str | None, state: str = "ready", **more: Any) -> dict[str, Any]:
    return {
        "platform": name,
        "target": "aarch64",
        "state": state,
        "via": "emulated",
        "entry": "qemu-aarch64",
        "owner": "maid",
        "interpreter": "/usr/bin/qemu-aarch64-static",
        "interpreter_version": "7.2.22",
        "flags": "POCF",
        "cpu": "neoverse-n1",
        "probe": {"level": "exec", "ok": True, "ms": 12.4, "error": None},
        "reason": None,
        "required": True,
        **more,
    }


def document(*platforms: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "version": "1.0",
        "scope": "host",
        "kernel": "6.12.1",
        "started": time.time() - 180,
        "instance": "/proc/sys/fs/binfmt_misc",
        "namespaces_problem": None,
        "runtime": "crun",
        "runtime_version": "1.8.1",
        "runtime_problem": None,
        "limits_problem": None,
        "guarded": True,
        "store": {
            "path": "/var/lib/maid/store",
            "problem": None,
            "sets": 2,
            "tools": 310,
            "emulated": 4,
            "size": 180 << 20,
            "limit": 0,
            "filling": None,
            "reasons": [],
        },
        "ready": True,
        "heals": 0,
        "steps_running": 0,
        "platforms": list(platforms),
        **more,
    }


def test_without_a_terminal_there_are_words_alone() -> None:
    text = render.status(document(platform("linux/arm64")), io.StringIO(), False)
    assert text.isascii()
    assert "\033" not in text
    assert text.splitlines()[0] == "maid 1.0, host scope, Linux 6.12.1, up 3 min: ready"
    assert re.search(
        r"^linux/arm64  ready  qemu-aarch64 +7.2.22 +POCF +neoverse-n1 +12 ms$", text, re.M
    )


def test_the_native_store_is_one_line_and_the_newest_reason() -> None:
    text = render.status(document(platform("linux/arm64")), io.StringIO(), False)
    assert "native store: 310 tools in 2 sets, 180 MiB" in text
    store = {**document()["store"], "filling": "debian:trixie arm64", "reasons": ["old", "new"]}
    lines = render.status(document(store=store), io.StringIO(), False).splitlines()
    assert any(line.endswith("; fetching debian:trixie arm64") for line in lines)
    assert "! new" in lines and "! old" not in lines
    store["problem"] = "switched off"
    assert "no native store: switched off" in render.status(
        document(store=store), io.StringIO(), False
    )


def test_a_terminal_has_colours_and_symbols() -> None:
    text = render.status(document(platform("linux/arm64")), Terminal(), False)
    assert "\033[32m● ready\033[0m" in text


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_who_wants_no_colours_gets_none(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    assert render.status(document(platform("linux/arm64")), Terminal(), False).isascii()


def test_an_empty_no_color_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """no-color.org: when present and not an empty string."""
    monkeypatch.setenv("NO_COLOR", "")
    assert render.is_terminal(Terminal())


def test_symbols_are_left_out_where_the_encoding_has_none() -> None:
    text = render.status(document(platform("linux/arm64")), OldTerminal(), False)
    assert text.isascii()
    assert "\033[32mready\033[0m" in text


@pytest.mark.parametrize("columns", [200, 80, 60, 40, 25])
def test_a_narrow_terminal_loses_columns_and_never_wraps_the_table(
    monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    text = render.status(
        document(platform("linux/arm64"), platform("linux/386")), Terminal(), False
    )
    rows = re.sub(r"\033\[\d+m", "", text.split("\n\n")[1]).splitlines()
    assert len(rows) == 3
    assert max(map(len, rows)) <= columns
    assert all(row.startswith(("PLATFORM ", "linux/")) for row in rows)
    assert "ready" in rows[1]


def test_columns_are_aligned() -> None:
    rows = [["a", "\033[32mready\033[0m", "x"], ["linux/arm64", "failed", "y"]]
    lines = render.table(rows, ("P", "S", "Z"), io.StringIO()).splitlines()
    assert {
        re.sub(r"\033\[\d+m", "", line).index(z) for line, z in zip(lines, "Zxy", strict=True)
    } == {21}


def test_what_does_not_work_says_why_and_once() -> None:
    broken = [platform(f"linux/arm/v{n}", "failed", reason="no F flag", probe=None) for n in (5, 6)]
    text = render.status(document(*broken, ready=False), io.StringIO(), False)
    assert "up 3 min: not ready" in text
    assert "  linux/arm/v5, linux/arm/v6: no F flag" in text.splitlines()
    assert text.count("no F flag") == 1


def test_what_nobody_asked_for_is_counted_only() -> None:
    shown = document(
        platform("linux/arm64", reason="an old QEMU"),
        platform(None),
        platform("linux/loong64", "absent", required=False, reason="no interpreter"),
    )
    text = render.status(shown, io.StringIO(), False)
    assert "notes on 1 platform and 2 more CPUs: maid status --all" in text
    assert "an old QEMU" not in text and "loong64" not in text
    everything = render.status(shown, io.StringIO(), True)
    for words in ("an old QEMU", "linux/loong64: no interpreter", "(aarch64)"):
        assert words in everything
    assert "--all" not in everything


def test_who_serves_is_said() -> None:
    text = render.status(
        document(
            platform("linux/386", "native", via="native", entry=None),
            platform("linux/arm64", owner="other"),
        ),
        io.StringIO(),
        False,
    )
    assert "this machine" in text
    assert "qemu-aarch64 (adopted)" in text


def test_what_is_wrong_with_the_daemon_is_said() -> None:
    text = render.status(
        document(runtime=None, runtime_problem="neither crun nor runc", heals=3, steps_running=2),
        io.StringIO(),
        False,
    )
    assert "! neither crun nor runc" in text
    assert "steps by none works, 2 running, healed 3 times" in text


def test_a_hint_for_several_platforms_comes_once() -> None:
    names, hint = ("linux/x", "linux/y"), "there are: linux/amd64"
    failed = {"status": None, "message": "none is known", "hint": hint}
    shown = render.ensured(({"platform": name, **failed} for name in names), io.StringIO())
    assert shown.splitlines() == [
        *(f"failed  {name}: none is known" for name in names),
        f"      {hint}",
    ]


def test_an_ensured_platform_is_one_line() -> None:
    found = {"platform": "linux/arm64", "ok": True, "message": None, "hint": None}
    lines = render.ensured(
        [
            {**found, "status": platform("linux/arm64")},
            {**found, "status": None, "message": "it does not run", "hint": "apt install x"},
        ],
        io.StringIO(),
    ).splitlines()
    assert lines == [
        "ready  linux/arm64 (/usr/bin/qemu-aarch64-static, 12 ms)",
        "failed  linux/arm64: it does not run",
        "      apt install x",
    ]


def test_an_event_is_one_line_with_its_date_when_it_is_old() -> None:
    entry = {"sequence": 1, "kind": "ready", "subject": "arm", "message": "", "time": time.time()}
    assert re.fullmatch(r"\d\d:\d\d:\d\d ready arm", render.event(entry, io.StringIO()))
    old = {**entry, "time": time.time() - 86400}
    assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ready", render.event(old, io.StringIO()))


def test_an_error_has_its_way_out_below(capsys: pytest.CaptureFixture[str]) -> None:
    render.error(MaidError("it failed", "do that"))
    assert capsys.readouterr() == ("", "maid: it failed\n      do that\n")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (119, "119 s"), (120, "2 min"), (7200, "2 h"), (172800, "2 days")],
)
def test_durations_are_short(seconds: float, text: str) -> None:
    assert render.duration(seconds) == text
