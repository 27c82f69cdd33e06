"""Rows and partitions for the tests of the reaper."""

from datetime import datetime
from typing import Any
from uuid import UUID

import pytest

from srm.db.database import Database
from srm.playback import ending, history
from srm.reaper.runner import Reaper
from tests.support import Factory, rows

RETENTION_SECONDS = 300
RETENTION_DAYS = 90
TEN_YEARS = 3650


def reaper_of(database: Database, history_retention_days: int = RETENTION_DAYS) -> Reaper:
    return Reaper(database, ended_retention_seconds=RETENTION_SECONDS, history_retention_days=history_retention_days)


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
    """Make a session that ended at this instant."""
    moment = datetime.fromisoformat(instant) if isinstance(instant, str) else instant
    return factory.session(ended_at=moment, end_reason="teardown")


def add(database: Database, count: int, *, silent_for: float = 100, ended_ago: float | None = None) -> None:
    """Add many sessions to 100 accounts: lapsed, or with `ended_ago` ended. Both are seconds."""
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
    """Add rows of this instant to one of the partitioned tables."""
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
    """Drop every partition but the default ones."""
    for name in partitions(owner) + partitions(owner, "denials"):
        with owner.transaction() as db:
            db.exec_driver_sql(f"DROP TABLE srm.{name}")


def name_of(month: datetime, table: str = "session_history") -> str:
    return f"{table}_{month:%Y_%m}"


def this_month(database: Database) -> datetime:
    month: datetime = rows(database, "SELECT date_trunc('month', statement_timestamp(), 'UTC')")[0][0]
    return month


def stop_after(reaper: Reaper, piece: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop the reaper the next time it calls this function of srm.playback."""
    module = history if piece == "archive" else ending
    work = getattr(module, piece)

    def work_and_stop(*arguments: Any) -> Any:
        reaper.stop()
        return work(*arguments)

    monkeypatch.setattr(module, piece, work_and_stop)
