"""Other tools that write to the table, before, while and after maid serves it.

What each writes is written here by a small equivalent, as it is in its source: no foreign entry is
ever lost or changed by maid, no platform is broken that worked, and `maid release` gives back what
there would be without maid.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from keeping import Kept, choices, configuration, execute, keeping, qemu

from maid.binfmt.entry import Entry
from maid.binfmt.namespace import Pinned
from maid.emulation.targets import PROBE_STATUS, TARGETS

SERVED = ("aarch64", "s390x", "riscv64")


def register(table: Path, name: str, flags: str) -> int:
    """Register the installed QEMU as other tools do; the error's number, or 0."""
    target = TARGETS[name]
    magic, mask = (
        "".join(f"\\x{byte:02x}" for byte in octets) for octets in (target.magic, target.mask)
    )
    try:
        (table / "register").write_text(f":qemu-{name}:M::{magic}:{mask}:{qemu(name)}:{flags}")
    except OSError as error:
        assert error.errno is not None
        return error.errno
    return 0


def remove(table: Path, name: str) -> None:
    """Remove an entry that may be gone."""
    with contextlib.suppress(FileNotFoundError):
        file = os.open(table / name, os.O_WRONLY)  # as a shell's > would, were it not for O_CREAT
        try:
            os.write(file, b"-1")
        finally:
            os.close(file)


def installer(table: Path) -> None:
    """tonistiigi/binfmt `--install all` (cmd/binfmt/main.go): what is there by name is left, the
    others get flags CF; an error is logged, and it goes on."""
    for name in SERVED:
        if not (table / f"qemu-{name}").exists():
            register(table, name, "CF")


def reset(table: Path) -> None:
    """multiarch/qemu-user-static `--reset -p yes` (containers/latest/register.sh): everything named
    qemu-* is removed, whosever it is, and registered with flag F."""
    for entry in table.glob("qemu-*"):
        remove(table, entry.name)
    for name in SERVED:
        if register(table, name, "F"):
            return  # `set -e`: it ends at the first that exists


def systemd_binfmt(table: Path) -> None:
    """systemd-binfmt (src/binfmt/binfmt.c): flushes the whole table, then registers what its
    configuration has; a name that is taken is an error that it logs."""
    (table / "status").write_text("-1")
    for name in SERVED:
        register(table, name, "PF")


def binfmt_support(table: Path) -> None:
    """`update-binfmts --enable` of what is imported: what is there by name is left alone, the
    others are registered with the flags of Debian's qemu-user-static."""
    for name in SERVED:
        if not (table / f"qemu-{name}").exists():
            assert register(table, name, "OCF") in (0, errno.EEXIST)


def binfmt_support_off(table: Path) -> None:
    """`update-binfmts --disable`: removes the names that it imported, whosever entries they are."""
    for name in SERVED:
        remove(table, f"qemu-{name}")


TOOLS = [installer, reset, systemd_binfmt, binfmt_support, binfmt_support_off]
each_tool = pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool.__name__)
Tool = Callable[[Path], None]


def found(tmp_path: Path):  # type: ignore[no-untyped-def]
    return choices(configuration(tmp_path), SERVED)


def alone(pinned: Pinned, tool: Tool) -> dict[str, Entry]:
    """What the table is when a tool was there alone, on an empty one."""
    tool(Path(pinned.binfmt))
    return dict(pinned.instance.entries())


async def all_execute(kept: Kept, tmp_path: Path) -> None:
    await kept.until_ready()
    for name in SERVED:
        ran = execute(kept.pinned, tmp_path / "probes" / name)
        assert ran.returncode == PROBE_STATUS, (name, ran)


@each_tool
def test_before(tmp_path: Path, tool: Tool) -> None:
    """What was there is adopted; a release gives it back."""

    async def scenario() -> None:
        there: dict[str, Entry] = {}
        before = lambda pinned: there.update(alone(pinned, tool))  # noqa: E731
        async with keeping(tmp_path, found(tmp_path), before=before) as kept:
            await all_execute(kept, tmp_path)
            now = kept.table()
            assert {name: now[name] for name in there} == there
            kept.keeper.release()
            assert kept.table() == there

    asyncio.run(scenario())


@each_tool
@pytest.mark.parametrize("times", [1, 5])
@pytest.mark.parametrize("guarded", [False, True], ids=["alone", "guarded"])
def test_while_maid_serves(tmp_path: Path, tool: Tool, times: int, guarded: bool) -> None:
    """Every platform works again by itself, and what the tool registered stays as it wrote it.

    The names are maid's when it comes, so a tool that finds them taken registers nothing; one that
    removes first may win the race for a name, and keeps it then.
    """

    async def scenario() -> None:
        async with keeping(tmp_path, found(tmp_path), guarded=guarded) as kept:
            await all_execute(kept, tmp_path)
            for _ in range(times):
                await asyncio.to_thread(tool, Path(kept.pinned.binfmt))
                await kept.keeper.settle()
            await kept.until(
                lambda: all(kept.keeper.proven(name) for name in SERVED), "all are proven"
            )
            await all_execute(kept, tmp_path)
            # maid's own entries start its copies of the interpreters.
            plain = {qemu(name) for name in SERVED}
            theirs = {n: each for n, each in kept.table().items() if each.interpreter in plain}
            kept.keeper.release()
            assert kept.table() == theirs

    asyncio.run(scenario())


@each_tool
def test_afterwards(tmp_path: Path, tool: Tool) -> None:
    """After a release the tool finds what it would without maid, and maid comes back beside it."""

    async def scenario() -> None:
        async with keeping(tmp_path, found(tmp_path)) as kept:
            await all_execute(kept, tmp_path)
            kept.keeper.release()
            assert kept.table() == {}
            there = alone(kept.pinned, tool)
            await kept.keeper.settle()
            assert kept.table() == there  # a release holds until somebody asks again
            if tool is not binfmt_support_off:
                assert set(there) == {f"qemu-{name}" for name in SERVED}

    asyncio.run(scenario())


def test_a_foreign_entry_that_nobody_knows_outlives_everything(tmp_path: Path) -> None:
    """Java's, or wine's: by its extension, its magic, disabled or not, through resets of maid's
    entries, healing and release."""
    lines = [":jar:E::jar::/usr/bin/env:", ":DOSWin:M::MZ::/usr/bin/env:", ":off:E::x::/bin/true:"]

    def before(pinned: Pinned) -> None:
        for line in lines:
            Path(pinned.binfmt, "register").write_text(line)
        Path(pinned.binfmt, "off").write_text("0")

    async def scenario() -> None:
        async with keeping(tmp_path, found(tmp_path), before=before) as kept:
            names = ("jar", "DOSWin", "off")
            shown = {name: Path(kept.pinned.binfmt, name).read_text() for name in names}
            for _ in range(20):
                for name in SERVED:
                    remove(Path(kept.pinned.binfmt), f"qemu-{name}")
                await kept.keeper.settle()
            await all_execute(kept, tmp_path)
            kept.keeper.release()
            assert {n: Path(kept.pinned.binfmt, n).read_text() for n in names} == shown
            assert set(kept.table()) == set(names)

    asyncio.run(scenario())
