"""The daemon's life: from the command line or systemd to the last connection.

Takes the socket (its own, or systemd's), starts the core, tells systemd how it stands, and on
SIGTERM lets go: entries, instances and running steps stay as they are (rule 6 of design.md).
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import gc
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

from asyncvarlink import VarlinkInterfaceRegistry
from asyncvarlink.serviceinterface import VarlinkServiceInterface

from maid import __version__
from maid.config import Config, Paths, Scope, load
from maid.errors import DaemonUnreachable, MaidError
from maid.service import listener
from maid.service.access import Peer, give_to_group
from maid.service.core import Core
from maid.service.describe import INTERFACES
from maid.service.events import Events, under_journal
from maid.service.server import Server
from maid.steps.exhausted import refused

log = logging.getLogger("maid.daemon")

URL = "https://github.com/maid-daemon/maid"

OPEN_FILES = 16384
"""Descriptors that the daemon may have open, where the hard limit allows: systemd's default soft
limit is 1024, which one user's connections could use up."""


def main(scope: Scope, socket_path: Path | None, config_file: Path | None) -> int:
    """Run the daemon until it is told to stop; its exit status. Raises MaidError when it cannot
    start; whoever waits at systemd's socket is told so, too."""
    with contextlib.ExitStack() as stack:
        passed = stack.enter_context(listener.passed()) if listener.was_passed() else None
        try:
            return _run(scope, socket_path, config_file, passed)
        except MaidError as error:
            if passed is not None:
                told = DaemonUnreachable(f"the daemon cannot start: {error.message}", error.hint)
                listener.turn_away(passed, told)
            raise


def _run(
    scope: Scope, socket_path: Path | None, config_file: Path | None, passed: socket.socket | None
) -> int:
    config = load(config_file, scope, socket_path)
    prefix = ""
    if os.geteuid() != 0:
        if scope is Scope.HOST:
            raise MaidError(
                "the host scope needs root: only root may register in the machine's binfmt_misc",
                "as an ordinary user: maid daemon --scope private",
            )
        from maid.service.rootless import become_root_of_own_namespace

        become_root_of_own_namespace()
        prefix = f"/proc/{os.getpid()}/root"
    journal = under_journal()
    _set_up_logging(config, journal)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_only_one(config.paths.runtime, _another(scope, config_file)))
        bound = passed or stack.enter_context(_own_socket(config))
        _raise_open_files()
        core = Core(
            config,
            scope,
            Events(journal),
            config_file=config_file,
            instance_prefix=prefix,
            socket_path=bound.getsockname(),
        )
        return asyncio.run(_serve(core, bound))


def _set_up_logging(config: Config, journal: bool) -> None:
    # The journal adds the time; systemd reads <N> at the start of a line as its priority.
    form = "%(name)s: %(message)s" if journal else "%(asctime)s %(levelname)s %(name)s: %(message)s"
    logging.basicConfig(
        stream=sys.stderr, level=config.log.level.value.upper(), format=form, force=True
    )
    logging.getLogger("asyncvarlink").setLevel(logging.ERROR)
    logging.getLogger("asyncio").setLevel(logging.WARNING)


@contextlib.contextmanager
def _only_one(runtime: Path, another: str) -> Iterator[None]:
    """Hold the runtime directory's lock: two daemons would undo each other's work. `another` is how
    this one gets another directory."""
    try:
        os.makedirs(runtime, mode=0o755, exist_ok=True)
        lock = os.open(runtime / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise MaidError(
            f"maid cannot use its directory {runtime}: {error.strerror}",
            "run it as root, or with --scope private",
        ) from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise MaidError(
                f"another maid daemon is using {runtime}",
                f"maid status shows it; {another}, or stop that one",
            ) from None
        try:
            yield
        finally:
            _remove_unused(runtime)
    finally:
        os.close(lock)


def _another(scope: Scope, config_file: Path | None) -> str:
    """How a daemon gets another runtime directory (maid.config.load has the rules)."""
    if scope is Scope.HOST:
        return "for the machine's table one is enough: leave this one out"
    if config_file is None:
        return "give this one another --socket"
    return (
        f"give this one another --socket and no [paths] runtime, or another one, in {config_file}"
    )


def _remove_unused(runtime: Path) -> None:
    """A daemon that came to nothing leaves no directory. One with more than the lock in it is
    the next daemon's, and the service's is systemd's."""
    with contextlib.suppress(OSError):
        if os.listdir(runtime) == ["lock"] and runtime != Paths().runtime:
            (runtime / "lock").unlink()
            runtime.rmdir()


@contextlib.contextmanager
def _own_socket(config: Config) -> Iterator[socket.socket]:
    """A listening socket of our own, for the group."""
    path = str(config.socket.path)
    with listener.own(path) as own:
        if os.geteuid() == 0 and (problem := give_to_group(path, config.socket.group)):
            log.info("%s", problem)
        yield own


def _raise_open_files() -> None:
    """Allow for what the connections of several users may bring; steps inherit it, as they may
    have more under other engines."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


async def _serve(core: Core, bound: socket.socket) -> int:
    loop = asyncio.get_running_loop()
    ending = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ending.set)
    # The configuration has only just been read: a request to read it again must not end us.
    loop.add_signal_handler(signal.SIGHUP, lambda: None)
    notify = _Notifier()
    notify("STATUS=Registering and probing platforms")
    starting = asyncio.ensure_future(core.start())
    stopping = asyncio.ensure_future(ending.wait())
    await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        starting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await starting
        # What has begun to watch must not start anything while the loop ends.
        await core.stop()
        await asyncio.sleep(0.01)
        return 0
    try:
        starting.result()
    except (OSError, RuntimeError) as error:
        raise refused(error, "the daemon cannot start") from error

    def registry(peer: Peer) -> VarlinkInterfaceRegistry:
        made = VarlinkInterfaceRegistry()
        made.register_interface(VarlinkServiceInterface("maid", "maid", __version__, URL, made))
        for interface in INTERFACES:
            made.register_interface(interface(core, peer))
        return made

    server = Server(bound, core.config.socket, registry)
    core.count_connections = server.connections.total

    def configured(config: Config) -> None:
        server.limits = config.socket
        logging.getLogger().setLevel(config.log.level.value.upper())

    core.on_reload = configured
    reloads: set[asyncio.Task[None]] = set()

    def reload() -> None:
        task = loop.create_task(_reload(core))
        reloads.add(task)
        task.add_done_callback(reloads.discard)

    loop.add_signal_handler(signal.SIGHUP, reload)
    beats = [loop.create_task(_watchdog(notify)), loop.create_task(_tell(core, notify))]
    core.events.emit(
        "started", "", f"maid {__version__}, {core.scope.value} scope, {_summary(core)}"
    )
    # What lives now lives as long as the daemon: the collector need not look at it again.
    gc.collect()
    gc.freeze()
    notify(f"READY=1\nSTATUS={_summary(core)}")
    await stopping
    notify("STOPPING=1\nSTATUS=Stopping; entries and running steps stay")
    server.stop_accepting()
    for task in (*beats, *reloads):
        task.cancel()
    await core.stop()
    server.close()
    # Let the connections' last callbacks run before the loop ends.
    await asyncio.sleep(0.01)
    return 0


async def _reload(core: Core) -> None:
    try:
        await core.reload()
    except (MaidError, OSError) as error:
        core.events.emit("refused", "", f"the configuration stays as it was: {error}")


class _Notifier:
    """sd_notify(3), and nothing where nobody listens."""

    def __init__(self) -> None:
        self._active = "NOTIFY_SOCKET" in os.environ

    def __call__(self, text: str) -> None:
        if self._active:
            from systemd import daemon

            # systemd may be re-executing itself; the next message reaches it.
            with contextlib.suppress(OSError):
                daemon.notify(text)


async def _watchdog(notify: _Notifier) -> None:
    """Tell systemd that the loop still turns, twice in each period (sd_watchdog_enabled(3))."""
    period = int(os.environ.get("WATCHDOG_USEC", "0"))
    if not period or os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return
    while True:
        notify("WATCHDOG=1")
        await asyncio.sleep(period / 2e6)


async def _tell(core: Core, notify: _Notifier) -> None:
    """Keep systemd's status text up to date."""
    told = ""
    while True:
        changed = asyncio.ensure_future(core.machine.served.keeper.changed())
        try:
            if (summary := _summary(core)) != told:
                notify(f"STATUS={summary}")
                told = summary
            await changed
        finally:
            changed.cancel()


def _summary(core: Core) -> str:
    statuses = [status for status in core.machine.statuses() if status.platform]
    executing = sum(1 for status in statuses if status.state.executes)
    broken = [str(s.platform) for s in statuses if s.required and not s.state.executes]
    text = f"{executing} of {len(statuses)} platforms execute"
    return f"{text}; not working: {', '.join(broken)}" if broken else text
