"""units/examples/ci-job: an ordinary user of a CI runner builds through the socket."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from container import Machine, booted

EXAMPLE = "/usr/share/doc/maid/examples/ci-job"
PLACE = "/var/lib/ci-job"


@pytest.fixture
def machine(other_tree: Path) -> Iterator[Machine]:
    """A machine with maid enabled and the account `runner`, in group maid, with ids of its own."""
    with booted(other_tree) as made:
        made.output("systemctl", "enable", "--now", "maid")
        made.output("useradd", "--system", "--groups", "maid", "runner")
        for file in ("/etc/subuid", "/etc/subgid"):
            made.write(file, "runner:20000:20000\n")  # the container has 65536
        # As a machine's own disk would be: on the container's root, an overlay, no other can lie.
        made.output("mkdir", PLACE)
        made.output("mount", "-t", "tmpfs", "tmpfs", PLACE)
        made.output("sh", "-c", "chmod a+r /opt/busybox-*/etc/*")
        made.output("cp", f"{EXAMPLE}/ci-job.service", "/etc/systemd/system/")
        made.output("systemctl", "daemon-reload")
        yield made


def test_an_ordinary_user_runs_steps_and_builds_an_image_for_two_platforms(
    machine: Machine,
) -> None:
    machine.output("systemctl", "start", "ci-job", timeout=180)
    assert machine.show("maid-ready.target", "ActiveState") == "active"
    for property in ("Requires", "After"):
        assert "maid-ready.target" in machine.show("ci-job", property)
    owned = machine.output(
        "find", PLACE, "-maxdepth", "1", "-name", "built-for-*", "-printf", "%u %f\n"
    )
    assert sorted(owned.splitlines()) == ["runner built-for-amd64", "runner built-for-arm64"]
    assert machine.output("cat", f"{PLACE}/built-for-arm64") == "aarch64"
    assert machine.output("cat", f"{PLACE}/built-for-amd64") == "x86_64"
    told = machine.output("maid", "index", "inspect", f"oci:{PLACE}/image:1.0", "--json")
    assert {"linux/amd64", "linux/arm64"} <= set(json.dumps(json.loads(told)).split('"'))
    # Nothing of it belongs to root, and the user may not do what only root may.
    assert machine.output("find", PLACE, "-user", "root", "-not", "-path", PLACE) == ""
    user = ["setpriv", "--reuid=runner", "--regid=runner", "--init-groups"]
    assert machine.run(*user, "maid", "release").returncode != 0
    assert machine.status()["ready"] is True
