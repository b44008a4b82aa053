"""scripts/install: what it puts in place, and that it takes all of it away again."""

from __future__ import annotations

from pathlib import Path

from container import Machine

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
