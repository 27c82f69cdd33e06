"""Builds the application from its parts."""

from collections.abc import Callable
from threading import Event

from flask import Flask
from flask_swagger_ui import get_swaggerui_blueprint

from srm import config, logs, version
from srm.api import cors, envelope, health, parts
from srm.api.parts import Parts
from srm.api.v1 import openapi
from srm.api.v1.client import sessions
from srm.api.v1.operator import blueprint as operator
from srm.clients import tokens
from srm.clients.entitlement_service import EntitlementService
from srm.config import Settings
from srm.db.database import Database
from srm.playback.entitlements import ALLOWED, LOCAL, Access
from srm.playback.model import ContentRef, Principal

PREFIXES = {"pinned": "/srm/v1", "newest": "/srm"}
"""Every route exists under its version, and under `/srm` as long as that version is the newest."""


def create_app(settings: Settings | None = None) -> Flask:
    """The WSGI application, ready to answer; it connects to the database when the first request comes.

    StartupError when it cannot run with these settings.
    """
    settings = settings or config.load()
    logs.configure(settings.log_format)
    version.build()  # Read it now: a checkout may be at another commit by the first request that asks.
    database = Database(settings.require_database_url(), application_name="srm-api")
    verifier = tokens.TokenVerifier(tokens.key_from(settings), settings)

    app = Flask("srm", static_folder=None)
    app.config["PROVIDE_AUTOMATIC_OPTIONS"] = False  # 405, as for any method that is not there
    app.url_map.merge_slashes = False  # a path is what was asked for, never a redirect to another
    app.extensions["srm.database"] = database
    draining = app.extensions["srm.draining"] = Event()

    access_to = _access(settings, app)
    parts.install(app, Parts(database, verifier, access_to, settings.trusted_proxies, draining))

    client_api = sessions.create_blueprint(database, verifier, settings.trusted_proxies, access_to)
    client_api.add_url_rule("/openapi.json", view_func=openapi.show)
    operator_api = operator.create_blueprint()
    for name, prefix in PREFIXES.items():
        app.register_blueprint(client_api, url_prefix=prefix, name=name)
        app.register_blueprint(operator_api, url_prefix=prefix, name=f"{name}-operator")
    app.register_blueprint(
        get_swaggerui_blueprint("/srm/docs", "/srm/v1/openapi.json", {"app_name": "SRM API", "validatorUrl": None})
    )
    app.register_blueprint(health.create_blueprint(database, draining))
    if settings.cors_origins:
        paths = tuple(f"{prefix}/sessions" for prefix in PREFIXES.values())
        app.wsgi_app = cors.with_cors(app.wsgi_app, settings.cors_origins, paths)  # type: ignore[assignment, method-assign]
    envelope.install(app, settings.access_log_sample)
    return app


def _access(settings: Settings, app: Flask) -> Callable[[Principal, ContentRef], Access]:
    """What tells the content access of a setup before it begins; an entitlement service is an extension of the app."""
    if settings.entitlements_url is not None and settings.entitlements == "http":
        service = EntitlementService(
            settings.entitlements_url.get_secret_value(),
            settings.entitlements_timeout_seconds,
            settings.entitlements_on_failure,
        )
        app.extensions["srm.entitlement_service"] = service
        return service.access_to
    known = LOCAL if settings.entitlements == "local" else ALLOWED
    return lambda _, __: known
