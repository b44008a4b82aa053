"""`maid doctor`: looks at the machine, and says for each trouble what to do.

`examine` needs no daemon and no rights, and only looks: it writes, mounts and registers nothing.
`from_status` adds what only the daemon knows. Every check is a function of the configuration, the
scope and the machine; a check that fails is itself a finding.
"""

from collections.abc import Callable, Iterator

from maid.config import Config, Scope
from maid.doctor import engines, machine, programs, resources, services, surroundings, table
from maid.doctor.findings import Finding, Level, note, warning
from maid.doctor.place import CannotLook, Place
from maid.doctor.reported import from_status
from maid.errors import MaidError

__all__ = ["Finding", "Level", "Place", "examine", "from_status"]

Check = Callable[[Config, Scope, Place], Iterator[Finding]]

CHECKS: tuple[Check, ...] = (
    machine.basics,
    machine.kernel_version,
    machine.binfmt_option,
    machine.own_namespace,
    machine.user_namespaces,
    machine.subordinate_ids,
    surroundings.container,
    surroundings.wsl,
    table.mounts,
    table.sysctl_directory,
    table.switched_on,
    table.entries,
    surroundings.rosetta,
    programs.interpreters,
    programs.runtimes,
    programs.helpers,
    resources.cgroups,
    resources.limits,
    resources.memory,
    resources.space,
    resources.large_inodes,
    resources.randomisation,
    resources.processor,
    machine.security_modules,
    machine.process_state,
    services.maid_units,
    services.systemd_binfmt,
    services.binfmt_support,
    services.installers,
    services.socket,
    services.group,
    engines.engines,
    surroundings.environment,
)
"""In the order in which they are shown: from the kernel up."""


def examine(config: Config, scope: Scope, place: Place | None = None) -> list[Finding]:
    """Make every check for a daemon of `scope`; `place` is this machine unless a test says else.

    Never raises: what may not be read and what fails becomes a finding. Takes some 100 ms, most of
    it for asking interpreters that the daemon's cache does not know for their versions.
    """
    return [
        finding
        for check in CHECKS
        for finding in _made(check, config, scope, Place() if place is None else place)
    ]


def _made(check: Check, config: Config, scope: Scope, place: Place) -> Iterator[Finding]:
    subject = check.__name__.replace("_", " ")
    try:
        yield from check(config, scope, place)
    except CannotLook as error:
        hint = "run it as root: sudo maid doctor" if place.uid else "is this a sandbox?"
        yield note(subject, f"this could not be looked at: {error}", hint)
    except MaidError as error:
        yield warning(subject, error.message, error.hint or "maid --help")
    except Exception as error:  # a doctor that dies of one odd file helps nobody
        yield warning(
            subject,
            f"this check failed: {type(error).__name__}: {error}",
            "everything else was looked at; please report this",
        )
