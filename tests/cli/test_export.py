"""`srm export`: its formats, and that importing an export restores the rows."""

import gzip
import json
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from srm.db import models
from srm.db.database import Database
from srm.db.models import Base
from srm.operators.bulk import exporter, files, importer
from srm.operators.resources import ACCOUNTS, CONTENTS, DEVICES, ENTITLEMENTS, PRODUCTS
from tests.cli.command import Result, srm
from tests.support import Factory, rows

IN_ORDER_OF_REFERENCES = (CONTENTS, PRODUCTS, ACCOUNTS, DEVICES, ENTITLEMENTS)


@pytest.fixture
def export(call: Callable[..., Result], url: str) -> Callable[..., Result]:
    """`srm export …`."""
    return lambda *arguments: call("export", *arguments, SRM_DATABASE_URL=url)


@pytest.fixture
def accounts(factory: Factory) -> None:
    """Two accounts."""
    factory.account("a", profile=factory.profile("p, q"), enabled=False)
    factory.account("b", profile="p, q")


CSV = 'accountId,profileId,enabled,maxSessions\na,"p, q",false,\nb,"p, q",true,\n'
JSON = "".join(
    json.dumps({"accountId": account, "profileId": "p, q", "enabled": enabled, "maxSessions": None}) + "\n"
    for account, enabled in (("a", False), ("b", True))
)


@pytest.mark.usefixtures("accounts")
class TestFormats:
    @pytest.mark.parametrize(("options", "expected"), [((), CSV), (("--format", "jsonl"), JSON), (("-",), CSV)])
    def test_export_writes_to_standard_output(
        self, url: str, options: tuple[str, ...], expected: str,
    ) -> None:  # fmt: skip
        result = srm("export", "accounts", *options, SRM_DATABASE_URL=url)

        assert (result.returncode, result.stdout, result.stderr) == (0, expected, "")

    @pytest.mark.parametrize(
        ("name", "expected"), [("x.csv", CSV), ("x", CSV), ("x.jsonl", JSON), ("x.csv.gz", CSV), ("x.jsonl.gz", JSON)]
    )
    def test_the_name_of_the_file_decides_the_format(
        self,
        export: Callable[..., Result],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        name: str,
        expected: str,
    ) -> None:
        file = tmp_path / name

        result = export("accounts", str(file))

        assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
        written = file.read_bytes()
        assert (gzip.decompress(written) if name.endswith(".gz") else written).decode() == expected
        monkeypatch.setattr("gzip.time.time", lambda: 1.0)
        export("accounts", str(file))
        assert file.read_bytes() == written


def test_export_goes_on_behind_the_end_of_a_page(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    factory = Factory(database)
    for account in "abc":
        factory.account(account, "1", "2", "3")
    for size in range(1, 11):
        monkeypatch.setattr(exporter, "PAGE_ROWS", size)
        exported_devices = islice(exporter.export_resources(database, DEVICES), 20)
        found = [(device.account_id, device.device_id) for device in exported_devices]  # type: ignore[attr-defined]
        assert found == [(account, device) for account in "abc" for device in "123"]


def test_an_older_file_stays_until_the_new_one_is_complete(tmp_path: Path) -> None:
    file = tmp_path / "devices.csv"
    file.write_text("old")

    def break_off() -> None:
        with files.writing(DEVICES, str(file), "csv"):
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        break_off()

    assert file.read_text() == "old"
    with files.writing(DEVICES, str(file), "csv"):
        pass
    assert file.read_text().startswith("accountId,")
    assert list(tmp_path.iterdir()) == [file]


AWKWARD = [
    ' "', '"', '""', "a,b", "'", " a", "a ", "=1+1", "+1", "-", "@x", "\\N", "\\.", "\\", ":", "a:b", "null", "{", "{}",
    "[]", "true", "0", "1e5", "𝄞", "é", "e\u0301", "\u2028", "\ufeff", "\u00a0", "\u200f", "x" * 255, ";", "#", "$1",
    "%s",
]  # fmt: skip
texts = st.one_of(
    st.sampled_from(AWKWARD),
    st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1, max_size=12),
)
limits = st.none() | st.integers(0, 2**31 - 1)
instants = st.datetimes(datetime(1, 1, 1), datetime(9999, 12, 31), timezones=st.just(UTC))  # noqa: DTZ001


@st.composite
def tables(draw: Any) -> list[tuple[type[Base], list[dict[str, Any]]]]:
    """Random rows of all tables; a table comes after those that it refers to."""
    contents = draw(st.lists(texts, min_size=1, max_size=4, unique=True))
    products = draw(st.lists(texts, max_size=3, unique=True))
    accounts = draw(st.lists(texts, max_size=4, unique=True))
    types = st.sampled_from(models.CONTENT_TYPES)
    words = st.lists(st.tuples(types, st.sampled_from(contents)), max_size=3, unique=True)
    groups = st.lists(texts, max_size=3, unique=True)
    return [
        (
            models.Content,
            [
                {
                    "content_id": name,
                    "channel_id": draw(st.none() | st.sampled_from(contents[: index + 1])),
                    "title": draw(st.none() | texts),
                }
                for index, name in enumerate(contents)
            ],
        ),
        (models.ContentGroup, [{"content_id": name, "content_group": g} for name in contents for g in draw(groups)]),
        (models.Product, [{"product_id": name, "name": draw(texts)} for name in products]),
        (
            models.ProductContent,
            [
                {"product_id": name, "content_type": content_type, "content_id": content}
                for name in products
                for content_type, content in draw(words)
            ],
        ),
        (
            models.Account,
            [
                {"account_id": name, "profile_id": "p", "enabled": draw(st.booleans()), "max_sessions": draw(limits)}
                for name in accounts
            ],
        ),
        (
            models.Device,
            [
                {
                    "account_id": account,
                    "device_id": device,
                    "device_group": draw(texts),
                    "name": draw(texts),
                    "enabled": draw(st.booleans()),
                }
                for account in accounts
                for device in draw(groups)
            ],
        ),
        (
            models.Entitlement,
            [
                {
                    "account_id": account,
                    "product_id": product,
                    "valid_from": draw(instants),
                    "valid_until": draw(st.none() | instants),
                }
                for account in accounts
                for product in products
            ],
        ),
    ]


def empty(owner: str) -> None:
    with psycopg.connect(owner, autocommit=True) as db:
        db.execute("TRUNCATE srm.contents, srm.products, srm.accounts CASCADE")


def exported(database: Database, folder: Path, format_: files.Format) -> dict[str, bytes]:
    """Export all kinds into the folder; return the bytes of each file."""
    for kind in IN_ORDER_OF_REFERENCES:
        with files.writing(kind, str(folder / kind.plural), format_) as write:
            for resource in exporter.export_resources(database, kind):
                write(resource)
    return {kind.plural: (folder / kind.plural).read_bytes() for kind in IN_ORDER_OF_REFERENCES}


@pytest.fixture(scope="module")
def own_database(clone: Callable[[], str]) -> Any:
    """A database that only this module uses."""
    database = Database(clone(), application_name="srm-tests", statement_timeout_seconds=30)
    Factory(database).profile("p")
    yield database
    database.dispose()


@given(found=tables(), format_=st.sampled_from(["csv", "jsonl"]))
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_importing_an_export_restores_the_rows(
    own_database: Database,
    tmp_path_factory: pytest.TempPathFactory,
    outside: Callable[[str], str],
    found: Any,
    format_: files.Format,
) -> None:
    folder = tmp_path_factory.mktemp("export")
    factory = Factory(own_database)
    owner = outside(own_database.url.render_as_string(hide_password=False))
    empty(owner)
    for table, table_rows in found:
        for row in table_rows:
            factory.add(table, **row)
    before = exported(own_database, folder, format_)

    empty(owner)
    for kind in IN_ORDER_OF_REFERENCES:
        if before[kind.plural]:
            with (
                files.reading(kind, str(folder / kind.plural)) as read,
                files.RejectFile(folder / "rejected") as rejects,
            ):
                importer.import_rows(own_database, "cli:tests", read, rejects, lambda *_: None)
            assert rejects.count == 0, (folder / "rejected").read_text()

    assert exported(own_database, folder, format_) == before
    assert rows(own_database, "SELECT count(*) FROM srm.devices")[0][0] == sum(
        len(r) for t, r in found if t is models.Device
    )
