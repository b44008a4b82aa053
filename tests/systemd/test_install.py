"""scripts/install: what it puts in place, and that it takes all of it away again."""

from __future__ import annotations

import json
from pathlib import Path

from container import Machine, eventually

INSTALL = "/opt/maid-source/scripts/install"


def files_of_maid(machine: Machine) -> list[str]:
    """Everything in the machine that carries maid's name, but for the sources put there to test."""
    found = machine.output(
        *("find", "/", "-xdev", "-name", "*maid*"),
        *(
            "-not",
            "-path",
            "/opt/*",
            "-not",
            "-path",
            "/usr/lib/maid/*",
            "-not",
            "-path",
            "/var/log/*",
        ),
    )
    return sorted(found.splitlines())


def test_the_environment_knows_its_place_and_not_where_it_was_made(tree: Path) -> None:
    for name in ("bin/maid", "pyvenv.cfg"):
        assert str(tree.parent) not in (tree / "usr/lib/maid" / name).read_text()
    assert (tree / "usr/lib/maid/bin/maid").read_text().startswith("#!/usr/lib/maid/bin/python")
    assert (tree / "usr/bin/maid").readlink() == Path("/usr/lib/maid/bin/maid")


def test_shells_complete_the_command(machine: Machine) -> None:
    script = (
        ". /usr/share/bash-completion/completions/maid; COMP_WORDS=(maid st); COMP_CWORD=1;"
        ' _maid_completion maid; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    assert machine.output("bash", "-c", script).split() == ["status"]
    zsh = machine.output("head", "-n1", "/usr/share/zsh/vendor-completions/_maid")
    assert zsh == "#compdef maid"


DOCKER = """\
[Service]
Type=exec
ExecStart=/bin/sleep infinity
"""
"""Stands in for Docker's unit: what matters is the environment that dockerd is started with."""


def engines_files(machine: Machine) -> set[str]:
    """What there is of maid's that other engines read or start."""
    names = machine.output(
        *("find", "/usr/libexec/maid", "/usr/bin/maid-runtime", "/etc/containers"),
        *("/usr/share/containers", "/usr/lib/systemd/system/docker.service.d", "!", "-type", "d"),
    )
    return set(names.split())


def test_engines_find_the_hook_and_the_shim(machine: Machine) -> None:
    assert engines_files(machine) == {
        "/usr/libexec/maid/maid-hook",
        "/usr/libexec/maid/crun",
        "/usr/libexec/maid/runc",
        "/usr/bin/maid-runtime",
        "/etc/containers/containers.conf.d/50-maid.conf",
        "/usr/share/containers/oci/hooks.d/50-maid.json",
        "/usr/lib/systemd/system/docker.service.d/10-maid.conf",
    }
    hook = json.loads(machine.output("cat", "/usr/share/containers/oci/hooks.d/50-maid.json"))
    for program in (hook["hook"]["path"], "/usr/libexec/maid/crun", "/usr/libexec/maid/runc"):
        assert machine.output("test", "-x", program) == ""
    assert machine.run(hook["hook"]["path"], "--verbose").stderr == "maid-hook: there is no store\n"
    assert "crun" in machine.output("/usr/libexec/maid/crun", "--version")


def test_the_store_is_at_the_machine_s_own_dev(machine: Machine) -> None:
    machine.output("mkdir", "-p", "/var/lib/maid/store/id")
    machine.enable('[emulation]\nprefer = "own"\n')
    eventually(
        "it is mounted", lambda: machine.run("mountpoint", "-q", "/dev/.maid").returncode == 0
    )
    numbers = machine.output("stat", "-c%d:%i", "/dev/.maid", "/var/lib/maid/store").split()
    assert numbers[0] == numbers[1]
    assert machine.run("touch", "/dev/.maid/x").returncode != 0
    machine.output("systemctl", "restart", "maid")
    assert machine.run("mountpoint", "-q", "/dev/.maid").returncode == 0
    # A chroot that binds /dev with all that is in it has it, too.
    seen = machine.output(
        *("unshare", "--mount", "sh", "-c"),
        "mkdir -p /tmp/x/dev; mount --rbind /dev /tmp/x/dev; ls /tmp/x/dev/.maid",
    )
    assert seen.split()[:2] == ["emulate", "id"]


def test_docker_s_builds_start_the_shim_and_survive_its_removal(machine: Machine) -> None:
    machine.write("/etc/systemd/system/docker.service", DOCKER)
    machine.output("systemctl", "daemon-reload")
    machine.output("systemctl", "start", "docker")
    pid = machine.show("docker", "MainPID")
    variable = "DOCKER_BUILDKIT_RUNC_COMMAND=/usr/bin/maid-runtime"
    assert variable in machine.output("cat", f"/proc/{pid}/environ").split("\0")
    said = machine.run(INSTALL, "--remove", "--purge", "--no-packages").stderr
    assert "kept: /usr/bin/maid-runtime" in said
    assert files_of_maid(machine) == ["/usr/bin/maid-runtime"]
    assert "crun" in machine.output("/usr/bin/maid-runtime", "--version")
    # Started anew it is Docker as ever, and the second time nothing is left.
    machine.output("systemctl", "restart", "docker")
    pid = machine.show("docker", "MainPID")
    assert variable not in machine.output("cat", f"/proc/{pid}/environ")
    machine.output(INSTALL, "--remove", "--purge", "--no-packages")
    assert files_of_maid(machine) == []


def test_an_administrator_s_runtimes_are_not_overridden(machine: Machine) -> None:
    machine.write("/etc/containers/containers.conf", "[engine.runtimes]\ncrun = []\n")
    # Only the part of the installation that this is about: the whole wants a package index.
    lines = machine.output("cat", INSTALL).split("\nif [[ -n $remove ]]")[0].splitlines()
    script = "\n".join("lib=${0%/*}/lib" if line.startswith("lib=") else line for line in lines)
    machine.write(f"{INSTALL}-part", f"{script}\ninstall_for_engines\n")
    said = machine.run("bash", f"{INSTALL}-part", "--no-packages")
    assert "/etc/containers/containers.conf names runtimes" in said.stderr, said
    assert "/etc/containers/containers.conf.d/50-maid.conf" not in engines_files(machine)


def test_removing_releases_the_entries_and_leaves_only_the_configuration(machine: Machine) -> None:
    foreign = machine.table()
    machine.enable('[emulation]\nprefer = "own"\n')
    assert machine.table() != foreign
    machine.output(INSTALL, "--remove", "--no-packages")
    assert machine.table() == foreign
    assert files_of_maid(machine) == ["/etc/maid", "/etc/maid/maid.toml"]
    assert machine.run("systemctl", "cat", "maid.service").returncode != 0
    assert "/run/maid" not in machine.output("cat", "/proc/self/mountinfo")
    machine.output(INSTALL, "--remove", "--purge")
    assert files_of_maid(machine) == []
    assert machine.run("getent", "group", "maid").returncode == 2
