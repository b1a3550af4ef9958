"""A provider's tokens: which are taken, by which signature, and what they are good for."""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, get_args

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding

from tenantry.http.identity import Identity
from tenantry.http.provider import Provider, ProviderTokens
from tenantry.http.provider_keys import Key, KeySet, read_key_set
from tenantry.http.tokens import (
    LEEWAY_SECONDS,
    PAYLOADS,
    BadTokenError,
    NoRightsError,
    Principal,
    Scope,
    Tokens,
)
from tenantry.settings import Settings, SettingsError
from tenantry.settings.model import Rights
from tests.api.serving import SECRET
from tests.identity_provider import AUDIENCE, ISSUER, Signer, document, rsa_key

EC = Signer("ec")
RSA = Signer("rsa", "RS256")
ED = Signer("ed", "EdDSA")

PROVIDER = Provider(
    jwks_url="http://127.0.0.1:1/keys", issuer=ISSUER, audience=["other", AUDIENCE], scopes={}
)


class Keys:
    """A provider's keys that never change."""

    def __init__(self, keys: KeySet) -> None:
        self.keys = keys

    async def find(self, kid: str | None, algorithm: str) -> Key:
        if (key := self.keys.find(kid, algorithm)) is None:
            raise BadTokenError("no such key")
        return key

    def look_soon(self) -> None:
        pass


def read(
    token: str,
    *signers: Signer,
    secrets: tuple[str, ...] = (SECRET,),
    keys: KeySet | None = None,
    **rules: Any,
) -> Principal:
    known = keys or read_key_set(document(*(signers or (EC, RSA, ED))))
    reader: Any = ProviderTokens(replace(PROVIDER, **rules), Keys(known))  # type: ignore[arg-type]
    return asyncio.run(Identity(secrets, reader).read(token))


@pytest.mark.parametrize("signer", [EC, RSA, ED], ids=lambda one: one.algorithm)
def test_a_token_of_the_provider_tells_who_calls(signer: Signer) -> None:
    end = datetime.now(UTC) + timedelta(hours=1)
    who = read(signer.token(exp=end))
    expected = Principal(name="ann", scope=Scope.ADMIN, expires_at=int(end.timestamp()))
    assert who == expected
    assert read(signer.token(exp=end), secrets=()) == expected


def test_our_own_tokens_are_taken_beside_the_providers() -> None:
    own = Tokens(SECRET).issue(subject="bob", now=datetime.now(UTC), ttl=timedelta(hours=1))
    assert read(own).name == "bob"
    with pytest.raises(BadTokenError):
        read(own, secrets=())
    with pytest.raises(BadTokenError):
        read(own, secrets=("another secret of thirty-two bytes or more",))


def forged(header: dict[str, Any], sign: Any, **claims: Any) -> str:
    """Put a token together by hand, past what a library would refuse to sign."""
    now = datetime.now(UTC).timestamp()
    said = {"iss": ISSUER, "aud": AUDIENCE, "scope": "admin", "exp": now + 3600} | claims
    parts = [
        base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in (header, said)
    ]
    signature = sign(b".".join(parts))
    return b".".join([*parts, base64.urlsafe_b64encode(signature).rstrip(b"=")]).decode()


def public_texts() -> list[bytes]:
    """What an attacker knows of the keys, as the secret of an HMAC."""
    pem, form = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    texts = [one.key.public_key().public_bytes(pem, form) for one in (EC, RSA, ED)]
    texts += [json.dumps(one.shown()).encode() for one in (EC, RSA, ED)]
    texts += [base64.urlsafe_b64decode(RSA.shown()["n"] + "=="), b""]
    return texts


@pytest.mark.parametrize("algorithm", ["HS256", "HS384", "HS512", "RS256", "ES256", "EdDSA"])
@pytest.mark.parametrize("kid", ["ec", "rsa", "ed", None])
def test_what_is_public_of_a_key_is_no_secret_that_signs(algorithm: str, kid: str | None) -> None:
    digest = {"HS384": "sha384", "HS512": "sha512"}.get(algorithm, "sha256")
    header = {"alg": algorithm} | ({} if kid is None else {"kid": kid})
    for secret in public_texts():
        token = forged(header, partial(hmac.digest, secret, digest=digest))
        for secrets in ((SECRET,), ()):
            with pytest.raises(BadTokenError):
                read(token, secrets=secrets)


@pytest.mark.parametrize("algorithm", ["none", "None", "NONE", "", None, 7, ["ES256"]])
@pytest.mark.parametrize("kid", ["ec", "rsa", None])
def test_what_is_not_signed_is_no_token(algorithm: object, kid: str | None) -> None:
    token = forged({"alg": algorithm, "kid": kid}, lambda _: b"")
    for secrets in ((SECRET,), ()):
        with pytest.raises(BadTokenError):
            read(token, secrets=secrets)
        with pytest.raises(BadTokenError):
            read(token, EC, secrets=secrets)


def _by(signer: Signer, kind: Any) -> Any:
    return lambda text: signer.key.sign(text, *kind)


STRANGER = Signer("ec")
OTHER_CURVE = Signer("ec", "ES256", ec.generate_private_key(ec.SECP384R1()))
PKCS, SHA256, SHA512 = padding.PKCS1v15(), hashes.SHA256(), hashes.SHA512()
PSS = padding.PSS(padding.MGF1(SHA256), 32)


@pytest.mark.parametrize(
    ("header", "sign"),
    [
        # Signed in earnest, by an algorithm that the key is not for.
        ({"alg": "ES256", "kid": "rsa"}, _by(RSA, (PKCS, SHA256))),
        ({"alg": "EdDSA", "kid": "rsa"}, _by(RSA, (PKCS, SHA256))),
        ({"alg": "RS512", "kid": "rsa"}, _by(RSA, (PKCS, SHA512))),
        ({"alg": "RS256", "kid": "rsa"}, _by(RSA, (PKCS, SHA512))),
        ({"alg": "PS256", "kid": "rsa"}, _by(RSA, (PSS, SHA256))),
        ({"alg": "RS256", "kid": "rsa"}, _by(RSA, (PSS, SHA256))),
        ({"alg": "RS256", "kid": "ec"}, _by(EC, (ec.ECDSA(SHA256),))),
        ({"alg": "ES384", "kid": "ec"}, _by(OTHER_CURVE, (ec.ECDSA(hashes.SHA384()),))),
        ({"alg": "ES256", "kid": "ec"}, _by(OTHER_CURVE, (ec.ECDSA(SHA256),))),
        ({"alg": "ES256", "kid": "ed"}, _by(ED, ())),
        # By the key of another one, or of nobody that is known.
        ({"alg": "ES256", "kid": "ec"}, _by(STRANGER, (ec.ECDSA(SHA256),))),
        ({"alg": "EdDSA", "kid": "ec"}, _by(ED, ())),
        ({"alg": "EdDSA", "kid": "unknown"}, _by(ED, ())),
        ({"alg": "EdDSA", "kid": 7}, _by(ED, ())),
        # With several keys a token has to say which.
        ({"alg": "EdDSA"}, _by(ED, ())),
        # A key that the token brings along is no key.
        ({"alg": "EdDSA", "jwk": ED.shown()}, _by(ED, ())),
        ({"alg": "EdDSA", "jku": "http://127.0.0.1/", "kid": "x"}, _by(ED, ())),
        # What a header holds critical has to be understood.
        ({"alg": "EdDSA", "kid": "ed", "crit": ["new"], "new": 1}, _by(ED, ())),
    ],
)
def test_a_token_counts_by_its_keys_own_algorithm_and_by_no_other(
    header: dict[str, Any], sign: Any
) -> None:
    with pytest.raises(BadTokenError):
        read(forged(header, sign))


def test_that_forging_by_hand_makes_tokens_that_would_be_taken() -> None:
    assert read(forged({"alg": "EdDSA", "kid": "ed"}, _by(ED, ()))).scope is Scope.ADMIN
    assert read(forged({"alg": "RS256", "kid": "rsa"}, _by(RSA, (PKCS, SHA256)))).name == "admin"
    assert read(forged({"alg": "EdDSA"}, _by(ED, ())), ED).scope is Scope.ADMIN


def test_an_oct_key_in_a_set_signs_nothing() -> None:
    secret = b"shown to everybody, and of thirty-two bytes"
    shown = {"kty": "oct", "kid": "s", "k": base64.urlsafe_b64encode(secret).decode()}
    keys = read_key_set(json.dumps({"keys": [shown, EC.shown()]}).encode())
    token = forged({"alg": "HS256", "kid": "s"}, lambda text: hmac.digest(secret, text, "sha256"))
    with pytest.raises(BadTokenError):
        read(token, keys=keys)


def test_keys_that_are_not_to_verify_with_or_too_small_verify_nothing() -> None:
    small = Signer("small", "RS256", rsa_key("small", 1024))
    for signer, shown in ((EC, EC.shown(use="enc")), (small, small.shown())):
        keys = read_key_set(json.dumps({"keys": [shown, ED.shown()]}).encode())
        sign = _by(small, (PKCS, SHA256))
        token = EC.token() if signer is EC else forged({"alg": "RS256", "kid": "small"}, sign)
        with pytest.raises(BadTokenError):
            read(token, keys=keys)


@pytest.mark.parametrize(
    ("claims", "says"),
    [
        ({"iss": None}, "no iss"),
        ({"iss": ISSUER + "/"}, "another issuer"),
        ({"iss": [ISSUER]}, "another issuer"),
        ({"iss": "https://login.test/realms/two"}, "another issuer"),
        ({"aud": None}, "no aud"),
        ({"aud": "another-service"}, "another audience"),
        ({"aud": ["another-service"]}, "another audience"),
        ({"aud": []}, "no aud"),
        ({"aud": AUDIENCE + " "}, "another audience"),
        ({"exp": None}, "no exp"),
        ({"exp": 1}, "expired"),
        ({"exp": "soon"}, "not one"),
        ({"nbf": datetime.now(UTC) + timedelta(hours=1)}, "not good yet"),
        ({"iat": datetime.now(UTC) + timedelta(hours=1)}, "not good yet"),
        ({"sub": 7}, "not one"),
    ],
)
def test_a_token_is_the_providers_for_this_service_and_for_now(
    claims: dict[str, Any], says: str
) -> None:
    with pytest.raises(BadTokenError, match=says):
        read(forged({"alg": "EdDSA", "kid": "ed"}, _by(ED, ()), **_plain(claims)))


def _plain(claims: dict[str, Any]) -> dict[str, Any]:
    """Give times as a token has them; a claim of None is left out by its value."""
    return {
        name: value.timestamp() if isinstance(value, datetime) else value
        for name, value in claims.items()
    }


def test_a_token_may_be_for_several_services_and_clocks_may_differ() -> None:
    past = datetime.now(UTC) - timedelta(seconds=LEEWAY_SECONDS - 20)
    assert read(EC.token(aud=["elsewhere", AUDIENCE], exp=past)).name == "ann"


ROLES = {"ops": "operate", "look": "read", "deep": "payloads", "boss": "admin", "app": "tenant",
         "Two words": "read payloads"}  # fmt: skip


@pytest.mark.parametrize(
    ("claimed", "scope", "payloads"),
    [
        (["ops"], Scope.OPERATE, False),
        (["look", "offline_access"], Scope.READ, False),
        (["look", "deep"], Scope.READ, True),
        (["look", "ops", "deep"], Scope.OPERATE, True),
        (["look", "boss", "ops"], Scope.ADMIN, True),
        (["Two words", 7, None, {}], Scope.READ, True),
        ("look deep", Scope.READ, True),
        ("Two words", Scope.READ, True),
    ],
)
def test_values_of_a_claim_are_mapped_to_rights(
    claimed: object, scope: Scope, payloads: bool
) -> None:
    who = read(
        EC.token(realm_access={"roles": claimed}, scope="admin"),
        scope_claim="realm_access.roles",
        scopes=ROLES,
    )
    assert (who.scope, who.payloads) == (scope, payloads)


@pytest.mark.parametrize(
    "claimed",
    [None, "", [], ["admin"], ["tenant"], "admin operate read", {"boss": 1}, ["BOSS"], 7, True,
     ["deep"], ["boss "], [["boss"]]],
)  # fmt: skip
def test_what_is_not_mapped_gives_no_right_at_all(claimed: object) -> None:
    rules: dict[str, Any] = {"scope_claim": "realm_access.roles", "scopes": ROLES}
    token = EC.token(realm_access={"roles": claimed}, roles=["boss"], scope="admin boss")
    with pytest.raises(NoRightsError, match=r"realm_access\.roles has no value that"):
        read(token, **rules)
    for access in (claimed, None):
        with pytest.raises(NoRightsError):
            read(EC.token(realm_access=access), **rules)


def test_without_a_mapping_the_words_of_a_scope_are_ours_and_others_are_passed_over() -> None:
    assert read(EC.token(scope="openid read profile")).scope is Scope.READ
    assert read(EC.token(scope=["operate", "payloads"])).payloads
    for scope in ("openid", "payloads", "Admin", "", None, "admin2"):
        with pytest.raises(NoRightsError, match="no scope of this service"):
            read(EC.token(scope=scope))


def test_a_claims_whole_name_goes_before_its_parts() -> None:
    name = "https://example.test/roles"
    who = read(EC.token(**{name: ["ops"]}), scope_claim=name, scopes=ROLES)
    assert who.scope is Scope.OPERATE
    claims = {"a.b": ["look"], "a": {"b": ["boss"]}}
    assert read(EC.token(**claims), scope_claim="a.b", scopes=ROLES).scope is Scope.READ


def test_a_token_for_a_tenant_names_it_where_the_settings_say() -> None:
    issued = int(datetime.now(UTC).timestamp()) - 5
    token = EC.token(scope="tenant", iat=issued, org={"slug": "acme"}, tenant_id="globex")
    who = read(token, tenant_claim="org.slug")
    assert (who.scope, who.tenant_id, who.issued_at) == (Scope.TENANT, "acme", issued)
    assert read(token).tenant_id == "globex"
    for wrong in (None, "", "A B", 7, ["acme"], {"acme": 1}):
        with pytest.raises(NoRightsError, match="tenant_id names none"):
            read(EC.token(scope="tenant", tenant_id=wrong))


def test_a_token_of_a_tenant_and_of_an_operator_is_neither() -> None:
    for scope in ("tenant read", "tenant admin", ["operate", "tenant"]):
        with pytest.raises(NoRightsError, match="of a tenant and of an operator"):
            read(EC.token(scope=scope, tenant_id="acme"))
    assert read(EC.token(scope="tenant payloads", tenant_id="acme")).tenant_id == "acme"


def test_an_operators_token_with_a_tenant_in_it_is_an_operators() -> None:
    who = read(EC.token(scope="read", tenant_id="acme"))
    assert (who.scope, who.tenant_id) == (Scope.READ, None)


@pytest.mark.parametrize("token", ["", ".", "..", "a.b.c", "é.é.é", "e30.e30.", "e30.e30", "\0"])
def test_garbage_is_no_token(token: str) -> None:
    with pytest.raises(BadTokenError):
        read(token)


def test_the_settings_know_the_words_of_scopes() -> None:
    words = {word for rights in get_args(Rights) for word in rights.split()}
    assert words == {PAYLOADS, *(one.value for one in Scope)}


def configured(**security: Any) -> Settings:
    given = {"jwks_url": "https://login.test/", "issuer": ISSUER, "audience": "a"} | security
    return Settings.model_validate({"security": given})


def test_a_provider_is_what_the_settings_say() -> None:
    assert Provider.of(Settings()) is None
    assert Provider.of(configured(scopes={"bosses": "admin"}, tenant_claim="org")) == Provider(
        jwks_url="https://login.test/",
        issuer=ISSUER,
        audience=["a"],
        tenant_claim="org",
        scopes={"bosses": "admin"},
    )


def test_without_what_verifies_signatures_it_is_said_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("jwt.algorithms.has_crypto", False)
    assert Provider.of(Settings()) is None
    with pytest.raises(SettingsError, match=r"security\.jwks_url: .*tenantry\[jwks\]"):
        Provider.of(configured())


def test_an_authority_that_is_in_no_file_is_told_with_its_key(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"security\.jwks_ca_file: .*/none can't be read"):
        Provider.of(configured(jwks_ca_file=str(tmp_path / "none")))
