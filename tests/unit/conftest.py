"""What several files of these tests share."""

from pathlib import Path

import pytest
from doctoring import Made, healthy


@pytest.fixture
def made(tmp_path: Path) -> Made:
    """A made-up machine for maid.doctor, healthy until a test changes it."""
    return healthy(tmp_path)
