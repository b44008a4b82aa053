"""Checks of the binfmt_misc table: where it is mounted, and each entry that catches programs.

Entries are grouped: one finding for all that have the same trouble. Entries that catch no foreign
machine programs (Java archives, Windows programs) are left out, but for WSL's, which
maid.doctor.surroundings looks at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from maid import elf
from maid.binfmt.entry import Entry, EntryError, parse
from maid.config import Config, Prefer, Scope
from maid.doctor.findings import Finding, listed, note, ok, problem, warning
from maid.doctor.owners import IMAGE, LASTING, MAID, Owners
from maid.doctor.place import BINFMT, CannotLook, Mount, Place
from maid.emulation.targets import TARGETS, Target, family_of_host
from maid.errors import MaidError

_MOUNT = f"mount -t binfmt_misc binfmt_misc {BINFMT}"


def served_path(config: Config, scope: Scope) -> str:
    """Where the table is that a daemon of this scope serves."""
    return BINFMT if scope is Scope.HOST else f"{config.paths.runtime}/instances/root/binfmt"


def mounted(place: Place, path: str = "") -> list[Mount]:
    """The mounts of binfmt_misc, all of them or those at `path`; the last hides the others.

    Only where there is one may the directory be listed: looking into an automount mounts it.
    """
    return [
        mount
        for mount in place.mounts()
        if mount.kind == "binfmt_misc" and mount.point == (path or mount.point)
    ]


def mounts(config: Config, scope: Scope, place: Place) -> Iterator[Finding]:
    """Where binfmt_misc is mounted, how often, and what may become of it."""
    here = mounted(place, served_path(config, scope))
    if scope is Scope.PRIVATE:
        if here:
            yield ok("table", f"the private table is at {here[-1].point}")
        else:
            yield note(
                "table",
                "there is no private table yet",
                "it is made by: maid daemon --scope private",
            )
        return
    automount = next((m for m in place.mounts() if m.kind == "autofs" and m.point == BINFMT), None)
    if not here:
        if automount is not None:
            yield note(
                "table",
                f"{BINFMT} is an automount that nothing has used yet",
                "maid's service mounts it; by hand: ls " + BINFMT,
            )
        else:
            yield problem(
                "table",
                f"binfmt_misc is not mounted at {BINFMT}: nothing foreign can run",
                f"systemctl enable --now maid mounts it and keeps it; by hand: {_MOUNT}",
            )
        return
    yield from _how_mounted(place, here, automount)


def _how_mounted(place: Place, here: list[Mount], automount: Mount | None) -> Iterator[Finding]:
    table, fine = here[-1], True
    if table.read_only:
        fine = False
        yield problem(
            "table",
            f"{BINFMT} is mounted read-only: nothing can be registered",
            f"mount -o remount,rw {BINFMT}; in a container: --privileged",
        )
    if any(mount.device != table.device for mount in here):
        fine = False
        yield problem(
            "table",
            f"another namespace's table is mounted over the machine's at {BINFMT}: what is"
            " registered there serves nobody else",
            f"umount {BINFMT}, once for each mount that is too many (see /proc/self/mountinfo)",
        )
    elif len(here) > 1:
        yield note(
            "table",
            f"binfmt_misc is mounted {len(here)} times at {BINFMT}",
            f"one is enough: umount {BINFMT}",
        )
    expires = automount is not None and any(
        option.startswith("timeout=") and option != "timeout=0" for option in automount.options
    )
    same = [m for m in mounted(place) if m.device == table.device and m.point != BINFMT]
    if expires and not same:
        fine = False
        yield warning(
            "table",
            f"the automount of {BINFMT} expires when nobody uses it, and every entry goes with the"
            " last mount",
            "maid's service keeps it in use; for good: systemctl mask --now"
            " proc-sys-fs-binfmt_misc.automount && systemctl start proc-sys-fs-binfmt_misc.mount",
        )
    if same:
        yield note("table", f"the same table is mounted at {listed([m.point for m in same])} too")
    if fine:
        yield ok("table", f"binfmt_misc is mounted at {BINFMT}")


def sysctl_directory(config: Config, scope: Scope, place: Place) -> Iterator[Finding]:
    """A read-only /proc/sys, as in containers: neither systemd nor binfmt-support mounts then."""
    if scope is Scope.PRIVATE or mounted(place, BINFMT):
        return
    mount = place.mount_of("/proc/sys/fs")
    if mount is not None and mount.read_only:
        yield warning(
            "table",
            f"{mount.point} is read-only, as in a container: the distribution's units do not mount"
            " binfmt_misc there",
            f"by hand: {_MOUNT}; or a unit's drop-in with an empty ConditionPathIsReadWrite=",
        )


def switched_on(config: Config, scope: Scope, place: Place) -> Iterator[Finding]:
    """Whether the table as a whole is enabled."""
    path = served_path(config, scope)
    if not mounted(place, path):
        return
    if (place.read(f"{path}/status") or "").strip() == "disabled":
        yield problem(
            "table",
            "it is switched off: no entry catches anything",
            f"echo 1 >{path}/status",
        )


@dataclass(frozen=True)
class Row:
    """An entry of the table for machine programs.

    `targets` are those whose programs it catches while enabled, `registered` the time of its
    registration in seconds (the kernel sets the file's), `owner` one of maid.doctor.owners'.
    """

    entry: Entry
    targets: tuple[str, ...]
    registered: float
    owner: str

    @property
    def shown(self) -> str:
        """The entry as a finding names it."""
        return f"{self.entry.name} ({self.owner})"


def sample(target: Target) -> bytes:
    """The beginning of a program of `target`."""
    return target.probe or target.magic.ljust(128, b"\0")


def rows(config: Config, scope: Scope, place: Place) -> tuple[list[Row], list[str]]:
    """The entries of the served table that are about machine programs, and what cannot be read."""
    path = served_path(config, scope)
    if not mounted(place, path):
        return [], []
    owners, found, unreadable = Owners(config, scope, place), [], []
    for name in place.names(path):
        if name in ("register", "status"):
            continue
        try:
            entry = parse(name, place.read(f"{path}/{name}") or "")
        except (CannotLook, EntryError):
            unreadable.append(name)
            continue
        caught = tuple(t.name for t in TARGETS.values() if entry.catches(sample(t)))
        if caught or entry.magic.startswith(b"\x7fELF"):
            status = place.status(f"{path}/{name}")
            when = status.st_mtime if status else 0.0
            found.append(Row(entry, caught, when, owners.of(entry)))
    return found, unreadable


def entries(config: Config, scope: Scope, place: Place) -> Iterator[Finding]:
    """Each entry: is it safe, does it work, does it work in containers, will it stay."""
    found, unreadable = rows(config, scope, place)
    if unreadable:
        yield note("entries", f"{listed(unreadable)} cannot be read; maid leaves them alone")
    if not found:
        if mounted(place, served_path(config, scope)):
            yield note("entries", "there are none for foreign programs", "systemctl start maid")
        return
    troubles = [
        *_dangerous(found, place),
        *_broken(found, place),
        *_stale(found, place),
        *_rivals(found),
        *_passing(found, scope),
        *_flags(found, config),
    ]
    yield from troubles
    if not any(each.level in ("warning", "problem") for each in troubles):
        yield ok("entries", f"{len(found)} for foreign programs, none with trouble")


def _shown(found: list[Row]) -> str:
    return listed([row.shown for row in found])


def _dangerous(found: list[Row], place: Place) -> Iterator[Finding]:
    """Entries that stand before the machine's own programs."""
    try:
        mine, *relatives = family_of_host(place.machine)
    except MaidError:
        return
    own_rows = [row for row in found if mine in row.targets]
    if own_rows:
        yield problem(
            "entries",
            f"{_shown(own_rows)} catches this machine's own programs ({mine}): each one is"
            " emulated, or none starts any more",
            f"now: echo -1 >{BINFMT}/{own_rows[0].entry.name}; then find who registers it",
        )
    near = [row for row in found if row not in own_rows and set(relatives) & set(row.targets)]
    if near:
        yield note(
            "entries",
            f"{_shown(near)} catches programs that this CPU may run by itself: emulated they are"
            " many times slower",
            "if they run natively (maid status), disable it: echo 0 >"
            f"{BINFMT}/{near[0].entry.name}",
        )


def _broken(found: list[Row], place: Place) -> Iterator[Finding]:
    """Entries that cannot do their work, all or for containers."""
    shadow = "maid's service registers a working one before it (maid-…) and leaves this one alone"
    kinds: dict[str, list[Row]] = {}
    for row in found:
        if not row.entry.enabled:
            kinds.setdefault("disabled", []).append(row)
        elif trouble := _trouble(row.entry, place):
            kinds.setdefault(trouble, []).append(row)
    says: dict[str, tuple[Callable[[str, str, str], Finding], str, str]] = {
        "disabled": (warning, "is disabled", f"echo 1 >{BINFMT}/NAME, or: {shadow}"),
        "missing": (
            problem,
            "has no flag F and its interpreter is not there (no such file or directory)",
            f"install the interpreter (Debian: qemu-user-static); {shadow}",
        ),
        "dynamic": (
            warning,
            "has a dynamic interpreter: in containers its libraries are missing, which is reported"
            " as no such file or directory of the program",
            f"install static ones (Debian: qemu-user-static); {shadow}",
        ),
        "no F": (
            warning,
            "has no flag F: it works on the machine, and not in containers and chroots (no such"
            " file or directory)",
            f"have whoever registers it add F; {shadow}",
        ),
        "no program": (
            problem,
            "names an interpreter that is no program of this machine",
            f"reinstall the package it belongs to; {shadow}",
        ),
    }
    for kind, those in kinds.items():
        make, says_what, hint = says[kind]
        yield make("entries", f"{_shown(those)} {says_what}", hint)


def _trouble(entry: Entry, place: Place) -> str:
    """One word for what is wrong with an entry's interpreter, "" for nothing."""
    holds_open = "F" in entry.flags
    status = place.status(entry.interpreter)
    if status is None:
        return "" if holds_open else "missing"
    try:
        headers = elf.read(place.at(entry.interpreter))
    except (MaidError, OSError):
        # With F the file on disk may be another than the one that is open: nothing is known.
        return "" if holds_open else "no program"
    if not headers.static:
        return "dynamic"
    return "" if holds_open else "no F"


def _stale(found: list[Row], place: Place) -> Iterator[Finding]:
    """Entries that hold an older file open than the one on disk: F pins it until renewed."""
    stale = []
    for row in found:
        status = place.status(row.entry.interpreter)
        if (
            "F" in row.entry.flags
            and status
            and row.registered < max(status.st_mtime, status.st_ctime)
        ):
            stale.append(row)
    if stale:
        yield note(
            "entries",
            f"{_shown(stale)} was registered before its interpreter was last changed: an upgrade"
            " takes effect only when the entry is registered again",
            "maid renews its own by itself (after a time without the daemon: systemctl restart"
            " maid); others': restart whoever registered them",
        )


def _rivals(found: list[Row]) -> Iterator[Finding]:
    """Several entries for the same programs: the one that was registered last is asked."""
    seen = set()
    for target in TARGETS:
        those = [row for row in found if target in row.targets]
        key = frozenset(row.entry.name for row in those)
        if len(those) < 2 or key in seen:
            continue
        seen.add(key)
        latest = max(row.registered for row in those)
        # The kernel's clock for files ticks every few milliseconds: several may be the last.
        last = [row for row in those if row.registered == latest]
        message = (
            f"{_shown(those)} catch the same programs ({target}); the kernel asks the one that was"
            f" registered last{', ' + last[0].entry.name if len(last) == 1 else ''}"
        )
        if {row.owner for row in last} == {MAID}:
            yield note("entries", message)
        else:
            yield warning(
                "entries",
                message,
                "let one of them go: maid status shows which one serves; with [emulation] prefer ="
                ' "own" maid\'s goes first',
            )


def _passing(found: list[Row], scope: Scope) -> Iterator[Finding]:
    """Entries that nobody will register again after a reboot."""
    if scope is Scope.PRIVATE:
        return
    images = [row for row in found if row.owner == IMAGE]
    if images:
        yield note(
            "entries",
            f"{_shown(images)} came with a container's image, which flag F keeps open: nothing"
            " tells its version, and it is gone after a reboot, unless that container runs again",
            "systemctl enable maid: it serves these platforms from boot on",
        )
    others = [row for row in found if row.owner not in LASTING and row not in images]
    if others:
        yield note(
            "entries",
            f"{_shown(others)} came by hand or by a script: gone after a reboot, unless somebody"
            " registers it again",
            "systemctl enable maid: it serves these platforms from boot on",
        )


def _flags(found: list[Row], config: Config) -> Iterator[Finding]:
    """Flags that some programs need, of entries with a platform that people build for."""
    served = [
        row
        for row in found
        if row.owner != MAID and any(TARGETS[name].platforms for name in row.targets)
    ]
    without_c = [row for row in served if "C" not in row.entry.flags]
    own_ones = 'with [emulation] prefer = "own" maid registers one with it'
    if config.emulation.prefer is Prefer.OWN:
        own_ones = "maid registers one with it"
    if without_c:
        yield note(
            "entries",
            f"{_shown(without_c)} has no flag C: set-user-id programs (sudo, su, ping) run without"
            " their rights",
            own_ones,
        )
    without_p = [row for row in served if "P" not in row.entry.flags]
    if without_p:
        yield note(
            "entries",
            f"{_shown(without_p)} has no flag P: a program sees its path in argv[0], not the name"
            " it was called by (busybox, login shells)",
            own_ones,
        )
