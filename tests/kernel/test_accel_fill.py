"""The store is filled for a root file system that is seen, and whatever prevents it is said once,
while steps run under QEMU as ever."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from accelerated import CONFIG, STATE, daemon
from daemons import Daemon, rootfs, until
from stepping import copy, run

from maid.acceleration.store import Store
from maid.errors import StepRefused

GZIP = ("gzip", "--version")
DEBIAN = "debian-13-arm64"

SMALL = CONFIG + 'tools = ["gzip", "readlink"]\n'
"""For stores of a test's own: filled in a few seconds."""


@pytest.fixture(scope="module")
def filled() -> Iterator[Daemon]:
    """A daemon whose store has what the tree needs."""
    with daemon() as made:
        made.start()
        assert run(made, rootfs(DEBIAN), *GZIP, require_acceleration=True).status == 0
        yield made


@pytest.fixture
def empty() -> Iterator[Path]:
    """A directory for a daemon's state whose copies of QEMU have short paths: the kernel takes 127
    bytes, which pytest's own directories nearly use up."""
    with tempfile.TemporaryDirectory(prefix="maid-test-") as directory:
        Path(directory).chmod(0o755)
        yield Path(directory)


@pytest.fixture
def state(empty: Path, filled: Daemon) -> Path:
    """The state of a daemon that has fetched packages, but has no store."""
    shutil.copytree(STATE / "acceleration", empty / "acceleration", symlinks=True)
    return empty


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return copy(rootfs(DEBIAN), tmp_path / "tree")


def set_version(tree: Path, package: str, version: str) -> None:
    status = tree / "var/lib/dpkg/status"
    paragraphs = status.read_text().split("\n\n")
    for index, paragraph in enumerate(paragraphs):
        if paragraph.startswith(f"Package: {package}\n"):
            lines = paragraph.split("\n")
            changed = [f"Version: {version}" if x.startswith("Version: ") else x for x in lines]
            paragraphs[index] = "\n".join(changed)
    status.write_text("\n\n".join(paragraphs))


def refusal(daemon: Daemon, tree: Path) -> str:
    """Why a step that must be accelerated does not run. Nothing of it may have run."""
    done = run(daemon, tree, "touch", "/ran", require_acceleration=True)
    assert isinstance(done.refused, StepRefused), done
    assert not (tree / "ran").exists()
    return str(done.refused)


def test_a_step_in_a_filled_store_s_release_runs_natively(filled: Daemon) -> None:
    done = run(filled, rootfs(DEBIAN), *GZIP)
    assert done.result["native"] == {"gzip": 1}
    assert done.result["emulated"] == 0


def test_without_acceleration_nothing_does(filled: Daemon) -> None:
    done = run(filled, rootfs(DEBIAN), *GZIP, accelerate=False)
    assert done.status == 0
    assert done.result["native"] == {}


@pytest.mark.parametrize(
    ("path", "content", "reason"),
    [
        ("etc/os-release", "ID=alpine\nVERSION_ID=3\n", "alpine is not a distribution"),
        ("etc/os-release", "", "names no release"),
        ("var/lib/dpkg/status", "", "names no architecture"),
        ("var/lib/dpkg/status", None, "no package database"),
    ],
)
def test_a_root_file_system_of_another_kind_stays_emulated_and_says_why(
    filled: Daemon, tree: Path, path: str, content: str | None, reason: str
) -> None:
    (tree / path).unlink()
    if content is not None:
        (tree / path).write_text(content)
    assert reason in refusal(filled, tree)
    assert run(filled, tree, *GZIP).status == 0


def test_versions_the_archive_does_not_have_stay_emulated(filled: Daemon, tree: Path) -> None:
    set_version(tree, "gzip", "1.0-1")
    done = run(filled, tree, *GZIP, require_acceleration=True)
    # The others of the release are served; gzip itself is, by its build, the one in the store.
    assert done.status == 0
    listed = filled.client().call("io.maid.Store.Status")
    assert "1.0-1" in str(listed)


def test_without_a_network_a_step_is_emulated_and_the_reason_is_an_event(
    tree: Path, empty: Path
) -> None:
    with Daemon(CONFIG, state=str(empty), prelude=("unshare", "--net")) as lonely:
        lonely.start()
        done = run(lonely, tree, *GZIP, network="none")
        assert (done.status, done.result["native"]) == (0, {})
        assert "package lists of debian trixie cannot be had" in lonely.text()
        assert "cannot be had" in refusal(lonely, tree)
        # Not asked again for each step.
        assert lonely.text().count("fetching native tools") == 1


def test_a_full_disk_leaves_no_half_set(state: Path, tree: Path) -> None:
    """The store on a file system of 2 MiB: its sets do not fit."""
    inside = 'mount -t tmpfs -o size=2m,mode=755 full "$0" && exec "$@"'
    (state / "store").mkdir(mode=0o755)
    prelude = ("unshare", "--mount", "sh", "-c", inside, str(state / "store"))
    with Daemon(SMALL, state=str(state), prelude=prelude) as cramped:
        cramped.start()
        assert "No space left" in refusal(cramped, tree)
        done = run(cramped, tree, *GZIP)
        assert (done.status, done.result["native"]) == (0, {})
        status = cramped.client().call("io.maid.Store.Status")
        store = Path(f"/proc/{cramped.pid}/root{state}/store")
        assert sorted(path.name for path in store.iterdir()) == ["emulate", "id"], status
        assert not list((store / "id").iterdir())


def test_a_tampered_set_is_found_and_not_used_again(state: Path, tree: Path) -> None:
    with Daemon(SMALL, state=str(state)) as made:
        made.start()
        assert run(made, tree, *GZIP).result["native"] == {"gzip": 1}
        # Not through the link `emulate`, which leads to the machine's own root.
        (program,) = (state / "store").glob("?????/bin/*/gzip")
        program.write_bytes(b"#!/bin/sh\necho tampered\n")
        done = made.maid("accel", "verify")
        assert done.returncode == 1
        assert "gzip" in done.stdout + done.stderr
        assert not program.exists()
        emulated = run(made, tree, *GZIP)
        # It is fetched again for the step, as the configuration says.
        assert "tampered" not in emulated.stdout
        assert Store(state / "store", state / "acceleration").verify() == []


def test_a_store_that_grows_is_used_by_a_running_step(state: Path, tree: Path) -> None:
    config = SMALL.replace('"wait"', '"auto"')
    script = """
    for i in $(seq 600); do
        case $(readlink /proc/self/exe) in /dev/.maid/*) echo $i; exit 0;; esac
        sleep 0.1
    done
    exit 1
    """
    with Daemon(config, state=str(state)) as made:
        made.start()
        done = run(made, tree, "/bin/sh", "-c", script)
        assert done.status == 0, made.text()
        assert int(done.stdout) > 1
        assert done.result["native"]["readlink"] == 1
        assert done.result["emulated"] > 1


def test_an_upgraded_tool_is_emulated_until_the_store_knows_it(
    filled: Daemon, tree: Path, tmp_path: Path
) -> None:
    """dpkg renames a new program over one that is running natively; the new build has no record."""
    package = tmp_path / "package"
    (package / "usr/bin").mkdir(parents=True)
    gzip = package / "usr/bin/gzip"
    shutil.copy2(tree / "usr/bin/gzip", gzip)
    data = gzip.read_bytes()
    at = data.index(b"GNU\0", data.index(b"\x03\0\0\0GNU\0") - 8) + 4
    gzip.write_bytes(data[:at] + bytes(20) + data[at + 20 :])
    (package / "DEBIAN").mkdir()
    (package / "DEBIAN/control").write_text(
        "Package: gzip\nVersion: 99\nArchitecture: arm64\nMaintainer: m <m@m>\nDescription: d\n"
    )
    subprocess.run(
        ["dpkg-deb", "--root-owner-group", "--build", package, tree / "gzip.deb"],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    script = """
    head -c 100000 /dev/zero | gzip -nc | md5sum
    dpkg -i --force-all /gzip.deb >/dev/null || exit 9
    head -c 100000 /dev/zero | gzip -nc | md5sum
    dpkg-query -W -f '${Version}\\n' gzip
    """
    done = run(filled, tree, "/bin/sh", "-c", script, require_acceleration=True)
    assert done.status == 0, done.stderr
    before, after, version = done.stdout.splitlines()
    assert before == after
    assert version == "99"
    assert done.result["native"]["gzip"] == 1
    assert done.result["emulated"] >= 1


def test_an_edited_program_that_keeps_its_build_id_is_emulated(filled: Daemon, tree: Path) -> None:
    with (tree / "usr/bin/gzip").open("ab") as program:
        program.write(b"payload")
    done = run(filled, tree, *GZIP, require_acceleration=True)
    assert (done.status, done.result["native"], done.result["emulated"]) == (0, {}, 1)


def test_nothing_of_the_store_stays_in_the_root_file_system(filled: Daemon, tree: Path) -> None:
    before = sorted(str(path) for path in (tree / "dev").rglob("*"))
    assert run(filled, tree, *GZIP).status == 0
    assert sorted(str(path) for path in (tree / "dev").rglob("*")) == before


def test_the_store_cannot_be_written_in_a_step(filled: Daemon, tree: Path) -> None:
    script = """
    touch /dev/.maid/x || rm -r /dev/.maid/id || chmod 777 /dev/.maid ||
        mount -o remount,rw /dev/.maid
    echo $?
    """
    before = sorted((STATE / "store").iterdir())
    assert run(filled, tree, "/bin/sh", "-c", script).lines[-1] != "0"
    assert sorted((STATE / "store").iterdir()) == before
    assert (STATE / "store").stat().st_mode & 0o777 == 0o755


def test_a_filling_ends_with_the_daemon(state: Path, tree: Path) -> None:
    config = SMALL.replace('"wait"', '"auto"')
    with Daemon(config, state=str(state)) as made:
        made.start()
        run(made, tree, *GZIP)
        assert "fetching native tools" in made.text()
        children = Path(f"/proc/{made.pid}/task/{made.pid}/children").read_text().split()
        made.stop()
        assert until(lambda: not any(Path(f"/proc/{child}").exists() for child in children))
