"""Parts of the application that views work with, found on `current_app`."""

from collections.abc import Callable
from dataclasses import dataclass
from threading import Event

from flask import Flask, current_app

from srm.clients.entitlement_service import EntitlementService
from srm.clients.tokens import TokenVerifier
from srm.db.database import Database
from srm.playback.entitlements import Access
from srm.playback.gauges import DatabaseGauges
from srm.playback.lanes import Lanes
from srm.playback.model import ContentRef, Principal

KEY = "srm.parts"
"""Key of the parts in `Flask.extensions`."""


@dataclass(frozen=True, slots=True)
class Parts:
    """Everything that views share, built once by `create_app`.

    `lanes` commit keep-alives, teardowns and setups in groups. `tokens` verifies Client-Tokens. `access_to` decides
    content access before a setup locks the account; it asks `entitlement_service`, if there is one. `trusted_proxies`
    counts the proxies whose X-Forwarded-For is believed. `draining` is set once the process is about to stop. `gauges`
    reads from the database what /metrics shows of it.
    """

    database: Database
    lanes: Lanes
    tokens: TokenVerifier
    access_to: Callable[[Principal, ContentRef], Access]
    entitlement_service: EntitlementService | None
    trusted_proxies: int
    draining: Event
    gauges: DatabaseGauges


def install(app: Flask, parts: Parts) -> None:
    """Give the application its parts."""
    app.extensions[KEY] = parts


def parts_of(app: Flask) -> Parts:
    """Return the parts of an application, for whoever stands outside its requests."""
    found: Parts = app.extensions[KEY]
    return found


def parts() -> Parts:
    """Return the parts of the application that answers the current request."""
    found: Parts = current_app.extensions[KEY]  # Not cast(), which is a call for each keep-alive.
    return found
