"""Imports that are killed, that run twice at once, or that disable accounts and devices while these set up sessions."""

import random
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from srm.db.database import Database
from tests import support
from tests.cli.command import srm
from tests.concurrency.players import Player
from tests.support import Factory, environment, python_m, rows

PAUSE_SECONDS = 0.1
"""Between two setups of a player. Each is admitted, and every later setup of the account looks at all of them."""

DUMP = {
    "accounts": "SELECT * FROM srm.accounts ORDER BY account_id",
    "devices": "SELECT * FROM srm.devices ORDER BY account_id, device_id",
    "entitlements": "SELECT * FROM srm.entitlements ORDER BY account_id, product_id",
}


@pytest.fixture(params=[3_000, pytest.param(20_000, marks=pytest.mark.long(30))])
def accounts(request: pytest.FixtureRequest) -> int:
    """Number of imported accounts."""
    number: int = request.param
    return number


@pytest.fixture
def files(tmp_path: Path, accounts: int) -> dict[str, Path]:
    """A file for each kind, in random order; that of accounts has repeated keys and bad rows."""
    numbers = list(range(accounts))
    random.Random(1).shuffle(numbers)
    lines = {
        "accounts": ["accountId,profileId,enabled,maxSessions"]
        + [f"a-{n},p,{'false' if n % 50 == 0 else 'true'},{n % 7}" for n in numbers]
        + [f"a-{n},p,true,9" for n in numbers[::10]]
        + [f"b-{n},gold,true," for n in numbers[::1000]],
        "devices": ["accountId,deviceId,deviceGroup,name"] + [f"a-{n // 2},d-{n},tv,TV {n}" for n in numbers],
        "entitlements": ["accountId,productId,validFrom"]
        + [f"a-{n},basic,2026-01-01T00:00:{n % 60:02}Z" for n in numbers],
    }
    for kind, rows_of_kind in lines.items():
        (tmp_path / kind).write_text("\n".join(rows_of_kind))
    return {kind: tmp_path / kind for kind in lines}


def make_database(clone: Callable[[], str]) -> str:
    """Make a database with the profile of the accounts, and with two accounts that exist before the import."""
    url = clone()
    database = Database(url, application_name="srm-tests")
    factory = Factory(database)
    factory.profile("p")
    factory.account("a-1", "d-2", profile="p")
    factory.account("old", profile="p")
    with database.transaction() as db:
        db.exec_driver_sql("UPDATE srm.entitlements SET valid_from = '2020-01-01'")
    database.dispose()
    return url


def start(url: str, kind: str, file: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        python_m("srm.cli", "import", kind, str(file)),
        env=environment(SRM_DATABASE_URL=url),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def state(url: str) -> dict[str, list[object]]:
    """Return all rows of the tables."""
    database = Database(url, application_name="srm-tests", statement_timeout_seconds=30)
    try:
        return {kind: rows(database, query) for kind, query in DUMP.items()}
    finally:
        database.dispose()


def test_an_import_killed_many_times_and_repeated_gives_the_rows_of_an_undisturbed_one(
    clone: Callable[[], str], files: dict[str, Path], accounts: int
) -> None:
    undisturbed, killed = make_database(clone), make_database(clone)
    seconds = {}
    for kind, file in files.items():
        started_at = time.monotonic()
        process = start(undisturbed, kind, file)
        output, errors = process.communicate()
        assert process.returncode == (1 if kind == "accounts" else 0), output + errors
        seconds[kind] = time.monotonic() - started_at
    kills = 0
    while kills < accounts // 1500:
        kind = random.choice(list(files))
        process = start(killed, kind, files[kind])
        try:
            process.communicate(timeout=random.uniform(0.4, 1) * seconds[kind])
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            kills += 1
    for kind, file in files.items():
        start(killed, kind, file).communicate()

    assert state(killed) == state(undisturbed)
    assert len(state(killed)["accounts"]) == accounts + 1


def test_merged_rows_stay_when_an_import_is_killed(
    clone: Callable[[], str], files: dict[str, Path], accounts: int
) -> None:
    url = make_database(clone)
    database = Database(url, application_name="srm-tests")
    process = start(url, "accounts", files["accounts"])
    try:
        support.wait_until(lambda: support.rows(database, "SELECT count(*) FROM srm.accounts")[0][0] > 2, every=0.001)
    finally:
        process.kill()
        process.communicate()

    (count,) = rows(database, "SELECT count(*) FROM srm.accounts")[0]
    database.dispose()
    assert 2 < count < accounts


def test_two_imports_of_one_file_at_once_give_the_rows_of_one(clone: Callable[[], str], files: dict[str, Path]) -> None:
    once, twice = make_database(clone), make_database(clone)
    for kind, file in files.items():
        start(once, kind, file).communicate()
        for process in [start(twice, kind, file) for _ in range(2)]:
            output, errors = process.communicate()
            assert process.returncode == (1 if kind == "accounts" else 0), output + errors
            assert "Traceback" not in errors

    assert state(twice) == state(once)


@pytest.fixture
def service(clone: Callable[[], str], tmp_path: Path) -> Iterator[tuple[str, str, Database]]:
    """Base URL of the API, URL of the database, connections to it."""
    url = clone()
    database = Database(url, application_name="srm-tests", statement_timeout_seconds=30)
    with support.api(url, tmp_path / "api.log", workers=2) as (base, _):
        yield base, url, database
    database.dispose()


@pytest.mark.parametrize("kind", ["accounts", pytest.param("devices", marks=pytest.mark.long(20))])
def test_nothing_that_an_import_disables_has_an_active_session_despite_quick_setups(
    service: tuple[str, str, Database], tmp_path: Path, kind: str
) -> None:
    base, url, database = service
    factory = Factory(database)
    factory.profile("p", max_sessions=None)
    accounts = [f"a-{number}" for number in range(6)]
    for account in accounts:
        factory.account(account, "tv", profile="p")
    others = "\n".join(f"x-{number},p,true" for number in range(2000))
    (tmp_path / "accounts").write_text("accountId,profileId,enabled\n" + others)
    assert srm("import", "accounts", str(tmp_path / "accounts"), SRM_DATABASE_URL=url).returncode == 0
    disabled, enabled = tmp_path / "disabled", tmp_path / "enabled"
    for file, word in ((disabled, "false"), (enabled, "true")):
        if kind == "accounts":
            file.write_text("accountId,profileId,enabled\n" + "".join(f"{name},p,{word}\n" for name in accounts))
        else:
            header = "accountId,deviceId,deviceGroup,name,enabled\n"
            file.write_text(header + "".join(f"{name},tv,tv,TV,{word}\n" for name in accounts))
    done = threading.Event()
    admitted = []

    def play(account: str) -> None:
        with Player(base, account, "tv") as player:
            while not done.is_set():
                time.sleep(PAUSE_SECONDS)
                answer = player.set_up()
                if answer.session_id is not None:
                    admitted.append(answer.session_id)

    threads = [threading.Thread(target=play, args=(account,)) for account in accounts]
    for thread in threads:
        thread.start()
    try:
        for _ in range(2):
            before = len(admitted)
            support.wait_until(lambda before=before: len(admitted) > before + 20)
            result = srm("import", kind, str(disabled), SRM_DATABASE_URL=url)
            active = rows(database, "SELECT FROM srm.sessions WHERE ended_at IS NULL")
            assert (result.returncode, len(active)) == (0, 0), result
            assert "sessions ended" in result.stdout
            time.sleep(0.1)
            assert rows(database, "SELECT FROM srm.sessions WHERE ended_at IS NULL") == []
            assert srm("import", kind, str(enabled), SRM_DATABASE_URL=url).returncode == 0
    finally:
        done.set()
        for thread in threads:
            thread.join()
    support.assert_audit_clean(url)
