"""Envelope and headers of every answer: errorResponse, X-Correlation-Id and Cache-Control."""

from collections.abc import Callable
from uuid import UUID

import pytest
from flask.testing import FlaskClient

from srm.db.database import Database
from tests.support import NO_SESSION, SESSION, SETUP, Factory, error_of, issue_token

NO_RESOURCE = (404, "ERROR", "SRM-0011")
NO_METHOD = (405, "ERROR", "SRM-0012")


@pytest.fixture
def broken_client(
    make_client: Callable[..., FlaskClient], clone: Callable[[], str], outside: Callable[[str], str]
) -> FlaskClient:
    """Client of a service whose statements fail, because a table is gone."""
    url = clone()
    database = Database(outside(url), application_name="srm-tests")
    Factory(database).account("a")
    with database.transaction() as db:
        db.exec_driver_sql("DROP TABLE srm.sessions CASCADE")
    database.dispose()
    return make_client(database_url=url)


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"])
@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/srm",
        "/srm/v1",
        "/srm/v2/sessions",
        "/sessions",
        "/srm/v1/sessions/",
        "/srm/v1/session",
        "/srm/v1/SESSIONS",
        "/srm/v1//sessions",
        "//srm/v1/sessions",
        "/srm/v1/./sessions",
        f"{SESSION}/",
        f"{SESSION}/x",
        "/%ff%fe",
        "/%00",
    ],
)
def test_an_unknown_path_is_not_found(client: FlaskClient, path: str, method: str) -> None:
    answer = client.open(path, method=method, base_url="http://localhost")

    assert answer.status_code == 404
    assert "Location" not in answer.headers
    assert method == "HEAD" or error_of(answer) == NO_RESOURCE


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/srm/v1/sessions", {"GET", "HEAD", "POST"}),
        ("/srm/sessions", {"GET", "HEAD", "POST"}),
        (SESSION, {"PUT", "DELETE"}),
        ("/healthz", {"GET", "HEAD"}),
        ("/readyz", {"GET", "HEAD"}),
        ("/srm/v1/openapi.json", {"GET", "HEAD"}),
        ("/srm/docs/", {"GET", "HEAD"}),
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "SPIN"])
def test_a_method_that_the_path_lacks_is_not_allowed(
    client: FlaskClient, path: str, allowed: set[str], method: str
) -> None:
    answer = client.open(path, method=method)

    if method in allowed:
        assert answer.status_code != 405
        answer.close()
        return
    assert answer.status_code == 405
    assert method == "HEAD" or error_of(answer) == NO_METHOD
    assert set(answer.headers["Allow"].split(", ")) == allowed
    assert len(answer.headers.getlist("Allow")) == 1


@pytest.mark.parametrize(("method", "path"), [("POST", "/srm/v1/sessions"), ("PUT", SESSION), ("DELETE", SESSION)])
def test_the_answer_to_a_crash_reveals_nothing(broken_client: FlaskClient, method: str, path: str) -> None:
    body = SETUP if method == "POST" else None

    answer = broken_client.open(path, method=method, json=body, headers={"Client-Token": issue_token("a", "tv")})

    assert answer.status_code == 500
    assert answer.get_json() == {
        "errorResponse": {
            "code": "500",
            "status": "ERROR",
            "errorCode": "SRM-0001",
            "errorMessage": "Internal error",
        }
    }


@pytest.mark.parametrize("sane", ["1", "x" * 128, NO_SESSION, "a/b:c=d;e,f", "!~", '"quoted"', "<script>", "${jndi:x}"])
def test_a_sane_correlation_id_is_repeated(client: FlaskClient, sane: str) -> None:
    for path in ("/healthz", "/nothing"):
        answer = client.get(path, headers={"X-Correlation-Id": sane})

        assert answer.headers.getlist("X-Correlation-Id") == [sane]


@pytest.mark.parametrize(
    "odd", [None, "", " ", "two words", " x", "x\t", "x" * 129, "x" * 5000, "é", "\x7f", "\x1b[31m", "x\x00", "\x85"]
)
def test_an_odd_correlation_id_is_replaced(client: FlaskClient, odd: str | None) -> None:
    environ = {} if odd is None else {"HTTP_X_CORRELATION_ID": odd}

    first, second = (
        client.get("/healthz", environ_overrides=environ).headers.getlist("X-Correlation-Id") for _ in range(2)
    )

    assert len(first) == len(second) == 1
    assert str(UUID(first[0])) == first[0]
    assert first != second


def test_every_answer_forbids_storing_and_has_a_correlation_id(
    client: FlaskClient, broken_client: FlaskClient, factory: Factory
) -> None:
    factory.account("a")
    token = {"Client-Token": issue_token("a", "tv")}
    session = factory.session()
    answers = {
        "setup": client.post("/srm/v1/sessions", json=SETUP, headers=token),
        "keep-alive": client.put(f"/srm/v1/sessions/{session}", headers=token),
        "the next keep-alive": client.put(f"/srm/v1/sessions/{session}", headers=token),
        "teardown": client.delete(f"/srm/v1/sessions/{session}", headers=token),
        "400": client.post("/srm/v1/sessions"),
        "401": client.put(SESSION, headers={"Client-Token": "garbage"}),
        "404": client.get("/nothing"),
        "404 of a session": client.put(SESSION, headers=token),
        "405": client.put("/srm/v1/sessions"),
        "listing": client.get("/srm/v1/sessions", headers=token),
        "410": client.put(f"/srm/v1/sessions/{session}", headers=token),
        "413": client.post("/srm/v1/sessions", data=b"x" * 20_000),
        "500": broken_client.put(SESSION, headers=token),
        "docs": client.get("/srm/docs/"),
        "docs without slash": client.get("/srm/docs"),
        "file of docs": client.get("/srm/docs/swagger-ui.css"),
        "file of docs that is not there": client.get("/srm/docs/nothing.css"),
        "openapi.json": client.get("/srm/v1/openapi.json"),
        "healthz": client.get("/healthz"),
        "HEAD": client.head("/healthz"),
        "readyz": client.get("/readyz"),
    }

    for name, answer in answers.items():
        assert not name[0].isdigit() or name.startswith(str(answer.status_code)), name
        assert answer.headers.getlist("Cache-Control") == ["no-store"], name
        assert len(answer.headers.getlist("X-Correlation-Id")) == 1, name
        answer.close()
    ids = {answer.headers["X-Correlation-Id"] for answer in answers.values()}
    assert len(ids) == len(answers)


@pytest.mark.parametrize("host", ["[", "a b", "x:abc", "a</script>", "é", ""])
def test_any_host_header_gets_an_answer(client: FlaskClient, host: str) -> None:
    answer = client.get("/srm/docs/", headers={"Host": host})

    assert answer.status_code in (200, 400)
    assert "a</script>" not in answer.text
    assert error_of(client.get("/nothing", headers={"Host": host})) in (NO_RESOURCE, (400, "ERROR", "SRM-0002"))
