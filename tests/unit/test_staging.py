"""What grows gets its name when it is whole; what was left behind goes, what lives stays."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from maid.errors import MaidError, UsageError
from maid.images.staging import remove, require_free, staging, sweep, whole


def names(directory: Path) -> list[str]:
    return sorted(each.name for each in directory.iterdir())


def test_it_is_gone_afterwards(tmp_path: Path) -> None:
    with staging(tmp_path, "x-") as path:
        (path / "file").write_text("")
        assert path.stat().st_mode & 0o777 == 0o700
        assert names(tmp_path) == [path.name]
    with pytest.raises(RuntimeError), staging(tmp_path, "x-"):
        raise RuntimeError
    assert names(tmp_path) == []


def test_what_a_killed_process_left_goes_and_what_lives_stays(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from maid.images.staging import staging\n"
        "with staging(Path(sys.argv[1]), 'x-') as path: os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path], check=False)
    (left,) = names(tmp_path)
    (tmp_path / "x-file").write_text("")
    (tmp_path / "other").mkdir()
    with staging(tmp_path, "x-") as one:
        assert left not in names(tmp_path)
        with staging(tmp_path, "x-") as two:
            assert {one.name, two.name, "x-file", "other"} == set(names(tmp_path))
    assert names(tmp_path) == ["other", "x-file"]


def test_no_link_is_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "file").write_text("")
    (tmp_path / "x-link").symlink_to(victim)
    inside = tmp_path / "x-dir"
    inside.mkdir()
    (inside / "link").symlink_to(victim)
    sweep(tmp_path, "x-")
    assert names(tmp_path) == ["victim", "x-link"]
    assert names(victim) == ["file"]


def test_a_prefix_is_no_pattern(tmp_path: Path) -> None:
    (tmp_path / "ab.partial-1").mkdir()
    sweep(tmp_path, "[a]*.partial-")
    assert names(tmp_path) == ["ab.partial-1"]


def test_directories_that_nobody_may_enter_are_removed(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from maid.images.staging import remove\n"
        "remove(Path(sys.argv[1]))"
    )
    top = tmp_path / "top"
    for mode in (0o000, 0o500, 0o300):
        directory = top / f"{mode:o}"
        (directory / "below").mkdir(parents=True)
        (directory / "below/file").write_text("")
        directory.chmod(mode)
    if os.geteuid() != 0:
        remove(top)
    else:
        # Root may enter everything: as another user, with all of it theirs.
        subprocess.run(["chown", "-R", "65534:65534", tmp_path], check=True)
        for above in (tmp_path, *tmp_path.parents[:2]):
            above.chmod(0o755)
        user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
        done = subprocess.run([*user, sys.executable, "-c", code, top], check=False)
        if done.returncode:
            pytest.skip("another user cannot read the checkout")
    assert not top.exists()


def test_what_is_whole_has_its_name(tmp_path: Path) -> None:
    with whole(tmp_path / "a/tree") as grown:
        (grown / "inner").mkdir(parents=True)
        assert names(tmp_path / "a") == [grown.parent.name]
        assert grown.parent.name.startswith("tree.partial-")
    assert names(tmp_path / "a") == ["tree"]
    with whole(tmp_path / "file") as grown:
        grown.write_text("new")
    assert (tmp_path / "file").read_text() == "new"


def test_what_fails_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    with pytest.raises(RuntimeError), whole(tmp_path / "file") as grown:
        grown.write_text("new")
        raise RuntimeError
    assert (tmp_path / "file").read_text() == "old"
    assert names(tmp_path) == ["file"]


def test_a_directory_with_something_in_it_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "tree/inner").mkdir(parents=True)
    with (
        pytest.raises(MaidError, match="tree cannot be written: Directory not empty"),
        whole(tmp_path / "tree") as grown,
    ):
        grown.mkdir()
    assert names(tmp_path) == ["tree"]
    (tmp_path / "tree/inner").rmdir()
    with whole(tmp_path / "tree") as grown:
        grown.mkdir()
        (grown / "new").write_text("")
    assert names(tmp_path / "tree") == ["new"]


def test_where_something_is_is_not_free(tmp_path: Path) -> None:
    require_free(tmp_path)
    require_free(tmp_path / "new")
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is not empty"):
        require_free(tmp_path)
    with pytest.raises(UsageError, match="no directory"):
        require_free(tmp_path / "file")
