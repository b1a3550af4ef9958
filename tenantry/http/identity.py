"""Whose tokens are taken. What is trusted may change while it is used."""

from __future__ import annotations

from collections.abc import Sequence

from tenantry.http.tokens import BadTokenError, Principal, Tokens


class Identity:
    """Tells by a bearer token who calls. `read` is for event loops; `trust` for any thread."""

    def __init__(self, secrets: Sequence[str] = ()) -> None:
        """With no `secrets` no tokens are asked for."""
        self.trust(secrets)

    def trust(self, secrets: Sequence[str]) -> None:
        """Take tokens signed with these secrets, and no others, from now on; the first signs."""
        self._tokens = Tokens(*secrets) if secrets else None

    @property
    def tokens(self) -> Tokens | None:
        """Our own tokens, where there is a secret to sign them with."""
        return self._tokens

    @property
    def is_asked_for(self) -> bool:
        """Whether a call on TCP needs a token."""
        return self._tokens is not None

    async def read(self, token: str) -> Principal:
        """Tell who holds a token. Raises `BadTokenError`."""
        tokens = self._tokens
        if tokens is None:
            raise BadTokenError("no tokens are taken here")
        return tokens.read(token)
