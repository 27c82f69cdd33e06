"""Builds the application from its parts."""

from threading import Event

from flask import Flask
from flask_swagger_ui import get_swaggerui_blueprint

from srm import config, logs, version
from srm.api import cors, envelope, health, parts, telemetry
from srm.api.parts import Parts
from srm.api.v1.client import lane, sessions
from srm.api.v1.openapi import blueprint as openapi
from srm.api.v1.operator import blueprint as operator
from srm.clients import tokens
from srm.clients.entitlement_service import EntitlementService
from srm.config import Settings
from srm.db.database import Database
from srm.playback.entitlements import ALLOWED, LOCAL
from srm.playback.gauges import DatabaseGauges
from srm.playback.lanes import Lanes

PREFIXES = {"pinned": "/srm/v1", "newest": "/srm"}
"""Prefixes of every route: `/srm/v1` pins the version, `/srm` is the newest version, today v1."""


def create_app(settings: Settings | None = None) -> Flask:
    """Return the WSGI application, ready to answer. It connects to the database when the first request comes.

    `settings`: None = from the environment. Raises StartupError when the application cannot run with them.
    """
    settings = settings or config.load()
    logs.configure(settings.log_format)
    version.build()  # Read it now: a checkout may be at another commit by the first request that asks.
    app = Flask("srm", static_folder=None)
    app.config["PROVIDE_AUTOMATIC_OPTIONS"] = False  # OPTIONS gets 405, as any method that is not there.
    app.url_map.merge_slashes = False  # A path with two slashes is another path, not a redirect.
    parts.install(app, build_parts(settings))
    register_routes(app)
    app.wsgi_app = lane.with_lanes(app.wsgi_app, app)  # type: ignore[assignment, method-assign]
    if settings.cors_origins:
        paths = tuple(f"{prefix}/sessions" for prefix in PREFIXES.values())
        app.wsgi_app = cors.with_cors(app.wsgi_app, settings.cors_origins, paths)  # type: ignore[assignment, method-assign]
    envelope.install(app, settings.access_log_sample)
    return app


def build_parts(settings: Settings) -> Parts:
    """Return the parts of an application with these settings. Raises StartupError when the settings cannot work."""
    database = Database(settings.require_database_url(), application_name="srm-api")
    verifier = tokens.TokenVerifier(tokens.key_from(settings), settings)
    service = None
    if settings.entitlements_url is not None and settings.entitlements == "http":
        service = EntitlementService(
            settings.entitlements_url.get_secret_value(),
            settings.entitlements_timeout_seconds,
            settings.entitlements_on_failure,
        )
    known = LOCAL if settings.entitlements == "local" else ALLOWED
    return Parts(
        database=database,
        lanes=Lanes(database, unclaimed_teardown=telemetry.record_teardown),
        tokens=verifier,
        access_to=(lambda _, __: known) if service is None else service.access_to,
        entitlement_service=service,
        trusted_proxies=settings.trusted_proxies,
        draining=Event(),
        gauges=DatabaseGauges(database),
    )


def register_routes(app: Flask) -> None:
    """Give the application all routes."""
    operator_api = operator.create_blueprint()
    for name, prefix in PREFIXES.items():
        app.register_blueprint(sessions.blueprint, url_prefix=prefix, name=name)
        app.register_blueprint(openapi, url_prefix=prefix, name=f"{name}-openapi")
        app.register_blueprint(operator_api, url_prefix=prefix, name=f"{name}-operator")
    app.register_blueprint(
        get_swaggerui_blueprint("/srm/docs", "/srm/v1/openapi.json", {"app_name": "SRM API", "validatorUrl": None})
    )
    app.register_blueprint(health.blueprint)
