"""Migrations are tried as the superuser of the embedded server; test_roles.py has the roles."""

from collections.abc import Callable

import pytest


@pytest.fixture(scope="session")
def clone(clone: Callable[[], str], outside: Callable[[str], str]) -> Callable[[], str]:
    """Return a function that makes a database and returns its URL for a superuser."""
    return lambda: outside(clone())
