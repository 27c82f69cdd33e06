"""Settings: defaults, values from the environment, and messages about wrong values."""

from pathlib import Path
from typing import Any

import pytest

from srm import config
from srm.config import Settings
from srm.errors import StartupError

SECRET = "0123456789abcdef0123456789abcdef"
DEFAULTS: dict[str, object] = {
    "database_url": None,
    "data_dir": Path("var"),
    "bind": "127.0.0.1:8080",
    "token_secret": None,
    "token_jwks": None,
    "token_issuer": None,
    "token_audience": None,
    "token_account_claim": "accountId",
    "token_device_claim": "deviceId",
    "reaper_interval_seconds": 2,
    "ended_retention_seconds": 300,
    "history_retention_days": 90,
    "entitlements": "local",
    "entitlements_url": None,
    "entitlements_on_failure": "unavailable",
    "entitlements_timeout_seconds": 1,
    "trusted_proxies": 0,
    "cors_origins": frozenset(),
    "access_log_sample": 0.001,
    "log_format": "console",
}


def message(monkeypatch: pytest.MonkeyPatch, **variables: str) -> str:
    """Return the message of the failed start with these variables."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(StartupError) as caught:
        config.load()
    return str(caught.value)


@pytest.mark.parametrize(("option", "default"), DEFAULTS.items())
def test_every_setting_has_its_documented_default(option: str, default: Any) -> None:
    assert getattr(config.load(), option) == default


@pytest.mark.parametrize("option", DEFAULTS)
def test_an_empty_variable_counts_as_not_set(monkeypatch: pytest.MonkeyPatch, option: str) -> None:
    monkeypatch.setenv(f"SRM_{option.upper()}", "")

    assert getattr(config.load(), option) == DEFAULTS[option]


@pytest.mark.parametrize("option", Settings.model_fields)
def test_every_setting_has_a_description(option: str) -> None:
    assert Settings.model_fields[option].description


@pytest.mark.parametrize(
    ("variable", "value", "read"),
    [
        ("SRM_DATA_DIR", "/srv/srm", Path("/srv/srm")),
        ("SRM_BIND", "0.0.0.0:80", "0.0.0.0:80"),
        ("SRM_BIND", "[::1]:8080", "[::1]:8080"),
        ("SRM_BIND", "unix:/run/srm.sock", "unix:/run/srm.sock"),
        ("SRM_TOKEN_JWKS", "https://idp.example/jwks.json", "https://idp.example/jwks.json"),
        ("SRM_TOKEN_ISSUER", "https://idp.example", "https://idp.example"),
        ("SRM_TOKEN_AUDIENCE", "srm", "srm"),
        ("SRM_TOKEN_ACCOUNT_CLAIM", "sub", "sub"),
        ("SRM_TOKEN_DEVICE_CLAIM", "dev", "dev"),
        ("SRM_REAPER_INTERVAL_SECONDS", "0.5", 0.5),
        ("SRM_ENDED_RETENTION_SECONDS", "0", 0),
        ("SRM_HISTORY_RETENTION_DAYS", "365", 365),
        ("SRM_ENTITLEMENTS", "allow", "allow"),
        ("SRM_ENTITLEMENTS_ON_FAILURE", "deny", "deny"),
        ("SRM_ENTITLEMENTS_TIMEOUT_SECONDS", "0.3", 0.3),
        ("SRM_CORS_ORIGINS", "*", {"*"}),
        ("SRM_CORS_ORIGINS", "https://a.example, http://[::1]:8000", {"https://a.example", "http://[::1]:8000"}),
        ("SRM_CORS_ORIGINS", "capacitor://localhost", {"capacitor://localhost"}),
        ("SRM_LOG_FORMAT", "json", "json"),
    ],
)
def test_every_setting_is_read_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, read: object
) -> None:
    monkeypatch.setenv(variable, value)

    assert getattr(config.load(), variable.removeprefix("SRM_").lower()) == read


def test_secrets_are_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SRM_TOKEN_SECRET", SECRET)
    monkeypatch.setenv("SRM_DATABASE_URL", "postgresql://srm:pass@host/srm")

    settings = config.load()

    assert settings.token_secret is not None
    assert settings.token_secret.get_secret_value() == SECRET
    assert settings.require_database_url() == "postgresql://srm:pass@host/srm"


@pytest.mark.parametrize(
    ("variable", "value", "allowed"),
    [
        ("SRM_BIND", "8080", "host:port"),
        ("SRM_BIND", "host:port", "host:port"),
        ("SRM_BIND", "127.0.0.1:8080\n", "host:port"),
        ("SRM_BIND", "127.0.0.1:65536", "65535"),
        ("SRM_BIND", "two words:80", "host:port"),
        ("SRM_REAPER_INTERVAL_SECONDS", "soon", "number"),
        ("SRM_REAPER_INTERVAL_SECONDS", "0", "0.1"),
        ("SRM_REAPER_INTERVAL_SECONDS", "nan", ""),
        ("SRM_REAPER_INTERVAL_SECONDS", "inf", "15"),
        ("SRM_REAPER_INTERVAL_SECONDS", "15.1", "15"),
        ("SRM_ENDED_RETENTION_SECONDS", "-1", "0"),
        ("SRM_ENDED_RETENTION_SECONDS", "1.5", "integer"),
        ("SRM_ENDED_RETENTION_SECONDS", "86401", "86400"),
        ("SRM_HISTORY_RETENTION_DAYS", "0", "1"),
        ("SRM_HISTORY_RETENTION_DAYS", "3651", "3650"),
        ("SRM_ENTITLEMENTS", "remote", "'local', 'http' or 'allow'"),
        ("SRM_ENTITLEMENTS_ON_FAILURE", "fail", "'deny', 'allow' or 'unavailable'"),
        ("SRM_ENTITLEMENTS_TIMEOUT_SECONDS", "0", "greater than 0"),
        ("SRM_ENTITLEMENTS_TIMEOUT_SECONDS", "2.1", "2"),
        ("SRM_ENTITLEMENTS_TIMEOUT_SECONDS", "nan", "2"),
        ("SRM_ENTITLEMENTS_TIMEOUT_SECONDS", "soon", "number"),
        ("SRM_CORS_ORIGINS", "player.example", "https://player.example"),
        ("SRM_CORS_ORIGINS", "https://player.example/", "no path"),
        ("SRM_CORS_ORIGINS", "https://Player.example", "lower case"),
        ("SRM_CORS_ORIGINS", "https://player.example:443", "no default port"),
        ("SRM_CORS_ORIGINS", "https://a.example,", "separated by commas"),
        ("SRM_CORS_ORIGINS", "https://a.example https://b.example", "separated by commas"),
        ("SRM_CORS_ORIGINS", "https://*.example", "*"),
        ("SRM_CORS_ORIGINS", "null", "*"),
        ("SRM_LOG_FORMAT", "xml", "'console' or 'json'"),
        ("SRM_LOG_FORMAT", "JSON", "'console' or 'json'"),
    ],
)
def test_a_wrong_value_stops_the_start_with_one_line(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, allowed: str
) -> None:
    said = message(monkeypatch, **{variable: value})

    assert said.startswith(f"{variable}={value!r}: ")
    assert allowed in said.partition(": ")[2]
    assert "\n" not in said


def test_all_wrong_settings_are_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    said = message(monkeypatch, SRM_LOG_FORMAT="xml", SRM_HISTORY_RETENTION_DAYS="0")

    assert "SRM_LOG_FORMAT='xml'" in said
    assert "SRM_HISTORY_RETENTION_DAYS='0'" in said
    assert "\n" not in said


@pytest.mark.parametrize(
    "url",
    [
        "hunter2",
        "mysql://srm:hunter2@host/srm",
        "://srm:hunter2@host/srm",
        "postgresql:srm:hunter2@host/srm",
        "postgresql://srm:hunter2@host:port/srm",
        "postgresql://srm:p@ss:hunter2@host/srm",
        "postgresql://srm@host:hunter2",
    ],
)
def test_a_wrong_database_url_is_refused_without_its_password(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    said = message(monkeypatch, SRM_DATABASE_URL=url)

    assert said.startswith("SRM_DATABASE_URL: ")
    assert "postgresql://" in said
    assert "hunter2" not in said
    assert "\n" not in said


@pytest.mark.parametrize(
    "url",
    [
        "http://",
        "http:///hunter2",
        "https://srm:hunter2@/x",
        "ftp://srm:hunter2@host/",
        "host:80",
        "hunter2",
        "http://srm:hunter2@host:port/",
        "http://srm:hunter2@host:65536/",
        "http://srm:hunter2@ho st/",
        "http://host\n/hunter2",
    ],
)
def test_a_wrong_entitlement_url_is_refused_without_its_password(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    said = message(monkeypatch, SRM_ENTITLEMENTS_URL=url)

    assert said == "SRM_ENTITLEMENTS_URL: must be a URL such as http://host:port/path or https://host/path"


@pytest.mark.parametrize(
    "url", ["http://host", "https://u:p@host.example:8443/may/watch?x=1", "http://[::1]:9090/", "http://10.0.0.1/"]
)
def test_an_entitlement_url_may_have_credentials_port_and_path(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("SRM_ENTITLEMENTS", "http")
    monkeypatch.setenv("SRM_ENTITLEMENTS_URL", url)

    settings = config.load()

    assert settings.entitlements_url is not None
    assert settings.entitlements_url.get_secret_value() == url
    assert url not in repr(settings)


def test_an_entitlement_service_needs_a_url(monkeypatch: pytest.MonkeyPatch) -> None:
    said = message(monkeypatch, SRM_ENTITLEMENTS="http")

    assert said.startswith("SRM_ENTITLEMENTS='http': SRM_ENTITLEMENTS_URL")
    assert "http(s)://host" in said
    assert "\n" not in said


@pytest.mark.parametrize("secret", ["hunter2", "x" * 31])
def test_a_short_secret_is_refused_without_its_value(monkeypatch: pytest.MonkeyPatch, secret: str) -> None:
    said = message(monkeypatch, SRM_TOKEN_SECRET=secret)

    assert said == "SRM_TOKEN_SECRET: must have at least 32 bytes"


def test_the_length_of_a_secret_is_counted_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SRM_TOKEN_SECRET", "é" * 16)

    assert config.load().token_secret is not None


def test_a_secret_and_a_jwks_together_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    said = message(monkeypatch, SRM_TOKEN_SECRET=SECRET, SRM_TOKEN_JWKS="jwks.json")

    assert "SRM_TOKEN_SECRET and SRM_TOKEN_JWKS" in said
    assert SECRET not in said
    assert "\n" not in said


@pytest.mark.parametrize("show", [repr, str, lambda settings: str(settings.model_dump())])
def test_secrets_are_masked_wherever_settings_are_printed(show: Any) -> None:
    settings = Settings(token_secret=SECRET, database_url="postgresql://srm:hunter2@host/srm")

    shown = show(settings)

    assert "token_secret" in shown
    assert SECRET not in shown
    assert "hunter2" not in shown


def test_overrides_win_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SRM_BIND", "127.0.0.1:1")

    assert config.load(bind="127.0.0.1:2").bind == "127.0.0.1:2"


def test_settings_are_immutable() -> None:
    with pytest.raises(ValueError, match="frozen"):
        config.load().bind = "127.0.0.1:1"  # type: ignore[misc]


def test_unknown_variables_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SRM_UNKNOWN", "1")

    assert config.load() == Settings()


def test_a_missing_database_url_says_how_to_get_a_database() -> None:
    with pytest.raises(StartupError, match=r"SRM_DATABASE_URL.*srm serve"):
        Settings().require_database_url()
