"""What can never run as a step is refused before anything of it is made."""

import dataclasses

import pytest

from maid.errors import StepRefused
from maid.platforms import parse
from maid.steps.step import ARGUMENTS_LIMIT, Bind, Step, new_id

STEP = Step(parse("linux/arm64"), ("/bin/true",))


def test_an_ordinary_step_is_taken() -> None:
    dataclasses.replace(
        STEP,
        environment={"A": "", "ü": "€"},
        timeout=31_536_000.0,
        memory=4 << 20,
        cpus=0.01,
        binds=(Bind("/a", True),),
        tmpfs=("/tmp",),
        user=2**32 - 2,
    ).check()


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"command": ()}, "no command"),
        ({"command": ("",)}, "no command"),
        ({"command": ("a\0b",)}, "NUL"),
        ({"command": ("caf\udce9",)}, "not UTF-8"),
        ({"command": ("\ud800",)}, "not UTF-8"),
        ({"command": ("x" * ARGUMENTS_LIMIT,)}, "more than"),
        ({"environment": {"": "x"}}, "environment variable"),
        ({"environment": {"A=B": "x"}}, "environment variable"),
        ({"environment": {"A": "\0"}}, "NUL"),
        ({"environment": {"A": "x" * ARGUMENTS_LIMIT}}, "more than"),
        ({"cwd": "relative"}, "absolute"),
        ({"cwd": "/a/../b"}, "absolute"),
        ({"cwd": "/\udce9"}, "not UTF-8"),
        ({"cwd": "/" + "x" * 5000}, "too long"),
        ({"tmpfs": ("tmp",)}, "absolute"),
        ({"tmpfs": ("/t",) * 65}, "more than 64"),
        ({"binds": (Bind("x"),)}, "absolute"),
        ({"binds": (Bind("/x\0"),)}, "NUL"),
        ({"binds": (Bind("/x"),) * 121}, "more than 120"),
        ({"user": -1}, "no user id"),
        ({"group": 2**32 - 1}, "no group id"),
        ({"timeout": -1.0}, "time limit"),
        ({"timeout": float("nan")}, "time limit"),
        ({"timeout": float("inf")}, "time limit"),
        ({"memory": 1}, "4 MiB"),
        ({"memory": -1}, "4 MiB"),
        ({"memory": 1 << 70}, "4 MiB"),
        ({"cpus": 0.001}, "CPU limit"),
        ({"cpus": float("nan")}, "CPU limit"),
        ({"cpus": float("inf")}, "CPU limit"),
        ({"readonly": True, "overlay": True}, "read-only"),
    ],
)
def test_what_makes_no_sense_is_refused_in_words(changes: dict[str, object], words: str) -> None:
    with pytest.raises(StepRefused, match=words):
        dataclasses.replace(STEP, **changes).check()  # type: ignore[arg-type]


def test_path_and_home_are_there_unless_they_were_given() -> None:
    assert STEP.full_environment()["HOME"] == "/root"
    assert dataclasses.replace(STEP, user=5).full_environment()["HOME"] == "/"
    given = dataclasses.replace(STEP, environment={"PATH": "/x", "HOME": "/y"})
    assert given.full_environment() == {"PATH": "/x", "HOME": "/y"}


def test_ids_are_unique_and_sort_by_time() -> None:
    made = [new_id() for _ in range(1000)]
    assert len(set(made)) == 1000
    times = [int(each.partition("-")[0], 16) for each in made]
    assert times == sorted(times)
