"""A step as an OCI runtime configuration."""

import dataclasses
from typing import Any

import pytest

from maid.binfmt.namespace import IdRange, Mapping
from maid.platforms import parse
from maid.steps.bundle import bundle, points
from maid.steps.step import Bind, Step

STEP = Step(parse("linux/arm64"), ("/bin/sh", "-c", "true"))
MEMBER = Mapping((IdRange(0, 1000, 1),), (IdRange(0, 100, 1), IdRange(1, 200000, 65536)))


def made(step: Step = STEP, **options: Any) -> Any:
    defaults: dict[str, Any] = dict(
        user_namespace=None, mapping=None, own_network=False, resolver=False, terminal_group=True
    )
    return bundle(step, "/run/maid/steps/1", **{**defaults, **options})


def mounts(document: Any) -> dict[str, tuple[str, str, list[str]]]:
    return {m["destination"]: (m["type"], m["source"], m["options"]) for m in document["mounts"]}


def test_the_command_and_its_surroundings() -> None:
    step = dataclasses.replace(STEP, environment={"A": "B"}, cwd="/w", user=3, group=4)
    process = made(step)["process"]
    assert process["args"] == ["/dev/.maid-init", "/bin/sh", "-c", "true"]
    assert "A=B" in process["env"]
    assert process["cwd"] == "/w"
    assert process["user"] == {"uid": 3, "gid": 4, "umask": 0o022}
    assert "rlimits" not in process  # none above the process's own


def test_root_alone_has_capabilities() -> None:
    root, other = (
        made(dataclasses.replace(STEP, user=user))["process"]["capabilities"] for user in (0, 1)
    )
    assert "CAP_CHOWN" in root["effective"]
    assert set(other) == {"bounding"}
    for dangerous in ("CAP_SYS_ADMIN", "CAP_NET_ADMIN", "CAP_SYS_PTRACE", "CAP_SYS_MODULE"):
        assert dangerous not in root["bounding"]


def test_the_instance_is_joined_by_path_with_the_same_maps() -> None:
    linux = made(user_namespace="/run/maid/instances/x/user", mapping=MEMBER)["linux"]
    assert {"type": "user", "path": "/run/maid/instances/x/user"} in linux["namespaces"]
    assert linux["uidMappings"] == [{"containerID": 0, "hostID": 1000, "size": 1}]
    assert linux["gidMappings"][1] == {"containerID": 1, "hostID": 200000, "size": 65536}
    plain = made()["linux"]
    assert "uidMappings" not in plain
    assert {n["type"] for n in plain["namespaces"]} == {"pid", "mount", "ipc", "uts"}


@pytest.mark.parametrize("own", [True, False])
def test_the_runtime_is_started_in_the_network_and_asked_for_none(own: bool) -> None:
    assert "network" not in {n["type"] for n in made(own_network=own)["linux"]["namespaces"]}


def test_sys_is_that_of_the_network_and_read_only() -> None:
    kind, source, options = mounts(made(own_network=True))["/sys"]
    assert (kind, source) == ("sysfs", "sysfs")
    assert "ro" in options
    kind, source, options = mounts(made())["/sys"]
    assert (kind, source) == ("none", "/run/maid/steps/1/sys")
    assert {"rbind", "ro", "nosuid", "nodev", "noexec"} <= set(options)


def test_what_is_dangerous_in_proc_is_masked_or_read_only() -> None:
    linux = made()["linux"]
    assert {"/proc/kcore", "/proc/keys", "/sys/firmware"} <= set(linux["maskedPaths"])
    assert {"/proc/sys", "/proc/sysrq-trigger", "/proc/irq"} <= set(linux["readonlyPaths"])


def test_names_are_resolved_as_the_machine_does_only_in_its_network() -> None:
    assert "/etc/resolv.conf" not in mounts(made(resolver=False))
    assert "/etc/resolv.conf" not in mounts(made(resolver=True, own_network=True))
    assert "ro" in mounts(made(resolver=True))["/etc/resolv.conf"][2]


def test_binds_come_last_and_by_number() -> None:
    step = dataclasses.replace(
        STEP, binds=(Bind("/tmp/x"), Bind("/y", readonly=True)), tmpfs=("/tmp", "/var/cache")
    )
    destinations = [m["destination"] for m in made(step)["mounts"]]
    assert destinations[-4:] == ["/tmp", "/var/cache", "/tmp/x", "/y"]
    found = mounts(made(step))
    assert found["/tmp/x"] == ("none", "/run/maid/steps/1/bind/0", ["rbind"])
    assert found["/y"][1] == "/run/maid/steps/1/bind/1"
    assert "mode=1777" in found["/tmp"][2]
    assert "mode=1777" not in found["/var/cache"][2]


def test_terminals_have_their_group_where_it_is_mapped() -> None:
    assert "gid=5" in mounts(made())["/dev/pts"][2]
    assert "gid=5" not in mounts(made(terminal_group=False))["/dev/pts"][2]


def test_a_read_only_root() -> None:
    assert made(dataclasses.replace(STEP, readonly=True))["root"]["readonly"] is True
    assert made()["root"] == {"path": "rootfs", "readonly": False}


def test_the_native_store_is_mounted_read_only_where_there_is_one() -> None:
    assert "/dev/.maid" not in mounts(made()) and "/dev/.maid-log" not in mounts(made())
    found = mounts(made(store=True))
    kind, source, options = found["/dev/.maid"]
    assert (kind, source) == ("none", "/run/maid/steps/1/store")
    assert {"bind", "ro", "nosuid", "nodev"} == set(options)
    assert found["/dev/.maid-log"][1] == "/run/maid/steps/1/programs/log"
    assert "ro" not in found["/dev/.maid-log"][2]


@pytest.mark.parametrize("user", [0, 1000])
def test_a_profiled_step_may_be_traced_by_its_first_process(user: int) -> None:
    step = dataclasses.replace(STEP, user=user, profile=True)
    process = made(step)["process"]
    assert process["args"][:3] == [
        "/dev/.maid-init",
        "/dev/.maid-profile",
        "/dev/.maid-profile-log",
    ]
    for kind in ("ambient", "inheritable", "permitted", "effective", "bounding"):
        assert "CAP_SYS_PTRACE" in process["capabilities"][kind]
    plain = made(dataclasses.replace(STEP, user=user))["process"]["capabilities"]
    assert not any("CAP_SYS_PTRACE" in names for names in plain.values())
    assert mounts(made(step))["/dev/.maid-profile"][1] == "/run/maid/steps/1/profile"


def test_places_are_needed_for_all_mounts_but_those_within_another() -> None:
    step = dataclasses.replace(
        STEP,
        tmpfs=("/var//tmp/", "/proc/x"),
        binds=(Bind("/b"), Bind("/var/tmp/below"), Bind("/bc"), Bind("/b/etc")),
    )
    found = points(made(step, resolver=True))
    assert found == ["/proc", "/dev", "/sys", "/etc/resolv.conf", "/var/tmp", "/b", "/bc"]
    assert "/etc/resolv.conf" not in points(made(step, resolver=True, own_network=True))
    everything = dataclasses.replace(STEP, tmpfs=("/", "/later"))
    assert points(made(everything))[-1] == "/"
