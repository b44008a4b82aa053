"""maid-hook: the store in a container's /dev, or nothing at all, and never a failure."""

import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from bundles import HOOK, OWN, Bundle, make_bundle, make_store, program

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make mount namespaces")

HERE = Path(__file__).resolve().parent

OPEN_TREE, MOVE_MOUNT, OPENAT2, MOUNT_SETATTR = 428, 429, 437, 442

INSIDE = r"""
set -e
root=$1 prepare=$2; shift 2
mount --make-rprivate / 2>/dev/null || true
mount -t tmpfs -o mode=755 devices "$root/dev"
eval "$prepare"
find "$root" -xdev | LC_ALL=C sort >"$HERE/before"; find "$root/dev" -xdev >>"$HERE/before"
"$@" <"$HERE/state"; echo "status $?"
find "$root" -xdev | LC_ALL=C sort >"$HERE/after"; find "$root/dev" -xdev >>"$HERE/after"
cmp -s "$HERE/before" "$HERE/after" || echo changed
grep '/\.maid' /proc/self/mountinfo | sed 's/^/mount /' || true
if mountpoint -q "$root/dev/.maid"; then
    stat -c 'number %d %i' "$root/dev/.maid"
    cat "$root/dev/.maid/here" 2>/dev/null || true
    ! touch "$root/dev/.maid/new" 2>/dev/null || echo writable
fi
"""


@dataclass
class Ended:
    """How a hook ended: what it said, and what there is then."""

    text: str
    said: str

    @property
    def status(self) -> str:
        return self.text.splitlines()[0]

    @property
    def mounts(self) -> list[str]:
        return [line for line in self.text.splitlines() if line.startswith("mount ")]

    @property
    def is_untouched(self) -> bool:
        """Nothing mounted, and no file or directory more or less than before."""
        return self.text == "status 0\n"


class Hook:
    """The hook in a namespace as a runtime has prepared it: the container's /dev is mounted."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.store = make_store(directory / "store")
        self.bundle = make_bundle(directory / "bundle")
        self.enter = ["unshare", "--mount"]
        self.denied: list[int] = []
        self.socket = directory / "no-socket"

    def __call__(self, prepare: str = "", state: bytes | None = None) -> Ended:
        given = self.bundle.state() if state is None else state
        (self.directory / "state").write_bytes(given)
        deny = [HERE / "deny.py", ",".join(map(str, self.denied))] if self.denied else []
        hook = [HOOK, "--store", self.store, "--socket", self.socket, "--verbose"]
        done = subprocess.run(
            [*self.enter, "sh", "-c", INSIDE, "sh", self.bundle.root, prepare, *deny, *hook],
            env={"PATH": os.environ["PATH"], "HERE": str(self.directory)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert done.returncode == 0, done.stderr
        return Ended(done.stdout, done.stderr)

    def is_mounted(self, ended: Ended) -> bool:
        """Whether the store itself is there, once, read-only and without devices and setuid."""
        about = self.store.stat()
        lines = [line for line in ended.text.splitlines() if not line.startswith("mount ")]
        expected = ["status 0", "changed", f"number {about.st_dev} {about.st_ino}", "store"]
        return (
            lines == expected
            and len(ended.mounts) == 1
            and {"ro", "nosuid", "nodev"} <= set(ended.mounts[0].split()[6].split(","))
            and ended.said == "maid-hook: mounted\n"
        )


@pytest.fixture
def hook(tmp_path: Path) -> Hook:
    return Hook(tmp_path)


def test_the_store_is_mounted_read_only(hook: Hook) -> None:
    assert hook.is_mounted(hook())


@pytest.mark.parametrize("denied", [[OPEN_TREE], [MOVE_MOUNT], [MOUNT_SETATTR]])
def test_older_kernels_bind_it(hook: Hook, denied: list[int]) -> None:
    hook.denied = denied
    assert hook.is_mounted(hook())


def test_a_kernel_that_cannot_look_into_a_root_safely_mounts_nothing(hook: Hook) -> None:
    hook.denied = [OPENAT2]
    assert hook().is_untouched


@pytest.mark.parametrize("denied", [[], [OPEN_TREE]])
def test_in_a_user_namespace_too(hook: Hook, denied: list[int]) -> None:
    """Where all mounts are inherited from a more privileged namespace, and their flags locked."""
    hook.denied = denied
    hook.enter = ["unshare", "--user", "--map-root-user", "--mount"]
    for directory in (hook.directory, hook.store, hook.bundle.path):
        directory.chmod(0o755)
    assert hook.is_mounted(hook())


def test_where_the_kernel_does_not_permit_a_mount_nothing_is_left(hook: Hook) -> None:
    drop = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin"]
    (hook.directory / "run").write_text(f'#!/bin/sh\nexec {" ".join(drop)} "$@"\n')
    (hook.directory / "run").chmod(0o755)
    ended = hook(f'set -- "{hook.directory}/run" "$@"')
    assert ended.is_untouched
    assert "the kernel does not let it be mounted" in ended.said


def image_without_own_dev(hook: Hook) -> str:
    return 'umount "$root/dev"'


def bound_image_directory(hook: Hook) -> str:
    return 'umount "$root/dev"; mkdir "$root/d"; mount --bind "$root/d" "$root/dev"'


def the_machines_dev(hook: Hook) -> str:
    machine = "mount -t tmpfs none /dev; mknod /dev/null c 1 3"
    return f'umount "$root/dev"; {machine}; mount --bind /dev "$root/dev"'


def linked_dev(hook: Hook) -> str:
    (hook.bundle.root / "elsewhere").mkdir()
    return 'umount "$root/dev"; rmdir "$root/dev"; ln -s elsewhere "$root/dev"'


def dev_linked_out(hook: Hook) -> str:
    outside = hook.directory / "outside"
    outside.mkdir()
    move = f'mount -t tmpfs none "{outside}"'
    return f'umount "$root/dev"; rmdir "$root/dev"; {move}; ln -s "{outside}" "$root/dev"'


NOTHING: dict[str, Callable[[Hook], str | None]] = {
    "no /dev of its own": image_without_own_dev,
    "a directory of the image's on /dev": bound_image_directory,
    "the machine's /dev": the_machines_dev,
    "/dev is a link": linked_dev,
    "/dev is a link out of the root": dev_linked_out,
    "/dev/.maid is a link": lambda h: f'ln -s "{h.directory}" "$root/dev/.maid"',
    "/dev/.maid is a link to nothing": lambda h: 'ln -s nothing "$root/dev/.maid"',
    "/dev/.maid is a file": lambda h: ': >"$root/dev/.maid"',
    "/dev is full of nothing to write to": lambda h: 'mount -o remount,ro "$root/dev"',
    "no store": lambda h: shutil.rmtree(h.store),
    "an empty store": lambda h: (h.store / "id").rmdir(),
    "a store in which nothing can be executed": lambda h: (
        f'mount --bind "{h.store}" "{h.store}"; mount -o remount,bind,noexec "{h.store}"'
    ),
    "own programs": lambda h: h.bundle.install("/bin/sh", program(OWN)),
    "switched off": lambda h: h.bundle.change(env=["MAID_ACCELERATE=0"]),
    "no config": lambda h: h.bundle.file.unlink(),
    "a root that is nowhere": lambda h: h.bundle.write(
        h.bundle.config | {"root": {"path": "nowhere"}}
    ),
}


@pytest.mark.parametrize("name", NOTHING)
def test_containers_in_which_nothing_is_done(hook: Hook, name: str) -> None:
    prepare = NOTHING[name](hook)
    ended = hook(prepare or "")
    assert ended.is_untouched, ended
    assert ended.said.startswith("maid-hook: ") and "mounted\n" not in ended.said[-9:]


def test_what_is_mounted_there_already_stays(hook: Hook) -> None:
    ended = hook('mkdir "$root/dev/.maid"; mount -t tmpfs theirs "$root/dev/.maid"')
    assert [line.split(" - ")[1].split()[1] for line in ended.mounts] == ["theirs"]
    assert ended.status == "status 0"


def test_an_image_that_brings_the_mount_point_is_served(hook: Hook) -> None:
    ended = hook('mkdir "$root/dev/.maid"')
    assert "store" in ended.text.splitlines() and len(ended.mounts) == 1


def test_an_absolute_root_is_understood(hook: Hook) -> None:
    hook.bundle.write(hook.bundle.config | {"root": {"path": str(hook.bundle.root)}})
    assert hook.is_mounted(hook())


BAD_STATES = [b"", b"{", b"[]", b"{}", b'{"bundle": 3}', b'{"bundle": "/nowhere"}', b"\0" * 100]
BAD_STATES += [b'{"bundle": "' + b"a" * 5000 + b'"}', b" " * (2 << 20)]


@pytest.mark.parametrize("state", BAD_STATES, ids=lambda state: repr(state[:20]))
def test_what_is_no_state_is_ignored(hook: Hook, state: bytes) -> None:
    assert hook(state=state).is_untouched


def test_a_runtime_that_says_nothing_is_not_waited_for_for_ever(hook: Hook) -> None:
    """The container goes on after five seconds, whatever is the matter, and whatever is blocked."""

    def block() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])

    started = time.monotonic()
    waits = [HOOK, "--store", hook.store]
    with subprocess.Popen(waits, stdin=subprocess.PIPE, preexec_fn=block) as waiting:
        assert waiting.wait(20) == 0
    assert time.monotonic() - started > 2


@pytest.mark.parametrize(
    "arguments", [["--store"], ["--what"], ["", "x"], ["--verbose", "--store"]]
)
def test_odd_arguments_are_no_failure(arguments: list[str]) -> None:
    done = subprocess.run([HOOK, *arguments], stdin=subprocess.DEVNULL, timeout=20)
    assert done.returncode == 0


def test_the_daemon_is_told_of_the_root(hook: Hook, bundle_listing: list[str]) -> None:
    hook.socket = hook.directory / "io.maid"
    seen: list[tuple[bytes, list[str]]] = []
    with socket.socket(socket.AF_UNIX) as daemon:
        daemon.bind(str(hook.socket))
        daemon.listen()

        def answer() -> None:
            connection, _ = daemon.accept()
            with connection:
                message, descriptors, _, _ = socket.recv_fds(connection, 4096, 4)
                seen.extend((message, os.listdir(f"/proc/self/fd/{each}")) for each in descriptors)

        listening = threading.Thread(target=answer)
        listening.start()
        assert hook.is_mounted(hook())
        listening.join(10)
    [(message, names)] = seen
    assert json.loads(message.removesuffix(b"\0"))["method"] == "io.maid.Store.Seen"
    assert sorted(names) == bundle_listing


@pytest.fixture
def bundle_listing(hook: Hook) -> list[str]:
    bundle: Bundle = hook.bundle
    return sorted(os.listdir(bundle.root))
