"""Keys and their sources, the cache of verified tokens, and issuing.

tests/api/test_client_token.py has invalid tokens.
"""

import base64
import json
import stat
import threading
import time
import tracemalloc
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from srm.clients import tokens
from srm.clients.tokens import KeySet, SharedSecret, TokenVerifier, VerificationKey
from srm.config import Settings
from srm.errors import CommandError, DependencyUnavailable, StartupError, TokenNotValid
from srm.playback.model import Principal
from tests.support import SECRET, free_port, issue_token, sign, wait_until

CLAIMS: dict[str, Any] = {"accountId": "a", "deviceId": "tv", "exp": int(time.time()) + 3600}
RSA = rsa.generate_private_key(65537, 2048)
OTHER_RSA = rsa.generate_private_key(65537, 2048)
EC = ec.generate_private_key(ec.SECP256R1())
ED = ed25519.Ed25519PrivateKey.generate()
PRIVATE: dict[str, Any] = {"RS256": RSA, "ES256": EC, "EdDSA": ED}
JWKS = {
    "keys": [
        {**RSAAlgorithm.to_jwk(RSA.public_key(), as_dict=True), "kid": "RS256"},
        {**ECAlgorithm.to_jwk(EC.public_key(), as_dict=True), "kid": "ES256", "use": "sig"},
        {**OKPAlgorithm.to_jwk(ED.public_key(), as_dict=True), "kid": "EdDSA", "alg": "EdDSA"},
    ]
}


def rsa_jwk(key: rsa.RSAPrivateKey = RSA, **members: Any) -> dict[str, Any]:
    return {**RSAAlgorithm.to_jwk(key.public_key(), as_dict=True), **members}


def signed(algorithm: str = "RS256", kid: str | None = None, key: Any = None, **claims: Any) -> str:
    header = {"kid": kid or algorithm}
    return jwt.encode({**CLAIMS, **claims}, key or PRIVATE[algorithm], algorithm=algorithm, headers=header)


def verifier_of(key: VerificationKey, **settings: Any) -> TokenVerifier:
    return TokenVerifier(key, Settings(**settings))


def verify(key: VerificationKey, token: str) -> Principal:
    return verifier_of(key).verify(token)


class Source:
    """An HTTP server that serves a JWKS."""

    def __init__(self) -> None:
        self.status = 200
        self.headers: dict[str, str] = {}
        self.body = json.dumps(JWKS).encode()
        self.reads = 0
        source = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                source.reads += 1
                self.send_response(source.status)
                for name, value in source.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(source.body)))
                self.end_headers()
                self.wfile.write(source.body)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 the name is the base class'
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/jwks.json"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()

    def publish(self, *keys: dict[str, Any]) -> None:
        self.body = json.dumps({"keys": keys}).encode()

    def go_away(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def source() -> Iterator[Source]:
    source = Source()
    yield source
    source.go_away()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "jwks.json"
    path.write_text(json.dumps(JWKS))
    return path


def let_the_interval_pass(keys: KeySet) -> None:
    keys._next_read -= tokens.JWKS_REREAD_SECONDS


# Shared secret


def test_a_shared_secret_verifies_the_tokens_it_has_issued() -> None:
    assert verify(SharedSecret(SECRET), SharedSecret(SECRET).issue(CLAIMS)) == Principal("a", "tv")


@pytest.mark.parametrize("algorithm", ["HS384", "HS512"])
@pytest.mark.filterwarnings("ignore::jwt.warnings.InsecureKeyLengthWarning")
def test_a_shared_secret_is_for_hs256_alone(algorithm: str) -> None:
    with pytest.raises(TokenNotValid):
        verify(SharedSecret(SECRET), jwt.encode(CLAIMS, SECRET, algorithm=algorithm))


# JWKS


@pytest.mark.parametrize("algorithm", PRIVATE)
def test_a_key_of_a_file_is_chosen_by_kid(file: Path, algorithm: str) -> None:
    assert verify(KeySet(str(file)), signed(algorithm)) == Principal("a", "tv")


@pytest.mark.parametrize("algorithm", PRIVATE)
def test_a_key_of_a_server_is_chosen_by_kid(source: Source, algorithm: str) -> None:
    assert verify(KeySet(source.url), signed(algorithm)) == Principal("a", "tv")


def test_the_server_is_asked_once_for_many_tokens(source: Source) -> None:
    keys = KeySet(source.url)

    for algorithm in (*PRIVATE, *PRIVATE):
        verify(keys, signed(algorithm))

    assert source.reads == 1


def test_the_server_is_not_asked_before_the_first_token(source: Source) -> None:
    tokens.key_from(Settings(token_jwks=source.url))

    assert source.reads == 0


WRONG = {
    "key of another kid": lambda: signed("RS256", kid="ES256"),
    "another key under the kid": lambda: signed("RS256", key=OTHER_RSA),
    "other algorithm of the key": lambda: jwt.encode(CLAIMS, RSA, algorithm="RS512", headers={"kid": "RS256"}),
    "PSS instead of PKCS 1": lambda: jwt.encode(CLAIMS, RSA, algorithm="PS256", headers={"kid": "RS256"}),
    "HS256 under the kid": lambda: sign(CLAIMS, {"alg": "HS256", "kid": "RS256"}, "guess"),
    "none under the kid": lambda: sign(CLAIMS, {"alg": "none", "kid": "RS256"}),
    "no kid": lambda: jwt.encode(CLAIMS, RSA, algorithm="RS256"),
    "empty kid": lambda: sign(CLAIMS, {"alg": "RS256", "kid": ""}),
    "kid not a string": lambda: sign(CLAIMS, {"alg": "RS256", "kid": ["RS256"]}),
    "kid is null": lambda: sign(CLAIMS, {"alg": "RS256", "kid": None}),
    "expired": lambda: signed("RS256", exp=1),
    "key within the token": lambda: jwt.encode(
        CLAIMS, OTHER_RSA, algorithm="RS256", headers={"kid": "RS256", "jwk": rsa_jwk(OTHER_RSA)}
    ),
}


@pytest.mark.parametrize("token", WRONG.values(), ids=WRONG.keys())
def test_the_key_decides_the_algorithm_and_never_the_token(file: Path, token: Any) -> None:
    with pytest.raises(TokenNotValid):
        verify(KeySet(str(file)), token())


SYMMETRIC = {"kty": "oct", "k": base64.urlsafe_b64encode(SECRET.encode()).rstrip(b"=").decode(), "kid": "k"}


UNFIT = {
    "symmetric": SYMMETRIC,
    "symmetric for HS256": {**SYMMETRIC, "alg": "HS256"},
    "symmetric for RS256": {**SYMMETRIC, "alg": "RS256"},
    "for encryption": rsa_jwk(kid="k", use="enc"),
    "for RS512": rsa_jwk(kid="k", alg="RS512"),
    "RSA for HS256": rsa_jwk(kid="k", alg="HS256"),
    "for RSA-OAEP": rsa_jwk(kid="k", alg="RSA-OAEP"),
    "alg a number": rsa_jwk(kid="k", alg=1),
    "alg a list": rsa_jwk(kid="k", alg=["RS256"]),
    "kid a list": rsa_jwk(kid=["k"]),
    "kid empty": rsa_jwk(kid=""),
    "no kid": rsa_jwk(),
    "no numbers": {"kty": "RSA", "kid": "k"},
    "no kty": {"kid": "k"},
    "empty": {},
    "string": "k",
    "null": None,
}


@pytest.mark.parametrize("key", UNFIT.values(), ids=UNFIT.keys())
def test_a_key_that_cannot_sign_client_tokens_is_skipped(tmp_path: Path, key: Any) -> None:
    file = tmp_path / "jwks.json"
    file.write_text(json.dumps({"keys": [key, *JWKS["keys"]]}))
    keys = tokens.key_from(Settings(token_jwks=str(file)))

    assert verify(keys, signed("ES256")) == Principal("a", "tv")
    for token in (signed("RS256", kid="k"), sign(CLAIMS, {"alg": "HS256", "kid": "k"})):
        with pytest.raises(TokenNotValid):
            verify(keys, token)


# Rotation


def test_an_unknown_kid_makes_the_source_be_read_once_more_and_then_not_for_a_while(source: Source) -> None:
    keys = KeySet(source.url)
    verify(keys, signed())
    let_the_interval_pass(keys)
    source.publish(rsa_jwk(OTHER_RSA, kid="next"))

    assert verify(keys, signed(kid="next", key=OTHER_RSA)) == Principal("a", "tv")
    assert source.reads == 2
    for number in range(5):
        with pytest.raises(TokenNotValid):
            verify(keys, signed(kid=f"unknown {number}"))
    assert source.reads == 2


def test_an_unknown_kid_makes_the_source_be_read_again_after_the_interval(source: Source) -> None:
    keys = KeySet(source.url)
    verify(keys, signed())
    source.publish(rsa_jwk(OTHER_RSA, kid="next"))
    token = signed(kid="next", key=OTHER_RSA)

    with pytest.raises(TokenNotValid):
        verify(keys, token)
    assert source.reads == 1
    let_the_interval_pass(keys)

    assert verify(keys, token) == Principal("a", "tv")
    assert source.reads == 2


def test_a_key_that_was_withdrawn_is_gone_after_the_next_read(source: Source) -> None:
    keys = KeySet(source.url)
    verify(keys, signed("RS256"))
    source.publish(JWKS["keys"][1])
    let_the_interval_pass(keys)

    for token in (signed(kid="unknown"), signed("RS256")):
        with pytest.raises(TokenNotValid):
            verify(keys, token)
    assert verify(keys, signed("ES256")) == Principal("a", "tv")


def test_many_threads_read_the_source_once(source: Source) -> None:
    keys = KeySet(source.url)
    token = signed()
    found: list[Principal] = []
    threads = [threading.Thread(target=lambda: found.append(verify(keys, token))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert found == [Principal("a", "tv")] * 8
    assert source.reads == 1


# The source is away, or serves no JWKS

ANSWERS: dict[str, dict[str, Any]] = {
    "redirect": {"status": 302, "headers": {"Location": "/elsewhere"}},
    "not found": {"status": 404},
    "server error": {"status": 500},
    "empty": {"body": b""},
    "garbage": {"body": b"<html>"},
    "not UTF-8": {"body": b"\xff\xfe\x00"},
    "list": {"body": b"[]"},
    "null": {"body": b"null"},
    "no keys": {"body": b"{}"},
    "empty set": {"body": b'{"keys": []}'},
    "keys not a list": {"body": b'{"keys": "k"}'},
    "no usable key": {"body": b'{"keys": [{"kty": "oct", "k": "eA", "kid": "k"}]}'},
    "brackets": {"body": b"[" * 100_000},
}


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS.keys())
def test_keys_once_read_are_kept_whatever_the_source_answers(source: Source, answer: dict[str, Any]) -> None:
    keys = KeySet(source.url)
    verify(keys, signed())
    vars(source).update(answer)
    let_the_interval_pass(keys)

    with pytest.raises(TokenNotValid):
        verify(keys, signed(kid="unknown"))
    assert source.reads == 2
    assert verify(keys, signed("RS256")) == verify(keys, signed("ES256")) == Principal("a", "tv")


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS.keys())
def test_without_keys_verification_is_unavailable_whatever_the_source_answers(
    source: Source, answer: dict[str, Any]
) -> None:
    vars(source).update(answer)
    keys = KeySet(source.url)

    for _ in range(3):
        with pytest.raises(DependencyUnavailable):
            verify(keys, signed())
    assert source.reads == 1


def test_keys_once_read_are_kept_while_the_source_is_away(source: Source) -> None:
    keys = KeySet(source.url)
    verify(keys, signed())
    keys._source = f"http://127.0.0.1:{free_port()}/jwks.json"
    let_the_interval_pass(keys)

    with pytest.raises(TokenNotValid):
        verify(keys, signed(kid="unknown"))
    assert verify(keys, signed()) == Principal("a", "tv")


def test_without_keys_verification_is_unavailable_until_the_source_comes_back(source: Source) -> None:
    keys = KeySet(f"http://127.0.0.1:{free_port()}/jwks.json")
    with pytest.raises(DependencyUnavailable):
        verify(keys, signed())

    keys._source = source.url
    let_the_interval_pass(keys)

    assert verify(keys, signed()) == Principal("a", "tv")


# Cache


class CountingKey(SharedSecret):
    """Counts how often a signature is checked."""

    def __init__(self) -> None:
        super().__init__(SECRET)
        self.count = 0

    def decode(self, token: str, **kwargs: Any) -> dict[str, Any]:
        self.count += 1
        return super().decode(token, **kwargs)


def test_a_token_is_verified_once() -> None:
    key = CountingKey()
    verifier = verifier_of(key)

    assert [verifier.verify(issue_token("a", "tv", exp=CLAIMS["exp"])) for _ in range(3)] == [Principal("a", "tv")] * 3
    assert key.count == 1


def test_a_cached_token_is_refused_when_it_expires() -> None:
    expires_at = int(time.time()) + 2
    token = issue_token("a", "tv", exp=expires_at)
    verifier = verifier_of(CountingKey())
    verifier.verify(token)

    wait_until(lambda: time.time() > expires_at)

    with pytest.raises(TokenNotValid):
        verifier.verify(token)


def test_a_full_cache_drops_the_token_that_was_not_used_for_longest() -> None:
    key = CountingKey()
    verifier = verifier_of(key)
    used, *others = (issue_token("a", device) for device in map(str, range(100)))
    verifier.cache = tokens.TokenCache(capacity=20 * 1024)

    verifier.verify(used)
    for token in others:
        verifier.verify(token)
        verifier.verify(used)

    assert 10 < len(verifier.cache) < 30
    assert key.count == 100
    verifier.verify(others[-1])
    assert key.count == 100
    verifier.verify(others[0])
    assert key.count == 101


@pytest.mark.parametrize(("padding", "name"), [(0, ""), (500, ""), (5500, ""), (0, "€" * 250)])
def test_the_cache_is_bounded_in_bytes(padding: int, name: str) -> None:
    """Long tokens and long ids take no more than short ones; a long token is not kept itself."""
    capacity = 200_000
    verifier = verifier_of(SharedSecret(SECRET))
    verifier.cache = tokens.TokenCache(capacity)
    verifier.verify(issue_token("a", "tv"))
    issued = [issue_token("a", f"{name}{index}", padding="x" * padding) for index in range(500)]
    tracemalloc.start()
    try:
        for token in issued:
            verifier.verify(token.encode().decode())  # a string of its own, as the header of each request
        del issued
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert taken < 1.2 * capacity
    assert len(verifier.cache) > (50 if name else 70)


def test_cached_returns_only_what_was_verified_and_has_not_expired(monkeypatch: pytest.MonkeyPatch) -> None:
    key = CountingKey()
    verifier = verifier_of(key)
    token, long_token = issue_token("a", "tv"), issue_token("a", "phone", padding="x" * 3000)

    assert [verifier.cached(one) for one in (token, long_token, "garbage")] == [None] * 3
    assert key.count == 0
    verifier.verify(token)
    verifier.verify(long_token)
    assert [verifier.cached(one) for one in (token, long_token)] == [Principal("a", "tv"), Principal("a", "phone")]
    assert verifier.cached(long_token[:-1]) is None
    monkeypatch.setattr(time, "time", lambda: CLAIMS["exp"] + 3600.0)
    assert verifier.cached(token) is None


def test_a_token_that_is_too_long_is_not_decoded() -> None:
    key = CountingKey()

    with pytest.raises(TokenNotValid):
        verify(key, issue_token("a", "tv", padding="x" * tokens.MAX_TOKEN_LENGTH))

    assert key.count == 0


def test_invalid_tokens_are_not_cached() -> None:
    key = CountingKey()
    verifier = verifier_of(key)

    for token in ("garbage", "garbage", sign({**CLAIMS, "accountId": 1}), sign({**CLAIMS, "accountId": 1})):
        with pytest.raises(TokenNotValid):
            verifier.verify(token)

    assert key.count == 4
    assert len(verifier.cache) == 0


@pytest.mark.parametrize("expires_at", [10**12, 10**30, 1e300, pytest.param(CLAIMS["exp"] + 0.5, id="a fraction")])
def test_a_token_may_expire_in_the_far_future(expires_at: float) -> None:
    verifier = verifier_of(SharedSecret(SECRET))

    for _ in range(2):
        assert verifier.verify(sign({**CLAIMS, "exp": expires_at})) == Principal("a", "tv")


# The secret of the data directory


def test_a_secret_is_made_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "not" / "there")

    first = tokens.shared_secret(settings, create=True)
    file = tmp_path / "not" / "there" / "token_secret"
    written = file.read_text()

    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert len(written) >= 32
    for other in (tokens.shared_secret(settings, create=True), tokens.shared_secret(settings)):
        assert verify(other, first.issue(CLAIMS)) == Principal("a", "tv")
    assert file.read_text() == written
    assert [path.name for path in file.parent.iterdir()] == ["token_secret"]


def test_each_data_directory_gets_a_secret_of_its_own(tmp_path: Path) -> None:
    first, second = (tokens.shared_secret(Settings(data_dir=tmp_path / name), create=True) for name in "12")

    with pytest.raises(TokenNotValid):
        verify(second, first.issue(CLAIMS))


def test_a_configured_secret_wins_over_the_data_directory(tmp_path: Path) -> None:
    key = tokens.shared_secret(Settings(token_secret=SECRET, data_dir=tmp_path), create=True)

    assert verify(key, issue_token("a", "tv")) == Principal("a", "tv")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_secret_stops_the_start_and_says_what_to_set(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="SRM_TOKEN_SECRET or SRM_TOKEN_JWKS"):
        tokens.key_from(Settings(data_dir=tmp_path))


@pytest.mark.parametrize(
    "content",
    [b"", b"short", b" \n", b"\xff" * 40, None],
    ids=["empty", "short", "blank", "not UTF-8", "a folder"],
)
def test_an_unusable_secret_stops_the_start_and_is_not_shown(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "token_secret"
    if content is None:
        file.mkdir()
    else:
        file.write_bytes(content)

    for create in (False, True):
        with pytest.raises(StartupError, match=str(file)) as caught:
            tokens.shared_secret(Settings(data_dir=tmp_path), create=create)
        assert "short" not in str(caught.value)
        assert "\n" not in str(caught.value)


CONTENTS = {**{name: answer["body"] for name, answer in ANSWERS.items() if "body" in answer}, "missing": None}


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS.keys())
def test_a_jwks_file_that_cannot_be_used_stops_the_start(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "jwks.json"
    if content is not None:
        file.write_bytes(content)

    with pytest.raises(StartupError) as caught:
        tokens.key_from(Settings(token_jwks=str(file)))

    assert str(caught.value).startswith(f"SRM_TOKEN_JWKS={str(file)!r}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("url", ["http://host:port/jwks.json", "http://", "https:///jwks.json"])
def test_an_invalid_jwks_url_stops_the_start(url: str) -> None:
    with pytest.raises(StartupError, match="SRM_TOKEN_JWKS="):
        tokens.key_from(Settings(token_jwks=url))


# Issuing


def test_an_issued_token_is_accepted_under_the_settings_that_issued_it() -> None:
    settings = Settings(
        token_secret=SECRET,
        token_issuer="operator",
        token_audience="srm",
        token_account_claim="sub",
        token_device_claim="dev",
    )

    token = tokens.issue(settings, "a", "tv", 60)

    claims = jwt.decode(token, SECRET, algorithms=["HS256"], audience="srm")
    assert claims == {"sub": "a", "dev": "tv", "iss": "operator", "aud": "srm", "exp": claims["exp"]}
    assert 55 < claims["exp"] - time.time() <= 60
    assert TokenVerifier(tokens.key_from(settings), settings).verify(token) == Principal("a", "tv")


def test_an_issued_token_has_no_issuer_and_audience_unless_configured() -> None:
    token = tokens.issue(Settings(token_secret=SECRET), "a", "tv", 60)

    assert jwt.decode(token, SECRET, algorithms=["HS256"]).keys() == {"accountId", "deviceId", "exp"}


def test_public_keys_cannot_issue_a_token(file: Path) -> None:
    with pytest.raises(CommandError, match="SRM_TOKEN_JWKS"):
        tokens.issue(Settings(token_jwks=str(file)), "a", "tv", 60)
