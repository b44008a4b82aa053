"""The OCI runtime that starts steps: which one works on this machine, and how it is called.

crun is preferred (a step is some 10 ms quicker than with runc: facts/engines.md), runc is there
where crun does not work. Both are found out by running a real container, not by their version.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
from dataclasses import dataclass

import msgspec

from maid import native
from maid.binfmt.namespace import Pinned
from maid.emulation.targets import PROBE_STATUS, TARGETS, own
from maid.errors import MaidError
from maid.platforms import host
from maid.steps.bundle import bundle
from maid.steps.exhausted import refused
from maid.steps.record import read_text, remove
from maid.steps.step import Step

log = logging.getLogger(__name__)

UNIFIED = "/sys/fs/cgroup/unified"
"""Where a hybrid cgroup tree has its v2 part: crun before 1.9 refuses to run where it sees it."""

TRIAL = "trial-"
"""How the directories of trials begin."""

TRIAL_TIMEOUT = 10.0
"""Seconds for the trial container; it needs some 30 ms."""


class RuntimeUnavailable(MaidError):
    """No OCI runtime works here; steps are refused with 125, everything else goes on."""

    exit_status = 125


@dataclass(frozen=True)
class Runtime:
    """An OCI runtime that has run a container here. `hide` is unmounted for it, or ""."""

    name: str
    path: str
    version: str
    hide: str

    def run_command(self, identifier: str, directory: str) -> list[str]:
        """The call that starts the bundle in `directory`, detached, its process id in pid."""
        # maid makes the cgroups of a step itself (cgroups.py); runc cannot be told to make none.
        manager = ["--cgroup-manager=disabled"] if self.name == "crun" else []
        return [
            self.path,
            *("--root", f"{directory}/state"),
            *("--log", f"{directory}/log"),
            *manager,
            "run",
            "--detach",
            *("--preserve-fds", "1"),
            *("--pid-file", f"{directory}/pid"),
            *("--bundle", directory),
            identifier,
        ]

    def delete_command(self, identifier: str, directory: str) -> list[str] | None:
        """The call that removes what the runtime leaves outside `directory`; None: nothing."""
        if self.name != "runc":
            return None
        return [self.path, "--root", f"{directory}/state", "delete", "--force", identifier]


async def choose(wanted: str, directory: str, pinned: Pinned | None) -> Runtime:
    """The first runtime that really runs a container of the machine's own architecture.

    `wanted` is "auto", "crun", "runc" or an absolute path; `directory` a place for the trial;
    `pinned` the instance whose namespace is joined, as steps do. To be called once at a time: the
    trials of two would be in each other's way. Raises RuntimeUnavailable with what each said.
    """
    names = ["crun", "runc"] if wanted == "auto" else [wanted]
    said = []
    for name in names:
        path = shutil.which(name, path=_path())
        if path is None:
            said.append(f"{name} is not installed")
            continue
        kind = "runc" if "runc" in os.path.basename(path) else "crun"
        version = await _version(path)
        for hide in ("", UNIFIED) if os.path.isdir(UNIFIED) else ("",):
            runtime = Runtime(kind, path, version, hide)
            try:
                error = await _trial(runtime, directory, pinned)
            except (OSError, RuntimeError) as reason:
                error = refused(reason, "it could not be tried").message
            if not error:
                return runtime
            said.append(f"{name}{' without ' + hide if hide else ''}: {error}")
    raise RuntimeUnavailable(
        f"no OCI runtime works here: {'; '.join(said)}",
        "install crun or runc (Debian: apt-get install crun), then maid status shows the choice",
    )


def remove_trials(directory: str) -> None:
    """Remove what the trials of a daemon that was killed have left; not while one is running."""
    for name in os.listdir(directory):
        if name.startswith(TRIAL):
            _remove_trial(f"{directory}/{name}")


def _path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin"


async def _version(path: str) -> str:
    try:
        process = await asyncio.create_subprocess_exec(
            path,
            "--version",
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
    except OSError:
        return ""  # no program at all; the trial says so
    try:
        output, _ = await asyncio.wait_for(process.communicate(), TRIAL_TIMEOUT)
    except TimeoutError:
        process.kill()
        await process.wait()
        return ""
    words = output.decode(errors="replace").split("\n", 1)[0].split()
    return words[-1] if words else ""


async def _trial(runtime: Runtime, directory: str, pinned: Pinned | None) -> str:
    """Run the machine's own probe as a container; "" when it worked, else why not."""
    trial = f"{directory}/{TRIAL}{runtime.name}{'-hidden' if runtime.hide else ''}"
    _remove_trial(trial)
    try:
        return await _try(runtime, trial, pinned)
    finally:
        _remove_trial(trial)


async def _try(runtime: Runtime, trial: str, pinned: Pinned | None) -> str:
    os.makedirs(f"{trial}/source", mode=0o755)
    with open(f"{trial}/source/probe", "wb") as file:
        file.write(TARGETS[own()].probe or b"")
        os.fchmod(file.fileno(), 0o755)
    document = bundle(
        Step(host(), ("/probe",)),
        trial,
        user_namespace=pinned.user if pinned else None,
        mapping=pinned.mapping if pinned else None,
        own_network=False,
        resolver=False,
        terminal_group=pinned is None or pinned.mapping.gid_outside(5) is not None,
    )
    with open(f"{trial}/config.json", "wb") as config:
        config.write(msgspec.json.encode(document))
    root = os.open(f"{trial}/source", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    process: asyncio.subprocess.Process | None = None
    try:
        program = native.path("maid-step")
        hide = ["hide", runtime.hide] if runtime.hide else []
        process = await asyncio.create_subprocess_exec(
            *(program, "directory", trial, "rootfs", str(root), "sys", "1", "timeout", "8000"),
            *("init", native.path("maid-init"), *hide, "--"),
            *runtime.run_command("maid-trial", trial),
            pass_fds=(root,),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            env={"PATH": _path()},
        )
        try:
            await asyncio.wait_for(process.wait(), TRIAL_TIMEOUT)
        except TimeoutError:
            return "it did not end in time"
        ended = read_text(f"{trial}/result").split(maxsplit=6)
        if ended[:2] == ["exited", str(PROBE_STATUS)]:
            return ""
        said = read_text(f"{trial}/log").strip()
        return said or " ".join(ended) or "it ended without a word"
    finally:
        os.close(root)
        if process is not None and process.returncode is None:  # too slow, or nobody waits any more
            process.terminate()
            await process.wait()
        command = runtime.delete_command("maid-trial", trial)
        if command:
            await quietly(command)


def _remove_trial(trial: str) -> None:
    shutil.rmtree(f"{trial}/source", ignore_errors=True)  # what the trial mounts lies beside it
    remove(trial)


async def quietly(command: list[str]) -> None:
    """Run a command whose outcome does not matter, with a time limit of ten seconds."""
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            env={"PATH": _path()},
        )
    except (OSError, RuntimeError) as error:  # no processes, descriptors or threads are left
        log.warning("%s: %s", command[0], error)
        return
    try:
        await asyncio.wait_for(process.wait(), TRIAL_TIMEOUT)
    except TimeoutError:
        process.kill()
        await process.wait()
