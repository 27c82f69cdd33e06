"""The reaper ends lapsed sessions and moves ended ones to the history.

docs/design.md, Invariant 3: a live session is never reaped.
"""

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from sqlalchemy.exc import DBAPIError

from srm.db.database import Database
from srm.playback import ending
from srm.playback.ending import ENDED_AT_ONCE, end_lapsed, find_lapsed
from srm.playback.history import archive
from srm.playback.keep_alive import keep_alive
from srm.playback.model import Principal
from srm.reaper import sessions as session_module
from srm.reaper.partitions import _months_after
from srm.reaper.runner import Reaper
from tests.reaper.data import (
    RETENTION_SECONDS,
    TEN_YEARS,
    add,
    count,
    end,
    end_at,
    name_of,
    partition_of_each,
    reaper_of,
    this_month,
)
from tests.support import Factory, rows, session_row, wait_until


class TestExpire:
    def test_a_lapsed_session_ends_at_the_instant_of_its_lapse(
        self, reaper: Reaper, factory: Factory, database: Database
    ) -> None:
        session = factory.session(silent_for=4711, timeout_seconds=30)

        assert reaper.expire() == 1

        row = session_row(database, session)
        assert row.end_reason == "expired"
        assert row.ended_at == row.last_keep_alive_at + timedelta(seconds=30)

    def test_a_session_ends_as_soon_as_its_timeout_has_passed(
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
    def test_a_session_ends_at_its_timeout_or_its_longest_life_whichever_comes_first(
        self,
        reaper: Reaper,
        factory: Factory,
        database: Database,
        timeout_seconds: int | None,
        old_after: int,
        lived: int,
    ) -> None:
        """The session was set up 100 s ago, and its last keep-alive was 40 s ago."""
        session = factory.session(silent_for=40, timeout_seconds=timeout_seconds, max_session_seconds=old_after)
        factory.age(session, 60, "started_at")
        young = factory.session(silent_for=20, timeout_seconds=timeout_seconds, max_session_seconds=old_after)

        assert reaper.expire() == 1

        row = session_row(database, session)
        assert (row.end_reason, row.ended_at) == ("expired", row.started_at + timedelta(seconds=lived))
        assert session_row(database, young).ended_at is None

    def test_sessions_that_have_not_lapsed_stay_unchanged(
        self, reaper: Reaper, factory: Factory, database: Database
    ) -> None:
        factory.session("active")
        factory.session("never lapses", silent_for=1_000_000, timeout_seconds=None)
        end(database, factory.session("ended", silent_for=50), seconds_ago=45)
        end(database, factory.session("ended, never lapses", silent_for=50, timeout_seconds=None), seconds_ago=45)
        before = rows(database, "SELECT * FROM srm.sessions ORDER BY account_id")

        assert reaper.expire() == 0

        assert rows(database, "SELECT * FROM srm.sessions ORDER BY account_id") == before

    def test_expiry_goes_on_until_no_lapsed_session_is_left(
        self, reaper: Reaper, database: Database, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(ending, "LAPSED_AT_ONCE", 1000)
        lapsed = 1001
        add(database, lapsed)
        add(database, 10, silent_for=0)

        assert reaper.expire() == lapsed

        assert count(database, "sessions WHERE ended_at IS NULL") == 10

    def test_a_second_expiry_changes_nothing(self, reaper: Reaper, factory: Factory, database: Database) -> None:
        session = factory.session(silent_for=31)
        reaper.expire()
        before = session_row(database, session)

        assert reaper.expire() == 0

        assert session_row(database, session) == before

    def test_a_session_with_a_keep_alive_since_the_search_stays_active(
        self, factory: Factory, database: Database
    ) -> None:
        saved, lost = (factory.session(silent_for=31) for _ in range(2))
        with database.request() as db:
            found = find_lapsed(db)
        assert len(found) == 2
        factory.age(saved, -31, "last_keep_alive_at")

        with database.request() as db:
            assert [ended.session_id for ended in end_lapsed(db, found)] == [str(lost)]

        assert session_row(database, saved).ended_at is None
        assert session_row(database, lost).end_reason == "expired"

    def test_a_session_torn_down_since_the_search_keeps_its_end_reason(
        self, factory: Factory, database: Database
    ) -> None:
        session = factory.session(silent_for=31)
        with database.request() as db:
            found = find_lapsed(db)
        end(database, session, seconds_ago=3)

        with database.request() as db:
            assert end_lapsed(db, found) == []

        assert session_row(database, session).end_reason == "teardown"

    def test_a_locked_session_waits_for_the_next_run_and_the_others_end(
        self, reaper: Reaper, factory: Factory, database: Database, url: str, outside: Callable[[str], str]
    ) -> None:
        """The keep-alive came in time and commits after the lapse. The reaper does not wait for it."""
        held, free = factory.session(silent_for=29.5, timeout_seconds=30), factory.session(silent_for=31)
        with psycopg.connect(outside(url)) as saving:
            assert keep_alive(saving.cursor(), Principal("a", "tv"), held)
            wait_until(lambda: self.seen_from_outside_is_lapsed(database, held))
            assert reaper.expire() == 1
            saving.commit()
        assert reaper.expire() == 0

        assert session_row(database, held).ended_at is None
        assert session_row(database, free).end_reason == "expired"

    def test_each_ended_session_is_logged_after_the_commit(
        self, reaper: Reaper, factory: Factory, database: Database, log: list[Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        session = factory.session("a", "tv", silent_for=31)
        factory.session("b", "tv")
        seen = []

        def look(event: str, **members: str) -> None:
            seen.append((event, members, session_row(database, session).end_reason))

        monkeypatch.setattr(session_module.log, "info", look)
        reaper.expire()

        row = session_row(database, session)
        members = {"account": "a", "device": "tv", "session": str(session), "end_reason": "expired"}
        assert seen == [("session ended", {**members, "ended_at": row.ended_at.isoformat()}, "expired")]

    def test_expiry_does_not_wait_for_each_of_many_locked_sessions(
        self, reaper: Reaper, factory: Factory, database: Database, url: str
    ) -> None:
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

    def test_expiry_one_by_one_stops_at_its_time_limit_and_keeps_what_it_ended(
        self, reaper: Reaper, database: Database, url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
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
    def test_an_ended_session_moves_to_the_history_when_its_retention_is_over(
        self, reaper: Reaper, factory: Factory, database: Database
    ) -> None:
        kept = end(database, factory.session(), seconds_ago=RETENTION_SECONDS - 10)
        moved = end(database, factory.session(), seconds_ago=RETENTION_SECONDS)
        active = factory.session(silent_for=1_000_000)
        reaper.make_partitions()

        assert reaper.archive() == 1

        assert {row.session_id for row in rows(database, "SELECT * FROM srm.sessions")} == {kept, active}
        assert [row.session_id for row in rows(database, "SELECT * FROM srm.session_history")] == [moved]

    def test_a_moved_session_keeps_every_value_that_describes_it(
        self, reaper: Reaper, factory: Factory, database: Database
    ) -> None:
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
            del session["idempotency_key"], session["clock_stepped_from"]  # the history does not need them
        reaper.make_partitions()

        assert reaper.archive() == 4

        after = [row._asdict() for row in rows(database, "SELECT * FROM srm.session_history ORDER BY session_id")]
        assert after == before
        assert count(database, "sessions") == 0

    def test_archiving_takes_as_many_transactions_as_it_needs(self, reaper: Reaper, database: Database) -> None:
        ended = 2 * ENDED_AT_ONCE + 1
        add(database, ended, silent_for=2000, ended_ago=1000)
        reaper.make_partitions()

        assert reaper.archive() == ended

        assert (count(database, "sessions"), count(database, "session_history")) == (0, ended)

    def test_archiving_reads_few_rows_with_stale_planner_statistics(self, own: Database) -> None:
        """By the statistics no session has ended. A plan by `ended_at` reads every ended session for each moved one."""
        reaper = reaper_of(own)
        add(own, 1000, silent_for=0)
        with own.transaction() as db:
            db.exec_driver_sql("ANALYZE srm.sessions")
        add(own, 20_000, silent_for=2000, ended_ago=1000)
        reaper.make_partitions()

        with own.transaction() as db:
            db.exec_driver_sql("SET LOCAL statement_timeout = '30s'")
            assert archive(db, RETENTION_SECONDS) == ENDED_AT_ONCE
            read = db.exec_driver_sql(
                "SELECT seq_tup_read + idx_tup_fetch FROM pg_stat_xact_user_tables "
                "WHERE relid = 'srm.sessions'::regclass"
            ).scalar_one()

        assert read < 100_000

    def test_archiving_stops_at_its_time_limit_and_the_next_run_moves_the_rest(
        self, reaper: Reaper, database: Database, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(session_module, "ARCHIVE_SECONDS", 0)
        add(database, ENDED_AT_ONCE + 100, silent_for=2000, ended_ago=1000)
        reaper.make_partitions()

        assert reaper.archive() == ENDED_AT_ONCE
        assert reaper.archive() == 100

    def test_a_failing_move_leaves_every_session_where_it_was(self, own: Database, owner: Database) -> None:
        """A constraint refuses one of two sessions."""
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

    def test_sessions_that_ended_long_ago_get_partitions_of_their_months(self, own: Database) -> None:
        factory = Factory(own)
        reaper = reaper_of(own, TEN_YEARS)
        two_months_ago = _months_after(this_month(own), -2)
        instants: list[str | datetime] = [two_months_ago, "2021-05-05 12:00+00:00", "2020-12-31 12:00+00:00"]
        ended = [end_at(factory, instant) for instant in instants]
        expected = [name_of(two_months_ago), "session_history_2021_05", "session_history_2020_12"]

        reaper.make_partitions()
        assert reaper.archive() == 3

        assert partition_of_each(own) == dict(zip(ended, expected, strict=True))

    def test_sessions_older_than_the_history_retention_get_no_partition_and_are_deleted(self, own: Database) -> None:
        """The session goes through the default partition."""
        reaper = reaper_of(own)
        end_at(Factory(own), "2021-05-05 12:00+00:00")

        assert reaper.make_partitions() == []
        assert reaper.archive() == 1
        assert set(partition_of_each(own).values()) == {"session_history_default"}
        reaper.drop_partitions()

        assert (count(own, "sessions"), count(own, "session_history")) == (0, 0)
