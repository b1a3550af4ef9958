"""One-time codes by which a caller on the control socket begins a session of the page.

A code is part of a link and may be seen there, so it is good for a minute and for one session. A
link never contains a token. A session begun by a caller with a token ends with that token.
"""

from __future__ import annotations

import hashlib
import secrets
from datetime import UTC, datetime, timedelta
from typing import Final

from tenantry.api.idempotency import IdempotencyKeys
from tenantry.api.paging import BadCursorError, Cursors
from tenantry.http.identity import Identity
from tenantry.http.problems import Problem
from tenantry.http.tokens import Principal

LIFE: Final = timedelta(minutes=1)
"""How long a code is valid."""

SESSION: Final = timedelta(hours=1)
"""How long the session that it begins lasts."""

_BINDING: Final = "login code"
_OWNER: Final = hashlib.sha256(_BINDING.encode()).digest()
_NONCE: Final = 16
_TIME: Final = 8
_NAME_AT: Final = 2 * _TIME + _NONCE
_MOST_NAME: Final = 200


class LoginCodes:
    """Issues codes and redeems each once, on any node: all nodes share the key that seals them."""

    def __init__(self, cursors: Cursors, keys: IdempotencyKeys, identity: Identity) -> None:
        self._cursors = cursors
        self._keys = keys
        self._identity = identity

    def issue(self, who: Principal, now: datetime) -> str | None:
        """Issue a code for a caller; None if no tokens are in use.

        Raises `Problem`: 409 if only a provider's tokens are accepted, which we can't sign.
        """
        if not self._identity.is_asked_for:
            return None
        if self._identity.tokens is None:
            raise Problem(
                409,
                "there is no security.jwt_secret to sign a session with: log in to the page with a "
                "token of your provider",
                code="no-secret",
                title="No secret",
            )
        end = (now + SESSION).timestamp()
        if who.expires_at is not None:
            end = min(end, who.expires_at)
        times = [int(one).to_bytes(_TIME) for one in ((now + LIFE).timestamp(), end)]
        value = b"".join(times) + secrets.token_bytes(_NONCE) + who.name.encode()[:_MOST_NAME]
        return self._cursors.seal(value, _BINDING)

    def redeem(self, code: str) -> str:
        """Exchange a code for the token of a session. Blocks.

        Raises `Problem`: 401 for a code that is invalid, used or too old; `StoreUnavailableError`.
        """
        now, tokens = datetime.now(UTC), self._identity.tokens
        try:
            value = self._cursors.open(code, _BINDING)
        except BadCursorError:
            raise _used() from None
        until, end = (
            datetime.fromtimestamp(int.from_bytes(value[at : at + _TIME]), UTC) for at in (0, _TIME)
        )
        # By the sealed content: one code can be encoded in several ways.
        key, once = hashlib.sha256(value).digest(), secrets.token_bytes(32)
        if tokens is None or now >= until or not self._keys.claim(_OWNER, key, once):
            raise _used()
        name = value[_NAME_AT:].decode(errors="ignore")
        return tokens.issue(subject=name, now=now, ttl=end - now)


def _used() -> Problem:
    return Problem(
        401, "the link has been used, or is older than a minute: `tenantry ui` makes another"
    )
