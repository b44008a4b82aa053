"""The benchmarks are run by hand, so nothing else would notice that one no longer starts."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[2] / "scripts" / "lib" / "bench"


@pytest.mark.parametrize("module", sorted(path.stem for path in BENCH.glob("bench_*.py")))
def test_every_benchmark_finds_what_it_imports(module: str, tmp_path: Path) -> None:
    # scripts/bench names these trees; a benchmark reads the names when it is imported.
    trees = {"BENCH_BUSYBOX": str(tmp_path), "BENCH_FOREIGN": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", f"import {module}"],
        env=os.environ | trees | {"PYTHONPATH": str(BENCH)},
        capture_output=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr.decode()
