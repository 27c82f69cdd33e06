"""What the README shows works as pasted: the SQL, one after the other, on the demo data, and the service."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import psycopg

from srm import demo
from srm.database import Database
from tests.cli.command import run, srm
from tests.support import ROOT, Factory, api, free_port, issue_token, running, wait_until

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

        with api(url, tmp_path / "api.log", workers=1, threads=None, **variables) as (base, _):

            def set_up(content_type: str) -> str:
                body = {"content": {"contentID": "x", "contentType": content_type}}
                headers = {"Client-Token": issue_token("a", "tv")}
                return httpx.post(f"{base}/srm/v1/sessions", json=body, headers=headers).text

            assert "successResponse" in set_up("COD")
            assert "SRM-0007" in set_up("LIVE")

    assert said == {"granted": False, "reason": "no live channels for demo-1"}
