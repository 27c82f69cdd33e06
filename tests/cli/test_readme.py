"""The SQL that the README shows works as pasted, one after the other, on the demo data."""

import re
from collections.abc import Callable

import psycopg

from srm import demo
from srm.database import Database
from tests.cli.command import srm
from tests.support import ROOT

SQL = re.compile(r"<<'SQL'\n(.*?)\nSQL\n|psql \"\$\(srm db url\)\" -c '(.*?)'", re.DOTALL)


def test_its_sql_works(clone: Callable[[], str]) -> None:
    url = clone()
    database = Database(url, application_name="srm-tests")
    with database.transaction() as db:
        demo.load(db)
    database.dispose()
    statements = [block or command for block, command in SQL.findall((ROOT / "README.md").read_text())]

    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)  # type: ignore[call-overload]
        (profile,) = connection.execute("SELECT profile_id FROM srm.accounts WHERE account_id = 'demo-1'").fetchall()

    assert len(statements) >= 5
    assert profile == ("family",)
    assert srm("audit", SRM_DATABASE_URL=url).returncode == 0
