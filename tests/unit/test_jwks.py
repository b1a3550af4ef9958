"""Which keys of a set are used, and for which tokens."""

from __future__ import annotations

import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed448
from hypothesis import given
from hypothesis import strategies as st

from tenantry.http.provider_keys import MAX_KEYS, KeySet, read_key_set
from tenantry.http.tokens import BadTokenError
from tests.identity_provider import Signer, document, rsa_key

EC = Signer("ec")
RSA = Signer("rsa", "RS256")
ED = Signer("ed", "EdDSA")


def read(*entries: Any) -> KeySet:
    return read_key_set(json.dumps({"keys": entries}).encode())


def test_a_key_is_for_the_algorithm_of_its_kind() -> None:
    keys = read_key_set(document(EC, RSA, ED))
    assert [(key.kid, key.algorithm) for key in keys.keys] == [
        ("ec", "ES256"), ("rsa", "RS256"), ("ed", "EdDSA"),
    ]  # fmt: skip
    assert keys.passed_over == ()
    bare = read(*(one.shown(alg=None, use=None) for one in (EC, RSA, ED)))
    assert [key.algorithm for key in bare.keys] == ["ES256", "RS256", "EdDSA"]
    assert read(EC.shown(key_ops=["verify"])).keys


P384 = Signer("p384", key=ec.generate_private_key(ec.SECP384R1()))
ED448 = Signer("ed448", "EdDSA", key=ed448.Ed448PrivateKey.generate())


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        ({"kty": "oct", "k": "c2VjcmV0" * 8, "kid": "x", "alg": "HS256"}, "no kind that is used"),
        ({"kty": "oct", "k": "c2VjcmV0" * 8, "kid": "x", "alg": "RS256"}, "no kind that is used"),
        (EC.shown(use="enc"), "use"),
        (EC.shown(use=7), "use"),
        (EC.shown(key_ops=["encrypt"]), "key_ops"),
        (EC.shown(key_ops="verify"), "key_ops"),
        (EC.shown(alg="ES384"), "alg"),
        (EC.shown(alg="HS256"), "alg"),
        (RSA.shown(alg="RS512"), "alg"),
        (RSA.shown(alg="PS256"), "alg"),
        (RSA.shown(alg="ES256"), "alg"),
        (EC.shown(kid=7), "kid"),
        (P384.shown(alg=None), "no kind that is used"),
        (P384.shown(crv="P-256"), "can't be read"),
        (ED448.shown(), "no kind that is used"),
        (ED.shown(crv="X25519"), "no kind that is used"),
        (ED.shown(kty="EC"), "no kind that is used"),
        (ED.shown(x="AAAA"), "can't be read"),
        (EC.shown(y="AAAA"), "can't be read"),
        (EC.shown(y=None), "can't be read"),
        (EC.shown(x=7), "can't be read"),
        (EC.shown(d="AAAA"), "private"),
        (RSA.shown(n=7), "no n"),
        (RSA.shown(n="A" * 20_000), "no n"),
        (RSA.shown(e="A" * 20_000), "no e"),
        (RSA.shown(e="AQ"), "can't be read"),
        (Signer("small", "RS256", rsa_key("small", 1024)).shown(), "bits"),
        ({"kid": "x"}, "no kind that is used"),
        ([], "no object"),
        ("key", "no object"),
        (None, "no object"),
    ],
)
def test_whatever_is_no_key_to_verify_with_is_passed_over_and_told(entry: Any, why: str) -> None:
    keys = read(entry, ED.shown())
    assert [key.kid for key in keys.keys] == ["ed"]
    (told,) = keys.passed_over
    assert why in told


@pytest.mark.parametrize(
    "text",
    [b"", b"<html>", b"[]", b"{}", b'{"keys": {}}', b'{"keys": null}', b"\xff", b"[" * 100_000],
    ids=repr,
)
def test_what_is_no_set_is_no_set(text: bytes) -> None:
    with pytest.raises(ValueError, match="it is no"):
        read_key_set(text)
    with pytest.raises(ValueError, match="100 at most"):
        read(*[None] * (MAX_KEYS + 1))


def test_a_set_without_keys_is_one() -> None:
    assert read() == KeySet()


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=4,
)


@given(
    st.sampled_from([EC, RSA, ED]),
    st.dictionaries(
        st.sampled_from(["kty", "crv", "n", "e", "x", "y", "use", "alg", "key_ops", "kid"]), values
    ),
)
def test_no_key_however_odd_keeps_the_others_from_being_used(
    signer: Signer, odd: dict[str, Any]
) -> None:
    keys = read(signer.shown() | odd, ED.shown(kid="fine"))
    assert keys.keys[-1].kid == "fine"


def test_a_token_names_its_key_or_there_is_but_one() -> None:
    keys = read_key_set(document(EC, RSA))
    key = keys.find("rsa", "RS256")
    assert key is not None
    assert (key.kid, key.algorithm) == ("rsa", "RS256")
    assert keys.find("other", "RS256") is None
    assert KeySet().find(None, "RS256") is None
    assert KeySet().find("rsa", "RS256") is None
    with pytest.raises(BadTokenError, match="names no key"):
        keys.find(None, "RS256")
    alone = read(EC.shown(kid=None)).find(None, "ES256")
    assert alone is not None
    assert read(EC.shown(kid=None)).find("ec", "ES256") is None


@pytest.mark.parametrize(
    ("kid", "algorithm"),
    [("rsa", "ES256"), ("ec", "RS256"), ("ec", "EdDSA"), ("ec", "HS256"), ("ec", "none")],
)
def test_a_key_is_for_no_algorithm_but_its_own(kid: str, algorithm: str) -> None:
    with pytest.raises(BadTokenError, match="algorithm of its key"):
        read_key_set(document(EC, RSA)).find(kid, algorithm)


def test_of_keys_with_one_name_the_algorithm_tells_which_or_none_is_taken() -> None:
    keys = read(EC.shown(kid="k"), RSA.shown(kid="k"))
    key = keys.find("k", "RS256")
    assert key is not None
    assert key.algorithm == "RS256"
    twice = read(EC.shown(kid="k"), Signer("k").shown())
    with pytest.raises(BadTokenError, match="several keys"):
        twice.find("k", "ES256")
