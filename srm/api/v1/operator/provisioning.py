"""The operator API, v1: accounts, devices, entitlements and the catalogue.

One view serves all kinds of resources. The route gives it the kind, and the parts of the path in the order of the key.
"""

from contextlib import suppress

from flask import Response, request

from srm.api import telemetry
from srm.api.http_errors import PreconditionFailed
from srm.api.parts import parts
from srm.api.v1.operator import bodies, query, wire
from srm.api.v1.operator.authentication import operator_name
from srm.errors import Conflict
from srm.operators import provisioning
from srm.operators.provisioning import CreatedMeanwhile, Locked, Saved
from srm.operators.resources import ENTITLEMENTS, Kind, Resource, ResourceKey


def list_resources(kind: Kind, **account: str) -> Response:
    """Answer 200 with a page of resources by id, of the account in the path if there is one."""
    limit, after = query.read_limit(), query.read_after()
    with parts().database.orm() as db:
        found = provisioning.list_resources(db, kind, tuple(account.values()), limit=limit + 1, after=after)
    return wire.page(kind.plural, found, limit, lambda last: str(getattr(last, kind.key[-1])))


def get(kind: Kind, **key: str) -> Response:
    """Answer 200 with the resource and its ETag."""
    with parts().database.orm() as db:
        resource = provisioning.get(db, kind, tuple(key.values()))
    return wire.resource_answer(resource)


def put(kind: Kind, **key: str) -> Response:
    """Create the resource or replace it: 201 or 200, with the resource as it is now."""
    wanted = bodies.parse(kind, tuple(key.values()), bodies.read_json())
    locked, saved = _replace(kind, tuple(key.values()), wanted)
    telemetry.record_ended_sessions(saved.ended)
    return wire.resource_answer(saved.resource, 201 if locked.present is None else 200)


def _replace(kind: Kind, key: ResourceKey, wanted: Resource) -> tuple[Locked, Saved]:
    """Save the wanted resource, once more if another transaction created it after this one found none."""
    for _ in range(2):
        with suppress(CreatedMeanwhile), parts().database.orm() as db:
            locked = provisioning.lock(db, kind, key)
            _check_preconditions(locked.present)
            return locked, provisioning.save(db, operator_name(), locked, wanted)
    raise Conflict  # it was created, deleted and created again


def patch(kind: Kind, **key: str) -> Response:
    """Apply a JSON merge patch (RFC 7396): 200 with the resource as it is now."""
    changes = bodies.read_patch(kind)
    with parts().database.orm() as db:
        locked = provisioning.lock(db, kind, tuple(key.values()))
        present = locked.existing()
        _check_preconditions(present)
        saved = provisioning.save(db, operator_name(), locked, bodies.merge(kind, locked.key, present, changes))
    telemetry.record_ended_sessions(saved.ended)
    return wire.resource_answer(saved.resource)


def delete(kind: Kind, **key: str) -> Response:
    """Delete the resource: 204. With `endSessions=true`, sessions that only this entitlement allowed end too."""
    end_sessions = kind is ENTITLEMENTS and query.read_word("endSessions", ("true", "false")) == "true"
    with parts().database.orm() as db:
        locked = provisioning.lock(db, kind, tuple(key.values()))
        _check_preconditions(locked.existing())
        ended = provisioning.delete(db, operator_name(), locked, end_sessions=end_sessions)
    telemetry.record_ended_sessions(ended)
    return Response(status=204)


def _check_preconditions(present: Resource | None) -> None:
    """Raise PreconditionFailed when the request is meant for another state (RFC 9110, section 13.1)."""
    if "HTTP_IF_MATCH" in request.environ and not _matches(present):
        raise PreconditionFailed
    if_none_match = request.environ.get("HTTP_IF_NONE_MATCH")
    if if_none_match is not None:
        if if_none_match != "*":
            raise query.malformed("If-None-Match is *")
        if present is not None:
            raise PreconditionFailed("It exists already")


def _matches(present: Resource | None) -> bool:
    """Check the ETag of the resource against the header If-Match."""
    return present is not None and wire.etag(wire.as_json(present)) in request.if_match
