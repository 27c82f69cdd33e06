"""The reaper: ends what has lapsed, moves what has ended, looks after the partitions; alone, repeatable, patient.

docs/design.md, Invariant 3: a live session is never reaped.
"""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
import structlog
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError
from structlog.testing import capture_logs

from srm.db.breaker import is_timeout
from srm.db.database import Database
from srm.errors import DependencyUnavailable, SessionLimitReached
from srm.playback import denials, ending, history
from srm.playback.ending import ENDED_AT_ONCE, end_lapsed, find_lapsed
from srm.playback.history import archive
from srm.playback.keep_alive import keep_alive
from srm.playback.model import ContentRef, Principal
from srm.reaper import runner as reaper_module
from srm.reaper.runner import ADVISORY_LOCK, PARTITIONED, Busy, Reaper, Stopping, _months_after
from tests import support
from tests.cli.command import assert_refused, srm
from tests.support import Factory, free_port, rows, running, session_row, wait_until

RETENTION_SECONDS = 300
RETENTION_DAYS = 90
TEN_YEARS = 3650


def reaper_of(database: Database, history_retention_days: int = RETENTION_DAYS) -> Reaper:
    return Reaper(database, ended_retention_seconds=RETENTION_SECONDS, history_retention_days=history_retention_days)


@pytest.fixture
def reaper(database: Database) -> Reaper:
    """With the partitions that it needs today."""
    reaper = reaper_of(database)
    reaper.make_partitions()
    return reaper


@pytest.fixture(scope="module")
def module_url(clone: Callable[[], str]) -> str:
    return clone()


@pytest.fixture
def own_url(module_url: str, outside: Callable[[str], str]) -> Iterator[str]:
    """A database for tests that make and drop partitions; as new after each of them."""
    yield module_url
    owner = Database(outside(module_url), application_name="srm-tests")
    drop_all_partitions(owner)
    with owner.transaction() as db:
        db.exec_driver_sql("DROP TABLE IF EXISTS srm.session_history_2011_01")
        db.exec_driver_sql("TRUNCATE srm.sessions, srm.session_history, srm.denials")
        db.exec_driver_sql(f'ALTER DATABASE "{make_url(module_url).database}" RESET ALL')
    owner.dispose()
    database = Database(module_url, application_name="srm-tests")
    reaper_of(database).make_partitions()
    database.dispose()


@pytest.fixture
def own(own_url: str) -> Iterator[Database]:
    database = Database(own_url, application_name="srm-tests")
    yield database
    database.dispose()


@pytest.fixture
def owner(own_url: str, outside: Callable[[str], str]) -> Iterator[Database]:
    """The same for who may do all."""
    database = Database(outside(own_url), application_name="srm-tests", statement_timeout_seconds=60)
    yield database
    database.dispose()


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """What the reaper logs."""
    monkeypatch.setattr(reaper_module, "log", structlog.get_logger("srm.reaper"))  # not yet bound by another test
    with capture_logs() as lines:
        yield lines


def end(database: Database, session_id: UUID, *, seconds_ago: float) -> UUID:
    rows(
        database,
        "UPDATE srm.sessions SET ended_at = statement_timestamp() - make_interval(secs => :s), "
        "end_reason = 'teardown' WHERE session_id = :id RETURNING 1",
        s=seconds_ago,
        id=session_id,
    )
    return session_id


def end_at(factory: Factory, instant: str | datetime) -> UUID:
    """A session that ended then."""
    moment = datetime.fromisoformat(instant) if isinstance(instant, str) else instant
    return factory.session(ended_at=moment, end_reason="teardown")


def add(database: Database, count: int, *, silent_for: float = 100, ended_ago: float | None = None) -> None:
    """Many sessions at once, lapsed or ended, some of each account."""
    rows(
        database,
        """
        INSERT INTO srm.sessions (account_id, session_id, device_id, content_type, content_id, timeout_seconds,
                                  started_at, last_keep_alive_at, ended_at, end_reason)
        SELECT 'account ' || n % 100, gen_random_uuid(), 'tv', 'COD', 'film', 30, heard_at, heard_at,
               statement_timestamp() - make_interval(secs => :ended_ago),
               CASE WHEN CAST(:ended_ago AS float) IS NOT NULL THEN 'teardown' END
        FROM generate_series(1, :count) AS n,
             (SELECT statement_timestamp() - make_interval(secs => :silent_for) AS heard_at) AS once
        RETURNING 1
        """,
        count=count,
        silent_for=silent_for,
        ended_ago=ended_ago,
    )


ADD_TO = {
    "session_history": """
        INSERT INTO srm.session_history (account_id, session_id, device_id, content_type, content_id, ended_at,
                                         end_reason)
        VALUES ('a', gen_random_uuid(), 'tv', 'COD', 'film', %(at)s, 'teardown')
    """,
    "denials": """
        INSERT INTO srm.denials (account_id, denied_at, device_id, content_type, content_id, error_code)
        VALUES ('a', %(at)s, 'tv', 'COD', 'film', 'SRM-0006')
    """,
}


def add_to(database: Database, table: str, at: datetime, count: int = 1) -> None:
    """Rows of that time, in one of the tables that are partitioned."""
    with database.transaction() as db:
        many = ADD_TO[table].replace("VALUES (", "SELECT ").rstrip().removesuffix(")")
        db.exec_driver_sql(f"{many} FROM generate_series(1, %(count)s)", {"at": at, "count": count})


def count(database: Database, what: str) -> int:
    return int(rows(database, f"SELECT count(*) FROM srm.{what}")[0][0])


def partitions(database: Database, table: str = "session_history") -> list[str]:
    found = rows(
        database,
        """
        SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
        WHERE i.inhparent = CAST(:parent AS regclass) AND c.relname <> :default ORDER BY 1
        """,
        parent=f"srm.{table}",
        default=f"{table}_default",
    )
    return [name for (name,) in found]


def partition_of_each(database: Database) -> dict[UUID, str]:
    found = rows(
        database,
        "SELECT h.session_id, c.relname FROM srm.session_history h JOIN pg_class c ON c.oid = h.tableoid",
    )
    return dict(map(tuple, found))


def drop_all_partitions(owner: Database) -> None:
    """But for the default ones."""
    for name in partitions(owner) + partitions(owner, "denials"):
        with owner.transaction() as db:
            db.exec_driver_sql(f"DROP TABLE srm.{name}")


def name_of(month: datetime, table: str = "session_history") -> str:
    return f"{table}_{month:%Y_%m}"


def this_month(database: Database) -> datetime:
    month: datetime = rows(database, "SELECT date_trunc('month', statement_timestamp(), 'UTC')")[0][0]
    return month


class TestExpire:
    def test_it_ends_a_lapsed_session_as_of_its_lapse(
        self, reaper: Reaper, factory: Factory, database: Database
    ) -> None:
        session = factory.session(silent_for=4711, timeout_seconds=30)

        assert reaper.expire() == 1

        row = session_row(database, session)
        assert row.end_reason == "expired"
        assert row.ended_at == row.last_keep_alive_at + timedelta(seconds=30)

    def test_it_ends_a_session_as_soon_as_its_timeout_has_passed(
        self, reaper: Reaper, factory: Factory, database: Database
    ) -> None:
        just_lapsed = factory.session(silent_for=30, timeout_seconds=30)
        about_to_lapse = factory.session(silent_for=25, timeout_seconds=30)

        assert reaper.expire() == 1

        assert session_row(database, just_lapsed).ended_at is not None
        assert session_row(database, about_to_lapse).ended_at is None

    @pytest.mark.parametrize(
        ("timeout_seconds", "old_after", "lived"),
        [(None, 60, 60), (30, 60, 60), (80, 60, 60), (30, 500, 90)],
    )
    def test_it_ends_a_session_that_is_as_old_as_it_may_get(
        self,
        reaper: Reaper,
        factory: Factory,
        database: Database,
        timeout_seconds: int | None,
        old_after: int,
        lived: int,
    ) -> None:
        """Set up 100 s ago, and last heard of 40 s ago: whichever comes first."""
        session = factory.session(silent_for=40, timeout_seconds=timeout_seconds, max_session_seconds=old_after)
        factory.age(session, 60, "started_at")
        young = factory.session(silent_for=20, timeout_seconds=timeout_seconds, max_session_seconds=old_after)

        assert reaper.expire() == 1

        row = session_row(database, session)
        assert (row.end_reason, row.ended_at) == ("expired", row.started_at + timedelta(seconds=lived))
        assert session_row(database, young).ended_at is None

    def test_it_leaves_all_others_alone(self, reaper: Reaper, factory: Factory, database: Database) -> None:
        factory.session("active")
        factory.session("never lapses", silent_for=1_000_000, timeout_seconds=None)
        end(database, factory.session("ended", silent_for=50), seconds_ago=45)
        end(database, factory.session("ended, never lapses", silent_for=50, timeout_seconds=None), seconds_ago=45)
        before = rows(database, "SELECT * FROM srm.sessions ORDER BY account_id")

        assert reaper.expire() == 0

        assert rows(database, "SELECT * FROM srm.sessions ORDER BY account_id") == before

    def test_it_ends_more_than_one_look_finds(
        self, reaper: Reaper, database: Database, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(ending, "LAPSED_AT_ONCE", 1000)
        lapsed = 1001
        add(database, lapsed)
        add(database, 10, silent_for=0)

        assert reaper.expire() == lapsed

        assert count(database, "sessions WHERE ended_at IS NULL") == 10

    def test_it_can_be_repeated(self, reaper: Reaper, factory: Factory, database: Database) -> None:
        session = factory.session(silent_for=31)
        reaper.expire()
        before = session_row(database, session)

        assert reaper.expire() == 0

        assert session_row(database, session) == before

    def test_it_spares_a_session_that_was_heard_of_meanwhile(self, factory: Factory, database: Database) -> None:
        saved, lost = (factory.session(silent_for=31) for _ in range(2))
        with database.request() as db:
            found = find_lapsed(db)
        assert len(found) == 2
        factory.age(saved, -31, "last_keep_alive_at")

        with database.request() as db:
            assert [ended.session_id for ended in end_lapsed(db, found)] == [str(lost)]

        assert session_row(database, saved).ended_at is None
        assert session_row(database, lost).end_reason == "expired"

    def test_it_spares_a_session_that_was_torn_down_meanwhile(self, factory: Factory, database: Database) -> None:
        session = factory.session(silent_for=31)
        with database.request() as db:
            found = find_lapsed(db)
        end(database, session, seconds_ago=3)

        with database.request() as db:
            assert end_lapsed(db, found) == []

        assert session_row(database, session).end_reason == "teardown"

    def test_it_leaves_a_session_that_somebody_holds_to_the_next_run(
        self, reaper: Reaper, factory: Factory, database: Database, url: str, outside: Callable[[str], str]
    ) -> None:
        """The keep-alive came in time, and is committed after the lapse; nobody waits for it."""
        held, free = factory.session(silent_for=29.5, timeout_seconds=30), factory.session(silent_for=31)
        with psycopg.connect(outside(url)) as saving:
            assert keep_alive(saving.cursor(), Principal("a", "tv"), held)
            wait_until(lambda: self.seen_from_outside_is_lapsed(database, held))
            assert reaper.expire() == 1
            saving.commit()
        assert reaper.expire() == 0

        assert session_row(database, held).ended_at is None
        assert session_row(database, free).end_reason == "expired"

    def test_it_logs_each_once_it_is_committed(
        self, reaper: Reaper, factory: Factory, database: Database, log: list[Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        session = factory.session("a", "tv", silent_for=31)
        factory.session("b", "tv")
        seen = []

        def look(event: str, **members: str) -> None:
            seen.append((event, members, session_row(database, session).end_reason))

        monkeypatch.setattr(reaper_module.log, "info", look)
        reaper.expire()

        row = session_row(database, session)
        members = {"account": "a", "device": "tv", "session": str(session), "end_reason": "expired"}
        assert seen == [("session ended", {**members, "ended_at": row.ended_at.isoformat()}, "expired")]

    def test_it_goes_past_those_that_somebody_holds(
        self, reaper: Reaper, factory: Factory, database: Database, url: str
    ) -> None:
        """However many: nobody is waited for again and again."""
        add(database, 200)
        add(database, 100, silent_for=50)
        with psycopg.connect(url) as holder:
            holder.execute(
                "SELECT FROM srm.sessions WHERE last_keep_alive_at < statement_timestamp() - interval '90 s' FOR UPDATE"
            )
            began_at = time.monotonic()
            assert reaper.expire() == 100
            assert time.monotonic() - began_at < 2
        assert reaper.expire() == 200

    def test_it_leaves_to_the_next_run_what_would_take_long(
        self, reaper: Reaper, database: Database, url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """One by one, over a slow network; what is ended by then stays ended."""
        monkeypatch.setattr(ending, "ONE_BY_ONE_SECONDS", 0)
        add(database, 10)
        with psycopg.connect(url) as holder:
            holder.execute("SELECT FROM srm.sessions LIMIT 1 FOR UPDATE")
            ended = reaper.expire()
        assert ended < 9
        assert count(database, "sessions WHERE end_reason = 'expired'") == ended

        assert reaper.expire() == 10 - ended

    @staticmethod
    def seen_from_outside_is_lapsed(database: Database, session: UUID) -> bool:
        with database.request() as db:
            return str(session) in [session_id for _, session_id in find_lapsed(db)]


class TestArchive:
    def test_it_keeps_a_session_until_its_retention_is_over(
        self, reaper: Reaper, factory: Factory, database: Database
    ) -> None:
        kept = end(database, factory.session(), seconds_ago=RETENTION_SECONDS - 10)
        moved = end(database, factory.session(), seconds_ago=RETENTION_SECONDS)
        active = factory.session(silent_for=1_000_000)
        reaper.make_partitions()

        assert reaper.archive() == 1

        assert {row.session_id for row in rows(database, "SELECT * FROM srm.sessions")} == {kept, active}
        assert [row.session_id for row in rows(database, "SELECT * FROM srm.session_history")] == [moved]

    def test_it_keeps_every_value(self, reaper: Reaper, factory: Factory, database: Database) -> None:
        long_ago = datetime.now(UTC) - timedelta(hours=1)
        for columns in (
            {"timeout_seconds": 17, "max_sessions": 5, "end_reason": "expired", "content_type": "NPVR"},
            {"timeout_seconds": None, "max_sessions": None, "end_reason": "device_disabled", "content_id": "ä'%"},
            {"end_reason": "evicted", "ended_by": "Fernseher im „Wohnzimmer“"},
            {
                "end_reason": "expired",
                "device_group": "mobile",
                "content_groups": ["cars", "sports"],
                "address": "2001:db8::/64",
                "counts": False,
                "max_session_seconds": 3600,
                "max_sessions_per_content": 1,
                "max_ip_addresses": 2,
                "max_sessions_per_ip": 3,
                "max_sessions_of_device_group": 4,
                "max_sessions_of_content_groups": [None, 5],
            },
        ):
            factory.session("account", "device", silent_for=7200, ended_at=long_ago, session_id=uuid4(), **columns)
        before = [row._asdict() for row in rows(database, "SELECT * FROM srm.sessions ORDER BY session_id")]
        for session in before:
            del session["idempotency_key"]  # of use only while the session is active
        reaper.make_partitions()

        assert reaper.archive() == 4

        after = [row._asdict() for row in rows(database, "SELECT * FROM srm.session_history ORDER BY session_id")]
        assert after == before
        assert count(database, "sessions") == 0

    def test_it_moves_more_than_one_transaction_takes(self, reaper: Reaper, database: Database) -> None:
        ended = 2 * ENDED_AT_ONCE + 1
        add(database, ended, silent_for=2000, ended_ago=1000)
        reaper.make_partitions()

        assert reaper.archive() == ended

        assert (count(database, "sessions"), count(database, "session_history")) == (0, ended)

    def test_it_finds_its_way_whatever_the_planner_believes(self, own: Database) -> None:
        """By the statistics no session has ended. Red: it looks for each of 500 among all, for seconds."""
        reaper = reaper_of(own)
        add(own, 1000, silent_for=0)
        with own.transaction() as db:
            db.exec_driver_sql("ANALYZE srm.sessions")
        add(own, 50_000, silent_for=2000, ended_ago=1000)
        reaper.make_partitions()

        with own.transaction() as db:
            db.exec_driver_sql("SET LOCAL statement_timeout = '1s'")
            assert archive(db, RETENTION_SECONDS) == ENDED_AT_ONCE

    def test_it_leaves_the_rest_to_the_next_run(
        self, reaper: Reaper, database: Database, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What lapses meanwhile does not wait until all that has ended is moved."""
        monkeypatch.setattr(reaper_module, "ARCHIVE_SECONDS", 0)
        add(database, ENDED_AT_ONCE + 100, silent_for=2000, ended_ago=1000)
        reaper.make_partitions()

        assert reaper.archive() == ENDED_AT_ONCE
        assert reaper.archive() == 100

    def test_it_moves_all_or_nothing(self, own: Database, owner: Database) -> None:
        """One of the sessions cannot be moved."""
        factory = Factory(own)
        reaper = reaper_of(own)
        reaper.make_partitions()
        ended_at = datetime.now(UTC) - timedelta(seconds=RETENTION_SECONDS + 1)
        factory.session(ended_at=ended_at, end_reason="teardown")
        factory.session("refused", ended_at=ended_at, end_reason="teardown")
        with owner.transaction() as db:
            db.exec_driver_sql(
                "ALTER TABLE srm.session_history ADD CONSTRAINT for_a_test CHECK (account_id <> 'refused')"
            )
        try:
            with pytest.raises(DBAPIError):
                reaper.archive()
        finally:
            with owner.transaction() as db:
                db.exec_driver_sql("ALTER TABLE srm.session_history DROP CONSTRAINT for_a_test")

        assert (count(own, "sessions"), count(own, "session_history")) == (2, 0)

    def test_it_makes_the_partitions_of_what_ended_long_ago(self, own: Database) -> None:
        factory = Factory(own)
        reaper = reaper_of(own, TEN_YEARS)
        two_months_ago = _months_after(this_month(own), -2)
        instants: list[str | datetime] = [two_months_ago, "2021-05-05 12:00+00:00", "2020-12-31 12:00+00:00"]
        ended = [end_at(factory, instant) for instant in instants]
        expected = [name_of(two_months_ago), "session_history_2021_05", "session_history_2020_12"]

        reaper.make_partitions()
        assert reaper.archive() == 3

        assert partition_of_each(own) == dict(zip(ended, expected, strict=True))

    def test_it_makes_none_for_what_is_not_kept(self, own: Database) -> None:
        """It ended before all that the history reaches back to, and goes the way of the default partition."""
        reaper = reaper_of(own)
        end_at(Factory(own), "2021-05-05 12:00+00:00")

        assert reaper.make_partitions() == []
        assert reaper.archive() == 1
        assert set(partition_of_each(own).values()) == {"session_history_default"}
        reaper.drop_partitions()

        assert (count(own, "sessions"), count(own, "session_history")) == (0, 0)


class TestMakePartitions:
    @pytest.mark.parametrize("table", ["session_history", "denials"])
    def test_it_makes_this_month_and_two_ahead(self, own: Database, owner: Database, table: str) -> None:
        drop_all_partitions(owner)

        reaper_of(own).make_partitions()

        month = this_month(own)
        assert partitions(own, table) == [name_of(_months_after(month, ahead), table) for ahead in (0, 1, 2)]

    def test_it_can_be_repeated(self, own: Database, owner: Database) -> None:
        drop_all_partitions(owner)
        reaper_of(own).make_partitions()
        made = partitions(own)

        reaper_of(own).make_partitions()

        assert partitions(own) == made

    @pytest.mark.parametrize("table", ["session_history", "denials"])
    @pytest.mark.parametrize("what", ["SELECT FROM srm.{}", "LOCK TABLE ONLY srm.{} IN ROW EXCLUSIVE MODE"])
    def test_it_gives_way_to_who_reads_or_writes(
        self, own: Database, owner: Database, own_url: str, log: list[Any], table: str, what: str
    ) -> None:
        """Whoever comes behind it does not wait long, and the other table has its partition all the same."""
        other = {"session_history": "denials", "denials": "session_history"}[table]
        drop_all_partitions(owner)
        with psycopg.connect(own_url) as somebody:
            somebody.execute(what.format(table))
            began_at = time.monotonic()

            reaper_of(own).make_partitions()

            assert time.monotonic() - began_at < 2
        assert (len(partitions(own, table)), len(partitions(own, other))) == (0, 3)
        assert [(line["log_level"], line["event"]) for line in log] == [("warning", "partition not made yet")] * 3
        assert {line["partition"].rsplit("_", 2)[0] for line in log} == {table}
        assert all("lock timeout" in line["cause"] for line in log)

        assert len(reaper_of(own).make_partitions()) == 3

    @pytest.mark.parametrize("table", ["session_history", "denials"])
    def test_its_partitions_are_like_the_table(self, own: Database, table: str) -> None:
        partition = partitions(own, table)[0]
        of_columns = """
            SELECT column_name, data_type, is_nullable, column_default FROM information_schema.columns
            WHERE table_schema = 'srm' AND table_name = :table ORDER BY ordinal_position
        """

        assert rows(own, of_columns, table=partition) == rows(own, of_columns, table=table)
        assert rows(
            own, "SELECT 1 FROM pg_index WHERE indisprimary AND indrelid = CAST(:of AS regclass)", of=f"srm.{partition}"
        )

    def test_it_fills_a_gap(self, own: Database, owner: Database) -> None:
        made = partitions(own)
        with owner.transaction() as db:
            db.exec_driver_sql(f"DROP TABLE srm.{made[1]}")

        reaper_of(own).make_partitions()

        assert partitions(own) == made

    @pytest.mark.parametrize(
        ("month", "count_", "expected"),
        [
            ((2026, 1), 0, (2026, 1)),
            ((2026, 1), 1, (2026, 2)),
            ((2026, 10), 2, (2026, 12)),
            ((2026, 11), 1, (2026, 12)),
            ((2026, 11), 2, (2027, 1)),
            ((2026, 12), 1, (2027, 1)),
            ((2026, 12), 2, (2027, 2)),
            ((2026, 12), 13, (2028, 1)),
            ((2027, 1), -1, (2026, 12)),
            ((2027, 1), -13, (2025, 12)),
        ],
    )
    def test_it_counts_months_across_the_end_of_a_year(
        self, month: tuple[int, int], count_: int, expected: tuple[int, int]
    ) -> None:
        assert _months_after(datetime(*month, 1, tzinfo=UTC), count_) == datetime(*expected, 1, tzinfo=UTC)

    @pytest.mark.parametrize("timezone", ["UTC", "Pacific/Kiritimati", "America/Los_Angeles"])
    def test_it_cuts_months_in_utc_wherever_the_database_is(self, own_url: str, server_url: str, timezone: str) -> None:
        name = make_url(own_url).database
        with psycopg.connect(server_url, autocommit=True) as connection:
            connection.execute(f"""ALTER DATABASE "{name}" SET timezone = '{timezone}'""")
        own = Database(own_url, application_name="srm-tests")
        factory = Factory(own)
        expected = {
            end_at(factory, instant): f"session_history_{month}"
            for instant, month in [
                ("2024-02-01 00:00:00+00:00", "2024_02"),
                ("2024-02-29 23:59:59.999999+00:00", "2024_02"),
                ("2024-03-01 00:00:00+00:00", "2024_03"),
                ("2023-12-31 23:59:59.999999+00:00", "2023_12"),
                ("2024-01-01 00:00:00+00:00", "2024_01"),
            ]
        }

        reaper_of(own, TEN_YEARS).make_partitions()
        reaper_of(own).archive()

        found = partition_of_each(own)
        own.dispose()
        assert found == expected


class TestDropPartitions:
    @pytest.fixture
    def old(self, own: Database) -> datetime:
        """The first instant after a partition that ended more than a month ago."""
        month = _months_after(this_month(own), -3)
        end_at(Factory(own), month)
        reaper_of(own).make_partitions()
        assert name_of(month) in partitions(own)
        return _months_after(month, 1)

    def test_it_drops_what_is_wholly_older_than_the_retention(self, own: Database, old: datetime) -> None:
        days = (datetime.now(UTC) - old).days
        before = partitions(own)

        dropped = reaper_of(own, days).drop_partitions()

        month = name_of(_months_after(old, -1))
        assert dropped == [month]
        assert partitions(own) == [name for name in before if name != month]

    def test_it_keeps_what_is_partly_younger(self, own: Database, old: datetime) -> None:
        days = (datetime.now(UTC) - old).days + 1
        before = partitions(own)

        assert reaper_of(own, days).drop_partitions() == []

        assert partitions(own) == before

    def test_it_drops_denials_by_the_same_age(self, own: Database, old: datetime) -> None:
        month = _months_after(old, -1)
        days = (datetime.now(UTC) - old).days
        add_to(own, "denials", month)
        assert reaper_of(own, days + 1).make_partitions() == [name_of(month, "denials")]

        assert name_of(month, "denials") not in reaper_of(own, days + 1).drop_partitions()
        assert count(own, "denials") == 1
        assert name_of(month, "denials") in reaper_of(own, days).drop_partitions()
        assert count(own, "denials") == 0

    def test_it_does_not_make_others_wait_for_who_reads(self, own: Database, own_url: str, old: datetime) -> None:
        days = (datetime.now(UTC) - old).days
        with psycopg.connect(own_url) as somebody:
            somebody.execute("SELECT FROM srm.session_history")
            began_at = time.monotonic()

            with pytest.raises(DependencyUnavailable) as gave_up:
                reaper_of(own, days).drop_partitions()

            assert is_timeout(gave_up.value)
            assert time.monotonic() - began_at < 1
        assert reaper_of(own, days).drop_partitions() != []

    def test_it_keeps_this_month_whatever_the_retention(self, own: Database) -> None:
        before = partitions(own)

        assert reaper_of(own, 1).drop_partitions() == []

        assert partitions(own) == before

    def test_it_leaves_tables_alone_that_are_not_its_own(self, own: Database, owner: Database) -> None:
        with owner.transaction() as db:
            db.exec_driver_sql(
                "CREATE TABLE srm.kept_for_the_court PARTITION OF srm.session_history "
                "FOR VALUES FROM ('2010-01-01 00:00+00') TO ('2010-02-01 00:00+00')"
            )
            db.exec_driver_sql("CREATE TABLE srm.session_history_2011_01 (account_id text)")

        assert reaper_of(own).drop_partitions() == []

        assert "kept_for_the_court" in partitions(own)
        assert count(owner, "session_history_2011_01") == 0


class TestDefaultPartition:
    """What has no partition of its month is kept, and gets it later."""

    @pytest.fixture(params=["session_history", "denials"])
    def table(self, request: pytest.FixtureRequest) -> str:
        table: str = request.param
        return table

    @pytest.fixture(params=["a right is missing", "the name is taken"])
    def broken(self, request: pytest.FixtureRequest, own: Database, owner: Database) -> Callable[[], None]:
        """There is no partition, and none can be made until this is called."""
        drop_all_partitions(owner)
        month = this_month(own)
        names = [name_of(month, table) for table in PARTITIONED]
        breaks, mends = {
            "a right is missing": (
                "REVOKE EXECUTE ON FUNCTION srm.make_partition FROM srm_application",
                "GRANT EXECUTE ON FUNCTION srm.make_partition TO srm_application",
            ),
            "the name is taken": (
                "; ".join(f"CREATE TABLE srm.{name} (account_id text)" for name in names),
                "; ".join(f"DROP TABLE srm.{name}" for name in names),
            ),
        }[request.param]

        def mend() -> None:
            with owner.transaction() as db:
                db.exec_driver_sql(mends)

        with owner.transaction() as db:
            db.exec_driver_sql(breaks)
        return mend

    def test_nothing_is_lost_while_no_partition_can_be_made(
        self, own: Database, broken: Callable[[], None], log: list[Any]
    ) -> None:
        factory = Factory(own)
        reaper = reaper_of(own)
        ended = end_at(factory, datetime.now(UTC) - timedelta(seconds=RETENTION_SECONDS + 1))

        reaper.run()
        refusal = SessionLimitReached("max_sessions", 1, ())
        denials.record(own.hot, Principal("a", "tv"), ContentRef("COD", "film"), None, refusal)

        assert partition_of_each(own) == {ended: "session_history_default"}
        assert count(own, "denials_default") == 1
        failures = [line for line in log if line["log_level"] == "error"]
        assert [(line["event"], line["piece"]) for line in failures] == [("reaper failed", "partitions_made")]

        broken()
        reaper.run()

        assert set(partition_of_each(own).values()) == {name_of(datetime.now(UTC))}
        assert (count(own, "denials_default"), count(own, f"denials_{datetime.now(UTC):%Y_%m}")) == (0, 1)
        assert [line for line in log if line["log_level"] == "error"] == failures

    def test_one_that_was_left_half_made_is_finished(
        self, own: Database, owner: Database, table: str, own_url: str
    ) -> None:
        """The function called by hand, once: its rows lie where nobody sees them."""
        month = _months_after(this_month(own), -1)
        name = name_of(month, table)
        with owner.transaction() as db:
            db.exec_driver_sql(f"DROP TABLE IF EXISTS srm.{name}")
        add_to(own, table, month, 100)
        by_hand = f"SELECT srm.make_partition('{table}', '{month.isoformat()}', 100)"
        with psycopg.connect(own_url, autocommit=True) as somebody:
            assert somebody.execute(by_hand).fetchall() == [(False,)]
        assert count(own, table) == 0
        support.make_roles(owner.url.render_as_string(hide_password=False).replace("+psycopg", ""))

        assert reaper_of(own).make_partitions() == [name]

        assert count(own, table) == count(owner, name) == 100
        with pytest.raises(DBAPIError, match="permission denied"):
            rows(own, f"DELETE FROM srm.{name} RETURNING 1")

    def test_one_that_cannot_be_made_keeps_no_other(self, own: Database, owner: Database) -> None:
        drop_all_partitions(owner)
        month = this_month(own)
        with owner.transaction() as db:
            db.exec_driver_sql(f"CREATE TABLE srm.{name_of(month)} (account_id text)")
        with pytest.raises(DBAPIError) as failure:
            reaper_of(own).make_partitions()
        with owner.transaction() as db:
            db.exec_driver_sql(f"DROP TABLE srm.{name_of(month)}")

        assert failure.value.__notes__ == [f"partition {name_of(month)}"]
        assert partitions(own) == [name_of(_months_after(month, ahead)) for ahead in (1, 2)]
        assert len(partitions(own, "denials")) == 3

    def test_its_rows_are_seen_all_the_time(
        self, own: Database, owner: Database, table: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Moved in many steps, they are seen there or here; and so are those that come meanwhile."""
        monkeypatch.setattr(reaper_module, "MOVED_AT_ONCE", 500)
        drop_all_partitions(owner)
        month = this_month(own)
        add_to(own, table, month, 20_000)
        moving = threading.Event()
        done = threading.Event()
        added: list[int] = []
        seen: list[tuple[int, int]] = []

        def add_meanwhile() -> None:
            database = Database(own.url.render_as_string(hide_password=False), application_name="srm-tests")
            while not done.is_set():
                add_to(database, table, month)
                added.append(1)
                moving.set()
            database.dispose()

        def look() -> None:
            database = Database(own.url.render_as_string(hide_password=False), application_name="srm-tests")
            while not done.is_set():
                before = len(added)
                seen.append((before, count(database, table)))
                time.sleep(0.02)  # so that the lock can be had
            database.dispose()

        threads = [threading.Thread(target=work) for work in (add_meanwhile, look)]
        for thread in threads:
            thread.start()
        moving.wait(10)
        wait_until(lambda: name_of(month, table) in reaper_of(own).make_partitions())
        done.set()
        for thread in threads:
            thread.join()

        assert count(own, table) == 20_000 + len(added)
        assert count(own, f"{table}_default") == 0
        assert len(seen) > 1
        assert all(rows_seen >= 20_000 + before for before, rows_seen in seen), seen

    def test_all_of_it_stays_when_the_move_is_stopped(
        self, own: Database, owner: Database, table: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(reaper_module, "MOVED_AT_ONCE", 500)
        drop_all_partitions(owner)
        add_to(own, table, this_month(own), 2000)
        reaper = reaper_of(own)
        monkeypatch.setattr(reaper_module, "_wait_no_longer_for_readers", lambda _: reaper.stop())

        with pytest.raises(Stopping):
            reaper.make_partitions()

        assert partitions(own, table) == []
        assert count(own, f"{table}_default") == 2000
        assert rows(own, "SELECT to_regclass(:name)", name=f"srm.{name_of(this_month(own), table)}") == [(None,)]

    def test_it_gets_the_months_of_all_that_it_holds(self, own: Database, owner: Database, table: str) -> None:
        drop_all_partitions(owner)
        month = this_month(own)
        for ago in (0, 1, 2):
            add_to(own, table, _months_after(month, -ago), 10)

        reaper_of(own).make_partitions()

        assert count(own, f"{table}_default") == 0
        for ago in (0, 1, 2):
            assert count(own, name_of(_months_after(month, -ago), table)) == 10

    def test_what_is_too_old_is_deleted_from_it(
        self, own: Database, table: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(reaper_module, "MOVED_AT_ONCE", 500)
        add_to(own, table, datetime.now(UTC) - timedelta(days=RETENTION_DAYS + 31), 1100)
        far_ahead = datetime.now(UTC) + timedelta(days=400)
        add_to(own, table, far_ahead)
        add_to(own, table, datetime.now(UTC))

        reaper_of(own).run()

        assert (count(own, table), count(own, f"{table}_default")) == (2, 1)

    def test_its_partitions_are_like_the_others(self, own: Database, owner: Database, table: str) -> None:
        """Nothing is left of the making, and the application may do no more with them."""
        drop_all_partitions(owner)
        month = this_month(own)
        add_to(own, table, month)
        reaper_of(own).make_partitions()
        constraints = "SELECT contype, count(*) FROM pg_constraint WHERE conrelid = CAST(:of AS regclass) GROUP BY 1"
        rights = "SELECT relacl::text FROM pg_class WHERE oid = CAST(:of AS regclass)"
        healed, made = (f"srm.{name_of(_months_after(month, ahead), table)}" for ahead in (0, 1))

        for of in (constraints, rights):
            assert sorted(rows(owner, of, of=healed)) == sorted(rows(owner, of, of=made))
        assert not rows(own, "SELECT has_table_privilege(:of, 'INSERT, UPDATE, DELETE, TRUNCATE')", of=healed)[0][0]


class TestRun:
    def test_it_does_all_that_is_due(self, own: Database, owner: Database, log: list[Any]) -> None:
        """A session goes all the way: lapsed long ago, it ends, moves, and is not kept."""
        factory = Factory(own)
        drop_all_partitions(owner)
        a_minute, an_hour, years = (factory.session(silent_for=seconds) for seconds in (60, 3600, 3 * 366 * 86400))

        reaper_of(own).run()

        assert session_row(own, a_minute).end_reason == "expired"
        assert [row.session_id for row in rows(own, "SELECT * FROM srm.session_history")] == [an_hour]
        assert count(own, f"sessions WHERE session_id = '{years}'") == 0
        assert len(partitions(own)) in (3, 4)  # an hour ago may have been last month
        (line,) = [line for line in log if line["event"] == "reaped"]
        assert (line["expired"], line["archived"]) == (3, 2)

    def test_it_says_nothing_when_nothing_was_due(self, reaper: Reaper, factory: Factory, log: list[Any]) -> None:
        factory.session()

        reaper.run()

        assert [line for line in log if line["log_level"] != "debug"] == []

    def test_it_goes_on_when_the_database_is_back(
        self, own: Database, own_url: str, server_url: str, log: list[Any]
    ) -> None:
        factory = Factory(own)
        reaper = reaper_of(own)
        session = factory.session(silent_for=31)
        name = make_url(own_url).database
        with psycopg.connect(server_url, autocommit=True) as server:
            server.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
            server.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
            reaper.run()
            reaper.run()
            server.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')

        assert [(line["log_level"], line["event"]) for line in log] == [("warning", "database unavailable")] * 2
        assert all(line["cause"] not in ("", "None") for line in log)
        reaper.run()
        assert session_row(own, session).end_reason == "expired"

    def test_it_logs_what_it_did_not_expect(self, own: Database, owner: Database, log: list[Any]) -> None:
        with owner.transaction() as db:
            db.exec_driver_sql("ALTER SCHEMA srm RENAME TO gone")

        reaper_of(own).run()

        with owner.transaction() as db:
            db.exec_driver_sql("ALTER SCHEMA gone RENAME TO srm")

        assert {(line["log_level"], line["event"]) for line in log} == {("error", "reaper failed")}
        assert [line["piece"] for line in log] == ["expired", "partitions_made", "archived", "dropped", "state"]


class TestState:
    """`srm.reaper_state`."""

    @staticmethod
    def state(database: Database) -> Any:
        (row,) = rows(database, "SELECT * FROM srm.reaper_state")
        return row

    def test_it_keeps_when_it_ran_and_how_much_it_did(self, own: Database) -> None:
        before = self.state(own)
        add(own, 3)
        add(own, 2, silent_for=2000)

        began_at = rows(own, "SELECT statement_timestamp()")[0][0]
        reaper_of(own).run()
        once = self.state(own)
        reaper_of(own).run()
        again = self.state(own)

        assert (once.expired, once.archived) == (before.expired + 5, before.archived + 2)
        assert (again.expired, again.archived) == (once.expired, once.archived)
        assert began_at < once.ran_at < again.ran_at
        assert (again.failed_at, again.failure) == (None, None)

    def test_it_counts_what_is_done_though_it_never_gets_through(
        self, own: Database, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = self.state(own)
        reaper = reaper_of(own)
        add(own, ENDED_AT_ONCE + 100)
        stop_after(reaper, "end_lapsed", monkeypatch)

        reaper.run()

        after = self.state(own)
        assert after.expired == before.expired + ENDED_AT_ONCE
        assert after.ran_at == before.ran_at

    def test_it_keeps_what_failed_until_all_goes_well(self, own: Database, owner: Database) -> None:
        factory = Factory(own)
        reaper = reaper_of(own)
        session = factory.session(silent_for=31)
        with owner.transaction() as db:
            db.exec_driver_sql("ALTER TABLE srm.denials RENAME TO gone")

        reaper.run()
        failed = self.state(own)
        reaper.run()
        still = self.state(own)
        with owner.transaction() as db:
            db.exec_driver_sql("ALTER TABLE srm.gone RENAME TO denials")
        reaper.run()
        well = self.state(own)

        assert session_row(own, session).end_reason == "expired"
        assert failed.failure.startswith("partitions_made: ")
        assert 'relation "srm.denials" does not exist' in failed.failure
        assert failed.failed_at == failed.ran_at < still.failed_at
        assert (well.failed_at, well.failure) == (None, None)

    def test_it_works_though_it_cannot_keep_it(self, own: Database, owner: Database, log: list[Any]) -> None:
        session = Factory(own).session(silent_for=31)
        with owner.transaction() as db:
            db.exec_driver_sql("UPDATE srm.reaper_state SET ran_at = NULL")
            db.exec_driver_sql("ALTER TABLE srm.reaper_state ADD CHECK (ran_at IS NULL)")

        reaper_of(own).run()
        with owner.transaction() as db:
            db.exec_driver_sql("ALTER TABLE srm.reaper_state DROP CONSTRAINT reaper_state_ran_at_check")

        assert session_row(own, session).end_reason == "expired"
        assert [line["piece"] for line in log if line["log_level"] == "error"] == ["state"]


class TestOneAtATime:
    @pytest.fixture
    def another(self, url: str, outside: Callable[[str], str]) -> Iterator[None]:
        """A reaper that is at work."""
        with psycopg.connect(outside(url)) as connection:
            connection.execute("SELECT pg_advisory_xact_lock(%s)", [ADVISORY_LOCK])
            yield

    @pytest.mark.usefixtures("another")
    @pytest.mark.parametrize("piece", ["expire", "archive", "make_partitions", "drop_partitions"])
    def test_it_is_busy_when_another_is_at_work(self, database: Database, piece: str) -> None:
        with pytest.raises(Busy):
            getattr(reaper_of(database), piece)()

    @pytest.mark.usefixtures("another")
    def test_it_leaves_the_work_to_the_other(self, factory: Factory, database: Database, log: list[Any]) -> None:
        session = factory.session(silent_for=31)

        reaper_of(database).run()

        assert session_row(database, session).ended_at is None
        assert [line for line in log if line["log_level"] != "debug"] == []

    def test_it_takes_over_when_the_other_is_gone(self, factory: Factory, database: Database, url: str) -> None:
        session = factory.session(silent_for=31)
        other = psycopg.connect(url)
        other.execute("SELECT pg_advisory_xact_lock(%s)", [ADVISORY_LOCK])
        other.close()

        def has_ended() -> bool:
            reaper_of(database).run()
            return session_row(database, session).ended_at is not None

        wait_until(has_ended)

    def test_it_does_each_thing_once_when_many_run(self, own: Database, own_url: str) -> None:
        add(own, 2000)
        ended: list[int] = []

        def work() -> None:
            database = Database(own_url, application_name="srm-tests")
            while count(own, "sessions WHERE ended_at IS NULL"):
                with suppress(Busy):
                    ended.append(reaper_of(database).expire())
            database.dispose()

        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert sum(ended) == 2000
        assert count(own, "sessions WHERE end_reason = 'expired'") == 2000


class TestStop:
    def test_it_ends_the_work_between_two_transactions(
        self, reaper: Reaper, database: Database, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        add(database, ENDED_AT_ONCE + 100)
        stop_after(reaper, "end_lapsed", monkeypatch)

        assert reaper.expire() == ENDED_AT_ONCE

        assert count(database, "sessions WHERE ended_at IS NULL") == 100

    def test_it_ends_the_move_between_two_transactions(
        self, reaper: Reaper, database: Database, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        add(database, ENDED_AT_ONCE + 100, silent_for=2000, ended_ago=1000)
        reaper.make_partitions()
        stop_after(reaper, "archive", monkeypatch)

        assert reaper.archive() == ENDED_AT_ONCE

        assert (count(database, "sessions"), count(database, "session_history")) == (100, ENDED_AT_ONCE)

    def test_it_begins_nothing_more(self, own: Database, owner: Database) -> None:
        factory = Factory(own)
        drop_all_partitions(owner)
        factory.session(silent_for=31)
        reaper = reaper_of(own)

        reaper.stop()
        reaper.run()

        assert count(own, "sessions WHERE ended_at IS NULL") == 1
        assert partitions(own) == []


def stop_after(reaper: Reaper, piece: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop the reaper while it is at that piece of work."""
    module = history if piece == "archive" else ending
    work = getattr(module, piece)

    def work_and_stop(*arguments: Any) -> Any:
        reaper.stop()
        return work(*arguments)

    monkeypatch.setattr(module, piece, work_and_stop)


class TestProcess:
    def test_it_refuses_to_run_without_a_database(self) -> None:
        assert_refused(srm("reaper"), "SRM_DATABASE_URL")

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_it_works_until_it_is_stopped(
        self, factory: Factory, database: Database, url: str, tmp_path: Path, number: int
    ) -> None:
        with support.reaper(url, tmp_path / "output", interval=0.1) as process:
            for _ in range(2):  # at once, and again later
                session = factory.session(silent_for=31)
                wait_until(lambda session=session: session_row(database, session).ended_at is not None)

            assert process.stop(number, timeout=5) == 0

        assert "reaper stopped" in process.text()
        assert "Traceback" not in process.text()

    def test_it_waits_for_a_database_that_is_away(self, tmp_path: Path) -> None:
        url = f"postgresql://srm:a-very-secret-password@127.0.0.1:{free_port()}/srm"
        with support.reaper(url, tmp_path / "output", interval=0.1) as process:
            wait_until(lambda: process.text().count("database unavailable") >= 2)

            assert process.stop(timeout=5) == 0

        assert "Traceback" not in process.text()
        assert "a-very-secret-password" not in process.text()

    def test_it_writes_json_lines_when_told_to(self, url: str, tmp_path: Path) -> None:
        import json

        command = support.python_m("srm.cli", "reaper")
        variables = {"SRM_DATABASE_URL": url, "SRM_LOG_FORMAT": "json"}
        with running(command, tmp_path / "output", variables=variables) as process:
            wait_until(lambda: "reaper starts" in process.text())
            process.stop()

        assert [json.loads(line)["event"] for line in process.text().splitlines()] == [
            "reaper starts",
            "reaper stopped",
        ]
