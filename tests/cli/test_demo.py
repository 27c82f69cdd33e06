"""`srm demo load` and `srm demo reset`: the accounts of the documents, and the way back to them."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from srm.db import models
from srm.db.database import Database
from srm.operators import demo
from tests.cli.command import Result, assert_refused, srm
from tests.support import Factory, rows, session_row

TABLES = {
    "account_profiles": "profile_id",
    "accounts": "account_id",
    "devices": "account_id",
    "contents": "content_id",
    "products": "product_id",
    "product_contents": "product_id",
    "entitlements": "account_id",
    "profile_device_groups": "profile_id",
    "profile_content_groups": "profile_id",
    "content_groups": "content_id",
}
"""Tables that hold demo data, or that a reader may write for it, and the column that says whose a row is."""

CONTENTS = ("100001V3D", "BTV_CH1_V", "BTV_CH1_E1", "BTV_CH2_V")

CHANGES = [
    "UPDATE srm.account_profiles SET max_sessions = 99, timeout_seconds = 1 WHERE profile_id LIKE 'demo-%%'",
    "UPDATE srm.account_profiles SET mode = 'observe', on_limit = 'evict_oldest' WHERE profile_id LIKE 'demo-%%'",
    "UPDATE srm.accounts SET enabled = NOT enabled, max_sessions = 1, profile_id = 'demo-no-keep-alive'",
    "UPDATE srm.devices SET enabled = NOT enabled, device_group = 'x', name = 'x'",
    "UPDATE srm.contents SET channel_id = 'BTV_CH2_V', title = 'x' WHERE content_id = 'BTV_CH1_E1'",
    "UPDATE srm.contents SET channel_id = 'BTV_CH2_V', title = 'x' WHERE content_id = 'BTV_CH1_V'",
    "UPDATE srm.products SET name = 'x' WHERE product_id LIKE 'demo-%%'",
    "UPDATE srm.entitlements SET valid_until = statement_timestamp()",
    "DELETE FROM srm.devices WHERE account_id = 'demo-1'",
    "DELETE FROM srm.accounts WHERE account_id = 'demo-full'",
    "DELETE FROM srm.entitlements",
    "DELETE FROM srm.product_contents WHERE product_id = 'demo-package'",
]
ADDITIONS = [
    "INSERT INTO srm.devices (account_id, device_id, device_group, name) VALUES ('demo-1', 'stb', 'tv', 'x')",
    "INSERT INTO srm.entitlements (account_id, product_id) VALUES ('demo-1', 'basic')",
    "INSERT INTO srm.product_contents (product_id, content_type, content_id) "
    "VALUES ('demo-package', 'LIVE', 'BTV_CH2_V')",
    "INSERT INTO srm.profile_device_groups (profile_id, device_group) VALUES ('demo-standard', 'tv')",
    "INSERT INTO srm.profile_content_groups (profile_id, content_group) VALUES ('demo-replace', 'sports')",
    "INSERT INTO srm.content_groups (content_id, content_group) VALUES ('BTV_CH1_V', 'sports')",
]


@pytest.fixture
def loaded(database: Database) -> Database:
    """A database with the demo data, which was loaded as the application does it."""
    with database.transaction() as db:
        demo.load(db, "tests")
    return database


def demo_rows(database: Database) -> dict[str, list[Any]]:
    """All rows of the demo data, and what was added to it."""
    is_demo = "{0} LIKE 'demo-%' OR {0} = ANY(:ids)".format
    return {
        table: sorted(rows(database, f"SELECT * FROM srm.{table} WHERE {is_demo(column)}", ids=list(CONTENTS)), key=str)
        for table, column in TABLES.items()
    }


def other_rows(database: Database) -> dict[str, list[Any]]:
    """All other rows of these tables."""
    return {
        table: sorted(rows(database, f"SELECT * FROM srm.{table} WHERE {column} NOT LIKE 'demo-%'"), key=str)
        for table, column in TABLES.items()
    }


def change(database: Database, statement: str) -> None:
    with database.transaction() as db:
        db.exec_driver_sql(statement)


class TestLoad:
    def test_load_writes_an_account_for_each_story(self, loaded: Database) -> None:
        accounts = rows(
            loaded,
            "SELECT account_id, enabled, p.max_sessions, timeout_seconds, same_device "
            "FROM srm.accounts JOIN srm.account_profiles p USING (profile_id) ORDER BY account_id",
        )

        assert [tuple(account) for account in accounts] == [
            ("demo-1", True, 4, 3600, "replace"),
            ("demo-2", False, 3, 3600, "count"),
            ("demo-3", True, 3, None, "replace"),
            ("demo-care", True, 3, 3600, "count"),
            ("demo-family", True, 3, 3600, "count"),
            ("demo-full", True, 3, 3600, "count"),
            ("demo-retry", True, 3, 3600, "count"),
        ]

    def test_load_writes_four_devices_for_each_account(self, loaded: Database) -> None:
        devices = rows(loaded, "SELECT account_id, device_id, enabled FROM srm.devices")

        assert {tuple(device) for device in devices} == {
            *(
                (account, f"{account}-{kind}", True)
                for account in demo.ACCOUNTS
                for kind in ("tv", "phone", "tablet", "laptop")
            ),
            ("demo-1", "demo-1-old", False),
        }

    def test_load_writes_the_contents_of_the_documents(self, loaded: Database) -> None:
        contents = rows(loaded, "SELECT content_id, channel_id FROM srm.contents WHERE content_id <> 'film'")

        assert {tuple(content) for content in contents} == {
            ("100001V3D", None),
            ("BTV_CH1_V", None),
            ("BTV_CH1_E1", "BTV_CH1_V"),
            ("BTV_CH2_V", None),
        }

    @pytest.mark.parametrize("account", demo.ACCOUNTS)
    def test_load_entitles_each_account_to_all_contents_but_one(self, loaded: Database, account: str) -> None:
        granted = rows(
            loaded,
            "SELECT content_type, content_id FROM srm.entitlements JOIN srm.product_contents USING (product_id) "
            "WHERE account_id = :account AND valid_from <= statement_timestamp() AND valid_until IS NULL",
            account=account,
        )

        assert {tuple(grant) for grant in granted} == {
            ("COD", "100001V3D"),
            ("LIVE", "BTV_CH1_V"),
            ("TS", "BTV_CH1_V"),
            ("CU", "BTV_CH1_V"),
            ("NPVR", "BTV_CH1_V"),
        }

    def test_a_second_load_changes_nothing(self, url: str, loaded: Database) -> None:
        before = demo_rows(loaded)

        result = srm("demo", "load", SRM_DATABASE_URL=url)

        assert (result.returncode, result.stdout, result.stderr) == (0, "demo data loaded\n", "")
        assert demo_rows(loaded) == before

    @pytest.mark.parametrize("statement", CHANGES)
    def test_load_sets_changed_rows_back(self, loaded: Database, statement: str) -> None:
        before = demo_rows(loaded)
        change(loaded, statement)
        assert demo_rows(loaded) != before

        with loaded.transaction() as db:
            demo.load(db, "tests")

        assert demo_rows(loaded) == before

    def test_load_ends_sessions_of_accounts_and_devices_that_it_disables(
        self, loaded: Database, factory: Factory
    ) -> None:
        change(loaded, "UPDATE srm.accounts SET enabled = true")
        change(loaded, "UPDATE srm.devices SET enabled = true")
        sessions = [
            factory.session(account, device)
            for account, device in [("demo-2", "demo-2-tv"), ("demo-1", "demo-1-old"), ("demo-1", "demo-1-tv")]
        ]

        with loaded.transaction() as db:
            demo.load(db, "tests")

        reasons = [session_row(loaded, session).end_reason for session in sessions]
        assert reasons == ["account_disabled", "device_disabled", None]

    def test_demo_data_without_one_of_its_accounts_is_not_loaded(self, loaded: Database) -> None:
        change(loaded, "DELETE FROM srm.accounts WHERE account_id = 'demo-full'")

        with loaded.transaction() as db:
            assert not demo.is_loaded(db)
            demo.load(db, "tests")
            assert demo.is_loaded(db)

    def test_all_ids_of_demo_data_begin_with_demo(self, database: Database) -> None:
        """But for the contents: these are the examples of the published API."""
        tables = [table for table in TABLES if not table.startswith("content")]
        before = {table: rows(database, f"SELECT * FROM srm.{table}") for table in tables}

        with database.transaction() as db:
            demo.load(db, "tests")

        for table in tables:
            added = set(rows(database, f"SELECT * FROM srm.{table}")) - set(before[table])
            assert all(row[0].startswith("demo-") for row in added), table


class TestReset:
    def reset(self, database: Database, *accounts: str) -> int:
        with database.transaction() as db:
            return demo.reset(db, "tests", accounts)

    @pytest.mark.parametrize("statement", [*CHANGES, *ADDITIONS])
    def test_reset_undoes_changes_and_additions(self, loaded: Database, statement: str) -> None:
        before = demo_rows(loaded)
        change(loaded, statement)
        assert demo_rows(loaded) != before

        self.reset(loaded)

        assert demo_rows(loaded) == before

    def test_reset_ends_and_records_the_sessions_of_demo_accounts_alone(
        self, call: Callable[..., Result], url: str, loaded: Database, factory: Factory
    ) -> None:
        factory.account("4711")
        of_demo = [factory.session(account, f"{account}-tv") for account in ("demo-1", "demo-full")]
        other = factory.session("4711")

        result = call("demo", "reset", SRM_DATABASE_URL=url)

        assert (result.returncode, result.stdout) == (0, "demo data set back, 2 sessions ended\n")
        assert [session_row(loaded, session).end_reason for session in (*of_demo, other)] == ["operator"] * 2 + [None]
        recorded = rows(loaded, "SELECT operator, action, account_id FROM srm.operator_audit ORDER BY account_id")
        assert [row[1:] for row in recorded] == [("end", "demo-1"), ("end", "demo-full")]
        assert all(row.operator.startswith("cli:") for row in recorded)

    def test_reset_of_one_account_leaves_the_other_demo_accounts_alone(
        self, call: Callable[..., Result], url: str, loaded: Database, factory: Factory
    ) -> None:
        sessions = [factory.session(account, f"{account}-tv") for account in ("demo-1", "demo-full")]
        factory.change(models.Account, {"account_id": "demo-1"}, enabled=False)

        result = call("demo", "reset", "demo-full", SRM_DATABASE_URL=url)

        assert result.stdout == "demo data set back, 1 session ended\n"
        assert [session_row(loaded, session).end_reason for session in sessions] == [None, "operator"]
        assert rows(loaded, "SELECT enabled FROM srm.accounts WHERE account_id = 'demo-1'") == [(False,)]

    def test_reset_does_not_count_sessions_that_had_lapsed(self, loaded: Database, factory: Factory) -> None:
        lapsed = factory.session("demo-1", "demo-1-tv", silent_for=31)

        assert self.reset(loaded) == 0
        assert session_row(loaded, lapsed).end_reason == "expired"

    def test_reset_leaves_rows_of_operators_alone(self, loaded: Database, factory: Factory) -> None:
        """Also a profile of the name that demo data had in an earlier release."""
        factory.account("4711", profile=factory.profile("default", max_sessions=7))
        factory.product("demo", ("COD", "film"))
        others = other_rows(loaded)

        self.reset(loaded)

        assert other_rows(loaded) == others

    def test_reset_refuses_where_the_demo_data_was_never_loaded(
        self, call: Callable[..., Result], url: str, database: Database, factory: Factory
    ) -> None:
        factory.account("demo-1")
        session = factory.session("demo-1")

        assert_refused(call("demo", "reset", SRM_DATABASE_URL=url), "not loaded", "srm demo load")
        assert session_row(database, session).end_reason is None

    def test_reset_of_an_unknown_account_names_the_demo_accounts(self, call: Callable[..., Result], url: str) -> None:
        result = call("demo", "reset", "4711", SRM_DATABASE_URL=url)

        assert (result.returncode, result.stdout) == (2, "")
        assert "'4711' is not one of 'demo-1', 'demo-2'" in result.stderr

    def test_several_resets_at_once_give_the_demo_data(self, url: str, loaded: Database) -> None:
        before = demo_rows(loaded)
        change(loaded, "DELETE FROM srm.accounts WHERE account_id LIKE 'demo-%%'")
        with_long_timeout = Database(url, application_name="srm-tests", statement_timeout_seconds=60)  # as commands are

        with ThreadPoolExecutor() as threads:
            list(threads.map(lambda _: self.reset(with_long_timeout), range(4)))

        with_long_timeout.dispose()
        assert demo_rows(loaded) == before
