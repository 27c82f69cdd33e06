"""`srm import`: which rows it takes, and how it changes the database."""

import csv
import gzip
import io
import json
import os
import re
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest
from rich.console import Console

from srm.cli import progress
from srm.cli.progress import Lines
from srm.operators.bulk import lines, merger
from tests.cli.command import Result, assert_refused
from tests.support import Factory, rows, session_row

Import = Callable[..., Result]

ACCOUNTS = "SELECT account_id, profile_id, enabled, max_sessions FROM srm.accounts ORDER BY 1"
DEVICES = "SELECT account_id, device_id, device_group, name, enabled FROM srm.devices ORDER BY 1, 2"
CONTENTS = (
    "SELECT content_id, channel_id, title, ARRAY(SELECT content_group FROM srm.content_groups g "
    "WHERE g.content_id = c.content_id ORDER BY 1) FROM srm.contents c WHERE content_id <> 'film' ORDER BY 1"
)
PRODUCTS = (
    "SELECT product_id, name, ARRAY(SELECT content_type || ' ' || content_id FROM srm.product_contents c "
    "WHERE c.product_id = p.product_id ORDER BY 1) FROM srm.products p WHERE product_id <> 'basic' ORDER BY 1"
)


@pytest.fixture
def import_(call: Callable[..., Result], url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Import:
    """Run `srm import KIND` on a file with this content, in an empty folder.

    The command runs in this process, so it must not lower the priority of the tests.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "setpriority", lambda *_: None)

    def import_(kind: str, content: str | bytes, *options: str, file: str = "file") -> Result:
        Path(file).write_bytes(content.encode() if isinstance(content, str) else content)
        return call("import", kind, file, *options, SRM_DATABASE_URL=url)

    return import_


def rejected(file: str = "file.rejected.csv") -> list[tuple[int, str]]:
    """Line and reason of each rejected row."""
    with Path(file).open(newline="") as text:
        return [(int(row["line"]), row["reason"]) for row in csv.DictReader(text)]


def assert_rejected(result: Result, *found: tuple[int, str]) -> None:
    assert result.returncode == 1, result
    assert result.stderr == f"srm: {len(found):,} rows were rejected: see file.rejected.csv\n"
    assert sorted(rejected()) == list(found)


class TestFormats:
    CSV = "accountId,profileId,enabled,maxSessions\na,p,true,\n\nb,p,False,7\n"
    JSON = (
        '{"accountId": "a", "profileId": "p"}\n\n'
        '{"accountId": "b", "profileId": "p", "enabled": false, "maxSessions": 7}\n'
    )

    @pytest.mark.parametrize("content", [CSV, JSON], ids=["csv", "json"])
    @pytest.mark.parametrize(
        "made",
        [
            str.encode,
            lambda text: b"\xef\xbb\xbf" + text.encode(),
            lambda text: text.replace("\n", "\r\n").encode(),
            lambda text: b"\n \n" + text.encode().rstrip(b"\n"),
            lambda text: gzip.compress(text.encode()),
            lambda text: b"".join(gzip.compress(line.encode()) for line in text.splitlines(keepends=True)),
        ],
        ids=["plain", "byte order mark", "CRLF", "blank lines", "gzip", "gzip in members"],
    )
    def test_the_import_recognizes_the_format_of_the_file(
        self, import_: Import, factory: Factory, content: str, made: Callable[[str], bytes]
    ) -> None:
        factory.profile("p")

        result = import_("accounts", made(content))

        assert (result.returncode, result.stderr) == (0, ""), result
        assert result.stdout.startswith("accounts: 2 rows in ")
        assert result.stdout.endswith(": 2 new, 0 changed, 0 unchanged\n")
        assert rows(factory.database, ACCOUNTS) == [("a", "p", True, None), ("b", "p", False, 7)]
        assert not Path("file.rejected.csv").exists()

    @pytest.mark.parametrize("packed", [False, True])
    def test_the_import_reads_standard_input(
        self, import_: Import, call: Callable[..., Result], factory: Factory, url: str, packed: bool,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        factory.profile("p")
        content = (self.CSV + "c,gold,true,\n").encode()
        monkeypatch.setattr(
            sys, "stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(gzip.compress(content) if packed else content)))
        )

        result = call("import", "accounts", "-", SRM_DATABASE_URL=url)

        assert result.returncode == 1
        assert "accounts.rejected.csv" in result.stderr
        assert rejected("accounts.rejected.csv") == [(5, "profileId: no such profile: gold")]
        assert [row.account_id for row in rows(factory.database, ACCOUNTS)] == ["a", "b"]

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            ("", "nothing in it"),
            ("\n \n", "nothing in it"),
            ("accountId,profileId,colour\n", "line 1: unknown column: colour; there are accountId, profileId, enabled"),
            ("accountId,enabled\n", "line 1: missing column: profileId"),
            ("accountId,profileId,accountId\n", "line 1: a column comes twice"),
            ('accountId,"profileId\n', "line 1: unexpected end of data"),
            (b"\x1f\x8b nonsense", "not in the format of gzip"),
            (gzip.compress(CSV.encode(), mtime=0)[:-12], "it ends in the middle"),
        ],
    )
    def test_a_file_in_no_import_format_is_refused(
        self, import_: Import, factory: Factory, content: str | bytes, words: str
    ) -> None:
        factory.profile("p")

        assert_refused(import_("accounts", content), "file: ", words)
        assert rows(factory.database, ACCOUNTS) == []

    def test_a_header_without_rows_is_an_empty_import(self, import_: Import) -> None:
        result = import_("contents", "contentID\n")

        assert (result.returncode, result.stderr) == (0, "")
        assert result.stdout.startswith("contents: 0 rows in ")

    def test_a_missing_file_a_folder_and_an_unknown_kind_are_refused(
        self, call: Callable[..., Result], url: str, tmp_path: Path
    ) -> None:
        absent = str(tmp_path / "absent")

        assert_refused(call("import", "accounts", absent, SRM_DATABASE_URL=url), absent, "No such file")
        assert_refused(call("import", "accounts", str(tmp_path), SRM_DATABASE_URL=url), "Is a directory")
        assert_refused(call("import", "profiles", absent, SRM_DATABASE_URL=url), "profiles: no such kind", "products")
        assert_refused(call("export", "nonsense", SRM_DATABASE_URL=url), "nonsense: no such kind")

    def test_a_schema_of_another_version_is_refused(
        self, import_: Import, call: Callable[..., Result], server_url: str
    ) -> None:
        Path("file").write_text(self.CSV)

        assert_refused(call("import", "accounts", "file", SRM_DATABASE_URL=server_url), "srm db upgrade")

    def test_the_reject_file_may_not_be_the_imported_file(self, import_: Import, factory: Factory) -> None:
        factory.profile("p")

        assert_refused(import_("accounts", self.CSV, "--rejects", "./file"), "file is the file to import")
        assert Path("file").read_text() == self.CSV


def test_the_last_good_row_of_a_key_counts_despite_a_bad_one_behind_it(import_: Import, factory: Factory) -> None:
    factory.profile("p")

    result = import_("accounts", "accountId,profileId,maxSessions\na,p,1\na,p,2\na,gold,3\nb,p,1\nb,p,x\n")

    assert result.returncode == 1
    assert [line for line, _ in rejected()] == [6, 4]
    accounts = rows(factory.database, "SELECT account_id, max_sessions FROM srm.accounts ORDER BY 1")
    assert accounts == [("a", 2), ("b", 1)]


def test_a_pipe_for_rejects_is_not_removed(import_: Import, factory: Factory, tmp_path: Path) -> None:
    factory.profile("p")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)

    assert import_("accounts", "accountId,profileId\na,p\n", "--rejects", str(pipe)).returncode == 0

    assert pipe.is_fifo()


NO_TIME = "validUntil: a time such as 2026-11-22T20:15:00Z"


class TestBadRows:
    def test_bad_rows_are_rejected_with_line_reason_and_text(self, import_: Import, factory: Factory) -> None:
        factory.profile("p")
        bad = {
            "b,p,true,x": "maxSessions: Input should be a valid integer, unable to parse string as an integer",
            "c,p,true,-1": "maxSessions: Input should be greater than or equal to 0",
            "d,p,perhaps,": "enabled: Input should be a valid boolean, unable to interpret input",
            ",p,true,": "accountId: Field required",
            "e,gold,true,": "profileId: no such profile: gold",
            "f,p": "2 cells, but the header has 4",
            '"g,p,true,': "unexpected end of data",
            '"h"h,p,true,': "',' expected after '\"'",
            "i\x07,p,true,": "accountId: 1 to 255 characters, none of them a control character",
            "j" * 256 + ",p,true,": "accountId: 1 to 255 characters, none of them a control character",
        }
        content = "\n".join(["accountId,profileId,enabled,maxSessions", "a,p,,", *bad, "z,p,,"])

        result = import_("accounts", content)

        assert_rejected(result, *((line, reason) for line, reason in enumerate(bad.values(), start=3)))
        assert "12 rows" in result.stdout
        assert [row.account_id for row in rows(factory.database, ACCOUNTS)] == ["a", "z"]
        with Path("file.rejected.csv").open(newline="") as text:
            assert {row["row"] for row in csv.DictReader(text)} == set(bad)

    def test_json_lines_are_parsed_strictly(self, import_: Import, factory: Factory) -> None:
        factory.profile("p")
        bad = {
            '{"accountId": "a", "profileId": "p", "maxSessions": "3"}': "maxSessions: Input should be a valid integer",
            '{"accountId": "b", "profileId": "p", "enabled": "true"}': "enabled: Input should be a valid boolean",
            '{"accountId": "c", "profileId": "p", "colour": 1}': "colour: Extra inputs are not permitted",
            '{"accountId": "d"}': "profileId: Field required",
            "[1]": "Input should be an object",
        }

        result = import_("accounts", "\n".join(['{"accountId": "z", "profileId": "p"}', *bad, '{"accountId": "e"']))

        assert result.returncode == 1
        assert rejected()[:-1] == list(enumerate(bad.values(), start=2))
        assert rejected()[-1][1].startswith("Invalid JSON: EOF")
        assert len(rows(factory.database, ACCOUNTS)) == 1

    def test_a_row_that_is_not_utf_8_is_rejected(self, import_: Import, factory: Factory) -> None:
        factory.profile("p")

        result = import_("accounts", b"accountId,profileId\na,p\nM\xfcller,p\nM\xc3\xbcller,p\n")

        assert_rejected(result, (3, "not in UTF-8"))
        assert "M\\udcfcller" in Path("file.rejected.csv").read_text()
        assert [row.account_id for row in rows(factory.database, ACCOUNTS)] == ["Müller", "a"]

    def test_a_line_that_is_too_long_is_rejected(
        self, import_: Import, factory: Factory, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        factory.profile("p")
        monkeypatch.setattr(lines, "MAX_LINE_BYTES", 100)
        longest = "b" * 98

        result = import_("accounts", f"accountId,profileId\na,p\n{longest}x,p\n{longest},p\n{'c' * 999},p\nd,p\n")

        assert_rejected(result, (3, "longer than 100 bytes"), (5, "longer than 100 bytes"))
        assert [row.account_id for row in rows(factory.database, ACCOUNTS)] == ["a", longest, "d"]

    def test_an_instant_without_time_or_zone_is_rejected(self, import_: Import, factory: Factory) -> None:
        factory.account("a", products=())

        result = import_(
            "entitlements",
            "accountId,productId,validUntil\na,basic,20301231\na,basic,2030-12-31\na,basic,2030-12-31T00:00:00\n",
        )

        assert_rejected(
            result,
            (2, NO_TIME),
            (3, NO_TIME),
            (4, NO_TIME),
        )

    def test_a_row_that_refers_to_a_missing_resource_is_rejected(self, import_: Import, factory: Factory) -> None:
        factory.account("a", products=())

        assert_rejected(
            import_("devices", "accountId,deviceId,deviceGroup,name\na,d,tv,TV\nb,d,tv,TV\n"),
            (3, "accountId: no such account: b"),
        )
        assert_rejected(
            import_("entitlements", "accountId,productId\na,basic\nb,gold\n"),
            (3, "accountId: no such account: b; productId: no such product: gold"),
        )
        assert_rejected(
            import_("contents", "contentID,channelID\ne,ch\nf,film\n"), (2, "channelID: no such channel: ch")
        )
        content = '{"contentType": "COD", "contentID": "%s"}'
        lines = (
            json.dumps({"productId": name, "name": "N", "contents": [json.loads(content % name)]})
            for name in ("film", "no")
        )
        assert_rejected(import_("products", "\n".join(lines)), (2, "contents: no such content: no"))

    def test_a_clean_import_removes_the_reject_file_of_an_earlier_one(self, import_: Import, factory: Factory) -> None:
        import_("accounts", "accountId,profileId\na,p\n")
        assert rejected() == [(2, "profileId: no such profile: p")]
        factory.profile("p")

        assert import_("accounts", "accountId,profileId\na,p\n").returncode == 0
        assert not Path("file.rejected.csv").exists()

    def test_the_option_rejects_names_the_reject_file(self, import_: Import, tmp_path: Path) -> None:
        result = import_("accounts", "accountId,profileId\na,p\n", "--rejects", "bad.csv")

        assert result.returncode == 1
        assert rejected("bad.csv") == [(2, "profileId: no such profile: p")]
        assert not Path("file.rejected.csv").exists()


class TestLeftOut:
    def test_rows_that_the_file_does_not_have_stay(self, import_: Import, factory: Factory) -> None:
        factory.account("a", profile=factory.profile("p"))
        before = rows(factory.database, ACCOUNTS)

        assert import_("accounts", "accountId,profileId\nb,p\n").returncode == 0
        assert rows(factory.database, ACCOUNTS) == [*before, ("b", "p", True, None)]

    @pytest.mark.parametrize(
        ("content", "expected"),
        [
            ("accountId,profileId\na,p\n", (False, 7)),
            ("accountId,profileId,enabled\na,p,\n", (False, 7)),
            ("accountId,profileId,maxSessions\na,p,\n", (False, None)),
            ('{"accountId": "a", "profileId": "p"}', (False, 7)),
            ('{"accountId": "a", "profileId": "p", "maxSessions": null}', (False, None)),
            ('{"accountId": "a", "profileId": "p", "enabled": true}', (True, 7)),
        ],
    )
    def test_fields_that_a_line_does_not_name_stay(
        self, import_: Import, factory: Factory, content: str, expected: tuple[bool, int | None]
    ) -> None:
        factory.account("a", profile=factory.profile("p"), enabled=False)
        with factory.database.transaction() as db:
            db.exec_driver_sql("UPDATE srm.accounts SET max_sessions = 7")

        assert import_("accounts", content).returncode == 0
        assert rows(factory.database, ACCOUNTS) == [("a", "p", *expected)]

    def test_an_entitlement_keeps_its_start_unless_the_line_names_it(self, import_: Import, factory: Factory) -> None:
        factory.account("a", products=())
        factory.account("b", products=())
        factory.entitlement("a", "basic", valid_from="2020-01-01T00:00:00Z", valid_until="2021-01-01T00:00:00Z")
        content = "accountId,productId,validFrom,validUntil\na,basic,,\nb,basic,,2999-01-01T00:00:00+02:00\n"

        assert import_("entitlements", content).returncode == 0

        (a, b) = rows(
            factory.database,
            "SELECT valid_from, valid_until, statement_timestamp() - valid_from < '1 minute' AS is_new "
            "FROM srm.entitlements ORDER BY account_id",
        )
        assert (a.valid_from.year, a.valid_until, a.is_new) == (2020, None, False)
        assert (b.valid_until.isoformat(), b.is_new) == ("2998-12-31T22:00:00+00:00", True)

    def test_groups_and_contents_that_a_line_does_not_name_stay(self, import_: Import, factory: Factory) -> None:
        factory.content("c", groups=["sports"])
        factory.product("p", ("COD", "film"))

        assert import_("contents", "contentID,title,groups\nc,New,\n").returncode == 0
        assert import_("products", "productId,name,contents\np,New,\n").returncode == 0
        assert rows(factory.database, CONTENTS) == [("c", None, "New", ["sports"])]
        assert rows(factory.database, PRODUCTS) == [("p", "New", ["COD film"])]


class TestRows:
    def test_the_last_row_of_a_key_counts_across_batches(
        self, import_: Import, factory: Factory, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(merger, "FIRST_BATCH", 2)
        factory.profile("p")
        lines = [f"{name},p,{limit}" for limit in (1, 2, 3) for name in "abc"]

        result = import_("accounts", "\n".join(["accountId,profileId,maxSessions", *lines]))

        assert result.stdout.endswith(": 3 new, 0 changed, 0 unchanged, 6 repeated in the file\n")
        assert rows(factory.database, ACCOUNTS) == [(name, "p", True, 3) for name in "abc"]

    def test_only_rows_that_differ_are_updated(self, import_: Import, factory: Factory) -> None:
        factory.account("a", "tv", "phone")
        factory.account("b", "tv")
        content = "accountId,deviceId,deviceGroup,name\na,phone,tv,New\na,tv,tv,tv of a\nb,tv,tv,tv of b\nb,x,tv,X\n"
        versions = "SELECT account_id, device_id, xmin::text FROM srm.devices ORDER BY 1, 2"
        before = rows(factory.database, versions)

        result = import_("devices", content)

        assert result.stdout.endswith(": 1 new, 1 changed, 2 unchanged\n")
        after = rows(factory.database, versions)
        assert after[1:3] == before[1:]
        assert after[0] != before[0]
        assert import_("devices", content).stdout.endswith(": 0 new, 0 changed, 4 unchanged\n")
        assert rows(factory.database, versions) == after

    @pytest.mark.parametrize("batch", [1, 500])
    def test_an_event_may_stand_before_its_channel(
        self, import_: Import, factory: Factory, batch: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(merger, "FIRST_BATCH", batch)
        content = 'contentID,channelID,groups\na,b,"[""x"", ""y"", ""x""]"\nb,c,\nd,nowhere,\ne,d,\nc,,\nf,f,\n'
        bad = ((4, "channelID: no such channel: nowhere"), (5, "channelID: no such channel: d"))

        assert_rejected(import_("contents", content, "--dry-run"), *bad)
        assert rows(factory.database, CONTENTS) == []
        assert_rejected(import_("contents", content), *bad)
        assert rows(factory.database, CONTENTS) == [
            ("a", "b", None, ["x", "y"]),
            ("b", "c", None, []),
            ("c", None, None, []),
            ("f", "f", None, []),
        ]

    def test_groups_and_contents_are_replaced_by_those_of_the_file(self, import_: Import, factory: Factory) -> None:
        factory.content("c", groups=["news", "sports"])
        factory.content("d:e")
        factory.product("p", ("COD", "film"), ("LIVE", "c"))

        contents = '{"contentID": "c", "groups": ["sports", "films"]}'
        products = (
            '{"productId": "p", "name": "p", "contents": [{"contentType": "COD", "contentID": "film"}, '
            '{"contentType": "TS", "contentID": "d:e"}]}\n{"productId": "q", "name": "Q", "contents": []}'
        )

        assert ": 0 new, 1 changed, 0 unchanged" in import_("contents", contents).stdout
        assert ": 1 new, 1 changed, 0 unchanged" in import_("products", products).stdout
        assert rows(factory.database, CONTENTS)[0] == ("c", None, None, ["films", "sports"])
        assert rows(factory.database, PRODUCTS) == [("p", "p", ["COD film", "TS d:e"]), ("q", "Q", [])]
        assert ": 0 new, 0 changed, 1 unchanged" in import_("contents", contents).stdout
        assert ": 0 new, 0 changed, 2 unchanged" in import_("products", products).stdout

    def test_a_batch_that_meets_a_lock_is_tried_again(
        self, import_: Import, factory: Factory, url: str, outside: Callable[[str], str]
    ) -> None:
        factory.account("a")
        factory.account("b")

        with psycopg.connect(outside(url)) as other:
            other.execute("SELECT FROM srm.accounts WHERE account_id = 'b' FOR UPDATE")
            threading.Timer(1, other.rollback).start()
            result = import_("devices", "accountId,deviceId,deviceGroup,name\na,tv,tv,New\nb,tv,tv,New\n")

        assert result.stdout.endswith(": 0 new, 2 changed, 0 unchanged\n")
        assert [row.name for row in rows(factory.database, DEVICES)] == ["New", "New"]


class TestDisabling:
    @pytest.fixture
    def playing(self, factory: Factory) -> dict[tuple[str, str], Any]:
        """Active sessions of two devices of two accounts."""
        for account in ("a", "b"):
            factory.account(account, "tv", "phone")
        return {(account, device): factory.session(account, device) for account in "ab" for device in ("tv", "phone")}

    @pytest.mark.parametrize(
        ("kind", "content", "reason", "ended"),
        [
            ("accounts", "accountId,profileId,enabled\na,profile of a,false\n", "account_disabled", ("phone", "tv")),
            ("devices", "accountId,deviceId,deviceGroup,name,enabled\na,tv,tv,TV,false\n", "device_disabled", ("tv",)),
        ],
    )
    def test_disabling_by_import_ends_sessions_and_records_them(
        self, import_: Import, factory: Factory, playing: dict[tuple[str, str], Any], kind: str, content: str,
        reason: str, ended: tuple[str, ...],
    ) -> None:  # fmt: skip
        result = import_(kind, content)

        assert f"1 changed, 0 unchanged, {len(ended)} sessions ended" in result.stdout
        reasons = {key: session_row(factory.database, id_).end_reason for key, id_ in playing.items()}
        assert reasons == {key: reason if key in {("a", device) for device in ended} else None for key in playing}
        recorded = rows(factory.database, "SELECT * FROM srm.operator_audit WHERE action = 'end' ORDER BY before::text")
        assert [(row.account_id, row.before["deviceId"]) for row in recorded] == [("a", device) for device in ended]
        assert {row.after["endReason"] for row in recorded} == {reason}
        assert {row.operator.partition(":")[0] for row in recorded} == {"cli"}

    def test_sessions_of_an_account_that_was_disabled_before_end_too(self, import_: Import, factory: Factory) -> None:
        factory.account("a", enabled=False)
        session = factory.session("a")

        result = import_("accounts", "accountId,profileId,enabled\na,profile of a,false\n")

        assert "0 changed, 1 unchanged, 1 sessions ended" in result.stdout
        assert session_row(factory.database, session).end_reason == "account_disabled"


class TestChangeLog:
    RECORD = "SELECT operator, action, resource, account_id, after FROM srm.operator_audit ORDER BY changed_at"

    def test_beginning_and_end_of_an_import_are_recorded_with_counts(self, import_: Import, factory: Factory) -> None:
        factory.profile("p")
        import_("accounts", "accountId,profileId\na,p\nb,gold\n")

        begun, done = rows(factory.database, self.RECORD)
        assert begun[1:] == ("import", "accounts", "", {"file": "file"})
        assert begun.operator == done.operator
        assert begun.operator.startswith("cli:")
        assert done.after == {
            "file": "file", "rows": 2, "new": 1, "changed": 0, "unchanged": 0, "repeated": 0, "rejected": 1,
            "sessionsEnded": 0,
        }  # fmt: skip

    def test_an_import_that_breaks_off_leaves_its_beginning_in_the_change_log(
        self, import_: Import, factory: Factory
    ) -> None:
        factory.profile("p")
        lines = b"".join(b"a-%d,p\n" % number for number in range(50_000))

        assert_refused(import_("accounts", gzip.compress(b"accountId,profileId\n" + lines)[:-12]), "in the middle")
        assert [row.after for row in rows(factory.database, self.RECORD)] == [{"file": "file"}]
        assert rows(factory.database, ACCOUNTS) == []

    def test_each_changed_row_is_recorded_with_before_and_after(self, import_: Import, factory: Factory) -> None:
        factory.account("a", "tv", "phone")
        factory.content("x", groups=["old"])
        factory.product("q", ("COD", "film"))
        files = {
            "devices": "accountId,deviceId,deviceGroup,name,enabled\n"
            "a,tv,tv,New,false\na,phone,tv,phone of a,\na,b,tv,B,\n",
            "contents": 'contentID,groups\nx,"[""new""]"\n',
            "products": 'productId,name,contents\nq,Q,"[{""contentType"": ""LIVE"", ""contentID"": ""x""}]"\n',
            "entitlements": "accountId,productId,validUntil\na,basic,2030-01-01T00:00:00Z\n",
        }
        for kind, content in files.items():
            assert import_(kind, content).returncode == 0

        recorded = rows(
            factory.database,
            "SELECT account_id, resource, before, after FROM srm.operator_audit WHERE action = 'update' "
            "ORDER BY changed_at",
        )

        assert [(row.account_id, row.resource) for row in recorded] == [
            ("a", "accounts/a/devices/tv"),
            ("", "contents/x"),
            ("", "products/q"),
            ("a", "accounts/a/entitlements/basic"),
        ]
        device, content, product, entitlement = recorded
        assert device.before == {
            "accountId": "a",
            "deviceId": "tv",
            "deviceGroup": "tv",
            "name": "tv of a",
            "enabled": True,
        }
        assert device.after == {**device.before, "name": "New", "enabled": False}
        assert (content.before["groups"], content.after["groups"]) == (["old"], ["new"])
        assert (product.before["contents"], product.after["contents"]) == (["COD:film"], ["LIVE:x"])
        assert entitlement.before["validUntil"] is None
        assert entitlement.after["validUntil"].startswith("2030-01-01T00:00:00")


class TestDryRun:
    def test_a_dry_run_counts_and_changes_nothing(self, import_: Import, factory: Factory) -> None:
        factory.account("a", "tv", "phone")
        session = factory.session("a", "tv")
        content = "accountId,deviceId,deviceGroup,name,enabled\na,tv,tv,TV,false\na,new,tv,TV,\nb,tv,tv,TV,\na,,,,\n"
        before = rows(factory.database, DEVICES)

        result = import_("devices", content, "--dry-run")

        assert result.stdout.startswith("devices (dry run): 4 rows in ")
        assert result.stdout.endswith(": 1 new, 1 changed, 0 unchanged, 1 sessions ended\n")
        assert [line for line, _ in rejected()] == [5, 4]
        assert rows(factory.database, DEVICES) == before
        assert session_row(factory.database, session).ended_at is None
        assert rows(factory.database, "SELECT FROM srm.operator_audit") == []

    def test_a_dry_run_waits_for_no_lock(
        self, import_: Import, factory: Factory, url: str, outside: Callable[[str], str]
    ) -> None:
        factory.account("a")

        with psycopg.connect(outside(url)) as other:
            other.execute("SELECT FROM srm.accounts FOR UPDATE")
            result = import_("devices", "accountId,deviceId,deviceGroup,name\na,tv,tv,New\n", "--dry-run")

        assert result.stdout.endswith(": 0 new, 1 changed, 0 unchanged\n")


class TestProgress:
    def test_progress_is_a_line_every_ten_seconds_without_a_terminal(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        clock = iter([0, 0, 0, 5, 10, 10, 10, 10, 20, 20, 20, 20])
        monkeypatch.setattr("srm.cli.progress.time.monotonic", lambda: next(clock))
        lines = Lines()

        lines("read", 1000, 0.25)
        lines("read", 5000, 0.5)
        lines("read", 9000, None)

        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.splitlines() == ["read: 5,000 rows, 500/s, 50%, 10 s left", "read: 9,000 rows, 450/s"]

    def test_progress_is_a_bar_on_a_terminal(self, monkeypatch: pytest.MonkeyPatch) -> None:
        screen = io.StringIO()
        terminal = partial(Console, file=screen, force_terminal=True, width=100)
        monkeypatch.setattr("srm.cli.progress.Console", lambda **_: terminal())

        with progress.shown() as watch:
            watch("read", 1_000, 0.0)
            watch("read", 500_000, 0.5)
            watch("sort", 1_000_000, None)
            watch("merge", 250_000, 0.25)

        last = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen.getvalue().split("\r")[-1])
        assert re.search(r"read .*100% +500,000 rows", last)
        assert re.search(r"merge .*25% +250,000 rows", last)
        assert "sort" in last
