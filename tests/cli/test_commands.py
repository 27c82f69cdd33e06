"""The `srm` command: tokens, the database, and one line for each error that an operator can mend."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jwt
import psycopg
import pytest
from click.testing import CliRunner
from sqlalchemy.engine import make_url

from srm.cli.main import cli
from srm.clients.tokens import SharedSecret, TokenVerifier
from srm.config import Settings
from srm.db import schema
from srm.playback.model import Principal
from tests.cli.command import Result, assert_one_line, assert_refused, srm
from tests.support import SECRET, free_port

ISSUE = ("token", "issue", "--account", "a", "--device", "tv")
PASSWORD = "hunter2hunter2"


def commands(group: Any = cli, *path: str) -> Iterator[tuple[str, ...]]:
    """Yield the path of every group and every command."""
    yield path
    for name, command in getattr(group, "commands", {}).items():
        yield from commands(command, *path, name)


@pytest.fixture
def unreachable() -> str:
    """A database URL on a port where no server listens."""
    return f"postgresql://srm:{PASSWORD}@127.0.0.1:{free_port()}/srm"


class TestHelp:
    def test_help_lists_the_commands(self) -> None:
        result = srm("--help")

        assert (result.returncode, result.stderr) == (0, "")
        for name in ("audit", "db", "demo", "export", "import", "reaper", "serve", "token"):
            assert f"  {name} " in result.stdout

    @pytest.mark.parametrize("path", list(commands()), ids=" ".join)
    def test_help_explains_each_command(self, path: tuple[str, ...]) -> None:
        result = CliRunner().invoke(cli, [*path, "--help"])

        assert result.exit_code == 0
        said = result.output.split("\n\n")
        assert said[0].startswith("Usage: ")
        assert said[1].strip(), "the help has no description"

    @pytest.mark.parametrize("arguments", [["nonsense"], ["token", "issue"], ["db", "upgrade", "--nonsense"]])
    def test_an_unknown_command_or_option_exits_with_2(self, arguments: list[str]) -> None:
        result = CliRunner().invoke(cli, arguments)

        assert result.exit_code == 2
        assert "Error: " in result.output


class TestTokenIssue:
    def test_an_issued_token_is_accepted_by_the_service(self, call: Callable[..., Result]) -> None:
        result = call(*ISSUE, SRM_TOKEN_SECRET=SECRET)

        (token,) = result.stdout.splitlines()
        assert (result.returncode, result.stderr) == (0, "")
        settings = Settings(token_secret=SECRET)
        assert TokenVerifier(SharedSecret(SECRET), settings).verify(token) == Principal("a", "tv")
        assert SECRET not in result.stdout

    @pytest.mark.parametrize(("arguments", "seconds"), [([], 3600), (["--ttl", "7"], 7), (["--ttl", "86400"], 86400)])
    def test_an_issued_token_expires_after_its_ttl(
        self, call: Callable[..., Result], arguments: list[str], seconds: int
    ) -> None:
        before = int(time.time())

        token = call(*ISSUE, *arguments, SRM_TOKEN_SECRET=SECRET).stdout.strip()

        claims = jwt.decode(token, SECRET, algorithms=["HS256"])
        assert before + seconds <= claims["exp"] <= time.time() + seconds

    def test_an_issued_token_has_the_configured_claims(self, call: Callable[..., Result]) -> None:
        configured = {
            "SRM_TOKEN_SECRET": SECRET,
            "SRM_TOKEN_ISSUER": "https://issuer.example",
            "SRM_TOKEN_AUDIENCE": "srm",
            "SRM_TOKEN_ACCOUNT_CLAIM": "sub",
            "SRM_TOKEN_DEVICE_CLAIM": "dev",
        }

        token = call(*ISSUE, **configured).stdout.strip()

        claims = jwt.decode(token, SECRET, algorithms=["HS256"], audience="srm")
        assert {**claims, "exp": 0} == {
            "iss": "https://issuer.example",
            "aud": "srm",
            "sub": "a",
            "dev": "tv",
            "exp": 0,
        }

    @pytest.mark.parametrize("ttl", ["0", "-5", "soon", "1.5", ""])
    def test_a_ttl_that_is_no_positive_integer_exits_with_2(self, call: Callable[..., Result], ttl: str) -> None:
        result = call(*ISSUE, "--ttl", ttl, SRM_TOKEN_SECRET=SECRET)

        assert result.returncode == 2
        assert result.stdout == ""
        assert "--ttl" in result.stderr
        assert "Traceback" not in result.stderr

    def test_issuing_without_a_key_names_the_settings_and_creates_nothing(self, tmp_path: Path) -> None:
        result = srm(*ISSUE, cwd=tmp_path)

        assert_refused(result, "SRM_TOKEN_SECRET", "SRM_TOKEN_JWKS", "token_secret")
        assert list(tmp_path.iterdir()) == []

    def test_issuing_takes_the_secret_of_the_data_directory(self, call: Callable[..., Result], tmp_path: Path) -> None:
        (tmp_path / "token_secret").write_text(SECRET + "\n")

        token = call(*ISSUE, SRM_DATA_DIR=str(tmp_path)).stdout.strip()

        assert jwt.decode(token, SECRET, algorithms=["HS256"])["accountId"] == "a"

    def test_a_short_secret_in_the_data_directory_is_refused_and_not_shown(
        self, call: Callable[..., Result], tmp_path: Path
    ) -> None:
        (tmp_path / "token_secret").write_text("hunter2")

        result = call(*ISSUE, SRM_DATA_DIR=str(tmp_path))

        assert_refused(result, "token_secret", "32 bytes")
        assert "hunter2" not in result.stderr

    def test_issuing_with_public_keys_is_refused(self, call: Callable[..., Result], tmp_path: Path) -> None:
        (tmp_path / "jwks.json").write_text(json.dumps({"keys": []}))

        assert_refused(call(*ISSUE, SRM_TOKEN_JWKS=str(tmp_path / "jwks.json")), "SRM_TOKEN_JWKS")


class TestDbUrl:
    @pytest.mark.parametrize(
        "url", ["postgresql://srm:p%40ss@db.example:5433/srm?sslmode=require", "postgresql:///srm"]
    )
    def test_db_url_prints_the_configured_url_unchanged(self, call: Callable[..., Result], url: str) -> None:
        result = call("db", "url", SRM_DATABASE_URL=url)

        assert (result.returncode, result.stdout, result.stderr) == (0, f"{url}\n", "")

    def test_db_url_prints_a_url_that_libpq_accepts(self, call: Callable[..., Result], url: str) -> None:
        printed = call("db", "url", SRM_DATABASE_URL=url).stdout.strip()

        with psycopg.connect(printed) as connection:
            assert connection.execute("SELECT 1 FROM srm.contents").fetchall() == [(1,)]

    def test_db_url_does_not_start_the_embedded_database(self, tmp_path: Path) -> None:
        assert_refused(srm("db", "url", cwd=tmp_path), "embedded", "srm serve")
        assert list(tmp_path.iterdir()) == []


class TestDbUpgrade:
    def test_db_upgrade_goes_to_head_and_may_be_repeated(
        self, clone: Callable[[], str], outside: Callable[[str], str]
    ) -> None:
        url = outside(clone())
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("DROP SCHEMA srm CASCADE")

            for _ in range(2):
                result = srm("db", "upgrade", SRM_DATABASE_URL=url)
                assert (result.returncode, result.stdout, result.stderr) == (0, "", "")

            assert connection.execute("SELECT * FROM srm.alembic_version").fetchall() == [(schema.head_revision(),)]


class TestConfiguration:
    @pytest.mark.parametrize(
        ("name", "value", "allowed"),
        [
            ("SRM_BIND", "nonsense", "host:port"),
            ("SRM_BIND", "127.0.0.1:port", "host:port"),
            ("SRM_REAPER_INTERVAL_SECONDS", "often", "number"),
            ("SRM_REAPER_INTERVAL_SECONDS", "0", "0.1"),
            ("SRM_ENDED_RETENTION_SECONDS", "-1", "0"),
            ("SRM_ENDED_RETENTION_SECONDS", "1.5", "integer"),
            ("SRM_HISTORY_RETENTION_DAYS", "0", "1"),
            ("SRM_LOG_FORMAT", "xml", "json"),
        ],
    )
    def test_a_wrong_setting_is_named_with_its_value_and_what_is_allowed(
        self, call: Callable[..., Result], name: str, value: str, allowed: str
    ) -> None:
        assert_refused(call("db", "url", **{name: value}), name, repr(value), allowed)

    @pytest.mark.parametrize(
        ("name", "value", "allowed"),
        [
            ("SRM_TOKEN_SECRET", "hunter2", "32 bytes"),
            ("SRM_DATABASE_URL", "mysql://srm:hunter2@db/srm", "postgresql://"),
            ("SRM_DATABASE_URL", "hunter2", "postgresql://"),
            ("SRM_DATABASE_URL", "postgresql://srm:hunter2/srm", "postgresql://"),  # @host is missing
            ("SRM_DATABASE_URL", "postgresql://srm@db:hunter2/srm", "postgresql://"),
        ],
    )
    def test_a_wrong_secret_is_named_without_its_value(
        self, call: Callable[..., Result], name: str, value: str, allowed: str
    ) -> None:
        result = call("db", "url", **{name: value})

        assert "hunter2" not in result.stdout + result.stderr
        assert_refused(result, name, allowed)

    def test_every_wrong_setting_is_named(self) -> None:
        assert_refused(
            srm("reaper", SRM_LOG_FORMAT="xml", SRM_HISTORY_RETENTION_DAYS="0"),
            "SRM_LOG_FORMAT",
            "SRM_HISTORY_RETENTION_DAYS",
        )

    def test_a_secret_and_a_jwks_together_are_refused(self, call: Callable[..., Result]) -> None:
        result = call(*ISSUE, SRM_TOKEN_SECRET=SECRET, SRM_TOKEN_JWKS="keys.json")

        assert_refused(result, "SRM_TOKEN_SECRET", "SRM_TOKEN_JWKS")
        assert SECRET not in result.stderr

    @pytest.mark.parametrize("arguments", [["serve"], ["serve", "--bind", "nonsense"], ["reaper"], ["audit"]])
    def test_a_wrong_setting_stops_every_command(self, tmp_path: Path, arguments: list[str]) -> None:
        assert_refused(srm(*arguments, cwd=tmp_path, SRM_BIND="nonsense"), "SRM_BIND", "nonsense")
        assert list(tmp_path.iterdir()) == []


class TestUnreachable:
    @pytest.mark.parametrize("arguments", [["audit"], ["demo", "load"], ["db", "upgrade"], ["serve"]], ids=" ".join)
    def test_an_unreachable_database_is_one_line_without_the_password(
        self, tmp_path: Path, unreachable: str, arguments: list[str]
    ) -> None:
        result = srm(*arguments, cwd=tmp_path, SRM_DATABASE_URL=unreachable, SRM_BIND=f"127.0.0.1:{free_port()}")

        assert_refused(result, "database", "Connection refused")
        assert PASSWORD not in result.stderr

    def test_a_missing_database_is_one_line(self, url: str) -> None:
        missing = url.replace("/srm_test_", "/srm_missing_")

        result = srm("audit", SRM_DATABASE_URL=missing)

        assert_refused(result, "does not exist")

    def test_a_missing_right_is_one_line_without_the_password(self, url: str, outside: Callable[[str], str]) -> None:
        """The error is permanent, and still no reason for a stack trace."""
        role = f"stranger_{free_port()}"
        with psycopg.connect(outside(url), autocommit=True) as connection:
            connection.execute(f"CREATE ROLE {role} LOGIN PASSWORD '{PASSWORD}'")
            try:
                as_stranger = make_url(url).set(username=role, password=PASSWORD)
                result = srm("audit", SRM_DATABASE_URL=as_stranger.render_as_string(hide_password=False))
            finally:
                connection.execute(f"DROP ROLE {role}")

        assert result.returncode == 1
        assert_one_line(result.stderr, "permission denied")
        assert PASSWORD not in result.stderr
