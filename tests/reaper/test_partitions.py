"""The reaper makes monthly partitions ahead of time and drops them by age."""

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError

from srm.db.breaker import is_timeout
from srm.db.database import Database
from srm.errors import DependencyUnavailable, SessionLimitReached
from srm.playback.lanes import Lanes
from srm.playback.model import ContentRef, Principal
from srm.playback.setup import SetupRequest
from srm.reaper import partitions as partition_module
from srm.reaper.exclusive import Stopping
from srm.reaper.partitions import PARTITIONED, _months_after
from tests import support
from tests.reaper.data import (
    RETENTION_DAYS,
    RETENTION_SECONDS,
    TEN_YEARS,
    add_to,
    count,
    drop_all_partitions,
    end_at,
    name_of,
    partition_of_each,
    partitions,
    reaper_of,
    this_month,
)
from tests.support import Factory, rows, wait_until


class TestMakePartitions:
    @pytest.mark.parametrize("table", ["session_history", "denials"])
    def test_partitions_are_made_for_this_month_and_two_ahead(self, own: Database, owner: Database, table: str) -> None:
        drop_all_partitions(owner)

        reaper_of(own).make_partitions()

        month = this_month(own)
        assert partitions(own, table) == [name_of(_months_after(month, ahead), table) for ahead in (0, 1, 2)]

    def test_making_partitions_again_changes_nothing(self, own: Database, owner: Database) -> None:
        drop_all_partitions(owner)
        reaper_of(own).make_partitions()
        made = partitions(own)

        reaper_of(own).make_partitions()

        assert partitions(own) == made

    @pytest.mark.parametrize("table", ["session_history", "denials"])
    @pytest.mark.parametrize("what", ["SELECT FROM srm.{}", "LOCK TABLE ONLY srm.{} IN ROW EXCLUSIVE MODE"])
    def test_making_a_partition_gives_way_to_a_reader_or_writer_and_the_other_table_still_gets_its_own(
        self, own: Database, owner: Database, own_url: str, log: list[Any], table: str, what: str
    ) -> None:
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
    def test_a_partition_has_the_columns_and_the_key_of_its_table(self, own: Database, table: str) -> None:
        partition = partitions(own, table)[0]
        of_columns = """
            SELECT column_name, data_type, is_nullable, column_default FROM information_schema.columns
            WHERE table_schema = 'srm' AND table_name = :table ORDER BY ordinal_position
        """

        assert rows(own, of_columns, table=partition) == rows(own, of_columns, table=table)
        assert rows(
            own, "SELECT 1 FROM pg_index WHERE indisprimary AND indrelid = CAST(:of AS regclass)", of=f"srm.{partition}"
        )

    def test_a_missing_month_between_others_is_made_again(self, own: Database, owner: Database) -> None:
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
    def test_months_are_counted_across_the_end_of_a_year(
        self, month: tuple[int, int], count_: int, expected: tuple[int, int]
    ) -> None:
        assert _months_after(datetime(*month, 1, tzinfo=UTC), count_) == datetime(*expected, 1, tzinfo=UTC)

    @pytest.mark.parametrize("timezone", ["UTC", "Pacific/Kiritimati", "America/Los_Angeles"])
    def test_partitions_begin_at_midnight_utc_in_any_time_zone_of_the_database(
        self, own_url: str, server_url: str, timezone: str
    ) -> None:
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
        """The first instant after an old partition, which ended more than a month ago."""
        month = _months_after(this_month(own), -3)
        end_at(Factory(own), month)
        reaper_of(own).make_partitions()
        assert name_of(month) in partitions(own)
        return _months_after(month, 1)

    def test_a_partition_wholly_older_than_the_retention_is_dropped(self, own: Database, old: datetime) -> None:
        days = (datetime.now(UTC) - old).days
        before = partitions(own)

        dropped = reaper_of(own, days).drop_partitions()

        month = name_of(_months_after(old, -1))
        assert dropped == [month]
        assert partitions(own) == [name for name in before if name != month]

    def test_a_partition_partly_younger_than_the_retention_stays(self, own: Database, old: datetime) -> None:
        days = (datetime.now(UTC) - old).days + 1
        before = partitions(own)

        assert reaper_of(own, days).drop_partitions() == []

        assert partitions(own) == before

    def test_denials_are_dropped_at_the_age_of_the_history(self, own: Database, old: datetime) -> None:
        month = _months_after(old, -1)
        days = (datetime.now(UTC) - old).days
        add_to(own, "denials", month)
        assert reaper_of(own, days + 1).make_partitions() == [name_of(month, "denials")]

        assert name_of(month, "denials") not in reaper_of(own, days + 1).drop_partitions()
        assert count(own, "denials") == 1
        assert name_of(month, "denials") in reaper_of(own, days).drop_partitions()
        assert count(own, "denials") == 0

    def test_dropping_a_partition_gives_up_within_a_second_while_somebody_reads(
        self, own: Database, own_url: str, old: datetime
    ) -> None:
        days = (datetime.now(UTC) - old).days
        with psycopg.connect(own_url) as somebody:
            somebody.execute("SELECT FROM srm.session_history")
            began_at = time.monotonic()

            with pytest.raises(DependencyUnavailable) as gave_up:
                reaper_of(own, days).drop_partitions()

            assert is_timeout(gave_up.value)
            assert time.monotonic() - began_at < 1
        assert reaper_of(own, days).drop_partitions() != []

    def test_the_partition_of_this_month_stays_at_the_shortest_retention(self, own: Database) -> None:
        before = partitions(own)

        assert reaper_of(own, 1).drop_partitions() == []

        assert partitions(own) == before

    def test_tables_that_are_no_partitions_of_the_reaper_stay(self, own: Database, owner: Database) -> None:
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
    """Rows without a partition of their month go to the default partition, and move when theirs is made."""

    @pytest.fixture(params=["session_history", "denials"])
    def table(self, request: pytest.FixtureRequest) -> str:
        table: str = request.param
        return table

    @pytest.fixture(params=["a right is missing", "the name is taken"])
    def broken(self, request: pytest.FixtureRequest, own: Database, owner: Database) -> Callable[[], None]:
        """Make it impossible to make partitions. Call the result to mend that."""
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

    def test_rows_are_kept_in_the_default_partition_until_their_own_can_be_made(
        self, own: Database, broken: Callable[[], None], log: list[Any]
    ) -> None:
        factory = Factory(own)
        reaper = reaper_of(own)
        ended = end_at(factory, datetime.now(UTC) - timedelta(seconds=RETENTION_SECONDS + 1))

        reaper.run()
        refusal = SessionLimitReached("max_sessions", 1, ())
        lanes = Lanes(own, unclaimed_teardown=lambda *_: None)
        lanes.record_denial(SetupRequest(Principal("a", "tv"), ContentRef("COD", "film")), refusal)
        lanes.close()

        assert partition_of_each(own) == {ended: "session_history_default"}
        assert count(own, "denials_default") == 1
        failures = [line for line in log if line["log_level"] == "error"]
        assert [(line["event"], line["piece"]) for line in failures] == [("reaper failed", "partitions_made")]

        broken()
        reaper.run()

        assert set(partition_of_each(own).values()) == {name_of(datetime.now(UTC))}
        assert (count(own, "denials_default"), count(own, f"denials_{datetime.now(UTC):%Y_%m}")) == (0, 1)
        assert [line for line in log if line["log_level"] == "error"] == failures

    def test_a_partition_left_half_made_is_finished_with_its_rows_and_rights(
        self, own: Database, owner: Database, table: str, own_url: str
    ) -> None:
        """Someone called the function by hand, once. No query on the table sees the rows it moved."""
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

    def test_a_partition_that_cannot_be_made_does_not_keep_others_from_being_made(
        self, own: Database, owner: Database
    ) -> None:
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

    def test_every_row_stays_visible_while_rows_move_out_of_the_default_partition(
        self, own: Database, owner: Database, table: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Also the rows that are added meanwhile."""
        monkeypatch.setattr(partition_module, "MOVED_AT_ONCE", 500)
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

    def test_a_move_out_of_the_default_partition_that_is_stopped_leaves_all_rows_there(
        self, own: Database, owner: Database, table: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(partition_module, "MOVED_AT_ONCE", 500)
        drop_all_partitions(owner)
        add_to(own, table, this_month(own), 2000)
        reaper = reaper_of(own)
        monkeypatch.setattr(partition_module, "_limit_lock_wait", lambda _: reaper.stop())

        with pytest.raises(Stopping):
            reaper.make_partitions()

        assert partitions(own, table) == []
        assert count(own, f"{table}_default") == 2000
        assert rows(own, "SELECT to_regclass(:name)", name=f"srm.{name_of(this_month(own), table)}") == [(None,)]

    def test_every_month_in_the_default_partition_gets_a_partition(
        self, own: Database, owner: Database, table: str
    ) -> None:
        drop_all_partitions(owner)
        month = this_month(own)
        for ago in (0, 1, 2):
            add_to(own, table, _months_after(month, -ago), 10)

        reaper_of(own).make_partitions()

        assert count(own, f"{table}_default") == 0
        for ago in (0, 1, 2):
            assert count(own, name_of(_months_after(month, -ago), table)) == 10

    def test_rows_older_than_the_retention_are_deleted_from_the_default_partition(
        self, own: Database, table: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(partition_module, "MOVED_AT_ONCE", 500)
        add_to(own, table, datetime.now(UTC) - timedelta(days=RETENTION_DAYS + 31), 1100)
        far_ahead = datetime.now(UTC) + timedelta(days=400)
        add_to(own, table, far_ahead)
        add_to(own, table, datetime.now(UTC))

        reaper_of(own).run()

        assert (count(own, table), count(own, f"{table}_default")) == (2, 1)

    def test_a_partition_filled_from_the_default_one_has_the_constraints_and_rights_of_the_others(
        self, own: Database, owner: Database, table: str
    ) -> None:
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
