"""psql on the database in use: `srm db shell`."""

import os
import shutil
from collections.abc import Sequence
from typing import NoReturn

from psycopg.conninfo import make_conninfo
from psycopg.pq import Conninfo
from sqlalchemy.engine import make_url

from srm.db import embedded
from srm.db.connection import conninfo
from srm.errors import CommandError, StartupError

SECRET = b"*"
"""Mark of libpq for an option that must not be shown (PostgreSQL manual, `PQconndefaults`)."""


def run(url: str, arguments: Sequence[str]) -> NoReturn:
    """Replace this process by psql. A statement that fails ends a script, with exit code 3.

    Raises CommandError when there is no psql, or when it cannot be given a secret of the URL unseen.
    """
    program = _program()
    variables, others = _options(url)
    dbname = [f"--dbname={make_conninfo('', **others)}"] if others else []
    command = [str(program), "--set=ON_ERROR_STOP=1", *dbname, *arguments]
    os.execve(program, command, {**os.environ, **variables})  # noqa: S606 psql is to have our terminal


def _program() -> str:
    """Return the path of psql: the embedded server's where that is installed, else the one on PATH."""
    try:
        return str(embedded.programs() / "psql")
    except StartupError:
        found = shutil.which("psql")
    if found is None:
        raise CommandError(
            "no psql here: install PostgreSQL's client, or in the checkout the embedded one: pip install '.[embedded]'"
        )
    return found


def _options(url: str) -> tuple[dict[str, str], dict[str, str]]:
    """Return the options of the URL that libpq takes from the environment, by variable; and the others, by name.

    `ps` shows the arguments of a process to every user, and its environment to none but its own.
    """
    variables, others = {}, {}
    for option in Conninfo.parse(conninfo(make_url(url)).encode()):
        if option.val is None:
            continue
        if option.envvar is not None:
            variables[option.envvar.decode()] = option.val.decode()
        elif option.dispchar == SECRET:
            raise CommandError(
                f"{option.keyword.decode()} in the URL of the database would be seen in `ps`: leave it out"
            )
        else:
            others[option.keyword.decode()] = option.val.decode()
    return variables, others
