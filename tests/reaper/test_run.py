"""One run of the reaper, its record, its lock, its stop, and its process."""

import json
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy.engine import make_url

from srm.db.database import Database
from srm.playback.ending import ENDED_AT_ONCE
from srm.reaper.exclusive import ADVISORY_LOCK, Busy
from srm.reaper.runner import Reaper
from tests import support
from tests.cli.command import assert_refused, srm
from tests.reaper.data import (
    add,
    count,
    drop_all_partitions,
    partitions,
    reaper_of,
    stop_after,
)
from tests.support import Factory, free_port, rows, running, session_row, wait_until


class TestRun:
    def test_one_run_ends_archives_and_drops_what_is_due(self, own: Database, owner: Database, log: list[Any]) -> None:
        """Three sessions lapsed a minute, an hour and three years ago. The last one ends, moves and is dropped."""
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

    def test_a_run_with_nothing_to_do_logs_nothing(self, reaper: Reaper, factory: Factory, log: list[Any]) -> None:
        factory.session()

        reaper.run()

        assert [line for line in log if line["log_level"] != "debug"] == []

    def test_a_run_logs_that_the_database_is_away_and_the_next_run_works(
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

    def test_unexpected_errors_are_logged_for_each_task(self, own: Database, owner: Database, log: list[Any]) -> None:
        with owner.transaction() as db:
            db.exec_driver_sql("ALTER SCHEMA srm RENAME TO gone")

        reaper_of(own).run()

        with owner.transaction() as db:
            db.exec_driver_sql("ALTER SCHEMA gone RENAME TO srm")

        assert {(line["log_level"], line["event"]) for line in log} == {("error", "reaper failed")}
        assert [line["piece"] for line in log] == ["expired", "partitions_made", "archived", "dropped", "state"]


class TestState:
    """The record of the last run in `srm.reaper_state`."""

    @staticmethod
    def state(database: Database) -> Any:
        (row,) = rows(database, "SELECT * FROM srm.reaper_state")
        return row

    def test_each_run_records_its_time_and_adds_to_the_counters(self, own: Database) -> None:
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

    def test_a_run_that_is_stopped_counts_the_sessions_that_it_has_ended(
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

    def test_a_failure_stays_on_record_until_a_run_succeeds(self, own: Database, owner: Database) -> None:
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

    def test_the_reaper_works_when_its_record_cannot_be_written(
        self, own: Database, owner: Database, log: list[Any]
    ) -> None:
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
        """Hold the lock of a reaper at work."""
        with psycopg.connect(outside(url)) as connection:
            connection.execute("SELECT pg_advisory_xact_lock(%s)", [ADVISORY_LOCK])
            yield

    @pytest.mark.usefixtures("another")
    @pytest.mark.parametrize("piece", ["expire", "archive", "make_partitions", "drop_partitions"])
    def test_every_task_is_busy_while_another_reaper_works(self, database: Database, piece: str) -> None:
        with pytest.raises(Busy):
            getattr(reaper_of(database), piece)()

    @pytest.mark.usefixtures("another")
    def test_a_run_does_nothing_and_logs_nothing_while_another_reaper_works(
        self, factory: Factory, database: Database, log: list[Any]
    ) -> None:
        session = factory.session(silent_for=31)

        reaper_of(database).run()

        assert session_row(database, session).ended_at is None
        assert [line for line in log if line["log_level"] != "debug"] == []

    def test_the_next_reaper_takes_over_when_the_working_one_is_gone(
        self, factory: Factory, database: Database, url: str
    ) -> None:
        session = factory.session(silent_for=31)
        other = psycopg.connect(url)
        other.execute("SELECT pg_advisory_xact_lock(%s)", [ADVISORY_LOCK])
        other.close()

        def has_ended() -> bool:
            reaper_of(database).run()
            return session_row(database, session).ended_at is not None

        wait_until(has_ended)

    def test_several_reapers_at_once_end_each_session_once(self, own: Database, own_url: str) -> None:
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
    def test_stop_ends_expiry_between_two_transactions(
        self, reaper: Reaper, database: Database, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        add(database, ENDED_AT_ONCE + 100)
        stop_after(reaper, "end_lapsed", monkeypatch)

        assert reaper.expire() == ENDED_AT_ONCE

        assert count(database, "sessions WHERE ended_at IS NULL") == 100

    def test_stop_ends_archiving_between_two_transactions(
        self, reaper: Reaper, database: Database, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        add(database, ENDED_AT_ONCE + 100, silent_for=2000, ended_ago=1000)
        reaper.make_partitions()
        stop_after(reaper, "archive", monkeypatch)

        assert reaper.archive() == ENDED_AT_ONCE

        assert (count(database, "sessions"), count(database, "session_history")) == (100, ENDED_AT_ONCE)

    def test_a_stopped_reaper_begins_no_task(self, own: Database, owner: Database) -> None:
        factory = Factory(own)
        drop_all_partitions(owner)
        factory.session(silent_for=31)
        reaper = reaper_of(own)

        reaper.stop()
        reaper.run()

        assert count(own, "sessions WHERE ended_at IS NULL") == 1
        assert partitions(own) == []


class TestProcess:
    def test_the_command_stops_without_a_database_url(self) -> None:
        assert_refused(srm("reaper"), "SRM_DATABASE_URL")

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_the_process_works_at_once_and_again_until_a_signal(
        self, factory: Factory, database: Database, url: str, tmp_path: Path, number: int
    ) -> None:
        with support.reaper(url, tmp_path / "output", interval=0.1) as process:
            for _ in range(2):  # at once, and again later
                session = factory.session(silent_for=31)
                wait_until(lambda session=session: session_row(database, session).ended_at is not None)

            assert process.stop(number) == 0

        assert "reaper stopped" in process.text()
        assert "Traceback" not in process.text()

    def test_the_process_keeps_trying_while_the_database_is_away_and_never_logs_the_password(
        self, tmp_path: Path
    ) -> None:
        url = f"postgresql://srm:a-very-secret-password@127.0.0.1:{free_port()}/srm"
        with support.reaper(url, tmp_path / "output", interval=0.1) as process:
            wait_until(lambda: process.text().count("database unavailable") >= 2)

            assert process.stop() == 0

        assert "Traceback" not in process.text()
        assert "a-very-secret-password" not in process.text()

    def test_the_process_logs_json_lines_when_configured_to(self, url: str, tmp_path: Path) -> None:
        command = support.python_m("srm.cli", "reaper")
        variables = {"SRM_DATABASE_URL": url, "SRM_LOG_FORMAT": "json"}
        with running(command, tmp_path / "output", variables=variables) as process:
            wait_until(lambda: "reaper starts" in process.text())
            process.stop()

        assert [json.loads(line)["event"] for line in process.text().splitlines()] == [
            "reaper starts",
            "reaper stopped",
        ]
