"""emulation/keeper.py on real private instances: registers, proves, adopts, shadows, renews."""

import asyncio
import os
import shutil
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from keeping import (
    another,
    choices,
    configuration,
    execute,
    keeping,
    offer_of,
    plain,
    qemu,
    with_offers,
)

from maid import native
from maid.binfmt.namespace import Pinned
from maid.config import Prefer
from maid.emulation.emulators import Choice
from maid.emulation.targets import PROBE_STATUS, TARGETS

AARCH64 = TARGETS["aarch64"]


def found(tmp_path: Path, *names: str) -> dict[str, Choice]:
    return choices(configuration(tmp_path), names or ("aarch64", "s390x", "riscv64"))


def test_registers_everything_and_proves_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with keeping(tmp_path, found(tmp_path)) as kept:
            assert set(kept.table()) == {"qemu-aarch64", "qemu-s390x", "qemu-riscv64"}
            assert all(kept.keeper.kept[name].ready for name in kept.choices)
            ran = execute(kept.pinned, tmp_path / "probes" / "aarch64")
            assert (ran.returncode, ran.stdout) == (PROBE_STATUS, AARCH64.probe_output)

    asyncio.run(scenario())


def test_flags_are_fixed_argv0_and_credentials(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with keeping(tmp_path, found(tmp_path, "aarch64", "alpha")) as kept:
            table = kept.table()
            assert table["qemu-aarch64"].flags == "POCF"
            assert table["qemu-alpha"].flags == "PF"  # no OCI platform: no trust in setuid

    asyncio.run(scenario())


def test_credentials_are_switchable_for_a_target(tmp_path: Path) -> None:
    from maid.config import Scope, load

    file = tmp_path / "other.toml"
    file.write_text("[emulation.target.aarch64]\ncredentials = false\n")
    config = load(file, Scope.PRIVATE, tmp_path / "io.maid")
    (choice,) = choices(config, ("aarch64",)).values()
    assert {offer.flags for offer in choice.offers} == {"PF"}


def test_a_restarted_daemon_takes_up_its_entries(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with keeping(tmp_path, found(tmp_path)) as kept:
            kept.keeper.stop()
            again = another(kept, tmp_path)
            again.start(kept.choices, kept.choices)
            await again.settle()
            assert again.counters.registrations == 0
            assert all(
                again.kept[name].ready and again.kept[name].owner == "maid" for name in again.kept
            )
            again.stop()

    asyncio.run(scenario())


def test_rule_6_stopping_leaves_the_entries(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with keeping(tmp_path, found(tmp_path)) as kept:
            before = kept.table()
            kept.keeper.stop()
            assert kept.table() == before

    asyncio.run(scenario())


def test_rule_1_a_working_foreign_entry_is_adopted(tmp_path: Path) -> None:
    theirs = plain(AARCH64, qemu("aarch64"), "PF")

    async def scenario() -> None:
        def before(pinned: Pinned) -> None:
            pinned.instance.add(theirs)

        async with keeping(tmp_path, found(tmp_path, "aarch64"), before=before) as kept:
            assert kept.table() == {theirs.name: theirs}
            state = kept.keeper.kept["aarch64"]
            assert state.ready and state.owner == "other"
            assert kept.keeper.release() == []
            assert kept.table() == {theirs.name: theirs}

    asyncio.run(scenario())


def test_rule_1_a_broken_foreign_entry_is_shadowed_and_stays(tmp_path: Path) -> None:
    # Static and executable, so the kernel takes it with F; but it is no emulator.
    theirs = plain(AARCH64, native.path("maid-enter"), "F")

    async def scenario() -> None:
        def before(pinned: Pinned) -> None:
            pinned.instance.add(theirs)

        async with keeping(tmp_path, found(tmp_path, "aarch64"), before=before) as kept:
            table = kept.table()
            assert set(table) == {theirs.name, "maid-aarch64"}
            assert table[theirs.name] == theirs
            state = kept.keeper.kept["aarch64"]
            assert state.ready and state.owner == "maid"
            assert "shadowed" in kept.kinds("aarch64")
            assert kept.keeper.release() == ["maid-aarch64"]
            assert kept.table() == {theirs.name: theirs}

    asyncio.run(scenario())


def test_a_foreign_entry_without_f_is_explained_and_shadowed(tmp_path: Path) -> None:
    theirs = plain(AARCH64, "/usr/bin/nowhere-aarch64", "")

    async def scenario() -> None:
        def before(pinned: Pinned) -> None:
            pinned.instance.add(theirs)

        async with keeping(tmp_path, found(tmp_path, "aarch64"), before=before) as kept:
            (failure,) = [m for k, _, m in kept.events if k == "probe failed"]
            assert "lacks the flag F" in failure and theirs.name in failure
            assert kept.keeper.kept["aarch64"].ready

    asyncio.run(scenario())


def test_prefer_own_shadows_what_works(tmp_path: Path) -> None:
    theirs = plain(AARCH64, qemu("aarch64"), "PF")

    async def scenario() -> None:
        def before(pinned: Pinned) -> None:
            pinned.instance.add(theirs)

        chosen = found(tmp_path, "aarch64")
        async with keeping(tmp_path, chosen, prefer=Prefer.OWN, before=before) as kept:
            assert kept.table()[theirs.name] == theirs
            assert kept.keeper.kept["aarch64"].owner == "maid"
            assert kept.keeper.kept["aarch64"].offer == chosen["aarch64"].offers[0]

    asyncio.run(scenario())


def test_a_newer_broken_entry_is_outranked_and_left_alone(tmp_path: Path) -> None:
    theirs = replace(plain(AARCH64, native.path("maid-enter"), "F"), name="broken")

    async def scenario() -> None:
        async with keeping(tmp_path, found(tmp_path, "aarch64")) as kept:
            kept.pinned.instance.add(theirs)
            await kept.until(lambda: "renewed" in kept.kinds("aarch64"), "ours is the newest again")
            await kept.until_ready()
            assert kept.table()["broken"] == theirs
            assert kept.keeper.kept["aarch64"].owner == "maid"

    asyncio.run(scenario())


def test_an_entry_replaced_under_our_name_is_not_ours_any_more(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with keeping(tmp_path, found(tmp_path, "aarch64")) as kept:
            theirs = plain(AARCH64, qemu("aarch64"), "F")
            kept.keeper.stop()  # so that they win the race for the name
            kept.pinned.instance.remove(kept.table()["qemu-aarch64"])
            kept.pinned.instance.add(theirs)
            assert kept.keeper.release() == []
            assert kept.table() == {theirs.name: theirs}

    asyncio.run(scenario())


def test_release_removes_what_the_ledger_holds_and_nothing_else(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with keeping(tmp_path, found(tmp_path)) as kept:
            theirs = replace(plain(TARGETS["arm"], qemu("arm"), "F"), name="theirs")
            kept.pinned.instance.add(theirs)
            assert len(kept.keeper.release()) == 3
            assert kept.table() == {"theirs": theirs}
            assert list(kept.keeper.ledger) == []

    asyncio.run(scenario())


def test_an_upgrade_is_renewed_without_a_moment_in_which_nothing_serves(tmp_path: Path) -> None:
    """A process executes foreign programs as fast as it can while the interpreter's file is
    replaced ten times: each must run."""

    async def scenario() -> None:
        (choice,) = found(tmp_path, "aarch64").values()
        interpreter = tmp_path / "qemu"
        shutil.copy(choice.offers[-1].path, interpreter)
        first = offer_of(choice, interpreter)
        async with keeping(tmp_path, with_offers(choice, first)) as kept:
            root = tmp_path / "probes" / "aarch64"
            hammer = subprocess.Popen(
                ["nsenter", f"--user={kept.pinned.user}", sys.executable, "-c", HAMMER, str(root)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            assert hammer.stdout is not None
            assert hammer.stdout.readline() == b"go\n"
            for _ in range(10):
                new = tmp_path / "qemu.new"
                shutil.copy(choice.offers[-1].path, new)
                new.rename(interpreter)
                upgraded = offer_of(choice, interpreter)
                kept.keeper.update(with_offers(choice, upgraded), ["aarch64"])
                await kept.keeper.settle()
                await asyncio.sleep(0.05)
            output, _ = hammer.communicate(b"stop\n", timeout=30)
            runs, failures = (int(word) for word in output.split())
            assert failures == 0 and runs > 20, f"{failures} of {runs} failed"
            assert kept.keeper.counters.renewals == 10
            record = kept.keeper.ledger.get("qemu-aarch64")
            assert record is not None and record.inode == os.stat(interpreter).st_ino
            assert set(kept.table()) == {"qemu-aarch64"}

    asyncio.run(scenario())


HAMMER = """
import os, select, subprocess, sys
print("go", flush=True)
runs = failures = 0
while not select.select([0], [], [], 0)[0]:
    runs += 1
    done = subprocess.run([sys.argv[1] + "/probe"], stdout=subprocess.DEVNULL)
    failures += done.returncode != 42
print(runs, failures)
"""


def test_a_copy_that_fails_its_probe_gives_way_to_the_plain_interpreter(tmp_path: Path) -> None:
    async def scenario() -> None:
        (choice,) = found(tmp_path, "aarch64").values()
        broken = offer_of(choice, Path(native.path("maid-enter")))
        offers = with_offers(choice, broken, choice.offers[-1])
        async with keeping(tmp_path, offers) as kept:
            await kept.until_ready()
            state = kept.keeper.kept["aarch64"]
            assert state.offer == choice.offers[-1]
            assert "the plain interpreter serves" in state.reason
            assert "fell back" in kept.kinds("aarch64")
            assert set(kept.table()) == {"qemu-aarch64"}

    asyncio.run(scenario())


def test_a_dynamic_interpreter_is_never_registered(tmp_path: Path) -> None:
    dynamic = tmp_path / "bin" / "qemu-aarch64"
    dynamic.parent.mkdir()
    # A dynamic program that calls itself QEMU; it is executed only to ask for its version.
    source = (
        'int puts(const char *); int main(void) { return puts("qemu-aarch64 version 99.0.0") < 0; }'
    )
    subprocess.run(["cc", "-x", "c", "-", "-o", str(dynamic)], input=source.encode(), check=True)
    dynamic.chmod(dynamic.stat().st_mode | stat.S_IXUSR)
    from maid.config import Scope, load
    from maid.emulation import emulators
    from maid.emulation.interpreters import IdentityCache

    file = tmp_path / "other.toml"
    file.write_text(f'[emulation.target.aarch64]\ninterpreter = "{dynamic}"\n')
    config = load(file, Scope.PRIVATE, tmp_path / "io.maid")
    choice = emulators.choose([AARCH64], config, IdentityCache(tmp_path / "state"))["aarch64"]
    assert choice.offers == () and "dynamic" in choice.problem


def test_what_is_excluded_later_is_removed(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with keeping(tmp_path, found(tmp_path)) as kept:
            kept.keeper.update(kept.choices, ["aarch64"])
            assert set(kept.table()) == {"qemu-aarch64"}
            kept.keeper.update(kept.choices, kept.choices)
            await kept.until_ready()

    asyncio.run(scenario())


def test_what_nobody_serves_is_answered_at_once_and_holds_nobody_up(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with keeping(tmp_path, found(tmp_path, "aarch64", "s390x")) as kept:
            kept.keeper.update(kept.choices, ["aarch64"])
            async with asyncio.timeout(20):
                await kept.keeper.probe_now(["s390x"])
                assert kept.keeper.kept["s390x"].serving is None
                await kept.keeper.probe_now(["aarch64"])
                assert kept.keeper.proven("aarch64")

    asyncio.run(scenario())


def test_a_caller_that_goes_away_does_not_take_the_probe_along(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with keeping(tmp_path, found(tmp_path, "aarch64")) as kept:
            asking = asyncio.ensure_future(kept.keeper.probe_now(["aarch64"]))
            await asyncio.sleep(0)
            asking.cancel()
            await kept.keeper.settle()
            assert kept.keeper.proven("aarch64")

    asyncio.run(scenario())


def test_what_was_known_holds_while_a_probe_is_under_way(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with keeping(tmp_path, found(tmp_path, "aarch64")) as kept:
            asking = asyncio.ensure_future(kept.keeper.probe_now(["aarch64"]))
            await asyncio.sleep(0.001)
            assert kept.keeper.proven("aarch64")
            await asking

    asyncio.run(scenario())


def test_one_probe_that_runs_out_of_time_costs_no_offer(tmp_path: Path) -> None:
    """A busy machine is no reason to give up the CPU model: three in a row are."""

    async def scenario() -> None:
        (choice,) = found(tmp_path, "aarch64").values()
        async with keeping(tmp_path, {"aarch64": choice}) as kept:
            state = kept.keeper.kept["aarch64"]
            prober = kept.keeper._prober
            prober._timeout = 0.0001
            await kept.keeper.probe_now(["aarch64"])
            assert state.doubtful and not state.ready
            assert "no answer" in state.reason and not state.failed
            prober._timeout = 10.0
            await kept.until_ready()  # by itself: nobody asks again
            assert state.offer == choice.offers[0] and state.doubts == 0
            prober._timeout = 0.0001
            for _ in range(3):
                await kept.keeper.probe_now(["aarch64"])
            assert choice.offers[0].path in state.failed

    asyncio.run(scenario())


def test_the_entry_that_serves_is_the_one_the_kernel_tries_first(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with keeping(tmp_path, {}) as kept:
            instance = kept.pinned.instance
            broken = replace(plain(AARCH64, native.path("maid-enter"), "F"), name="zz-broken")
            instance.add(broken)
            instance.add(replace(plain(AARCH64, qemu("aarch64"), "F"), name="aa-works"))
            kept.keeper._prober.write([AARCH64])
            kept.keeper.update(found(tmp_path, "aarch64"), [])
            await kept.keeper.settle()
            state = kept.keeper.kept["aarch64"]
            assert state.serving is not None and state.serving.name == "aa-works" and state.ready
            instance.remove(broken)
            instance.add(broken)
            await kept.until(lambda: state.serving == broken, "the newer one is seen")
            await kept.keeper.settle()
            assert not state.ready

    asyncio.run(scenario())


def test_a_broken_entry_that_comes_again_is_outranked_again(tmp_path: Path) -> None:
    theirs = replace(plain(AARCH64, native.path("maid-enter"), "F"), name="bad")

    async def scenario() -> None:
        async with keeping(tmp_path, found(tmp_path, "aarch64")) as kept:
            for count in (1, 2):
                kept.pinned.instance.add(theirs)
                await kept.until(
                    lambda count=count: kept.kinds("aarch64").count("renewed") == count,  # type: ignore[misc]
                    "ours is the newest",
                )
                await kept.until_ready()
                assert kept.keeper.kept["aarch64"].owner == "maid"
                kept.pinned.instance.remove(theirs)

    asyncio.run(scenario())


def test_a_foreign_entry_with_an_odd_name_is_shadowed_like_any_other(tmp_path: Path) -> None:
    async def scenario() -> None:
        def before(pinned: Pinned) -> None:
            entry = plain(AARCH64, native.path("maid-enter"), "F")
            line = entry.register_line().replace(b"qemu-aarch64", b"b\xff")
            with open(f"{pinned.binfmt}/register", "wb", buffering=0) as register:
                register.write(line)

        async with keeping(tmp_path, found(tmp_path, "aarch64"), before=before) as kept:
            await kept.until_ready()
            assert set(kept.table()) == {r"b\xff", "qemu-aarch64"}
            assert kept.keeper.kept["aarch64"].owner == "maid"

    asyncio.run(scenario())
