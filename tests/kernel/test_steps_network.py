"""The network of a step: none with loopback up, or the machine's."""

import os
import socket
import threading
from pathlib import Path

import pytest
from daemons import Daemon
from stepping import read_until, run, running, shell

from maid.errors import StepRefused

CONNECT = """
nc -l -p 4711 > /tmp/got & server=$!
for i in 1 2 3 4 5 6 7 8 9 10; do
    echo hello | nc 127.0.0.1 4711 && break
    sleep 0.1
done
wait $server; cat /tmp/got
"""


def test_within_a_step_without_network_a_connection_over_loopback_works(
    daemon: Daemon, native: Path
) -> None:
    answers = []
    for _ in range(3):  # nc may have closed before the other one has read
        ran = shell(daemon, native, CONNECT, network="none", tmpfs=["/tmp"])
        answers += ran.stdout.splitlines()[-1:]
    assert "hello" in answers


def test_without_network_there_is_no_interface_but_loopback(daemon: Daemon, native: Path) -> None:
    script = "tail -n +3 /proc/net/dev | cut -d: -f1; ls /sys/class/net; cat /proc/net/route"
    names = shell(daemon, native, script, network="none").stdout.split()
    assert names[:2] == ["lo", "lo"]
    assert names[2:3] in ([], ["Iface"])


def test_without_network_the_machine_cannot_be_reached(daemon: Daemon, native: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=lambda: server.accept()[0].close(), daemon=True).start()
        port = server.getsockname()[1]
        script = f"nc -w 2 127.0.0.1 {port} < /dev/null"
        assert shell(daemon, native, script, network="none").status != 0
        assert shell(daemon, native, script, network="host").status == 0


def test_two_steps_do_not_share_a_network(daemon: Daemon, native: Path) -> None:
    with running(daemon, native, "nc -l -p 4712 & echo up; wait", network="none") as (_, _, output):
        read_until(output, b"up")
        ran = shell(daemon, native, "nc -w 1 127.0.0.1 4712 < /dev/null", network="none")
        assert ran.status != 0
        one = run(daemon, native, "/bin/readlink", "/proc/self/ns/net", network="none").lines
        two = run(daemon, native, "/bin/readlink", "/proc/self/ns/net", network="none").lines
        assert one != two != [os.readlink("/proc/self/ns/net")] != one


def test_host_is_the_machines_network(daemon: Daemon, native: Path) -> None:
    ran = run(daemon, native, "/bin/readlink", "/proc/self/ns/net", network="host")
    assert ran.lines == [os.readlink("/proc/self/ns/net")]


def test_the_steps_root_owns_its_network(daemon: Daemon, native: Path) -> None:
    """So that sysfs may be mounted in it; changing it needs a capability that no step has."""
    ran = shell(daemon, native, "ip link set lo down", network="none")
    assert ran.status != 0


@pytest.mark.parametrize("network", ["bridge", "container:x"])
def test_another_network_is_refused(daemon: Daemon, native: Path, network: str) -> None:
    ran = shell(daemon, native, "true", network=network)
    assert isinstance(ran.refused, StepRefused)
    assert "host or none" in ran.refused.hint


def test_a_foreign_step_without_network(daemon: Daemon, foreign: Path) -> None:
    ran = shell(daemon, foreign, CONNECT, network="none", tmpfs=["/tmp"])
    assert ran.stdout.splitlines()[-1] == "hello"
