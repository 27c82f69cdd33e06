"""What a request leaves in the log. In a real process: logging belongs to the process."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from srm.database import Database
from tests.support import SETUP, Factory, api, issue_token


def lines_of(log: str, correlation_id: str) -> list[dict[str, Any]]:
    """The log lines of a request."""
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    return [line for line in lines if line.get("correlation_id") == correlation_id]


def test_it_logs_each_refusal_and_crash_once(clone: Callable[[], str], tmp_path: Path) -> None:
    url = clone()
    database = Database(url, application_name="srm-tests")
    Factory(database).account("a", max_sessions=0)
    token = issue_token("a", "tv")
    with api(url, tmp_path / "log", workers=1, SRM_LOG_FORMAT="json") as (base, process):

        def set_up(correlation_id: str) -> int:
            headers = {"Client-Token": token, "X-Correlation-Id": correlation_id}
            return httpx.post(f"{base}/srm/v1/sessions", json=SETUP, headers=headers).status_code

        assert set_up("refused") == 200
        with database.transaction() as db:
            db.exec_driver_sql("DROP TABLE srm.entitlements CASCADE")
        database.dispose()
        assert set_up("crashed") == 500
        log = process.text()

    (refused,) = lines_of(log, "refused")
    assert refused["level"] == "info"
    assert (refused["account"], refused["device"], refused["error_code"]) == ("a", "tv", "SRM-0006")
    (crashed,) = lines_of(log, "crashed")
    assert crashed["level"] == "error"
    assert (crashed["account"], crashed["device"], crashed["error_code"]) == ("a", "tv", "SRM-0001")
    assert "UndefinedTable" in json.dumps(crashed["exception"])
    assert token not in log
