"""Clients of applications with settings of their own."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from srm.config import Settings
from tests import support
from tests.conftest import Applications


@pytest.fixture
def make_client(tmp_path: Path, applications: Applications) -> Iterator[Callable[..., FlaskClient]]:
    """Return a function that makes a client of an application with these settings."""
    with ExitStack() as stack:

        def make(**settings: Any) -> FlaskClient:
            if "token_jwks" not in settings:
                settings["token_secret"] = support.SECRET
            all_settings = Settings(data_dir=tmp_path, **settings)
            return stack.enter_context(applications.with_settings(all_settings)).test_client()

        yield make
