"""Fixtures for tests of the service as a whole."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """Empty folder outside pytest's own: pytest closes its folder to the user that the embedded server runs as."""
    with TemporaryDirectory(prefix="srm-tests-") as folder:
        yield Path(folder)
