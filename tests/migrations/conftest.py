"""Migrations are tried as the superuser of the embedded server; test_roles.py has the roles."""

from collections.abc import Callable

import pytest


@pytest.fixture(scope="session")
def clone(clone: Callable[[], str], outside: Callable[[str], str]) -> Callable[[], str]:
    """Makes a database of its own for whoever calls it; returns its URL, for a superuser."""
    return lambda: outside(clone())
