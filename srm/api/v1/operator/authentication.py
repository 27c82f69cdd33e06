"""Authentication of the operator API, v1: the operator behind a request, and the rights of his role."""

from typing import cast

from flask import request

from srm.api import telemetry
from srm.api.parts import parts
from srm.db.models import Role
from srm.errors import NotAllowed, OperatorKeyNotValid
from srm.operators import keys
from srm.operators.keys import Operator


def authenticate(needed: Role) -> None:
    """Find the operator by the Operator-Key of the request, for `operator_name` and the log.

    Raises OperatorKeyNotValid without a key that works. Raises NotAllowed when the role does not include the needed
    one.
    """
    key = request.environ.get("HTTP_OPERATOR_KEY")
    if not key:
        raise OperatorKeyNotValid
    operator = request.environ[telemetry.OPERATOR] = keys.authenticate(parts().database.keys, key)
    if not operator.may(needed):
        raise NotAllowed(f"{NotAllowed.message}: needs the role {needed}")


def operator_name() -> str:
    """Return the name of the operator of the current request."""
    return cast("Operator", request.environ[telemetry.OPERATOR]).name
