"""The error catalogue (docs/design.md, "Wire contract")."""

import re
from typing import Any

import pytest

from srm import errors
from srm.api.envelope import render
from srm.db import models
from srm.errors import SessionHasEnded, SessionLimitReached, SrmError

CATALOGUE = {
    errors.InternalError: ("SRM-0001", 500, "ERROR"),
    errors.MalformedRequest: ("SRM-0002", 400, "ERROR"),
    errors.RequestTooLarge: ("SRM-0002", 413, "ERROR"),
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
    errors.MethodNotAllowed: ("SRM-0012", 405, "ERROR"),
    errors.NotAllowed: ("SRM-0014", 403, "ERROR"),
    errors.Conflict: ("SRM-0015", 409, "ERROR"),
    errors.PreconditionFailed: ("SRM-0015", 412, "ERROR"),
}
SAME_MEANING = {errors.RequestTooLarge, errors.OperatorKeyNotValid, errors.PreconditionFailed}
"""Share the code of another error, of another status or credential."""
PUBLISHED = {
    errors.MalformedRequest: "Malformed request or mandatory parameters missing from request",
    errors.RequestTooLarge: "Malformed request or mandatory parameters missing from request",
    errors.SessionLimitReached: "Session Limit Reached",
}


def descendants(kind: type[SrmError]) -> list[type[SrmError]]:
    return [each for child in kind.__subclasses__() for each in (child, *descendants(child))]


def make(kind: type[SrmError]) -> SrmError:
    arguments: dict[type[SrmError], tuple[Any, ...]] = {
        SessionHasEnded: ("operator",),
        SessionLimitReached: ("max_sessions", 3),
    }
    return kind(*arguments.get(kind, ()))


@pytest.mark.parametrize("kind", CATALOGUE, ids=lambda kind: kind.__name__)
def test_code_and_status_are_those_of_the_design(kind: type[SrmError]) -> None:
    assert (kind.error_code, kind.http_status, kind.status) == CATALOGUE[kind]


@pytest.mark.parametrize(("kind", "text"), PUBLISHED.items())
def test_the_published_texts_are_kept(kind: type[SrmError], text: str) -> None:
    assert make(kind).text == text


def test_every_code_has_one_meaning() -> None:
    kinds = descendants(SrmError)
    codes = [kind.error_code for kind in kinds if kind not in SAME_MEANING]

    assert len(set(codes)) == len(codes)
    assert all(re.fullmatch(r"SRM-00(0[1-9]|1[0-5])", code) for code in codes)
    assert {f"SRM-{number:04}" for number in range(1, 13)} <= set(codes)


@pytest.mark.parametrize("kind", descendants(SrmError), ids=lambda kind: kind.__name__)
def test_every_error_can_be_shown(kind: type[SrmError]) -> None:
    error = make(kind)

    assert error.text
    assert "\n" not in error.text
    assert (error.http_status == 200) is (error.status == "DENIED")
    assert render(error) == {
        "errorResponse": {
            "code": str(error.http_status),
            "status": error.status,
            "errorCode": error.error_code,
            "errorMessage": error.text,
        }
    }


def test_those_that_pass_say_when_to_come_again() -> None:
    retried = {kind for kind in descendants(SrmError) if kind.retry_after_seconds is not None}

    assert errors.DependencyUnavailable in retried
    assert all(kind.http_status in (429, 503) for kind in retried)


def test_every_end_of_a_session_has_a_text_of_its_own() -> None:
    texts = [SessionHasEnded(reason).text for reason in models.END_REASONS]

    assert set(errors.END_REASON_TEXTS) == set(models.END_REASONS)
    assert len(set(texts)) == len(texts)
