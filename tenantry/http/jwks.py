"""What a JSON Web Key Set (RFC 7517) holds that tokens may be verified with.

Which algorithm a key is for is read off the key: its kind and its curve. A token that names another
one is not looked at any further.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import jwt
import orjson
from jwt import algorithms

from tenantry.http.tokens import BadTokenError

ALGORITHMS: Final[Mapping[tuple[str, str | None], str]] = {
    ("RSA", None): "RS256",
    ("EC", "P-256"): "ES256",
    ("OKP", "Ed25519"): "EdDSA",
}
"""The algorithm of each kind of key and its curve."""

MAX_KEYS: Final = 100
LEAST_BITS, MOST_BITS = 2048, 8192
_MOST_TEXT: Final = MOST_BITS // 6 + 8
_MOST_EXPONENT: Final = 8
_PUBLIC: Final = ("kty", "crv", "n", "e", "x", "y")
_PRIVATE: Final = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})


def can_verify() -> bool:
    """Tell whether the library that verifies signatures is installed."""
    return bool(algorithms.has_crypto)


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """A key, by its name if it has one, and the one algorithm that it is for."""

    kid: str | None
    algorithm: str
    public: jwt.PyJWK


@dataclass(frozen=True, slots=True, kw_only=True)
class KeySet:
    """The keys of a set; `passed_over` says of each other one why it is not used."""

    keys: tuple[Key, ...] = ()
    passed_over: tuple[str, ...] = ()

    def find(self, kid: str | None, algorithm: str) -> Key | None:
        """Give the key that a token is signed with by what its header says; None: not known here.

        Raises `BadTokenError` where the header fits no key, whatever else comes to be known.
        """
        named = [key for key in self.keys if kid in (None, key.kid)]
        if kid is None and len(named) > 1:
            raise BadTokenError("the token names no key (kid), and its provider has several")
        fitting = [key for key in named if key.algorithm == algorithm]
        if len(fitting) > 1:
            raise BadTokenError("several keys of the provider bear the name (kid) in the token")
        if named and not fitting:
            raise BadTokenError("the token is not signed by the algorithm of its key")
        return fitting[0] if fitting else None


class _PassedOverError(Exception):
    """A key is not used; the message says why."""


def read_key_set(document: bytes) -> KeySet:
    """Read a set. What is in it and is no key to verify with is passed over.

    Raises `ValueError` where it is none.
    """
    try:
        tree = orjson.loads(document)
    except ValueError:
        raise ValueError("it is no JSON") from None
    entries = tree.get("keys") if isinstance(tree, dict) else None
    if not isinstance(entries, list):
        raise ValueError('it is no key set: an object with a list of "keys"')  # noqa: TRY004
    if len(entries) > MAX_KEYS:
        raise ValueError(f"it has {len(entries)} keys, and {MAX_KEYS} at most are taken")
    keys, passed_over = [], []
    for number, entry in enumerate(entries, start=1):
        try:
            keys.append(_key(entry))
        except _PassedOverError as error:
            kid = entry.get("kid") if isinstance(entry, dict) else None
            which = repr(kid[:100]) if isinstance(kid, str) else number
            passed_over.append(f"key {which} {error}")
    return KeySet(keys=tuple(keys), passed_over=tuple(passed_over))


def _key(entry: Any) -> Key:
    if not isinstance(entry, dict):
        raise _PassedOverError("is no object")
    algorithm = _algorithm(entry)
    if _PRIVATE & entry.keys():
        raise _PassedOverError("shows its private part: whoever reads it can sign")
    if entry.get("use", "sig") != "sig":
        raise _PassedOverError("is not for signatures (use)")
    operations = entry.get("key_ops")
    if operations is not None and not (isinstance(operations, list) and "verify" in operations):
        raise _PassedOverError("is not to verify with (key_ops)")
    if entry.get("alg", algorithm) != algorithm:
        raise _PassedOverError(f"is for another algorithm than {algorithm} (alg)")
    kid = entry.get("kid")
    if kid is not None and not isinstance(kid, str):
        raise _PassedOverError("has a name that is no text (kid)")
    if algorithm == "RS256":
        _check_size(entry)
    public = {name: entry[name] for name in _PUBLIC if name in entry}
    try:
        made = jwt.PyJWK(public, algorithm=algorithm)
    except Exception:  # noqa: BLE001 - whatever the libraries make of a stranger's numbers
        raise _PassedOverError("can't be read") from None
    if algorithm == "RS256" and not LEAST_BITS <= made.key.key_size <= MOST_BITS:
        raise _PassedOverError(f"has not {LEAST_BITS} to {MOST_BITS} bits")
    return Key(kid=kid, algorithm=algorithm, public=made)


def _algorithm(entry: Mapping[str, Any]) -> str:
    kind, curve = entry.get("kty"), entry.get("crv")
    for (wanted, of), algorithm in ALGORITHMS.items():
        if kind == wanted and of in (None, curve):
            return algorithm
    raise _PassedOverError("is of no kind that is used: RSA, EC on P-256, Ed25519")


def _check_size(entry: Mapping[str, Any]) -> None:
    """See that what an RSA key is made of is not so large that it costs much to look at."""
    for name, most in (("n", _MOST_TEXT), ("e", _MOST_EXPONENT)):
        number = entry.get(name)
        if not isinstance(number, str) or len(number) > most:
            raise _PassedOverError(f"has no {name}, or one that is too large")
