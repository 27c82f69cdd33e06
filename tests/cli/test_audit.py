"""`srm audit`: invariant 1, exact limits, checked afterwards from the tables alone."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import insert

from srm import audit, schema
from srm.audit import Excess
from srm.database import Database
from srm.models import EndedSession, PlaybackSession
from tests.cli.command import Result, assert_refused, srm
from tests.support import ROOT, Factory, rows

NOON = datetime(2020, 2, 2, 12, tzinfo=UTC)


@pytest.fixture(scope="module")
def module_url(clone: Callable[[], str]) -> str:
    """A database whose history reaches back to the day that these tests play on."""
    url = clone()
    database = Database(url, application_name="srm-tests")
    with database.transaction() as db:
        db.exec_driver_sql(
            "CREATE TABLE srm.session_history_2020_02 PARTITION OF srm.session_history "
            "FOR VALUES FROM ('2020-02-01 00:00+00') TO ('2020-03-01 00:00+00')"
        )
    database.dispose()
    return url


@pytest.fixture
def url(module_url: str) -> Iterator[str]:
    yield module_url
    database = Database(module_url, application_name="srm-tests")
    with database.transaction() as db:
        db.exec_driver_sql("TRUNCATE srm.sessions, srm.session_history")
    database.dispose()


@pytest.fixture
def kept(database: Database) -> Callable[..., datetime]:
    """Writes a session into `sessions`."""
    return lambda *when, **columns: write(database, PlaybackSession, *when, **columns)


@pytest.fixture
def moved(database: Database) -> Callable[..., datetime]:
    """Writes a session into `session_history`."""
    return lambda *when, **columns: write(database, EndedSession, *when, **columns)


def write(
    database: Database,
    table: type,
    start: float,
    end: float | None,
    account: str = "a",
    max_sessions: int | None = 1,
    **columns: object,
) -> datetime:
    """A session from the second to the second after noon; when it started."""
    with database.transaction() as db:
        db.execute(
            insert(table),
            {
                "account_id": account,
                "session_id": uuid4(),
                "device_id": "tv",
                "content_type": "COD",
                "content_id": "film",
                "timeout_seconds": None,
                "max_sessions": max_sessions,
                "started_at": NOON + timedelta(seconds=start),
                "last_keep_alive_at": NOON + timedelta(seconds=start),
                "ended_at": None if end is None else NOON + timedelta(seconds=end),
                "end_reason": None if end is None else "teardown",
                **columns,
            },
        )
    return NOON + timedelta(seconds=start)


def excesses(database: Database) -> list[Excess]:
    with database.transaction() as db:
        return audit.excesses(db)


class TestCommand:
    def test_it_is_clean_when_there_is_nothing(self, call: Callable[..., Result], url: str) -> None:
        result = call("audit", SRM_DATABASE_URL=url)

        assert (result.returncode, result.stderr) == (0, "")
        assert "clean: 0 sessions" in result.stdout

    def test_it_is_clean_when_no_limit_was_exceeded(
        self, url: str, kept: Callable[..., datetime], moved: Callable[..., datetime]
    ) -> None:
        moved(0, 10)
        kept(10, 20)
        kept(20, None)

        result = srm("audit", SRM_DATABASE_URL=url)

        assert (result.returncode, result.stderr) == (0, "")
        assert "clean: 3 sessions" in result.stdout
        assert len(result.stdout.splitlines()) == 1

    def test_it_names_the_account_and_the_instant(
        self, call: Callable[..., Result], url: str, kept: Callable[..., datetime]
    ) -> None:
        kept(0, None, "innocent")
        kept(0, None, "guilty", 2)
        kept(1, None, "guilty", 2)
        at = kept(2.5, None, "guilty", 2)

        result = call("audit", SRM_DATABASE_URL=url)

        assert result.returncode == 1
        (line,) = [line for line in result.stdout.splitlines() if "guilty" in line]
        assert at.isoformat() in line
        assert line.endswith(": 3 active, limit 2")
        assert "innocent" not in result.stdout
        assert "clean" not in result.stdout
        assert result.stderr == ""

    @pytest.mark.parametrize("account", ["[bold]a[/bold]", "a[/b]", ":tv:", "ü", "n" * 255])
    def test_it_names_the_account_as_it_is(
        self, call: Callable[..., Result], url: str, kept: Callable[..., datetime], account: str
    ) -> None:
        kept(0, 2, account)
        kept(1, 2, account)

        result = call("audit", SRM_DATABASE_URL=url)

        assert result.returncode == 1, result.stderr
        assert account in result.stdout

    @pytest.mark.parametrize("revision", ["-1", "base"])
    def test_it_refuses_a_schema_that_is_out_of_date(
        self, call: Callable[..., Result], clone: Callable[[], str], revision: str
    ) -> None:
        url = clone()
        command.downgrade(Config(str(ROOT / "alembic.ini"), attributes={"url": url}), revision)

        assert_refused(call("audit", SRM_DATABASE_URL=url), schema.head_revision(), "srm db upgrade")


class TestExcess:
    @pytest.mark.parametrize(
        ("first", "second"), [("kept", "kept"), ("moved", "moved"), ("moved", "kept"), ("kept", "moved")]
    )
    def test_it_looks_into_both_tables(self, request: pytest.FixtureRequest, first: str, second: str) -> None:
        request.getfixturevalue(first)(0, 10)
        at = request.getfixturevalue(second)(5, 15)

        assert excesses(request.getfixturevalue("database")) == [Excess("a", at, active=2, limit=1)]

    @pytest.mark.parametrize(("first_end", "second_end"), [(10, 20), (None, 20), (10, None), (None, None)])
    def test_it_counts_active_and_ended_sessions(
        self, database: Database, kept: Callable[..., datetime], first_end: float | None, second_end: float | None
    ) -> None:
        kept(0, first_end)
        at = kept(5, second_end)

        assert excesses(database) == [Excess("a", at, active=2, limit=1)]

    def test_it_allows_a_start_at_the_instant_of_an_end(
        self, database: Database, kept: Callable[..., datetime], moved: Callable[..., datetime]
    ) -> None:
        moved(0, 10)
        kept(10, 20)
        kept(20, None)

        assert excesses(database) == []

    def test_it_sees_an_overlap_of_a_microsecond(self, database: Database, kept: Callable[..., datetime]) -> None:
        kept(0, 10)
        at = kept(9.999999, 20)

        assert excesses(database) == [Excess("a", at, active=2, limit=1)]

    def test_it_looks_at_each_account_by_itself(self, database: Database, kept: Callable[..., datetime]) -> None:
        for account in ("a", "b", "c"):
            kept(0, None, account)

        assert excesses(database) == []

    def test_it_reports_setups_and_not_ends(self, database: Database, kept: Callable[..., datetime]) -> None:
        """After one setup too many, the ends that leave the account over its limit still are not reported."""
        for start, end in ((0, 100), (1, 90), (2, 80)):
            kept(start, end, max_sessions=3)
        fourth = kept(3, 70, max_sessions=3)
        fifth = kept(4, 60, max_sessions=3)

        assert excesses(database) == [
            Excess("a", fourth, active=4, limit=3),
            Excess("a", fifth, active=5, limit=3),
        ]

    def test_it_lists_them_by_account_and_time(self, database: Database, kept: Callable[..., datetime]) -> None:
        for account in ("b", "a"):
            for start in (3, 2, 1):
                kept(start, None, account)

        found = [(excess.account_id, excess.at) for excess in excesses(database)]

        assert found == sorted(found)
        assert len(found) == 4


class TestLimits:
    def test_it_holds_each_session_against_its_own_limit(
        self, database: Database, kept: Callable[..., datetime]
    ) -> None:
        """The limit was lowered from three to one while three were on: no setup was wrong."""
        for start in (0, 1, 2):
            kept(start, 50 + start, max_sessions=3)
        kept(52, 60, max_sessions=1)

        assert excesses(database) == []

    def test_it_finds_a_setup_under_a_limit_that_was_lowered(
        self, database: Database, kept: Callable[..., datetime]
    ) -> None:
        for start in (0, 1, 2):
            kept(start, 50, max_sessions=3)
        at = kept(3, 60, max_sessions=1)

        assert excesses(database) == [Excess("a", at, active=4, limit=1)]

    def test_it_allows_more_once_the_limit_was_raised(self, database: Database, kept: Callable[..., datetime]) -> None:
        kept(0, None, max_sessions=1)
        kept(1, None, max_sessions=2)

        assert excesses(database) == []

    def test_it_knows_accounts_without_a_limit(self, database: Database, kept: Callable[..., datetime]) -> None:
        for start in range(20):
            kept(start, None, max_sessions=None)

        assert excesses(database) == []

    def test_it_counts_sessions_without_a_limit_too(self, database: Database, kept: Callable[..., datetime]) -> None:
        kept(0, None, max_sessions=None)
        at = kept(1, None, max_sessions=1)

        assert excesses(database) == [Excess("a", at, active=2, limit=1)]

    def test_it_finds_any_session_under_a_limit_of_none_at_all(
        self, database: Database, kept: Callable[..., datetime]
    ) -> None:
        at = kept(0, 1, max_sessions=0)

        assert excesses(database) == [Excess("a", at, active=1, limit=0)]


class TestLapse:
    def test_it_ends_a_session_at_its_lapse_though_nobody_has_reaped_it(
        self, database: Database, kept: Callable[..., datetime]
    ) -> None:
        kept(0, None, timeout_seconds=30)
        kept(30, None, timeout_seconds=30)
        kept(60, None)

        assert excesses(database) == []

    def test_it_finds_a_setup_just_before_a_lapse(self, database: Database, kept: Callable[..., datetime]) -> None:
        kept(0, None, timeout_seconds=30)
        at = kept(29.999999, None, timeout_seconds=30)

        assert excesses(database) == [Excess("a", at, active=2, limit=1)]

    def test_it_counts_the_timeout_from_the_last_keep_alive(
        self, database: Database, kept: Callable[..., datetime]
    ) -> None:
        kept(0, None, timeout_seconds=30, last_keep_alive_at=NOON + timedelta(seconds=100))
        within = kept(129, 129.5)
        kept(130, None)

        assert excesses(database) == [Excess("a", within, active=2, limit=1)]

    def test_it_believes_the_end_that_is_written(self, database: Database, kept: Callable[..., datetime]) -> None:
        """Torn down before the timeout was over."""
        kept(0, 5, timeout_seconds=30)
        kept(5, None)

        assert excesses(database) == []

    def test_it_knows_sessions_that_are_active_now(self, database: Database, factory: Factory) -> None:
        factory.session("a", silent_for=20, timeout_seconds=30, max_sessions=1)
        factory.session("a", silent_for=10, timeout_seconds=30, max_sessions=1)
        factory.session("b", silent_for=50, timeout_seconds=30, max_sessions=1)
        factory.session("b", silent_for=10, timeout_seconds=30, max_sessions=1)

        assert [(excess.account_id, excess.active) for excess in excesses(database)] == [("a", 2)]


def test_it_copes_with_many_sessions(database: Database, kept: Callable[..., datetime]) -> None:
    """Within the time that a statement of a request may take, which is no measure, only a bound."""
    rows(
        database,
        """
        INSERT INTO srm.session_history (account_id, session_id, device_id, content_type, content_id, started_at,
                                         last_keep_alive_at, timeout_seconds, max_sessions, ended_at, end_reason)
        SELECT 'account ' || n % 100, gen_random_uuid(), 'tv', 'COD', 'film', started_at, started_at, NULL, 3,
               started_at + '90 minutes', 'teardown'
        FROM generate_series(0, 19999) AS n,
             LATERAL (SELECT CAST(:noon AS timestamptz) + n / 100 * interval '30 minutes' AS started_at) AS clock
        RETURNING 1
        """,
        noon=NOON,
    )
    at = kept(3600 * 24, None, "account 42", 3)

    found = excesses(database)

    assert found[0] == Excess("account 42", at, active=4, limit=3)
    assert {excess.account_id for excess in found} == {"account 42"}
