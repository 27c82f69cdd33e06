"""Client-Token → Principal: who asks. A JWT (RFC 7519), signed with a shared secret or a key of a JWKS."""

import json
import secrets
import threading
import time
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import httpx
import jwt

from srm.config import MIN_SECRET_BYTES, Settings
from srm.errors import DependencyUnavailable, StartupError, TokenNotValid
from srm.playback.model import Principal

JWKS_ALGORITHMS = ("RS256", "ES256", "EdDSA")
JWKS_REREAD_SECONDS = 10
"""At most one look at the JWKS in this time, however many unknown key ids come in."""
JWKS_TIMEOUT_SECONDS = 2

CACHED_TOKENS = 100_000
"""Verified tokens that one process remembers; some 60 MB when full."""

SECRET_FILE = "token_secret"  # noqa: S105 a file name
MAX_CLAIM_LENGTH = 255


class Key(Protocol):
    """What a signature can be checked with."""

    def decode(self, token: str, **kwargs: Any) -> dict[str, Any]:
        """The claims. A `jwt.PyJWTError` when the token is not valid."""
        ...


class SharedSecret:
    """HS256 with one secret."""

    def __init__(self, secret: str) -> None:
        self._secret = secret

    def decode(self, token: str, **kwargs: Any) -> dict[str, Any]:
        """See Key."""
        return jwt.decode(token, self._secret, algorithms=["HS256"], **kwargs)

    def issue(self, claims: dict[str, Any]) -> str:
        """A signed token."""
        return jwt.encode(claims, self._secret, algorithm="HS256")


class KeySet:
    """Public keys of a JWKS (RFC 7517) in a file or behind an http(s) URL.

    Read when the first token comes, and again when a token names an unknown `kid`, at most once in
    JWKS_REREAD_SECONDS. Keys once read are kept while the source is away.
    """

    def __init__(self, source: str) -> None:
        self._source = source
        self._keys: dict[str, jwt.PyJWK] = {}
        self._lock = threading.Lock()
        self._next_read = float("-inf")

    def decode(self, token: str, **kwargs: Any) -> dict[str, Any]:
        """See Key. DependencyUnavailable while not a single key could be read."""
        key_id = jwt.get_unverified_header(token).get("kid")
        if not isinstance(key_id, str):
            raise jwt.InvalidTokenError("no kid")
        key = self._keys.get(key_id) or self._read_again(key_id)
        # The algorithm comes from the key, never from the token: a public key is no HS256 secret.
        return jwt.decode(token, key.key, algorithms=[key.algorithm_name], **kwargs)

    def _read_again(self, key_id: str) -> jwt.PyJWK:
        with self._lock:
            if key_id not in self._keys and time.monotonic() >= self._next_read:
                try:
                    self._keys = self.read()
                except (OSError, httpx.HTTPError, ValueError):
                    if not self._keys:
                        raise DependencyUnavailable from None
                finally:
                    self._next_read = time.monotonic() + (JWKS_REREAD_SECONDS if self._keys else 1)
        if not self._keys:
            raise DependencyUnavailable
        if key_id not in self._keys:
            raise jwt.InvalidTokenError("unknown kid")
        return self._keys[key_id]

    def read(self) -> dict[str, jwt.PyJWK]:
        """The usable keys of the source by their `kid`.

        OSError or httpx.HTTPError when it cannot be reached, ValueError when it is no JWKS or has no usable key.
        """
        try:
            document = json.loads(self._fetch())
        except RecursionError:
            raise ValueError("nested too deep") from None
        members = document.get("keys") if isinstance(document, dict) else None
        if not isinstance(members, list):
            raise ValueError("not a JSON object with a list of keys")
        keys = {}
        for member in members:
            if isinstance(member, dict) and "d" in member:
                continue  # a private key has no business here
            try:
                key = jwt.PyJWK(member)
            except (jwt.PyJWTError, ValueError, TypeError, AttributeError):
                continue  # a kind of key that we do not know is no reason to do without the others
            is_for_us = key.public_key_use in (None, "sig") and key.algorithm_name in JWKS_ALGORITHMS
            if isinstance(key.key_id, str) and is_for_us:
                keys[key.key_id] = key
        if not keys:
            raise ValueError(f"no key with a kid and one of {', '.join(JWKS_ALGORITHMS)}")
        return keys

    def _fetch(self) -> bytes:
        if _is_url(self._source):
            return httpx.get(self._source, timeout=JWKS_TIMEOUT_SECONDS).raise_for_status().content
        return Path(self._source).read_bytes()


class TokenVerifier:
    """Verifies Client-Tokens and remembers the last CACHED_TOKENS that were valid, to use until they expire.

    Safe to share between threads. Whether account and device are enabled is not asked here.
    """

    def __init__(self, key: Key, settings: Settings) -> None:
        self._key = key
        self._claims = (settings.token_account_claim, settings.token_device_claim)
        self._expected = {
            "issuer": settings.token_issuer,
            "audience": settings.token_audience,
            # `iat` tells the age of a token and does not limit its use (RFC 7519, section 4.1.6).
            "options": {
                "require": ["exp"],
                "verify_aud": settings.token_audience is not None,
                "verify_iat": False,
            },
        }
        self._proved = lru_cache(CACHED_TOKENS)(self._prove)

    def verify(self, token: str) -> Principal:
        """Who the token proves to ask. TokenNotValid otherwise, whatever is wrong with it."""
        principal, expires_at = self._proved(token)
        if expires_at <= time.time():
            raise TokenNotValid
        return principal

    def _prove(self, token: str) -> tuple[Principal, float]:
        """Who the token proves to ask, and until when."""
        try:
            claims = self._key.decode(token, **self._expected)
        except (jwt.PyJWTError, ValueError, TypeError, ArithmeticError, RecursionError) as error:
            # All but the first: JSON inside the token that no honest issuer writes.
            raise TokenNotValid from error
        expires_at = claims["exp"]
        if not isinstance(expires_at, int | float):
            raise TokenNotValid
        return Principal(*(self._identifier(claims.get(name)) for name in self._claims)), expires_at

    @staticmethod
    def _identifier(value: object) -> str:
        if isinstance(value, str) and _is_identifier(value):
            return value
        raise TokenNotValid


def _is_identifier(value: str) -> bool:
    """Whether it can be the id of an account or a device, and the database can hold it."""
    return 1 <= len(value) <= MAX_CLAIM_LENGTH and value.isprintable()


def shared_secret(settings: Settings, *, create: bool = False) -> SharedSecret:
    """The secret that is configured, else the one in the data directory.

    With `create`, one is generated there when it is missing, readable by its owner alone.
    StartupError when there is none.
    """
    if settings.token_secret is not None:
        return SharedSecret(settings.token_secret.get_secret_value())
    path = settings.data_dir / SECRET_FILE
    try:
        if create and not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            unfinished = path.with_suffix(".new")
            unfinished.touch(mode=0o600)
            unfinished.write_text(secrets.token_urlsafe(MIN_SECRET_BYTES))
            unfinished.rename(path)
        secret = path.read_text().strip()
    except FileNotFoundError:
        raise StartupError(
            f"no key for Client-Tokens: set SRM_TOKEN_SECRET or SRM_TOKEN_JWKS ({path} is missing)"
        ) from None
    except OSError as error:
        raise StartupError(f"token secret {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise StartupError(f"token secret {path}: not text; remove it to get a new one") from None
    if len(secret) < MIN_SECRET_BYTES:
        raise StartupError(f"token secret {path}: less than {MIN_SECRET_BYTES} bytes; remove it to get a new one")
    return SharedSecret(secret)


def key_from(settings: Settings) -> Key:
    """What Client-Tokens are verified with. StartupError when it is missing or cannot be used."""
    if settings.token_jwks is None:
        return shared_secret(settings)
    source = settings.token_jwks
    key_set = KeySet(source)
    try:
        if not _is_url(source):
            key_set.read()
        elif not httpx.URL(source).host:
            raise ValueError("no host")
    except (OSError, ValueError, httpx.InvalidURL) as error:
        raise StartupError(f"SRM_TOKEN_JWKS={source!r}: {error}") from None
    return key_set


def _is_url(source: str) -> bool:
    return source.startswith(("http://", "https://"))


def issue(settings: Settings, account_id: str, device_id: str, ttl_seconds: int) -> str:
    """A Client-Token signed with the configured secret. StartupError when there is none to sign with."""
    if settings.token_jwks is not None:
        raise StartupError("SRM_TOKEN_JWKS holds public keys: tokens are issued where the private ones are")
    for name in (account_id, device_id):
        if not _is_identifier(name):
            raise StartupError(f"{name!r} is no id: 1 to {MAX_CLAIM_LENGTH} printable characters")
    claims: dict[str, object] = {
        settings.token_account_claim: account_id,
        settings.token_device_claim: device_id,
        "exp": int(time.time()) + ttl_seconds,
    }
    if settings.token_issuer is not None:
        claims["iss"] = settings.token_issuer
    if settings.token_audience is not None:
        claims["aud"] = settings.token_audience
    return shared_secret(settings).issue(claims)
