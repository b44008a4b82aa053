"""A runtime that is installed while the daemon runs, and is looked for by many at once."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemons import Daemon, until
from stepping import Ran, request, run

ONE = '[emulation]\nplatforms = ["linux/s390x"]\n'
AT_ONCE = 12
SLOW = """
#include <stdio.h>
#include <string.h>
#include <unistd.h>
int main(int argc, char **argv)
{
    if (argc == 2 && strcmp(argv[1], "--version") == 0) {
        FILE *tried = fopen(TRIED, "a");
        if (tried)
            fputs("x", tried), fclose(tried);
        sleep(2);
    }
    argv[0] = PROGRAM;
    return execv(PROGRAM, argv), 1;
}
"""
"""A runtime that takes its time to say its version, and counts how often it is asked for it. No
script: a step's supervisor executes a descriptor that the script's interpreter would not find."""


@pytest.fixture
def without(tmp_path: Path) -> Iterator[tuple[Daemon, Path]]:
    """A daemon that has found no runtime, and the path at which it looks for one."""
    place = tmp_path / "crun"
    with Daemon(f'{ONE}[steps]\nruntime = "{place}"\n') as daemon:
        (daemon.runtime / "trial-of-one-that-was-killed/source").mkdir(parents=True)
        daemon.start()
        yield daemon, place


def chosen(daemon: Daemon) -> str | None:
    with daemon.client() as client:
        name = client.call("io.maid.Manager.Status")["status"]["runtime"]
    assert name is None or isinstance(name, str)
    return name


def install(place: Path, slowly: bool = False) -> None:
    """Have the machine's runtime there: at once, not byte by byte."""
    program = shutil.which("crun")
    assert program is not None
    made = place.with_name("made")
    if slowly:
        defined = [f'-DPROGRAM="{program}"', f'-DTRIED="{tried(place)}"']
        command = ["cc", "-x", "c", "-o", made, *defined, "-"]
        subprocess.run(command, input=SLOW, text=True, check=True, timeout=60)
    else:
        made.symlink_to(program)
    made.rename(place)


def tried(place: Path) -> Path:
    return place.with_name("tried")


def at_once(daemon: Daemon, native: Path) -> list[Ran]:
    """That many steps, with the configuration read again among them."""
    out: list[Ran] = []

    def one() -> None:
        out.append(run(daemon, native, "/bin/echo", "x"))

    def again() -> None:
        with daemon.client() as client:
            client.call("io.maid.Manager.Reload")

    threads = [threading.Thread(target=one) for _ in range(AT_ONCE)]
    threads.insert(AT_ONCE // 2, threading.Thread(target=again))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return out


def test_all_who_ask_at_once_find_the_runtime_that_was_installed(
    without: tuple[Daemon, Path], native: Path
) -> None:
    daemon, place = without
    assert chosen(daemon) is None
    for _ in range(3):
        install(place)
        ran = at_once(daemon, native)
        assert [each.refused or each.lines for each in ran] == [["x"]] * AT_ONCE
        assert chosen(daemon) == "crun"
        place.unlink()
        with daemon.client() as client:
            client.call("io.maid.Manager.Reload")
        assert chosen(daemon) is None
    assert not list(daemon.runtime.glob("trial-*"))


def test_who_goes_away_meanwhile_takes_nothing_from_the_others(
    without: tuple[Daemon, Path], native: Path
) -> None:
    """Nor is a second trial made for them: the first one's end is waited for."""
    daemon, place = without
    install(place, slowly=True)
    null = os.open(os.devnull, os.O_RDWR)
    message, descriptors, opened = request(native, ["/bin/true"], [null] * 3)
    first = daemon.client()
    first._send({"method": "io.maid.Steps.Run", "parameters": message, "more": True}, descriptors)
    assert until(tried(place).exists, 20)
    out: list[Ran] = []
    second = threading.Thread(target=lambda: out.append(run(daemon, native, "/bin/echo", "x")))
    second.start()
    first.close()
    second.join(60)
    for each in (null, *opened):
        os.close(each)
    assert out[0].lines == ["x"]
    assert tried(place).read_text() == "x"
