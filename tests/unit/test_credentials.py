"""images/credentials.py: one registry is told a password, and nobody else."""

import base64
import json
import os
import stat
from pathlib import Path

import pytest

from maid.errors import UsageError
from maid.images.credentials import authfile_with


def written(path: str) -> dict[str, dict[str, object]]:
    document: dict[str, dict[str, object]] = json.loads(Path(path).read_text())
    return document


def test_only_the_named_registry_gets_it_and_the_others_stay(tmp_path: Path) -> None:
    own = tmp_path / "auth.json"
    own.write_text(json.dumps({"auths": {"other.example": {"auth": "b3RoZXI="}}}))
    path = authfile_with("me:s:cret", ["one.example"], str(own), {})
    auths = written(path)["auths"]
    assert auths["other.example"] == {"auth": "b3RoZXI="}
    assert auths["one.example"] == {"auth": base64.b64encode(b"me:s:cret").decode()}
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600


def test_a_helper_for_that_registry_does_not_go_before_it(tmp_path: Path) -> None:
    own = tmp_path / "auth.json"
    own.write_text(json.dumps({"credHelpers": {"one.example": "pass", "two.example": "pass"}}))
    found = written(authfile_with("me:x", ["one.example"], str(own), {}))
    assert found["credHelpers"] == {"two.example": "pass"}


def test_the_users_own_files_are_looked_into_in_their_order(tmp_path: Path) -> None:
    for place, token in (("run/containers/auth.json", "first"), (".docker/config.json", "last")):
        file = tmp_path / place
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps({"auths": {"a.example": {"auth": token}, token: {}}}))
    environment = {"HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path / "run")}
    auths = written(authfile_with("me:x", ["one.example"], "", environment))["auths"]
    assert auths["a.example"] == {"auth": "first"}
    assert set(auths) == {"a.example", "first", "last", "one.example"}


@pytest.mark.parametrize("hosts", [[], ["one.example", "two.example"]])
def test_it_is_for_one_registry(hosts: list[str]) -> None:
    with pytest.raises(UsageError, match="for one registry"):
        authfile_with("me:x", hosts, "", {})


@pytest.mark.parametrize("creds", [":x", "", "me"])
def test_what_lacks_a_part_is_refused(creds: str) -> None:
    with pytest.raises(UsageError, match="--creds"):
        authfile_with(creds, ["one.example"], "", {})


@pytest.mark.parametrize("text", ["", "[]", '{"auths": 3}', "{"])
def test_a_file_that_is_none_is_an_error_in_words(tmp_path: Path, text: str) -> None:
    own = tmp_path / "auth.json"
    own.write_text(text)
    with pytest.raises(UsageError, match="cannot be read"):
        authfile_with("me:x", ["one.example"], str(own), {})
