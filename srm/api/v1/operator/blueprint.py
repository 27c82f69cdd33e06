"""The operator API, v1: its routes, and the role that each of them needs.

A view owns the transaction. One transaction has a change, its entry in the change log, and the end of the sessions that
end with it. The transaction is on disk before the answer is sent.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from flask import Blueprint, Response, request

from srm.api.v1.operator import provisioning, sessions
from srm.api.v1.operator.authentication import authenticate
from srm.api.v1.operator.query import is_readable, malformed
from srm.api.v1.operator.wire import field_name
from srm.db.models import Role
from srm.operators.resources import KINDS, Kind


class Route(NamedTuple):
    """A call of the operator API. `kind` goes to the views that serve all kinds of resources."""

    method: str
    path: str
    view: Callable[..., Response]
    role: Role
    kind: Kind | None = None

    @property
    def endpoint(self) -> str:
        """Name of the route within its blueprint, unique."""
        return self.view.__name__ if self.kind is None else f"{self.view.__name__}_{self.kind.plural}"


def _resource_routes(kind: Kind) -> Iterator[Route]:
    """Routes of the resources of a kind, and of their list."""
    parts = [f"<{name}>" for name in kind.key]
    path = f"/{kind.path(*parts)}"
    yield Route("GET", f"/{kind.path(*parts[:-1])}", provisioning.list_resources, "viewer", kind)
    yield Route("GET", path, provisioning.get, "viewer", kind)
    yield Route("PUT", path, provisioning.put, "admin", kind)
    yield Route("PATCH", path, provisioning.patch, "admin", kind)
    yield Route("DELETE", path, provisioning.delete, "admin", kind)


ROUTES = (
    *(route for kind in KINDS for route in _resource_routes(kind)),
    Route("GET", "/accounts/<account_id>/sessions", sessions.list_sessions_of_account, "viewer"),
    Route("GET", "/accounts/<account_id>/denials", sessions.list_denials, "viewer"),
    Route("DELETE", "/accounts/<account_id>/sessions", sessions.end_sessions_of_account, "care"),
    Route("DELETE", "/accounts/<account_id>/sessions/<session_id>", sessions.end_session, "care"),
    Route("DELETE", "/accounts/<account_id>/devices/<device_id>/sessions", sessions.end_sessions_of_device, "care"),
    Route("GET", "/operator/sessions", sessions.list_sessions_everywhere, "viewer"),
    Route("GET", "/operator/sessions/count", sessions.count_sessions_everywhere, "viewer"),
    Route("GET", "/operator/audit", sessions.list_changes, "viewer"),
)
ROLES = {route.endpoint: route.role for route in ROUTES}


def create_blueprint() -> Blueprint:
    """Return the routes of the operator API, to be registered under `/srm/v1` and under `/srm`."""
    blueprint = Blueprint("operator", __name__)
    blueprint.before_request(check_request)
    for route in ROUTES:
        defaults = {} if route.kind is None else {"kind": route.kind}
        blueprint.add_url_rule(route.path, route.endpoint, route.view, methods=[route.method], defaults=defaults)
    return blueprint


def check_request() -> None:
    """Authenticate the operator before any view runs, and refuse a path that cannot be read."""
    authenticate(ROLES[(request.endpoint or "").rpartition(".")[2]])
    for name, value in (request.view_args or {}).items():
        if isinstance(value, str) and not is_readable(value):
            raise malformed(f"{field_name(name)} in the path")
