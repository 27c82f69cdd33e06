"""Clients of applications with settings of their own."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from srm.api.parts import parts_of
from srm.app import create_app
from srm.config import Settings
from tests import support


@pytest.fixture
def make_client(tmp_path: Path) -> Iterator[Callable[..., FlaskClient]]:
    """Return a function that makes a client of an application with the given settings."""
    with ExitStack() as stack:

        def make(**settings: Any) -> FlaskClient:
            if "token_jwks" not in settings:
                settings["token_secret"] = support.SECRET
            app = create_app(Settings(data_dir=tmp_path, **settings))
            stack.callback(parts_of(app).database.dispose)
            if (service := parts_of(app).entitlement_service) is not None:
                stack.callback(service.close)
            return app.test_client()

        yield make
