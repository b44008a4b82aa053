"""What the shim and the hook cost a RUN line: at most 3 ms each, as the issue has it.

Paired: with and without, in turn, so that what else the machine does falls on both. Counted is the
processor's time of the processes, which a busy machine lengthens less than it does the wall's.
"""

import os
import statistics
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from bundles import HOOK, RUNTIME, Bundle, make_bundle, make_store

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make mount namespaces")

ROUNDS = 100
LIMIT = 3.0  # ms
NOTHING = "int main(void) { return 0; }\n"
CALLS = (("state",), ("start",), ("delete",))
"""What buildah calls besides create (facts: create, state, start, delete)."""


@pytest.fixture
def nothing(tmp_path: Path) -> Path:
    """A runtime, or hook, that does nothing: the least that any would cost."""
    (tmp_path / "nothing.c").write_text(NOTHING)
    made = tmp_path / "runc"
    subprocess.run(["cc", "-O2", "-static", "-o", made, tmp_path / "nothing.c"], check=True)
    return made


def milliseconds(argv: list[str | Path], env: dict[str, str], stdin: int) -> float:
    """Processor time of one process, started as an engine does."""
    actions = [(os.POSIX_SPAWN_DUP2, stdin, 0)]
    pid = os.posix_spawn(argv[0], argv, env, file_actions=actions)
    _, status, usage = os.wait4(pid, 0)
    assert status == 0
    return (usage.ru_utime + usage.ru_stime) * 1000


def paired(one: Callable[[], float], other: Callable[[], float]) -> float:
    """The median of how much more `one` takes."""
    return statistics.median(one() - other() for _ in range(ROUNDS))


def test_the_shim_costs_a_run_line_little(tmp_path: Path, nothing: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    text = bundle.file.read_bytes()
    store = make_store(tmp_path / "store")
    env = {"PATH": f"{tmp_path}:/usr/bin", "MAID_STORE": str(store), "MAID_SOCKET": "/nowhere"}
    idle = os.open("/dev/null", os.O_RDONLY)

    def line(program: str | Path) -> Callable[[], float]:
        def run() -> float:
            bundle.file.write_bytes(text)
            create = ("create", "--bundle", str(bundle.path), "name")
            return sum(milliseconds([program, *call], env, idle) for call in (create, *CALLS))

        return run

    more = paired(line(RUNTIME), line(nothing))
    os.close(idle)
    print(f"the shim, create and three other calls: {more:.2f} ms")
    assert more <= LIMIT


INSIDE = 'mount -t tmpfs none "$1/dev"; shift; exec "$@"'


def test_the_hook_costs_a_run_line_little(tmp_path: Path, nothing: Path) -> None:
    """In a container's mount namespace; each time the store is mounted anew."""
    bundle = make_bundle(tmp_path / "bundle")
    state = tmp_path / "state"
    state.write_bytes(bundle.state())
    store = make_store(tmp_path / "store")
    more = paired(
        lambda: in_namespace(bundle, [HOOK, "--store", store, "--socket", "/nowhere"], state),
        lambda: in_namespace(bundle, [nothing], state),
    )
    print(f"the hook: {more:.2f} ms")
    assert more <= LIMIT


def in_namespace(bundle: Bundle, argv: list[str | Path], state: Path) -> float:
    stdin = os.open(state, os.O_RDONLY)
    try:
        prepare = ["/usr/bin/unshare", "--mount", "/bin/sh", "-c", INSIDE, "sh", bundle.root]
        return milliseconds([*prepare, *argv], {"PATH": "/usr/bin:/bin"}, stdin)
    finally:
        os.close(stdin)
