"""io.maid.Store and `maid accel`: what is shown of the store, who may change it, and how."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from daemons import Daemon, as_user, rootfs, until
from serving import FEW, Serving, closed, message, read_message
from stepping import copy, run, shell

from maid.acceleration import records, sets
from maid.acceleration.sets import Entry, Left, Manifest
from maid.acceleration.store import Store
from maid.client import Client
from maid.errors import AccessDenied, StepRefused
from maid.platforms import host

MEMBER = 1234


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("state")


@pytest.fixture(scope="module")
def daemon(state: Path) -> Iterator[Serving]:
    with Serving(f'{FEW}[socket]\ngroup = "users"\n', state=str(state)) as made:
        yield made.start()


@pytest.fixture
def store(daemon: Serving, state: Path) -> Iterator[Store]:
    """The daemon's store, empty at first."""
    made = Store(state / "store", state / "acceleration")
    yield made
    made.prune(size=0)


def publish(store: Store, name: str, tools: dict[str, str], codename: str = "trixie") -> Manifest:
    """A set of tools, by the packages that they are from, and one that stays emulated."""
    root = store.root / f".new-{name}"
    (root / "bin").mkdir(parents=True)
    entries = []
    for tool, package in tools.items():
        (root / "bin" / tool).write_bytes(name.encode() * 1000)
        program = f"bin/{tool}"
        entries.append(
            Entry(
                tool=tool,
                build_id=f"{name}{tool}".encode().hex(),
                path=f"/usr/bin/{tool}",
                package=package,
                version="1-2",
                native_package=package,
                native_version="1-2",
                program=program,
                record=records.encode(f"{records.MOUNT}/{name}/{program}", ()),
            )
        )
    sizes, digests = sets.measure(root)
    manifest = Manifest(
        format=sets.FORMAT,
        name=name,
        distribution="debian",
        codename=codename,
        native="amd64",
        foreign="arm64",
        tables="t",
        made=1e9,
        mirror="file:/archive/debian",
        packages=["xz-utils:arm64=1-2"],
        entries=entries,
        left=[Left("cc1", "cpp-12", "12.2.0-14+deb12u1", "only 12.2.0-14cross1 is to be had")],
        sizes=sizes,
        digests=digests,
    )
    store.publish(root, manifest)
    return manifest


def shown(daemon: Daemon, *arguments: str, status: int = 0) -> str:
    done = daemon.maid("accel", *arguments)
    assert done.returncode == status, done.stderr
    return done.stdout


def test_the_list_shows_what_stands_in_and_what_does_not(daemon: Serving, store: Store) -> None:
    assert "empty" in shown(daemon, "list")
    publish(store, "abcde", {"xz": "xz-utils", "xzdiff": "xz-utils", "tar": "tar"})
    text = shown(daemon, "list")
    assert "debian:trixie arm64 (set abcde): 3 tools" in text
    rows = [" ".join(line.split()) for line in text.splitlines()]
    assert "native xz-utils 1-2 xz-utils 1-2 xz, xzdiff" in rows
    assert "emulated cpp-12 12.2.0-14+deb12u1 only 12.2.0-14cross1 is to be had cc1" in rows


def test_a_tool_is_shown_with_the_reason_why_it_may_stand_in(daemon: Serving, store: Store) -> None:
    from maid.acceleration.tools import TOOLS

    known = next(tool for tool in TOOLS if tool.package == "xz-utils")
    publish(store, "abcde", {known.name: "xz-utils", "tar": "tar"})
    text = shown(daemon, "list", "xz-utils")
    assert known.why in text and "tar" not in text.replace("/tar", "")
    assert "only 12.2.0-14cross1 is to be had" in shown(daemon, "list", "cc1")
    nothing = daemon.maid("accel", "list", "nosuch")
    assert nothing.returncode == 1 and "no tool, package or set nosuch" in nothing.stderr


def test_the_list_as_json_has_all_of_it(daemon: Serving, store: Store) -> None:
    publish(store, "abcde", {"xz": "xz-utils"})
    found = json.loads(shown(daemon, "list", "--json"))
    (each,) = found["sets"]
    assert (each["name"], each["release"], each["foreign"]) == ("abcde", "debian:trixie", "arm64")
    assert each["packages"] == ["xz-utils:arm64=1-2"]
    assert each["size"] == found["summary"]["size"] == 5000
    assert each["tools"][0]["tool"] == "xz" and each["left"][0]["tool"] == "cc1"
    assert found["summary"]["path"] == str(store.root)


def test_status_and_metrics_have_the_store(daemon: Serving, store: Store) -> None:
    publish(store, "abcde", {"xz": "xz-utils", "tar": "tar"})
    text = daemon.maid("status").stdout
    assert "native store: 2 tools in 1 set, 0 MiB" in text
    summary = json.loads(daemon.maid("status", "--json").stdout)["store"]
    assert (summary["sets"], summary["tools"], summary["emulated"]) == (1, 2, 1)
    numbers = daemon.maid("metrics").stdout
    assert "maid_store_tools 2.0" in numbers and "maid_store_bytes 10000.0" in numbers


def test_a_damaged_store_is_found_and_not_used_on(daemon: Serving, store: Store) -> None:
    publish(store, "abcde", {"xz": "xz-utils"})
    publish(store, "bcdef", {"tar": "tar"})
    assert "every file is as it was made" in shown(daemon, "verify")
    with open(store.root / "abcde/bin/xz", "r+b") as file:
        file.write(b"evil")
    text = shown(daemon, "verify", status=1)
    assert "abcde/bin/xz: its content was changed" in text
    assert [each.name for each in store.sets()] == ["bcdef"]
    assert json.loads(shown(daemon, "verify", "--json")) == {"damages": []}


def test_what_is_not_used_is_removed(daemon: Serving, store: Store, state: Path) -> None:
    for name in ("abcde", "bcdef"):
        publish(store, name, {"xz": "xz-utils"})
    os.utime(state / "acceleration/used-abcde", (1e9, 1e9))
    removed = json.loads(shown(daemon, "prune", "--unused", "30", "--json"))["removed"]
    assert [each["name"] for each in removed] == ["abcde"]
    assert "removed 1 set," in shown(daemon, "prune", "--size", "1k")
    assert store.sets() == []
    for wrong in ((), ("--size", "much"), ("--size", "-5")):
        done = daemon.maid("accel", "prune", *wrong)
        assert done.returncode == 2 and "parameter" not in done.stderr, done


@pytest.mark.parametrize(
    "arguments, status, words",
    [
        ((), 2, "a release or a root file system"),
        (("debian:trixie", "--rootfs", "/"), 2, "a release or a root file system"),
        (("--rootfs", "/", "--arch", "arm64"), 2, "--arch"),
        (("debian:trixie", "--arch", "no such"), 2, "is no architecture"),
        (("nosuch:thing",), 1, "nosuch"),
        (("trixie",), 2, "debian:trixie"),
        (("debian:",), 2, "is no release"),
        (("debian:trixie", "--keys", "/no/such"), 1, "/no/such has no keys of debian's archive"),
        (("debian:../../x",), 2, "is no release"),
        (("debian:trixie", "--arch", host().architecture), 1, "this machine's own"),
        (("debian:trixie", "--arch", "vax"), 1, "vax"),
        (("--rootfs", "/no/such"), 2, "No such file"),
    ],
)
def test_what_cannot_be_added_is_an_error_in_words(
    daemon: Serving, store: Store, arguments: tuple[str, ...], status: int, words: str
) -> None:
    done = daemon.maid("accel", "add", *arguments)
    assert done.returncode == status, done
    assert words in done.stderr and done.stdout == ""
    assert store.sets() == []


def test_a_root_file_system_nobody_knows_cannot_be_added(daemon: Serving, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    done = daemon.maid("accel", "add", "--rootfs", tmp_path / "tree")
    assert done.returncode == 1 and "os-release" in done.stderr


def test_without_a_store_it_says_why(tmp_path: Path) -> None:
    with Serving('[acceleration]\naccelerate = "off"\n') as made:
        made.start()
        done = made.maid("accel", "list")
        assert done.returncode == 1 and "switched off" in done.stdout
        assert made.maid("accel", "add", "debian:trixie").returncode == 1
        assert "no native store: switched off" in made.maid("status").stdout


def test_a_store_that_is_removed_hurts_no_step_and_is_made_again(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    state = tmp_path_factory.mktemp("own")  # short: the kernel takes 127 bytes for an interpreter
    with Serving(FEW, state=str(state)) as made:
        made.start()
        tree = copy(rootfs("busybox-arm64"), made.directory / "tree")
        shutil.rmtree(state / "store")
        assert shell(made, tree, "ls -A /dev | grep -x .maid; echo ran").lines == ["ran"]
        done = run(made, tree, "/bin/sh", "-c", "true", require_acceleration=True)
        assert isinstance(done.refused, StepRefused) and "no native store" in str(done.refused)
        status = made.maid("status")
        assert status.returncode == 0 and "was removed or replaced: maid reload" in status.stdout
        assert "was removed or replaced" in shown(made, "list", status=1)
        assert made.maid("reload").returncode == 0
        own = os.stat(state / "store")
        ran = shell(made, tree, "stat -c '%d %i' /dev/.maid")
        assert ran.lines == [f"{own.st_dev} {own.st_ino}"]
        assert "empty" in shown(made, "list")
        platforms = json.loads(made.maid("status", "--json").stdout)["platforms"]
        front = next(p["interpreter"] for p in platforms if p["platform"] == "linux/arm64")
        # What the front knows it by.
        assert struct.pack("<QQ", own.st_dev, own.st_ino) in Path(front).read_bytes()


# Who may -----------------------------------------------------------------------------------------


def as_member(call: Callable[[], Any]) -> Any:
    import grp

    return as_user(MEMBER, [grp.getgrnam("users").gr_gid], call)


@pytest.mark.parametrize(
    "method, parameters",
    [
        ("Add", {"release": "debian:trixie", "architectures": ["arm64"]}),
        ("Verify", {}),
        ("Prune", {"size": 0}),
    ],
)
def test_members_may_not_change_the_store(
    daemon: Serving, store: Store, method: str, parameters: dict[str, Any]
) -> None:
    publish(store, "abcde", {"xz": "xz-utils"})
    daemon.socket.parent.chmod(0o755)

    def call() -> str:
        try:
            with Client(str(daemon.socket)) as client:
                for _ in client.stream(f"io.maid.Store.{method}", parameters):
                    pass
        except AccessDenied:
            return "denied"
        return "allowed"

    assert as_member(call) == "denied"
    assert len(store.sets()) == 1


def test_members_may_look_and_tell(daemon: Serving, store: Store, tmp_path: Path) -> None:
    publish(store, "abcde", {"xz": "xz-utils"})
    tmp_path.chmod(0o755)

    def call() -> int:
        root = os.open("/", os.O_PATH | os.O_DIRECTORY)
        with Client(str(daemon.socket)) as client:
            content = client.call("io.maid.Store.Status")["store"]
            for _ in range(100):
                client.call("io.maid.Store.Seen", {"rootfs": 0}, [root])
        return len(content["sets"])

    assert as_member(call) == 1
    assert daemon.answers()


def test_what_is_told_needs_no_answer(daemon: Serving, tmp_path: Path) -> None:
    """A hook does not wait: a call without a reply, and the connection closed at once."""
    import socket

    root = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)
    before = daemon.descriptors()
    for _ in range(20):
        with daemon.connect() as connection:
            data = message("io.maid.Store.Seen", oneway=True, rootfs=0)
            socket.send_fds(connection, [data], [root])
    os.close(root)
    assert until(lambda: daemon.descriptors() <= before)
    assert "Traceback" not in daemon.text()


@pytest.mark.parametrize(
    "method, parameters",
    [
        ("Add", {}),
        ("Add", {"release": "debian:trixie"}),
        ("Add", {"release": "debian:trixie", "architectures": ["arm64"] * 21}),
        ("Add", {"release": "x" * 300, "architectures": ["arm64"]}),
        ("Prune", {"size": -1}),
        ("Prune", {"unused": 1e300}),
        ("Seen", {"rootfs": 0}),
    ],
)
def test_odd_requests_are_refused(daemon: Serving, method: str, parameters: dict[str, Any]) -> None:
    with daemon.connect() as connection:
        connection.sendall(message(f"io.maid.Store.{method}", more=method == "Add", **parameters))
        try:
            assert "error" in read_message(connection)
        except EOFError:
            assert closed(connection)
    assert daemon.answers()
