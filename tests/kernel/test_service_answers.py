"""What the service tells: descriptions, events, changes, metrics."""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemons import REPOSITORY, until
from prometheus_client.parser import text_string_to_metric_families
from serving import Serving, message, read_message

from maid.client import Client
from maid.service.describe import INTERFACES, describe
from maid.service.events import KEPT, QUEUED, Event, Events

NAMES = [interface.name for interface in INTERFACES]


@pytest.fixture(scope="module")
def daemon() -> Iterator[Serving]:
    with Serving() as made:
        yield made.start()


# Descriptions -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_the_documents_are_what_the_running_service_tells(daemon: Serving, name: str) -> None:
    reply = daemon.call("org.varlink.service.GetInterfaceDescription", interface=name)
    told = [line.rstrip() for line in reply["parameters"]["description"].splitlines()]
    document = REPOSITORY / "docs" / f"{name}.varlink"
    hint = "python -m maid.service.describe docs"
    assert document.read_text().splitlines() == told, hint


def test_every_interface_is_documented(daemon: Serving, tmp_path: Path) -> None:
    info = daemon.call("org.varlink.service.GetInfo")["parameters"]
    assert info["interfaces"] == sorted([*NAMES, "org.varlink.service"])
    assert info["product"] == "maid"
    assert {file.name for file in describe(tmp_path)} == {
        file.name for file in (REPOSITORY / "docs").glob("*.varlink")
    }


def test_every_method_has_a_comment() -> None:
    for interface in INTERFACES:
        lines = interface.render_interface_description().splitlines()
        for number, line in enumerate(lines):
            if line.startswith(("method ", "error ", "interface ")):
                assert lines[number - 1].startswith("# "), line


@pytest.mark.skipif(
    shutil.which("varlinkctl") is None,
    reason="varlinkctl comes with systemd 255; this one is older",
)
def test_systemds_own_client_understands_it(daemon: Serving) -> None:
    for arguments in (
        ["info", daemon.socket],
        *(["introspect", daemon.socket, name] for name in NAMES),
        ["call", daemon.socket, "io.maid.Manager.Status", "{}"],
    ):
        done = subprocess.run(
            ["varlinkctl", *arguments], capture_output=True, text=True, check=False, timeout=20
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout


# Events -------------------------------------------------------------------------------------------


def test_events_come_numbered_and_end_with_null(daemon: Serving) -> None:
    with Client(str(daemon.socket)) as client:
        replies = list(client.stream("io.maid.Manager.Events"))
        assert replies[-1].get("event") is None
        events = [reply["event"] for reply in replies[:-1]]
        assert [event["sequence"] for event in events] == list(range(1, len(events) + 1))
        assert "started" in {event["kind"] for event in events}
        newest = client.call("io.maid.Manager.Status")["status"]["events"]
        assert newest == events[-1]["sequence"]
        late = list(client.stream("io.maid.Manager.Events", {"since": newest - 1}))
        assert [reply.get("event") for reply in late] == [events[-1], None]


def test_a_follower_gets_each_event_as_it_comes(daemon: Serving) -> None:
    with daemon.connect() as connection:
        connection.sendall(message("io.maid.Manager.Events", more=True, follow=True))
        # Nothing of what was; the subscription stands once the next call is answered.
        assert daemon.answers()
        daemon.call("io.maid.Manager.Reload")
        kinds = []
        while "reloaded" not in kinds:
            reply = read_message(connection)
            assert reply["continues"]
            kinds.append(reply["parameters"]["event"]["kind"])


def test_a_follower_that_is_too_slow_is_told_what_it_missed() -> None:
    async def follow() -> list[Event]:
        events = Events(journal=False)
        stream = events.follow(None)
        first = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        events.emit("first", "", "")
        got = [await first]
        for number in range(QUEUED + 50):
            events.emit("many", "", str(number))
        got += [await anext(stream) for _ in range(QUEUED)]
        await stream.aclose()
        events.emit("unseen", "", "")
        assert len(events.kept()) == KEPT
        return got

    got = asyncio.run(follow())
    assert got[0].kind == "first"
    assert got[1].message == "(50 events were dropped: too slow) 50"
    assert got[-1].message == str(QUEUED + 49)


def test_watch_tells_of_each_change(daemon: Serving) -> None:
    with daemon.connect() as connection:
        connection.sendall(message("io.maid.Emulation.Watch", more=True))

        def state(platform: str) -> str:
            reply = read_message(connection)
            assert reply["continues"]
            found = {each["platform"]: each for each in reply["parameters"]["platforms"]}
            return str(found[platform]["state"])

        assert state("linux/arm64") == "ready"
        daemon.call("io.maid.Manager.Release")
        assert state("linux/arm64") != "ready"
        daemon.call("io.maid.Manager.Reload")
        while state("linux/arm64") != "ready":
            pass


# Metrics ------------------------------------------------------------------------------------------


def test_metrics_are_as_prometheus_has_them(daemon: Serving) -> None:
    text = daemon.call("io.maid.Manager.Metrics")["parameters"]["text"]
    families = {family.name: family for family in text_string_to_metric_families(text)}
    for name, family in families.items():
        assert re.fullmatch(r"(maid|process)_[a-z_]+", name), name
        assert family.documentation and family.type != "unknown", name
        for sample in family.samples:
            if family.type == "counter":
                assert sample.name.endswith("_total"), sample.name
            if "seconds" in name or "bytes" in name:
                assert name.endswith(("_seconds", "_bytes")), name

    def value(name: str, **labels: str) -> float:
        found = [s for f in families.values() for s in f.samples if s.name == name]
        return sum(s.value for s in found if labels.items() <= s.labels.items())

    assert value("maid_ready") == 1
    assert value("maid_platform_executes", platform="linux/arm64", target="aarch64") == 1
    assert value("maid_platform_info", platform="linux/arm64", state="ready", owner="maid") == 1
    assert value("maid_platform_executes", platform="linux/s390x") == 0
    assert 0 < value("maid_probe_last_duration_seconds", target="aarch64") < 60
    assert value("maid_probe_duration_seconds_count", target="aarch64") >= 1
    assert value("maid_registrations_total") >= 2
    assert value("maid_probes_total", result="ok") >= 2
    assert value("maid_events_total", kind="started") == 1
    assert 1 <= value("maid_connections") < 10  # this one, and who has just gone
    assert value("maid_build_info") == 1
    assert value("process_resident_memory_bytes") == pytest.approx(daemon.memory(), rel=0.2)


def test_metrics_count_what_happens(daemon: Serving) -> None:
    def executed() -> float:
        text = daemon.call("io.maid.Manager.Metrics")["parameters"]["text"]
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == "maid_probes_total"
        )

    before = executed()
    daemon.call("io.maid.Emulation.Ensure", platforms=["linux/arm64"])
    assert executed() == before + 1


def test_answers_go_on_while_somebody_waits(daemon: Serving) -> None:
    """A call that takes its time holds up nobody else."""
    with contextlib.ExitStack() as waiting:
        for _ in range(5):
            connection = waiting.enter_context(daemon.connect())
            connection.sendall(
                message("io.maid.Emulation.Ensure", platforms=["linux/s390x"], timeout=60)
            )
        assert until(daemon.answers, 2)
