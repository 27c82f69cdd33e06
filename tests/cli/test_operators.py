"""`srm operator`: making, listing and revoking keys."""

import getpass
import re
from collections.abc import Callable

import pytest

from srm.db.database import Database
from srm.errors import OperatorKeyNotValid
from srm.operators import keys
from srm.operators.keys import Operator
from tests.cli.command import Result, assert_refused
from tests.support import rows

Call = Callable[..., Result]


def test_add_prints_the_key_once_alone_on_the_last_line(call: Call, url: str, database: Database) -> None:
    result = call("operator", "add", "joe@example", "--role", "care", SRM_DATABASE_URL=url)

    assert result.returncode == 0, result.stderr
    key = result.stdout.splitlines()[-1]
    assert re.fullmatch(r"joe@example\.[A-Za-z0-9_-]{43}", key)
    assert result.stdout.count(key) == 1
    assert keys.authenticate(database.hot, key) == Operator("joe@example", "care")
    listed = call("operator", "list", SRM_DATABASE_URL=url).stdout
    assert key.rpartition(".")[2] not in listed
    assert re.fullmatch(r"joe@example\tcare\tcreated \d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ\tactive\n", listed)


def test_a_revoked_operator_can_get_a_new_key(call: Call, url: str, database: Database) -> None:
    first = call("operator", "add", "joe", "--role", "admin", SRM_DATABASE_URL=url).stdout.splitlines()[-1]
    assert_refused(call("operator", "add", "joe", "--role", "viewer", SRM_DATABASE_URL=url), "joe", "revoke")
    assert keys.authenticate(database.hot, first).role == "admin"

    assert call("operator", "revoke", "joe", SRM_DATABASE_URL=url).returncode == 0

    with pytest.raises(OperatorKeyNotValid):
        keys.authenticate(database.hot, first)
    assert re.search(r"joe\tadmin\t.*\trevoked ", call("operator", "list", SRM_DATABASE_URL=url).stdout)
    assert_refused(call("operator", "revoke", "joe", SRM_DATABASE_URL=url), "joe")
    second = call("operator", "add", "joe", "--role", "viewer", SRM_DATABASE_URL=url).stdout.splitlines()[-1]
    assert keys.authenticate(database.hot, second).role == "viewer"


@pytest.mark.parametrize("name", ["", ".joe", "joe.", "@joe", "a b", "jö", "joe\n", "x" * 65, "a/b", "'; --"])
def test_a_name_that_would_need_quoting_is_refused(call: Call, url: str, database: Database, name: str) -> None:
    assert_refused(call("operator", "add", name, "--role", "viewer", SRM_DATABASE_URL=url), "name")

    assert rows(database, "SELECT 1 FROM srm.operators") == []


@pytest.mark.parametrize("arguments", [["add", "joe"], ["add", "joe", "--role", "root"], ["add", "--role", "viewer"]])
def test_wrong_arguments_make_no_key(call: Call, url: str, database: Database, arguments: list[str]) -> None:
    assert call("operator", *arguments, SRM_DATABASE_URL=url).returncode == 2

    assert rows(database, "SELECT 1 FROM srm.operators") == []


def test_revoking_an_unknown_operator_is_refused(call: Call, url: str) -> None:
    assert_refused(call("operator", "revoke", "nobody", SRM_DATABASE_URL=url), "nobody")


def test_the_change_log_tells_who_made_and_revoked_keys(call: Call, url: str, database: Database) -> None:
    call("operator", "add", "joe", "--role", "admin", SRM_DATABASE_URL=url)
    call("operator", "revoke", "joe", SRM_DATABASE_URL=url)

    by = f"cli:{getpass.getuser()}"
    assert rows(
        database, "SELECT operator, action, resource, account_id FROM srm.operator_audit ORDER BY changed_at"
    ) == [(by, "create", "operators/joe", ""), (by, "revoke", "operators/joe", "")]
