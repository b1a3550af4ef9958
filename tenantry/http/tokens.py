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
"""How far apart the clocks of who signs and who reads may be."""


class Scope(StrEnum):
    """What a token is good for: the former three are operators', for all tenants."""

    READ = "read"
    """To see everything but secrets, and what is in messages with `PAYLOADS` alone."""
    OPERATE = "operate"
    """That, and to pause, resume, resize, replay and limit."""
    ADMIN = "admin"
    """Everything."""
    TENANT = "tenant"
    """One tenant's own."""


PAYLOADS: Final = "payloads"
"""The word beside `read` or `operate` that lets their holder see what is in messages."""


class BadTokenError(Exception):
    """The token is not valid; the message says why and never holds the token."""


class NoRightsError(Exception):
    """The token is valid, and gives no rights here; the message says why."""


class TokenUnreadableError(Exception):
    """Whether the token is valid can't be told now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """Who makes a request: `name` for the journal, `tenant_id` with the scope `tenant` only.

    `anonymous` is who has shown no token because none was asked for. `issued_at` is a token's time,
    in seconds since 1970, if it has one, `expires_at` the time at which it is good no more.
    `payloads` is whether they may see what is in messages.
    """

    name: str
    scope: Scope
    tenant_id: str | None = None
    anonymous: bool = False
    issued_at: float | None = None
    expires_at: float | None = None
    payloads: bool = True

    def is_former(self, incarnation: int, since: datetime | None) -> bool:
        """Tell whether the token was a former tenant's of the id that this one has.

        An `iat` in whole seconds is held against the second in which this one was made: no
        former's is as late. Without any a token is good for the first tenant of its id.
        """
        if self.scope is not Scope.TENANT or incarnation <= 1:
            return False
        if self.issued_at is None or since is None:
            return True
        began = since.timestamp()
        return self.issued_at < (floor(began) if self.issued_at.is_integer() else began)

    def good_for(self, now: datetime) -> float | None:
        """Give the seconds for which the token is still taken; None where there is no end."""
        if self.expires_at is None:
            return None
        return max(0.0, self.expires_at + LEEWAY_SECONDS - now.timestamp())


class Tokens:
    """Issues and reads tokens: the first secret signs, all of them verify.

    Raises `ValueError` where there is none, and for one below 32 bytes.
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
        """Sign a token: for one tenant, or with an operator's scope where no tenant is named."""
        claims: dict[str, object] = {
            "sub": subject,
            # With a fraction, so that it is known to be later than what came before in its second.
            "iat": now.timestamp(),
            "exp": now + ttl,
            "scope": scope_words(scope if tenant_id is None else Scope.TENANT, payloads=payloads),
        }
        if tenant_id is not None:
            claims["tenant_id"] = tenant_id
        return jwt.encode(claims, self._secrets[0], algorithm=ALGORITHM)

    def read(self, token: str) -> Principal:
        """Tell who holds a token. Raises `BadTokenError`."""
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
    """Tell who holds a token by what it says of itself, and by the scope it is good for.

    `tenant_id` is what it says of its tenant. Raises `BadTokenError`.
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
    """Read what a token says before its signature is looked at. Raises `BadTokenError`."""
    try:
        return jwt.get_unverified_header(token)
    except (jwt.InvalidTokenError, ValueError, TypeError, RecursionError):
        raise BadTokenError("the token is no JWT") from None


def scope_words(scope: Scope, *, payloads: bool) -> str:
    """Give what a token says of its scope, words with spaces between them."""
    return f"{scope.value} {PAYLOADS}" if payloads else scope.value


def _scope(claimed: Any) -> tuple[Scope, bool]:
    """Read it: what the token is good for, and whether it shows what is in messages."""
    words = set(claimed.split(" ")) if isinstance(claimed, str) else set()
    scopes = [one for one in Scope if one.value in words - {PAYLOADS}]
    if len(scopes) != 1 or words - {PAYLOADS, scopes[0].value}:
        raise BadTokenError("the token's scope is not one of admin, operate, read and tenant")
    return scopes[0], PAYLOADS in words


def _printable(text: str) -> str:
    """Make it one that the journal and a line of the log can hold."""
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)


def _issued_at(claimed: Any) -> float | None:
    try:
        return None if claimed is None else float(claimed)
    except (ValueError, TypeError, OverflowError):  # a whole number may be beyond any float
        raise BadTokenError("the token's iat is no time") from None
