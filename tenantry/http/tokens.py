"""Bearer tokens of our own: JWTs signed with a shared secret (HS256), for operators and tenants."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from math import floor
from typing import Any, Final

import jwt

from tenantry.domain import names

ALGORITHM: Final = "HS256"
_MIN_SECRET: Final = 32
_MAX_SUBJECT: Final = 200
_LATEST: Final = 2**53
LEEWAY_SECONDS: Final = 30
"""How far apart the clocks of a token's issuer and its reader may be."""


class Scope(StrEnum):
    """What a token allows. The first three are for operators, and cover all tenants."""

    READ = "read"
    """See everything but secrets; payloads only together with `PAYLOADS`."""
    OPERATE = "operate"
    """The same, and pause, resume, resize, replay and set limits."""
    ADMIN = "admin"
    """Everything."""
    TENANT = "tenant"
    """What is one tenant's own."""


PAYLOADS: Final = "payloads"
"""The word beside `read` or `operate` that allows to see payloads."""


class BadTokenError(Exception):
    """The token is not valid; the message says why and never holds the token."""


class NoRightsError(Exception):
    """The token is valid, but gives no rights here; the message says why."""


class TokenUnreadableError(Exception):
    """The token can't be checked now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """The caller of a request: `name` for the journal, `tenant_id` with the scope `tenant` only.

    `anonymous` means that no token was asked for. `issued_at` is the token's `iat`, in seconds
    since 1970, if it has one; `expires_at` is the time at which it ends. `payloads` says whether
    the caller may see payloads.
    """

    name: str
    scope: Scope
    tenant_id: str | None = None
    anonymous: bool = False
    issued_at: float | None = None
    expires_at: float | None = None
    payloads: bool = True

    def is_former(self, incarnation: int, since: datetime | None) -> bool:
        """Tell whether the token was issued for a former tenant of the same id.

        An `iat` in whole seconds is compared with the second in which the present tenant was
        created: a former tenant's token is never that late. A token without `iat` is good for the
        first tenant of its id alone.
        """
        if self.scope is not Scope.TENANT or incarnation <= 1:
            return False
        if self.issued_at is None or since is None:
            return True
        began = since.timestamp()
        return self.issued_at < (floor(began) if self.issued_at.is_integer() else began)

    def good_for(self, now: datetime) -> float | None:
        """Give the seconds for which the token stays valid; None if it does not end."""
        if self.expires_at is None:
            return None
        return max(0.0, self.expires_at + LEEWAY_SECONDS - now.timestamp())


class Tokens:
    """Issues and reads tokens: the first secret signs, all of them verify.

    Raises `ValueError` without a secret, and for a secret below 32 bytes.
    """

    def __init__(self, *secrets: str) -> None:
        if not secrets or min(len(secret.encode()) for secret in secrets) < _MIN_SECRET:
            raise ValueError(f"a secret must have {_MIN_SECRET} bytes at least")
        self._secrets = secrets

    def issue(
        self,
        *,
        subject: str,
        now: datetime,
        ttl: timedelta,
        tenant_id: str | None = None,
        scope: Scope = Scope.ADMIN,
        payloads: bool = False,
    ) -> str:
        """Sign a token: for one tenant, or with an operator's scope if no tenant is named."""
        claims: dict[str, object] = {
            "sub": subject,
            # With a fraction, to be later than what happened earlier in the same second.
            "iat": now.timestamp(),
            "exp": now + ttl,
            "scope": scope_words(scope if tenant_id is None else Scope.TENANT, payloads=payloads),
        }
        if tenant_id is not None:
            claims["tenant_id"] = tenant_id
        return jwt.encode(claims, self._secrets[0], algorithm=ALGORITHM)

    def read(self, token: str) -> Principal:
        """Give the holder of a token. Raises `BadTokenError`."""
        claims = self._claims(token)
        scope, payloads = _scope(claims.get("scope"))
        return principal(claims, scope, payloads=payloads, tenant_id=claims.get("tenant_id"))

    def _claims(self, token: str) -> Mapping[str, Any]:
        for secret in self._secrets:
            try:
                claims: Mapping[str, Any] = jwt.decode(
                    token,
                    secret,
                    algorithms=[ALGORITHM],
                    options={"require": ["exp"]},
                    leeway=LEEWAY_SECONDS,
                )
            except jwt.ExpiredSignatureError:
                raise BadTokenError("the token has expired") from None
            except jwt.MissingRequiredClaimError:
                raise BadTokenError("the token never expires: it has no exp") from None
            except jwt.InvalidSignatureError:
                continue
            except (jwt.InvalidTokenError, ValueError, TypeError, OverflowError, RecursionError):
                break
            return claims
        raise BadTokenError("the token is not one this server has signed")


def principal(
    claims: Mapping[str, Any], scope: Scope, *, payloads: bool, tenant_id: object
) -> Principal:
    """Make a principal from a verified token's claims and its scope.

    `tenant_id` is the token's claim of that name. Raises `BadTokenError`.
    """
    subject = claims.get("sub")
    name = _printable(subject[:_MAX_SUBJECT]) if isinstance(subject, str) and subject else None
    expires_at = float(min(int(claims["exp"]), _LATEST))
    if scope is not Scope.TENANT:
        return Principal(
            name=name or scope.value,
            scope=scope,
            payloads=payloads or scope is Scope.ADMIN,
            expires_at=expires_at,
        )
    if not isinstance(tenant_id, str) or not names.is_tenant_id(tenant_id):
        raise BadTokenError("the token is for a tenant but names none")
    return Principal(
        name=name or f"tenant {tenant_id}",
        scope=Scope.TENANT,
        tenant_id=tenant_id,
        issued_at=_issued_at(claims.get("iat")),
        expires_at=expires_at,
    )


def header_of(token: str) -> Mapping[str, Any]:
    """Read a token's header before its signature is checked. Raises `BadTokenError`."""
    try:
        return jwt.get_unverified_header(token)
    except (jwt.InvalidTokenError, ValueError, TypeError, RecursionError):
        raise BadTokenError("the token is no JWT") from None


def scope_words(scope: Scope, *, payloads: bool) -> str:
    """Give the words of a token's scope, separated by spaces."""
    return f"{scope.value} {PAYLOADS}" if payloads else scope.value


def _scope(claimed: Any) -> tuple[Scope, bool]:
    """Read a scope's words: the scope, and whether payloads may be seen."""
    words = set(claimed.split(" ")) if isinstance(claimed, str) else set()
    scopes = [one for one in Scope if one.value in words - {PAYLOADS}]
    if len(scopes) != 1 or words - {PAYLOADS, scopes[0].value}:
        raise BadTokenError("the token's scope is not one of admin, operate, read and tenant")
    return scopes[0], PAYLOADS in words


def _printable(text: str) -> str:
    """Make a name fit for the journal and one line of the log."""
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)


def _issued_at(claimed: Any) -> float | None:
    try:
        return None if claimed is None else float(claimed)
    except (ValueError, TypeError, OverflowError):  # a whole number may be beyond any float
        raise BadTokenError("the token's iat is no time") from None
