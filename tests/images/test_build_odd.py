"""Builds whose surroundings are odd: a registry that stops to answer, a signal at a bad moment, an
image with several names, a layout without a tag."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import time
from pathlib import Path

import pytest
from building import Builds, pushing
from daemons import until
from faulty import Fault, Faulty, missing
from places import Place
from registry import Registry

TWO = ("linux/amd64", "linux/arm64")


@pytest.fixture(scope="module")
def builds(place: Place, registry: Registry) -> Builds:
    """A build directory for this module."""
    return Builds(place, registry, place.directory / "review")


def test_a_layout_gets_the_tag_and_keeps_the_others(
    builds: Builds, busybox: str, tmp_path: Path
) -> None:
    for tag in ("1.0", "2.0"):
        context = builds.place.context(f"FROM {busybox}\nLABEL tag={tag}\n")
        options = ("-t", f"app:{tag}", "--output", f"oci:{tmp_path}/out")
        result = builds.json(context, *options)
        assert result["names"] == [f"oci:{tmp_path}/out:{tag}"]
    for tag in ("1.0", "2.0"):
        text = builds.place.run("skopeo", "inspect", f"oci:{tmp_path}/out:{tag}").stdout
        assert json.loads(text)["Labels"]["tag"] == tag


def test_the_name_that_is_asked_for_is_the_one_that_is_used(builds: Builds, busybox: str) -> None:
    """An image with two names: buildah would ask a registry for the one it does not find."""
    base = builds.place.context(f"FROM {busybox}\nRUN echo both >/content\n")
    builds.run(base, "--platform=linux/arm64", "-t", "both:1", "-t", "both:2")
    context = builds.place.context("FROM both:2\nRUN cp /content /copy\n")
    builds.push(context, "review/both", "linux/arm64")
    assert builds.read("review/both", "copy") == "both\n"


def test_a_registry_that_does_not_answer_once_changes_no_later_digest(
    builds: Builds, busybox: str, faulty: Faulty
) -> None:
    base = f"{faulty.address}/{busybox.partition('/')[2]}"
    context = builds.place.context(f"FROM {base}\nRUN echo x >/x\n")
    options = pushing(builds.registry, "review/hiccup", "linux/arm64")
    fixed = {"SOURCE_DATE_EPOCH": "1000000000"}

    def forgotten() -> None:
        """As if nothing of the base's layers had been kept."""
        for each in (builds.root / "layers/blobs/sha256").iterdir():
            each.unlink()

    usual = builds.json(context, *options, env=fixed)
    assert usual["platforms"][0]["warnings"] == []
    layers = builds.registry.document("review/hiccup", "1")["layers"]
    forgotten()
    with faulty.having(missing("GET .*/blobs/")):
        odd = builds.json(context, *options, env=fixed)
    (warning,) = odd["platforms"][0]["warnings"]
    assert base.rpartition(":")[0] in warning and "were compressed here" in warning
    again = builds.json(context, *options, env=fixed)
    assert again["platforms"][0]["warnings"] == []
    assert again["digest"] == usual["digest"]
    assert builds.registry.document("review/hiccup", "1")["layers"] == layers


def started(
    builds: Builds, faulty: Faulty, fault: Fault, context: Path, tag: str
) -> tuple[subprocess.Popen[bytes], contextlib.ExitStack]:
    """A build that has come to the fault."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(faulty.having(fault))
        options = (f"--platform={','.join(TWO)}", f"--tag={faulty.address}/{tag}", "--push")
        process = builds.place.start(
            *("build", "--root", builds.root, *options, context), stderr=subprocess.PIPE
        )
        stack.callback(process.kill)
        assert until(lambda: fault.happened > 0, 120)
        return process, stack.pop_all()
    raise AssertionError


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_layers_are_sent_ends_it_at_once(
    builds: Builds, busybox: str, faulty: Faulty, number: signal.Signals
) -> None:
    text = f"FROM {busybox}\nRUN echo {number} >/a\n"
    fault = Fault("(POST|PUT|PATCH) .*/blobs/", delay=60)
    process, stack = started(builds, faulty, fault, builds.place.context(text), "review/sent:1")
    with stack:
        began = time.monotonic()
        process.send_signal(number)
        _, said = process.communicate(timeout=20)
        assert time.monotonic() - began < 10
    assert process.returncode == 128 + number, said
    assert b"ended; nothing was published" in said and b"Traceback" not in said
    assert builds.registry.tags("review/sent") == []
    assert list((builds.root / "work").iterdir()) == []


def test_a_signal_while_a_tag_is_written_says_where_to_look(
    builds: Builds, busybox: str, faulty: Faulty
) -> None:
    context = builds.place.context(f"FROM {busybox}\nRUN echo tag >/a\n")
    fault = Fault("PUT .*/manifests/1$", delay=60)
    process, stack = started(builds, faulty, fault, context, "review/tag:1")
    with stack:
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=20)
    assert process.returncode == 130, said
    where = f"maid index inspect shows what {faulty.address}/review/tag:1 is now"
    assert where.encode() in said and b"nothing was published" not in said


def test_a_signal_while_a_base_s_layers_are_fetched_ends_it_at_once(
    builds: Builds, busybox: str, faulty: Faulty
) -> None:
    base = f"{faulty.address}/{busybox.partition('/')[2]}"
    context = builds.place.context(f"FROM {base}\nRUN echo fetched >/x\n")
    builds.run(context, "--platform", ",".join(TWO), "--output", f"oci:{builds.root}-out:1")
    for each in (builds.root / "layers/blobs/sha256").iterdir():
        each.unlink()
    fault = Fault("GET .*/blobs/", delay=60)
    process, stack = started(builds, faulty, fault, context, "review/fetched:1")
    with stack:
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=20)
        assert time.monotonic() - began < 10
    assert process.returncode == 143, said
    assert b"ended; nothing was published" in said and b"Traceback" not in said
