"""Keep-alives are heap-only updates, so the indexes of `sessions` do not bloat."""

from collections.abc import Callable, Iterator
from uuid import UUID

import pytest

from srm.db.database import Database
from srm.playback.keep_alive import keep_alive
from srm.playback.model import Principal
from tests.support import rows

SESSIONS = 300
KEEP_ALIVES_OF_EACH = 20


@pytest.fixture
def database(clone: Callable[[], str]) -> Iterator[Database]:
    """A new database, whose update counters are at zero."""
    database = Database(clone(), application_name="srm-tests")
    yield database
    database.dispose()


def test_a_keep_alive_updates_no_index(database: Database) -> None:
    sessions: list[UUID] = [
        row.session_id
        for row in rows(
            database,
            """
            INSERT INTO srm.sessions (account_id, session_id, device_id, content_type, content_id, timeout_seconds)
            SELECT 'account ' || n, gen_random_uuid(), 'tv', 'COD', 'film', 30 FROM generate_series(1, :count) AS n
            RETURNING account_id, session_id
            """,
            count=SESSIONS,
        )
    ]

    for _ in range(KEEP_ALIVES_OF_EACH):
        for number, session in enumerate(sessions, start=1):
            assert keep_alive(database.hot, Principal(f"account {number}", "tv"), session)
    database.hot.execute("SELECT pg_stat_force_next_flush()", {})
    database.hot.execute("SELECT 1", {})  # the counters are sent after the statement
    database.hot.close()

    (counted,) = rows(
        database, "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relid = 'srm.sessions'::regclass"
    )
    assert counted.n_tup_upd == SESSIONS * KEEP_ALIVES_OF_EACH
    assert counted.n_tup_hot_upd > 0.95 * counted.n_tup_upd
