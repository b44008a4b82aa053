"""maid-runtime with MAID_INIT: maid-init is mounted and starts the command of foreign containers,
and every other byte of config.json is as it was."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bundles import OWN, RUNTIME, Bundle, make_bundle, program
from test_runtime import Shim, changed, env, mounts

from maid import native

INIT = "/dev/.maid-init"


@pytest.fixture
def shim(tmp_path: Path) -> Shim:
    """With a maid-init, and without a store."""
    shim = Shim(tmp_path)
    shim.environment |= {"MAID_INIT": native.path("maid-init"), "MAID_STORE": ""}
    return shim


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return make_bundle(tmp_path / "bundle")


def bound(source: str, destination: str) -> dict[str, Any]:
    return {
        "destination": destination,
        "type": "bind",
        "source": source,
        "options": ["bind", "ro", "nosuid", "nodev"],
    }


def with_init(config: Any, shim: Shim) -> Any:
    """What becomes of a configuration."""
    process = config["process"] | {"args": [INIT, *config["process"]["args"]]}
    mount = bound(shim.environment["MAID_INIT"], INIT)
    return config | {"process": process, "mounts": [*config["mounts"], mount]}


def reversed_members(bundle: Bundle) -> None:
    """The mounts before the process."""
    bundle.write(dict(reversed(bundle.config.items())))


def odd_blanks(bundle: Bundle) -> None:
    text = bundle.file.read_text().replace('"args": [', '"args" :\n[\t ').replace("/bin", "\\/bin")
    bundle.file.write_text(text + "\n\n")


ORDERS: dict[str, Callable[[Bundle], object]] = {
    "as engines write it": lambda bundle: None,
    "mounts before the process": reversed_members,
    "odd blanks and escapes": odd_blanks,
}


@pytest.mark.parametrize("has_store", [False, True])
@pytest.mark.parametrize("name", ORDERS)
def test_every_other_byte_stays(
    shim: Shim, bundle: Bundle, tmp_path: Path, name: str, has_store: bool
) -> None:
    ORDERS[name](bundle)
    text, config = bundle.file.read_text(), bundle.config
    if has_store:
        shim.environment["MAID_STORE"] = str(tmp_path / "store")
        config["mounts"].append(bound(shim.environment["MAID_STORE"], "/dev/.maid"))
    shim("create", "-b", bundle.path, "x")
    assert bundle.config == with_init(config, shim)
    # What was added is taken away again, as it is written.
    new = bundle.file.read_text()
    for added in [*config["mounts"][4:], bound(shim.environment["MAID_INIT"], INIT)]:
        new = new.replace("," + json.dumps(added, separators=(",", ":")), "")
    assert new.replace(f'"{INIT}",', "") == text
    assert list(bundle.files()) == ["config.json"]


def test_without_the_variable_nothing_starts_the_command(shim: Shim, bundle: Bundle) -> None:
    before = bundle.files()
    shim.environment["MAID_INIT"] = ""
    shim("create", "-b", bundle.path, "x")
    del shim.environment["MAID_INIT"]
    shim("create", "-b", bundle.path, "x")
    assert bundle.files() == before


def test_a_second_time_changes_nothing(shim: Shim, bundle: Bundle) -> None:
    shim("create", "-b", bundle.path, "x")
    once = bundle.files()
    shim("create", "-b", bundle.path, "x")
    assert bundle.files() == once


def test_who_switches_acceleration_off_has_it_still(shim: Shim, bundle: Bundle) -> None:
    env("MAID_ACCELERATE=off")(bundle)
    config = bundle.config
    shim("create", "-b", bundle.path, "x")
    assert bundle.config == with_init(config, shim)


LEFT_ALONE: dict[str, Callable[[Bundle], object]] = {
    "own programs": lambda bundle: bundle.install("/bin/sh", program(OWN)),
    "no program": lambda bundle: bundle.change(args=[]),
    "args are a word": lambda bundle: bundle.change(args="sh"),
    "no process": lambda b: b.write({k: v for k, v in b.config.items() if k != "process"}),
    "no mounts": lambda b: b.write({k: v for k, v in b.config.items() if k != "mounts"}),
    "no /dev": mounts(lambda each: each.pop(1)),
    "something there": mounts(lambda each: each.append({"destination": INIT})),
    "no root": changed(root={}),
}


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_bundles_that_are_left_alone(shim: Shim, bundle: Bundle, name: str) -> None:
    LEFT_ALONE[name](bundle)
    before = bundle.files()
    shim("create", "-b", bundle.path, "x")
    assert bundle.files() == before


@pytest.mark.parametrize("kind", ["gone", "a directory", "no program", "relative", "quoted"])
def test_an_init_that_would_not_start_is_left_out(
    shim: Shim, bundle: Bundle, tmp_path: Path, kind: str
) -> None:
    """The container would fail."""
    path = tmp_path / ('"init' if kind == "quoted" else "init")
    if kind == "a directory":
        path.mkdir()
    elif kind != "gone":
        path.write_bytes(Path(native.path("maid-init")).read_bytes())
        path.chmod(0o644 if kind == "no program" else 0o755)
    shim.environment["MAID_INIT"] = os.path.relpath(path) if kind == "relative" else str(path)
    before = bundle.files()
    shim("create", "-b", bundle.path, "x", cwd=os.getcwd())
    assert bundle.files() == before


def test_an_init_where_nothing_can_be_executed_is_left_out(
    shim: Shim, bundle: Bundle, tmp_path: Path
) -> None:
    script = 'mount -t tmpfs -o noexec none "$1" && cp "$MAID_INIT" "$1" && '
    script += 'MAID_INIT=$1/maid-init exec "$2" create -b "$3" x'
    before = bundle.files()
    (tmp_path / "small").mkdir()
    arguments = ["sh", tmp_path / "small", RUNTIME, bundle.path]
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, *arguments], env=shim.environment, check=False
    )
    assert done.returncode == 7
    assert bundle.files() == before


def test_it_says_what_was_done(shim: Shim, bundle: Bundle) -> None:
    shim.environment["MAID_VERBOSE"] = "1"

    def said() -> list[str]:
        command = [shim.program, "create", "-b", bundle.path, "x"]
        done = subprocess.run(command, env=shim.environment, capture_output=True, text=True)
        return done.stderr.splitlines()

    none = "maid-runtime: there is no store"
    assert said() == [none, "maid-runtime: MAID_INIT: starts the command"]
    assert said() == [none, "maid-runtime: MAID_INIT: something is mounted there already"]
    shim.environment["MAID_INIT"] = "/nowhere"
    assert said() == [none, "maid-runtime: MAID_INIT: it is no program"]


@pytest.mark.parametrize("value", [None, ""])
def test_no_store_is_another_wish_than_the_usual_one(
    shim: Shim, bundle: Bundle, value: str | None
) -> None:
    """Where the machine has one at the usual place."""
    script = "mount -t tmpfs none /var/lib && mkdir -p /var/lib/maid/store/id && "
    script += 'exec "$1" create -b "$2" x'
    environment = {k: v for k, v in shim.environment.items() if k != "MAID_STORE"}
    environment |= {} if value is None else {"MAID_STORE": value}
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, "sh", RUNTIME, bundle.path], env=environment
    )
    assert done.returncode == 7
    added = [each["destination"] for each in bundle.config["mounts"][4:]]
    assert added == ([INIT] if value == "" else ["/dev/.maid", INIT])
