"""Imports point down only, and the rules know neither the web framework nor the scheduler."""

import json
import subprocess
import sys
from pathlib import Path

from tests.support import ROOT, environment

RULES = (
    "operators.provisioning",
    "operators.bulk.importer",
    "clients.tokens",
    "playback.setup",
    "playback.keep_alive",
    "playback.teardown",
    "db.database",
    "db.embedded",
    "config",
    "errors",
)
FOREIGN = {"flask", "werkzeug", "apscheduler", "gunicorn", "flask_swagger_ui"}


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)


def test_the_rules_load_neither_web_framework_nor_scheduler() -> None:
    imports = ", ".join(f"srm.{name}" for name in RULES)
    code = f"import json, sys, {imports}; print(json.dumps(sorted(sys.modules)))"

    result = run(sys.executable, "-c", code)

    assert result.returncode == 0, result.stderr
    loaded = {name.partition(".")[0] for name in json.loads(result.stdout)}
    assert {"srm", "sqlalchemy"} <= loaded
    assert loaded & FOREIGN == set()


def test_the_import_contracts_hold() -> None:
    lint_imports = Path(sys.executable).with_name("lint-imports")

    result = run(str(lint_imports), "--config", "setup.cfg", "--no-cache")

    assert result.returncode == 0, result.stdout + result.stderr
    assert "0 broken" in result.stdout
