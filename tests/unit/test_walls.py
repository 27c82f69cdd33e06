"""Walls of the house that imports alone cannot show: SQL, wire names and HTTP stay in their packages.

docs/design.md, "Layers", says which package knows what. The import contracts in `setup.cfg` hold the rest.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import ROOT

SQL_PACKAGES = ("db", "playback", "operators", "reaper")
SQL = re.compile(
    r"""\s*(
        SELECT\s | INSERT\s+INTO\s | UPDATE\s+\w+ | DELETE\s+FROM\s | WITH\s+\w+\s+AS\s
        | COPY\s*\( | COPY\s+[\w."]+\s*(\(|FROM\b|TO\b)
        | LOCK\s+TABLE\s | LOCK\s+[\w."]+(\s+IN\s|\s*;?\s*$)
        | SET\s+(LOCAL\s+)?\w+\s*(=|TO) | BEGIN\b | COMMIT\b | ROLLBACK\b | (RELEASE\s+)?SAVEPOINT\s+\w+
        | (ALTER|CREATE|DROP)\s+(DATABASE|FUNCTION|INDEX|ROLE|SCHEMA|SEQUENCE|SYSTEM|TABLE|USER|VIEW)\s
    )""",
    re.VERBOSE,
)

WIRE_PACKAGES = ("api",)
CAMEL_CASE = re.compile(r"[a-z]+([A-Z][a-z]+|ID)+")
"""sessionId, contentID: the form of the members of the API's JSON."""
HEADER = re.compile(
    r"(?i)(client-token|operator-key|idempotency-key|x-correlation-id|retry-after|cache-control|srm-end-reason)"
)
OTHER_CONTRACTS = {
    "srm/app.py": "settings of Swagger UI",
    "srm/config.py": "the default names of the claims of a Client-Token",
    "srm/clients/entitlement_service.py": "the contract of the operator's entitlement service",
    "srm/operators/documents.py": "import files and the change log",
    "srm/values.py": "JSON Schema",
}
"""Modules that know names of another contract than the API, and which one."""


def modules_outside(packages: tuple[str, ...]) -> list[Path]:
    """The modules of srm/ that are in none of the packages."""
    return [
        path for path in sorted((ROOT / "srm").rglob("*.py")) if path.relative_to(ROOT / "srm").parts[0] not in packages
    ]


def constants(path: Path) -> Iterator[tuple[int, str]]:
    """Line and text of each string of a module that is no docstring."""
    tree = ast.parse(path.read_text())
    docstrings = {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.lineno, node.value


def found(path: Path, pattern: re.Pattern[str], *, whole: bool = False) -> list[str]:
    """The places where a string of the module matches the pattern."""
    match = pattern.fullmatch if whole else pattern.match
    return [f"{path.relative_to(ROOT)}:{line}: {text[:60]!r}" for line, text in constants(path) if match(text)]


def test_sql_is_written_only_in_the_packages_of_the_database_and_the_rules() -> None:
    places = [place for path in modules_outside(SQL_PACKAGES) for place in found(path, SQL)]

    assert places == []


def test_names_of_the_wire_are_written_only_in_the_api() -> None:
    places = []
    for path in modules_outside(WIRE_PACKAGES):
        if str(path.relative_to(ROOT)) not in OTHER_CONTRACTS:
            places += found(path, CAMEL_CASE, whole=True)
            places += found(path, HEADER, whole=True)

    assert places == []


def test_http_statuses_are_known_only_to_the_api() -> None:
    fields = re.compile(r"\b(http_status|status_code|Retry-After)\b")
    places = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in modules_outside((*WIRE_PACKAGES, "clients", "serve"))
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if fields.search(line)
    ]

    assert places == []


@pytest.mark.parametrize("path", OTHER_CONTRACTS)
def test_a_module_with_a_contract_of_its_own_is_there(path: str) -> None:
    assert (ROOT / path).exists()


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        (SQL, "SELECT 1 FROM srm.sessions"),
        (SQL, "\n    INSERT INTO srm.accounts VALUES (1)"),
        (SQL, "SET LOCAL lock_timeout = 10"),
        (SQL, "COPY srm.accounts FROM STDIN"),
        (SQL, "COPY srm.accounts (account_id) TO STDOUT"),
        (SQL, "COPY (SELECT 1) TO STDOUT"),
        (SQL, "LOCK TABLE srm.sessions IN SHARE MODE"),
        (SQL, "LOCK srm.sessions"),
        (SQL, "SAVEPOINT before_insert"),
        (SQL, "RELEASE SAVEPOINT before_insert"),
        (SQL, "ROLLBACK"),
        (SQL, "ROLLBACK TO SAVEPOINT before_insert"),
        (SQL, "ALTER TABLE srm.sessions ADD COLUMN x text"),
        (SQL, "ALTER ROLE srm SET lock_timeout = 10"),
        (CAMEL_CASE, "sessionId"),
        (CAMEL_CASE, "contentID"),
        (CAMEL_CASE, "errorResponse"),
        (HEADER, "Client-Token"),
    ],
)
def test_the_patterns_recognise_what_they_are_for(pattern: re.Pattern[str], text: str) -> None:
    assert pattern.match(text)


@pytest.mark.parametrize(
    "text",
    [
        "Copy the file to the server",
        "copy from a backup",
        "Lock the account until the transaction ends",
        "Alter the role of an operator",
        "Select an operator",
        "LOCK_ACCOUNT",
        "COPY_BUFFER",
    ],
)
def test_english_is_not_taken_for_sql(text: str) -> None:
    assert not SQL.match(text)
