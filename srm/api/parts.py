"""The parts of the application that views work with, found on `current_app`."""

from collections.abc import Callable
from dataclasses import dataclass
from threading import Event
from typing import cast

from flask import Flask, current_app

from srm.clients.tokens import TokenVerifier
from srm.db.database import Database
from srm.playback.entitlements import Access
from srm.playback.model import ContentRef, Principal

KEY = "srm.parts"
"""Key of the parts in `Flask.extensions`."""


@dataclass(frozen=True, slots=True)
class Parts:
    """Everything that views share, built once by `create_app`.

    `tokens` verifies Client-Tokens. `access_to` decides content access before a setup locks the account.
    `trusted_proxies` counts the proxies whose X-Forwarded-For is believed. `draining` is set once the process is about
    to stop.
    """

    database: Database
    tokens: TokenVerifier
    access_to: Callable[[Principal, ContentRef], Access]
    trusted_proxies: int
    draining: Event


def install(app: Flask, parts: Parts) -> None:
    """Give the application its parts."""
    app.extensions[KEY] = parts


def parts() -> Parts:
    """Return the parts of the application that answers the current request."""
    return cast("Parts", current_app.extensions[KEY])
