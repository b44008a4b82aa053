"""units/kubernetes/daemonset.yaml: its fields are right, and what it starts does on a node what it
says.

The node is a user namespace with mounts and processes of its own, in which no table is mounted; a
pod is a mount namespace in it, as a container runtime makes one.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from daemons import MAID, REPOSITORY, environment, rootfs

from maid.config import load

MANIFEST = REPOSITORY / "units/kubernetes/daemonset.yaml"
DOCUMENTS = {each["kind"]: each for each in yaml.safe_load_all(MANIFEST.read_text())}
POD: dict[str, Any] = DOCUMENTS["DaemonSet"]["spec"]["template"]["spec"]
FIRST, MAIN = POD["initContainers"][0], POD["containers"][0]
TOML: str = DOCUMENTS["ConfigMap"]["data"]["maid.toml"]


# The manifest -------------------------------------------------------------------------------------


def test_volumes_are_defined_and_used() -> None:
    defined = {volume["name"] for volume in POD["volumes"]}
    used = {mount["name"] for each in (FIRST, MAIN) for mount in each["volumeMounts"]}
    assert used == defined


def test_nothing_is_mounted_below_a_containers_own_proc() -> None:
    """runc refuses such a container."""
    for container in (FIRST, MAIN):
        for mount in container["volumeMounts"]:
            assert not mount["mountPath"].startswith("/proc")


def test_pods_are_found_by_their_labels_in_their_namespace() -> None:
    labels = DOCUMENTS["DaemonSet"]["spec"]["selector"]["matchLabels"]
    assert (
        labels.items() <= DOCUMENTS["DaemonSet"]["spec"]["template"]["metadata"]["labels"].items()
    )
    name = DOCUMENTS["Namespace"]["metadata"]["name"]
    assert {DOCUMENTS[kind]["metadata"]["namespace"] for kind in ("ConfigMap", "DaemonSet")} == {
        name
    }


def test_both_containers_are_of_one_image_that_the_pages_name() -> None:
    assert FIRST["image"] == MAIN["image"]
    assert f"-t {MAIN['image']}" in (REPOSITORY / "docs/operations.md").read_text()
    assert f"-t {MAIN['image']}" in (REPOSITORY / "units/kubernetes/Containerfile").read_text()


def test_its_rights_are_those_that_registering_takes() -> None:
    assert MAIN["securityContext"] == {"privileged": True}
    assert POD.get("hostUsers", True) is True  # else the table is the pod's own
    assert POD["hostPID"] is True
    assert "hostNetwork" not in POD and POD["automountServiceAccountToken"] is False
    enforce = DOCUMENTS["Namespace"]["metadata"]["labels"]["pod-security.kubernetes.io/enforce"]
    assert enforce == "privileged"


def test_what_the_next_pod_must_know_is_on_the_node(tmp_path: Path) -> None:
    """The directories of the configuration are volumes of the node's, at the same path."""
    (tmp_path / "maid.toml").write_text(TOML)
    config = load(tmp_path / "maid.toml")
    on_node = {
        volume["name"]: volume["hostPath"]["path"]
        for volume in POD["volumes"]
        if "hostPath" in volume
    }
    for directory in (config.paths.runtime, config.paths.state):
        assert any(
            mount["mountPath"] == str(directory) == on_node.get(mount["name"])
            for mount in MAIN["volumeMounts"]
        )
    assert config.socket.group == "root"
    assert config.emulation.ready and set(config.emulation.ready) <= set(config.emulation.platforms)


# A node -------------------------------------------------------------------------------------------

NAMESPACES = ("--user", "--map-root-user", "--mount", "--pid")

NODE = r"""
set -eu
# Without a /proc of its own this could write to the machine's table.
mount -t proc proc /proc
! test -e /proc/sys/fs/binfmt_misc/register
mount --make-rshared /
mkdir -p "$work"/{run,state,etc,node}
mount --rbind /proc/sys/fs "$work/node"
arm64() { "$busybox" true; }
! arm64 2>/dev/null

pod() { # a container of the DaemonSet: mounts of its own, /run/maid and /var/lib/maid of the node
    exec unshare --mount --propagation private sh -euc '
        mount -t proc proc /proc
        for each in run/maid:run var/lib/maid:state etc/maid:etc; do
            mkdir -p "/${each%%:*}"
            mount --bind "$work/${each##*:}" "/${each%%:*}"
        done
        exec "$@"' pod "$@"
}
table() { unshare --mount --propagation unchanged sh -ec "$first"; }
start() {
    pod "$maid" daemon --scope host 2>>"$work/log" &
    for _ in $(seq 300); do
        ! [ -S "$work/run/io.maid" ] || ! ask metrics >/dev/null 2>&1 || return 0
        sleep 0.1
    done
    cat "$work/log"; return 1
}
ask() { MAID_SOCKET="$work/run/io.maid" "$maid" "$@"; }

table                                             # the first container
test -e /proc/sys/fs/binfmt_misc/register         # has mounted it on the node
start
ask ensure --configured
arm64                                             # on the node
grep -q . /proc/sys/fs/binfmt_misc/qemu-aarch64
! grep "does not see" "$work/log"
echo -1 >/proc/sys/fs/binfmt_misc/qemu-aarch64    # another tool of the node's
for _ in $(seq 100); do ! arm64 2>/dev/null || break; sleep 0.05; done
arm64                                             # healed

kill -9 $!; wait $! 2>/dev/null || true           # the pod is gone, its mounts too
arm64
table                                             # the next one
start
ask status --json >"$work/status.json"
ask release
! arm64 2>/dev/null
kill $!; wait $! 2>/dev/null || true
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="a node's root is root")
def test_a_nodes_table_is_kept_from_a_pod_and_outlives_it(tmp_path: Path) -> None:
    work = tmp_path / "node"
    (work / "etc").mkdir(parents=True)
    (work / "etc/maid.toml").write_text(TOML)
    busybox = tmp_path / "busybox"
    shutil.copy(rootfs("busybox-arm64") / "bin/busybox", busybox)
    first = FIRST["command"]
    assert first[:2] == ["/bin/sh", "-ec"]
    done = subprocess.run(
        ["unshare", *NAMESPACES, "--fork", "--kill-child", "bash", "-c", NODE],
        env=environment()
        | {
            "work": str(work),
            "maid": str(MAID),
            "busybox": str(busybox),
            "first": first[2].replace("/node", f"{work}/node"),
        },
        capture_output=True,
        text=True,
        timeout=120,
    )
    log = (work / "log").read_text() if (work / "log").exists() else ""
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{log}"
    status = json.loads((work / "status.json").read_text())
    arm64 = next(each for each in status["platforms"] if each["platform"] == "linux/arm64")
    # The second pod knows what the first one registered.
    assert (arm64["owner"], arm64["state"], arm64["entry"]) == ("maid", "ready", "qemu-aarch64")
