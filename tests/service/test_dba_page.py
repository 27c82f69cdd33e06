"""docs/dba.md: each of its queries runs as `srm_readonly`, and shows what is in the tables."""

import os
import re
import subprocess
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from sqlalchemy.engine import make_url

from srm.db.connection import conninfo
from srm.db.database import Database
from srm.db.embedded import programs
from srm.playback.keep_alive import keep_alive
from srm.playback.model import Principal
from tests.support import ROOT, Factory, as_role, environment

PAGE = (ROOT / "docs" / "dba.md").read_text()
QUERIES = dict(re.findall(r"^### ([^\n]+)\n\n```sql\n(.+?)```", PAGE, re.M | re.S))

HISTORY = """
    INSERT INTO srm.session_history (account_id, session_id, device_id, content_type, content_id, started_at,
                                     ended_at, end_reason)
    VALUES ('demo-1', gen_random_uuid(), 'tv', 'COD', 'film', {}, {}, '{}')
"""


@pytest.fixture(scope="module")
def populated(clone: Callable[[], str]) -> str:
    """Two accounts that watch, one of them at its limit and denied; sessions that ended last night and just now."""
    url = clone()
    database = Database(url, application_name="srm-tests")
    factory = Factory(database)
    factory.account("demo-1", "tv", "phone", "tablet", max_sessions=2)
    factory.account("demo-2", max_sessions=2)
    in_the_way = [factory.session("demo-1", device, silent_for=5) for device in ("tv", "phone")]
    factory.session("demo-2")
    factory.session("demo-2", silent_for=100)  # lapsed, and not ended yet
    midnight = "date_trunc('day', now())"
    with database.transaction() as db:
        for began, ended, reason in [
            (f"{midnight} - interval '7 hours'", f"{midnight} - interval '5 hours 30 seconds'", "teardown"),
            (f"{midnight} - interval '5 hours 59 minutes'", f"{midnight} - interval '5 hours'", "expired"),
            (f"{midnight} - interval '50 hours'", f"{midnight} - interval '49 hours'", "teardown"),
            ("now() - interval '50 minutes'", "now() - interval '1 minute'", "expired"),
        ]:
            db.exec_driver_sql(HISTORY.format(began, ended, reason))
        for _ in range(3):
            db.exec_driver_sql(
                "INSERT INTO srm.denials (account_id, device_id, content_type, content_id, error_code, rule, "
                "rule_limit, in_the_way) VALUES ('demo-1', 'tablet', 'COD', 'film', 'SRM-0006', 'max_sessions', 2, %s)",
                (in_the_way,),
            )
        db.exec_driver_sql(
            "INSERT INTO srm.denials (account_id, device_id, content_type, content_id, error_code) "
            "VALUES ('demo-2', 'tv', 'LIVE', 'channel', 'SRM-0007')"
        )
        db.exec_driver_sql(
            "UPDATE srm.reaper_state SET ran_at = now() - interval '200 s', expired = 12, archived = 34, "
            "failed_at = now() - interval '200 s', failure = 'archived: no space left'"
        )
    for _ in range(50):
        assert keep_alive(database.hot, Principal("demo-1", "tv"), in_the_way[0])
    database.hot.execute("SELECT pg_stat_force_next_flush()", {})
    database.hot.execute("SELECT 1", {})  # the counters are sent after the statement
    database.dispose()
    return as_role("srm_readonly", url)


def ask(url: str, question: str) -> list[dict[str, Any]]:
    """Rows of the last statement of a query of the page, by column."""
    return ask_all(url, question)[-1]


def ask_all(url: str, question: str) -> list[list[dict[str, Any]]]:
    """Rows of each statement of a query of the page."""
    with psycopg.connect(url, autocommit=True, row_factory=psycopg.rows.dict_row) as connection:
        cursor = connection.execute(QUERIES[question])
        found = [cursor.fetchall()]
        while cursor.nextset():
            found.append(cursor.fetchall())
        return found


def test_the_dba_page_has_ten_queries() -> None:
    assert len(QUERIES) == PAGE.count("```sql") == 10


def test_the_dba_page_lists_each_table(populated: str) -> None:
    """Partitions and the table of Alembic are not listed."""
    named = {name for row in re.findall(r"^\| (`[^|]*) \|", PAGE, re.M) for name in re.findall(r"`(\w+)`", row)}
    with psycopg.connect(populated) as connection:
        there = connection.execute(
            "SELECT relname FROM pg_class WHERE relnamespace = 'srm'::regnamespace AND relkind IN ('r', 'p') "
            "AND NOT relispartition AND relname <> 'alembic_version'"
        ).fetchall()

    assert {name for (name,) in there} - named == set()


def test_the_psql_command_of_the_dba_page_shows_a_table_with_its_comments(populated: str) -> None:
    (block,) = re.findall(r"^```sh test=tests/service/test_dba_page\.py\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    shown = "postgresql://srm_readonly@db.example/srm"
    assert shown in block

    result = subprocess.run(
        ["bash", "-euc", block.replace(shown, conninfo(make_url(populated)))],
        env=environment(PATH=f"{programs()}:{os.environ['PATH']}"),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    assert (result.returncode, result.stderr) == (0, "")
    assert "Account that holds the slot" in result.stdout


def test_a_query_counts_active_sessions_by_content_type_and_device_group(populated: str) -> None:
    (row,) = ask(populated, "Who watches now?")
    assert (row["content_type"], row["device_group"], row["sessions"]) == ("COD", "tv", 3)


def test_a_query_finds_the_account_at_its_limit(populated: str) -> None:
    (row,) = ask(populated, "Which accounts are at their limit?")
    assert (row["account_id"], row["max_sessions"], row["active_sessions"]) == ("demo-1", 2, 2)


def test_a_query_counts_denials_by_account_and_rule(populated: str) -> None:
    found = ask(populated, "Who is denied most often?")
    assert [(row["account_id"], row["why"], row["denials"], row["devices"]) for row in found] == [
        ("demo-1", "max_sessions", 3, 1),
        ("demo-2", "SRM-0007", 1, 1),
    ]


def test_a_query_shows_each_session_that_was_in_the_way_of_a_denied_setup(populated: str) -> None:
    found = ask(populated, "Why was this customer denied?")
    assert len(found) == 3 * 2
    assert {(row["device_id"], row["rule"], row["rule_limit"], row["watched"]) for row in found} == {
        ("tablet", "max_sessions", 2, "film")
    }
    assert {row["in_the_way"] for row in found} == {"tv", "phone"}


def test_a_query_counts_the_sessions_of_each_minute_of_last_night(populated: str) -> None:
    """One session began before the night, one in it; then both end. Later minutes depend on the time of the test."""
    found = ask(populated, "How many sessions were there in each minute of last night?")
    assert [(row["setups"], row["sessions_at_its_end"]) for row in found[:4]] == [(0, 1), (1, 2), (0, 1), (0, 0)]


def test_a_query_shows_the_last_run_of_the_reaper_and_the_sessions_that_wait_for_it(populated: str) -> None:
    (state,), (first, *others) = ask_all(populated, "What has the reaper done?")
    assert (state["ran_ago"].seconds // 60, state["expired"], state["archived"]) == (3, 12, 34)
    assert state["failure"] == "archived: no space left"
    assert (first["minute"], first["end_reason"], first["sessions"]) == (None, "waits for the reaper", 1)
    assert ("expired", 1) in {(row["end_reason"], row["sessions"]) for row in others}


def test_a_query_shows_the_share_of_heap_only_updates(populated: str) -> None:
    (row,) = ask(populated, "Is `sessions` well?")
    assert row["updates"] >= 50
    assert row["hot_percent"] > 90


def test_a_query_shows_the_size_of_each_table_and_index(populated: str) -> None:
    found = ask(populated, "How large are tables and indexes?")
    assert {"accounts", "sessions", "denials_default"} <= {row["relname"] for row in found}
    assert "sessions_pkey" in {row["indexrelname"] for row in found}
    assert all(re.fullmatch(r"\d+ (bytes|kB|MB)", row["size"]) for row in found)


def test_a_query_lists_the_partitions_of_both_tables(populated: str) -> None:
    found = ask(populated, "How large are the partitions?")
    assert [row["months"] for row in found].count("DEFAULT") == 2
    assert len(found) >= 2 * 4


def test_a_query_shows_who_waits_for_a_lock_and_who_holds_it(populated: str, outside: Callable[[str], str]) -> None:
    owner = outside(populated)
    with psycopg.connect(owner) as holder, psycopg.connect(owner, autocommit=True) as waiter:
        holder.execute("LOCK TABLE srm.accounts")
        waiter.pgconn.send_query(b"SET application_name = 'waiter'; SELECT FROM srm.accounts")
        while not (found := ask(populated, "Who waits for whom?")):
            pass
        (row,) = found
        assert (row["pid"], row["holder"]) == (waiter.info.backend_pid, holder.info.backend_pid)
        assert "FROM srm.accounts" in row["wants"]
        assert row["last_did"] == "LOCK TABLE srm.accounts"
        holder.rollback()
        while waiter.pgconn.get_result() is not None:
            pass
