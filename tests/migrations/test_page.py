"""docs/migrations.md: its blocks run as pasted. Its upgrade under load is test_upgrade_under_load.py."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from srm.db import schema
from srm.db.embedded import programs
from tests.migrations.test_migrations import execute, query
from tests.support import ROOT, environment

PAGE = (ROOT / "docs" / "migrations.md").read_text()
BLOCK = re.compile(r"^ *```sh test=tests/migrations/test_page\.py\n(.*?)^ *```", re.MULTILINE | re.DOTALL)


def paste(block: str, typed: str = "", cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run a block in a checkout. It has no terminal, so that psql asks for passwords on standard input."""
    path = f"{Path(sys.executable).parent}:{programs()}:{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "-uc", block],
        env=environment(PATH=path, SRM_DATABASE_URL="postgresql://nobody@db.example/srm"),
        cwd=cwd,
        input=typed,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        start_new_session=True,
    )


def test_the_migrations_page_goes_back_from_the_head_of_this_release() -> None:
    """Whoever pastes the way back begins at the head."""
    assert f"alembic downgrade {schema.head_revision()}:0013 --sql" in PAGE


def test_the_printed_sql_of_the_migrations_page_goes_back(
    clone: Callable[[], str], outside: Callable[[str], str]
) -> None:
    (block,) = [block for block in BLOCK.findall(PAGE) if "downgrade" in block]
    url = clone()

    result = paste(block)
    execute(outside(url), result.stdout)

    assert result.returncode == 0, result.stderr
    assert query(url, "SELECT version_num FROM srm.alembic_version") == [("0013",)]


def test_a_new_migration_gets_its_file(tmp_path: Path) -> None:
    (block,) = [block for block in BLOCK.findall(PAGE) if "alembic revision" in block]
    shutil.copytree(ROOT / "migrations", tmp_path / "migrations")
    shutil.copy(ROOT / "alembic.ini", tmp_path)
    number = f"{int(schema.head_revision()) + 1:04}"

    result = paste(block, cwd=tmp_path)

    assert result.returncode == 0, result.stderr
    assert f'down_revision = "{schema.head_revision()}"' in (
        tmp_path / "migrations" / "versions" / f"{number}_verb_object.py"
    ).read_text().replace("'", '"')


@pytest.mark.parametrize("times", [1, 2])
def test_the_migrations_page_gives_the_first_release_its_roles(
    clone: Callable[[], str], outside: Callable[[str], str], times: int
) -> None:
    """The roles of the server are there already, so `CREATE ROLE` fails; the rest has to go on."""
    (block,) = [block for block in BLOCK.findall(PAGE) if "CREATE ROLE" in block]
    url = outside(clone())
    superuser = make_url(url).username
    for shown, here in {"postgresql://postgres@db.example/srm": f"'{url}'", "TO srm'": f"TO {superuser}'"}.items():
        assert shown in block
        block = block.replace(shown, here)

    for _ in range(times):
        result = paste(block, typed="password\n" * 4)

    unexpected = [line for line in result.stderr.splitlines() if line.startswith("ERROR") and "already" not in line]
    assert (result.returncode, unexpected) == (0, [])
    assert query(url, "SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = 'srm'") == [("srm_owner",)]
