"""The operator API, v1: provisioning, and what a care agent sees and stops. Each call needs an Operator-Key.

A change, its record, and the end of the sessions that end with it are one transaction, and on disk when it is answered.
"""

from flask import Blueprint, request

from srm.api import telemetry
from srm.api.v1.operator import provisioning
from srm.api.v1.operator import sessions as care
from srm.api.v1.operator.lists import is_readable, malformed
from srm.db.database import Database
from srm.db.models import Role
from srm.errors import NotAllowed, OperatorKeyNotValid
from srm.operators import keys as operators
from srm.operators.resources import member


def create_blueprint(database: Database) -> Blueprint:
    """The routes of the operator API, to be registered under `/srm/v1` and under `/srm`."""
    blueprint = Blueprint("operator", __name__)

    @blueprint.before_request
    def authenticate() -> None:
        key = request.environ.get("HTTP_OPERATOR_KEY")
        if not key:
            raise OperatorKeyNotValid
        operator = request.environ[telemetry.OPERATOR] = operators.authenticate(database.hot, key)
        needed = _needed_role()
        if not operator.may(needed):
            raise NotAllowed(f"{NotAllowed.message}: needs the role {needed}")
        for name, value in (request.view_args or {}).items():
            if not is_readable(value):
                raise malformed(f"{member(name)} in the path")

    provisioning.add_routes(blueprint, database)
    care.add_routes(blueprint, database)
    return blueprint


def _needed_role() -> Role:
    """Of the call: to read, to end sessions, or to change anything else."""
    if request.method in ("GET", "HEAD"):
        return "viewer"
    name = (request.endpoint or "").rpartition(".")[2]
    return "care" if name in care.FOR_CARE else "admin"
