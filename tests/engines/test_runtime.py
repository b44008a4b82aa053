"""maid-runtime: one mount more on create and run, everything else passed on as it came."""

import json
import os
import random
import shutil
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bundles import OWN, RUNTIME, Bundle, make_bundle, make_store, program

HERE = Path(__file__).resolve().parent
NATIVE = HERE.parent.parent / "daemon" / "native"

CHROOT = shutil.which("chroot") or "/usr/sbin/chroot"

SAYS = '#!/bin/sh\nprintf "%s\\0" "$0" "$@" >"$SAID"; exit 7\n'
"""A runtime that tells what it was called with."""


class Shim:
    """maid-runtime before a runtime that only tells how it was called."""

    def __init__(self, directory: Path, program: str | Path = RUNTIME) -> None:
        self.program = program
        self.said = directory / "said"
        self.runtime = directory / "runtime" / "runc"
        self.runtime.parent.mkdir()
        self.runtime.write_text(SAYS)
        self.runtime.chmod(0o755)
        self.environment = {
            "PATH": f"{self.runtime.parent}:/usr/bin:/bin",
            "SAID": str(self.said),
            "MAID_STORE": str(make_store(directory / "store")),
            "MAID_SOCKET": str(directory / "no-socket"),
        }

    def __call__(self, *arguments: str | Path, cwd: str | Path = "/") -> list[str]:
        """Call it, and return what the runtime was called with; its exit status comes through."""
        self.said.unlink(missing_ok=True)
        done = subprocess.run(
            [self.program, *arguments], cwd=cwd, env=self.environment, capture_output=True
        )
        assert (done.returncode, done.stdout, done.stderr) == (7, b"", b"")
        called = self.said.read_text().split("\0")[:-1]
        assert called == [str(self.runtime), *map(str, arguments)]
        return called


@pytest.fixture
def shim(tmp_path: Path) -> Shim:
    return Shim(tmp_path)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return make_bundle(tmp_path / "bundle")


def added(shim: Shim) -> dict[str, Any]:
    return {
        "destination": "/dev/.maid",
        "type": "bind",
        "source": shim.environment["MAID_STORE"],
        "options": ["bind", "ro", "nosuid", "nodev"],
    }


def test_every_other_byte_stays(shim: Shim, bundle: Bundle) -> None:
    # Odd on purpose: another writer would spell all of this in another way.
    text = bundle.file.read_text().replace(', "linux"', '\n ]\t, "linux"').replace("]\n ]", "\n ]")
    text = text.replace("nosuid", "no\\u0073uid").replace("1.0.2", "\u00e9\\/") + "\n\n"
    bundle.file.write_text(text)
    shim("create", "--bundle", bundle.path, "name")
    new = bundle.file.read_text()
    at = text.index('\n ]\t, "linux"') + 2
    assert (new[:at], new[len(new) - len(text) + at :]) == (text[:at], text[at:])
    assert bundle.config["mounts"][-1] == added(shim)
    assert bundle.config["mounts"][:-1] == json.loads(text)["mounts"]


CALLS: list[tuple[list[str], bool]] = [
    (["create", "--bundle", "BUNDLE", "name"], True),
    (["create", "--bundle=BUNDLE", "name"], True),
    (["create", "-b", "BUNDLE", "name"], True),
    (["create", "-b=BUNDLE", "name"], True),
    (["create", "-bundle", "BUNDLE", "name"], True),
    (["run", "--bundle", "BUNDLE", "--keep", "--no-pivot", "name"], True),
    (["run", "--pid-file", "run", "--console-socket", "x", "--bundle", "BUNDLE", "name"], True),
    (["run", "--detach", "--preserve-fds", "3", "-b", "BUNDLE", "name"], True),
    (["--log", "f", "--log-format", "json", "run", "--bundle", "BUNDLE", "name"], True),
    (["--log=f", "--systemd-cgroup", "--root", "delete", "create", "-b", "BUNDLE", "x"], True),
    (["--rootless", "true", "--debug", "create", "--bundle", "BUNDLE", "x"], True),
    (["--cgroup-manager", "cgroupfs", "create", "--bundle", "BUNDLE", "x"], True),
    (["--cgroup-manager=cgroupfs", "create", "--bundle", "BUNDLE", "x"], True),
    (["create", "--bundle", "/nowhere", "--bundle", "BUNDLE", "x"], True),
    (["delete", "--bundle", "BUNDLE", "name"], False),
    (["--root", "create", "start", "--bundle", "BUNDLE", "name"], False),
    (["exec", "--process", "create", "name", "run", "--bundle", "BUNDLE"], False),
    (["create", "name", "--bundle", "BUNDLE"], False),
    (["create", "--", "--bundle", "BUNDLE"], False),
    (["create", "--config", "other.json", "--bundle", "BUNDLE", "name"], False),
    (["create", "--pid-file", "--bundle", "BUNDLE", "name"], False),
    (["create", "--bundle"], False),
    (["--root"], False),
    (["--version"], False),
    ([], False),
]


@pytest.mark.parametrize(("call", "is_added"), CALLS, ids=str)
def test_create_and_run_are_understood_and_the_rest_passed_on(
    shim: Shim, bundle: Bundle, call: list[str], is_added: bool
) -> None:
    before = bundle.files()
    shim(*(each.replace("BUNDLE", str(bundle.path)) for each in call))
    assert (bundle.files() != before) == is_added
    if is_added:
        assert bundle.config["mounts"][-1] == added(shim)


def test_the_bundle_is_the_current_directory_when_none_is_named(shim: Shim, bundle: Bundle) -> None:
    shim("run", "name", cwd=bundle.path)
    assert bundle.config["mounts"][-1] == added(shim)


def test_a_second_time_changes_nothing(shim: Shim, bundle: Bundle) -> None:
    shim("create", "-b", bundle.path, "x")
    once = bundle.files()
    shim("create", "-b", bundle.path, "x")
    assert bundle.files() == once


def test_mode_and_owner_are_kept_and_nothing_else_is_left(shim: Shim, bundle: Bundle) -> None:
    bundle.file.chmod(0o640)
    os.chown(bundle.file, 1234, 4321)
    shim("create", "-b", bundle.path, "x")
    about = bundle.file.stat()
    assert (about.st_mode & 0o7777, about.st_uid, about.st_gid) == (0o640, 1234, 4321)
    assert list(bundle.files()) == ["config.json"]


def changed(**members: object) -> Callable[[Bundle], None]:
    return lambda bundle: bundle.write(bundle.config | members)


def mounts(change: Callable[[list[Any]], object]) -> Callable[[Bundle], None]:
    def make(bundle: Bundle) -> None:
        config = bundle.config
        change(config["mounts"])
        bundle.write(config)

    return make


def written(text: bytes) -> Callable[[Bundle], object]:
    return lambda bundle: bundle.file.write_bytes(text)


def linked(bundle: Bundle) -> None:
    bundle.file.rename(bundle.path / "real.json")
    bundle.file.symlink_to("real.json")


def fifo(bundle: Bundle) -> None:
    bundle.file.unlink()
    os.mkfifo(bundle.file)


def own(bundle: Bundle) -> None:
    bundle.install("/bin/sh", program(OWN))


def env(*variables: str) -> Callable[[Bundle], None]:
    return lambda bundle: bundle.change(env=[*bundle.config["process"]["env"], *variables])


DEV = {"destination": "/dev", "source": "x"}
LEFT_ALONE: dict[str, Callable[[Bundle], object]] = {
    "no JSON": written(b"{"),
    "empty": written(b""),
    "two documents": lambda b: b.file.write_bytes(b.file.read_bytes() * 2),
    "too long": lambda b: b.file.write_bytes(b.file.read_bytes() + b" " * (4 << 20)),
    "a list": written(b"[]"),
    "no file": lambda b: b.file.unlink(),
    "a link": linked,
    "a FIFO": fifo,
    "no mounts": lambda b: b.write({k: v for k, v in b.config.items() if k != "mounts"}),
    "mounts are null": changed(mounts=None),
    "mounts are a word": changed(mounts="x"),
    "mounts are empty": changed(mounts=[]),
    "mounts of rubbish": changed(mounts=[1, None, {"destination": 3}, {}]),
    "mounts twice": lambda b: b.file.write_text(b.file.read_text()[:-1] + ', "mounts": []}'),
    "no /dev": mounts(lambda each: each.pop(1)),
    "the machine's /dev": mounts(lambda each: each.append(DEV | {"type": "bind"})),
    "a /dev without a type": mounts(lambda each: each.append(DEV)),
    "something at /dev/.maid": mounts(lambda each: each.append({"destination": "/dev/.maid/"})),
    "no root": changed(root={}),
    "the root is nowhere": changed(root={"path": "/nowhere"}),
    "no process": lambda b: b.write({k: v for k, v in b.config.items() if k != "process"}),
    "own programs": own,
    "switched off with 0": env("MAID_ACCELERATE=0"),
    "switched off with off": env("A=1", "MAID_ACCELERATE=off", "B=2"),
    "switched off with no": env("MAID_ACCELERATE=no"),
}


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_bundles_that_are_left_alone(shim: Shim, bundle: Bundle, name: str) -> None:
    LEFT_ALONE[name](bundle)
    if name == "a FIFO":
        shim("create", "-b", bundle.path, "x")
        return
    before = bundle.files()
    shim("create", "-b", bundle.path, "x")
    assert bundle.files() == before


TAKEN: dict[str, Callable[[Bundle], object]] = {
    "another value of the variable": env("MAID_ACCELERATE=1", "MAID_ACCELERATED=0"),
    "/dev with a slash": mounts(lambda each: each[1].update(destination="/dev/")),
    "a script": lambda b: [b.install("/s", b"#! /bin/sh -e\n"), b.change(args=["/s"])],
    "found in PATH": lambda b: b.change(args=["sh"]),
    "found from cwd": lambda b: b.change(args=["./sh"], cwd="/bin"),
    "the machine's own init before a foreign shell": lambda b: [
        b.install("/init", program(OWN)),
        b.change(args=["/init", "--", "sh"]),
    ],
    "nothing that can be looked at": lambda b: [
        (b.root / "bin/sh").unlink(),
        b.change(args=["/nothing"]),
    ],
}


@pytest.mark.parametrize("name", TAKEN)
def test_bundles_that_are_completed(shim: Shim, bundle: Bundle, name: str) -> None:
    TAKEN[name](bundle)
    shim("create", "-b", bundle.path, "x")
    assert bundle.config["mounts"][-1] == added(shim)


def test_links_in_the_root_lead_nowhere_else(shim: Shim, bundle: Bundle) -> None:
    """An absolute link of a foreign image must not be answered by this machine's own programs."""
    shell = bundle.root / "bin/sh"
    shell.rename(bundle.root / "foreign")
    for target in ("/foreign", "../../../../../../../../foreign", "/proc/self/root/foreign"):
        shell.unlink(missing_ok=True)
        shell.symlink_to(target)
        shim("create", "-b", bundle.path, "x")
        assert bundle.config["mounts"].pop() == added(shim)
        bundle.write(bundle.config | {"mounts": bundle.config["mounts"][:-1]})
    # Only in the machine's own root is there such a program: here nothing can be said, so mounted.
    shell.unlink()
    shell.symlink_to(shutil.which("true") or "")
    own(bundle)
    shim("create", "-b", bundle.path, "x")
    assert bundle.config["mounts"][-1] != added(shim)


def test_a_device_in_the_image_is_never_opened(shim: Shim, bundle: Bundle) -> None:
    (bundle.root / "bin/sh").unlink()
    os.mkfifo(bundle.root / "bin/sh")
    shim("create", "-b", bundle.path, "x")
    assert bundle.config["mounts"][-1] == added(shim)


@pytest.mark.parametrize("change", ["gone", "empty", "relative", "quoted"])
def test_without_a_store_nothing_is_done(shim: Shim, bundle: Bundle, change: str) -> None:
    store = Path(shim.environment["MAID_STORE"])
    if change == "gone":
        shutil.rmtree(store)
    elif change == "empty":
        (store / "id").rmdir()
    elif change == "relative":
        shim.environment["MAID_STORE"] = os.path.relpath(store, bundle.path)
    else:
        quoted = store.rename(store.with_name('st"ore'))
        shim.environment["MAID_STORE"] = str(quoted)
    before = bundle.files()
    shim("create", "-b", ".", "x", cwd=bundle.path)
    assert bundle.files() == before


def test_a_full_disk_leaves_the_bundle_as_it_was(shim: Shim, tmp_path: Path) -> None:
    place = tmp_path / "small"
    place.mkdir()
    script = (
        'mount -t tmpfs -o size=16k,nr_inodes=64 none "$1" && cp -r "$2"/. "$1" &&'
        ' { cat /dev/zero >"$1/fill" 2>/dev/null; cp "$1/config.json" "$1/../before"; '
        ' "$3" create -b "$1" x; cmp "$1/config.json" "$1/../before" && ls -A "$1"; }'
    )
    original = make_bundle(tmp_path / "original")
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, "sh", place, original.path, RUNTIME],
        env=shim.environment,
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["config.json", "fill", "rootfs"], done.stderr


def test_without_permission_the_bundle_is_left(shim: Shim, bundle: Bundle) -> None:
    script = 'mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" && "$2" create -b "$1" x'
    before = bundle.files()
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, "sh", bundle.path, RUNTIME], env=shim.environment
    )
    assert done.returncode == 7
    assert bundle.files() == before


def test_a_store_in_which_nothing_can_be_executed_is_none(shim: Shim, bundle: Bundle) -> None:
    """In a user namespace a runtime could not bind it without that flag, and would fail."""
    script = 'mount --bind "$1" "$1" && mount -o remount,bind,noexec "$1" && "$2" create -b "$3" x'
    arguments = [shim.environment["MAID_STORE"], RUNTIME, bundle.path]
    before = bundle.files()
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, "sh", *arguments], env=shim.environment
    )
    assert done.returncode == 7
    assert bundle.files() == before


def test_the_runtime_is_never_the_shim_itself(shim: Shim, tmp_path: Path) -> None:
    """Under the name of runc before the real one in PATH, as a link or as a copy."""
    for number, place in enumerate(("link", "copy", "other")):
        (tmp_path / place).mkdir()
        if number:
            shutil.copy(RUNTIME, tmp_path / place / "runc")
        else:
            (tmp_path / place / "runc").symlink_to(RUNTIME)
    shims = [str(tmp_path / place) for place in ("link", "copy", "other")]
    shim.environment["PATH"] = ":".join([*shims, shim.environment["PATH"]])
    shim("state", "x")


def test_another_runtime_may_be_named(shim: Shim, tmp_path: Path) -> None:
    shim.runtime = shim.runtime.rename(tmp_path / "youki")
    shim.environment["MAID_RUNTIME"] = str(shim.runtime)
    shim("state", "x")
    shim.environment |= {"MAID_RUNTIME": "youki", "PATH": str(tmp_path)}
    shim.environment["PATH"] += ":/usr/bin:/bin"
    shim("state", "x")


@pytest.mark.parametrize("name", ["crun", "runc"])
def test_a_link_that_is_called_as_a_runtime_is_that_one(
    shim: Shim, tmp_path: Path, name: str
) -> None:
    """As podman has them; both runtimes are there."""
    (tmp_path / name).symlink_to(RUNTIME)
    shim.program = tmp_path / name
    shutil.copy(shim.runtime, shim.runtime.with_name("crun"))
    shim.runtime = shim.runtime.with_name(name)
    shim("state", "x")


def test_where_a_link_s_runtime_is_gone_the_other_serves(tmp_path: Path) -> None:
    (tmp_path / "usr/bin").mkdir(parents=True)
    shutil.copy(RUNTIME, tmp_path / "crun")
    # A program that needs nothing, tells what it is called as, and is in a usual directory.
    source = tmp_path / "runc.c"
    source.write_text("#include <stdio.h>\nint main(int c, char **v) { return !puts(v[c - 2]); }\n")
    runc = tmp_path / "usr/bin/runc"
    subprocess.run(["cc", "-static", "-o", runc, source], check=True, timeout=60)
    done = subprocess.run(
        [CHROOT, tmp_path, "/crun", "x"], env={}, stdout=subprocess.PIPE, text=True, check=True
    )
    assert done.stdout == "/usr/bin/runc\n"


def test_without_a_runtime_it_says_so(shim: Shim, tmp_path: Path) -> None:
    shutil.copy(RUNTIME, tmp_path / "maid-runtime")
    done = subprocess.run(
        [CHROOT, tmp_path, "/maid-runtime", "state"], env={}, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (127, "")
    assert done.stderr.startswith("maid-runtime: there is no runc and no crun in PATH")
    shim.environment["MAID_RUNTIME"] = "/nowhere/runc"
    done = subprocess.run([RUNTIME, "state"], env=shim.environment, capture_output=True, text=True)
    assert done.returncode == 127
    assert done.stderr.endswith(
        "MAID_RUNTIME=/nowhere/runc cannot be executed: No such file or directory\n"
    )


def test_the_daemon_is_told_of_the_root(shim: Shim, bundle: Bundle) -> None:
    with socket.socket(socket.AF_UNIX) as daemon:
        daemon.bind(shim.environment["MAID_SOCKET"])
        daemon.listen()
        shim("create", "-b", bundle.path, "x")
        connection, _ = daemon.accept()
        with connection:
            message, descriptors, _, _ = socket.recv_fds(connection, 4096, 4)
            assert json.loads(message.removesuffix(b"\0")) == {
                "method": "io.maid.Store.Seen",
                "parameters": {"rootfs": 0},
                "oneway": True,
            }
            [root] = descriptors
            # A copy of the mount: unmounting the engine's is not hindered.
            assert sorted(os.listdir(f"/proc/self/fd/{root}")) == ["bin", "dev", "proc"]
            os.close(root)
            assert connection.recv(1) == b""


def test_a_daemon_that_does_not_answer_is_not_waited_for(shim: Shim, bundle: Bundle) -> None:
    with socket.socket(socket.AF_UNIX) as daemon:
        daemon.bind(shim.environment["MAID_SOCKET"])
        daemon.listen(0)
        with socket.socket(socket.AF_UNIX) as first:
            first.connect(shim.environment["MAID_SOCKET"])  # all the room there is
            shim("create", "-b", bundle.path, "x")
    assert bundle.config["mounts"][-1] == added(shim)


def test_changed_bundles_never_end_it(tmp_path: Path) -> None:
    """With sanitizers: whatever stands in config.json, the runtime is called, silently."""
    sanitized = tmp_path / "maid-runtime"
    sources = [NATIVE / name for name in ("runtime.c", "oci.c", "json.c")]
    options = ("-std=gnu11", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    subprocess.run(["cc", *options, "-o", sanitized, *sources], check=True, timeout=120)
    shim = Shim(tmp_path, sanitized)
    shim.environment |= {"ASAN_OPTIONS": "detect_leaks=0", "MAID_INIT": str(sanitized)}
    bundle = make_bundle(tmp_path / "bundle")
    seed, chance = bundle.file.read_bytes(), random.Random(1)
    for _ in range(60):
        text = bytearray(seed)
        for _ in range(chance.randint(1, 6)):
            at = chance.randrange(len(text))
            text[at : at + chance.randint(0, 3)] = chance.randbytes(chance.randint(0, 2))
        bundle.file.write_bytes(text)
        shim("create", "-b", bundle.path, "x")
        new = bundle.file.read_bytes()
        init = {"destination": "/dev/.maid-init", "source": str(sanitized)}
        assert new == text or json.loads(new.decode("latin-1"))["mounts"][-1] in (
            added(shim),
            added(shim) | init,
        )
