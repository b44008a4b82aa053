"""Steps: /bin/true in an arm64 tree by the bare runtime, Steps.Run, `maid run` and `buildah run`.

The four take turns, so that a change of the machine's speed meets all of them. The bare runtime
gets the bundle that maid makes, with the namespace of the same instance. It is measured as anybody
calls it, and also told to make no cgroup, as maid calls it: that is the stricter comparison.
"""

import contextlib
import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from common import MAID, aim, daemon, heading, hide_unified, median, row, spread, timed

from maid import native
from maid.binfmt.namespace import identity
from maid.client import Client
from maid.platforms import parse
from maid.steps.bundle import bundle
from maid.steps.step import Step

ROUNDS = 30
AT_ONCE = (1, 2, 4, 8)
SECONDS = 4.0
TREE = os.environ["BENCH_BUSYBOX"]
COMMAND = "/bin/true"


def bare_bundle(directory: Path, instance: str) -> None:
    """Write the bundle that Steps.Run would use, its root being the tree itself."""
    document = bundle(
        Step(parse("linux/arm64"), (COMMAND,)),
        str(directory),
        user_namespace=f"{Path(instance).parent}/user",
        mapping=identity(),
        own_network=False,
        resolver=os.path.exists("/etc/resolv.conf"),
        terminal_group=True,
    )
    # What maid-step would have attached there.
    shutil.copy(native.path("maid-init"), directory / "init")
    document["root"] = {"path": TREE, "readonly": False}
    (directory / "config.json").write_text(json.dumps(document))


class StepsRun:
    """Steps.Run over one connection."""

    def __init__(self, socket: str) -> None:
        self._client = Client(socket)
        null = os.open(os.devnull, os.O_RDWR)
        root = os.open(TREE, os.O_RDONLY | os.O_DIRECTORY)
        self._descriptors = [os.dup(null), os.dup(null), os.dup(null), root]

    def __call__(self) -> float:
        parameters = {
            **{"stdin": 0, "stdout": 1, "stderr": 2, "rootfs": 3},
            **{"command": [COMMAND], "platform": "linux/arm64"},
        }
        begun = time.perf_counter()
        replies = list(self._client.stream("io.maid.Steps.Run", parameters, self._descriptors))
        milliseconds = (time.perf_counter() - begun) * 1000
        finished = replies[-1]["step"]["finished"]
        if finished["status"] != 0:
            raise SystemExit(f"the step failed: {finished}")
        return milliseconds


def runtime_command(path: str, plain: bool) -> list[str]:
    """The call without a bundle. maid makes a step's cgroups itself; `plain` is how others call
    it."""
    without = ["--cgroup-manager=disabled"] if "crun" in path and not plain else []
    return [path, *without]


def bare(command: list[str], directory: Path, name: str) -> float:
    """One container by the runtime alone."""
    arguments = ["--root", f"{directory}/state", "run", "--bundle", str(directory), name]
    return timed([*command, *arguments], stdout=subprocess.DEVNULL)


_numbers = iter(range(1 << 30))


def bare_once(command: list[str], directory: Path, _: int) -> None:
    """One container under a name of its own."""
    bare(command, directory, f"many-{next(_numbers)}")


@contextlib.contextmanager
def buildah(instance: str, directory: Path) -> Iterator[Callable[[], float]]:
    """`buildah run` in a working container of the same tree, in a namespace with the same
    entries."""
    user = f"{Path(instance).parent}/user"
    holder = subprocess.Popen(
        ["nsenter", f"--user={user}", "unshare", "-m", "--propagation", "private", "sleep", "600"]
    )
    time.sleep(0.3)
    environment = {
        **os.environ,
        "STORAGE_DRIVER": "vfs",
        "BUILDAH_ISOLATION": "chroot",
        "_CONTAINERS_USERNS_CONFIGURED": "1",
        "CONTAINERS_STORAGE_CONF": str(directory / "storage.conf"),
    }
    places = f'runroot = "{directory}/runroot"\ngraphroot = "{directory}/graph"'
    (directory / "storage.conf").write_text(f'[storage]\ndriver = "vfs"\n{places}\n')
    enter = ["nsenter", "-t", str(holder.pid), "-U", "-m", "buildah"]
    try:

        def call(*arguments: str) -> str:
            done = subprocess.run(
                [*enter, *arguments], env=environment, stdout=subprocess.PIPE, check=True
            )
            return done.stdout.decode().strip()

        container = call("from", "--arch", "arm64", "scratch")
        call("copy", "--quiet", container, TREE, "/")
        yield lambda: timed([*enter, "run", container, COMMAND], env=environment)
    finally:
        holder.terminate()
        holder.wait()


def throughput(run: Callable[[int], object], at_once: int) -> float:
    """Steps a second, by `at_once` threads that each start the next when one ends."""
    until = time.perf_counter() + SECONDS
    counts = [0] * at_once

    def work(number: int) -> None:
        while time.perf_counter() < until:
            run(number)
            counts[number] += 1

    begun = time.perf_counter()
    threads = [threading.Thread(target=work, args=(number,)) for number in range(at_once)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - begun)


@contextlib.contextmanager
def sys_attached(directory: Path) -> Iterator[None]:
    """What maid-step would have attached, in this process's own mount namespace. It is gone before
    anybody removes the directory."""
    place = directory / "sys"
    place.mkdir()
    subprocess.run(["mount", "--bind", "/sys", place], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)
        place.rmdir()


def main() -> None:
    hide_unified()
    heading("steps: /bin/true in an arm64 tree, wall milliseconds")
    with daemon() as running, contextlib.ExitStack() as stack:
        status = running.status()
        instance = status["instance"]
        path = status["runtime_path"]
        directory = running.runtime / "bundle"
        directory.mkdir()
        bare_bundle(directory, instance)
        stack.enter_context(sys_attached(directory))
        steps_run = StepsRun(running.socket)
        maid_run = [MAID, "--socket", running.socket, "run", "--platform", "linux/arm64"]
        maid_run += ["--rootfs", TREE, "--", COMMAND]
        name = f"bare {status['runtime']} {status['runtime_version']}"
        strict = f"{name} without a cgroup"
        figures: dict[str, list[float]] = {}
        with buildah(instance, running.directory) as buildah_run:
            for number in range(-3, ROUNDS):
                measured = {
                    name: bare(runtime_command(path, True), directory, f"bare-{number}"),
                    strict: bare(runtime_command(path, False), directory, f"strict-{number}"),
                    "Steps.Run, one connection": steps_run(),
                    "maid run": timed(maid_run),
                    "buildah run (chroot)": buildah_run(),
                }
                for key, value in measured.items():
                    if number >= 0:
                        figures.setdefault(key, []).append(value)
        for key, values in figures.items():
            row(key, spread(values))
        base = median(figures[name])
        by_steps, by_run = median(figures["Steps.Run, one connection"]), median(figures["maid run"])
        by_buildah = median(figures["buildah run (chroot)"])
        aim("Steps.Run / bare runtime", by_steps / base, 1.3)
        aim("Steps.Run / bare runtime without a cgroup", by_steps / median(figures[strict]), 1.3)
        aim("maid run - bare runtime", by_run - base, 90, " ms")
        aim("buildah run / Steps.Run", by_buildah / by_steps, 2.0, at_most=False)
        aim("buildah run / maid run", by_buildah / by_run, 2.0, at_most=False)
        heading("steps a second, at once")
        clients = [StepsRun(running.socket) for _ in range(max(AT_ONCE))]
        for at_once in AT_ONCE:
            alone, spared = (
                throughput(partial(bare_once, runtime_command(path, plain), directory), at_once)
                for plain in (True, False)
            )
            ours = throughput(lambda number: clients[number](), at_once)
            row(
                f"{at_once} at once",
                f"bare {alone:.1f}, no cgroup {spared:.1f}, Steps.Run {ours:.1f}",
            )
            aim(f"{at_once} at once: Steps.Run / bare", ours / alone, 0.9, at_most=False)
            row(f"{at_once} at once: Steps.Run / no cgroup", f"{ours / spared:.2f}")


if __name__ == "__main__":
    main()
