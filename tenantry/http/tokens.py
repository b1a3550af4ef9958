"""Bearer tokens: JWTs signed with the shared secret (HS256), for admins and for tenants."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from math import floor
from typing import Any, Final

import jwt

from tenantry.domain import names

_ALGORITHM: Final = "HS256"
_MIN_SECRET: Final = 32
_MAX_SUBJECT: Final = 200
LEEWAY_SECONDS: Final = 30
"""How far apart the clocks of who signs and who reads may be."""


class Scope(StrEnum):
    """What a token is good for."""

    ADMIN = "admin"
    TENANT = "tenant"


class BadTokenError(Exception):
    """The token is not valid; the message says why and never holds the token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """Who makes a request: `name` for the journal, `tenant_id` with the scope `tenant` only.

    `anonymous` is who has shown no token because none was asked for. `issued_at` is a token's time,
    in seconds since 1970, if it has one.
    """

    name: str
    scope: Scope
    tenant_id: str | None = None
    anonymous: bool = False
    issued_at: float | None = None

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


class Tokens:
    """Issues and reads tokens. Raises `ValueError` for a secret below 32 bytes."""

    def __init__(self, secret: str) -> None:
        if len(secret.encode()) < _MIN_SECRET:
            raise ValueError(f"the secret must have {_MIN_SECRET} bytes at least")
        self._secret = secret

    def issue(
        self, *, subject: str, now: datetime, ttl: timedelta, tenant_id: str | None = None
    ) -> str:
        """Sign a token: for one tenant, or for an admin where no tenant is named."""
        claims: dict[str, object] = {
            "sub": subject,
            # With a fraction, so that it is known to be later than what came before in its second.
            "iat": now.timestamp(),
            "exp": now + ttl,
            "scope": (Scope.ADMIN if tenant_id is None else Scope.TENANT).value,
        }
        if tenant_id is not None:
            claims["tenant_id"] = tenant_id
        return jwt.encode(claims, self._secret, algorithm=_ALGORITHM)

    def read(self, token: str) -> Principal:
        """Tell who holds a token. Raises `BadTokenError`."""
        try:
            claims = jwt.decode(
                token,
                self._secret,
                algorithms=[_ALGORITHM],
                options={"require": ["exp"]},
                leeway=LEEWAY_SECONDS,
            )
        except jwt.ExpiredSignatureError:
            raise BadTokenError("the token has expired") from None
        except jwt.MissingRequiredClaimError:
            raise BadTokenError("the token never expires: it has no exp") from None
        except (jwt.InvalidTokenError, ValueError, TypeError, OverflowError, RecursionError):
            raise BadTokenError("the token is not one this server has signed") from None
        scope, tenant_id = claims.get("scope"), claims.get("tenant_id")
        subject = claims.get("sub")
        name = subject[:_MAX_SUBJECT] if isinstance(subject, str) and subject else None
        if scope == Scope.ADMIN:
            return Principal(name=name or "admin", scope=Scope.ADMIN)
        if scope != Scope.TENANT:
            raise BadTokenError("the token's scope is neither admin nor tenant")
        if not isinstance(tenant_id, str) or not names.is_tenant_id(tenant_id):
            raise BadTokenError("the token is for a tenant but names none")
        return Principal(
            name=name or f"tenant {tenant_id}",
            scope=Scope.TENANT,
            tenant_id=tenant_id,
            issued_at=_issued_at(claims.get("iat")),
        )


def _issued_at(claimed: Any) -> float | None:
    try:
        return None if claimed is None else float(claimed)
    except (ValueError, TypeError, OverflowError):  # a whole number may be beyond any float
        raise BadTokenError("the token's iat is no time") from None
