"""The error catalogue: every answer that is not a success, as an exception that knows its code.

SRM-0002 and SRM-0006 and their texts are fixed by NAGRA's published OTT session API; the other codes
are this project's own and stable. Nothing here knows about HTTP frameworks: `http_status` is a number.
"""

from collections.abc import Collection
from typing import Any, ClassVar, Literal
from uuid import UUID

Status = Literal["ERROR", "DENIED"]

END_REASON_TEXTS = {
    "teardown": "it was torn down",
    "expired": "it timed out",
    "operator": "it was stopped by the operator",
    "evicted": "stopped to make room for a session on {ended_by}",
    "replaced": "replaced by a session on {ended_by}",
    "account_disabled": "the account was disabled",
    "device_disabled": "the device was disabled",
}


class StartupError(Exception):
    """The service cannot start as configured. The message is one line for an operator."""


class CommandError(Exception):
    """A command cannot do what was asked. The message is one line for an operator, the command's whole output."""


class SrmError(Exception):
    """Base of the catalogue.

    `retry_after_seconds`, when set, goes out as the header Retry-After. `extension`: members of the errorResponse
    beyond those of the published API, for a client that asked for them.
    """

    error_code: ClassVar[str]
    http_status: ClassVar[int]
    status: ClassVar[Status] = "ERROR"
    message: ClassVar[str]
    retry_after_seconds: ClassVar[int | None] = None

    def __init__(self, message: str | None = None) -> None:
        self.text = message or self.message
        self.extension: dict[str, Any] = {}
        super().__init__(self.text)


class InternalError(SrmError):
    """Something is wrong in SRM itself. The cause is in the log, never in the answer."""

    error_code = "SRM-0001"
    http_status = 500
    message = "Internal error"


class MalformedRequest(SrmError):
    """The request cannot be read as the API describes it."""

    error_code = "SRM-0002"
    http_status = 400
    message = "Malformed request or mandatory parameters missing from request"


class RequestTooLarge(MalformedRequest):
    """The body is larger than the API accepts."""

    http_status = 413


class TokenNotValid(SrmError):
    """The Client-Token is there, but proves nothing."""

    error_code = "SRM-0003"
    http_status = 401
    message = "Client-Token not valid"


class OperatorKeyNotValid(SrmError):
    """There is no Operator-Key, or it proves nothing."""

    error_code = "SRM-0003"
    http_status = 401
    message = "Operator-Key not valid"


class AccountNotEnabled(SrmError):
    """The account of the token is unknown or not enabled."""

    error_code = "SRM-0004"
    http_status = 200
    status = "DENIED"
    message = "Account unknown or not enabled"


class DeviceNotEnabled(SrmError):
    """The device of the token is unknown to the account or not enabled."""

    error_code = "SRM-0005"
    http_status = 200
    status = "DENIED"
    message = "Device unknown or not enabled"


class SessionLimitReached(SrmError):
    """The account holds as many sessions as its limits allow.

    `rule` and `limit`: which limit. `in_the_way`: ids of the sessions whose end would make room.
    """

    error_code = "SRM-0006"
    http_status = 200
    status = "DENIED"
    message = "Session Limit Reached"

    def __init__(self, rule: str, limit: int, in_the_way: Collection[UUID] = ()) -> None:
        self.rule = rule
        self.limit = limit
        self.in_the_way = in_the_way
        super().__init__()


class ContentAccessDenied(SrmError):
    """The account is not entitled to the content, or the content is unknown.

    `reason`: what the entitlement service says; for the log and the record, not for the client.
    """

    error_code = "SRM-0007"
    http_status = 200
    status = "DENIED"
    message = "Content access denied"

    def __init__(self, reason: str | None = None) -> None:
        self.reason = reason
        super().__init__()


class SessionNotFound(SrmError):
    """No such session for this account and device; never a hint that another one has it."""

    error_code = "SRM-0008"
    http_status = 404
    message = "Session not found"


class SessionHasEnded(SrmError):
    """The session was there and has ended.

    `end_reason`: the word stored with it, which goes out as the header SRM-End-Reason. `ended_by`: what the viewer
    calls the device whose setup ended it.
    """

    error_code = "SRM-0009"
    http_status = 410
    message = "Session has ended"

    def __init__(self, end_reason: str, ended_by: str | None = None) -> None:
        self.end_reason = end_reason
        text = END_REASON_TEXTS[end_reason].format(ended_by=ended_by or "another device")
        super().__init__(f"{self.message}: {text}")


class DependencyUnavailable(SrmError):
    """The database, or another service that the answer needs, cannot be asked now."""

    error_code = "SRM-0010"
    http_status = 503
    message = "Service temporarily unavailable"
    retry_after_seconds = 1


class ResourceNotFound(SrmError):
    """The path names nothing."""

    error_code = "SRM-0011"
    http_status = 404
    message = "No such resource"


class MethodNotAllowed(SrmError):
    """The path is known, the method is not."""

    error_code = "SRM-0012"
    http_status = 405
    message = "Method not allowed"


class NotAllowed(SrmError):
    """The role of the operator does not have the right for this call."""

    error_code = "SRM-0014"
    http_status = 403
    message = "Not allowed"


class Conflict(SrmError):
    """What is asked for contradicts the present state: something that it needs is missing, or it is in use."""

    error_code = "SRM-0015"
    http_status = 409
    message = "Conflict with the present state"


class PreconditionFailed(Conflict):
    """The resource is not, or no longer, as If-Match or If-None-Match says."""

    http_status = 412
    message = "Changed since it was read"


def first_line(error: object) -> str:
    """What an error says, as one line for a log or an operator: the first of its lines."""
    return str(error).strip().split("\n")[0]
