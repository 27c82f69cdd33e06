"""`srm audit` finds every excess of a limit, from the tables alone (docs/design.md, Invariant 1)."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import insert

from srm.db import schema
from srm.db.database import Database
from srm.db.models import PlaybackSession, SessionHistory
from srm.playback import limit_check
from srm.playback.limit_check import Excess
from tests.cli.command import Result, assert_refused, srm
from tests.support import ROOT, Factory, rows

NOON = datetime(2020, 2, 2, 12, tzinfo=UTC)


@pytest.fixture(scope="module")
def module_url(clone: Callable[[], str], outside: Callable[[str], str]) -> str:
    """A database with a partition for the day of these tests."""
    url = clone()
    database = Database(outside(url), application_name="srm-tests", statement_timeout_seconds=20)
    with database.transaction() as db:
        db.exec_driver_sql(
            "CREATE TABLE srm.session_history_2020_02 PARTITION OF srm.session_history "
            "FOR VALUES FROM ('2020-02-01 00:00+00') TO ('2020-03-01 00:00+00')"
        )
    database.dispose()
    return url


@pytest.fixture
def url(module_url: str, outside: Callable[[str], str]) -> Iterator[str]:
    yield module_url
    database = Database(outside(module_url), application_name="srm-tests", statement_timeout_seconds=20)
    with database.transaction() as db:
        db.exec_driver_sql("TRUNCATE srm.sessions, srm.session_history")
    database.dispose()


@pytest.fixture
def kept(database: Database) -> Callable[..., datetime]:
    """Write a session into `sessions`."""
    return lambda *when, **columns: write(database, PlaybackSession, *when, **columns)


@pytest.fixture
def moved(database: Database) -> Callable[..., datetime]:
    """Write a session into `session_history`."""
    return lambda *when, **columns: write(database, SessionHistory, *when, **columns)


def write(
    database: Database,
    table: type,
    start: float,
    end: float | None,
    account: str = "a",
    max_sessions: int | None = 1,
    **columns: object,
) -> datetime:
    """Write a session and return its start. `start` and `end` are seconds after noon."""
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
        return limit_check.excesses(db)


class TestCommand:
    def test_an_empty_database_is_clean(self, call: Callable[..., Result], url: str) -> None:
        result = call("audit", SRM_DATABASE_URL=url)

        assert (result.returncode, result.stderr) == (0, "")
        assert "clean: 0 sessions" in result.stdout

    def test_a_database_where_no_limit_was_exceeded_is_clean(
        self, url: str, kept: Callable[..., datetime], moved: Callable[..., datetime]
    ) -> None:
        moved(0, 10)
        kept(10, 20)
        kept(20, None)

        result = srm("audit", SRM_DATABASE_URL=url)

        assert (result.returncode, result.stderr) == (0, "")
        assert "clean: 3 sessions" in result.stdout
        assert len(result.stdout.splitlines()) == 1

    def test_an_excess_is_printed_with_account_and_instant_and_exits_with_1(
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
    def test_account_ids_are_printed_unchanged(
        self, call: Callable[..., Result], url: str, kept: Callable[..., datetime], account: str
    ) -> None:
        kept(0, 2, account)
        kept(1, 2, account)

        result = call("audit", SRM_DATABASE_URL=url)

        assert result.returncode == 1, result.stderr
        assert account in result.stdout

    @pytest.mark.parametrize("revision", ["-1", "base"])
    def test_an_outdated_schema_is_refused(
        self, call: Callable[..., Result], clone: Callable[[], str], outside: Callable[[str], str], revision: str
    ) -> None:
        url = clone()
        command.downgrade(Config(str(ROOT / "alembic.ini"), attributes={"url": outside(url)}), revision)

        assert_refused(call("audit", SRM_DATABASE_URL=url), schema.head_revision(), "srm db upgrade")


class TestExcess:
    @pytest.mark.parametrize(
        ("first", "second"), [("kept", "kept"), ("moved", "moved"), ("moved", "kept"), ("kept", "moved")]
    )
    def test_sessions_and_history_are_checked_together(
        self, request: pytest.FixtureRequest, first: str, second: str
    ) -> None:
        request.getfixturevalue(first)(0, 10)
        at = request.getfixturevalue(second)(5, 15)

        assert excesses(request.getfixturevalue("database")) == [Excess("a", at, active=2, limit=1)]

    @pytest.mark.parametrize(("first_end", "second_end"), [(10, 20), (None, 20), (10, None), (None, None)])
    def test_active_and_ended_sessions_count(
        self, database: Database, kept: Callable[..., datetime], first_end: float | None, second_end: float | None
    ) -> None:
        kept(0, first_end)
        at = kept(5, second_end)

        assert excesses(database) == [Excess("a", at, active=2, limit=1)]

    def test_a_session_may_start_at_the_instant_another_one_ends(
        self, database: Database, kept: Callable[..., datetime], moved: Callable[..., datetime]
    ) -> None:
        moved(0, 10)
        kept(10, 20)
        kept(20, None)

        assert excesses(database) == []

    def test_an_overlap_of_a_microsecond_is_found(self, database: Database, kept: Callable[..., datetime]) -> None:
        kept(0, 10)
        at = kept(9.999999, 20)

        assert excesses(database) == [Excess("a", at, active=2, limit=1)]

    def test_sessions_of_different_accounts_do_not_count_together(
        self, database: Database, kept: Callable[..., datetime]
    ) -> None:
        for account in ("a", "b", "c"):
            kept(0, None, account)

        assert excesses(database) == []

    def test_each_setup_over_the_limit_is_reported_and_no_end_is(
        self, database: Database, kept: Callable[..., datetime]
    ) -> None:
        """Some of the ends leave the account over its limit."""
        for start, end in ((0, 100), (1, 90), (2, 80)):
            kept(start, end, max_sessions=3)
        fourth = kept(3, 70, max_sessions=3)
        fifth = kept(4, 60, max_sessions=3)

        assert excesses(database) == [
            Excess("a", fourth, active=4, limit=3),
            Excess("a", fifth, active=5, limit=3),
        ]

    def test_excesses_are_listed_by_account_and_time(self, database: Database, kept: Callable[..., datetime]) -> None:
        for account in ("b", "a"):
            for start in (3, 2, 1):
                kept(start, None, account)

        found = [(excess.account_id, excess.at) for excess in excesses(database)]

        assert found == sorted(found)
        assert len(found) == 4


class TestLimits:
    def test_a_lowered_limit_does_not_make_earlier_setups_wrong(
        self, database: Database, kept: Callable[..., datetime]
    ) -> None:
        """The limit was lowered from three to one while three sessions were active."""
        for start in (0, 1, 2):
            kept(start, 50 + start, max_sessions=3)
        kept(52, 60, max_sessions=1)

        assert excesses(database) == []

    def test_a_setup_over_a_lowered_limit_is_found(self, database: Database, kept: Callable[..., datetime]) -> None:
        for start in (0, 1, 2):
            kept(start, 50, max_sessions=3)
        at = kept(3, 60, max_sessions=1)

        assert excesses(database) == [Excess("a", at, active=4, limit=1)]

    def test_a_raised_limit_allows_more_sessions(self, database: Database, kept: Callable[..., datetime]) -> None:
        kept(0, None, max_sessions=1)
        kept(1, None, max_sessions=2)

        assert excesses(database) == []

    def test_an_account_without_a_limit_is_never_over_it(
        self, database: Database, kept: Callable[..., datetime]
    ) -> None:
        for start in range(20):
            kept(start, None, max_sessions=None)

        assert excesses(database) == []

    def test_sessions_admitted_without_a_limit_count_against_later_limits(
        self, database: Database, kept: Callable[..., datetime]
    ) -> None:
        kept(0, None, max_sessions=None)
        at = kept(1, None, max_sessions=1)

        assert excesses(database) == [Excess("a", at, active=2, limit=1)]

    def test_a_single_session_exceeds_a_limit_of_zero(self, database: Database, kept: Callable[..., datetime]) -> None:
        at = kept(0, 1, max_sessions=0)

        assert excesses(database) == [Excess("a", at, active=1, limit=0)]


class TestLapse:
    def test_a_lapsed_session_counts_until_its_lapse_though_the_reaper_has_not_ended_it(
        self, database: Database, kept: Callable[..., datetime]
    ) -> None:
        kept(0, None, timeout_seconds=30)
        kept(30, None, timeout_seconds=30)
        kept(60, None)

        assert excesses(database) == []

    def test_a_setup_just_before_a_lapse_is_found(self, database: Database, kept: Callable[..., datetime]) -> None:
        kept(0, None, timeout_seconds=30)
        at = kept(29.999999, None, timeout_seconds=30)

        assert excesses(database) == [Excess("a", at, active=2, limit=1)]

    def test_a_session_counts_until_a_timeout_after_its_last_keep_alive(
        self, database: Database, kept: Callable[..., datetime]
    ) -> None:
        kept(0, None, timeout_seconds=30, last_keep_alive_at=NOON + timedelta(seconds=100))
        within = kept(129, 129.5)
        kept(130, None)

        assert excesses(database) == [Excess("a", within, active=2, limit=1)]

    def test_a_teardown_before_the_timeout_frees_the_slot_at_once(
        self, database: Database, kept: Callable[..., datetime]
    ) -> None:
        kept(0, 5, timeout_seconds=30)
        kept(5, None)

        assert excesses(database) == []

    def test_sessions_that_are_active_now_are_checked(self, database: Database, factory: Factory) -> None:
        factory.session("a", silent_for=20, timeout_seconds=30, max_sessions=1)
        factory.session("a", silent_for=10, timeout_seconds=30, max_sessions=1)
        factory.session("b", silent_for=50, timeout_seconds=30, max_sessions=1)
        factory.session("b", silent_for=10, timeout_seconds=30, max_sessions=1)

        assert [(excess.account_id, excess.active) for excess in excesses(database)] == [("a", 2)]

    def test_a_session_counts_until_the_end_of_its_longest_life(
        self, database: Database, kept: Callable[..., datetime]
    ) -> None:
        kept(0, None, max_session_seconds=60, timeout_seconds=30, last_keep_alive_at=NOON + timedelta(seconds=59))
        within = kept(59, 59.5)
        kept(60, None)

        assert excesses(database) == [Excess("a", within, active=2, limit=1)]


class TestOtherLimits:
    """Limits beside max_sessions, which is NULL here."""

    @pytest.fixture(params=["kept", "moved"])
    def session(self, request: pytest.FixtureRequest) -> Callable[..., datetime]:
        """Write a session into one of the two tables."""
        session: Callable[..., datetime] = request.getfixturevalue(request.param)
        return lambda start, end, **columns: session(start, end, max_sessions=None, **columns)

    def test_an_excess_of_the_limit_per_content_is_found(
        self, database: Database, session: Callable[..., datetime]
    ) -> None:
        for start, content in ((0, "film"), (1, "race"), (2, "news")):
            session(start, 10, content_id=content, max_sessions_per_content=1)
        at = session(3, 10, content_id="race", content_type="LIVE", max_sessions_per_content=1)
        session(10, 20, content_id="race", max_sessions_per_content=1)

        assert excesses(database) == [Excess("a", at, 2, 1, "max_sessions_per_content")]

    def test_an_excess_of_the_limit_per_address_is_found(
        self, database: Database, session: Callable[..., datetime]
    ) -> None:
        for start, address in ((0, "192.0.2.1"), (1, "192.0.2.2"), (2, "2001:db8::/64"), (3, None), (4, None)):
            session(start, 10, address=address, max_sessions_per_ip=1)
        at = session(5, 10, address="2001:db8::/64", max_sessions_per_ip=1)

        assert excesses(database) == [Excess("a", at, 2, 1, "max_sessions_per_ip")]

    def test_an_excess_of_the_limit_of_a_device_group_is_found(
        self, database: Database, session: Callable[..., datetime]
    ) -> None:
        for start, group in ((0, "tv"), (1, "mobile"), (2, None), (3, None)):
            session(start, 10, device_group=group, max_sessions_of_device_group=1)
        at = session(4, 10, device_group="mobile", max_sessions_of_device_group=1)

        assert excesses(database) == [Excess("a", at, 2, 1, "device_group:mobile")]

    def test_an_excess_of_the_limit_of_a_content_group_is_found(
        self, database: Database, session: Callable[..., datetime]
    ) -> None:
        session(0, 10, content_groups=["cars", "sports"], max_sessions_of_content_groups=[1, 2])
        session(1, 10, content_groups=["sports"], max_sessions_of_content_groups=[2])
        session(2, 10, content_groups=["news"], max_sessions_of_content_groups=[None])
        session(3, 10, content_groups=["news"], max_sessions_of_content_groups=None)
        session(4, 10, content_groups=None, max_sessions_of_content_groups=None)
        at = session(5, 10, content_groups=["cars", "sports"], max_sessions_of_content_groups=[1, 2])

        assert excesses(database) == [
            Excess("a", at, 2, 1, "content_group:cars"),
            Excess("a", at, 3, 2, "content_group:sports"),
        ]

    def test_sessions_that_do_not_count_are_left_out_of_max_sessions(
        self, database: Database, kept: Callable[..., datetime]
    ) -> None:
        kept(0, 10)
        kept(1, 10, counts=False)
        at = kept(2, 10)
        kept(3, 10, counts=False)

        assert excesses(database) == [Excess("a", at, 2, 1)]


class TestAddresses:
    """max_ip_addresses is two."""

    @pytest.fixture
    def session(self, kept: Callable[..., datetime]) -> Callable[..., datetime]:
        """Write a session from the address 192.0.2.`host`, or without an address."""

        def write_from(host: int | None, start: float, end: float | None, limit: int | None = 2) -> datetime:
            address = None if host is None else f"192.0.2.{host}"
            return kept(start, end, max_sessions=None, address=address, max_ip_addresses=limit)

        return write_from

    def test_many_sessions_from_two_addresses_keep_a_limit_of_two(
        self, database: Database, session: Callable[..., datetime]
    ) -> None:
        for start in range(5):
            session(start % 2, start, 10)

        assert excesses(database) == []

    def test_a_third_address_exceeds_a_limit_of_two(self, database: Database, session: Callable[..., datetime]) -> None:
        session(1, 0, 10)
        session(2, 1, None)
        at = session(3, 2, 3)

        assert excesses(database) == [Excess("a", at, 3, 2, "max_ip_addresses")]

    def test_an_address_is_there_until_its_last_session_ends(
        self, database: Database, session: Callable[..., datetime]
    ) -> None:
        session(1, 0, 10)
        session(1, 1, 20)
        session(2, 1, 30)
        too_early = session(3, 19, 40)
        session(3, 20, 25)
        session(1, 40, 50)
        session(3, 41, 50)

        assert excesses(database) == [Excess("a", too_early, 3, 2, "max_ip_addresses")]

    def test_a_setup_from_a_known_address_counts_against_a_lowered_limit(
        self, database: Database, session: Callable[..., datetime]
    ) -> None:
        """The limit was lowered from three to two while three addresses had sessions."""
        for host in (1, 2, 3):
            session(host, host, 100, limit=3)
        at = session(1, 10, 100)

        assert excesses(database) == [Excess("a", at, 3, 2, "max_ip_addresses")]

    def test_sessions_without_an_address_do_not_count_as_addresses(
        self, database: Database, session: Callable[..., datetime]
    ) -> None:
        for host in (1, None, 2, None):
            session(host, 0, None)

        assert excesses(database) == []

    def test_addresses_of_different_accounts_do_not_count_together(
        self, database: Database, kept: Callable[..., datetime]
    ) -> None:
        for host, account in enumerate("abc"):
            kept(0, None, account, None, address=f"192.0.2.{host}", max_ip_addresses=1)

        assert excesses(database) == []


class TestAge:
    @pytest.mark.parametrize("table", ["kept", "moved"])
    def test_a_session_that_outlived_its_longest_life_is_printed(
        self, request: pytest.FixtureRequest, call: Callable[..., Result], url: str, table: str
    ) -> None:
        write = request.getfixturevalue(table)
        write(0, 60, "as long as it may", max_session_seconds=60)
        write(0, 60.5, "longer", max_session_seconds=60)
        write(0, 1000, "without limit")

        result = call("audit", SRM_DATABASE_URL=url)

        assert result.returncode == 1
        (line,) = result.stdout.splitlines()[1:]
        assert line.startswith("account longer at ")
        assert line.endswith(": max_session_seconds: 61 seconds, limit 60")

    def test_a_session_past_its_longest_life_and_not_yet_ended_is_no_excess(
        self, database: Database, kept: Callable[..., datetime]
    ) -> None:
        kept(0, None, max_session_seconds=60)

        assert excesses(database) == []


def test_the_limit_that_was_exceeded_is_printed(
    call: Callable[..., Result], url: str, kept: Callable[..., datetime]
) -> None:
    for start in (0, 1):
        kept(start, None, max_sessions=None, device_group="mobile", max_sessions_of_device_group=1)

    result = call("audit", SRM_DATABASE_URL=url)

    assert result.returncode == 1
    assert result.stdout.splitlines()[1].endswith(": device_group:mobile: 2 active, limit 1")


def test_twenty_thousand_sessions_are_checked_within_the_statement_timeout_of_a_request(
    database: Database, kept: Callable[..., datetime]
) -> None:
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
