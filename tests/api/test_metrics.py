"""Metrics of requests, of sessions that requests end, and of connections. Gauges of the database: test_gauges.py."""

import random
import string
from collections.abc import Callable
from uuid import uuid4

import psycopg
import pytest
from flask.testing import FlaskClient
from prometheus_client.parser import text_string_to_metric_families

from tests.support import SETUP, Admin, Factory, free_port, issue_token

KEEP_ALIVE = "/srm/v1/sessions/<session_id>"


def series(client: FlaskClient) -> dict[str, float]:
    """Return the value of each exposed series, by name and labels."""
    families = text_string_to_metric_families(client.get("/metrics").text)
    return {
        f"{sample.name}{''.join(f' {name}={value}' for name, value in sorted(sample.labels.items()))}": sample.value
        for family in families
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


class Difference:
    """Growth of a series since the start of the test. Other tests of the process have counted too."""

    def __init__(self, client: FlaskClient) -> None:
        self._client = client
        self._before = series(client)

    def __call__(self, name: str, **labels: str) -> float:
        key = f"{name}{''.join(f' {label}={value}' for label, value in sorted(labels.items()))}"
        return series(self._client).get(key, 0) - self._before.get(key, 0)


@pytest.fixture
def added(client: FlaskClient) -> Difference:
    return Difference(client)


def token(account: str = "a", device: str = "tv") -> dict[str, str]:
    return {"Client-Token": issue_token(account, device)}


def set_up(client: FlaskClient, device: str = "tv", **headers: str) -> str | None:
    """Set up a session; return its id, or None if it was denied."""
    answer = client.post("/srm/v1/sessions", json=SETUP, headers={**token(device=device), **headers})
    id_: str | None = answer.get_json().get("successResponse", {}).get("sessionId")
    return id_


def test_requests_are_counted_by_route_method_and_outcome(
    client: FlaskClient, factory: Factory, added: Difference
) -> None:
    factory.account("a", max_sessions=1)
    session = set_up(client)
    set_up(client)
    client.put(f"/srm/sessions/{session}", headers=token())
    for _ in range(3):
        client.put(f"/srm/v1/sessions/{session}", headers=token())
    client.put(f"/srm/v1/sessions/{uuid4()}", headers=token())
    client.put(f"/srm/v1/sessions/{session}", headers={"Client-Token": "garbage"})
    client.get("/nothing/here")
    client.open(f"/srm/v1/sessions/{session}", method="PATCH")

    def count(route: str, method: str, outcome: str) -> float:
        return added("srm_request_seconds_count", route=route, method=method, outcome=outcome)

    assert count("/srm/v1/sessions", "POST", "2xx") == 1
    assert count("/srm/v1/sessions", "POST", "SRM-0006") == 1
    assert count("/srm/sessions/<session_id>", "PUT", "2xx") == 1
    assert count(KEEP_ALIVE, "PUT", "2xx") == 3
    assert count(KEEP_ALIVE, "PUT", "SRM-0008") == 1
    assert count(KEEP_ALIVE, "PUT", "SRM-0003") == 1
    assert count("none", "GET", "SRM-0011") == 1
    assert count("none", "PATCH", "SRM-0012") == 1


def test_requests_are_timed(
    client: FlaskClient, factory: Factory, url: str, outside: Callable[[str], str], added: Difference
) -> None:
    """A keep-alive waits for a lock, for as long as a request may."""
    factory.account("a")
    session = factory.session()
    with psycopg.connect(outside(url)) as connection:
        connection.execute("SELECT FROM srm.sessions FOR UPDATE")
        assert client.put(f"/srm/v1/sessions/{session}", headers=token()).status_code == 503
    of = {"route": KEEP_ALIVE, "method": "PUT", "outcome": "SRM-0010"}

    assert 1 < added("srm_request_seconds_sum", **of) < 3
    assert added("srm_request_seconds_bucket", le="1.0", **of) == 0
    assert added("srm_request_seconds_bucket", le="3.0", **of) == 1


def test_setups_and_denials_are_counted_by_rule(client: FlaskClient, factory: Factory, added: Difference) -> None:
    factory.account("a", "tv", "phone", max_sessions=1)
    factory.account("b", enabled=False)
    assert set_up(client) is not None
    assert set_up(client, "phone") is None
    assert set_up(client, "unknown") is None
    client.post("/srm/v1/sessions", json=SETUP, headers=token("b"))
    client.post(
        "/srm/v1/sessions", json={"content": {"contentID": "x", "contentType": "COD"}}, headers=token("a", "phone")
    )

    def denied(error_code: str, rule: str = "") -> float:
        return added("srm_refusals_total", error_code=error_code, rule=rule, observed="false")

    assert added("srm_setups_total") == 1
    assert denied("SRM-0006", "max_sessions") == 1
    assert [denied(code) for code in ("SRM-0004", "SRM-0005", "SRM-0007")] == [1, 1, 1]


def test_observed_denials_are_counted_apart(
    client: FlaskClient, admin: Admin, factory: Factory, added: Difference
) -> None:
    admin("PUT", "profiles/p", {"maxSessions": 0, "mode": "observe"})
    factory.account("a", profile="p")

    assert set_up(client) is not None

    assert added("srm_refusals_total", error_code="SRM-0006", rule="max_sessions", observed="true") == 1
    assert added("srm_refusals_total", error_code="SRM-0006", rule="max_sessions", observed="false") == 0
    assert added("srm_setups_total") == 1


@pytest.fixture
def admin(client: FlaskClient, factory: Factory) -> Admin:
    return Admin(client, factory.operator())


def test_sessions_that_requests_end_are_counted_by_reason(
    client: FlaskClient, admin: Admin, factory: Factory, added: Difference
) -> None:
    admin("PUT", "profiles/p", {"maxSessions": 2, "timeoutSeconds": 30, "onLimit": "evict_oldest"})
    admin("PUT", "profiles/q", {"maxSessions": 2, "timeoutSeconds": 30, "sameDevice": "replace"})
    factory.account("a", "tv", "phone", profile="p")
    factory.account("b", "tv", profile="q")

    for _ in range(2):  # The second teardown ends nothing.
        client.delete(f"/srm/v1/sessions/{factory.session()}", headers=token())
    torn = set_up(client)
    for _ in range(2):
        client.delete(f"/srm/v1/sessions/{torn}", headers=token())
    assert added("srm_sessions_ended_total", reason="teardown") == 3

    for _ in range(3):
        set_up(client)
    assert added("srm_sessions_ended_total", reason="evicted") == 1

    for _ in range(3):
        client.post("/srm/v1/sessions", json=SETUP, headers=token("b"))
    assert added("srm_sessions_ended_total", reason="replaced") == 2

    admin("DELETE", "accounts/b/sessions")
    admin("DELETE", "accounts/b/sessions")
    assert added("srm_sessions_ended_total", reason="operator") == 1

    admin("PATCH", "accounts/a/devices/tv", {"enabled": False})
    assert added("srm_sessions_ended_total", reason="device_disabled") == 2
    factory.session("a", "phone")
    admin("PATCH", "accounts/a", {"enabled": False})
    admin("PATCH", "accounts/a", {"enabled": False})
    assert added("srm_sessions_ended_total", reason="account_disabled") == 1


def test_a_lapsed_session_that_a_request_finds_is_counted_once(
    client: FlaskClient, admin: Admin, factory: Factory, added: Difference
) -> None:
    factory.account("a", "tv", "phone", max_sessions=1)

    factory.session(silent_for=60)
    assert set_up(client) is not None
    assert added("srm_sessions_ended_total", reason="expired") == 1

    factory.session(silent_for=60)
    assert set_up(client) is None  # Denied, but the lapsed session that it found stays ended.
    assert added("srm_sessions_ended_total", reason="expired") == 2

    for method in ("PUT", "DELETE"):
        session = factory.session(silent_for=60)
        for _ in range(2):
            assert client.open(f"/srm/v1/sessions/{session}", method=method, headers=token()).status_code == 410
    assert added("srm_sessions_ended_total", reason="expired") == 4

    factory.session("a", "phone", silent_for=60)
    assert admin("DELETE", "accounts/a/devices/phone/sessions").get_json() == {"ended": 0}
    assert added("srm_sessions_ended_total", reason="expired") == 5
    assert added("srm_sessions_ended_total", reason="operator") == 0


def test_nothing_is_counted_when_the_commit_fails(
    client: FlaskClient, factory: Factory, url: str, outside: Callable[[str], str], added: Difference
) -> None:
    """The setup ends the lapsed session; then its insert takes too long, and everything is rolled back."""
    factory.account("a")
    factory.session(silent_for=60)
    with psycopg.connect(outside(url), autocommit=True) as connection:
        connection.execute(
            "CREATE FUNCTION srm.slow() RETURNS trigger LANGUAGE plpgsql AS "
            "'BEGIN PERFORM pg_sleep(10); RETURN NEW; END'"
        )
        connection.execute("CREATE TRIGGER slow BEFORE INSERT ON srm.sessions FOR EACH ROW EXECUTE FUNCTION srm.slow()")
        try:
            answer = client.post("/srm/v1/sessions", json=SETUP, headers=token())
        finally:
            connection.execute("DROP FUNCTION srm.slow CASCADE")

    assert answer.status_code == 503
    assert added("srm_sessions_ended_total", reason="expired") == 0
    assert added("srm_setups_total") == 0


def test_connections_are_counted_and_timed(
    make_client: Callable[..., FlaskClient], client: FlaskClient, factory: Factory, added: Difference
) -> None:
    factory.account("a")
    away = make_client(database_url=f"postgresql://srm@127.0.0.1:{free_port()}/srm")

    set_up(client)
    assert added("srm_database_connect_seconds_count") >= 1
    assert added("srm_database_connect_failures_total") == 0

    assert away.put(f"/srm/v1/sessions/{uuid4()}", headers=token()).status_code == 503
    assert added("srm_database_connect_failures_total") == 2  # of the batch, and of the ordinary way


def made_up() -> str:
    return "".join(random.choices(string.ascii_letters, k=12))


def flood(client: FlaskClient, admin: Admin, factory: Factory) -> None:
    """Send made-up values wherever somebody may make one up."""
    for _ in range(30):
        account, device = factory.account(made_up(), made_up()), made_up()
        group = made_up()
        admin("PUT", f"profiles/{group}", {"maxSessions": 5, "deviceGroups": {group: {"maxSessions": 0}}})
        admin("PATCH", f"accounts/{account}", {"profileId": group})
        factory.device(account, device, group=group)
        headers = {**token(account, device), "X-Correlation-Id": made_up(), "User-Agent": made_up()}
        client.post("/srm/v1/sessions", json=SETUP, headers=headers)
        client.post("/srm/v1/sessions", json={"content": {"contentID": made_up(), "contentType": made_up()}})
        client.open(f"/{made_up()}/{made_up()}?{made_up()}={made_up()}", method=made_up().upper())
        client.open("/srm/v1/sessions", method=made_up().upper())
        client.get(f"/srm/{made_up()}")
        for method in ("PUT", "DELETE"):
            client.open(f"/srm/v1/sessions/{factory.session(account, device, device_group=group)}", method=method)
            client.open(f"/srm/v1/sessions/{uuid4()}", method=method, headers=headers)
            client.open(f"/srm/v1/sessions/{made_up()}", method=method, headers=headers)
        admin("GET", f"accounts/{made_up()}")
        client.get(f"/srm/docs/{made_up()}")


def test_made_up_input_adds_no_series(
    make_client: Callable[..., FlaskClient], client: FlaskClient, admin: Admin, factory: Factory, url: str
) -> None:
    flood(client, admin, factory)
    before = series(make_client(database_url=url))

    flood(client, admin, factory)

    after = series(make_client(database_url=url))
    assert len(before) > 100
    labels = [{word.partition(" ")[0] for word in names} for names in (before, after)]
    assert labels[0] == labels[1]
    assert len(after) == len(before)
