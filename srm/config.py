"""Settings of SRM: environment variables with the prefix `SRM_`, read once at the start of a process.

An empty variable counts as unset. A wrong value stops the start with one line that names the variable, the value and
what is allowed. The value of a secret is never shown.
"""

import re
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, StringConstraints, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from srm.errors import StartupError

MIN_SECRET_BYTES = 32
"""An HS256 key is at least as long as its hash (RFC 7518, section 3.2)."""

MAX_PORT = 65535
ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://([a-z0-9._-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?")
"""An origin as browsers send it: in lower case, without a path (RFC 6454, section 6.2)."""

DEFAULT_PORTS = {("http", "80"), ("https", "443")}
"""Ports that browsers leave out of an origin."""

HOST = re.compile(r"[^\s%/@]+")
ADDRESS = re.compile(r"([^\s:/]+|\[[0-9a-fA-F:.]+\]):[0-9]{1,5}|unix:\S+")

OnFailure = Literal["deny", "allow", "unavailable"]
Name = Annotated[str, StringConstraints(min_length=1)]


class Settings(BaseSettings):
    """All settings. Immutable, and safe to print: secrets are masked."""

    model_config = SettingsConfigDict(env_prefix="SRM_", env_ignore_empty=True, frozen=True, extra="ignore")

    database_url: SecretStr | None = Field(
        default=None,
        description="URL of the PostgreSQL database: `postgresql://user:password@host/database`. "
        "Unset: `srm serve` runs an embedded server in `SRM_DATA_DIR`.",
    )
    data_dir: Path = Field(
        default=Path("var"), description="Folder for the embedded database and the generated token secret."
    )
    bind: str = Field(
        default="127.0.0.1:8080",
        description="Address on which the API listens: `host:port`, `[ipv6]:port` or `unix:/path`.",
    )
    token_secret: SecretStr | None = Field(
        default=None,
        description=f"Secret that signs Client-Tokens with HS256; at least {MIN_SECRET_BYTES} bytes. "
        "Unset, and `SRM_TOKEN_JWKS` too: `srm serve` generates a secret in `SRM_DATA_DIR`.",
    )
    token_jwks: Name | None = Field(
        default=None,
        description="File or http(s) URL of a JWKS. It has the public keys for RS256, ES256 or EdDSA Client-Tokens, "
        "chosen by `kid`. Set this or `SRM_TOKEN_SECRET`, not both.",
    )
    token_issuer: Name | None = Field(
        default=None, description="Value that `iss` of a Client-Token must have. Unset: any."
    )
    token_audience: Name | None = Field(
        default=None, description="Value that `aud` of a Client-Token must have. Unset: any."
    )
    token_account_claim: Name = Field(
        default="accountId", description="Claim of a Client-Token that has the account id."
    )
    token_device_claim: Name = Field(default="deviceId", description="Claim of a Client-Token that has the device id.")
    reaper_interval_seconds: float = Field(
        default=2,
        ge=0.1,
        le=15,
        description="Seconds from one run of the reaper to the next. Alerts count it as dead after a minute.",
    )
    ended_retention_seconds: int = Field(
        default=300,
        ge=0,
        le=86400,
        description="Seconds that an ended session stays in `sessions`. Meanwhile its client can learn why it ended.",
    )
    history_retention_days: int = Field(
        default=90,
        ge=1,
        le=3650,
        description="Days that rows stay in `session_history` and `denials`. SRM drops whole months, "
        "each when its last day is that old.",
    )
    entitlements: Literal["local", "http", "allow"] = Field(
        default="local",
        description="What decides whether an account may watch a content. `local`: the tables. "
        "`http`: the service at `SRM_ENTITLEMENTS_URL`. `allow`: every account may watch everything.",
    )
    entitlements_url: SecretStr | None = Field(
        default=None,
        description="http(s) URL of the entitlement service (docs/entitlement-service.json). A user and a password "
        "in the URL are sent as Basic authentication. Required with `SRM_ENTITLEMENTS=http`, unused otherwise.",
    )
    entitlements_on_failure: OnFailure = Field(
        default="unavailable",
        description="Result of a setup when the entitlement service does not answer. `deny`: SRM-0007. "
        "`allow`: the setup goes on. `unavailable`: 503 with SRM-0010.",
    )
    entitlements_timeout_seconds: float = Field(
        default=1,
        gt=0,
        le=2,
        description="Seconds that the entitlement service may take to answer, a second try included.",
    )
    trusted_proxies: int = Field(
        default=0,
        ge=0,
        le=16,
        description="Number of proxies in front of the API. Each must append its client's address to X-Forwarded-For; "
        "SRM trusts that many entries, counted from the end. 0: SRM takes the address of the connection.",
    )
    cors_origins: Annotated[frozenset[str], NoDecode] = Field(
        default=frozenset(),
        description="Origins of web pages that may call the API, separated by commas: `https://player.example`. "
        "`*`: every page. Unset: no page; players outside a browser need no origin.",
    )
    access_log_sample: float = Field(
        default=0.001,
        ge=0,
        le=1,
        description="Share of the successful requests that are logged. Every error and denial is logged.",
    )
    log_format: Literal["console", "json"] = Field(
        default="console", description="Format of log lines. `console`: for people. `json`: for log collectors."
    )

    @field_validator("database_url")
    @classmethod
    def _is_postgresql(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None:
            return None
        try:
            backend = make_url(value.get_secret_value()).get_backend_name()
        except (ArgumentError, ValueError):  # ValueError: the port is no number
            backend = ""
        if backend not in ("postgresql", "postgres"):
            raise ValueError("must be a URL that starts with postgresql://")
        return value

    @field_validator("bind")
    @classmethod
    def _is_an_address(cls, value: str) -> str:
        if not ADDRESS.fullmatch(value):
            raise ValueError("must be host:port, [ipv6]:port or unix:/path")
        if not value.startswith("unix:") and int(value.rpartition(":")[2]) > MAX_PORT:
            raise ValueError(f"a port is at most {MAX_PORT}")
        return value

    @field_validator("token_secret")
    @classmethod
    def _is_long_enough(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and len(value.get_secret_value().encode()) < MIN_SECRET_BYTES:
            raise ValueError(f"must have at least {MIN_SECRET_BYTES} bytes")
        return value

    @field_validator("cors_origins", mode="before")
    @classmethod
    def _are_origins(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        origins = frozenset(origin.strip() for origin in value.split(","))
        for origin in origins - {"*"}:
            scheme, port = origin.partition(":")[0], origin.rpartition(":")[2]
            if not ORIGIN.fullmatch(origin) or (scheme, port) in DEFAULT_PORTS:
                raise ValueError(
                    "must be * or origins as a browser sends them, separated by commas: https://player.example, "
                    "lower case, no path, no default port"
                )
        return origins

    @field_validator("entitlements_url")
    @classmethod
    def _is_http(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None:
            return None
        text = value.get_secret_value()
        try:
            url = urlsplit(text)
            is_usable = text.isprintable() and HOST.fullmatch(url.hostname or "") and (url.port or 0) <= MAX_PORT
        except ValueError:
            is_usable = False
        if not is_usable or url.scheme not in ("http", "https"):
            raise ValueError("must be a URL such as http://host:port/path or https://host/path")
        return value

    @model_validator(mode="after")
    def _service_has_an_address(self) -> "Settings":
        if self.entitlements == "http" and self.entitlements_url is None:
            raise ValueError("SRM_ENTITLEMENTS='http': SRM_ENTITLEMENTS_URL is missing: set it to http(s)://host/path")
        return self

    @model_validator(mode="after")
    def _one_kind_of_key(self) -> "Settings":
        if self.token_secret is not None and self.token_jwks is not None:
            raise ValueError("SRM_TOKEN_SECRET and SRM_TOKEN_JWKS exclude each other: set one of them")
        return self

    def require_database_url(self) -> str:
        """Return the configured database URL. Raises StartupError when there is none."""
        if self.database_url is None:
            raise StartupError("no database: set SRM_DATABASE_URL, or use `srm serve`, which brings one")
        return self.database_url.get_secret_value()


SECRETS = {name for name, field in Settings.model_fields.items() if "SecretStr" in str(field.annotation)}


def load(**overrides: object) -> Settings:
    """Read the settings from the environment. `overrides` win over it. Raises StartupError for wrong values."""
    try:
        return Settings(**overrides)  # type: ignore[arg-type]
    except ValidationError as error:
        problems = []
        for detail in error.errors():
            message = detail["msg"].removeprefix("Value error, ")
            if not detail["loc"]:
                problems.append(message)
                continue
            name = str(detail["loc"][0])
            value = "" if name in SECRETS else f"={str(detail['input'])!r}"
            problems.append(f"SRM_{name.upper()}{value}: {message}")
        raise StartupError("; ".join(problems)) from None
