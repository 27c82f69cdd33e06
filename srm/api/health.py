"""Health: /healthz and /readyz for load balancers and supervisors, /metrics for Prometheus."""

from flask import Blueprint, Response, jsonify
from prometheus_client import CONTENT_TYPE_LATEST

from srm import metrics
from srm.api.parts import parts
from srm.db import schema
from srm.errors import DependencyUnavailable, StartupError

blueprint = Blueprint("health", __name__)


@blueprint.get("/healthz")
def show_alive() -> Response:
    """Answer 200 as long as the process answers at all."""
    return jsonify(status="alive")


@blueprint.get("/readyz")
def show_ready() -> Response:
    """Answer 200 when the database can be reached and its schema is not behind.

    Otherwise answer 503 with the reason. Answer 503 too while this process cannot take keep-alives, although other
    processes may, and while it drains before its stop.
    """
    if parts().draining.is_set():
        raise DependencyUnavailable("draining: this process is about to stop")
    if not parts().lanes.take_keep_alives:
        raise DependencyUnavailable("this process cannot take keep-alives")
    try:
        with parts().database.monitoring() as db:
            schema.check_not_behind(db)
    except StartupError as error:
        raise DependencyUnavailable(str(error)) from error
    return jsonify(status="ready", schema=schema.head_revision())


@blueprint.get("/metrics")
def show_metrics() -> Response:
    """Answer with the metrics of all processes of this gunicorn, and gauges read from the database."""
    return Response(metrics.expose(parts().gauges), content_type=CONTENT_TYPE_LATEST)
