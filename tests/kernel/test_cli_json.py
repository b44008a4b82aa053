"""docs/json.md against what the commands print: every key that is documented, and no other."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from daemons import MAID, environment, rootfs
from json_documents import documented, hold, keys
from serving import Serving
from stepping import copy
from storing import Storing
from test_steps_store import ID, record, writing
from test_store_service import publish

from maid.acceleration.store import Store

DESIGNED = {
    *("version", "scope", "kernel", "instance", "runtime", "ready", "platforms"),
    *("platforms[].platform", "platforms[].target", "platforms[].state", "platforms[].via"),
    *("platforms[].entry", "platforms[].owner", "platforms[].interpreter"),
    *("platforms[].interpreter_version", "platforms[].flags", "platforms[].reason"),
    *("platforms[].probe", "platforms[].probe.level", "platforms[].probe.ok"),
    *("platforms[].probe.ms", "platforms[].probe.error"),
}
"""What design.md promises of `maid status --json`."""


@pytest.fixture(scope="module")
def served() -> Iterator[Serving]:
    with Serving() as made:
        yield made.start()


def document(served: Serving, *arguments: str, status: int = 0) -> Any:
    done = served.maid(*arguments)
    assert done.returncode == status, done.stderr
    return json.loads(done.stdout)


def test_status(served: Serving) -> None:
    found = document(served, "status", "--json")
    hold("status", found)
    assert {name for name, _ in keys(found)} >= DESIGNED
    assert Path(found["instance"], "status").read_text() == "enabled\n"
    by_name = {each["platform"]: each for each in found["platforms"]}
    arm64 = by_name["linux/arm64"]
    assert (arm64["state"], arm64["via"], arm64["owner"]) == ("ready", "emulated", "maid")
    assert Path(found["instance"], arm64["entry"]).exists()
    own = next(each for each in found["platforms"] if each["state"] == "native")
    assert (own["via"], own["entry"], own["owner"]) == ("native", None, None)


def test_ensure(served: Serving) -> None:
    found = document(served, "ensure", "linux/arm64", "linux/nosuch", "--json", status=3)
    hold("ensure", found)
    worked, failed = found["results"]
    assert worked["ok"] and worked["status"]["state"] == "ready"
    assert not failed["ok"] and "linux/arm64" in failed["hint"]


def test_check(served: Serving) -> None:
    found = document(served, "check", "--json")
    hold("check", found)
    assert {"linux/arm64", "linux/riscv64"} <= {each["platform"] for each in found["results"]}
    assert all(each["ok"] for each in found["results"])


def test_events(served: Serving) -> None:
    hold("events", document(served, "events", "--json"))


def test_run(served: Serving, native: Path) -> None:
    done = served.maid("run", "--rootfs", native, "--json", "--", "/bin/sh", "-c", "echo x; exit 3")
    assert done.returncode == 3
    found = json.loads(done.stdout)
    hold("run", found)
    assert (found["outcome"], found["status"], found["via"]) == ("exited", 3, "native")
    assert done.stderr == "x\n"


def test_a_run_that_fails(served: Serving, tmp_path: Path) -> None:
    done = served.maid("run", "--rootfs", tmp_path / "no", "--json", "--", "/bin/true")
    assert done.returncode == 125
    found = json.loads(done.stdout)
    assert (found["outcome"], found["status"]) == ("failed", 125)
    assert found["error"] in done.stderr


def without_tools(result: dict[str, Any]) -> None:
    """Take away the tools' names, which are keys too."""
    assert all(isinstance(count, int) for count in result["native"].values())
    result["native"] = {}


def test_proofs_and_profiles(foreign_tree: Path, storing: Storing) -> None:
    native = f"[ ! -e /dev/.maid-log ] || {writing(record('n'))}"
    script = f"{native}; cat /proc/sys/kernel/random/uuid > /a; [ -e /dev/.maid ] || touch /b"
    step = ("--rootfs", str(foreign_tree), "--json", "--", "/bin/sh", "-c", script)
    done = storing.maid("accel", "verify", *step)
    assert done.returncode == 1, done.stderr
    found = json.loads(done.stdout)
    for run in ("accelerated", "plain"):
        without_tools(found[run])
    hold("accel verify --rootfs", found)
    done = storing.maid("accel", "profile", *step)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    without_tools(found["result"])
    hold("accel profile", found)


@pytest.fixture(scope="module")
def storing() -> Iterator[Storing]:
    with Storing('[emulation]\nplatforms = ["linux/arm64"]\n') as made:
        made.name({ID: "cc1"})
        made.ready()
        yield made.start()


@pytest.fixture(scope="module")
def foreign_tree(storing: Storing) -> Path:
    return copy(rootfs("busybox-arm64"), storing.directory / "arm64")


def test_the_store(tmp_path: Path) -> None:
    state = tmp_path / "state"
    with Serving(state=str(state)) as served:
        served.start()
        store = Store(state / "store", state / "acceleration")
        publish(store, "abcde", {"xz": "xz-utils"})
        found = document(served, "accel", "list", "--json")
        summary = {f"store.{name}" for name in found["summary"]}
        assert summary == {name for name in documented("status") if name.startswith("store.")}
        found["summary"] = {}
        hold("accel list", found)
        (store.root / "abcde/bin/xz").write_text("other")
        hold("accel verify", document(served, "accel", "verify", "--json", status=1))
        publish(store, "abcde", {"xz": "xz-utils"})
        hold("accel prune", document(served, "accel", "prune", "--size", "0", "--json"))


def test_adding_to_the_store(tmp_path: Path) -> None:
    """From a root file system of this machine's, so that nothing is fetched."""
    with Serving(state=str(tmp_path / "state")) as served:
        served.start()
        roots = (
            *("--rootfs", rootfs("debian-13-arm64")),
            *("--native-root", rootfs("debian-13-engines")),
        )
        first = served.maid("accel", "add", *roots)
        assert first.returncode == 0, first.stderr
        assert first.stdout.endswith(": added\n")
        assert first.stderr.count("\n") > 1  # what it is doing, a line each
        done = served.maid("accel", "add", *roots, "--json")
        found = json.loads(done.stdout)
        hold("accel add", found)
        (added,) = found["added"]
        assert not added["new"] and added["tools"] > 50
        assert done.stderr == ""


def test_the_doctor_looks_at_the_socket_that_was_asked(served: Serving, tmp_path: Path) -> None:
    """By the option or by the variable, whether a daemon answers there or not."""
    asked = served.maid("doctor", "--json")
    found = {each["subject"]: each["message"] for each in json.loads(asked.stdout)["findings"]}
    assert found["socket"] == f"a daemon listens at {served.socket}"
    nowhere = tmp_path / "nowhere"
    asked = subprocess.run(
        [MAID, "doctor", "--json"],
        env={**environment(), "MAID_SOCKET": str(nowhere)},
        stdout=subprocess.PIPE,
        timeout=60,
        check=False,
    )
    found = {each["subject"]: each["message"] for each in json.loads(asked.stdout)["findings"]}
    assert found["socket"] == f"{nowhere} is not there: no daemon can be asked"


def test_doctor(served: Serving) -> None:
    done = served.maid("doctor", "--json")
    found = json.loads(done.stdout)
    hold("doctor", found)
    problems = [each for each in found["findings"] if each["level"] == "problem"]
    assert done.returncode == bool(problems)


def test_release() -> None:
    with Serving() as served:
        served.start()
        found = document(served, "release", "--json")
        hold("release", found)
        assert "qemu-aarch64" in found["removed"]
        assert document(served, "release", "--json") == {"removed": []}
