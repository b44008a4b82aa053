"""Tests with other people's engines: the room they run in is also the benchmarks'."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts" / "lib"))
