"""What tests of the service as a whole share."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """Not below pytest's own folder: each run of pytest closes that to the user that the embedded server runs as."""
    with TemporaryDirectory(prefix="srm-tests-") as folder:
        yield Path(folder)
