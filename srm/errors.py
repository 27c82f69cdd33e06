"""Error catalogue: one exception class for each answer that is not a success, with its code and message.

SRM-0002 and SRM-0006 and their texts are fixed by NAGRA's published OTT session API. The other codes are this project's
own, and stable. `srm/api/http_errors.py` gives each error its HTTP status.
"""

from collections.abc import Collection
from typing import ClassVar
from uuid import UUID

END_REASON_TEXTS = {
    "teardown": "it was torn down",
    "expired": "it timed out",
    "operator": "it was stopped by the operator",
    "evicted": "stopped to make room for a session on {ended_by}",
    "replaced": "replaced by a session on {ended_by}",
    "account_disabled": "the account was disabled",
    "device_disabled": "the device was disabled",
}
"""Texts for viewers, by the `end_reason` of a session."""


class StartupError(Exception):
    """The service cannot start as configured. The message is one line for an operator."""


class CommandError(Exception):
    """A command cannot do what was asked. The message is one line for an operator."""


class SrmError(Exception):
    """Base class of the catalogue.

    `error_code` and `message` are fixed for a class. `text` is the message of one error, which may say more.
    """

    error_code: ClassVar[str]
    message: ClassVar[str]

    def __init__(self, message: str | None = None) -> None:
        self.text = message or self.message
        super().__init__(self.text)


class InternalError(SrmError):
    """SRM itself is at fault. The log has the cause; the answer never does."""

    error_code = "SRM-0001"
    message = "Internal error"


class MalformedRequest(SrmError):
    """The request is not as the API describes it."""

    error_code = "SRM-0002"
    message = "Malformed request or mandatory parameters missing from request"


class TokenNotValid(SrmError):
    """The Client-Token of the request is malformed, has expired, or has a wrong signature."""

    error_code = "SRM-0003"
    message = "Client-Token not valid"


class OperatorKeyNotValid(SrmError):
    """The request has no Operator-Key, or a wrong or revoked one."""

    error_code = "SRM-0003"
    message = "Operator-Key not valid"


class AccountNotEnabled(SrmError):
    """The account of the token is unknown or not enabled."""

    error_code = "SRM-0004"
    message = "Account unknown or not enabled"


class DeviceNotEnabled(SrmError):
    """The device of the token is unknown to the account, or not enabled."""

    error_code = "SRM-0005"
    message = "Device unknown or not enabled"


class SessionLimitReached(SrmError):
    """The account holds as many sessions as its limits allow.

    `rule` and `limit`: the limit that was reached. `conflicts`: ids of the sessions whose end would make room.
    """

    error_code = "SRM-0006"
    message = "Session Limit Reached"

    def __init__(self, rule: str, limit: int, conflicts: Collection[UUID] = ()) -> None:
        self.rule = rule
        self.limit = limit
        self.conflicts = conflicts
        super().__init__()


class ContentAccessDenied(SrmError):
    """The account is not entitled to the content, or the content is unknown.

    `reason`: text of the entitlement service for the log and the record, not for the client.
    """

    error_code = "SRM-0007"
    message = "Content access denied"

    def __init__(self, reason: str | None = None) -> None:
        self.reason = reason
        super().__init__()


class SessionNotFound(SrmError):
    """Account and device have no such session. The answer never tells that another account or device has it."""

    error_code = "SRM-0008"
    message = "Session not found"


class SessionHasEnded(SrmError):
    """The session has ended.

    `end_reason`: key of END_REASON_TEXTS. `ended_by`: name that the viewer gave the device whose setup ended the
    session, or None.
    """

    error_code = "SRM-0009"
    message = "Session has ended"

    def __init__(self, end_reason: str, ended_by: str | None = None) -> None:
        self.end_reason = end_reason
        text = END_REASON_TEXTS[end_reason].format(ended_by=ended_by or "another device")
        super().__init__(f"{self.message}: {text}")


class DependencyUnavailable(SrmError):
    """The database or another service that the answer needs cannot be asked now. A client may try again."""

    error_code = "SRM-0010"
    message = "Service temporarily unavailable"


class ResourceNotFound(SrmError):
    """The path names nothing, or a resource that is not there."""

    error_code = "SRM-0011"
    message = "No such resource"


class NotAllowed(SrmError):
    """The role of the operator does not suffice."""

    error_code = "SRM-0014"
    message = "Not allowed"


class Conflict(SrmError):
    """The change contradicts the present state: something that it needs is missing, or the resource is in use."""

    error_code = "SRM-0015"
    message = "Conflict with the present state"


def first_line(error: object) -> str:
    """Return the first line of an error's text, for a log line or an operator."""
    return str(error).strip().split("\n")[0]
