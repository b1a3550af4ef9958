"""Tokens of an identity provider (OpenID Connect, OAuth 2): RS256, ES256 and EdDSA.

A token is accepted if it is signed with one of the provider's keys, by that key's algorithm, for
this service. The settings map its claims to scopes; claims that they do not map give no rights.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

import jwt

from tenantry.domain import names
from tenantry.http import provider_keys
from tenantry.http.fetching import trusting
from tenantry.http.provider_keys import ProviderKeys
from tenantry.http.tokens import (
    LEEWAY_SECONDS,
    PAYLOADS,
    BadTokenError,
    NoRightsError,
    Principal,
    Scope,
    header_of,
    principal,
)
from tenantry.settings import Settings, SettingsError

_MOST_FIRST: Final = (Scope.ADMIN, Scope.OPERATE, Scope.READ)


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider:
    """Where a provider's keys are, and which claims its tokens must have.

    `scopes` maps values of the claim `scope_claim` to words of our scopes; if it is empty, the
    values are such words themselves. A nested claim is named by its path, with dots.
    """

    jwks_url: str
    issuer: str
    audience: list[str]
    ca_file: str = ""
    scope_claim: str = "scope"
    tenant_claim: str = "tenant_id"
    scopes: dict[str, str]

    @classmethod
    def of(cls, settings: Settings) -> Self | None:
        """Give the configured provider, if there is one.

        Raises `SettingsError` if its tokens could not be read: a library is not installed, or the
        file of its certificate authority can't be used.
        """
        given = settings.security
        if not given.jwks_url:
            return None
        if not provider_keys.can_verify():
            raise SettingsError(
                "security.jwks_url: what verifies a provider's tokens is not installed: "
                "pip install 'tenantry[jwks]'"
            )
        try:
            trusting(given.jwks_ca_file)
        except ValueError as error:
            raise SettingsError(f"security.jwks_ca_file: {error}") from None
        return cls(
            jwks_url=given.jwks_url,
            issuer=given.issuer,
            audience=list(given.audience),
            ca_file=given.jwks_ca_file,
            scope_claim=given.scope_claim,
            tenant_claim=given.tenant_claim,
            scopes=dict(given.scopes),
        )

    def keys(self) -> ProviderKeys:
        """Make the object that fetches its keys."""
        return ProviderKeys(self.jwks_url, tls=trusting(self.ca_file))


class ProviderTokens:
    """Reads a provider's tokens."""

    def __init__(self, provider: Provider, keys: ProviderKeys) -> None:
        self.keys: Final = keys
        self._provider = provider

    async def read(self, token: str, header: Mapping[str, Any]) -> Principal:
        """Give the holder of a token; `header` is the token's header, not verified yet.

        Raises `BadTokenError`, `NoRightsError`, and `TokenUnreadableError` if the keys can't be
        fetched now.
        """
        claims = await self._claims(token, header, self._provider.audience)
        return self._principal(claims)

    def is_signed(self, token: str, header: Mapping[str, Any]) -> bool:
        """Tell whether a token is the provider's, by the cached keys, without waiting."""
        try:
            key = self.keys.known(header.get("kid"), _algorithm(header))
            return key is not None and bool(self._verified(token, key, self._provider.audience))
        except BadTokenError:
            return False

    async def read_id_token(self, token: str, *, client_id: str, nonce: str) -> Principal:
        """Give who has logged in, from the ID token of a login that was begun with `nonce`.

        It must be made for this client and this login. Raises what `read` raises.
        """
        claims = await self._claims(token, header_of(token), [client_id], "iat", "sub")
        party = claims.get("azp")
        if party is None and claims["aud"] in (client_id, [client_id]):
            party = client_id
        if party != client_id:
            raise BadTokenError("the ID token was made for another client")
        if not _same(claims.get("nonce"), nonce):
            raise BadTokenError("the ID token is of another login")
        return self._principal(claims)

    def _principal(self, claims: Mapping[str, Any]) -> Principal:
        scope, payloads = self._rights(claims)
        tenant_id = None
        if scope is Scope.TENANT:
            tenant_id = _claim(claims, self._provider.tenant_claim)
            if not isinstance(tenant_id, str) or not names.is_tenant_id(tenant_id):
                raise NoRightsError(
                    "the token is for a tenant, but its claim "
                    f"{self._provider.tenant_claim} names none"
                )
        return principal(claims, scope, payloads=payloads, tenant_id=tenant_id)

    async def _claims(
        self, token: str, header: Mapping[str, Any], audience: Sequence[str], *required: str
    ) -> Mapping[str, Any]:
        key = await self.keys.find(header.get("kid"), _algorithm(header))
        return self._verified(token, key, audience, *required)

    def _verified(
        self, token: str, key: provider_keys.Key, audience: Sequence[str], *required: str
    ) -> Mapping[str, Any]:
        try:
            claims: Mapping[str, Any] = jwt.decode(
                token,
                key.public,
                algorithms=[key.algorithm],
                issuer=self._provider.issuer,
                audience=audience,
                options={"require": ["exp", "iss", "aud", *required]},
                leeway=LEEWAY_SECONDS,
            )
        except jwt.ExpiredSignatureError:
            raise BadTokenError("the token has expired") from None
        except jwt.ImmatureSignatureError:
            raise BadTokenError("the token is not good yet; look at both clocks") from None
        except jwt.MissingRequiredClaimError as error:
            raise BadTokenError(f"the token has no {error.claim}") from None
        except jwt.InvalidIssuerError:
            raise BadTokenError("the token is of another issuer") from None
        except jwt.InvalidAudienceError:
            raise BadTokenError("the token is for another audience") from None
        except (jwt.InvalidTokenError, ValueError, TypeError, OverflowError, RecursionError):
            raise BadTokenError("the token is not one that its provider has signed") from None
        return claims

    def _rights(self, claims: Mapping[str, Any]) -> tuple[Scope, bool]:
        """Give the scope that a token has here, and whether payloads may be seen."""
        claim, mapping = self._provider.scope_claim, self._provider.scopes
        said = _words(_claim(claims, claim))
        granted = {
            word for one in said for word in (mapping.get(one, "") if mapping else one).split()
        }
        scopes = [one for one in Scope if one.value in granted]
        if not scopes:
            what = "value that security.scopes maps" if mapping else "scope of this service"
            raise NoRightsError(f"the token gives no rights here: its claim {claim} has no {what}")
        if Scope.TENANT in scopes:
            if len(scopes) > 1:
                raise NoRightsError(
                    "the token gives rights of a tenant and of an operator: it takes one of them"
                )
            return Scope.TENANT, True
        return next(one for one in _MOST_FIRST if one in scopes), PAYLOADS in granted


def _algorithm(header: Mapping[str, Any]) -> str:
    """Give the algorithm that a token names, if a provider has it. Raises `BadTokenError`."""
    algorithm: object = header.get("alg")
    if not isinstance(algorithm, str) or algorithm not in provider_keys.ALGORITHMS.values():
        raise BadTokenError("the token is signed by none of RS256, ES256, EdDSA and HS256")
    return algorithm


def _claim(claims: Mapping[str, Any], path: str) -> object:
    """Give a claim by its name, or a nested one by its path with dots."""
    if path in claims:
        found: object = claims[path]
        return found
    inner: object = claims
    for name in path.split("."):
        inner = inner.get(name) if isinstance(inner, dict) else None
    return inner


def _words(value: object) -> set[str]:
    """Give a claim's values: a text and each of its words, or the texts of a list."""
    if isinstance(value, str):
        return {value, *value.split()}
    return {one for one in value if isinstance(one, str)} if isinstance(value, list) else set()


def _same(said: object, wanted: str) -> bool:
    """Compare two texts in a time that does not depend on where they differ."""
    given = said.encode(errors="replace") if isinstance(said, str) else b""
    return hmac.compare_digest(given, wanted.encode())
