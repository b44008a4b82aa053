"""Checks of services: systemd, maid's units and socket, and others that register entries."""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator

from maid.config import Config, Prefer, Scope, Socket
from maid.doctor.findings import Finding, listed, note, ok, problem, warning
from maid.doctor.owners import configured, supported
from maid.doctor.place import CannotLook, Place

_UNITS = ("/etc/systemd/system", "/run/systemd/system", "/usr/lib/systemd/system")

ENABLE = "systemctl enable --now maid"


def systemd_runs(place: Place) -> bool:
    """Whether systemd is this system's init (sd_booted(3))."""
    return place.exists("/run/systemd/system")


def unit(place: Place, name: str) -> str:
    """Where a unit's file is, "" for nowhere."""
    return next((f"{each}/{name}" for each in _UNITS if place.exists(f"{each}/{name}")), "")


def enabled(place: Place, name: str) -> bool:
    """Whether some target wants or requires the unit: the links of `systemctl enable`."""
    for directory in _UNITS:
        for group in place.names(directory):
            if group.endswith((".wants", ".requires")) and place.exists(
                f"{directory}/{group}/{name}"
            ):
                return True
    return False


def masked(place: Place, name: str) -> bool:
    """Whether the unit is masked: a link to /dev/null."""
    return any(place.link(f"{directory}/{name}") == "/dev/null" for directory in _UNITS[:2])


def active(place: Place, name: str) -> bool:
    """Whether the unit is active: systemd keeps a link with its invocation's id while it is."""
    return place.exists(f"/run/systemd/units/invocation:{name}")


def maid_units(config: Config, scope: Scope, place: Place) -> Iterator[Finding]:
    """maid's own service: installed, enabled, running."""
    if scope is Scope.PRIVATE:
        return
    if not systemd_runs(place):
        yield note(
            "service",
            "systemd is not this system's init: nothing starts maid at boot",
            "have your init start: maid daemon --scope host",
        )
        return
    if not unit(place, "maid.service"):
        yield problem("service", "maid.service is not installed", "scripts/install")
        return
    on = enabled(place, "maid.service")
    runs = active(place, "maid.service")
    if masked(place, "maid.service"):
        yield problem("service", "maid.service is masked", f"systemctl unmask maid; {ENABLE}")
    elif not on:
        yield warning(
            "service",
            "maid.service is not enabled: after a reboot foreign programs do not run",
            ENABLE,
        )
    elif not runs:
        yield problem(
            "service",
            "maid.service is enabled and does not run",
            "journalctl -u maid -b; systemctl restart maid",
        )
    else:
        yield ok("service", "maid.service is enabled and runs")


def systemd_binfmt(config: Config, scope: Scope, place: Place) -> Iterator[Finding]:
    """systemd-binfmt: registers at boot, and wipes the whole table when it restarts."""
    name = "systemd-binfmt.service"
    if scope is Scope.PRIVATE or not systemd_runs(place) or not unit(place, name):
        return
    if masked(place, name):
        yield ok("systemd-binfmt", "it is masked")
        return
    lines = [line for line in configured(place).values() if "qemu" in line.interpreter]
    if not lines:
        yield ok("systemd-binfmt", "it registers no emulator")
        return
    files = listed([line.file.rpartition("/")[0] for line in lines])
    order = "maid's go before them"
    if config.emulation.prefer is Prefer.ADOPT:
        order = "maid adopts those that work, and its CPU models do not apply to them"
    yield note(
        "systemd-binfmt",
        f"it registers {len(lines)} emulators from {files} at boot, and its restart (each upgrade"
        f" of such a package) wipes the whole table, which maid then fills again; {order}",
        'to have maid\'s own: [emulation] prefer = "own", or: systemctl mask --now systemd-binfmt'
        " (WSLInterop and Java's entries come from it too)",
    )
    bare = [line.name for line in lines if "F" not in line.flags]
    if bare:
        yield warning(
            "systemd-binfmt",
            f"{listed(bare)} is registered without flag F: it does not work in containers",
            "install the static package of the emulator, whose lines have F",
        )


def binfmt_support(config: Config, scope: Scope, place: Place) -> Iterator[Finding]:
    """Debian's binfmt-support: a second one that registers at boot."""
    if scope is Scope.PRIVATE:
        return
    name = "binfmt-support.service"
    runs = enabled(place, name) or active(place, name)
    runs = runs or any(
        each.startswith("S") and each.endswith("binfmt-support")
        for each in place.names("/etc/rc2.d") + place.names("/etc/rcS.d")
    )
    if not runs or masked(place, name):
        return
    names = [each for each in supported(place) if each.startswith("qemu")]
    both = (
        systemd_runs(place)
        and bool(unit(place, "systemd-binfmt.service"))
        and not masked(place, "systemd-binfmt.service")
        and any("qemu" in line.interpreter for line in configured(place).values())
    )
    if both:
        yield warning(
            "binfmt-support",
            "it and systemd-binfmt both register emulators: whichever starts last decides, and each"
            " restart of systemd-binfmt removes binfmt-support's entries",
            "keep one: systemctl disable --now binfmt-support; maid serves the platforms anyway",
        )
    elif names:
        yield note(
            "binfmt-support",
            f"it registers {len(names)} emulators at boot; maid adopts those that work",
            'to have maid\'s own: [emulation] prefer = "own", or: update-binfmts --disable NAME',
        )
    else:
        yield ok("binfmt-support", "it registers no emulator")


_INSTALLER = re.compile(r"qemu-user-static\b.*--reset|tonistiigi/binfmt|dbhi/qus|binfmt --install")


def installers(config: Config, scope: Scope, place: Place) -> Iterator[Finding]:
    """Units and jobs that run a container to register emulators, or to reset the table."""
    if scope is Scope.PRIVATE:
        return
    found, resets = [], False
    for directory in ("/etc/systemd/system", "/etc/cron.d", "/etc/rc.local", "/etc/crontab"):
        is_directory = (status := place.status(directory)) and stat.S_ISDIR(status.st_mode)
        names = place.names(directory) if is_directory else [""]
        for name in names:
            path = f"{directory}/{name}".rstrip("/")
            about = place.status(path)
            if about is None or not stat.S_ISREG(about.st_mode):
                continue
            try:
                text = place.read(path) or ""
            except CannotLook:
                continue
            match = _INSTALLER.search(text)
            if match:
                found.append(path)
                resets = resets or "--reset" in match[0]
    if found:
        what = "removes entries of others (--reset)" if resets else "registers emulators"
        yield note(
            "installers",
            f"{listed(found)} runs a container that {what}; maid repairs what is its own",
            "remove it: with maid it is not needed",
        )


_USUAL = (str(Socket().path), "/run/maid/private/io.maid")
"""Where a daemon has its socket when nobody says otherwise (maid.config)."""


def socket(config: Config, scope: Scope, place: Place) -> Iterator[Finding]:
    """The socket: there, listened at, and open to this user."""
    path = str(config.socket.path)
    start = ENABLE if systemd_runs(place) else "maid daemon --scope host"
    if scope is Scope.PRIVATE:
        start = "maid daemon --scope private"
    if path not in _USUAL:
        start = f"maid daemon --scope {scope.value} --socket {path}"
    found = place.status(path)
    if found is None:
        if place.status(config.socket.path.parent) is None and place.exists(
            config.socket.path.parent
        ):
            yield note("socket", f"{path} is out of reach for you", "ask as root")
            return
        make = warning if scope is Scope.HOST else note
        yield make("socket", f"{path} is not there: no daemon can be asked", start)
    elif not stat.S_ISSOCK(found.st_mode):
        yield problem("socket", f"{path} is no socket", f"remove it; then: {start}")
    elif not _listens(place, path):
        yield warning(
            "socket", f"nobody listens at {path}", f"{start}; journalctl -u maid says why it ended"
        )
    else:
        yield ok("socket", f"a daemon listens at {path}")
        yield from _allowed(config, scope, place)


def _listens(place: Place, path: str) -> bool:
    """Whether a listening socket (flag __SO_ACCEPTCON, 0x10000) has this path (/proc/net/unix)."""
    for line in (place.read("/proc/self/net/unix") or "").splitlines()[1:]:
        fields = line.split(maxsplit=7)
        if len(fields) == 8 and fields[7] == path and int(fields[3], 16) & 0x10000:
            return True
    return False


def _allowed(config: Config, scope: Scope, place: Place) -> Iterator[Finding]:
    """Whether this user may use the socket."""
    if place.uid == 0 or scope is Scope.PRIVATE or place.writable(config.socket.path):
        return
    yield warning(
        "socket",
        "you may not use it: it is for root and members of the group " + config.socket.group,
        f"usermod -aG {config.socket.group} USER, then log in again",
    )


def group(config: Config, scope: Scope, place: Place) -> Iterator[Finding]:
    """The group that may use the socket, and whether this user is in it."""
    if scope is Scope.PRIVATE:
        return
    name = config.socket.group
    users = _group(place, name)
    if users is None:
        yield warning(
            "group",
            f"there is no group {name} in /etc/group: only root can use maid",
            f"systemd-sysusers, or: groupadd --system {name}",
        )
        return
    number, members = users
    if place.uid == 0 or number in place.groups:
        yield ok("group", f"{name} is there" + (", and you are in it" if place.uid else ""))
    elif place.user() in members:
        yield warning(
            "group", f"you are a member of {name}, but this session is older", "log in again"
        )
    else:
        yield note(
            "group",
            f"you are not a member of {name}: status, ensure and run are refused",
            f"as root: usermod -aG {name} {place.user() or 'USER'}, then log in again (members may"
            " run steps with their own rights, no more)",
        )


def _group(place: Place, name: str) -> tuple[int, list[str]] | None:
    for line in (place.read("/etc/group") or "").splitlines():
        fields = line.split(":")
        if len(fields) == 4 and fields[0] == name and fields[2].isdigit():
            return int(fields[2]), [name for name in fields[3].split(",") if name]
    return None
