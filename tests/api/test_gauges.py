"""Gauges that /metrics reads from the database: sessions, partitions, schema, heartbeat, reaper, and its absence."""

import threading
import time
from collections.abc import Callable

import psycopg
import pytest
from flask.testing import FlaskClient

from srm import version
from srm.db import schema
from srm.db.database import Database
from srm.playback import gauges
from srm.reaper.runner import Reaper
from tests.api.test_metrics import series
from tests.support import Factory, free_port

FAILED = "srm_database_look_failed part="


@pytest.fixture
def own_url(clone: Callable[[], str]) -> str:
    """Database of this test alone; the test may change its tables."""
    return clone()


@pytest.fixture
def own(make_client: Callable[..., FlaskClient], own_url: str) -> FlaskClient:
    """Client of a service on the database of this test."""
    return make_client(database_url=own_url)


@pytest.fixture
def as_superuser(own_url: str, outside: Callable[[str], str]) -> str:
    """Superuser's URL of the database of this test."""
    return outside(own_url)


def execute(url: str, *statements: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)


def test_active_sessions_are_counted_by_content_type_and_device_group(client: FlaskClient, factory: Factory) -> None:
    for group in ("tv", "tv", "mobile"):
        factory.session(device_group=group)
    factory.session(device_group="tv", content_type="LIVE")
    factory.session(timeout_seconds=None, silent_for=3600)
    factory.session(device_group="tv", silent_for=31)

    seen = series(client)

    active = {name: value for name, value in seen.items() if name.startswith("srm_active_sessions")}
    assert active == {
        "srm_active_sessions content_type=COD device_group=tv": 2,
        "srm_active_sessions content_type=COD device_group=mobile": 1,
        "srm_active_sessions content_type=LIVE device_group=tv": 1,
        "srm_active_sessions content_type=COD device_group=none": 1,
    }
    assert seen["srm_lapsed_sessions"] == 1


def test_the_lag_of_the_reaper_is_the_age_of_the_oldest_lapse(
    client: FlaskClient, make_client: Callable[..., FlaskClient], factory: Factory, url: str
) -> None:
    nothing = series(client)
    assert (nothing["srm_lapsed_sessions"], nothing["srm_reaper_lag_seconds"]) == (0, 0)
    another = make_client(database_url=url)
    for silent_for in (29, 40, 90, 35):
        factory.session(silent_for=silent_for)

    seen = series(another)

    assert seen["srm_lapsed_sessions"] == 3
    assert 60 <= seen["srm_reaper_lag_seconds"] < 65


def test_only_the_largest_device_groups_have_series_of_their_own(client: FlaskClient, factory: Factory) -> None:
    for number in range(gauges.MAX_GROUPS + 5):
        factory.session(device_group=f"group-{number}")
    for _ in range(2):
        factory.session(device_group="large")

    seen = series(client)

    groups = {name.rpartition("=")[2]: value for name, value in seen.items() if name.startswith("srm_active_sessions")}
    assert len(groups) == gauges.MAX_GROUPS + 1
    assert (groups["large"], groups["other"]) == (2, 6)
    assert sum(groups.values()) == gauges.MAX_GROUPS + 7


def test_versions_of_code_and_schema_are_shown(client: FlaskClient) -> None:
    seen = series(client)

    head = schema.head_revision()
    assert [name for name in seen if name.startswith("srm_build_info")] == [
        f"srm_build_info schema={head} version={version.build()}"
    ]
    assert seen[f"srm_database_schema_info revision={head}"] == 1
    assert (seen["srm_schema_behind"], seen["srm_schema_ahead"]) == (0, 0)


@pytest.mark.parametrize(
    ("change", "revision", "behind", "ahead"),
    [
        ("UPDATE srm.alembic_version SET version_num = '0001'", "0001", 1, 0),
        ("DROP TABLE srm.alembic_version", "none", 1, 0),
        ("UPDATE srm.alembic_version SET version_num = '9999'", "9999", 0, 1),
    ],
    ids=["older", "no schema", "of the next release"],
)
def test_a_schema_behind_or_ahead_is_shown(
    own: FlaskClient, as_superuser: str, change: str, revision: str, behind: int, ahead: int
) -> None:
    execute(as_superuser, change)

    seen = series(own)

    assert seen[f"srm_database_schema_info revision={revision}"] == 1
    assert (seen["srm_schema_behind"], seen["srm_schema_ahead"]) == (behind, ahead)
    assert own.get("/readyz").status_code == (503 if behind else 200)
    assert seen["srm_database_up"] == 1


def test_partitions_ahead_are_counted(
    own: FlaskClient, own_url: str, as_superuser: str, make_client: Callable[..., FlaskClient]
) -> None:
    ahead = {f"srm_partitions_ahead table={table}": 2 for table in ("session_history", "denials")}
    seen = series(own)
    assert {name: value for name, value in seen.items() if name.startswith("srm_partitions_ahead")} == ahead
    with psycopg.connect(as_superuser) as connection:
        (last,) = connection.execute(
            "SELECT 'srm.denials_' || to_char(date_trunc('month', now(), 'UTC') + interval '2 months', 'YYYY_MM')"
        ).fetchone() or ("",)
    execute(as_superuser, f"DROP TABLE {last}")

    seen = series(make_client(database_url=own_url))

    assert seen["srm_partitions_ahead table=denials"] == 1
    assert seen["srm_partitions_ahead table=session_history"] == 2


def test_rows_in_default_partitions_are_counted(own: FlaskClient, as_superuser: str) -> None:
    execute(
        as_superuser,
        "INSERT INTO srm.denials (account_id, denied_at, device_id, content_type, content_id, error_code) "
        "SELECT 'a', timestamptz '2001-01-01' + n * interval '1 s', 'tv', 'COD', 'film', 'SRM-0006' "
        f"FROM generate_series(1, {gauges.MAX_DEFAULT_ROWS + 500}) n",
    )

    assert series(own)["srm_default_partition_rows table=denials"] == gauges.MAX_DEFAULT_ROWS


def test_the_age_of_the_heartbeat_is_shown(
    own: FlaskClient, own_url: str, as_superuser: str, make_client: Callable[..., FlaskClient]
) -> None:
    execute(
        as_superuser,
        "UPDATE srm.availability SET seen_at = now() - interval '7 s', available_since = now() - interval '1 hour'",
    )
    seen = series(own)
    assert 7 <= seen["srm_tick_age_seconds"] < 15
    assert 3600 <= seen["srm_available_seconds"] < 3610
    execute(as_superuser, "UPDATE srm.availability SET seen_at = 'infinity', available_since = '-infinity'")

    seen = series(make_client(database_url=own_url))

    assert seen["srm_tick_age_seconds"] == 0
    assert "srm_available_seconds" not in seen
    assert seen[f"{FAILED}tick"] == 0


def test_the_work_of_the_reaper_is_shown(own: FlaskClient, as_superuser: str) -> None:
    execute(
        as_superuser,
        "UPDATE srm.reaper_state SET ran_at = now() - interval '9 s', expired = 12, archived = 34",
    )

    seen = series(own)

    assert 9 <= seen["srm_reaper_run_age_seconds"] < 15
    assert (seen["srm_reaper_expired_total"], seen["srm_reaper_archived_total"]) == (12, 34)
    assert "srm_reaper_failure_age_seconds" not in seen


def test_a_database_that_is_away_is_shown(make_client: Callable[..., FlaskClient]) -> None:
    client = make_client(database_url=f"postgresql://srm@127.0.0.1:{free_port()}/srm")

    answer = client.get("/metrics")

    assert answer.status_code == 200
    seen = series(client)
    assert seen["srm_database_up"] == 0
    assert "srm_lapsed_sessions" not in seen


def test_a_part_that_cannot_be_read_does_not_hide_the_others(own: FlaskClient, as_superuser: str) -> None:
    execute(as_superuser, "DROP TABLE srm.sessions CASCADE")

    seen = series(own)

    assert seen["srm_database_up"] == 1
    assert seen[f"{FAILED}sessions"] == 1
    assert [seen[f"{FAILED}{part}"] for part in ("schema", "partitions", "tick", "reaper")] == [0, 0, 0, 0]
    assert seen["srm_schema_behind"] == 0
    assert "srm_lapsed_sessions" not in seen


def test_the_database_is_read_again_only_after_a_while(
    client: FlaskClient, factory: Factory, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert series(client)["srm_lapsed_sessions"] == 0
    factory.session(silent_for=60)
    assert series(client)["srm_lapsed_sessions"] == 0
    later = time.monotonic() + 600  # Values are kept longer than KEPT_SECONDS where reading took long.
    monkeypatch.setattr(time, "monotonic", lambda: later)

    assert series(client)["srm_lapsed_sessions"] == 1


def test_reading_is_bounded_in_time_and_only_one_thread_waits(own: FlaskClient, as_superuser: str) -> None:
    """Somebody has locked the table of sessions, so reading it takes until the timeout."""
    slow: dict[str, float] = {}
    with psycopg.connect(as_superuser) as connection:
        connection.execute("LOCK TABLE srm.sessions")
        began_at = time.monotonic()
        thread = threading.Thread(target=lambda: slow.update(series(own)))
        thread.start()
        time.sleep(0.5)
        second_began_at = time.monotonic()
        own.application.test_client().get("/metrics")
        second_took = time.monotonic() - second_began_at
        thread.join()
        took = time.monotonic() - began_at

    assert 1 < took < 3
    assert second_took < 0.5
    assert slow["srm_database_up"] == 1
    assert slow[f"{FAILED}sessions"] == 1


def test_no_lapsed_session_is_shown_once_the_reaper_has_run(
    client: FlaskClient, factory: Factory, database: Database
) -> None:
    factory.session(silent_for=600)
    Reaper(database, ended_retention_seconds=300, history_retention_days=90).run()

    seen = series(client)

    assert (seen["srm_lapsed_sessions"], seen["srm_reaper_lag_seconds"]) == (0, 0)
    assert not [name for name in seen if name.startswith("srm_active_sessions")]
