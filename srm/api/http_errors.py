"""Errors as HTTP: the status of each, and the errors that only HTTP has."""

from collections.abc import Mapping
from typing import Literal, NamedTuple

from srm import errors
from srm.errors import SrmError


class RequestTooLarge(errors.MalformedRequest):
    """The body is larger than the API accepts."""


class MethodNotAllowed(SrmError):
    """The path is known, the method is not."""

    error_code = "SRM-0012"
    message = "Method not allowed"


class TooManyRequests(SrmError):
    """Requests come faster than nginx lets pass. Only nginx answers with it (`deploy/nginx/srm/common.conf`)."""

    error_code = "SRM-0013"
    message = "Too many requests"


class PreconditionFailed(errors.Conflict):
    """The resource is not, or no longer, as If-Match or If-None-Match says."""

    message = "Changed since it was read"


class HttpError(NamedTuple):
    """HTTP side of a class of errors.

    `status`: DENIED when a business rule denies the request, which is HTTP 200 (docs/design.md, "Wire contract"); ERROR
    otherwise. `retry_after_seconds`: value of the header Retry-After; None = no header.
    """

    code: int
    status: Literal["ERROR", "DENIED"] = "ERROR"
    retry_after_seconds: int | None = None


HTTP_ERRORS: Mapping[type[SrmError], HttpError] = {
    errors.InternalError: HttpError(500),
    errors.MalformedRequest: HttpError(400),
    RequestTooLarge: HttpError(413),
    errors.TokenNotValid: HttpError(401),
    errors.OperatorKeyNotValid: HttpError(401),
    errors.AccountNotEnabled: HttpError(200, "DENIED"),
    errors.DeviceNotEnabled: HttpError(200, "DENIED"),
    errors.SessionLimitReached: HttpError(200, "DENIED"),
    errors.ContentAccessDenied: HttpError(200, "DENIED"),
    errors.SessionNotFound: HttpError(404),
    errors.SessionHasEnded: HttpError(410),
    errors.DependencyUnavailable: HttpError(503, retry_after_seconds=1),
    errors.ResourceNotFound: HttpError(404),
    MethodNotAllowed: HttpError(405),
    TooManyRequests: HttpError(429, retry_after_seconds=1),
    errors.NotAllowed: HttpError(403),
    errors.Conflict: HttpError(409),
    PreconditionFailed: HttpError(412),
}
"""HTTP side of every error of the catalogue."""


def is_denial(error: SrmError) -> bool:
    """True when a business rule denies the request: the error goes out with the status DENIED."""
    return HTTP_ERRORS[type(error)].status == "DENIED"
