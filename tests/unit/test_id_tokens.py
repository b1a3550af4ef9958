"""ID tokens of a provider: by which signature, for whom and of which login they count."""

from __future__ import annotations

import asyncio
import hmac
import json
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding

from tenantry.http.identity import Identity
from tenantry.http.oidc import read_endpoints
from tenantry.http.provider import ProviderTokens
from tenantry.http.provider_keys import KeySet, read_key_set
from tenantry.http.tokens import BadTokenError, NoRightsError, Principal, Scope, Tokens
from tests.api.serving import SECRET
from tests.identity_provider import Signer, document
from tests.unit.test_provider_tokens import EC, ED, PROVIDER, RSA, Keys, forged, public_texts

CLIENT, NONCE = "tenantry-ui", "of this login"
CLIENT_SECRET = b"a client's secret, of thirty-two bytes or more"
OURS = {"aud": CLIENT, "nonce": NONCE, "sub": "ann"}


def read(token: str, keys: KeySet | None = None) -> Principal:
    known: Any = Keys(keys or read_key_set(document(EC, RSA, ED)))
    tokens = ProviderTokens(PROVIDER, known)
    return asyncio.run(tokens.read_id_token(token, client_id=CLIENT, nonce=NONCE))


def made(header: dict[str, Any], sign: Any, **claims: Any) -> str:
    given = {"iat": datetime.now(UTC).timestamp(), **OURS, **claims}
    return forged(header, sign, **given)


@pytest.mark.parametrize("signer", [EC, RSA, ED], ids=lambda one: one.algorithm)
def test_an_id_token_tells_who_has_logged_in(signer: Signer) -> None:
    end = datetime.now(UTC) + timedelta(minutes=5)
    who = read(signer.token(exp=end, **OURS))
    assert who == Principal(name="ann", scope=Scope.ADMIN, expires_at=int(end.timestamp()))
    assert read(signer.token(**{**OURS, "aud": [CLIENT]})).name == "ann"
    assert read(signer.token(**{**OURS, "aud": ["x", CLIENT], "azp": CLIENT})).name == "ann"


@pytest.mark.parametrize("algorithm", ["HS256", "HS384", "HS512", "RS256", "ES256", "EdDSA"])
@pytest.mark.parametrize("kid", ["ec", "rsa", "ed", None])
def test_nothing_that_others_know_signs_one(algorithm: str, kid: str | None) -> None:
    """Neither what is public of a key, nor the client's secret, nor the secret of our own tokens.

    With the last two a provider might sign (HS256); here they are no keys of its.
    """
    digest = {"HS384": "sha384", "HS512": "sha512"}.get(algorithm, "sha256")
    header = {"alg": algorithm} | ({} if kid is None else {"kid": kid})
    for secret in (*public_texts(), CLIENT_SECRET, SECRET.encode()):
        with pytest.raises(BadTokenError):
            read(made(header, partial(hmac.digest, secret, digest=digest)))


@pytest.mark.parametrize("algorithm", ["none", "None", "NONE", "", None, 7, ["ES256"]])
@pytest.mark.parametrize("kid", ["ec", "rsa", None])
def test_one_that_is_not_signed_is_none(algorithm: object, kid: str | None) -> None:
    with pytest.raises(BadTokenError):
        read(made({"alg": algorithm, "kid": kid}, lambda _: b""))


def _by(signer: Signer, *kind: Any) -> Any:
    return lambda text: signer.key.sign(text, *kind)


SHA256 = hashes.SHA256()


@pytest.mark.parametrize(
    ("header", "sign"),
    [
        ({"alg": "ES256", "kid": "rsa"}, _by(RSA, padding.PKCS1v15(), SHA256)),
        ({"alg": "PS256", "kid": "rsa"}, _by(RSA, padding.PSS(padding.MGF1(SHA256), 32), SHA256)),
        ({"alg": "RS256", "kid": "ec"}, _by(EC, ec.ECDSA(SHA256))),
        ({"alg": "ES256", "kid": "ec"}, _by(Signer("ec"), ec.ECDSA(SHA256))),
        ({"alg": "EdDSA", "kid": "ec"}, _by(ED)),
        ({"alg": "EdDSA", "jwk": ED.shown()}, _by(ED)),
        ({"alg": "EdDSA", "kid": "ed", "crit": ["new"], "new": 1}, _by(ED)),
        ({"alg": "EdDSA", "kid": "unknown"}, _by(ED)),
    ],
)
def test_one_counts_by_its_keys_own_algorithm_and_by_no_other(
    header: dict[str, Any], sign: Any
) -> None:
    with pytest.raises(BadTokenError):
        read(made(header, sign))
    assert read(made({"alg": "EdDSA", "kid": "ed"}, _by(ED))).name == "ann"


@pytest.mark.parametrize(
    "claims",
    [
        {"aud": "tenantry"}, {"aud": []}, {"aud": ["other"]}, {"aud": [CLIENT, "other"]},
        {"aud": [CLIENT, CLIENT]}, {"azp": "other"}, {"azp": ""}, {"azp": [CLIENT]}, {"azp": {}},
        {"azp": 7}, {"nonce": "of another"}, {"nonce": ""}, {"nonce": [NONCE]}, {"nonce": None},
        {"nonce": "\ud800"}, {"nonce": f"{NONCE} "}, {"iss": "https://login.test/"}, {"iss": None},
        {"exp": 1}, {"exp": None}, {"iat": None}, {"sub": None}, {"sub": 7}, {"sub": ["ann"]},
        {"iat": 4_102_444_800},
    ],
    ids=str,
)  # fmt: skip
def test_one_is_for_this_client_and_of_this_login(claims: dict[str, Any]) -> None:
    with pytest.raises(BadTokenError):
        read(made({"alg": "EdDSA", "kid": "ed"}, _by(ED), **claims))


def test_one_without_rights_logs_nobody_in() -> None:
    with pytest.raises(NoRightsError):
        read(EC.token(**OURS, scope="openid"))


def test_one_that_was_made_for_the_page_is_no_token_of_the_api_and_the_reverse() -> None:
    keys: Any = Keys(read_key_set(document(EC, RSA, ED)))
    identity = Identity([SECRET], ProviderTokens(PROVIDER, keys))
    with pytest.raises(BadTokenError):
        asyncio.run(identity.read(EC.token(**OURS)))
    own = Tokens(SECRET).issue(subject="ann", now=datetime.now(UTC), ttl=timedelta(hours=1))
    for token in (EC.token(nonce=NONCE), own):
        with pytest.raises(BadTokenError):
            read(token)


@pytest.mark.parametrize("document", [b"", b"[]", b"null", b"\xff", b'{"issuer": ["i"]}'])
def test_what_is_no_document_of_a_provider_is_none(document: bytes) -> None:
    with pytest.raises(ValueError, match="another issuer"):
        read_endpoints(document, "i", has_secret=False)


GOOD = [
    "https://login.test/a?b=c", "http://127.0.0.1:1/a", "http://[::1]/", "http://localhost/",
]  # fmt: skip
BAD = [
    "http://login.test/", "http://127.0.0.1.evil.test/", "https:///a", "https://login.test/#a",
    "https://login.test\\@evil.test/", "//login.test/", "HTTPS://login.test/", "https://é.test/",
    "", "https://login.test/" + "a" * 3000, "https://login.test:x/",
]  # fmt: skip


@pytest.mark.parametrize("url", [*GOOD, *BAD], ids=lambda url: url[:40])
def test_addresses_of_a_provider_are_by_https_or_on_this_machine(url: str) -> None:
    told = {"issuer": "i", "authorization_endpoint": url, "token_endpoint": "https://login.test/t"}
    text = json.dumps(told).encode()
    if url in GOOD:
        assert read_endpoints(text, "i", has_secret=True).authorization == url
    else:
        with pytest.raises(ValueError, match="authorization_endpoint"):
            read_endpoints(text, "i", has_secret=True)
