"""Error catalogue and its HTTP side (docs/design.md, "Wire contract")."""

from typing import Any

import pytest

from srm import errors
from srm.api import http_errors
from srm.api.envelope import render
from srm.api.http_errors import HTTP_ERRORS
from srm.db import models
from srm.errors import SessionHasEnded, SessionLimitReached, SrmError

CATALOGUE: dict[type[SrmError], tuple[str, int, str]] = {
    errors.InternalError: ("SRM-0001", 500, "ERROR"),
    errors.MalformedRequest: ("SRM-0002", 400, "ERROR"),
    http_errors.RequestTooLarge: ("SRM-0002", 413, "ERROR"),
    errors.TokenNotValid: ("SRM-0003", 401, "ERROR"),
    errors.OperatorKeyNotValid: ("SRM-0003", 401, "ERROR"),
    errors.AccountNotEnabled: ("SRM-0004", 200, "DENIED"),
    errors.DeviceNotEnabled: ("SRM-0005", 200, "DENIED"),
    errors.SessionLimitReached: ("SRM-0006", 200, "DENIED"),
    errors.ContentAccessDenied: ("SRM-0007", 200, "DENIED"),
    errors.SessionNotFound: ("SRM-0008", 404, "ERROR"),
    errors.SessionHasEnded: ("SRM-0009", 410, "ERROR"),
    errors.DependencyUnavailable: ("SRM-0010", 503, "ERROR"),
    errors.ResourceNotFound: ("SRM-0011", 404, "ERROR"),
    http_errors.MethodNotAllowed: ("SRM-0012", 405, "ERROR"),
    http_errors.TooManyRequests: ("SRM-0013", 429, "ERROR"),
    errors.NotAllowed: ("SRM-0014", 403, "ERROR"),
    errors.Conflict: ("SRM-0015", 409, "ERROR"),
    http_errors.PreconditionFailed: ("SRM-0015", 412, "ERROR"),
}
SHARED_CODES = {http_errors.RequestTooLarge, errors.OperatorKeyNotValid, http_errors.PreconditionFailed}
"""Errors that share the code of another error, with another HTTP status or for another credential."""
PUBLISHED: dict[type[SrmError], str] = {
    errors.MalformedRequest: "Malformed request or mandatory parameters missing from request",
    http_errors.RequestTooLarge: "Malformed request or mandatory parameters missing from request",
    errors.SessionLimitReached: "Session Limit Reached",
}
RETRIED = {errors.DependencyUnavailable, http_errors.TooManyRequests}
"""Errors that pass by themselves."""


def descendants(kind: type[SrmError]) -> list[type[SrmError]]:
    return [each for child in kind.__subclasses__() for each in (child, *descendants(child))]


def make(kind: type[SrmError]) -> SrmError:
    arguments: dict[type[SrmError], tuple[Any, ...]] = {
        SessionHasEnded: ("operator",),
        SessionLimitReached: ("max_sessions", 3),
    }
    return kind(*arguments.get(kind, ()))


@pytest.mark.parametrize("kind", CATALOGUE, ids=lambda kind: kind.__name__)
def test_each_error_has_the_code_and_status_of_the_wire_contract(kind: type[SrmError]) -> None:
    http = HTTP_ERRORS[kind]

    assert (kind.error_code, http.code, http.status) == CATALOGUE[kind]


def test_the_http_table_has_every_error() -> None:
    assert set(HTTP_ERRORS) == set(descendants(SrmError)) == set(CATALOGUE)


@pytest.mark.parametrize(("kind", "text"), PUBLISHED.items())
def test_the_published_texts_are_kept(kind: type[SrmError], text: str) -> None:
    assert make(kind).text == text


def test_every_code_has_one_meaning() -> None:
    codes = [kind.error_code for kind in CATALOGUE if kind not in SHARED_CODES]

    assert sorted(codes) == [f"SRM-{number:04}" for number in range(1, 16)]


@pytest.mark.parametrize("kind", CATALOGUE, ids=lambda kind: kind.__name__)
def test_every_error_can_be_rendered(kind: type[SrmError]) -> None:
    error = make(kind)
    code, status = CATALOGUE[kind][1:]

    assert error.text
    assert "\n" not in error.text
    assert (code == 200) is (status == "DENIED")
    assert render(error) == {
        "errorResponse": {
            "code": str(code),
            "status": status,
            "errorCode": error.error_code,
            "errorMessage": error.text,
        }
    }


def test_only_errors_that_pass_by_themselves_say_when_to_retry() -> None:
    assert {kind for kind, http in HTTP_ERRORS.items() if http.retry_after_seconds is not None} == RETRIED


def test_every_end_reason_has_a_text_of_its_own() -> None:
    texts = [SessionHasEnded(reason).text for reason in models.END_REASONS]

    assert set(errors.END_REASON_TEXTS) == set(models.END_REASONS)
    assert len(set(texts)) == len(texts)
