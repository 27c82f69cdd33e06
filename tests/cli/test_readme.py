"""What the README shows works as pasted, on the demo data: the SQL, the imports, the service."""

import json
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import psycopg
import pytest

from srm.db.database import Database
from srm.operators import demo
from tests.cli.command import run, srm
from tests.support import ROOT, Factory, api, free_port, issue_token, python_m, running, wait_until

SQL = re.compile(r"<<'SQL'\n(.*?)\nSQL\n|psql \"\$\(srm db url\)\" -c '(.*?)'", re.DOTALL)

BULK = re.compile(r"^(?:srm (?:import|export) .*\n(?:[^`]*?^(?:CSV|JSON)\n)?)+", re.MULTILINE)


@pytest.fixture
def url(clone: Callable[[], str]) -> str:
    """A database with the demo data."""
    url = clone()
    database = Database(url, application_name="srm-tests")
    with database.transaction() as db:
        demo.load(db)
    database.dispose()
    return url


def test_its_imports_and_exports_work(url: str, tmp_path: Path) -> None:
    (script,) = BULK.findall((ROOT / "README.md").read_text())
    srm = shlex.join(python_m("srm.cli"))

    result = run(
        ["bash", "-ec", f'srm() {{ {srm} "$@"; }}\n{script}'], tmp_path, SRM_DATABASE_URL=url, PYTHONPATH=str(ROOT)
    )

    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.count(": 2 new, 0 changed, 0 unchanged") == 4
    assert "entitlements (dry run): 8 rows" in result.stdout
    assert '4712,stb-1,tv,"TV, upstairs",true\n' in result.stdout
    assert list(tmp_path.iterdir()) == [tmp_path / "entitlements.csv.gz"]


def test_its_sql_works(url: str) -> None:
    statements = [block or command for block, command in SQL.findall((ROOT / "README.md").read_text())]

    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)
        (profile,) = connection.execute("SELECT profile_id FROM srm.accounts WHERE account_id = 'demo-1'").fetchall()

    assert len(statements) >= 5
    assert profile == ("family",)
    assert srm("audit", SRM_DATABASE_URL=url).returncode == 0


def test_its_entitlement_service_works(clone: Callable[[], str], tmp_path: Path) -> None:
    """On another port, with the curl line beside it."""
    readme = (ROOT / "README.md").read_text()
    port = str(free_port())
    (code,) = re.findall(r"<<'PY'\n(.*?)\nPY\n", readme, re.DOTALL)
    (curl,) = re.findall(r"^curl -s http://127.0.0.1:9090/ .*?}'$", readme, re.DOTALL | re.MULTILINE)
    program = tmp_path / "entitlements.py"
    program.write_text(code.replace("9090", port))
    url = clone()
    database = Database(url, application_name="srm-tests")
    Factory(database).account("a", products=())
    database.dispose()
    variables = {"SRM_ENTITLEMENTS": "http", "SRM_ENTITLEMENTS_URL": f"http://127.0.0.1:{port}/"}
    command = ["bash", "-c", curl.replace("9090", port)]
    with running([sys.executable, str(program)], tmp_path / "log"):
        wait_until(lambda: run(command).returncode == 0)
        said = json.loads(run(command).stdout)

        with api(url, tmp_path / "api.log", workers=1, threads=None, variables=variables) as (base, _):

            def set_up(content_type: str) -> str:
                body = {"content": {"contentID": "x", "contentType": content_type}}
                headers = {"Client-Token": issue_token("a", "tv")}
                return httpx.post(f"{base}/srm/v1/sessions", json=body, headers=headers).text

            assert "successResponse" in set_up("COD")
            assert "SRM-0007" in set_up("LIVE")

    assert said == {"granted": False, "reason": "no live channels for demo-1"}


def test_the_files_that_it_names_are_there() -> None:
    named = set(re.findall(r"\b(?:deploy|docs)/[\w./-]*\w", (ROOT / "README.md").read_text()))

    assert len(named) > 4
    assert [path for path in named if not (ROOT / path).exists()] == []
