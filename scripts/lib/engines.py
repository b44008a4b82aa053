"""A place where other people's container engines find maid's entries, and nothing of the host's.

`engine_room()` serves targets in a private instance, as the service does in the host's, and lets
commands run as root of that namespace: with this machine's programs, or with those of a root file
system that has engines of another release (`scripts/rootfs debian-13-engines`), in which maid's
hook and shim stand where scripts/install puts them. Used by tests/engines and scripts/bench.
"""

import contextlib
import hashlib
import os
import shutil
import subprocess
import tarfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from maid import native
from maid.binfmt import namespace
from maid.config import Scope, load
from maid.emulation import emulators
from maid.emulation.interpreters import IdentityCache
from maid.emulation.targets import TARGETS

CHECKOUT = Path(__file__).resolve().parents[2]
STORE = Path("/var/lib/maid/store")
LIBEXEC, RUNTIME = Path("/usr/libexec/maid"), Path("/usr/bin/maid-runtime")
HOOKS = Path("/usr/share/containers/oci/hooks.d")
BIND_SYS = Path("/usr/local/libexec/runc-that-binds-sys")
GROUPS = Path("/sys/fs/cgroup")
CONF = Path("/etc/containers/containers.conf.d")


def rootfs(name: str) -> Path:
    """The cached root file system of that name; made if it is not there."""
    done = subprocess.run(
        [CHECKOUT / "scripts" / "rootfs", name], stdout=subprocess.PIPE, check=True, timeout=900
    )
    return Path(done.stdout.decode().strip())


Contents = dict[str, tuple[object, ...]]
"""What an image holds, by path: kind, mode, owner, group, link, digest of the content."""

DOCKERS_OWN = (".dockerenv", "dev/console", "dev/pts", "dev/shm", "etc/mtab")
"""What Docker adds to every container that it exports."""


class EngineError(AssertionError):
    """A command in the room failed."""


@dataclass
class Room:
    """Commands as root of the namespace; `directory` is a place for what they store.

    With a `root` it is their root directory (as seen from outside), and `directory` lies below it.
    """

    holder: int
    directory: Path
    root: Path | None = None
    variables: dict[str, str] = field(default_factory=dict)

    def run(
        self,
        *command: str | os.PathLike[str],
        check: bool = True,
        timeout: float = 300,
        env: Mapping[str, str] | None = None,
    ) -> str:
        """The standard output of a command. Raises EngineError when it fails and is not to."""
        done = subprocess.run(
            self.argv(*command),
            env=self.variables | dict(env or {}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout,
        )
        if check and done.returncode:
            output = (done.stdout + done.stderr).decode(errors="replace")
            raise EngineError(f"{command} exited with {done.returncode}: {output[-3000:]}")
        return done.stdout.decode().strip()

    def argv(self, *command: str | os.PathLike[str]) -> list[str | os.PathLike[str]]:
        """How to start a command in the room from outside."""
        return ["nsenter", "-t", str(self.holder), "-U", "-m", "-p", "--", *command]

    def outside(self, path: str | os.PathLike[str]) -> Path:
        """Where a path of the room is for this process."""
        return Path(f"/proc/{self.holder}/root/{os.fspath(path).lstrip('/')}")

    def build(
        self,
        engine: str,
        context: Path,
        tag: str,
        *,
        runtime: str = "",
        platform: str = "linux/arm64",
        network: str = "none",
        timeout: float = 1800,
        env: Mapping[str, str] | None = None,
        options: tuple[str, ...] = (),
    ) -> str:
        """Build `context` (a directory of the room with a Containerfile) for a platform, without
        any cache, with `engine`: buildah, podman or docker (which wants `docker()` around it).

        Returns what the build printed. `runtime` is for buildah and podman: runc or crun.
        """
        file = ("--file", str(context / "Containerfile"))
        common = ("--platform", platform, "--no-cache", f"--network={network}", "--tag", tag)
        if engine == "docker":
            command = ["docker", "buildx", "build", "--progress=plain", "--provenance=false"]
        elif engine in ("buildah", "podman"):
            chosen = [f"--runtime={runtime}"] if runtime else []
            command = [engine, *(chosen if engine == "podman" else ()), "build", "--layers=false"]
            command += ["--isolation=oci", *(chosen if engine == "buildah" else ())]
        else:
            raise ValueError(engine)
        script = 'exec "$@" 2>&1'
        return self.run(
            *("sh", "-c", script, "sh", *command, *common, *file, *options, context),
            timeout=timeout,
            env=env,
        )

    def export(self, engine: str, tag: str, tar: Path) -> None:
        """Write the image's whole file system, without a container ever started, to `tar`."""
        if engine == "docker":
            made = self.run("docker", "create", "--network=none", tag, "x")
            self.run("docker", "export", "--output", tar, made)
            self.run("docker", "rm", made)
        elif engine == "podman":
            made = self.run("podman", "create", "--network=none", tag, "x")
            self.run("podman", "export", "--output", tar, made)
            self.run("podman", "rm", made)
        else:
            made = self.run("buildah", "from", "--pull-never", tag)
            mounted = self.run("buildah", "mount", made)
            self.run("tar", "--numeric-owner", "-C", mounted, "-cf", tar, ".")
            self.run("buildah", "rm", made)

    def contents(self, engine: str, tag: str) -> Contents:
        """Everything in the image; times are each build's own."""
        tar = self.directory / "export.tar"
        self.export(engine, tag, tar)
        found: Contents = {}
        links: dict[str, str] = {}
        with tarfile.open(self.outside(tar)) as archive:
            for member in archive:
                name = member.name.removeprefix("./")
                if member.islnk():  # which of its names comes first is chance
                    links[name] = member.linkname.removeprefix("./")
                    continue
                file = archive.extractfile(member) if member.isreg() else None
                digest = hashlib.file_digest(file, "sha256").hexdigest() if file else ""
                about = (member.type, member.mode, member.uid, member.gid, member.linkname, digest)
                found[name] = about
        self.outside(tar).unlink()
        found |= {name: found[target] for name, target in links.items()}
        for name in (*DOCKERS_OWN, "", "."):
            found.pop(name, None)
        return found

    @contextlib.contextmanager
    def docker(self, *, shim: bool = True, host_network: bool = False) -> Iterator[None]:
        """dockerd runs in the room, with maid-runtime as the drop-in for docker.service sets it.

        `host_network`: builds may have the network "host", which in a user namespace takes another
        way to mount /sys (BIND_SYS), with the shim and without.
        """
        env = {"DOCKER_BUILDKIT_RUNC_COMMAND": str(RUNTIME)} if shim else {}
        if host_network:
            env["MAID_RUNTIME" if shim else "DOCKER_BUILDKIT_RUNC_COMMAND"] = str(BIND_SYS)
        log = self.outside(self.directory / "dockerd.log")
        options = ["--iptables=false", "--ip6tables=false", "--ip-forward=false", "--bridge=none"]
        options += ["--storage-driver=overlay2", "--exec-opt=native.cgroupdriver=cgroupfs"]
        with log.open("wb") as output:
            daemon = subprocess.Popen(
                self.argv("dockerd", *options),
                env=self.variables | env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        try:
            deadline = time.monotonic() + 60
            while self.run("docker", "version", "-f", "{{.Server.Version}}", check=False) == "":
                if daemon.poll() is not None or time.monotonic() > deadline:
                    raise EngineError(f"dockerd did not start: {log.read_text()[-3000:]}")
                time.sleep(0.2)
            yield
        finally:
            self.run("sh", "-c", "kill $(cat /var/run/docker.pid)", check=False)
            daemon.wait(60)


SERVED = '[paths]\nstate = "{state}"\nruntime = "{runtime}"\n'

STORAGE = (
    '[storage]\ndriver = "{driver}"\nrunroot = "{place}/runroot"\ngraphroot = "{place}/graph"\n'
)

CONTAINERS = (
    '[containers]\nnetns = "host"\ndefault_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]\n'
    '[engine]\ncgroup_manager = "cgroupfs"\nevents_logger = "none"\n'
)


@contextlib.contextmanager
def engine_room(
    directory: Path,
    *names: str,
    state: Path | None = None,
    tree: Path | None = None,
    cpu: dict[str, str] | None = None,
) -> Iterator[Room]:
    """A room in which the targets `names` are registered as the service would.

    `directory` is empty and on a file system that an overlay can have its changes on. `state` is
    maid's state directory, whose store, if it has one, is the one that is known to the entries, and
    lies at /var/lib/maid/store in a `tree`, which is used and not changed. `cpu`: models for
    targets by name, instead of those that maid chooses; "" is QEMU's own.
    """
    home = os.environ.get("MAID_CACHE") or os.path.expanduser("~/.cache/maid")
    state = state or Path(home) / "state"
    served = directory / "maid.toml"
    served.write_text(SERVED.format(state=state, runtime=directory / "run"))
    config = load(served, Scope.PRIVATE, directory / "io.maid")
    choices = emulators.choose([TARGETS[n] for n in names], config, IdentityCache(state), cpu)
    root = _make_root(directory, tree, state / "store") if tree else None
    place = Path("/var/lib/room") if tree else directory
    real_place = directory / "room" if tree else directory
    real_place.mkdir(exist_ok=True)
    if not tree:
        (place / "storage.conf").write_text(STORAGE.format(driver="vfs", place=place))
        (place / "containers.conf").write_text(CONTAINERS)
    pinned = namespace.create(str(directory / "instance"), _nearly_all_ids())
    try:
        for name in names:
            pinned.instance.add(choices[name].offers[0].entry(f"qemu-{name}"))
        with _holder(pinned.user, directory if tree else None, state / "store") as holder:
            yield Room(holder, place, root, _variables(place, own_tree=tree is not None))
    finally:
        pinned.release()
        _remove_groups()


def _remove_groups() -> None:
    """Remove what the engines leave among the machine's control groups: what is in use stays."""
    for group in ("docker/buildkit", "docker", "buildah-*", "libpod_parent/*", "libpod_parent"):
        for found in [*GROUPS.glob(group), *GROUPS.glob(f"*/{group}")]:
            with contextlib.suppress(OSError):
                found.rmdir()


def _nearly_all_ids() -> namespace.Mapping:
    """All ids as themselves but for the last: runc takes a full map for the machine's own
    namespace, in which it would set up control groups of devices."""
    ids = (namespace.IdRange(0, 0, (1 << 32) - 2),)
    return namespace.Mapping(ids, ids)


def _variables(place: Path, own_tree: bool) -> dict[str, str]:
    """What the engines need to leave the machine's own storage alone: not a word of maid."""
    if own_tree:
        path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        return {"PATH": path, "HOME": str(place), "PODMAN_IGNORE_CGROUPSV1_WARNING": "1"}
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(place),
        "CONTAINERS_STORAGE_CONF": str(place / "storage.conf"),
        "CONTAINERS_CONF": str(place / "containers.conf"),
        # Root of a namespace already: buildah need not make another.
        "_CONTAINERS_USERNS_CONFIGURED": "1",
    }


def _make_root(directory: Path, tree: Path, store: Path) -> Path:
    """The changes to the tree that are there from the beginning; the store's place where it is."""
    (directory / "lower").symlink_to(tree)
    for name in ("upper", "work", "root", "room"):
        (directory / name).mkdir()
    upper = directory / "upper"

    def put(source: str | Path, target: Path, mode: int = 0o755) -> None:
        file = upper / str(target).lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, file)
        file.chmod(mode)

    bind_sys = upper / str(BIND_SYS).lstrip("/")
    bind_sys.parent.mkdir(parents=True)
    bind_sys.write_text(BINDS_SYS)
    bind_sys.chmod(0o755)
    units = CHECKOUT / "units"
    put(native.path("maid-runtime"), RUNTIME)
    put(native.path("maid-hook"), LIBEXEC / "maid-hook")
    put(units / "hooks.d/50-maid.json", HOOKS / "50-maid.json", 0o644)
    for runtime in ("crun", "runc"):
        (upper / str(LIBEXEC / runtime).lstrip("/")).symlink_to(RUNTIME)
    put(units / "containers.conf.d/50-maid.conf", CONF / "50-maid.conf", 0o644)
    put("/etc/resolv.conf", Path("/etc/resolv.conf"), 0o644)
    containers = upper / "etc/containers"
    containers.mkdir(parents=True, exist_ok=True)
    (containers / "storage.conf").write_text(
        STORAGE.format(driver="overlay", place="/var/lib/room")
    )
    (containers / "containers.conf").write_text(CONTAINERS)
    (containers / "policy.json").write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
    if store.is_dir():
        (upper / str(STORE).lstrip("/")).mkdir(parents=True)
    return directory / "root"


# A sysfs can be mounted only by who owns the network namespace: root of the room does not own the
# machine's. runc as BuildKit calls it (run --bundle DIR), with the room's /sys bound instead.
BINDS_SYS = r"""#!/bin/sh
previous='' bundle=''
for argument; do
    [ "$previous" != --bundle ] || bundle=$argument
    previous=$argument
done
sysfs='"type":"sysfs","source":"sysfs","options":\[[^]]*\]'
bound='"type":"none","source":"/sys","options":["rbind","ro"]'
[ -z "$bundle" ] || sed -i "s|$sysfs|$bound|" "$bundle/config.json"
exec runc "$@"
"""

# As root of the machine, in a mount namespace of its own: what a user namespace could not mount.
PREPARE = r"""
set -e
directory=$1 store=$2 user=$3; shift 3
mount --make-rprivate /
umount /sys/fs/cgroup/unified 2>/dev/null || true # crun: cgroups in hybrid mode not supported
if [ -n "$directory" ]; then
    cd "$directory"
    mount -t overlay -o lowerdir=lower,upperdir=upper,workdir=work none root
    mkdir -p root/var/lib/room root/var/lib/docker root/var/lib/containers room/docker
    mount --bind room root/var/lib/room
    mount --bind room/docker root/var/lib/docker
    if [ -d "$store" ]; then
        mount --bind "$store" "root/var/lib/maid/store"
        mount -o remount,bind,ro "root/var/lib/maid/store"
    fi
    mount -t tmpfs -o mode=755 none root/dev
    for node in null zero full random urandom tty fuse; do
        [ -e "/dev/$node" ] || continue
        : >"root/dev/$node"
        mount --bind "/dev/$node" "root/dev/$node"
    done
    ln -s /proc/self/fd root/dev/fd
    ln -s pts/ptmx root/dev/ptmx
    mkdir root/dev/pts root/dev/shm
    mount -t tmpfs none root/tmp
    mount -t tmpfs none root/run
    mount --rbind /sys root/sys
fi
exec nsenter "--user=$user" unshare --mount --pid --fork --kill-child "$@"
"""

# As the namespace's root: its own processes, terminals, and the tree as root directory.
SETTLE = r"""
set -e
directory=$1 init=$2
if [ -n "$directory" ]; then
    cd "$directory"
    cp "$init" root/run/init
    mount --rbind root root
    cd root
    mount -t proc none proc
    mount -t devpts -o newinstance,ptmxmode=666,mode=620 none dev/pts
    mount -t tmpfs none dev/shm
    mkdir -p tmp/.old
    pivot_root . tmp/.old
    cd /
    umount -l /tmp/.old
    rmdir /tmp/.old
    init=/run/init
else
    mount -t proc none /proc
fi
echo ready
exec "$init" sleep infinity
"""


@contextlib.contextmanager
def _holder(user: Path | str, directory: Path | None, store: Path) -> Iterator[int]:
    """The first process of the room, by its number out here; all in the room end with it."""
    arguments = [str(directory or ""), str(store), str(user)]
    settle = ["sh", "-c", SETTLE, "sh", str(directory or ""), native.path("maid-init")]
    holder = subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", PREPARE, "sh", *arguments, *settle],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert holder.stdout is not None and holder.stderr is not None
    try:
        if holder.stdout.readline() != b"ready\n":
            raise EngineError(f"the room could not be made: {holder.stderr.read().decode()}")
        [first] = Path(f"/proc/{holder.pid}/task/{holder.pid}/children").read_text().split()
        yield int(first)
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
        holder.stderr.close()
        time.sleep(0.05)
