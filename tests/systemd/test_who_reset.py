"""Under systemd, an event of a repair says which unit has just emptied the table."""

from container import Machine, eventually

OWN = '[emulation]\nprefer = "own"\n'


def test_a_restart_of_systemd_binfmt_is_named_by_what_it_undid(machine: Machine) -> None:
    machine.enable(OWN)
    before = machine.output("maid", "events")
    assert "healed" not in before
    machine.output("systemctl", "restart", "systemd-binfmt")

    def healed() -> list[str]:
        lines = machine.output("maid", "events").splitlines()
        return [line for line in lines if "healed" in line and "systemd-binfmt" in line]

    eventually("a repair names systemd-binfmt", lambda: bool(healed()))
    assert "systemd-binfmt.service was started" in healed()[0], healed()
    journal = machine.output("journalctl", "-q", "--no-pager", "MAID_EVENT=healed")
    assert "systemd-binfmt.service was started" in journal
