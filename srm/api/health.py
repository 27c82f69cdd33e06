"""/healthz and /readyz for load balancers and supervisors, /metrics for Prometheus."""

from threading import Event

from flask import Blueprint, Response, jsonify
from prometheus_client import CONTENT_TYPE_LATEST

from srm import metrics
from srm.db import schema
from srm.db.database import Database
from srm.errors import DependencyUnavailable, StartupError
from srm.playback.gauges import DatabaseGauges


def create_blueprint(database: Database, draining: Event) -> Blueprint:
    """The routes that say how the process is. `draining`: set once it is to be asked no more, since it will stop."""
    blueprint = Blueprint("health", __name__)
    of_database = DatabaseGauges(database)

    @blueprint.get("/healthz")
    def alive() -> Response:
        """200 as long as the process answers at all."""
        return jsonify(status="alive")

    @blueprint.get("/readyz")
    def ready() -> Response:
        """200 when the database can be reached and its schema is not behind; else 503, which says what is wrong.

        503 as well while the process drains.
        """
        if draining.is_set():
            raise DependencyUnavailable("draining: this process is about to stop")
        try:
            with database.transaction() as db:
                schema.check_not_behind(db)
        except StartupError as error:
            raise DependencyUnavailable(str(error)) from error
        return jsonify(status="ready", schema=schema.head_revision())

    @blueprint.get("/metrics")
    def measured() -> Response:
        """What all processes of this gunicorn have counted and measured, and how the database is."""
        return Response(metrics.expose(of_database), content_type=CONTENT_TYPE_LATEST)

    return blueprint
