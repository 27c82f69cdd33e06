"""schemathesis runs the OpenAPI document against the live service, with both credentials and with none."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from srm.db.database import Database
from tests import support
from tests.support import Factory

CONFIG = Path(__file__).with_name("schemathesis.toml")


EVERYTHING = ("--max-examples", "40")
A_LITTLE = ("--max-examples", "5")
WITHOUT_COVERAGE = (*A_LITTLE, "--phases", "examples,fuzzing,stateful")
"""The phase `coverage` sends 2,000 requests: once is enough for one blueprint under two prefixes."""


@pytest.mark.parametrize(
    ("prefix", "with_credentials", "options"),
    [
        ("/srm/v1", True, A_LITTLE),
        ("/srm/v1", False, WITHOUT_COVERAGE),
        pytest.param("/srm", True, WITHOUT_COVERAGE, marks=pytest.mark.long(20)),
        *(
            pytest.param(prefix, with_credentials, EVERYTHING, marks=pytest.mark.long(90))
            for prefix in ("/srm/v1", "/srm")
            for with_credentials in (True, False)
        ),
    ],
)
def test_schemathesis_finds_no_undocumented_answer_and_no_crash(
    clone: Callable[[], str], tmp_path: Path, prefix: str, with_credentials: bool, options: tuple[str, ...]
) -> None:
    url = clone()
    database = Database(url, application_name="srm-tests")
    factory = Factory(database)
    factory.account("a", max_sessions=50)
    operator = factory.operator("admin")
    database.dispose()

    with support.api(url, tmp_path / "api.log") as (base, _):
        command = support.python_m("schemathesis.cli", "--config-file", str(CONFIG), "run")
        command += [f"{base}/srm/v1/openapi.json"]
        command += ["--url", f"{base}{prefix}", "--checks", "all", "--no-color", *options]
        command += ["--generation-deterministic", "--suppress-health-check", "all"]
        if with_credentials:
            command += ["--header", f"Client-Token: {support.issue_token('a', 'tv')}"]
            command += ["--header", f"Operator-Key: {operator['Operator-Key']}"]
        result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)

    assert result.returncode == 0, result.stdout + result.stderr
