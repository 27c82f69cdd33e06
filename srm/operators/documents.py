"""Names of fields in import and export files and in the change log.

Both formats are published: operators keep files, and rows of the change log are never rewritten. So these names stay
when the API gets a new version. Each API version has names of its own in its `wire.py`.
"""

from typing import Any

from pydantic.alias_generators import to_camel

from srm.operators.naming import to_json, with_names
from srm.operators.resources import Kind, Resource
from srm.playback.model import EndedSession

_IRREGULAR = {"content_id": "contentID", "channel_id": "channelID"}


def field_name(field: str) -> str:
    """Return the name of a field in files and in the change log: `maxSessions` for `max_sessions`."""
    return _IRREGULAR.get(field) or to_camel(field)


def model_of(kind: Kind) -> type[Resource]:
    """Return the model that parses documents of the kind."""
    return with_names(kind.resource, field_name)


def of_resource(resource: Resource) -> dict[str, Any]:
    """Return the document of a resource."""
    return to_json(resource, field_name)


def of_fields(**fields: object) -> dict[str, Any]:
    """Return a document with these fields. Values must be JSON values."""
    return {field_name(name): value for name, value in fields.items()}


def before_end(session: EndedSession) -> dict[str, Any]:
    """Return the document of a session as it was before it ended."""
    return of_fields(
        device_id=session.device_id,
        content_type=session.content_type,
        content_id=session.content_id,
        started_at=session.started_at.isoformat(),
    )


def after_end(session: EndedSession) -> dict[str, Any]:
    """Return the document of the end of a session."""
    return of_fields(ended_at=session.ended_at.isoformat(), end_reason=session.end_reason)
