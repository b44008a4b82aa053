"""Checks of the kernel and of what it grants: version, options, namespaces, security modules."""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterator

from maid.config import Config, Scope
from maid.doctor.findings import Finding, note, ok, problem, warning
from maid.doctor.place import Place
from maid.emulation.targets import own
from maid.errors import MaidError

# The first Linux with what maid uses (its documentation and man pages say so).
FLAG_F = (4, 8)
STEPS = (5, 6)
FLAG_P = (5, 12)
INSTANCES = (6, 7)

_CAP_SYS_ADMIN = 21  # linux/capability.h


def kernel_version(config: Config, scope: Scope, place: Place) -> Iterator[Finding]:
    """What this kernel is too old for."""
    version, upgrade = place.version(), "boot a newer kernel; Linux 6.7 has everything maid uses"
    if not version:
        yield note("kernel", f"the version {place.release} says nothing; nothing is concluded")
        return
    said = f"Linux {place.release}"
    if version < FLAG_F:
        yield problem(
            "kernel",
            f"{said} has no flag F (4.8): entries cannot serve containers and chroots",
            upgrade,
        )
    if version < STEPS:
        yield problem(
            "kernel",
            f"{said} lacks what steps are made with: openat2 (5.6), pidfd_open (5.3) and the new"
            " mount interface (5.2)",
            f"entries work, maid run does not: {upgrade}",
        )
    if version < FLAG_P:
        yield note(
            "kernel",
            f"{said} does not tell an emulator of flag P (5.12): programs that look at their own"
            " name (argv[0]) may see another",
            upgrade,
        )
    if version < INSTANCES:
        lack = f"{said} has no binfmt_misc instance for each user namespace (6.7)"
        if scope is Scope.PRIVATE:
            yield problem("kernel", f"{lack}: there can be no private scope", upgrade)
        else:
            yield warning(
                "kernel",
                f"{lack}: steps share the machine's table, and a step cannot have a CPU model of"
                " its own",
                upgrade,
            )
        return
    yield ok("kernel", f"{said} has everything that maid uses")


def binfmt_option(config: Config, scope: Scope, place: Place) -> Iterator[Finding]:
    """Whether the kernel has binfmt_misc, or can load it."""
    if re.search(r"\bbinfmt_misc$", place.read("/proc/filesystems") or "", re.M):
        yield ok("binfmt_misc", "the kernel has it (CONFIG_BINFMT_MISC)")
        return
    option = _option(place, "CONFIG_BINFMT_MISC")
    directory = f"/lib/modules/{place.release}"
    loadable = "binfmt_misc.ko" in (place.read(f"{directory}/modules.dep") or "")
    if option == "n":
        yield problem(
            "binfmt_misc",
            "this kernel was built without CONFIG_BINFMT_MISC: it can run no foreign programs",
            "boot a distribution's kernel, or build this one with CONFIG_BINFMT_MISC=y",
        )
    elif place.number("/proc/sys/kernel/modules_disabled") == 1:
        yield problem(
            "binfmt_misc",
            "the module binfmt_misc is not loaded and kernel.modules_disabled forbids loading it",
            "have it loaded at boot, before the switch: echo binfmt_misc >/etc/modules-load.d/"
            "maid.conf, then reboot",
        )
    elif loadable:
        yield note(
            "binfmt_misc",
            "the module is not loaded; mounting binfmt_misc loads it",
            "to have it from the start: echo binfmt_misc >/etc/modules-load.d/maid.conf",
        )
    elif option == "m" and not place.exists(directory):
        yield problem(
            "binfmt_misc",
            f"it is a module, and the modules of the running kernel ({directory}) are gone",
            "reboot into the kernel that is installed, or install this one's modules; in a"
            " container, load it on the machine itself: modprobe binfmt_misc",
        )
    else:
        yield problem(
            "binfmt_misc",
            "the kernel does not offer it, and there is no module to load",
            "install the kernel's extra modules (Ubuntu: linux-modules-extra, Fedora:"
            " kernel-modules), then: modprobe binfmt_misc",
        )


def _option(place: Place, name: str) -> str:
    """y, m, n, or "" where the kernel's configuration is not to be had."""
    text = ""
    packed = place.read_bytes("/proc/config.gz")
    if packed is not None:
        text = gzip.decompress(packed).decode(errors="replace")
    else:
        text = place.read(f"/boot/config-{place.release}") or ""
    found = re.search(rf"^{name}=([ym])$", text, re.M)
    return found[1] if found else "n" if text else ""


def user_namespaces(config: Config, scope: Scope, place: Place) -> Iterator[Finding]:
    """Whether user namespaces may be made: every step has one."""
    subject = "user namespaces"
    if not place.exists("/proc/self/ns/user"):
        yield problem(
            subject,
            "this kernel was built without them (CONFIG_USER_NS): steps have no instance of their"
            " own",
            "boot a distribution's kernel",
        )
        return
    if place.number("/proc/sys/user/max_user_namespaces") == 0:
        yield problem(
            subject,
            "user.max_user_namespaces is 0: none can be made",
            "sysctl user.max_user_namespaces=16384, and the same in /etc/sysctl.d/",
        )
        return
    barred = list(_barred(place))
    for message, hint in barred:
        if place.uid != 0 and scope is Scope.PRIVATE:
            yield problem(subject, f"{message}: you cannot have a private scope", hint)
        else:
            yield note(
                subject,
                f"{message}: rootless podman and buildah cannot work; maid's service can",
                hint,
            )
    if not barred:
        yield ok(subject, "they can be made")


def _barred(place: Place) -> Iterator[tuple[str, str]]:
    """What keeps ordinary users from making user namespaces, and the way out."""
    if place.number("/proc/sys/kernel/unprivileged_userns_clone") == 0:
        yield (
            "only root may make them (kernel.unprivileged_userns_clone is 0)",
            "sysctl kernel.unprivileged_userns_clone=1",
        )
    if place.number("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == 1:
        yield (
            "AppArmor takes the capabilities out of those of ordinary users"
            " (kernel.apparmor_restrict_unprivileged_userns is 1)",
            "run maid as a service, or give the program a profile that says userns, or: sysctl"
            " kernel.apparmor_restrict_unprivileged_userns=0",
        )


def subordinate_ids(config: Config, scope: Scope, place: Place) -> Iterator[Finding]:
    """Whether an ordinary user has more than one id to give to a step."""
    if place.uid == 0:
        return
    name = place.user() or str(place.uid)
    lacking = [
        file
        for file in ("/etc/subuid", "/etc/subgid")
        if not re.search(rf"^({re.escape(name)}|{place.uid}):\d+:\d+", place.read(file) or "", re.M)
    ]
    subject = "subordinate ids"
    limited = "your steps have one user, root: apt-get and whatever changes owners fails in them"
    if lacking:
        yield warning(
            subject,
            f"{' and '.join(lacking)} give you no range: {limited}",
            f"as root: usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {name}",
        )
        return
    for program in ("newuidmap", "newgidmap"):
        path = place.program(program)
        if not path or not place.setuid(path):
            state = "is not set-user-id" if path else "is missing"
            yield warning(
                subject,
                f"{program} {state}: {limited}",
                "install it (Debian: apt-get install uidmap)",
            )
            return
    yield ok(subject, "there is a range for your steps")


def own_namespace(config: Config, scope: Scope, place: Place) -> Iterator[Finding]:
    """Whether this process can register in the machine's table at all."""
    if scope is Scope.PRIVATE:
        return
    # The initial namespace maps everything to itself; so may another, which cannot be told apart.
    if (place.read("/proc/self/uid_map") or "0 0 4294967295").split() != ["0", "0", "4294967295"]:
        yield warning(
            "namespace",
            "this is a user namespace below the machine's (a rootless container?): what is"
            " registered here is not seen by the machine, nor by its docker",
            "run maid on the machine itself, or: maid daemon --scope private",
        )
    elif place.uid == 0 and not place.capable(_CAP_SYS_ADMIN):
        yield warning(
            "namespace",
            "root here has no CAP_SYS_ADMIN: nothing can be mounted",
            "run maid on the machine itself, or give the container --privileged",
        )


def process_state(config: Config, scope: Scope, place: Place) -> Iterator[Finding]:
    """What this process was forbidden for good."""
    if place.process_status("NoNewPrivs") == "1":
        yield note(
            "security",
            "this process has no_new_privs: set-user-id programs (sudo, newuidmap) get no rights"
            " below it, in steps neither",
            "start it outside of the sandbox; a unit: NoNewPrivileges=no",
        )
    if place.process_status("Seccomp") == "2":
        yield note(
            "security",
            "a seccomp filter lies over this process: mount, unshare and setns may be refused",
            "a container: --security-opt seccomp=unconfined; a unit: SystemCallFilter=",
        )


def security_modules(config: Config, scope: Scope, place: Place) -> Iterator[Finding]:
    """SELinux and AppArmor, where they come between a container and an emulator."""
    modules = False
    if place.read("/sys/fs/selinux/enforce") == "1":
        modules = True
        copies = f"{config.paths.state}/baked"
        yield note(
            "SELinux",
            "it is enforcing: a container may run an emulator only when that has a label like"
            " /usr/bin's; one that was copied or comes from another container's image has not"
            " (a denial for qemu-…, Permission denied)",
            f"semanage fcontext -a -t bin_t '{copies}(/.*)?' && restorecon -R {copies}; what is"
            " denied: ausearch -m avc -ts recent",
        )
    if (place.read("/sys/module/apparmor/parameters/enabled") or "").strip() == "Y":
        modules = True
        profile = (place.read("/proc/self/attr/current") or "").strip("\0\n ")
        if profile and profile != "unconfined" and "(unconfined)" not in profile:
            yield note(
                "AppArmor",
                f"this process is confined by {profile}: mounting may be refused",
                "a container: --security-opt apparmor=unconfined",
            )
        else:
            yield ok("AppArmor", "it is on, and this process is not confined")
    if not modules:
        yield ok("security", "neither SELinux nor AppArmor comes between")


def basics(config: Config, scope: Scope, place: Place) -> Iterator[Finding]:
    """That /proc is there, and that maid can tell this machine's own programs from foreign ones."""
    if not place.exists("/proc/self/status"):
        yield problem(
            "proc", "/proc is not mounted: hardly anything can be seen", "mount -t proc proc /proc"
        )
    try:
        own(place.machine)
    except MaidError as error:
        yield problem("machine", error.message, error.hint)
