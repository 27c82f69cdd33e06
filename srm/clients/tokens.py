"""Client-Tokens: JWTs (RFC 7519) that name account and device, signed with a shared secret or a key of a JWKS."""

import json
import secrets
import sys
import threading
import time
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias

import httpx
import jwt

from srm.config import MIN_SECRET_BYTES, Settings
from srm.errors import CommandError, DependencyUnavailable, StartupError, TokenNotValid
from srm.playback.model import Principal

JWKS_ALGORITHMS = ("RS256", "ES256", "EdDSA")
JWKS_REREAD_SECONDS = 10
"""Shortest time between two reads of the JWKS, however many unknown key ids arrive."""

JWKS_TIMEOUT_SECONDS = 2

CACHE_BYTES = 32 * 1024 * 1024
"""Most memory for the verified tokens of one process; enough for some 40,000 tokens of 400 characters."""

ENTRY_BYTES = 320
"""Bytes of a verified token in the cache, beside its key and the two ids."""

LONG_TOKEN = 1024
"""Characters. In place of a longer token the cache keeps its digest."""

MAX_TOKEN_LENGTH = 8192
"""Characters. A longer token is not valid, and is not decoded."""

SECRET_FILE = "token_secret"  # noqa: S105 a file name
MAX_CLAIM_LENGTH = 255


class VerificationKey(Protocol):
    """Verifies the signature of a token."""

    def decode(self, token: str, **kwargs: Any) -> dict[str, Any]:
        """Verify the token and return its claims. Raises `jwt.PyJWTError` when the token is not valid."""
        ...


class SharedSecret:
    """The one secret of HS256. It signs and verifies."""

    def __init__(self, secret: str) -> None:
        self._secret = secret

    def decode(self, token: str, **kwargs: Any) -> dict[str, Any]:
        """See VerificationKey."""
        return jwt.decode(token, self._secret, algorithms=["HS256"], **kwargs)

    def issue(self, claims: dict[str, Any]) -> str:
        """Return a signed token with these claims."""
        return jwt.encode(claims, self._secret, algorithm="HS256")


class KeySet:
    """Public keys of a JWKS (RFC 7517), from a file or an http(s) URL.

    The first token makes it read the keys. A token with an unknown `kid` makes it read them again, at most once in
    JWKS_REREAD_SECONDS. While the source is away, it keeps the keys that it has read.
    """

    def __init__(self, source: str) -> None:
        self._source = source
        self._keys: dict[str, jwt.PyJWK] = {}
        self._lock = threading.Lock()
        self._next_read = float("-inf")

    def decode(self, token: str, **kwargs: Any) -> dict[str, Any]:
        """See VerificationKey. Raises DependencyUnavailable as long as no key could be read."""
        key_id = jwt.get_unverified_header(token).get("kid")
        if not isinstance(key_id, str):
            raise jwt.InvalidTokenError("no kid")
        key = self._keys.get(key_id) or self._read_again(key_id)
        # The algorithm comes from the key, never from the token: a public key must not work as an HS256 secret.
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
        """Read the usable keys of the source, by their `kid`.

        Raises OSError or httpx.HTTPError when the source cannot be reached, ValueError when it is no JWKS or has no
        usable key.
        """
        try:
            document = json.loads(self._fetch())
        except RecursionError:
            raise ValueError("nested too deeply") from None
        members = document.get("keys") if isinstance(document, dict) else None
        if not isinstance(members, list):
            raise ValueError("not a JSON object with a list of keys")
        keys = {}
        for member in members:
            if isinstance(member, dict) and "d" in member:
                continue  # never use a private key
            try:
                key = jwt.PyJWK(member)
            except (jwt.PyJWTError, ValueError, TypeError, AttributeError):
                continue  # skip a key of an unknown kind, use the others
            is_usable = key.public_key_use in (None, "sig") and key.algorithm_name in JWKS_ALGORITHMS
            if isinstance(key.key_id, str) and is_usable:
                keys[key.key_id] = key
        if not keys:
            raise ValueError(f"no key with a kid and one of {', '.join(JWKS_ALGORITHMS)}")
        return keys

    def _fetch(self) -> bytes:
        if _is_url(self._source):
            return httpx.get(self._source, timeout=JWKS_TIMEOUT_SECONDS).raise_for_status().content
        return Path(self._source).read_bytes()


class VerifiedToken(NamedTuple):
    """Facts that a valid token proves. `expires_at`: seconds since 1970."""

    principal: Principal
    expires_at: float


CacheKey: TypeAlias = str | bytes
"""A token, or the SHA-256 of a long one."""


def _digest(token: str) -> bytes:
    return sha256(token.encode(errors="surrogatepass")).digest()


class TokenCache:
    """Verified tokens by the time of their last use, in at most `capacity` bytes. Safe to share between threads.

    The cache has two generations. A token that is used moves to the young generation. When the young generation has
    half of the capacity, it becomes the old one, and the tokens of the old one are dropped. So a hit costs one look
    into a dict.
    """

    def __init__(self, capacity: int = CACHE_BYTES) -> None:
        self._half = capacity // 2
        self._lock = threading.Lock()
        self._young: dict[CacheKey, VerifiedToken] = {}
        self._old: dict[CacheKey, VerifiedToken] = {}
        self._young_bytes = 0

    def __len__(self) -> int:
        """Return the number of tokens."""
        return len(self._young) + len(self._old)

    def get(self, token: str) -> VerifiedToken | None:
        """Return the facts of the token; None when the cache does not have it."""
        key: CacheKey = token if len(token) <= LONG_TOKEN else _digest(token)
        found = self._young.get(key)
        if found is None and (found := self._old.get(key)) is not None:
            self._add(key, found)
        return found

    def add(self, token: str, verified: VerifiedToken) -> None:
        """Keep the facts of a token. When there is no room, drop the tokens that were used least recently."""
        self._add(token if len(token) <= LONG_TOKEN else _digest(token), verified)

    def _add(self, key: CacheKey, verified: VerifiedToken) -> None:
        account_id, device_id = verified.principal.account_id, verified.principal.device_id
        size = ENTRY_BYTES + sys.getsizeof(key) + sys.getsizeof(account_id) + sys.getsizeof(device_id)
        with self._lock:
            self._old.pop(key, None)
            if key not in self._young:
                if self._young_bytes + size > self._half:
                    self._old, self._young, self._young_bytes = self._young, {}, 0
                self._young_bytes += size
            self._young[key] = verified


class TokenVerifier:
    """Verifies Client-Tokens. Caches valid ones until they expire, as far as CACHE_BYTES allow.

    Safe to share between threads. Setup checks whether account and device are enabled.
    """

    def __init__(self, key: VerificationKey, settings: Settings) -> None:
        self._key = key
        self._claims = (settings.token_account_claim, settings.token_device_claim)
        self._expected = {
            "issuer": settings.token_issuer,
            "audience": settings.token_audience,
            # `iat` only tells the age of a token (RFC 7519, section 4.1.6).
            "options": {
                "require": ["exp"],
                "verify_aud": settings.token_audience is not None,
                "verify_iat": False,
            },
        }
        self.cache = TokenCache()

    def verify(self, token: str) -> Principal:
        """Return account and device of the token. Raises TokenNotValid, whatever is wrong with the token."""
        verified = self.cache.get(token)
        if verified is None:
            verified = self._decode(token)
            self.cache.add(token, verified)
        if verified.expires_at <= time.time():
            raise TokenNotValid
        return verified.principal

    def cached(self, token: str) -> Principal | None:
        """Return account and device of a token that was verified before and has not expired; else None."""
        verified = self.cache.get(token)
        return None if verified is None or verified.expires_at <= time.time() else verified.principal

    def _decode(self, token: str) -> VerifiedToken:
        """Return the facts of the token. Raises TokenNotValid."""
        if len(token) > MAX_TOKEN_LENGTH:
            raise TokenNotValid
        try:
            claims = self._key.decode(token, **self._expected)
        except (jwt.PyJWTError, ValueError, TypeError, ArithmeticError, RecursionError) as error:
            # Beside PyJWTError: errors from JSON that no honest issuer writes into a token.
            raise TokenNotValid from error
        expires_at = claims["exp"]
        if not isinstance(expires_at, int | float):
            raise TokenNotValid
        return VerifiedToken(Principal(*(self._identifier(claims.get(name)) for name in self._claims)), expires_at)

    @staticmethod
    def _identifier(value: object) -> str:
        if isinstance(value, str) and _is_identifier(value):
            return value
        raise TokenNotValid


def _is_identifier(value: str) -> bool:
    """True when the value can be the id of an account or device, and PostgreSQL can store it."""
    return 1 <= len(value) <= MAX_CLAIM_LENGTH and value.isprintable()


def shared_secret(settings: Settings, *, create: bool = False) -> SharedSecret:
    """Return the configured secret, or the one in the data directory.

    With `create`, generate a missing one there, readable by its owner only. Raises StartupError when there is none.
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
        raise StartupError(f"token secret {path}: not text; remove the file to get a new one") from None
    if len(secret) < MIN_SECRET_BYTES:
        raise StartupError(f"token secret {path}: less than {MIN_SECRET_BYTES} bytes; remove the file to get a new one")
    return SharedSecret(secret)


def key_from(settings: Settings) -> VerificationKey:
    """Return the configured key for Client-Tokens. Raises StartupError when it is missing or unusable.

    A JWKS behind a URL is not read yet.
    """
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
    """Return a Client-Token signed with the configured secret.

    Raises CommandError for a bad id and when SRM has only public keys, StartupError when there is no secret.
    """
    if settings.token_jwks is not None:
        raise CommandError("SRM_TOKEN_JWKS has public keys only: issue tokens where the private keys are")
    for name in (account_id, device_id):
        if not _is_identifier(name):
            raise CommandError(f"{name!r} is no id: an id has 1 to {MAX_CLAIM_LENGTH} printable characters")
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
