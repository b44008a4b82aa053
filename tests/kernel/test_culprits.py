"""emulation/culprit.py: who removed, disabled or replaced an entry is told, as far as the kernel
tells."""

import asyncio
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from keeping import Kept, choices, configuration, keeping

from maid import fanotify
from maid.emulation import culprit
from maid.emulation.culprit import Cause, Culprits, place_of

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="fanotify needs root")

NAME = "qemu-aarch64"


def shell(script: str) -> subprocess.Popen[bytes]:
    """A shell that does something to a table, and is there until its standard input is closed."""
    return subprocess.Popen(["sh", "-c", f"{script}\nread _"], stdin=subprocess.PIPE)


def end(process: subprocess.Popen[bytes]) -> None:
    process.communicate(timeout=10)


async def told(kept: Kept, script: str, cause: Cause, target: str = "aarch64") -> tuple[str, int]:
    """The sentence of the event that a shell's deed leads to, and the shell's number."""
    before = len(kept.events)

    def healed() -> list[str]:
        new = kept.events[before:]
        return [said for kind, name, said in new if (kind, name) == ("healed", target)]

    process = shell(script.replace("TABLE", kept.pinned.instance.path))
    try:
        await kept.until(lambda: bool(healed()), f"{script} is healed")
    finally:
        end(process)
    assert kept.keeper.counters.causes[cause] >= 1, kept.keeper.counters.causes
    return healed()[0], process.pid


def keep(
    tmp_path: Path, *deeds: tuple[str, Cause, str], guarded: bool = False
) -> list[tuple[str, int]]:
    """What is told of each deed, done one after another to a table that is kept."""

    async def scenario() -> list[tuple[str, int]]:
        found = choices(configuration(tmp_path), ("aarch64", "s390x"))
        said = []
        async with keeping(tmp_path, found, guarded=guarded) as kept:
            for script, cause, target in deeds:
                await kept.until_ready()
                said.append(await told(kept, script, cause, target))
            await kept.until_ready()
        return said

    return asyncio.run(scenario())


def me() -> str:
    return Path("/proc/self/comm").read_text().strip()


@pytest.mark.parametrize("guarded", [False, True])
def test_who_removed_one_entry_is_told(tmp_path: Path, guarded: bool) -> None:
    deed = f"echo -1 >TABLE/{NAME}", Cause.removed, "aarch64"
    ((said, pid),) = keep(tmp_path, deed, guarded=guarded)
    assert said.startswith(f"{NAME} was gone and is registered again (by sh of {me()}"), said
    assert said.endswith(f", process {pid})"), said


def test_a_shell_of_a_shell_is_told_once(tmp_path: Path) -> None:
    deed = f"sh -c 'echo -1 >TABLE/{NAME}; read _'; :", Cause.removed, "aarch64"
    ((said, _),) = keep(tmp_path, deed)
    assert "(by sh" in said and " of sh" not in said, said


@pytest.mark.parametrize("guarded", [False, True])
def test_a_flush_is_told_from_a_removal(tmp_path: Path, guarded: bool) -> None:
    deed = "echo -1 >TABLE/status", Cause.flushed, "aarch64"
    ((said, pid),) = keep(tmp_path, deed, guarded=guarded)
    assert said.startswith(f"{NAME} was gone with all others and is registered again (by sh"), said
    assert said.endswith(f", process {pid})"), said


def test_who_disabled_an_entry_or_the_table_is_told(tmp_path: Path) -> None:
    (one, one_pid), (table, table_pid) = keep(
        tmp_path,
        (f"echo 0 >TABLE/{NAME}", Cause.disabled, "aarch64"),
        ("echo 0 >TABLE/status", Cause.switched_off, ""),
    )
    assert one.startswith(f"{NAME} was disabled and is enabled again (by sh of "), one
    assert one.endswith(f", process {one_pid})"), one
    assert table.startswith("the table was switched off as a whole and is on again (by sh"), table
    assert table.endswith(f", process {table_pid})"), table


def test_who_comes_later_is_not_taken_for_who_came_before(tmp_path: Path) -> None:
    deeds = [(f"echo -1 >TABLE/{NAME}", Cause.removed, "aarch64")] * 3
    said = keep(tmp_path, *deeds)
    assert len({pid for _, pid in said}) == 3
    for sentence, pid in said:
        assert sentence.endswith(f", process {pid})"), said


def test_arguments_are_not_told(tmp_path: Path) -> None:
    script = f"password=verysecret; echo -1 >TABLE/{NAME}"
    ((said, _),) = keep(tmp_path, (script, Cause.removed, "aarch64"))
    assert "by sh" in said and "secret" not in said


def alone(tmp_path: Path, look: Callable[[Culprits], None], spared: tuple[int, ...] = ()) -> None:
    """`look` at the culprits of an ordinary directory, whose writes fanotify tells as well."""

    async def scenario() -> None:
        culprits = Culprits(str(tmp_path), lambda: spared)
        culprits.renew()
        try:
            assert culprits.active
            look(culprits)
        finally:
            culprits.close()

    asyncio.run(scenario())


def test_what_maid_itself_and_its_guard_write_is_told_of_nobody(tmp_path: Path) -> None:
    def look(culprits: Culprits) -> None:
        (tmp_path / "entry").write_text("0")
        assert culprits.explain("entry", Cause.disabled) == (
            Cause.disabled,
            "entry was disabled and is enabled again",
        )
        assert culprits.latest() == ""

    alone(tmp_path, look)


def test_a_name_with_a_line_break_makes_no_line_of_its_own(tmp_path: Path) -> None:
    forger = tmp_path / "x\nmaid: FAKE"
    forger.symlink_to("/bin/sh")

    def look(culprits: Culprits) -> None:
        script = f"echo 1 >{tmp_path}/entry; read _"
        writer = subprocess.Popen([str(forger), "-c", script], stdin=subprocess.PIPE)
        parent = subprocess.Popen(
            [str(forger), "-c", f"sh -c '{script.replace('entry', 'other')}'; :"],
            stdin=subprocess.PIPE,
        )
        try:
            for name in ("entry", "other"):
                until = time.monotonic() + 10
                said = ""
                while "maid: FAKE" not in said:
                    assert time.monotonic() < until, said
                    _, said = culprits.explain(name, Cause.removed)
                assert "x?maid: FAKE" in said and said.isprintable(), said
        finally:
            end(writer)
            end(parent)

    alone(tmp_path, look)


@pytest.mark.parametrize("how", ["reloaded", "unmounted"])
def test_the_guard_that_is_ended_in_a_fight_accuses_nobody_of_maids(
    tmp_path: Path, how: str
) -> None:
    """What it wrote last may be told after it has ended, as it is here."""

    async def scenario() -> None:
        found = choices(configuration(tmp_path), ("aarch64", "s390x"))
        async with keeping(tmp_path, found, guarded=True) as kept:
            guard = kept.keeper._guarding.pid
            culprits = kept.keeper._culprits
            loop = asyncio.get_running_loop()
            loop.remove_reader(culprits._descriptor)
            end(shell(f"echo -1 >{kept.pinned.instance.path}/{NAME}"))
            standin = Path(kept.pinned.instance.path, f"{NAME}.next")
            until = time.monotonic() + 10
            while not standin.exists():  # nothing of the daemon's runs meanwhile
                assert time.monotonic() < until
            standin.write_text("0")  # by this process, as maid's own
            while not standin.read_text().startswith("enabled"):
                assert time.monotonic() < until
            if how == "reloaded":
                kept.keeper.update(kept.choices, ["aarch64"])
            else:
                kept.keeper._guarding.disarm()
            said = [sentence for _, _, sentence in kept.events]
            assert f"process {guard}" not in " ".join(said), said
            assert guard in kept.keeper._culprits._spared()  # also for what is told later still
            assert [kind for kind, name, _ in kept.events if name == "aarch64"].count("healed") >= 1

    asyncio.run(scenario())


def test_one_who_has_ended_is_told_by_number_and_with_the_unit_that_was_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    units = tmp_path / "units"
    units.mkdir()
    monkeypatch.setattr(culprit, "_STARTED", f"{units}/invocation:")

    def look(culprits: Culprits) -> None:
        writer = shell(f"echo 1 >{tmp_path}/entry")
        end(writer)
        _, said = culprits.explain("entry", Cause.removed)
        assert said.endswith(f"(by process {writer.pid}, which has ended)"), said
        (units / "invocation:systemd-binfmt.service").symlink_to("0123456789abcdef")
        _, said = culprits.explain("entry", Cause.removed)
        assert "which has ended, systemd-binfmt.service was started 0." in said, said

    alone(tmp_path, look)


def test_what_was_written_long_ago_explains_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look(culprits: Culprits) -> None:
        end(shell(f"echo 1 >{tmp_path}/entry"))
        assert "(by " in culprits.explain("entry", Cause.removed)[1]
        monkeypatch.setattr(culprit, "RECENT", 0.0)
        assert "(by " not in culprits.explain("entry", Cause.removed)[1]

    alone(tmp_path, look)


def test_one_who_writes_without_end_is_looked_at_now_and_then(tmp_path: Path) -> None:
    looks = 0

    async def scenario() -> None:
        nonlocal looks
        culprits = Culprits(str(tmp_path), tuple)
        inner = culprits._look

        def counted() -> None:
            nonlocal looks
            looks += 1
            inner()

        culprits._look = counted  # type: ignore[method-assign]
        culprits.renew()
        script = f"i=0; while [ $i -lt 5000 ]; do echo 1 >{tmp_path}/$((i % 50)); i=$((i+1)); done"
        began = time.monotonic()
        process = await asyncio.create_subprocess_exec("sh", "-c", script)
        await process.wait()
        took = time.monotonic() - began
        culprits.close()
        assert looks <= 2 * culprit.LOOKS + culprit.LOOKS * took, (looks, took)

    asyncio.run(scenario())
    assert looks > 0


def test_the_file_that_was_written_is_named(tmp_path: Path) -> None:
    descriptor = fanotify.watch(str(tmp_path))
    try:
        assert fanotify.writes(descriptor) == []
        for name in ("one", "a much longer name, of which a handle's size does not depend"):
            (tmp_path / name).write_text("x")
        found = fanotify.writes(descriptor)
        assert {write.pid for write in found} == {os.getpid()}
        assert [write.name for write in found] == [
            "one",
            "a much longer name, of which a handle's size does not depend",
        ]
    finally:
        os.close(descriptor)


@pytest.mark.parametrize(
    ("cgroups", "place"),
    [
        ("0::/system.slice/cron.service\n", "cron.service"),
        ("0::/\n", ""),
        ("", ""),
        ("0::/user.slice/user-1000.slice/session-3.scope", "session-3.scope"),
        ("2:cpu:/\n1:name=systemd:/system.slice/a.service\n0::/\n", "a.service"),
        (f"0::/system.slice/docker-{'ab' * 32}.scope", "container abababababab"),
        (f"0::/kubepods.slice/cri-containerd-{'12' * 32}.scope", "container 121212121212"),
        (f"0::/docker/{'cd' * 32}", "container cdcdcdcdcdcd"),
    ],
)
def test_a_process_is_told_with_its_unit_or_container(cgroups: str, place: str) -> None:
    assert place_of(cgroups) == place
